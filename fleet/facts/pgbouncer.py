"""What a running PgBouncer says, by its admin console on the Unix socket.

PgBouncer lets its own OS user in there as `pgbouncer` without a password, so these facts are asked
as that user (`_sudo_user`). They never fail a host: without psql or PgBouncer they are empty.
"""

import re
from datetime import datetime
from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


def console(directory: str, port: int, *options: str) -> StringCommand:
    """Psql on the console, for tables of a header, as each version adds columns, and rows, by tabs.

    options: such as "-c", "SHOW POOLS". Nothing is printed when the console does not answer.
    """
    return StringCommand(
        "psql -XAq -P footer=off -F '\t' -U pgbouncer -d pgbouncer -h",
        QuoteString(directory),
        "-p",
        str(port),
        *(QuoteString(option) for option in options),
        "2>/dev/null || true",
    )


def rows(output: list[str]) -> list[dict[str, str]]:
    """The rows of a SHOW, by the names of their columns; none when the console did not answer."""
    lines = [line.split("\t") for line in output]
    return [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]


class PgBouncerVersion(FactBase[str]):
    """The version of the program that is installed, such as "1.24.1"; '' when it is not there."""

    default = str

    @override
    def command(self, binary: str) -> StringCommand:
        return StringCommand(QuoteString(binary), "--version 2>/dev/null || true")

    @override
    def process(self, output: list[str]) -> str:
        said = re.match(r"PgBouncer (\S+)", output[0]) if output else None
        return said[1] if said else ""


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
        return console(directory, port, "-c", "SHOW CONFIG")

    @override
    def process(self, output: list[str]) -> dict[str, Setting]:
        return {
            row["key"]: {"value": row["value"], "reloadable": row["changeable"] == "yes"}
            for row in rows(output)
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
        # The pooler's local time first: its times of connections are local ones.
        return StringCommand("date '+%F %T';", console(directory, port, "-c", "SHOW CLIENTS"))

    @override
    def process(self, output: list[str]) -> list[Client]:
        now = datetime.fromisoformat(output[0])
        return [
            {
                "user": client["user"],
                "database": client["database"],
                "address": client["addr"],
                "connected_seconds": (now - _local_time(client["connect_time"])).total_seconds(),
            }
            for client in rows(output[1:])
            if client["database"] != "pgbouncer"
        ]


def _local_time(text: str) -> datetime:
    """A time as PgBouncer prints it, without the name of its zone."""
    return datetime.fromisoformat(text[:19])
