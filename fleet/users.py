"""Users of the inventory as SQL: the roles they are members of, attributes, and who is left.

What a user of the inventory has is made exact, in both directions; what the inventory does not have
is never changed, only reported.
"""

from collections.abc import Iterator

from fleet.access import POOLED_ROLE
from fleet.databases import ROLES, Access, User
from fleet.facts.postgres import literal
from fleet.operations.postgres import Wish

# Every user of the inventory is a member: so it is known who was one and has left it.
USERS_ROLE = "pem_fleet_users"

_COMMENTS = {
    "dbrole_readonly": "reads everything that owners and dbrole_admin make",
    "dbrole_readwrite": "writes to it as well",
    "dbrole_admin": "makes objects",
    "dbrole_offline": "reads it too, for long queries from a few hosts",
    POOLED_ROLE: "users that PgBouncer may let in",
    USERS_ROLE: "users of the inventory",
}


def group_wishes() -> tuple[Wish, ...]:
    """The dbrole_* roles and our two marks, none of which logs in."""
    made = (
        Wish(
            f"role {role}",
            f"SELECT NOT rolcanlogin AND NOT rolsuper AND {_comment_is('pg_authid', comment)}"
            f" FROM pg_roles WHERE rolname = {literal(role)}",
            f"{_made(role)};\nALTER ROLE {role} NOLOGIN;\n"
            f"COMMENT ON ROLE {role} IS {literal(comment)}",
        )
        for role, comment in _COMMENTS.items()
    )
    member_of = (_member(role, group) for role, groups in ROLES.items() for group in groups)
    return (*made, *member_of)


def user_wishes(user: User) -> tuple[Wish, ...]:
    """A user's attributes, session defaults and memberships, exactly."""
    return tuple(_user_wishes(user))


def _user_wishes(user: User) -> Iterator[Wish]:
    name, role = user.name, f"FROM pg_roles WHERE rolname = {literal(user.name)}"
    limit = -1 if user.connection_limit is None else user.connection_limit
    until = f"{user.valid_until} 00:00:00+00" if user.valid_until else "infinity"
    login = "LOGIN" if user.login else "NOLOGIN"
    yield Wish(
        f"role {name}: {login}, connection limit {limit}, valid until {until}",
        f"SELECT rolcanlogin = {str(user.login).lower()} AND rolconnlimit = {limit}"
        f" AND coalesce(rolvaliduntil, 'infinity') = {literal(until)}"
        " AND rolinherit AND NOT (rolsuper OR rolreplication OR rolcreaterole OR rolcreatedb"
        f" OR rolbypassrls) {role}",
        f'{_made(name)};\nALTER ROLE "{name}" {login} INHERIT NOCREATEROLE NOCREATEDB NOBYPASSRLS'
        f" CONNECTION LIMIT {limit} VALID UNTIL {literal(until)}",
    )
    if user.password is None:
        yield Wish(
            f"{name} has no password",
            f"SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = {literal(name)}",
            f'ALTER ROLE "{name}" PASSWORD NULL',
        )
    wanted = {key: _as_stored(key, value) for key, value in user.settings.items()}
    stored = ", ".join(literal(f"{key}={value}") for key, value in sorted(wanted.items()))
    yield Wish(
        f"session defaults of {name}: {stored or 'none'}",
        'SELECT coalesce((SELECT array_agg(one ORDER BY one COLLATE "C") FROM unnest(rolconfig)'
        f" AS one), '{{}}') = ARRAY[{stored}]::text[] {role}",
        "\n".join(
            (
                f'ALTER ROLE "{name}" RESET ALL;',
                *(
                    f'ALTER ROLE "{name}" SET {key} TO {_as_typed(key, value)};'
                    for key, value in user.settings.items()
                ),
            )
        ),
    )
    yield from comment_wishes("ROLE", name, "pg_authid", user.comment, role)
    yield _member(name, USERS_ROLE)
    for group in ROLES:
        yield _member(name, group) if group in user.roles else _no_member(name, group)
    yield _member(name, POOLED_ROLE) if user.pooled else _no_member(name, POOLED_ROLE)


def left_users(access: Access) -> str:
    """SQL: the users that were in the inventory and are not any more."""
    names = ", ".join(literal(user.name) for user in access.users)
    return (
        "SELECT DISTINCT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member"
        f" WHERE m.roleid = to_regrole('{USERS_ROLE}') AND r.rolname NOT IN ({names}) ORDER BY 1"
    )


# Values of these are lists of names, which Postgres keeps and takes one by one.
_LISTS = frozenset(("search_path", "temp_tablespaces", "local_preload_libraries"))


def _items(value: str) -> list[str]:
    return [item.strip().strip('"') for item in value.split(",")]


def _as_typed(setting: str, value: str) -> str:
    if setting in _LISTS:
        return ", ".join(literal(item) for item in _items(value))
    return literal(value)


def _as_stored(setting: str, value: str) -> str:
    if setting in _LISTS:
        return ", ".join(
            item if item.isidentifier() and item.islower() else f'"{item}"'
            for item in _items(value)
        )
    return value


def _made(role: str) -> str:
    """SQL that makes a role unless it is there, and refuses one that is more than a user."""
    return f"""DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = {literal(role)}
               AND (rolsuper OR rolreplication)) THEN
        RAISE EXCEPTION 'role {role} is there already, and is a superuser or replicates'
            USING HINT = 'choose another name in the inventory; such roles are not its business';
    END IF;
    CREATE ROLE "{role}" NOLOGIN;
EXCEPTION WHEN duplicate_object THEN
    NULL;
END $$"""


def _member(name: str, group: str) -> Wish:
    return Wish(
        f"{name} is a member of {group}", _is_member(name, group), f'GRANT {group} TO "{name}"'
    )


def _no_member(name: str, group: str) -> Wish:
    return Wish(
        f"{name} is no member of {group}",
        f"NOT {_is_member(name, group)}",
        # Since Postgres 16 a membership is its grantor's; a plain REVOKE leaves others' grants.
        f"""DO $$ DECLARE grantor regrole; BEGIN
    FOR grantor IN
        SELECT m.grantor FROM pg_auth_members m
        WHERE m.roleid = {literal(group)}::regrole AND m.member = {literal(name)}::regrole
    LOOP
        EXECUTE format('REVOKE {group} FROM "{name}" GRANTED BY %s CASCADE', grantor);
    END LOOP;
END $$""",
    )


def _is_member(name: str, group: str) -> str:
    return (
        "EXISTS (SELECT FROM pg_auth_members"
        f" WHERE roleid = to_regrole({literal(group)}) AND member = to_regrole({literal(name)}))"
    )


def comment_wishes(
    kind: str, name: str, catalog: str, comment: str | None, row: str
) -> Iterator[Wish]:
    """The comment on a role or database, if the inventory has one. row: SQL that finds it."""
    if comment is not None:
        yield Wish(
            f"comment on {name}",
            f"SELECT {_comment_is(catalog, comment)} {row}",
            f'COMMENT ON {kind} "{name}" IS {literal(comment)}',
        )


def _comment_is(catalog: str, comment: str) -> str:
    return f"coalesce(shobj_description(oid, '{catalog}') = {literal(comment)}, false)"
