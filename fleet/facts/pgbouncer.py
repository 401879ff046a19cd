"""What a running PgBouncer says, by its admin console on the Unix socket.

PgBouncer lets its own OS user in there as `pgbouncer` without a password, so these facts are asked
as that user (`_sudo_user`). They never fail a host: without psql or PgBouncer they are empty.
"""

from datetime import datetime
from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


def console(directory: str, port: int, statement: str) -> StringCommand:
    """Psql on the console, columns separated by tabs."""
    return StringCommand(
        "psql -XAtq -F '\t' -U pgbouncer -d pgbouncer -h",
        QuoteString(directory),
        "-p",
        str(port),
        "-c",
        QuoteString(statement),
    )


class Setting(TypedDict):
    """A setting that runs, and whether RELOAD can change it."""

    value: str
    reloadable: bool


class PgBouncerConfig(FactBase[dict[str, Setting]]):
    """SHOW CONFIG; empty when the console does not answer."""

    default = dict

    @override
    def requires_command(self, directory: str, port: int) -> str:
        return "psql"

    @override
    def command(self, directory: str, port: int) -> StringCommand:
        return StringCommand(console(directory, port, "SHOW CONFIG"), "2>/dev/null || true")

    @override
    def process(self, output: list[str]) -> dict[str, Setting]:
        rows = (line.split("\t") for line in output)
        return {
            row[0]: {"value": row[1], "reloadable": row[-1] == "yes"}
            for row in rows
            if len(row) > 2
        }


class Client(TypedDict):
    """A client of the pooler. connected_seconds: since it logged in, by the pooler's own clock."""

    user: str
    database: str
    address: str
    connected_seconds: float


class PgBouncerClients(FactBase[list[Client]]):
    """SHOW CLIENTS without the console's own; empty when the console does not answer."""

    default = list

    @override
    def requires_command(self, directory: str, port: int) -> str:
        return "psql"

    @override
    def command(self, directory: str, port: int) -> StringCommand:
        # With its header, as each version adds columns; times are the pooler's local ones.
        return StringCommand(
            "date '+%F %T'; psql -XAq -P footer=off -F '\t' -U pgbouncer -d pgbouncer -h",
            QuoteString(directory),
            "-p",
            str(port),
            "-c 'SHOW CLIENTS' 2>/dev/null || true",
        )

    @override
    def process(self, output: list[str]) -> list[Client]:
        now, rows = datetime.fromisoformat(output[0]), [line.split("\t") for line in output[1:]]
        clients = (dict(zip(rows[0], row, strict=False)) for row in rows[1:])
        return [
            {
                "user": client["user"],
                "database": client["database"],
                "address": client["addr"],
                "connected_seconds": (now - _local_time(client["connect_time"])).total_seconds(),
            }
            for client in clients
            if client.get("database", "pgbouncer") != "pgbouncer"
        ]


def _local_time(text: str) -> datetime:
    """A time as PgBouncer prints it, without the name of its zone."""
    return datetime.fromisoformat(text[:19])
