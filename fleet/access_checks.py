"""What does not fit together in `Access(…)`, and between it and the rest of the inventory."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fleet.databases import (
    RESERVED_DATABASE,
    RESERVED_USER,
    Access,
    Database,
    PoolerRule,
    Rule,
    User,
    twice,
)

if TYPE_CHECKING:
    from fleet.hosts import Fleet


def access_problems(fleet: "Fleet") -> Iterator[str]:
    """Every problem of the fleet's access, each with its HINT; none when there is no access."""
    access = fleet.access
    if access is None:
        return
    yield from _names_once(access)
    yield from _names_are_free(fleet, access)
    for database in access.databases:
        yield from _owner_is_known(access, database)
    for user in access.users:
        yield from _databases_are_known(access, user)
    for rule in access.rules:
        yield from _rule_fits(access, rule)
    for pooler_rule in access.pooler_rules:
        yield from _pooler_rule_fits(access, pooler_rule)
    yield from _pool_is_whole(access)


def _names_once(access: Access) -> Iterator[str]:
    for what, names in (
        ("User", twice(user.name for user in access.users)),
        ("Database", twice(database.name for database in access.databases)),
    ):
        for name in names:
            yield (
                f"{what} {name} is in the inventory twice"
                "\nHINT: say all of it in one entry; which of two would count?"
            )


def _names_are_free(fleet: "Fleet", access: Access) -> Iterator[str]:
    server = fleet.pem_server
    taken = {server.admin_user: "PemServer(admin_user=…)", server.agent_user: "all agents' user"}
    if server.installation is not None:
        taken[server.installation.superuser] = "PemInstallation(superuser=…)"
    if fleet.pgbouncer.stats_user is not None:
        taken[fleet.pgbouncer.stats_user] = "PgBouncer(stats_user=…)"
    hosts = {name.lower() for _, host in fleet.memberships() for name in host.all_names}
    for user in access.users:
        if user.name in taken and not RESERVED_USER.match(user.name):
            yield (
                f"User {user.name} is {taken[user.name]} already"
                "\nHINT: choose another name; PEM's roles are made by deploys/pem_server.py"
            )
        if user.name in hosts:
            yield (
                f"User {user.name} is also the name of a host, whose certificate could log in"
                " as that user\nHINT: choose another name for one of them"
            )


def _owner_is_known(access: Access, database: Database) -> Iterator[str]:
    if database.owner not in {user.name for user in access.users}:
        yield (
            f"Database {database.name}: its owner {database.owner} is not among the users"
            f'\nHINT: add User(name="{database.owner}", login=False)'
        )


def _databases_are_known(access: Access, user: User) -> Iterator[str]:
    yield from _unknown(
        f"User {user.name}", "database", user.databases, [one.name for one in access.databases]
    )


def _rule_fits(access: Access, rule: Rule) -> Iterator[str]:
    where = f"Rule for {', '.join(rule.networks)}"
    users = {user.name: user for user in access.users}
    yield from _unknown(where, "user", rule.users, list(users))
    yield from _unknown(where, "database", rule.databases, [one.name for one in access.databases])
    if rule.method != "reject" and not (rule.users or access.login_users(rule.method)):
        yield f"{where}: no user can log in by {rule.method}\nHINT: User(password=…), or no rule"
    for user in (users[name] for name in rule.users if name in users):
        if rule.method == "scram-sha-256" and user.password is None:
            yield (
                f"{where}: user {user.name} has no password"
                f'\nHINT: password=secret("{user.name.upper()}_PASSWORD"), or method="cert"'
            )


def _pooler_rule_fits(access: Access, rule: PoolerRule) -> Iterator[str]:
    where = f"PoolerRule for {', '.join(rule.networks)}"
    yield from _unknown(where, "user", rule.users, [one.name for one in access.users])
    yield from _unknown(where, "database", rule.databases, [one.name for one in access.databases])
    named: tuple[User | Database, ...] = (
        *(user for user in access.users if user.name in rule.users),
        *(database for database in access.databases if database.name in rule.databases),
    )
    for one in named:
        if not one.pooled:
            yield (
                f"{where}: {one.name} is not pooled"
                f'\nHINT: {type(one).__name__}(name="{one.name}", pooled=True, …)'
            )


def _pool_is_whole(access: Access) -> Iterator[str]:
    pooled = [user.name for user in access.pooled_users]
    if pooled and not access.pooled_databases:
        yield (f"{', '.join(pooled)}: pooled, and no database is\nHINT: Database(…, pooled=True)")
    for user in access.users:
        if not user.pooled and (user.pool_mode or user.pool_connection_limit):
            yield (
                f"User {user.name} has settings of the pool and is not pooled"
                "\nHINT: pooled=True, or leave pool_mode and pool_connection_limit out"
            )
    if (pooled or access.pooled_databases) and not access.pooler_rules:
        yield (
            "users or databases are pooled, and no rule lets anybody into the poolers"
            '\nHINT: Access(pooler_rules=(PoolerRule(networks=("192.0.2.0/24",)),), …)'
        )
    if access.pooler_rules and not pooled:
        yield (
            "pooler_rules are there, and nobody is pooled"
            "\nHINT: User(…, pooled=True), or leave pooler_rules out"
        )


def _unknown(where: str, what: str, names: tuple[str, ...], known: list[str]) -> Iterator[str]:
    reserved = {"user": RESERVED_USER, "database": RESERVED_DATABASE}[what]
    for name in names:
        # A reserved name is told where it stands.
        if name not in known and not reserved.match(name):
            yield (
                f"{where}: {what} {name} is not in the inventory\nHINT: known: {', '.join(known)}"
            )
