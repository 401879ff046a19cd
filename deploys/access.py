"""Databases, users and rules beside PEM's, for those who run more than PEM on this server.

    pyinfra inventories/example.py deploys/access.py

Only where the inventory has an Access(…). Attributes and privileges become exactly what it says;
what has left it is reported, never dropped. Nothing of database pem changes but one function, which
PgBouncer asks for these users.
"""

from pyinfra import host
from pyinfra.api import deploy

from fleet import is_entrypoint
from fleet.access import hba_lines, ident_lines, user_function_wishes
from fleet.databases import Access
from fleet.grants import database_wishes, left_databases, privilege_wishes
from fleet.hosts import Fleet
from fleet.operations import postgres
from fleet.platforms import Postgres, family_of
from fleet.platforms import postgres as postgres_row
from fleet.users import group_wishes, left_users, user_wishes


@deploy("Access")
def access(fleet: Fleet, wanted: Access, place: Postgres) -> None:
    """Users, then what belongs to them, then the rules that let them in."""
    port = fleet.pem_server.port

    postgres.wishes(
        name="Roles that users are members of",
        wishes=group_wishes(),
        port=port,
        _sudo_user=place.user,
    )
    for user in host.loop(wanted.users):
        postgres.wishes(
            name=f"User {user.name}",
            wishes=user_wishes(user),
            port=port,
            _sudo_user=place.user,
        )
        if user.password is not None:
            postgres.password(
                name=f"Password of {user.name}",
                role=user.name,
                password=user.password,
                port=port,
                _sudo_user=place.user,
            )
    for database in host.loop(wanted.databases):
        postgres.database(
            name=f"Database {database.name}",
            database=database.name,
            owner=database.owner,
            port=port,
            _sudo_user=place.user,
        )
        postgres.wishes(
            name=f"Who may connect to {database.name}",
            wishes=database_wishes(wanted, database),
            port=port,
            _sudo_user=place.user,
        )
        postgres.wishes(
            name=f"Privileges in {database.name}",
            wishes=privilege_wishes(wanted, database),
            database=database.name,
            port=port,
            _sudo_user=place.user,
        )
    postgres.wishes(
        name="Function that PgBouncer asks for these users",
        wishes=user_function_wishes(),
        database="pem",
        port=port,
        _sudo_user=place.user,
    )

    # The same lines as deploys/pem_server.py writes: PEM's and these, in one block.
    postgres.ident_block(
        name="User name map of the poolers",
        lines=ident_lines(fleet),
        port=port,
        _sudo_user=place.user,
    )
    postgres.hba_block(
        name="Rules of the inventory", lines=hba_lines(fleet), port=port, _sudo_user=place.user
    )
    postgres.reload(name="Reload Postgres if it is behind", port=port, _sudo_user=place.user)
    postgres.left_behind(
        name="See what has left the inventory",
        queries={"user": left_users(wanted), "database": left_databases(wanted)},
        port=port,
        _sudo_user=place.user,
    )


if is_entrypoint(__name__) and "pem_server" in host.groups and host.data.fleet.access is not None:
    settings = host.data.pem_server
    row = postgres_row(family_of(host), settings.vendor, settings.postgres_version)
    access(fleet=host.data.fleet, wanted=host.data.fleet.access, place=row, _sudo=True)
