"""What configure-pem-server.sh does by SQL, as the installing superuser."""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path

import psycopg2

Connection = psycopg2.extensions.connection

SQL_FILE = Path("/usr/edb/pem/share/pemserver.sql")
START_SECONDS = 60


class ConfigurationError(Exception):
    """What the user is told instead of a traceback."""


def connect(options: argparse.Namespace, database: str) -> Connection:
    """A connection as the superuser, with autocommit; the password is in the environment."""
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


def row(connection: Connection, statement: str, *values: object) -> tuple | None:
    """Run a statement; its first row, or None. Raises psycopg2.Error."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchone() if cursor.description else None


def setting(connection: Connection, name: str) -> Path:
    """A setting of the server that names a file or a directory."""
    return Path(row(connection, "SELECT current_setting(%s)", name)[0])


def create_database(options: argparse.Namespace) -> None:
    """Database pem and its extensions. Raises ConfigurationError if a package is missing."""
    with closing(connect(options, "postgres")) as connection:
        if not row(connection, "SELECT 1 FROM pg_database WHERE datname = 'pem'"):
            print("Creating database pem", flush=True)
            row(connection, "CREATE DATABASE pem")
    extensions = ["hstore"]
    if not (options.use_existing_sslutils or options.skip_db_certificate):
        extensions.append("sslutils")
    with closing(connect(options, "pem")) as connection:
        for name in extensions:
            available = "SELECT 1 FROM pg_available_extensions WHERE name = %s"
            if not row(connection, available, name):
                raise ConfigurationError(
                    f"this Postgres has no extension {name}\n"
                    "HINT: install the package with sslutils for its version, and contrib on EL"
                )
            row(connection, f"CREATE EXTENSION IF NOT EXISTS {name} CASCADE")


def run_sql_file(options: argparse.Namespace) -> None:
    """PEM's schema in one transaction; the superuser becomes an administrator of PEM."""
    print(f"Running {SQL_FILE}", flush=True)
    with closing(connect(options, "pem")) as connection:
        row(connection, f"BEGIN; {SQL_FILE.read_text()}; COMMIT")
        row(connection, f"GRANT pem_admin TO {quoted(options.superuser)}")


def register_server(options: argparse.Namespace) -> None:
    """PEM's own database server, the first that PEM watches, by the local agent."""
    address = options.asb_host_name or options.host.split(",")[0]
    port = int(options.port.split(",")[0])
    with closing(connect(options, "pem")) as connection:
        statement = """
            WITH pem_server AS (
                INSERT INTO pem.server (server, port, description)
                VALUES (%s, %s, 'Postgres Enterprise Manager Server')
                ON CONFLICT (server, port) DO UPDATE SET active = true
                RETURNING id, server, port
            ), binding AS (
                INSERT INTO pem.agent_server_binding (agent_id, server_id, server, port, database)
                SELECT min(agent.id), pem_server.id, server, port, 'pem'
                FROM pem_server, pem.agent GROUP BY pem_server.id, server, port
                ON CONFLICT DO NOTHING
            )
            SELECT id FROM pem_server"""
        (server_id,) = row(connection, statement, address, port)
        row(connection, "SELECT pem.register_pem_server(%s)", server_id)


def wait_for_server(options: argparse.Namespace) -> None:
    """Until Postgres answers. Raises ConfigurationError after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            connect(options, "pem").close()
        except psycopg2.OperationalError as error:
            if time.monotonic() > deadline:
                text = f"Postgres does not answer {START_SECONDS} s after its start: {error}"
                raise ConfigurationError(text) from error
            time.sleep(0.5)
        else:
            return


def quoted(name: str) -> str:
    """A role's name as SQL and pg_hba.conf want it."""
    return '"' + name.replace('"', '""') + '"'
