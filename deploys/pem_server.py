"""The PEM server: let the poolers in by certificate, and give them what they need to know.

    pyinfra inventories/example.py deploys/pem_server.py

Where the inventory asks for it, PEM is installed first. A PEM that is there is prepared in place;
Postgres is reloaded, never restarted. On a standby, roles, grants, functions and passwords are left
alone: they come by replication.
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.operations import systemd

from fleet import is_entrypoint
from fleet.access import (
    function_wishes,
    hba_lines,
    ident_lines,
    obsolete_hba_lines,
    role_wishes,
    stats_wishes,
)
from fleet.hosts import Fleet, Host, PemServer
from fleet.leaves import server_leaf
from fleet.operations import pem, pem_authority, postgres
from fleet.operations.files import CANDIDATE, File, directory, put
from fleet.operations.packages import installed
from fleet.operations.takeover import old_recipe_told, password_poolers
from fleet.pki import authority_file, certificate_file, key_file
from fleet.platforms import PEM_SERVER_PACKAGE, POSTGRES_DIRECTORY, Family, Postgres, family_of
from fleet.platforms import postgres as postgres_row
from fleet.values import AUTH_USER


@deploy("PEM server")
def install(settings: PemServer, family: Family, place: Postgres) -> None:
    """PEM and its database, where the inventory asks for them."""
    wanted = settings.installation
    if wanted is None:
        return
    if family == "rhel":
        raise DeployError(
            f"{host.name}: PEM is installed on Debian and Ubuntu only, so far"
            "\nHINT: install and configure PEM by hand, and leave installation= out"
        )
    installed(
        name="Install Postgres and PEM",
        names=(*place.packages, place.sslutils, PEM_SERVER_PACKAGE),
        family=family,
    )
    systemd.service(name="Start Postgres", service=place.unit, running=True, enabled=True)
    postgres.password(
        name=f"Password of {wanted.superuser}",
        role=wanted.superuser,
        password=wanted.superuser_password,
        port=settings.port,
        _sudo_user=place.user,
    )
    # Read at the restart that PEM's configuration makes.
    postgres.setting(
        name="Listen to the network",
        setting="listen_addresses",
        value="*",
        port=settings.port,
        _sudo_user=place.user,
    )
    pem.configured(name="Configure PEM", server=settings, place=place)


@deploy("PEM server")
def prepare(fleet: Fleet, machine: Host, family: Family, place: Postgres) -> None:
    """Roles, certificates and rules by which the poolers come in."""
    settings, authority, port = fleet.pem_server, fleet.certificate_authority, fleet.pem_server.port
    pooler = fleet.pgbouncer

    installed(name="Install openssl", names=("openssl",), family=family)
    # First of all: a standby that was copied from another host starts with these files only.
    # Root writes here: where the server could write too, it could lead root astray by a link.
    directory(
        name=f"Directory {POSTGRES_DIRECTORY}",
        path=POSTGRES_DIRECTORY,
        user="root",
        group=place.user,
        mode="750",
    )
    leaf = server_leaf(fleet, machine)
    cert, key = f"{POSTGRES_DIRECTORY}/server.crt", f"{POSTGRES_DIRECTORY}/server.key"
    put(
        name="Write the server's certificate",
        files=(
            File(cert, certificate_file(authority, leaf), place.user, place.user, "644"),
            File(key, key_file(authority, leaf), place.user, place.user, "600"),
        ),
        check=f"""\
of_certificate=$(openssl x509 -noout -pubkey -in {cert}{CANDIDATE}) &&
    of_key=$(openssl pkey -pubout -in {key}{CANDIDATE}) && [ "$of_certificate" = "$of_key" ] ||
    die 'the certificate and the key do not belong together'""",
    )

    postgres.wishes(
        name="Roles and grants of the pool",
        wishes=(*role_wishes(settings), *stats_wishes(pooler)),
        database="pem",
        port=port,
        _sudo_user=place.user,
    )
    postgres.password(
        name=f"Password of {settings.admin_user}",
        role=settings.admin_user,
        password=settings.admin_password,
        port=port,
        _sudo_user=place.user,
    )
    if pooler.stats_user and pooler.stats_password:
        postgres.password(
            name=f"Password of {pooler.stats_user}",
            role=pooler.stats_user,
            password=pooler.stats_password,
            port=port,
            _sudo_user=place.user,
        )
    postgres.wishes(
        name="Function that PgBouncer asks",
        wishes=function_wishes(),
        database="pem",
        port=port,
        _sudo_user=place.user,
    )

    postgres.setting(
        name="Setting ssl_cert_file",
        setting="ssl_cert_file",
        value=cert,
        port=port,
        _sudo_user=place.user,
    )
    postgres.setting(
        name="Setting ssl_key_file",
        setting="ssl_key_file",
        value=key,
        port=port,
        _sudo_user=place.user,
    )

    if settings.max_connections is not None:
        # Postgres takes it at its next restart, which is yours to choose; the reload tells.
        postgres.setting(
            name="Setting max_connections",
            setting="max_connections",
            value=str(settings.max_connections),
            port=port,
            _sudo_user=place.user,
        )

    # PEM's own CA is in these files anyway.
    own = "own" in authority.client_authorities
    if not own:
        pem_authority.ours_needed_no_more(
            name="See that no pooler needs our client CA", fleet=fleet
        )
    postgres.bundle_block(
        name="Trust the client CA" if own else "Trust the client CA no more",
        setting="ssl_ca_file",
        certificates=authority_file(authority, "client") if own else None,
        port=port,
        _sudo_user=place.user,
    )
    postgres.bundle_block(
        name="Revocation list of the client CA",
        setting="ssl_crl_file",
        certificates=authority_file(authority, "client", "crl") if own else None,
        port=port,
        _sudo_user=place.user,
    )
    postgres.ident_block(
        name="User name map of the poolers",
        lines=ident_lines(fleet),
        port=port,
        _sudo_user=place.user,
    )
    obsolete = obsolete_hba_lines(settings)
    in_use_by = password_poolers(fleet.pgbouncer.listen_port)
    old_recipe_told(
        name="See what an old recipe left",
        role=AUTH_USER,
        obsolete=obsolete,
        in_use_by=in_use_by,
        port=port,
        _sudo_user=place.user,
    )
    postgres.hba_block(
        name="Let the poolers in",
        lines=hba_lines(fleet),
        port=port,
        obsolete=obsolete,
        in_use_by=in_use_by,
        _sudo_user=place.user,
    )
    postgres.reload(name="Reload Postgres if it is behind", port=port, _sudo_user=place.user)


if is_entrypoint(__name__) and "pem_server" in host.groups:
    settings, family = host.data.pem_server, family_of(host)
    row = postgres_row(family, settings.vendor, settings.postgres_version)
    install(settings=settings, family=family, place=row, _sudo=True)
    prepare(fleet=host.data.fleet, machine=host.data.machine, family=family, place=row, _sudo=True)
