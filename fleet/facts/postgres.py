"""What a running Postgres says of itself, by psql on its host. These facts never fail a host.

Each is None when there is no psql, no server, or no such database: a deploy that installs Postgres
asks before it is there. They are asked as the server's OS user (`_sudo_user`).
"""

import json
from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


class Server(TypedDict):
    """Where a server keeps its files, absolute, and what it has not read yet.

    unread: files that changed after the server last read its configuration, or in that second.
    pending_restart: settings that wait for a restart.
    """

    version_number: int
    data_directory: str
    hba_file: str
    ident_file: str
    ssl_ca_file: str
    ssl_crl_file: str
    ssl_cert_file: str
    ssl_key_file: str
    unread: list[str]
    pending_restart: list[str]


_SERVER = """
WITH said(name, path) AS (
    SELECT name, CASE WHEN setting = '' OR setting LIKE '/%' THEN setting
                      ELSE current_setting('data_directory') || '/' || setting END
    FROM pg_settings
    WHERE name IN ('config_file', 'hba_file', 'ident_file', 'data_directory', 'ssl_ca_file',
                   'ssl_crl_file', 'ssl_cert_file', 'ssl_key_file')
), watched(path) AS (
    SELECT path FROM said WHERE name <> 'data_directory' AND path <> ''
    UNION ALL SELECT current_setting('data_directory') || '/postgresql.auto.conf'
)
SELECT (SELECT jsonb_object_agg(name, path) FROM said) || jsonb_build_object(
    'version_number', current_setting('server_version_num')::int,
    'unread', (SELECT coalesce(jsonb_agg(path ORDER BY path), '[]') FROM watched
               WHERE (pg_stat_file(path, true)).modification
                     >= date_trunc('second', pg_conf_load_time())),
    'pending_restart', (SELECT coalesce(jsonb_agg(name ORDER BY name), '[]') FROM pg_settings
                        WHERE pending_restart))
"""


def psql(port: int, database: str) -> tuple[object, ...]:
    """The start of a psql command: no startup file, bare output, stops at the first error."""
    return ("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-p", str(port), "-d", QuoteString(database))


class PostgresServer(FactBase[Server | None]):
    """The server on a port, or None when none answers."""

    @override
    def requires_command(self, port: int = 5432) -> str:
        return "psql"

    @override
    def command(self, port: int = 5432) -> StringCommand:
        return _quiet(port, "postgres", _SERVER)

    @override
    def process(self, output: list[str]) -> Server | None:
        server: Server | None = json.loads(output[0]) if output and output[0] else None
        return server


class PostgresStandby(FactBase[bool]):
    """Whether the server follows another one (is in recovery); False when there is none."""

    @override
    def requires_command(self, port: int = 5432) -> str:
        return "psql"

    @override
    def command(self, port: int = 5432) -> StringCommand:
        return _quiet(port, "postgres", "SELECT pg_is_in_recovery()")

    @staticmethod
    @override
    def default() -> bool:
        return False

    @override
    def process(self, output: list[str]) -> bool:
        return output[:1] == ["t"]


class PostgresHolds(FactBase[list[bool] | None]):
    """Whether each SQL condition holds; None when the server or the database is not there."""

    @override
    def requires_command(
        self, conditions: tuple[str, ...], database: str = "postgres", port: int = 5432
    ) -> str:
        return "psql"

    @override
    def command(
        self, conditions: tuple[str, ...], database: str = "postgres", port: int = 5432
    ) -> StringCommand:
        answers = ", ".join(f"coalesce(({condition}), false)" for condition in conditions)
        return _quiet(port, database, f"SELECT json_build_array({answers})")

    @override
    def process(self, output: list[str]) -> list[bool] | None:
        answers: list[bool] | None = json.loads(output[0]) if output and output[0] else None
        return answers


class PostgresNames(FactBase[list[str]]):
    """The first column of what a query answers; empty when there is no server."""

    default = list

    @override
    def requires_command(self, query: str, port: int = 5432) -> str:
        return "psql"

    @override
    def command(self, query: str, port: int = 5432) -> StringCommand:
        return _quiet(port, "postgres", query)

    @override
    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line]


class PostgresPasswordSalt(FactBase[str | None]):
    """The public part of a role's SCRAM verifier, `iterations:salt`; None without one.

    Anybody who starts to log in is told this; the secret part stays in the server.
    """

    @override
    def requires_command(self, role: str, port: int = 5432) -> str:
        return "psql"

    @override
    def command(self, role: str, port: int = 5432) -> StringCommand:
        return _quiet(
            port,
            "postgres",
            "SELECT split_part(rolpassword, '$', 2) FROM pg_authid"
            f" WHERE rolname = {literal(role)} AND rolpassword LIKE 'SCRAM-SHA-256$%'",
        )

    @override
    def process(self, output: list[str]) -> str | None:
        return output[0] if output and output[0] else None


def literal(value: str) -> str:
    """A value as an SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def _quiet(port: int, database: str, sql: str) -> StringCommand:
    one_line = " ".join(sql.split())
    return StringCommand(*psql(port, database), "-c", QuoteString(one_line), "2>/dev/null || true")
