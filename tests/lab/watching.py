"""What is to stay as it is while something else is done: looked at all the while."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import TypeVar

from tests.lab.conftest import Lab

SAMPLE_SECONDS = 1
# PgBouncer's server_idle_timeout, less a second for its own clock.
IDLE_TIMEOUT_SECONDS = 59

Seen = TypeVar("Seen")


@contextmanager
def sampled(look: Callable[[], Seen]) -> Iterator[list[Seen]]:
    """What a look shows before the block, again and again while it runs, and after it."""
    seen = [look()]
    over = Event()

    def watch() -> None:
        last = False
        while not last:
            last = over.wait(SAMPLE_SECONDS)
            seen.append(look())

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            over.set()
            watching.result()


@dataclass(frozen=True)
class Backend:
    """A server process that serves agents: for which pooler, since when idle, on which serial."""

    pooler_address: str
    idle_seconds: float
    certificate_serial: int


@dataclass(frozen=True)
class Backends:
    """All of them by their pids, and the moments between which they were read."""

    asked: float
    answered: float
    by_pid: dict[str, Backend]


def backends(lab: Lab) -> Backends:
    """What Postgres shows of the connections that poolers hold for agents."""
    asked = time.monotonic()
    rows = lab.sql(
        "SELECT pid, host(client_addr), extract(epoch FROM clock_timestamp() - state_change),"
        " client_serial FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
        " WHERE usename = 'pem_agent_user1' AND client_serial IS NOT NULL"
    )
    found = (row.split("|") for row in rows.splitlines())
    by_pid = {pid: Backend(addr, float(idle), int(serial)) for pid, addr, idle, serial in found}
    return Backends(asked, time.monotonic(), by_pid)


def lost(seen: list[Backends]) -> list[Backend]:
    """The backends that went away, but for those that were idle for server_idle_timeout."""
    return [
        backend
        for earlier, later in pairwise(seen)
        for pid, backend in earlier.by_pid.items()
        if pid not in later.by_pid
        and backend.idle_seconds + later.answered - earlier.asked < IDLE_TIMEOUT_SECONDS
    ]
