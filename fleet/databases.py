"""Who else works on this server: databases, users and rules of those who run more than PEM on it.

    access = Access(
        databases=(Database(name="shop", owner="shop_owner", revoke_connect=True, pooled=True),),
        users=(
            User(name="shop_owner", login=False),
            User(
                name="shop_app",
                password=secret("SHOP_APP_PASSWORD"),
                roles=("dbrole_readwrite",),
                databases=("shop",),
                pooled=True,
            ),
        ),
        rules=(Rule(users=("shop_app",), networks=("192.0.2.48/28",)),),
        pooler_rules=(PoolerRule(networks=("192.0.2.32/28",)),),
    )

Names are lower case and stand for themselves: no groups, no `all`, and never PEM's own.
"""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fleet.roles import Role
from fleet.values import PEM_ROLES, Count, Network, OneLine, RoleName, Secret, SettingName

# What users may be members of, and what each of these is a member of itself.
ROLES: dict[str, tuple[str, ...]] = {
    "dbrole_readonly": (),
    "dbrole_offline": (),
    "dbrole_readwrite": ("dbrole_readonly",),
    "dbrole_admin": ("dbrole_readwrite", "pg_monitor"),
}

# PEM's roles and databases, Postgres' and PgBouncer's own, and words of pg_hba.conf.
RESERVED_USER = re.compile(
    rf"^(pem|pem_.*|agent\d+|pg_.*|dbrole_.*|all|public|none|{'|'.join(sorted(PEM_ROLES))})$"
)
RESERVED_DATABASE = re.compile(
    r"^(pem|pem_.*|pgbouncer|postgres|edb|template\d+|all|sameuser|samerole|samegroup|replication)$"
)


def _not_reserved(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(name: str) -> str:
        if pattern.match(name):
            raise ValueError(
                f"{name} is a name of PEM, Postgres or PgBouncer"
                f"\nHINT: choose another name; {what} of these are not the inventory's business"
            )
        return name

    return AfterValidator(check)


UserName = Annotated[RoleName, _not_reserved(RESERVED_USER, "roles")]
DatabaseName = Annotated[RoleName, _not_reserved(RESERVED_DATABASE, "databases")]
PoolMode = Literal["session", "transaction", "statement"]


class Database(Role):
    """A database beside PEM's. Made if it is not there, never dropped."""

    name: DatabaseName = Field(description="lower case, not one of PEM's or Postgres' own")
    owner: UserName = Field(description="a User(…) of the inventory; login=False is usual")
    revoke_connect: bool = Field(
        False, description="only the owner and users that name it in databases= may connect"
    )
    connection_limit: Count | None = Field(None, description="of all users together")
    comment: OneLine | None = Field(None, description="what psql's \\l+ shows")
    pooled: bool = Field(False, description="the poolers lead to it as well")
    pool_mode: PoolMode = Field("transaction", description="session, transaction or statement")
    pool_size: Count = Field(20, description="server connections of one pooler, all users together")
    pool_clients: Count = Field(100, description="client connections that one pooler takes for it")


class User(Role):
    """A role of Postgres with exactly these attributes. Made if it is not there, never dropped."""

    name: UserName = Field(description="lower case, not a role of PEM's or Postgres' own")
    password: Secret | None = Field(None, description='secret("SHOP_APP_PASSWORD")')
    login: bool = Field(True, description="False for owners, and to lock somebody out")
    roles: tuple[
        Literal["dbrole_readonly", "dbrole_readwrite", "dbrole_admin", "dbrole_offline"], ...
    ] = Field((), description="any of " + ", ".join(ROLES))
    databases: tuple[DatabaseName, ...] = Field(
        (), description="those with revoke_connect that it may connect to"
    )
    connection_limit: Count | None = Field(None, description="connections to the server")
    valid_until: Annotated[date, Field(strict=False)] | None = Field(
        None, description='"2027-12-31": from its first second (UTC) the password is void'
    )
    settings: dict[SettingName, OneLine] = Field(
        default={}, description='session defaults, such as {"statement_timeout": "30s"}'
    )
    comment: OneLine | None = Field(None, description="what psql's \\du+ shows")
    pooled: bool = Field(False, description="it comes in through the poolers as well")
    pool_mode: PoolMode | None = Field(None, description="where it differs from the database's")
    pool_connection_limit: Count | None = Field(
        None,
        description="server connections of one pooler for this user, in all databases; an idle one"
        " in another database counts for up to a minute",
    )

    @model_validator(mode="after")
    def _reads_offline_or_pooled(self) -> Self:
        if self.pooled and "dbrole_offline" in self.roles:
            raise ValueError(
                f"{self.name} is pooled and in dbrole_offline, which is for long queries from"
                " a few hosts\nHINT: give it a Rule(…) and take pooled= away, or another role"
            )
        return self

    @model_validator(mode="after")
    def _pooled_with_a_password(self) -> Self:
        if self.pooled and self.password is None:
            raise ValueError(
                f"{self.name} is pooled and has no password, by which poolers let it in"
                f'\nHINT: password=secret("{self.name.upper()}_PASSWORD")'
            )
        return self


class PoolerRule(Role):
    """A line of the poolers' HBA file; the first that fits decides, nobody fits is refused."""

    users: tuple[UserName, ...] = Field((), description="all pooled users when not given")
    databases: tuple[DatabaseName, ...] = Field(
        (), description="all pooled databases when not given"
    )
    networks: tuple[Network, ...] = Field(description="from where they come", min_length=1)
    method: Literal["scram-sha-256", "reject"] = Field(
        "scram-sha-256", description='"scram-sha-256" or "reject", whatever the user'
    )


class Rule(Role):
    """A line of pg_hba.conf, for those who come to Postgres around the poolers.

    The inventory's order counts. "cert": a certificate of a client CA of this server, whose common
    name is the user's. "reject" without users rejects everybody, also those that the inventory
    does not have. Always by TLS. What no rule decides is left to the lines below ours.
    """

    users: tuple[UserName, ...] = Field((), description="all users that log in when not given")
    databases: tuple[DatabaseName, ...] = Field((), description="all databases when not given")
    networks: tuple[Network, ...] = Field(description="from where they come", min_length=1)
    method: Literal["scram-sha-256", "cert", "reject"] = Field(
        "scram-sha-256", description='"scram-sha-256", "cert" or "reject"'
    )


class Access(Role):
    """Databases, users and rules beside PEM's, as they should be on the server and the poolers."""

    databases: tuple[Database, ...] = Field(description="a tuple of Database(…)", min_length=1)
    users: tuple[User, ...] = Field(description="a tuple of User(…)", min_length=1)
    rules: tuple[Rule, ...] = Field((), description="who comes to Postgres around the poolers")
    pooler_rules: tuple[PoolerRule, ...] = Field((), description="who comes to the poolers")

    @property
    def pooled_databases(self) -> tuple[Database, ...]:
        """Those that the poolers lead to."""
        return tuple(database for database in self.databases if database.pooled)

    @property
    def pooled_users(self) -> tuple[User, ...]:
        """Those that come in through the poolers."""
        return tuple(user for user in self.users if user.pooled)

    def login_users(self, method: str) -> tuple[User, ...]:
        """Those that can log in by a method of pg_hba.conf: by a password only with one."""
        return tuple(
            user
            for user in self.users
            if user.login and (user.password is not None or method != "scram-sha-256")
        )

    def may_connect(self, user: User, database: Database) -> bool:
        """Whether the inventory lets a user connect to a database."""
        named = user.name == database.owner or database.name in user.databases
        return named or not database.revoke_connect

    def makers(self, database: Database) -> tuple[str, ...]:
        """The roles whose new objects in a database the dbrole_* roles have rights on."""
        admins = (
            user.name
            for user in self.users
            if "dbrole_admin" in user.roles and self.may_connect(user, database)
        )
        return tuple(dict.fromkeys((database.owner, "dbrole_admin", *admins)))


def twice(names: Iterable[str]) -> list[str]:
    """The names that are there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
