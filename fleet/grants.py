"""Databases of the inventory as SQL: who may connect, and who may do what in them.

What a database of the inventory has is made exact, in both directions; what the inventory does not
have is never changed, only reported.
"""

from collections.abc import Iterator

from fleet.databases import Access, Database
from fleet.facts.postgres import literal
from fleet.operations.postgres import Wish
from fleet.users import comment_wishes

# Privileges on new objects: (kind, pg_default_acl's letter, privileges by role).
_NEW_OBJECTS: tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...] = (
    (
        "SCHEMAS",
        "n",
        {
            "dbrole_readonly": ("USAGE",),
            "dbrole_offline": ("USAGE",),
            "dbrole_admin": ("CREATE", "USAGE"),
        },
    ),
    (
        "TABLES",
        "r",
        {
            "dbrole_readonly": ("SELECT",),
            "dbrole_offline": ("SELECT",),
            "dbrole_readwrite": ("DELETE", "INSERT", "UPDATE"),
            "dbrole_admin": ("REFERENCES", "TRIGGER", "TRUNCATE"),
        },
    ),
    (
        "SEQUENCES",
        "S",
        {
            "dbrole_readonly": ("SELECT",),
            "dbrole_offline": ("SELECT",),
            "dbrole_readwrite": ("UPDATE", "USAGE"),
        },
    ),
    (
        "FUNCTIONS",
        "f",
        {"dbrole_readonly": ("EXECUTE",), "dbrole_offline": ("EXECUTE",)},
    ),
)


def database_wishes(access: Access, database: Database) -> tuple[Wish, ...]:
    """A database's owner, limit, comment, and who may connect: what every database sees of it."""
    return tuple(_database_wishes(access, database))


def _database_wishes(access: Access, database: Database) -> Iterator[Wish]:
    name, row = database.name, f"FROM pg_database WHERE datname = {literal(database.name)}"
    limit = -1 if database.connection_limit is None else database.connection_limit
    yield Wish(
        f"{name} belongs to {database.owner}",
        f"SELECT pg_get_userbyid(datdba) = {literal(database.owner)} {row}",
        f'ALTER DATABASE "{name}" OWNER TO "{database.owner}"',
    )
    yield Wish(
        f"connection limit of {name}: {limit}",
        f"SELECT datconnlimit = {limit} {row}",
        f'ALTER DATABASE "{name}" CONNECTION LIMIT {limit}',
    )
    yield from comment_wishes("DATABASE", name, "pg_database", database.comment, row)
    # For schemas. It also tells which databases were in the inventory.
    yield _granted(name, "dbrole_admin", "CREATE")
    if database.revoke_connect:
        yield Wish(
            f"not everybody may connect to {name}",
            f"SELECT NOT {_has(name, 'PUBLIC', 'CONNECT')}",
            f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC',
        )
    else:
        yield _granted(name, "PUBLIC", "CONNECT")
    for user in access.users:
        if user.name == database.owner:
            continue  # Postgres gives and keeps an owner's own privileges
        if database.revoke_connect and access.may_connect(user, database):
            yield _granted(name, user.name, "CONNECT")
        else:
            yield Wish(
                f"{user.name} has no right of its own to connect to {name}",
                f"SELECT NOT {_has(name, user.name, 'CONNECT')}",
                f'REVOKE CONNECT ON DATABASE "{name}" FROM "{user.name}"',
            )


def privilege_wishes(access: Access, database: Database) -> tuple[Wish, ...]:
    """Privileges inside a database, run in it: on schema public, and on new objects."""
    public = "FROM pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner)))"
    return (
        Wish(
            f"not everybody makes objects in schema public of {database.name}",
            f"SELECT NOT EXISTS (SELECT {public} WHERE nspname = 'public' AND grantee = 0"
            " AND privilege_type = 'CREATE')",
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        ),
        Wish(
            f"dbrole_admin makes objects in schema public of {database.name}",
            f"SELECT count(DISTINCT privilege_type) = 2 {public}"
            " WHERE nspname = 'public' AND grantee = to_regrole('dbrole_admin')"
            " AND privilege_type IN ('CREATE', 'USAGE')",
            "GRANT CREATE, USAGE ON SCHEMA public TO dbrole_admin",
        ),
        *(_new_objects(maker, database.name) for maker in access.makers(database)),
    )


def _new_objects(maker: str, database: str) -> Wish:
    wanted, sql = [], []
    for kind, letter, privileges in _NEW_OBJECTS:
        for role, names in privileges.items():
            wanted += [f"('{letter}', '{role}', '{name}')" for name in names]
            sql.append(
                f'ALTER DEFAULT PRIVILEGES FOR ROLE "{maker}"'
                f" GRANT {', '.join(names)} ON {kind} TO {role}"
            )
    return Wish(
        f"what {maker} makes in {database} is for the dbrole_* roles",
        f"SELECT NOT EXISTS (VALUES {', '.join(wanted)} EXCEPT"
        " SELECT defaclobjtype::text, pg_get_userbyid(grantee)::text, privilege_type"
        " FROM pg_default_acl, aclexplode(defaclacl)"
        f" WHERE defaclrole = to_regrole({literal(maker)}) AND defaclnamespace = 0)",
        ";\n".join(sql),
    )


def left_databases(access: Access) -> str:
    """SQL: the databases that were in the inventory and are not any more."""
    names = ", ".join(literal(database.name) for database in access.databases)
    return (
        "SELECT DISTINCT datname FROM pg_database, aclexplode(datacl)"
        " WHERE grantee = to_regrole('dbrole_admin') AND privilege_type = 'CREATE'"
        f" AND datname NOT IN ({names}) ORDER BY 1"
    )


def _granted(database: str, grantee: str, privilege: str) -> Wish:
    quoted = grantee if grantee == "PUBLIC" else f'"{grantee}"'
    return Wish(
        f"{privilege} on {database} for {grantee}",
        f"SELECT {_has(database, grantee, privilege)}",
        f'GRANT {privilege} ON DATABASE "{database}" TO {quoted}',
    )


def _has(database: str, grantee: str, privilege: str) -> str:
    """SQL: whether a role, or PUBLIC, was granted this itself, not by a group."""
    oid = "0" if grantee == "PUBLIC" else f"to_regrole({literal(grantee)})"
    return (
        "EXISTS (SELECT FROM pg_database,"
        " aclexplode(coalesce(datacl, acldefault('d', datdba)))"
        f" WHERE datname = {literal(database)} AND grantee = {oid}"
        f" AND privilege_type = {literal(privilege)})"
    )
