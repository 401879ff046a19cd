#!/usr/bin/python3 -B
"""Stand-in for PEM's configure-pem-server.sh: makes a running Postgres into PEM's backend."""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg2
from pem_server_certificates import make_certificates
from pem_server_database import (
    ConfigurationError,
    connect,
    create_database,
    register_server,
    run_sql_file,
    setting,
    wait_for_server,
)
from pem_server_files import change_hba, change_settings
from pem_server_options import ANSWERS_FILE, answers, parse, read_password

PEMWORKER = "/usr/edb/pem/agent/bin/pemworker"
AGENT_CONFIG_FILE = Path("/usr/edb/pem/agent/etc/agent.cfg")


def main() -> int:
    """Configure, or bring an earlier configuration up to date; the exit code."""
    options = parse(sys.argv[1:])
    if os.geteuid() != 0:
        print("ERROR: run this program as root", file=sys.stderr)
        return 1
    # Never in an argument of another program: libpq reads the one, pemworker the other.
    password = options.superpassword or read_password(options.superuser)
    os.environ["PGPASSWORD"] = os.environ["PEM_SERVER_PASSWORD"] = password
    try:
        if ANSWERS_FILE.exists():
            upgrade(options)
        else:
            configure(options)
    except (ConfigurationError, OSError, psycopg2.Error) as error:
        print(f"ERROR: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


def upgrade(options: argparse.Namespace) -> None:
    """Only the SQL: certificates, HBA, settings and the agent stay as they are."""
    print(f"{ANSWERS_FILE} exists: upgrade mode", flush=True)
    run_sql_file(options)
    print("PEM server upgraded; nothing but database pem was touched.")


def configure(options: argparse.Namespace) -> None:
    """Everything; each part leaves alone what an interrupted run has finished."""
    server_program = Path(options.db_install_path, "bin/postgres")
    if not server_program.exists():
        raise ConfigurationError(f"--db-install-path: {server_program} does not exist")
    create_database(options)
    run_sql_file(options)
    with closing(connect(options, "pem")) as connection:
        names = ("data_directory", "hba_file", "config_file")
        data_directory, hba_file, config_file = (setting(connection, name) for name in names)
        if not options.skip_db_certificate:
            make_certificates(connection, data_directory)
    if not (options.skip_db_certificate and options.no_hba_change):
        change_files_while_stopped(options, hba_file, config_file)
    register_agent(options)
    register_server(options)
    systemctl("enable", "--quiet", options.pemagent_servicename)
    systemctl("restart", options.pemagent_servicename)
    ANSWERS_FILE.write_text(answers(options))
    print("PEM server configured (stand-in for tests: there is no web server).")


def change_files_while_stopped(
    options: argparse.Namespace, hba_file: Path, config_file: Path
) -> None:
    """Stop Postgres, put PEM's lines into pg_hba.conf and the SSL settings, start it."""
    systemctl("stop", options.db_unitfile)
    try:
        if not options.no_hba_change:
            change_hba(hba_file, options.superuser, options.cidr_address)
        if not options.skip_db_certificate:
            change_settings(config_file)
    finally:
        systemctl("start", options.db_unitfile)
    wait_for_server(options)


def register_agent(options: argparse.Namespace) -> None:
    """Register the agent of this host, which goes to the database directly."""
    if AGENT_CONFIG_FILE.exists():
        print(f"{AGENT_CONFIG_FILE} exists: the local agent is registered", flush=True)
        return
    values = {
        "--pem-server": options.host,
        "--pem-port": options.port,
        "--pem-user": options.superuser,
        "--pem-agent-user": options.use_agent_user,
        "--cert-path": options.pemagent_certificate_path,
        "--display-name": "Postgres Enterprise Manager Host",
        "--max-webhook-retries": "3",
    }
    settings = ["alert_threads=1"]
    if options.use_agent_sslcert:
        settings.append(f"agent_ssl_crt={options.use_agent_sslcert}")
        settings.append(f"agent_ssl_key={options.use_agent_sslkey}")
    command = [PEMWORKER, "--register-agent"]
    command += [part for name, value in values.items() if value for part in (name, value)]
    command += ["--enable-smtp", "true", "--enable-snmp", "true", "--enable-webhook", "true"]
    command += options.agent_register_param
    for text in (*settings, *options.agent_register_overrider):
        command += ["-o", text]
    if subprocess.run(command, check=False).returncode:
        raise ConfigurationError("the local agent could not be registered")


def systemctl(*arguments: str) -> None:
    """Run systemctl, and say so. Raises ConfigurationError if it fails."""
    command = ["systemctl", *arguments]
    print(" ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise ConfigurationError(f"{' '.join(command)} failed")


if __name__ == "__main__":
    sys.exit(main())
