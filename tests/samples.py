"""A fleet, and what hosts of both OS families say of themselves, for tests without hosts."""

import shutil

from pydantic import SecretStr
from pyinfra.facts.server import LinuxDistribution

from fleet import ROOT
from fleet.databases import Access, Database, PoolerRule, Rule, User
from fleet.facts.files import FileBytes
from fleet.facts.packages import MissingPackages
from fleet.facts.pem import RegisteredAgents
from fleet.facts.postgres import PostgresServer
from fleet.hosts import (
    Agent,
    CertificateAuthority,
    Fleet,
    Host,
    PemInstallation,
    PemServer,
    PgBouncer,
)
from fleet.leaves import leaves_of
from fleet.pki import certificate_file, key_file

ADMIN_PASSWORD = "planted-admin-password"
SUPERUSER_PASSWORD = "planted-superuser-password"
USER_PASSWORD = "planted-user-password"
STATS_PASSWORD = "planted-stats-password"

PEM_HBA = b"""\
# Added by PEM's configuration
hostssl pem +pem_agent 0.0.0.0/0 cert
local   all all peer
host    all all 127.0.0.1/32 scram-sha-256
"""
PEM_IDENT = b"# MAPNAME  SYSTEM-USERNAME  PG-USERNAME\n"


def sample_authority(directory):
    """Settings of a CA directory: certificates of 100 years without keys, the same in every run."""
    shutil.copytree(ROOT / "tests" / "authority", directory)
    # A checkout made with another umask may be writable for a group, which a CA must not be.
    for path in (directory, *directory.iterdir()):
        path.chmod(path.stat().st_mode & ~0o022)
    return CertificateAuthority(directory=str(directory), organization="Example")


def sample_fleet(authority):
    """One PEM server, two poolers, three agents; every leaf of theirs as plain words."""
    pem = Host(name="pem.example.com", address="192.0.2.10")
    bouncers = tuple(Host(name=f"bouncer{n}", address=f"192.0.2.2{n}") for n in (1, 2))
    apps = tuple(Host(name=f"app{n}", address=f"192.0.2.3{n}") for n in (1, 2, 3))
    server = PemServer(
        hosts=(pem,),
        admin_password=SecretStr(ADMIN_PASSWORD),
        installation=PemInstallation(
            superuser_password=SecretStr(SUPERUSER_PASSWORD), network="192.0.2.0/24"
        ),
    )
    bouncer = PgBouncer(hosts=bouncers, server=server, admin_networks=("192.0.2.0/28",))
    agent = Agent(hosts=apps, via=bouncer)
    fleet = Fleet(
        certificate_authority=authority, pem_server=server, pgbouncer=bouncer, agent=agent
    )
    write_leaves(fleet)
    return fleet


def write_leaves(fleet):
    """Every leaf of a fleet as plain words, in its CA directory."""
    authority = fleet.certificate_authority
    for machine in fleet.machines():
        for leaf in leaves_of(fleet, machine):
            for path in (certificate_file(authority, leaf), key_file(authority, leaf)):
                path.parent.mkdir(exist_ok=True)
                path.touch(mode=0o600)
                path.write_text(f"these are the bytes of {path.name}\n")
                path.chmod(0o600)


def with_authorities(fleet, *names):
    """The same fleet, whose clients have certificates of these authorities."""
    settings = fleet.certificate_authority.but(client_authorities=names)
    return fleet.but(certificate_authority=settings)


def with_server(fleet, **changes):
    """The same fleet with some settings of its PEM server changed."""
    server = fleet.pem_server.but(**changes)
    bouncer = fleet.pgbouncer.but(server=server)
    changed = fleet.but(pem_server=server, pgbouncer=bouncer, agent=fleet.agent.but(via=bouncer))
    write_leaves(changed)
    return changed


def with_pooler(fleet, **changes):
    """The same fleet with some settings of its poolers changed."""
    bouncer = fleet.pgbouncer.but(**changes)
    changed = fleet.but(pgbouncer=bouncer, agent=fleet.agent.but(via=bouncer))
    write_leaves(changed)
    return changed


def with_several_processes(fleet):
    """The same fleet with three processes on each pooler, and somebody who watches them."""
    return with_pooler(
        fleet, processes=3, stats_user="pem_stats", stats_password=SecretStr(STATS_PASSWORD)
    )


def with_ipv6(fleet):
    """The same fleet with IPv6 addresses everywhere."""

    def moved(hosts):
        return tuple(
            host.but(address=f"2001:db8::{host.address.rpartition('.')[2]}") for host in hosts
        )

    server = fleet.pem_server.but(hosts=moved(fleet.pem_server.hosts))
    bouncer = fleet.pgbouncer.but(
        hosts=moved(fleet.pgbouncer.hosts), server=server, admin_networks=("2001:db8::/124",)
    )
    agent = fleet.agent.but(hosts=moved(fleet.agent.hosts), via=bouncer)
    changed = fleet.but(pem_server=server, pgbouncer=bouncer, agent=agent)
    write_leaves(changed)
    return changed


def with_cluster(fleet):
    """The same fleet whose PEM database is a cluster of three hosts behind one name."""
    hosts = tuple(Host(name=f"pem{n}", address=f"192.0.2.1{n}") for n in (1, 2, 3))
    return with_server(fleet, hosts=hosts, endpoint="pem.example.com", installation=None)


def sample_access():
    """A shop beside PEM: an owner, a pooled application, and somebody who makes tables."""
    password = SecretStr(USER_PASSWORD)
    return Access(
        databases=(
            Database(
                name="shop",
                owner="shop_owner",
                revoke_connect=True,
                comment="the shop's orders",
                pooled=True,
            ),
            Database(name="reports", owner="shop_owner", connection_limit=10),
        ),
        users=(
            User(name="shop_owner", login=False),
            User(
                name="shop_app",
                password=password,
                roles=("dbrole_readwrite",),
                databases=("shop",),
                connection_limit=20,
                valid_until="2027-12-31",
                settings={"statement_timeout": "30s", "search_path": '"$user", public'},
                pooled=True,
                pool_mode="session",
                pool_connection_limit=5,
            ),
            User(
                name="shop_ddl",
                password=password,
                roles=("dbrole_admin",),
                databases=("shop",),
                pooled=True,
            ),
            User(name="auditor", roles=("dbrole_readonly", "dbrole_offline")),
        ),
        rules=(
            Rule(networks=("192.0.2.66/32",), method="reject"),
            Rule(users=("shop_ddl",), databases=("shop",), networks=("192.0.2.64/28",)),
            Rule(users=("auditor",), networks=("192.0.2.80/28", "2001:db8::/64"), method="cert"),
        ),
        pooler_rules=(
            PoolerRule(networks=("192.0.2.50/32",), method="reject"),
            PoolerRule(networks=("192.0.2.48/28",)),
            PoolerRule(users=("shop_ddl",), databases=("shop",), networks=("192.0.2.64/28",)),
        ),
    )


def _fresh_host(release, configuration, data):
    """A host without any of the packages, whose Postgres, once it is there, says where it is."""
    texts = {f"{configuration}/pg_hba.conf": PEM_HBA, f"{configuration}/pg_ident.conf": PEM_IDENT}
    for bundle in ("ca_certificates.crt", "crl.pem"):
        texts[f"{data}/{bundle}"] = b"these are the bytes of PEM's own\n"

    def all_missing(names):
        return list(names)

    def text_of(path):
        return texts.get(path)

    return {
        LinuxDistribution: release,
        MissingPackages: all_missing,
        FileBytes: text_of,
        PostgresServer: {
            "version_number": 170000,
            "data_directory": data,
            "hba_file": f"{configuration}/pg_hba.conf",
            "ident_file": f"{configuration}/pg_ident.conf",
            "ssl_ca_file": f"{data}/ca_certificates.crt",
            "ssl_crl_file": f"{data}/crl.pem",
            "ssl_cert_file": f"{data}/server.crt",
            "ssl_key_file": f"{data}/server.key",
            "unread": [f"{configuration}/pg_hba.conf"],
            "pending_restart": [],
        },
        RegisteredAgents: {"agents": [], "backends": []},
    }


DEBIAN_13 = _fresh_host(
    {"name": "Debian", "major": 13, "minor": 0, "release_meta": {"ID": "debian"}},
    "/etc/postgresql/17/main",
    "/var/lib/postgresql/17/main",
)
ROCKY_9 = _fresh_host(
    {"name": "Rocky Linux", "major": 9, "minor": 6, "release_meta": {"ID": "rocky"}},
    "/var/lib/pgsql/data",
    "/var/lib/pgsql/data",
)
