#!/usr/bin/python3 -B
"""Stand-in for PEM's agent: a daemon that keeps connections to PEM and says that it lives.

Each connection has a thread: the main one, with heartbeat_connection=true one for the heartbeats,
and one for each spooler that is switched on.
"""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from pem_agent_lib import (
    CONFIG_DIRECTORY,
    CONFIG_FILE_NAME,
    AgentConfig,
    AgentError,
    is_true,
    show_version,
)
from pemagent_sessions import HeartbeatSession, MainSession, Session, SpoolerSession

SPOOLERS = ("smtp", "snmp", "webhook")
LOG_LEVELS = {
    "debug2": logging.DEBUG,
    "debug1": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
STOP_SECONDS = 2

agent_log = logging.getLogger("agent")


def main() -> int:
    """Read the configuration, go into the background, and work until SIGTERM."""
    parser = argparse.ArgumentParser(prog="pemagent", allow_abbrev=False)
    show_version(parser)
    default = CONFIG_DIRECTORY / CONFIG_FILE_NAME
    parser.add_argument("-c", dest="config_file", type=Path, default=default)
    options = parser.parse_args()
    try:
        config = AgentConfig.read(options.config_file)
        sessions = make_sessions(config, threading.Event())
        set_up_log(agent_log, config, "agent_log_location")
        set_up_log(logging.getLogger("worker"), config, "log_location")
    except AgentError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.status
    become_daemon()
    agent_log.info("agent %s started as %s", config.agent_id, config.agent_user)
    run(sessions)
    agent_log.info("agent %s stopped", config.agent_id)
    logging.shutdown()
    # A session may still hang in libpq; it ends with the process.
    os._exit(0)


def make_sessions(config: AgentConfig, stopping: threading.Event) -> list[Session]:
    """The connections this agent keeps. Raises AgentError for a bad configuration."""
    sessions = [MainSession(config, stopping)]
    if is_true(config["heartbeat_connection"]):
        sessions.append(HeartbeatSession(config, stopping, "heartbeat"))
    wanted = (name for name in SPOOLERS if is_true(config[f"enable_{name}"]))
    return sessions + [SpoolerSession(config, stopping, name) for name in wanted]


def set_up_log(log: logging.Logger, config: AgentConfig, key: str) -> None:
    """Write a log to the file that the configuration names. Raises AgentError."""
    if config["log_level"] not in LOG_LEVELS:
        raise AgentError(f'log_level "{config["log_level"]}" is none of {", ".join(LOG_LEVELS)}')
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


def run(sessions: list[Session]) -> None:
    """Start all sessions, wait for SIGTERM or SIGINT, and give them a moment to end."""
    stopping = sessions[0].stopping
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    for session in sessions:
        session.start()
    stopping.wait()
    deadline = time.monotonic() + STOP_SECONDS
    for session in sessions:
        session.join(max(0, deadline - time.monotonic()))


if __name__ == "__main__":
    sys.exit(main())
