"""What the stand-in packages contain, in terms that .deb and .rpm share.

A package is a name, what it depends on and a list of files; how that becomes an archive is the
business of the builder of each kind (build.py for .deb).
"""

from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent
VERSION = "10.6.0"
SSLUTILS_VERSION = "1.4.1"
PGBOUNCER_VERSION = "1.25.2.0"
RELEASE = "1+standin"
POSTGRES_VERSIONS = (17,)
NOTICE = "stand-in for tests, not EDB's software"


@dataclass(frozen=True)
class File:
    """One file of a package: its text, its absolute path on the host, its mode."""

    text: str
    path: str
    mode: int = 0o644


@dataclass(frozen=True)
class Package:
    """One package. `depends` are names of the layout it was made for."""

    name: str
    version: str
    summary: str
    depends: tuple[str, ...]
    files: tuple[File, ...]
    links: tuple[tuple[str, str], ...] = ()
    directories: tuple[str, ...] = ()
    unit: str = ""
    user: str = ""


@dataclass(frozen=True)
class Layout:
    """How a family of systems names what the packages touch; {0} is Postgres's version."""

    psycopg2: str
    openssl: str
    postgres: str
    plpython: str
    sslutils: str
    extension_directory: str
    pgbouncer: str
    pgbouncer_binary: str
    pgbouncer_unit: str


LAYOUTS = {
    "deb": Layout(
        psycopg2="python3-psycopg2",
        openssl="openssl",
        postgres="postgresql-{0}",
        plpython="postgresql-plpython3-{0}",
        sslutils="postgresql-{0}-sslutils",
        extension_directory="/usr/share/postgresql/{0}/extension",
        pgbouncer="pgbouncer",
        pgbouncer_binary="/usr/sbin/pgbouncer",
        pgbouncer_unit="edb-pgbouncer125",
    ),
    "rpm": Layout(
        psycopg2="python3-psycopg2",
        openssl="openssl",
        postgres="postgresql{0}-server",
        plpython="postgresql{0}-plpython3",
        sslutils="sslutils_{0}",
        extension_directory="/usr/pgsql-{0}/share/extension",
        pgbouncer="pgbouncer",
        pgbouncer_binary="/usr/bin/pgbouncer",
        pgbouncer_unit="edb-pgbouncer-1.25",
    ),
}


def packages(layout: Layout) -> list[Package]:
    """All stand-in packages for one family of systems."""
    return [
        agent(layout),
        server(layout),
        *(sslutils(layout, version) for version in POSTGRES_VERSIONS),
        pgbouncer(layout),
    ]


def agent(layout: Layout) -> Package:
    """The agent: daemon and worker."""
    library = "/usr/edb/pem/agent/lib"
    return Package(
        name="edb-pem-agent",
        version=VERSION,
        summary=f"Agent of Postgres Enterprise Manager ({NOTICE})",
        depends=(layout.psycopg2,),
        files=(
            file("agent/pem_agent_lib.py", f"{library}/pem_agent_lib.py"),
            file("agent/pemagent.py", f"{library}/pemagent.py", 0o755),
            file("agent/pemagent_sessions.py", f"{library}/pemagent_sessions.py"),
            file("agent/pemworker.py", f"{library}/pemworker.py", 0o755),
            file("agent/pemworker_options.py", f"{library}/pemworker_options.py"),
            file("agent/pemworker_registration.py", f"{library}/pemworker_registration.py"),
            file("agent/pemagent.service", "/usr/lib/systemd/system/pemagent.service"),
        ),
        # Python looks for the other modules beside the file that a link leads to.
        links=(
            ("/usr/edb/pem/agent/bin/pemagent", "../lib/pemagent.py"),
            ("/usr/edb/pem/agent/bin/pemworker", "../lib/pemworker.py"),
        ),
        directories=("/usr/edb/pem/agent/etc", "/var/log/pem"),
        unit="pemagent.service",
    )


def server(layout: Layout) -> Package:
    """PEM's server: the program that makes a Postgres into PEM's backend, and the schema."""
    library = "/usr/edb/pem/lib"
    return Package(
        name="edb-pem",
        version=VERSION,
        summary=f"Server of Postgres Enterprise Manager ({NOTICE})",
        depends=("edb-pem-agent", layout.psycopg2),
        files=(
            file("server/configure_pem_server.py", f"{library}/configure_pem_server.py", 0o755),
            file("server/pem_server_certificates.py", f"{library}/pem_server_certificates.py"),
            file("server/pem_server_database.py", f"{library}/pem_server_database.py"),
            file("server/pem_server_files.py", f"{library}/pem_server_files.py"),
            file("server/pem_server_options.py", f"{library}/pem_server_options.py"),
            file("server/pemserver.sql", "/usr/edb/pem/share/pemserver.sql"),
        ),
        links=(("/usr/edb/pem/bin/configure-pem-server.sh", "../lib/configure_pem_server.py"),),
    )


def sslutils(layout: Layout, postgres_version: int) -> Package:
    """The extension that makes certificates in the database, for one version of Postgres."""
    extension = layout.extension_directory.format(postgres_version)
    modules = f"{extension}/sslutils"
    control = file("sslutils/sslutils.control", f"{extension}/sslutils.control")
    names = (layout.postgres, layout.plpython)
    return Package(
        name=layout.sslutils.format(postgres_version),
        version=SSLUTILS_VERSION,
        summary=f"Certificates made by PostgreSQL {postgres_version} ({NOTICE})",
        depends=(*(name.format(postgres_version) for name in names), layout.openssl),
        files=(
            File(control.text.replace("@MODULE_DIRECTORY@", modules), control.path),
            file(
                f"sslutils/sslutils--{SSLUTILS_VERSION}.sql",
                f"{extension}/sslutils--{SSLUTILS_VERSION}.sql",
            ),
            file("sslutils/pem_sslutils.py", f"{modules}/pem_sslutils.py"),
        ),
    )


def pgbouncer(layout: Layout) -> Package:
    """EDB's PgBouncer by its names and places; the program itself is the distribution's.

    Its ini is named as users report it, which is not what EDB's documentation says for Debian.
    """
    unit = file(
        "pgbouncer/edb-pgbouncer.service",
        f"/usr/lib/systemd/system/{layout.pgbouncer_unit}.service",
    )
    return Package(
        name="edb-pgbouncer125",
        version=PGBOUNCER_VERSION,
        summary=f"PgBouncer under the names of EDB's package ({NOTICE})",
        depends=(layout.pgbouncer,),
        files=(
            unit,
            file("pgbouncer/edb-pgbouncer.ini", "/etc/edb/pgbouncer1.25/edb-pgbouncer-1.25.ini"),
        ),
        links=(("/usr/edb/pgbouncer1.25/bin/pgbouncer", layout.pgbouncer_binary),),
        unit=f"{layout.pgbouncer_unit}.service",
        user="enterprisedb",
    )


def file(source: str, path: str, mode: int = 0o644) -> File:
    """A file taken from this directory."""
    return File((SOURCE / source).read_text(), path, mode)
