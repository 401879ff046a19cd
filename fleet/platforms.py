"""Everything that differs between operating systems and package vendors: one row each.

Sources: Debian's packages as installed; PGDG's packages and PEM's documentation for the rest.
Rows of the RHEL family are from documents; the lab does not run them. EDB's PgBouncer: EDB's
documentation and the public notes of users; the lab runs a stand-in under its names.
"""

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal, TypeVar

from pyinfra.api import Host
from pyinfra.api.exceptions import DeployError
from pyinfra.facts.server import LinuxDistribution

from fleet.values import PoolerVendor, Vendor

Family = Literal["debian", "rhel"]

FAMILIES: dict[str, Family] = {
    "debian": "debian",
    "ubuntu": "debian",
    "rhel": "rhel",
    "rocky": "rhel",
    "almalinux": "rhel",
    "ol": "rhel",
    "centos": "rhel",
}

# The oldest PgBouncer that does everything the recipe needs.
PGBOUNCER_MINIMUM = "1.24.1"
PGBOUNCER_REASON = (
    "1.24.1 is the first that honours VALID UNTIL with auth_query (CVE-2025-2291);"
    " 1.19 the first with auth_dbname, 1.23.1 the first whose admin console survives logins by auth_query"
)
# The oldest without a hole that its changelog tells of. Older ones are told of, not refused.
PGBOUNCER_ADVISED = "1.26.1"
PGBOUNCER_ADVICE = (
    "1.26.1 closes CVE-2026-107350 (who knows the password of a user in auth_file, which is not written"
    " here, logs in as any SCRAM user) and CVE-2026-107349 (stopped without a login; not where `options`"
    " is in ignore_startup_parameters, as here), 1.25.2 closes CVE-2026-6664 (stopped without a login)"
    " to -6667; your distribution may have mended the older number, see its package's changelog"
)


@dataclass(frozen=True)
class Postgres:
    """Where one vendor's packages put a Postgres server on one OS family."""

    packages: tuple[str, ...]
    sslutils: str
    unit: str
    directory: str
    user: str = "postgres"


@dataclass(frozen=True)
class Pooler:
    """Where one vendor's package puts PgBouncer on one OS family.

    binary, directory and ini are where the documents say; an installed unit knows better.
    """

    package: str
    psql_package: str
    unit: str
    user: str
    binary: str
    directory: str
    ini: str
    run_directory: str
    pid_file: str
    log_file: str

    def as_installed(self, ini: str, binary: str) -> "Pooler":
        """The same place with the paths that the installed unit names, both absolute."""
        path = PurePosixPath(ini)
        return replace(self, directory=str(path.parent), ini=path.name, binary=binary)


def family_of(host: Host) -> Family:
    """The OS family of a host, by the ID in its os-release. Raises DeployError for others."""
    release = host.get_fact(LinuxDistribution)["release_meta"]
    os_id = release.get("ID")
    if os_id not in FAMILIES:
        raise DeployError(
            f"{host.name} runs {os_id!r}; supported: {', '.join(FAMILIES)}"
            f"\nHINT: take {host.name} out of the inventory; FAMILIES in fleet/platforms.py has"
            " what is known of each"
        )
    return FAMILIES[os_id]


def postgres(family: Family, vendor: Vendor, v: int) -> Postgres:
    """The row of a Postgres server, version `v`. Raises DeployError where there is none."""
    # fmt: off
    debian = Postgres((f"postgresql-{v}",), f"postgresql-{v}-sslutils", f"postgresql@{v}-main", f"/usr/lib/postgresql/{v}")
    rows = {
        ("debian", "distribution"): debian,
        ("debian", "pgdg"):         debian,
        ("rhel", "distribution"):   Postgres(("postgresql-server", "postgresql-contrib"), f"sslutils_{v}", "postgresql", "/usr"),
        ("rhel", "pgdg"):           Postgres((f"postgresql{v}-server", f"postgresql{v}-contrib"), f"sslutils_{v}", f"postgresql-{v}", f"/usr/pgsql-{v}"),
    }
    # fmt: on
    return _row("Postgres", rows, family, vendor)


def pgbouncer(family: Family, vendor: PoolerVendor, version: str | None = None) -> Pooler:
    """The row of PgBouncer. Raises DeployError where there is none.

    version: "1.25", of EDB's packages, whose names carry it.
    """
    v, digits = version or "", (version or "").replace(".", "")
    # fmt: off
    debian = Pooler("pgbouncer", "postgresql-client", "pgbouncer", "postgres", "/usr/sbin/pgbouncer",
                    "/etc/pgbouncer", "pgbouncer.ini", "/run/postgresql", "/run/postgresql/pgbouncer.pid",
                    "/var/log/postgresql/pgbouncer.log")
    rhel = Pooler("pgbouncer", "postgresql", "pgbouncer", "pgbouncer", "/usr/bin/pgbouncer",
                  "/etc/pgbouncer", "pgbouncer.ini", "/run/pgbouncer", "/run/pgbouncer/pgbouncer.pid",
                  "/var/log/pgbouncer/pgbouncer.log")
    # Documented: package, directory, unit, user. From users' notes of 1.18 to 1.24 on RHEL: binary,
    # ini, pid and log. Debian's ini has three names in as many sources. The psql is the distribution's.
    edb = Pooler(f"edb-pgbouncer{digits}", "postgresql", f"edb-pgbouncer-{v}", "enterprisedb",
                 f"/usr/edb/pgbouncer{v}/bin/pgbouncer", f"/etc/edb/pgbouncer{v}", f"edb-pgbouncer-{v}.ini",
                 f"/run/edb/pgbouncer{v}", f"/run/edb/pgbouncer{v}/edb-pgbouncer-{v}.pid",
                 f"/var/log/edb/pgbouncer{v}/edb-pgbouncer-{v}.log")
    edb_debian = replace(edb, psql_package="postgresql-client", unit=f"edb-pgbouncer{digits}", ini="edb-pgbouncer.ini")
    rows = {
        ("debian", "distribution"): debian,      # run in the lab
        ("debian", "pgdg"):         debian,      # the same files, not run
        ("debian", "edb"):          edb_debian,  # run with a stand-in only
        ("rhel", "distribution"):   rhel,        # not run
        ("rhel", "pgdg"):           rhel,        # not run
        ("rhel", "edb"):            edb,         # not run
    }
    # fmt: on
    return _row("PgBouncer", rows, family, vendor)


def pgbouncer_advice(version: str) -> str:
    """Why a newer PgBouncer than this one is advised; '' where it is new enough, or unknown."""
    given, advised = (
        [int(number) for number in re.findall(r"\d+", text)[:3]]
        for text in (version, PGBOUNCER_ADVISED)
    )
    if not given or given >= advised:
        return ""
    return f"PgBouncer {version} is older than {PGBOUNCER_ADVISED}: {PGBOUNCER_ADVICE}"


# Trust anchors of the fleet, readable by everybody, the same path on every host.
TRUST_DIRECTORY = "/etc/pem-fleet"
SERVER_CA_FILE = f"{TRUST_DIRECTORY}/server-ca.crt"
CLIENT_CA_FILE = f"{TRUST_DIRECTORY}/client-ca.crt"
# On poolers: every CA whose clients they let in, ours, PEM's, or both.
TRUSTED_CLIENTS_FILE = f"{TRUST_DIRECTORY}/trusted-clients.crt"
# Certificates and keys. The agent's are not in /root/.pem, where PEM puts what it makes itself; the
# server's not in the data directory, whose copy must not bring another host's certificate along.
AGENT_DIRECTORY = f"{TRUST_DIRECTORY}/agent"
POSTGRES_DIRECTORY = f"{TRUST_DIRECTORY}/postgres"

# PEM's own packages and paths are the same on every family (EDB's documentation).
PEM_SERVER_PACKAGE = "edb-pem"
PEM_AGENT_PACKAGE = "edb-pem-agent"
PEM_CONFIGURE = "/usr/edb/pem/bin/configure-pem-server.sh"
PEM_INSTALL_RECORD = "/usr/edb/pem/share/.install-config"
PEM_WORKER = "/usr/edb/pem/agent/bin/pemworker"
PEM_AGENT_CONFIG = "/usr/edb/pem/agent/etc/agent.cfg"
PEM_AGENT_UNIT = "pemagent"
# Where PEM puts the certificates that it makes at a registration.
PEM_CERTIFICATES = "/root/.pem"

# The settings of the agent's unit, and the units that end a trial of it.
AGENT_DROP_IN = f"/etc/systemd/system/{PEM_AGENT_UNIT}.service.d/pem-fleet.conf"
AGENT_TRIAL = "pem-fleet-agent-trial"


Row = TypeVar("Row")


def _row(what: str, rows: dict[tuple[str, str], Row], family: Family, vendor: str) -> Row:
    try:
        return rows[family, vendor]
    except KeyError:
        known = ", ".join(f"{vendor} on {family}" for family, vendor in rows)
        raise DeployError(
            f"no {what} of vendor {vendor!r} is known for family {family!r}; known: {known}"
            '\nHINT: vendor="distribution" in the inventory'
        ) from None
