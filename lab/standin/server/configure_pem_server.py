#!/usr/bin/python3 -B
"""Stand-in for PEM's configure-pem-server.sh: makes a running Postgres into PEM's backend."""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import getpass
import os
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg2

SHARE = Path("/usr/edb/pem/share")
SQL_FILE = SHARE / "pemserver.sql"
ANSWERS_FILE = SHARE / ".install-config"
PEMWORKER = Path("/usr/edb/pem/agent/bin/pemworker")
AGENT_CONFIG_FILE = Path("/usr/edb/pem/agent/etc/agent.cfg")
START_SECONDS = 60

KEY_BITS = 4096
CERTIFICATE_DAYS = 3650
CA_SUBJECT = (
    "PEM",
    "US",
    "MA",
    "Bedford",
    "EDB Postgres Enterprise Manager",
    "support@enterprisedb.com",
)

SSL_SETTINGS = {
    "ssl": "on",
    "ssl_cert_file": "'server.crt'",
    "ssl_key_file": "'server.key'",
    "ssl_ca_file": "'root.crt'",
    "ssl_crl_file": "'root.crl'",
}

# Documented, but this program would not do what they ask for: refused rather than ignored.
NOT_IMITATED = (
    ("-scs", "--server-certificate-subject"),
    ("--replication-solution",),
    ("--replication-role",),
    ("-un", "--uninstall"),
)


class ConfigurationError(Exception):
    """What the user is told instead of a traceback."""


class StrictParser(argparse.ArgumentParser):
    """Refuses what it does not know in one line."""

    def error(self, message: str) -> None:
        """One line instead of the usage text."""
        print(f"ERROR: {message} (-h shows the options)", file=sys.stderr)
        sys.exit(1)


def main() -> int:
    """Configure, or bring an earlier configuration up to date; the exit code."""
    options = parse(sys.argv[1:])
    try:
        if os.geteuid() != 0:
            raise ConfigurationError("run this program as root")
        # Never in an argument of any program: libpq and pemworker read it from here.
        os.environ["PGPASSWORD"] = options.superpassword or read_password(options.superuser)
        if ANSWERS_FILE.exists():
            upgrade(options)
        else:
            configure(options)
    except (ConfigurationError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except psycopg2.Error as error:
        print(f"ERROR: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The documented options; what an earlier run recorded need not be given again."""
    known = read_answers()
    parser = StrictParser(prog="configure-pem-server.sh", allow_abbrev=False)
    add = parser.add_argument

    def ask(*names: str, answer: str, **more: object) -> None:
        add(*names, default=known.get(answer), required=answer not in known, **more)

    ask(
        "-t",
        "--type",
        answer="PEM_INSTALLATION_TYPE",
        choices=("1", "2", "3"),
        help="1 web and database, 3 database; 2 is refused",
    )
    ask("-dbi", "--db-install-path", answer="PG_INSTALL_PATH", type=Path)
    ask("-ho", "--host", answer="HOST")
    ask("-p", "--port", answer="PORT")
    ask("-su", "--superuser", answer="SUPERUSER")
    add("-sp", "--superpassword", help="if omitted, it is read from standard input")
    add("-ci", "--cidr-address", default=known.get("CIDR_ADDR", "0.0.0.0/0"))
    ask("-ds", "--db-unitfile", answer="DB_UNIT_FILE")
    add(
        "-acp",
        "--pemagent-certificate-path",
        default=known.get("AGENT_CERTIFICATE_PATH", "/root/.pem"),
    )
    add("-ps", "--pemagent-servicename", default="pemagent")
    add("-nhc", "--no-hba-change", action="store_true")
    add("-kdc", "--skip-db-certificate", action="store_true")
    add(
        "-kwc",
        "--skip-web-certificate",
        action="store_true",
        help="without effect: there is no web server",
    )
    add("-utd", "--use-trusted-ssl-db-certificates", action="store_true", help="-kdc and -nhc")
    add("-ues", "--use-existing-sslutils", action="store_true")
    add("-au", "--use-agent-user")
    add("-uac", "--use-agent-sslcert")
    add("-uak", "--use-agent-sslkey")
    add("-arp", "--agent-register-param", action="append", default=[], metavar="--OPTION=VALUE")
    add("-aro", "--agent-register-overrider", action="append", default=[], metavar="KEY=VALUE")
    add(
        "-srp",
        "--server-register-param",
        action="append",
        default=[],
        metavar="--OPTION=VALUE",
        help="recorded only",
    )
    add("-bhn", "--asb-host-name")
    for names in NOT_IMITATED:
        add(*names, nargs="?", const="", help=argparse.SUPPRESS)
    options = parser.parse_args(join_values(arguments, {"-arp", "-aro", "-srp"}))
    for names in NOT_IMITATED:
        if getattr(options, names[-1][2:].replace("-", "_")) is not None:
            parser.error(f"this stand-in for tests does not act on {names[-1]}")
    if options.type == "2":
        parser.error("type 2 is PEM's web server, which this stand-in for tests does not have")
    if bool(options.use_agent_sslcert) != bool(options.use_agent_sslkey):
        parser.error("--use-agent-sslcert and --use-agent-sslkey must be given together")
    if options.use_trusted_ssl_db_certificates:
        options.skip_db_certificate = options.no_hba_change = True
    return options


def join_values(arguments: list[str], names: set[str]) -> list[str]:
    """Let `-arp --option=value` through, whose value looks like an option of this program."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in names:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def read_answers() -> dict[str, str]:
    """What the first run recorded; empty before it."""
    if not ANSWERS_FILE.exists():
        return {}
    return dict(line.split("=", 1) for line in ANSWERS_FILE.read_text().splitlines() if "=" in line)


def read_password(superuser: str) -> str:
    """The superuser's password, from the terminal or the first line of standard input."""
    if sys.stdin.isatty():
        return getpass.getpass(f"Password of {superuser}: ")
    return sys.stdin.readline().rstrip("\n")


# What the two runs do ----------------------------------------------------------------------------


def upgrade(options: argparse.Namespace) -> None:
    """Only the SQL: certificates, HBA, settings and the agent stay as they are."""
    say(f"{ANSWERS_FILE} exists: upgrade mode")
    run_sql_file(options)
    say("PEM server upgraded; certificates, pg_hba.conf and postgresql.conf were not touched.")


def configure(options: argparse.Namespace) -> None:
    """Everything; each part leaves alone what an interrupted run has finished."""
    if not (options.db_install_path / "bin/postgres").exists():
        raise ConfigurationError(f"{options.db_install_path}/bin/postgres does not exist")
    create_database(options)
    run_sql_file(options)
    with closing(connect(options, "pem")) as connection:
        files = {
            name: setting(connection, name)
            for name in ("data_directory", "hba_file", "config_file")
        }
        if not options.skip_db_certificate:
            make_certificates(connection, files["data_directory"])
    if not (options.skip_db_certificate and options.no_hba_change):
        change_files_of_stopped_server(options, files)
    register_agent(options)
    register_server(options)
    ANSWERS_FILE.write_text(answers(options))
    systemctl("enable", "--quiet", options.pemagent_servicename)
    systemctl("restart", options.pemagent_servicename)
    say("PEM server configured (stand-in for tests: no web server).")


def create_database(options: argparse.Namespace) -> None:
    """Database pem and its extensions."""
    with closing(connect(options, "postgres")) as connection:
        if not query(connection, "SELECT 1 FROM pg_database WHERE datname = 'pem'"):
            say("Creating database pem")
            query(connection, "CREATE DATABASE pem")
    with closing(connect(options, "pem")) as connection:
        wanted = (
            ["hstore"]
            if options.use_existing_sslutils or options.skip_db_certificate
            else ["hstore", "sslutils"]
        )
        for extension in wanted:
            if not query(
                connection, "SELECT 1 FROM pg_available_extensions WHERE name = %s", extension
            ):
                raise ConfigurationError(
                    f"extension {extension} is not available: install its package for this Postgres"
                )
            query(connection, f"CREATE EXTENSION IF NOT EXISTS {extension} CASCADE")


def run_sql_file(options: argparse.Namespace) -> None:
    """PEM's schema, in one transaction."""
    say(f"Running {SQL_FILE}")
    with closing(connect(options, "pem")) as connection:
        query(connection, f"BEGIN; {SQL_FILE.read_text()}; COMMIT")
        query(connection, f"GRANT pem_admin TO {quoted(options.superuser)}")


def change_files_of_stopped_server(options: argparse.Namespace, files: dict[str, Path]) -> None:
    """pg_hba.conf and the SSL settings."""
    say(f"Stopping {options.db_unitfile}")
    systemctl("stop", options.db_unitfile)
    try:
        if not options.no_hba_change:
            change_hba(files["hba_file"], options)
        if not options.skip_db_certificate:
            change_settings(files["config_file"])
    finally:
        say(f"Starting {options.db_unitfile}")
        systemctl("start", options.db_unitfile)
    wait_for_server(options)


def register_agent(options: argparse.Namespace) -> None:
    """This host's own agent, which goes to the database directly."""
    if AGENT_CONFIG_FILE.exists():
        say(f"{AGENT_CONFIG_FILE} exists: the local agent is registered")
        return
    say("Registering the local agent")
    settings = ["alert_threads=1", "max_webhook_retries=3", *options.agent_register_overrider]
    if options.use_agent_sslcert:
        settings.append(f"agent_ssl_crt={options.use_agent_sslcert}")
        settings.append(f"agent_ssl_key={options.use_agent_sslkey}")
    command = [
        str(PEMWORKER), "--register-agent",
        "--pem-server", options.host, "--pem-port", options.port, "--pem-user", options.superuser,
        "--cert-path", options.pemagent_certificate_path,
        "--display-name", "Postgres Enterprise Manager Host",
        "--enable-smtp", "true", "--enable-snmp", "true", "--enable-webhook", "true",
        *(["--pem-agent-user", options.use_agent_user] if options.use_agent_user else []),
        *(part for setting in settings for part in ("-o", setting)),
        *options.agent_register_param,
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        raise ConfigurationError("the local agent could not be registered")


def register_server(options: argparse.Namespace) -> None:
    """PEM's own database server as the first that PEM watches."""
    address = options.asb_host_name or options.host.split(",")[0]
    with closing(connect(options, "pem")) as connection:
        query(
            connection,
            "WITH new AS (INSERT INTO pem.server (server, port, description)"
            " VALUES (%s, %s, 'Postgres Enterprise Manager Server')"
            " ON CONFLICT (server, port) DO UPDATE SET active = true RETURNING id, server, port)"
            " INSERT INTO pem.agent_server_binding (agent_id, server_id, server, port, database)"
            " SELECT 1, id, server, port, 'pem' FROM new ON CONFLICT DO NOTHING",
            address,
            int(options.port.split(",")[0]),
        )
        query(
            connection,
            "SELECT pem.register_pem_server(id) FROM pem.server WHERE server = %s",
            address,
        )


# Certificates ------------------------------------------------------------------------------------


def make_certificates(connection: psycopg2.extensions.connection, data_directory: Path) -> None:
    """PEM's CA and a server certificate, unless the CA is there."""
    ca_key, ca_certificate = data_directory / "ca_key.key", data_directory / "ca_certificate.crt"
    if ca_key.exists() and ca_certificate.exists():
        say(f"{ca_certificate} exists: no certificates are made")
        return
    say(f"Making certificates in {data_directory}")

    def make_key(path: Path) -> str:
        (key,) = query(connection, "SELECT public.openssl_rsa_generate_key(%s)", KEY_BITS)
        write_as_owner_of(data_directory, path, key)
        return key

    def sign(key: str, path: Path) -> str:
        # Without a CA certificate, also for server.crt: its issuer is its own subject then,
        # although PEM's CA key signs it, and so nobody can verify it. That is how PEM does it.
        (csr,) = query(
            connection,
            "SELECT public.openssl_rsa_key_to_csr(%s, %s, %s, %s, %s, %s, %s)",
            key,
            *CA_SUBJECT,
        )
        (certificate,) = query(
            connection,
            "SELECT public.openssl_csr_to_crt(%s, NULL, %s, %s)",
            csr,
            str(ca_key),
            CERTIFICATE_DAYS,
        )
        write_as_owner_of(data_directory, path, certificate)
        return certificate

    certificate = sign(make_key(ca_key), ca_certificate)
    write_as_owner_of(data_directory, data_directory / "root.crt", certificate)
    (crl,) = query(
        connection,
        "SELECT public.openssl_rsa_generate_crl(%s, %s, %s)",
        str(ca_certificate),
        str(ca_key),
        CERTIFICATE_DAYS,
    )
    write_as_owner_of(data_directory, data_directory / "root.crl", crl)
    sign(make_key(data_directory / "server.key"), data_directory / "server.crt")


def write_as_owner_of(directory: Path, path: Path, text: str) -> None:
    """A file of mode 0600 that belongs to the directory's owner."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


# Postgres's files --------------------------------------------------------------------------------


def change_hba(hba_file: Path, options: argparse.Namespace) -> None:
    """PEM's lines at the very top, and the superuser's at the end, unless they are there."""
    text = hba_file.read_text()
    if re.search(r"^\s*hostssl\s+pem\s+\S*pem_agent\s.*\scert\b", text, re.MULTILINE):
        say(f"{hba_file} has lines for PEM's agents already")
        return
    own_address = f"{first_own_address()}/32"
    top = "".join(
        f"hostssl\t{database}\t{role}\t{address}\t{method}\n"
        for database, role, address, method in (
            ("pem", "+pem_user", own_address, "scram-sha-256"),
            ("postgres", "+pem_user", own_address, "scram-sha-256"),
            ("pem", "+pem_user", "127.0.0.1/32", "scram-sha-256"),
            ("pem", "+pem_agent", "127.0.0.1/32", "cert"),
            ("pem", "+pem_user", options.cidr_address, "scram-sha-256"),
            ("pem", "+pem_agent", options.cidr_address, "cert"),
        )
    )
    end = f"host\tall\t{quoted(options.superuser)}\t{own_address}\tscram-sha-256\n"
    hba_file.write_text(f"{top}{text.rstrip()}\n{end}")


def first_own_address() -> str:
    """The host's first IPv4 address that is not its loopback."""
    output = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout
    return next((address for address in output.split() if "." in address), "127.0.0.1")


def change_settings(config_file: Path) -> None:
    """The SSL settings, each in the place where the file has it."""
    text = config_file.read_text()
    for name, value in SSL_SETTINGS.items():
        line = f"{name} = {value}"
        text, found = re.subn(rf"^#?{name}\s*=.*$", line, text, count=1, flags=re.MULTILINE)
        if not found:
            text = f"{text.rstrip()}\n{line}\n"
    config_file.write_text(text)


def wait_for_server(options: argparse.Namespace) -> None:
    """Until Postgres answers, at most START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return connect(options, "pem").close()
        except psycopg2.OperationalError as error:
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"Postgres does not answer {START_SECONDS} s after its start: {error}"
                ) from error
            time.sleep(0.5)


# Small tools --------------------------------------------------------------------------------------


def connect(options: argparse.Namespace, database: str) -> psycopg2.extensions.connection:
    """A connection as the superuser; the password comes from the environment."""
    connection = psycopg2.connect(
        host=options.host,
        port=options.port,
        user=options.superuser,
        dbname=database,
        target_session_attrs="read-write",
        application_name="configure-pem-server",
    )
    connection.autocommit = True
    return connection


def query(
    connection: psycopg2.extensions.connection, statement: str, *values: object
) -> tuple | None:
    """Run a statement; its first row, or None."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchone() if cursor.description else None


def setting(connection: psycopg2.extensions.connection, name: str) -> Path:
    """A setting of the server that names a file or directory."""
    return Path(query(connection, "SELECT current_setting(%s)", name)[0])


def quoted(name: str) -> str:
    """A role's name as SQL and pg_hba.conf want it."""
    return '"' + name.replace('"', '""') + '"'


def systemctl(*arguments: str) -> None:
    """Raises ConfigurationError if systemctl fails."""
    if subprocess.run(["systemctl", *arguments], check=False).returncode:
        raise ConfigurationError(f"systemctl {' '.join(arguments)} failed")


def answers(options: argparse.Namespace) -> str:
    """The record of this run; no password is in it."""
    return (
        f"PEM_INSTALLATION_TYPE={options.type}\n"
        f"PG_INSTALL_PATH={options.db_install_path}\n"
        f"SUPERUSER={options.superuser}\n"
        f"HOST={options.host}\n"
        f"PORT={options.port}\n"
        f"AGENT_CERTIFICATE_PATH={options.pemagent_certificate_path}\n"
        f"CIDR_ADDR={options.cidr_address}\n"
        f"DB_UNIT_FILE={options.db_unitfile}\n"
    )


def say(text: str) -> None:
    """Progress, in the order in which it happens even beside pemworker's own output."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
