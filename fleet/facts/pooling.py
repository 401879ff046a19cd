"""How busy a PgBouncer is, by its admin console. This fact never fails a host."""

from itertools import takewhile
from typing import TypedDict

from pyinfra.api import FactBase, StringCommand
from typing_extensions import override

from fleet.facts.pgbouncer import console, rows

_SHOWS = ("VERSION", "STATE", "POOLS", "DATABASES", "CONFIG")


class Pooling(TypedDict):
    """One process of PgBouncer. The console's own connections are not counted.

    clients: logged in, those that wait for a server connection included.
    waiting_seconds: how long the first of those waits.
    paused: databases that let no query through; all of them after a plain PAUSE.
    pool_size: of database pem, for each user.
    """

    version: str
    clients: int
    waiting: int
    waiting_seconds: float
    server_connections: int
    paused: list[str]
    max_client_conn: int
    pool_size: int


class PgBouncerPooling(FactBase[Pooling | None]):
    """SHOW VERSION, STATE, POOLS, DATABASES and CONFIG; None when the console does not answer.

    Asked as the service's own OS user, like the facts of fleet/facts/pgbouncer.py.
    """

    @override
    def requires_command(self, directory: str, port: int) -> str:
        return "psql"

    @override
    def command(self, directory: str, port: int) -> StringCommand:
        asked = [word for show in _SHOWS for word in ("-c", f"SHOW {show}", "-c", "\\echo =")]
        return console(directory, port, *asked)

    @override
    def process(self, output: list[str]) -> Pooling | None:
        lines = iter(output)
        tables = {show: list(takewhile(lambda line: line != "=", lines)) for show in _SHOWS}
        if not all(tables.values()):
            return None
        shown = {show: rows(table) for show, table in tables.items()}
        pools = [row for row in shown["POOLS"] if row["database"] != "pgbouncer"]
        databases = [row for row in shown["DATABASES"] if row["name"] != "pgbouncer"]
        state = {row["key"]: row["value"] for row in shown["STATE"]}
        config = {row["key"]: row["value"] for row in shown["CONFIG"]}
        all_paused = state.get("paused") == "yes"
        return {
            "version": shown["VERSION"][0]["version"].removeprefix("PgBouncer "),
            "clients": sum(_sum(pool, ("cl_active", "cl_waiting")) for pool in pools),
            "waiting": sum(int(pool["cl_waiting"]) for pool in pools),
            "waiting_seconds": max((_wait(pool) for pool in pools), default=0.0),
            "server_connections": sum(_sum(pool, _SERVERS) for pool in pools),
            "paused": [row["name"] for row in databases if all_paused or row["paused"] == "1"],
            "max_client_conn": int(config["max_client_conn"]),
            "pool_size": next((int(row["pool_size"]) for row in databases), 0),
        }


_SERVERS = ("sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "sv_active_cancel")


def _sum(row: dict[str, str], columns: tuple[str, ...]) -> int:
    return sum(int(row.get(column, 0)) for column in columns)


def _wait(pool: dict[str, str]) -> float:
    return int(pool["maxwait"]) + int(pool["maxwait_us"]) / 1_000_000
