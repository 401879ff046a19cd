"""What an inventory may say: one class per role, defaults included.

An inventory makes its hosts, gives them to roles, gives the roles to one `Fleet`, and takes the
groups that pyinfra works on from it (see inventories/example.py).
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from fleet.checks import note_problems
from fleet.databases import Access, twice
from fleet.keystore import key_problems
from fleet.mistakes import raise_noted
from fleet.roles import Role
from fleet.values import (
    PEM_ROLES,
    Address,
    ConsoleNetworks,
    Count,
    Days,
    HostName,
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

Group = tuple[list[tuple[str, dict[str, object]]], dict[str, object]]
GroupName = Literal["pem_server", "pgbouncer", "agent"]
# The groups of hosts that pyinfra works on, in the order of the deploys.
GROUPS: tuple[GroupName, ...] = get_args(GroupName)


class Host(Role):
    """A machine: its name in the inventory and in DNS, its address, and how to log in."""

    name: HostName = Field(description="a name that the fleet's hosts can resolve")
    address: Address = Field(description="the address that the other hosts see")
    names: tuple[HostName, ...] = Field((), description="further names for its certificates")
    ssh: dict[str, Any] = Field(
        default={}, repr=False, exclude=True, description="what fleet.ssh.ssh() returns"
    )

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        """The address as an object."""
        return ip_address(self.address)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every DNS name of the host, its inventory name first."""
        return tuple(dict.fromkeys((self.name, *self.names)))


def _each_once(hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    names = twice(host.name for host in hosts)
    if names:
        raise ValueError(f"{', '.join(names)} is there twice\nHINT: name each host once in a role")
    return hosts


Hosts = Annotated[
    tuple[Host, ...],
    Field(min_length=1, description="a tuple of Host(…)"),
    AfterValidator(_each_once),
]


ClientAuthority = Literal["own", "pem"]


def _each_authority_once(names: tuple[ClientAuthority, ...]) -> tuple[ClientAuthority, ...]:
    if len(set(names)) < len(names):
        raise ValueError(
            f"{', '.join(names)} names an authority twice"
            '\nHINT: ("own",), ("own", "pem"), ("pem", "own") or ("pem",)'
        )
    return names


class CertificateAuthority(Role):
    """The two certificate authorities, one for servers and one for clients.

    They live in a directory on the operator's machine. An authority found there
    (`server-ca.crt` and `server-ca.key`, `client-ca.crt` and `client-ca.key`) is used, one that is
    missing is made. PEM's own CA, in its database's data directory, may be the one for clients;
    docs/authorities.md tells how a fleet moves from one to the other.
    """

    directory: str = Field(description="where the keys live, outside of any git checkout")
    organization: str = Field("pem-fleet", min_length=1, description="O= of every subject")
    key_type: Literal["p256", "rsa3072"] = Field("p256", description='"p256" or "rsa3072"')
    authority_days: Days = Field(3650, description="lifetime of a CA made here")
    leaf_days: Days = Field(90, description="lifetime of each host's and user's certificate")
    client_authorities: Annotated[
        tuple[ClientAuthority, ...], Field(min_length=1), AfterValidator(_each_authority_once)
    ] = Field(
        ("own",),
        description='"own", "pem" (PEM\'s CA) or both: all are trusted, the first one issues',
    )

    @property
    def path(self) -> Path:
        """The directory, `~` resolved."""
        return Path(self.directory).expanduser()

    @property
    def client_issuer(self) -> ClientAuthority:
        """The authority that issues the poolers' and the agents' client certificates."""
        return self.client_authorities[0]

    @property
    def renew_days(self) -> int:
        """A leaf with no more than this many days left is renewed: a third of its lifetime."""
        return self.leaf_days // 3

    @model_validator(mode="after")
    def _outside_git(self) -> Self:
        for folder in (self.path, *self.path.parents):
            if (folder / ".git").exists():
                raise ValueError(
                    f"directory {self.path} lies in the git checkout {folder}, and private keys do"
                    f' not belong there\nHINT: directory="~/.pem-fleet/{self.path.name}"'
                )
        return self

    @model_validator(mode="after")
    def _keys_are_the_operators(self) -> Self:
        problems = key_problems(self.path)
        if problems:
            raise ValueError(
                "; ".join(problems)
                + f"\nHINT: chown -R $USER {self.path} && chmod -R go= {self.path}"
            )
        return self

    @model_validator(mode="after")
    def _leaf_outlives_its_renewal(self) -> Self:
        if self.renew_days < 1:
            raise ValueError(
                f"leaf_days ({self.leaf_days}) leaves no day to renew in"
                "\nHINT: leaf_days=90, and run deploys/ca.py at least once a month"
            )
        if self.leaf_days > self.authority_days:
            raise ValueError(
                f"leaf_days ({self.leaf_days}) is above authority_days ({self.authority_days})"
                "\nHINT: a certificate is worth nothing once its CA has expired; lower leaf_days"
            )
        return self


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


def sources(clients: Hosts, servers: Hosts) -> tuple[str, ...]:
    """The networks that clients come from: each one's address, and loopback on a shared host.

    A name of its own may lead a host to 127.0.1.1, so that it comes to itself from loopback.
    """
    networks = [f"{host.address}/{host.ip.max_prefixlen}" for host in clients]
    if {host.name for host in clients} & {host.name for host in servers}:
        networks += ["127.0.0.1/32", "::1/128"]
    return tuple(networks)
