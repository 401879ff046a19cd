#!/usr/bin/python3 -B
"""Stand-in for PEM's agent: a daemon that keeps connections to PEM and says that it lives.

One thread for each connection: the main one, with heartbeat_connection=true one for the
heartbeats, and one for each spooler that is switched on.
"""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import logging
import os
import platform
import select
import signal
import sys
import threading
import time
from pathlib import Path

import psycopg2
from pem_agent_lib import (
    CONFIG_DIRECTORY,
    CONFIG_FILE_NAME,
    SCHEMA_SUPPORTED,
    VERSION,
    AgentConfig,
    AgentError,
    row,
)

HEARTBEAT_SECONDS = 15
SPOOLERS = ("smtp", "snmp", "webhook")
LOG_LEVELS = {
    "debug2": logging.DEBUG,
    "debug1": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
RECONNECT_SECONDS = 1
STOP_SECONDS = 2

agent_log = logging.getLogger("agent")
worker_log = logging.getLogger("worker")
stopping = threading.Event()


class Session(threading.Thread):
    """One kept connection. Whatever happens to it, it is opened again until the agent stops."""

    def __init__(self, config: AgentConfig, purpose: str) -> None:
        super().__init__(name=purpose, daemon=True)
        self.config = config
        self.long_wait_seconds = config.number("long_wait")
        self.short_wait_seconds = config.number("short_wait")
        self.connection = None

    def run(self) -> None:
        """Connect, work until the connection breaks, and again."""
        while not stopping.is_set():
            try:
                self.connection = self.config.connect(f"pemagent {self.name}")
            except psycopg2.Error as error:
                worker_log.warning("%s: cannot connect: %s", self.name, one_line(error))
                stopping.wait(self.long_wait_seconds)
                continue
            worker_log.info("%s: connected", self.name)
            try:
                self.start_work()
                while not stopping.is_set():
                    self.work()
            except psycopg2.Error as error:
                worker_log.error("%s: connection given up: %s", self.name, one_line(error))
                # A server that answers with an error, such as one turned read-only, gets longer.
                pause_seconds = (
                    RECONNECT_SECONDS if self.connection.closed else self.short_wait_seconds
                )
                self.connection.close()
                stopping.wait(pause_seconds)
        if self.connection:
            self.connection.close()

    def start_work(self) -> None:
        """What is done once on a new connection."""

    def work(self) -> None:
        """One round; returns when the next one is due. May raise psycopg2.Error."""
        raise NotImplementedError


class HeartbeatSession(Session):
    """Nothing but heartbeats."""

    def __init__(self, config: AgentConfig, purpose: str = "heartbeat") -> None:
        super().__init__(config, purpose)
        self.next_heartbeat = 0.0

    def start_work(self) -> None:
        """A new connection starts with a heartbeat."""
        self.next_heartbeat = time.monotonic()

    def work(self) -> None:
        """Send the heartbeat and wait for the next."""
        self.heartbeat_if_due()
        stopping.wait(max(0, self.next_heartbeat - time.monotonic()))

    def heartbeat_if_due(self) -> None:
        """A transaction of its own: the statement, and nothing that lives longer than it."""
        if time.monotonic() < self.next_heartbeat:
            return
        servers = "SELECT array_agg(server_id) FROM pem.agent_server_binding WHERE agent_id = %s"
        row(
            self.connection,
            f"SELECT pem.do_heartbeat(%s, ({servers}))",  # noqa: S608 -- a constant of ours
            self.config.agent_id,
            self.config.agent_id,
        )
        worker_log.debug("%s: heartbeat", self.name)
        self.next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS


class MainSession(HeartbeatSession):
    """Says who runs, asks for probes, and sends the heartbeats if no other session does."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(config, "main")
        self.sends_heartbeats = not config.switched_on("heartbeat_connection")
        self.next_poll = 0.0

    def start_work(self) -> None:
        """Record this run of the agent, its version and its platform."""
        super().start_work()
        self.next_poll = time.monotonic()
        row(
            self.connection,
            "INSERT INTO pem.agent_runtime (agent_id, process_id, login_time, supported_schema)"
            " VALUES (%s, pg_backend_pid(), now(), %s) ON CONFLICT (agent_id) DO UPDATE"
            " SET process_id = excluded.process_id, login_time = excluded.login_time,"
            " runtime_id = excluded.runtime_id, supported_schema = excluded.supported_schema",
            self.config.agent_id,
            SCHEMA_SUPPORTED,
        )
        row(
            self.connection,
            "UPDATE pem.agent SET version = %s, platform = %s WHERE id = %s",
            VERSION,
            f"{platform.system()}-{platform.machine()}",
            self.config.agent_id,
        )

    def work(self) -> None:
        """Heartbeat and look into the probe queue, each when it is due."""
        if self.sends_heartbeats:
            self.heartbeat_if_due()
        if time.monotonic() >= self.next_poll:
            row(
                self.connection,
                "SELECT count(*) FROM pem.probe_schedule WHERE agent_id = %s AND next_run <= now()",
                self.config.agent_id,
            )
            self.next_poll = time.monotonic() + self.short_wait_seconds
        due = min(self.next_poll, self.next_heartbeat) if self.sends_heartbeats else self.next_poll
        stopping.wait(max(0, due - time.monotonic()))


class SpoolerSession(Session):
    """Waits by LISTEN for messages to send, which is what a transaction pool cannot carry."""

    def start_work(self) -> None:
        """Ask to be told."""
        row(self.connection, f"LISTEN pem_{self.name}_spool")

    def work(self) -> None:
        """Note announced messages as sent; nothing is sent."""
        if not any(select.select([self.connection], [], [], 1)):
            return
        self.connection.poll()
        while self.connection.notifies:
            number = self.connection.notifies.pop(0).payload
            row(self.connection, "UPDATE pem.spool SET sent_at = now() WHERE id::text = %s", number)
            worker_log.info("%s: message %s noted as sent", self.name, number)


def main() -> int:
    """Read the configuration, go into the background, and work until SIGTERM."""
    parser = argparse.ArgumentParser(prog="pemagent", allow_abbrev=False)
    version = f"Version: {VERSION}\nSchema Supported: {SCHEMA_SUPPORTED}"
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("-c", dest="config_file", type=Path)
    options = parser.parse_args()
    try:
        config = AgentConfig.read(options.config_file or CONFIG_DIRECTORY / CONFIG_FILE_NAME)
        sessions = make_sessions(config)
        set_up_logs(config)
    except AgentError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.status
    become_daemon()
    run(sessions, config)
    return 0


def make_sessions(config: AgentConfig) -> list[Session]:
    """The connections this agent keeps. Raises AgentError for a bad configuration."""
    agent_log.debug("agent %s is %s", config.agent_id, config.agent_user)
    sessions: list[Session] = [MainSession(config)]
    if config.switched_on("heartbeat_connection"):
        sessions.append(HeartbeatSession(config))
    sessions += [
        SpoolerSession(config, name) for name in SPOOLERS if config.switched_on(f"enable_{name}")
    ]
    return sessions


def set_up_logs(config: AgentConfig) -> None:
    """One log for the daemon, one for its connections. Raises AgentError."""
    if config["log_level"] not in LOG_LEVELS:
        raise AgentError(f'log_level "{config["log_level"]}" is none of {", ".join(LOG_LEVELS)}')
    for log, key in ((agent_log, "agent_log_location"), (worker_log, "log_location")):
        try:
            handler = logging.FileHandler(config[key])
        except OSError as error:
            raise AgentError(f"cannot write {config[key]}: {error.strerror}") from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
        log.addHandler(handler)
        log.setLevel(LOG_LEVELS[config["log_level"]])


def become_daemon() -> None:
    """Leave the starter's session, as a service of Type=forking does."""
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def run(sessions: list[Session], config: AgentConfig) -> None:
    """Start all sessions and wait for SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    agent_log.info("agent %s started as %s", config.agent_id, config.agent_user)
    for session in sessions:
        session.start()
    stopping.wait()
    deadline = time.monotonic() + STOP_SECONDS
    for session in sessions:
        session.join(max(0, deadline - time.monotonic()))
    agent_log.info("agent %s stopped", config.agent_id)
    logging.shutdown()
    # A session may hang in libpq; it ends with the process.
    os._exit(0)


def one_line(error: Exception) -> str:
    """libpq's text without its line breaks."""
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
