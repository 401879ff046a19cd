"""What pemworker and pemagent share: agent.cfg, and connections to PEM's database."""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import configparser
import os
import socket
import tempfile
from contextlib import closing
from pathlib import Path

import psycopg2

VERSION = "10.6.0"
SCHEMA_SUPPORTED = 202609291
SECTION = "PEM/agent"
CONFIG_FILE_NAME = "agent.cfg"
CONFIG_DIRECTORY = Path("/usr/edb/pem/agent/etc")

# A dead pooler is noticed within 20 s: silence is probed after 5 s, and a peer that confirms
# nothing for 15 s is given up. The settings of the real agent are not public.
KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}

# As registration writes them; pem_host … agent_ssl_crt come before, `-o key=value` replaces.
DEFAULTS = {
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
    """The keys of an agent.cfg, defaults included. All values are text, as in the file."""

    @classmethod
    def read(cls, path: Path) -> AgentConfig:
        """The file's `[PEM/agent]` section. Raises AgentError if it cannot be read."""
        parser = _parser()
        try:
            with path.open() as file:
                parser.read_file(file)
            return cls(DEFAULTS | dict(parser[SECTION]))
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
        text = self.get("agent_id", "")
        if not text.isdecimal() or int(text) == 0:
            raise AgentError(f'agent_id "{text}" in the configuration is not a valid agent id')
        return int(text)

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

    def switched_on(self, key: str) -> bool:
        """Whether a switch is on."""
        return is_true(self[key])

    def connect(self, application_name: str) -> psycopg2.extensions.connection:
        """A connection as this agent, by its certificate. Raises psycopg2.OperationalError."""
        parameters = {
            "host": self.get("pem_host", "127.0.0.1"),
            "port": self.get("pem_port", "5432"),
            "user": self.agent_user,
            "sslmode": self.get("pem_ssl_mode", "require").lower(),
            "sslcert": self.get("agent_ssl_crt"),
            "sslkey": self.get("agent_ssl_key"),
            "application_name": application_name,
        }
        if self.number("connect_timeout") > 0:
            parameters["connect_timeout"] = self["connect_timeout"]
        return connect(**parameters)


def connect(**parameters: object) -> psycopg2.extensions.connection:
    """A connection to database pem on a server that accepts writes, with autocommit.

    libpq's environment variables fill what is not given. Raises psycopg2.OperationalError.
    """
    fixed = {"dbname": "pem", "target_session_attrs": "read-write"}
    # The keyword form is used because psycopg2 would take `dsn` apart differently from libpq.
    connection = psycopg2.connect(**KEEPALIVE | parameters | fixed)
    connection.autocommit = True
    return connection


def row(
    connection: psycopg2.extensions.connection, statement: str, *values: object
) -> tuple | None:
    """Run one statement; its first row, or None."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchone() if cursor.description else None


def is_true(text: str) -> bool:
    """Whether a switch's text means on."""
    return text.strip().lower() in ("true", "yes", "on", "1", "t", "y")


def host_name() -> str:
    """The name an agent has if it is given none: the full one, else the short one."""
    return socket.getfqdn() or socket.gethostname()


def write_file(path: Path, text: str, mode: int) -> None:
    """Replace a file at once, with its final mode from the start. Raises AgentError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(descriptor, "w") as file:
            file.write(text)
            os.fchmod(descriptor, mode)
        Path(temporary).replace(path)
    except OSError as error:
        raise AgentError(f"cannot write {path}: {error.strerror}") from error


def _parser() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
    parser.optionxform = str
    return parser
