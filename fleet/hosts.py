"""What an inventory may say: one class per role, defaults included.

An inventory makes its hosts, gives them to roles, gives the roles to one `Fleet`, and takes the
groups that pyinfra works on from it (see inventories/example.py). All of it is imported from here;
Host is written in fleet/machines.py, CertificateAuthority in fleet/certificate_authority.py.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from fleet.certificate_authority import CertificateAuthority
from fleet.checks import note_problems
from fleet.databases import Access
from fleet.machines import Host, Hosts, sources
from fleet.mistakes import raise_noted
from fleet.roles import Role
from fleet.values import (
    PEM_ROLES,
    ConsoleNetworks,
    Count,
    NameOrAddress,
    Network,
    Networks,
    OneLine,
    PoolerVendor,
    Port,
    RoleName,
    Secret,
    SettingName,
    Vendor,
)

__all__ = [
    "Agent",
    "CertificateAuthority",
    "Fleet",
    "Host",
    "PemInstallation",
    "PemServer",
    "PgBouncer",
    "sources",
]

Group = tuple[list[tuple[str, dict[str, object]]], dict[str, object]]
GroupName = Literal["pem_server", "pgbouncer", "agent"]
# The groups of hosts that pyinfra works on, in the order of the deploys.
GROUPS: tuple[GroupName, ...] = get_args(GroupName)


class PemInstallation(Role):
    """Install and configure PEM on the server, where it is not there yet."""

    superuser_password: Secret = Field(description='secret("PEM_SUPERUSER_PASSWORD")')
    superuser: RoleName = Field("postgres", description="the role that PEM is installed by")
    type: Literal[1, 3] = Field(1, description="1: web application and database, 3: database only")
    network: Network = Field(
        "0.0.0.0/0", description="from where PEM's database may be reached (--cidr-address)"
    )


class PemServer(Role):
    """The PEM server and its database: what the poolers connect to."""

    hosts: Hosts = Field(
        description="a tuple of one Host(…), or those of a cluster you manage elsewhere"
    )
    endpoint: NameOrAddress | None = Field(
        None,
        description="the name or address that leads to the primary of several hosts",
    )
    port: Port = 5432
    max_connections: Count | None = Field(
        None, description="of Postgres, from its next restart on; left as it is when not given"
    )
    vendor: Vendor = Field("distribution", description="whose Postgres packages it runs")
    postgres_version: Annotated[int, Field(ge=14, le=18)] = Field(17, description="14 to 18")
    installation: PemInstallation | None = Field(
        None, description="PemInstallation(…), or None where PEM is configured already"
    )
    admin_user: RoleName = Field("pem_admin1", description="registers agents, watches poolers")
    admin_password: Secret = Field(description='secret("PEM_ADMIN_PASSWORD")')
    agent_user: RoleName = Field("pem_agent_user1", description="the role of all pooled agents")

    @property
    def connect_name(self) -> str:
        """What poolers connect to: the endpoint, or the only host."""
        return self.endpoint or self.hosts[0].name

    @model_validator(mode="after")
    def _several_hosts_have_one_endpoint(self) -> Self:
        if len(self.hosts) == 1:
            return self
        names = ", ".join(host.name for host in self.hosts)
        if self.endpoint is None:
            raise ValueError(
                f"{names} are a cluster, and poolers need one name that leads to its primary"
                '\nHINT: endpoint="pem.example.com", a name that the cluster manager moves'
            )
        if self.installation is not None:
            raise ValueError(
                f"installation is for one host, and there are {len(self.hosts)}: {names}"
                "\nHINT: install PEM and its cluster first, and leave installation out"
            )
        return self

    @model_validator(mode="after")
    def _endpoint_moves(self) -> Self:
        owners = [
            host.name for host in self.hosts if self.endpoint in (*host.all_names, host.address)
        ]
        if owners and len(self.hosts) > 1:
            raise ValueError(
                f"endpoint {self.endpoint} is {owners[0]}'s own, and leads there even when another"
                " host is the primary\nHINT: one that the cluster manager moves"
            )
        return self

    @model_validator(mode="after")
    def _roles_are_their_own(self) -> Self:
        taken = set(PEM_ROLES)
        if self.installation is not None:
            taken.add(self.installation.superuser)
        for setting, name in (("admin_user", self.admin_user), ("agent_user", self.agent_user)):
            if name in taken:
                raise ValueError(
                    f"{setting} ({name}) is a role with another part to play"
                    f"\nHINT: leave {setting} out, or give a role that is for this alone"
                )
            taken.add(name)
        return self


# Settings that templates/pgbouncer.ini.j2 writes; a second value would win silently.
OWNED_SETTINGS = frozenset(
    (
        *("admin_users", "auth_dbname", "auth_file", "auth_hba_file", "auth_query", "auth_type"),
        *("auth_user", "client_tls_ca_file", "client_tls_cert_file", "client_tls_key_file"),
        *("client_tls_sslmode", "ignore_startup_parameters", "listen_addr", "listen_port"),
        *("log_connections", "log_disconnections", "log_pooler_errors", "logfile"),
        *("max_client_conn", "peer_id", "pidfile", "pool_mode", "server_idle_timeout"),
        *("server_login_retry", "so_reuseport", "stats_users"),
        *("server_tls_ca_file", "server_tls_cert_file", "server_tls_key_file"),
        *("server_tls_sslmode", "unix_socket_dir", "user"),
    )
)


class PgBouncer(Role):
    """The poolers between the agents and the PEM database."""

    hosts: Hosts
    server: PemServer
    listen_port: Port = 6432
    vendor: PoolerVendor = Field("distribution", description="whose PgBouncer package it is")
    version: str | None = Field(None, description='"1.25", of vendor="edb" alone, required there')
    admin_networks: ConsoleNetworks = Field(
        description="from where the admin console may be reached", min_length=1
    )
    agent_networks: Networks = Field(
        (), description="from where agents come; the agents' own addresses when not given"
    )
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="PgBouncer processes on each host; each uses one CPU core at most"
    )
    drain_seconds: Count = Field(
        10, description="when a process is stopped, how long its clients may leave by themselves"
    )
    pool_size: Count | None = Field(
        None, description="of all processes together; computed from the agents when not given"
    )
    max_client_conn: Count | None = Field(None, description="of each process; computed likewise")
    stats_user: RoleName | None = Field(
        None, description="a role that may look at the console's figures, and do nothing else"
    )
    stats_password: Secret | None = Field(None, description='secret("PEM_STATS_PASSWORD")')
    stats_networks: ConsoleNetworks = Field(
        (), description="from where stats_user comes; admin_networks when not given"
    )
    log_connections: bool | None = Field(
        None, description="log each login and logout; computed from the number of agents"
    )
    extra: dict[SettingName, OneLine] = Field(
        default={}, description="further settings of pgbouncer.ini's [pgbouncer] section"
    )

    @model_validator(mode="after")
    def _version_is_of_edb(self) -> Self:
        hint = '\nHINT: PgBouncer(vendor="edb", version="1.25"), no version for other vendors'
        if self.vendor != "edb" and self.version is not None:
            raise ValueError(
                f"version ({self.version}) is given, but only EDB's packages carry one in their"
                f" name, and vendor is {self.vendor!r}{hint}"
            )
        if self.vendor == "edb" and self.version is None:
            raise ValueError(
                f"vendor is 'edb', whose packages carry a version; none is given{hint}"
            )
        if self.version is not None and not re.fullmatch(r"1\.(2[4-9]|[3-9]\d)", self.version):
            raise ValueError(
                f"version ({self.version}) is not like 1.25, or older than 1.24,"
                f" the oldest that the recipe works with{hint}"
            )
        return self

    @model_validator(mode="after")
    def _pool_fits_in_clients(self) -> Self:
        if self.pool_size and self.max_client_conn and self.pool_size > self.max_client_conn:
            raise ValueError(
                f"pool_size ({self.pool_size}) is above max_client_conn ({self.max_client_conn})"
                "\nHINT: leave both out, they are computed from the number of agents"
            )
        return self

    @model_validator(mode="after")
    def _stats_user_is_whole(self) -> Self:
        if (self.stats_user is None) != (self.stats_password is None):
            given, missing = "stats_user", "stats_password"
            if self.stats_user is None:
                given, missing = missing, given
            raise ValueError(
                f"{given} is given, and {missing} is not"
                '\nHINT: stats_user="pem_stats", stats_password=secret("PEM_STATS_PASSWORD")'
            )
        if self.stats_networks and self.stats_user is None:
            raise ValueError(
                "stats_networks is given, and no stats_user who would come from there"
                "\nHINT: add stats_user and stats_password, or leave stats_networks out"
            )
        return self

    @model_validator(mode="after")
    def _extra_is_not_ours(self) -> Self:
        ours = sorted(set(self.extra) & OWNED_SETTINGS)
        if ours:
            raise ValueError(
                f"extra sets {', '.join(ours)}, which the recipe itself decides"
                "\nHINT: use the setting of PgBouncer(…) where there is one, or leave it out"
            )
        return self


class Agent(Role):
    """The PEM agents; they reach the PEM database through the poolers only."""

    hosts: Hosts
    via: PgBouncer
    heartbeat_connection: bool = Field(
        False, description="a second connection for heartbeats alone, True or False"
    )

    @property
    def connections(self) -> int:
        """Client connections that one agent holds at a pooler."""
        return 2 if self.heartbeat_connection else 1


class Fleet(Role):
    """All roles together: the last thing an inventory makes. Raises InventoryError.

    The error names every mistake of the whole inventory, those of the single roles included.
    """

    certificate_authority: CertificateAuthority
    pem_server: PemServer
    pgbouncer: PgBouncer
    agent: Agent
    access: Access | None = Field(None, description="Access(…): databases and users beside PEM's")

    if not TYPE_CHECKING:

        def __init__(self, **roles: object) -> None:
            super().__init__(**roles)
            note_problems(self)
            raise_noted()

    def group(self, role: GroupName) -> Group:
        """The hosts of a role and their data, as pyinfra wants a group of an inventory."""
        members: PemServer | PgBouncer | Agent = getattr(self, role)
        hosts = [(host.name, {**host.ssh, "machine": host}) for host in members.hosts]
        return hosts, {"fleet": self, role: members}

    def machines(self) -> tuple[Host, ...]:
        """Every host of the fleet once, in the order of the roles."""
        return tuple({host.name: host for _, host in self.memberships()}.values())

    def memberships(self) -> Iterator[tuple[str, Host]]:
        """Every host with each of its roles, in the order of the roles."""
        for role in GROUPS:
            for host in getattr(self, role).hosts:
                yield role, host
