"""What PEM's database and its agents say. These facts never fail a host."""

import json
from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override

from fleet.facts.postgres import psql


class Registered(TypedDict):
    """An agent that PEM knows. heartbeat_age_seconds is None before the first heartbeat."""

    id: int
    name: str
    active: bool
    heartbeat_age_seconds: float | None


class Backend(TypedDict):
    """Who is logged in to the server, and from where."""

    user: str
    address: str


class PemAgents(TypedDict):
    """All of PEM's agents, and who is logged in to its database.

    backends: of the agents' pooled role those of poolers only, if nobody goes around them.
    """

    agents: list[Registered]
    backends: list[Backend]


class RegisteredAgents(FactBase[PemAgents | None]):
    """PEM's agents, asked on the database's host as its OS user.

    None when PEM is not there, and from a standby: who is logged in is known to the primary.
    """

    @override
    def requires_command(self, port: int = 5432) -> str:
        return "psql"

    @override
    def command(self, port: int = 5432) -> StringCommand:
        sql = (
            "SELECT json_build_object('agents', (SELECT coalesce(json_agg(json_build_object("
            "'id', a.id, 'name', a.description, 'active', a.active, 'heartbeat_age_seconds',"
            " extract(epoch FROM now() - h.last_heartbeat)) ORDER BY a.id), '[]')"
            " FROM pem.agent a LEFT JOIN pem.agent_heartbeat h ON h.agent_id = a.id),"
            " 'backends', (SELECT coalesce(json_agg(DISTINCT jsonb_build_object("
            "'user', usename, 'address', host(client_addr))), '[]') FROM pg_stat_activity"
            " WHERE datname = 'pem' AND usename IS NOT NULL AND client_addr IS NOT NULL))"
            " WHERE NOT pg_is_in_recovery()"
        )
        return StringCommand(*psql(port, "pem"), "-c", QuoteString(sql), "2>/dev/null || true")

    @override
    def process(self, output: list[str]) -> PemAgents | None:
        found: PemAgents | None = json.loads(output[0]) if output and output[0] else None
        return found


class AgentVerification(FactBase[int | None]):
    """The exit code of `pemworker --verify-registration`; None when there is no pemworker.

    0 registered, active and connected; 1 no valid id in agent.cfg; 2 cannot connect; 3 inactive
    (EDB's documentation, PEM 10.4 and later).
    """

    @override
    def command(self, pemworker: str, environment: str = "") -> StringCommand:
        worker = QuoteString(pemworker)
        return StringCommand(
            # Poolers that drop packets would keep it waiting for good.
            "[ -x", worker, "] && {", environment, "timeout 60", worker,
            "--verify-registration >/dev/null 2>&1; echo $?; }; true",
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> int | None:
        return int(output[0]) if output and output[0].isdigit() else None


class AgentBackups(FactBase[list[str]]):
    """The backups that files/move-agent.sh made of an agent, whole ones only, oldest first."""

    default = list

    @override
    def command(self, directory: str) -> StringCommand:
        return StringCommand(
            "find", QuoteString(f"{directory}/backups"), "-name paths 2>/dev/null; true"
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        return sorted(line.removesuffix("/paths") for line in output if line)


class LastLine(FactBase[str]):
    """The last line of a file; '' when there is none."""

    default = str

    @override
    def command(self, path: str) -> StringCommand:
        return StringCommand("tail -n 1", QuoteString(path), "2>/dev/null; true")

    @override
    def process(self, output: list[str]) -> str:
        return output[0].strip() if output else ""
