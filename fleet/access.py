"""What the PEM database must hold for the poolers: roles, grants, the login function, rules.

From EDB's page on preparing the database server, with its known errors mended: `pem_admin` is
granted as its text says and its SQL forgets, the rules name the poolers' addresses, and nobody
needs a password where a certificate does it.
"""

import hashlib
from collections.abc import Iterable, Iterator

from fleet import ROOT
from fleet.databases import Access, Database, User
from fleet.facts.postgres import literal
from fleet.hosts import Fleet, PemServer, PgBouncer, sources
from fleet.operations.postgres import Wish
from fleet.values import AUTH_USER, POOL_USER

# The role by which PgBouncer asks for the others. It logs in by certificate and has no password.
FUNCTION = "pem_fleet.get_pool_auth(text)"
PEM_FUNCTION = "pem.get_agent_pool_auth(text)"
# Users of other databases that come in through the poolers (fleet/databases.py): the group, which
# is also the name of their map, and the function that answers for them.
POOLED_ROLE = "pem_fleet_pooled"
USER_FUNCTION = "pem_fleet.get_user_auth(text)"


def role_wishes(server: PemServer) -> tuple[Wish, ...]:
    """The roles of the pool and their grants, in database pem."""
    admin, agent = server.admin_user, server.agent_user
    return (
        _role(AUTH_USER, "LOGIN", "rolcanlogin AND NOT rolsuper"),
        _member(AUTH_USER, POOL_USER),
        _role(admin, "LOGIN CREATEROLE", "rolcanlogin AND rolcreaterole AND NOT rolsuper"),
        _member(admin, POOL_USER),
        # Row security lets members of pem_admin alone insert an agent.
        _member(admin, "pem_admin"),
        # CREATEROLE alone may not hand pem_agent on, since Postgres 16.
        _member(admin, "pem_agent", admin_option=True),
        Wish(
            f"{agent} exists, for all agents",
            f"SELECT rolcanlogin AND pg_has_role(oid, 'pem_agent', 'MEMBER')"
            f" AND {_direct_member(agent, POOL_USER)}"
            f" FROM pg_roles WHERE rolname = {literal(agent)}",
            f"SELECT pem.create_proxy_agent_user({literal(agent)})",
        ),
        Wish(
            f"{AUTH_USER} may connect to pem",
            f"SELECT has_database_privilege(oid, 'pem', 'CONNECT') FROM pg_roles"
            f" WHERE rolname = '{AUTH_USER}'",
            f"GRANT CONNECT ON DATABASE pem TO {AUTH_USER}",
        ),
    )


def stats_wishes(pooler: PgBouncer) -> tuple[Wish, ...]:
    """The role that may look at the poolers' consoles, where the inventory names one.

    Poolers ask the database for its password as for any other's. The database itself lets nobody
    in by a role whose connection limit is 0.
    """
    if pooler.stats_user is None:
        return ()
    holds = "rolcanlogin AND NOT rolsuper AND rolconnlimit = 0"
    return (
        _role(pooler.stats_user, "LOGIN CONNECTION LIMIT 0", holds),
        _member(pooler.stats_user, POOL_USER),
    )


def function_wishes() -> tuple[Wish, ...]:
    """The function of PgBouncer's auth_query, in a schema of our own."""
    return (
        Wish(
            "schema pem_fleet",
            f"SELECT has_schema_privilege('{AUTH_USER}', oid, 'USAGE')"
            " FROM pg_namespace WHERE nspname = 'pem_fleet'",
            "CREATE SCHEMA IF NOT EXISTS pem_fleet;\n"
            f"GRANT USAGE ON SCHEMA pem_fleet TO {AUTH_USER}",
        ),
        _function(FUNCTION, "get_pool_auth.sql"),
        # PEM's default privileges may leave it to every agent, which could then read the
        # verifiers of the pool's passwords. Ours calls it as its owner, a superuser.
        Wish(
            f"{PEM_FUNCTION} is not for agents and users",
            f"SELECT NOT bool_or(has_function_privilege(oid, to_regprocedure('{PEM_FUNCTION}'),"
            " 'EXECUTE')) FROM pg_roles WHERE rolname IN ('pem_user', 'pem_agent')",
            f"REVOKE EXECUTE ON FUNCTION {PEM_FUNCTION} FROM PUBLIC, pem_user, pem_agent",
        ),
    )


def user_function_wishes() -> tuple[Wish, ...]:
    """The function of PgBouncer's auth_query for users of other databases, in database pem too."""
    return (_function(USER_FUNCTION, "get_user_auth.sql"),)


def ident_lines(fleet: Fleet) -> tuple[str, ...]:
    """pg_ident.conf: the poolers' certificate may be these roles."""
    server, access = fleet.pem_server, fleet.access
    users = (server.agent_user, server.admin_user, AUTH_USER)
    return (
        *(f"{POOL_USER} {POOL_USER} {user}" for user in users),
        *(
            f"{POOLED_ROLE} {POOL_USER} {user.name}"
            for user in (access.pooled_users if access else ())
        ),
    )


def hba_lines(fleet: Fleet) -> tuple[str, ...]:
    """pg_hba.conf: members of the pool come from poolers, and prove it by certificate.

    The inventory's own rules follow. They name databases, and never PEM's.
    """
    poolers = sources(fleet.pgbouncer.hosts, fleet.pem_server.hosts)
    ways = [("pem", POOL_USER)]
    if fleet.access is not None and fleet.access.pooled_databases:
        ways.append((_list(fleet.access.pooled_databases), POOLED_ROLE))
    return (
        *(
            f"hostssl {databases} +{group} {network} cert map={group}"
            for databases, group in ways
            for network in poolers
        ),
        *(_rule_lines(fleet.access) if fleet.access is not None else ()),
    )


def _rule_lines(access: Access) -> Iterator[str]:
    for rule in access.rules:
        databases = ",".join(rule.databases) or _list(access.databases)
        if rule.method == "reject":
            kind, users = "host", ",".join(rule.users) or "all"
        else:
            kind, users = "hostssl", ",".join(rule.users) or _list(access.login_users(rule.method))
        for network in rule.networks:
            yield f"{kind} {databases} {users} {network} {rule.method}"


def _list(named: Iterable[Database | User]) -> str:
    return ",".join(one.name for one in named)


def _function(signature: str, file: str) -> Wish:
    """A function of files/, for PgBouncer alone."""
    sql = (ROOT / "files" / file).read_text()
    body = sql.split("$function$")[1]
    fingerprint = hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()
    return Wish(
        signature,
        f"SELECT md5(prosrc) = '{fingerprint}' AND prosecdef"
        " AND proconfig = ARRAY['search_path=pg_catalog, pg_temp']"
        f" AND has_function_privilege('{AUTH_USER}', oid, 'EXECUTE')"
        " AND NOT EXISTS (SELECT FROM"
        " aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee = 0)"
        f" FROM pg_proc WHERE oid = to_regprocedure('{signature}')",
        f"{sql.strip()};\nREVOKE ALL ON FUNCTION {signature} FROM PUBLIC;\n"
        f"GRANT EXECUTE ON FUNCTION {signature} TO {AUTH_USER}",
    )


def obsolete_hba_lines(server: PemServer) -> tuple[str, ...]:
    """pg_hba.conf of PEM's guides of 7.11 to early 9: the pooler comes by a password."""
    return (f"local pem {AUTH_USER},{server.admin_user} md5",)


def _role(name: str, attributes: str, holds: str) -> Wish:
    return Wish(
        f"role {name}",
        f"SELECT {holds} FROM pg_roles WHERE rolname = {literal(name)}",
        f"""DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = {literal(name)} AND rolsuper) THEN
        RAISE EXCEPTION 'role {name} is a superuser, and poolers let no superuser in'
            USING HINT = 'name another role in the inventory, or ALTER ROLE {name} NOSUPERUSER';
    END IF;
    CREATE ROLE {name} {attributes};
EXCEPTION WHEN duplicate_object THEN
    ALTER ROLE {name} {attributes};
END $$""",
    )


def _member(name: str, group: str, *, admin_option: bool = False) -> Wish:
    return Wish(
        f"{name} is a member of {group}" + (", and may grant it" if admin_option else ""),
        _direct_member(name, group, admin_option=admin_option),
        f"GRANT {group} TO {name}" + (" WITH ADMIN OPTION" if admin_option else ""),
    )


def _direct_member(name: str, group: str, *, admin_option: bool = False) -> str:
    """SQL: directly, as PEM's own function for the poolers does not follow groups in groups."""
    return (
        "EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid"
        f" JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = {literal(name)}"
        f" AND g.rolname = {literal(group)}" + (" AND m.admin_option)" if admin_option else ")")
    )
