"""The connections that an agent keeps open, one thread for each.

Nothing here outlives a transaction except the spoolers' LISTEN: no prepared statement, no SET, no
temporary table. So all but the spoolers can go through a transaction pool.
"""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import logging
import platform
import select
import threading
import time
from abc import ABC, abstractmethod

import psycopg2
from pem_agent_lib import SCHEMA_SUPPORTED, VERSION, AgentConfig, is_true, row

HEARTBEAT_SECONDS = 15
RECONNECT_SECONDS = 1
LISTEN_SECONDS = 1

log = logging.getLogger("worker")


class Session(threading.Thread, ABC):
    """One kept connection. Whatever happens to it, it is opened again until the agent stops."""

    def __init__(self, config: AgentConfig, stopping: threading.Event, purpose: str) -> None:
        super().__init__(name=purpose, daemon=True)
        self.config = config
        self.stopping = stopping
        self.agent_id = config.agent_id
        self.long_wait_seconds = config.number("long_wait")
        self.short_wait_seconds = config.number("short_wait")
        self.connection = None

    def run(self) -> None:
        """Connect and work; after a failure pause and do it again."""
        while not self.stopping.is_set():
            try:
                self.connection = self.config.connect(f"pemagent {self.name}")
            except psycopg2.Error as error:
                log.warning("%s: cannot connect: %s", self.name, one_line(error))
                self.stopping.wait(self.long_wait_seconds)
            else:
                self.stopping.wait(self.work_until_failure())

    def work_until_failure(self) -> float:
        """Use the connection as long as it works; gives the pause before the next, in seconds."""
        log.info("%s: connected", self.name)
        try:
            self.begin()
            while not self.stopping.is_set():
                self.work()
        except psycopg2.Error as error:
            log.error(  # noqa: TRY400 -- the trace says nothing about a lost connection
                "%s: connection given up: %s", self.name, one_line(error)
            )
            # A server that answers with an error, such as a former leader, is asked less often.
            return RECONNECT_SECONDS if self.connection.closed else self.short_wait_seconds
        finally:
            self.connection.close()
        return 0

    def begin(self) -> None:
        """What is done once on a new connection. May raise psycopg2.Error."""

    @abstractmethod
    def work(self) -> None:
        """One round; returns when the next one is due. May raise psycopg2.Error."""

    def wait_until(self, moment: float) -> None:
        """Wait until a moment of the monotonic clock, or until the agent stops."""
        self.stopping.wait(max(0, moment - time.monotonic()))


class HeartbeatSession(Session):
    """Nothing but heartbeats, each in a transaction of its own."""

    next_heartbeat = 0.0

    def begin(self) -> None:
        """A new connection starts with a heartbeat."""
        self.next_heartbeat = time.monotonic()

    def work(self) -> None:
        """Send the heartbeat and wait for the next."""
        self.heartbeat_if_due()
        self.wait_until(self.next_heartbeat)

    def heartbeat_if_due(self) -> None:
        """Say that this agent and the servers bound to it live."""
        if time.monotonic() >= self.next_heartbeat:
            self.next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS
            statement = """
                SELECT pem.do_heartbeat(%s, array(
                    SELECT server_id FROM pem.agent_server_binding WHERE agent_id = %s))"""
            row(self.connection, statement, self.agent_id, self.agent_id)
            log.debug("%s: heartbeat", self.name)


class MainSession(HeartbeatSession):
    """Says who runs, polls the probe queue, and sends the heartbeats if no other session does."""

    next_poll = 0.0

    def __init__(self, config: AgentConfig, stopping: threading.Event) -> None:
        super().__init__(config, stopping, "main")
        self.sends_heartbeats = not is_true(config["heartbeat_connection"])

    def begin(self) -> None:
        """Record this run of the agent, its version and its platform."""
        super().begin()
        self.next_poll = time.monotonic()
        runtime = """
            INSERT INTO pem.agent_runtime (agent_id, process_id, login_time, supported_schema)
            VALUES (%s, pg_backend_pid(), now(), %s)
            ON CONFLICT (agent_id) DO UPDATE
            SET process_id = excluded.process_id, login_time = excluded.login_time,
                runtime_id = excluded.runtime_id, supported_schema = excluded.supported_schema"""
        row(self.connection, runtime, self.agent_id, SCHEMA_SUPPORTED)
        host = "UPDATE pem.agent SET version = %s, platform = %s WHERE id = %s"
        system = f"{platform.system()}-{platform.machine()}"
        row(self.connection, host, VERSION.split()[-1], system, self.agent_id)

    def work(self) -> None:
        """Heartbeat and poll, each when it is due."""
        if self.sends_heartbeats:
            self.heartbeat_if_due()
        self.poll_if_due()
        moments = [self.next_poll] + [self.next_heartbeat] * self.sends_heartbeats
        self.wait_until(min(moments))

    def poll_if_due(self) -> None:
        """Ask for probes that are due; there are none to run, only the question is asked."""
        if time.monotonic() >= self.next_poll:
            self.next_poll = time.monotonic() + self.short_wait_seconds
            statement = "SELECT count(*) FROM pem.probe_schedule WHERE agent_id = %s"
            row(self.connection, f"{statement} AND next_run <= now()", self.agent_id)


class SpoolerSession(Session):
    """Waits by LISTEN for messages to send, which is what a transaction pool cannot carry."""

    def begin(self) -> None:
        """Ask to be told."""
        row(self.connection, f"LISTEN pem_{self.name}_spool")

    def work(self) -> None:
        """Note the announced messages as sent; nothing is sent."""
        if not any(select.select([self.connection], [], [], LISTEN_SECONDS)):
            return
        self.connection.poll()
        while self.connection.notifies:
            number = self.connection.notifies.pop(0).payload
            statement = "UPDATE pem.spool SET sent_at = now() WHERE id::text = %s"
            row(self.connection, statement, number)
            log.info("%s: message %s noted as sent", self.name, number)


def one_line(error: Exception) -> str:
    """The error's text without its line breaks."""
    return " ".join(str(error).split())
