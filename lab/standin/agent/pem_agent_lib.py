"""What pemworker and pemagent share: agent.cfg, and connections to PEM's database."""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import configparser
import os
import tempfile
from contextlib import closing
from pathlib import Path

import psycopg2

Connection = psycopg2.extensions.connection

VERSION = "Version: 10.6.0"
SCHEMA_SUPPORTED = 202609291
SECTION = "PEM/agent"
CONFIG_DIRECTORY = Path("/usr/edb/pem/agent/etc")
CONFIG_FILE_NAME = "agent.cfg"

# A peer that is gone is noticed within 20 s: 5 s of silence, then 15 s in which it confirms
# nothing. What the real agent sets is not public.
KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}

# For an agent.cfg that names no server; registration always names one.
DEFAULT_SERVER = {"pem_host": "127.0.0.1", "pem_port": "5432"}

# As registration writes them, behind host, port, id, user and certificate.
DEFAULTS = {
    "pem_ssl_mode": "require",
    "log_level": "warning",
    "log_location": "/var/log/pem/worker.log",
    "agent_log_location": "/var/log/pem/agent.log",
    "long_wait": "30",
    "short_wait": "10",
    "alert_threads": "0",
    "enable_smtp": "false",
    "enable_snmp": "false",
    "enable_webhook": "false",
    "max_webhook_retries": "3",
    "allow_server_restart": "true",
    "allow_package_management": "false",
    "allow_streaming_replication": "false",
    "max_connections": "0",
    "connect_timeout": "-1",
    "connection_lifetime": "0",
    "allow_batch_probes": "false",
    "heartbeat_connection": "false",
}


class AgentError(Exception):
    """What the user is told instead of a traceback; `status` is the exit code."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class AgentConfig(dict):
    """The keys of an agent.cfg. All values are text, as in the file."""

    @classmethod
    def read(cls, path: Path) -> AgentConfig:
        """The file's section, with defaults for what it leaves out. Raises AgentError."""
        parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
        parser.optionxform = str
        try:
            with path.open() as file:
                parser.read_file(file)
            return cls(DEFAULT_SERVER | DEFAULTS | dict(parser[SECTION]))
        except OSError as error:
            raise AgentError(f"cannot read {path}: {error.strerror}") from error
        except KeyError:
            raise AgentError(f"{path}: there is no section [{SECTION}]") from None
        except (configparser.Error, UnicodeDecodeError) as error:
            raise AgentError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write the file, mode 0644. Raises AgentError if it cannot be written."""
        lines = [f"[{SECTION}]", *(f"{key}={value}" for key, value in self.items())]
        write_file(path, "\n".join(lines) + "\n", mode=0o644)

    @property
    def agent_id(self) -> int:
        """The agent's number. Raises AgentError, status 1, if the file has no valid one."""
        return valid_agent_id(self.get("agent_id", ""))

    @property
    def agent_user(self) -> str:
        """The database role of this agent."""
        return self.get("agent_user") or f"agent{self.agent_id}"

    def number(self, key: str) -> int:
        """A whole number. Raises AgentError if the value is something else."""
        try:
            return int(self[key])
        except ValueError:
            raise AgentError(f'{key} = "{self[key]}" is not a whole number') from None

    def connect(self, application_name: str) -> Connection:
        """A connection as this agent, by its certificate. Raises psycopg2.OperationalError."""
        parameters = {
            "host": self["pem_host"],
            "port": self["pem_port"],
            "user": self.agent_user,
            "sslmode": self["pem_ssl_mode"].lower(),
            "sslcert": self.get("agent_ssl_crt"),
            "sslkey": self.get("agent_ssl_key"),
            "application_name": application_name,
        }
        if self.number("connect_timeout") > 0:
            parameters["connect_timeout"] = self["connect_timeout"]
        return connect(**parameters)


def connect(**parameters: object) -> Connection:
    """A connection to database pem on a server that accepts writes, with autocommit.

    libpq's environment variables fill what is not given. Raises psycopg2.OperationalError.
    """
    fixed = {"dbname": "pem", "target_session_attrs": "read-write"}
    connection = psycopg2.connect(**KEEPALIVE | parameters | fixed)
    connection.autocommit = True
    return connection


def row(connection: Connection, statement: str, *values: object) -> tuple | None:
    """Run one statement; its first row, or None. Raises psycopg2.Error."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchone() if cursor.description else None


def valid_agent_id(text: str) -> int:
    """An agent's number from its text. Raises AgentError."""
    if not text.isdecimal() or int(text) == 0:
        raise AgentError(f'agent_id "{text}" is not a valid agent id')
    return int(text)


def is_true(text: str) -> bool:
    """Whether a switch's text means on."""
    return text.strip().lower() in ("true", "yes", "on", "1", "t", "y")


def show_version(parser: argparse.ArgumentParser) -> None:
    """Give a program the option --version, in the two lines of the real ones."""
    parser.formatter_class = argparse.RawTextHelpFormatter
    text = f"{VERSION}\nSchema Supported: {SCHEMA_SUPPORTED}"
    parser.add_argument("--version", action="version", version=text)


def write_file(path: Path, text: str, mode: int) -> None:
    """Replace a file at once, never readable by more than its mode allows. Raises AgentError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(descriptor, mode)
        Path(temporary).replace(path)
    except OSError as error:
        raise AgentError(f"cannot write {path}: {error.strerror}") from error
