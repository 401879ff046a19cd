"""Which agent beats, and through which pooler: put together from the database and the poolers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fleet.facts.pem import PemAgents
from fleet.facts.pgbouncer import Client
from fleet.hosts import Fleet

Fact = TypeVar("Fact")
# (host name, fact, OS user, the fact's arguments) -> what the fact says; None if unreachable
Ask = Callable[..., object]

# PEM counts an agent as down 30 s after its last heartbeat: tolerance 15 s and interval 15 s.
FRESH_SECONDS = 30


@dataclass(frozen=True)
class Heartbeat:
    """One agent as the fleet sees it.

    agent_id: None when PEM does not know it. age_seconds: of its last heartbeat, None before the
    first. pooler: the host that it is a client of, '' when of none. direct: its address has a
    backend of its own on the server.
    """

    agent: str
    agent_id: int | None
    active: bool
    age_seconds: float | None
    pooler: str
    user: str
    direct: bool

    @property
    def fresh(self) -> bool:
        """Alive by PEM's own measure, and through a pooler only."""
        in_time = self.age_seconds is not None and self.age_seconds <= FRESH_SECONDS
        return self.active and in_time and bool(self.pooler) and not self.direct

    def sentence(self) -> str:
        """What there is to say of it, for people."""
        if self.agent_id is None:
            return "not registered"
        if self.age_seconds is None:
            return f"registered as id {self.agent_id}, no heartbeat yet"
        through = f"through {self.pooler} as {self.user}" if self.pooler else "through no pooler"
        if self.direct:
            through += ", and directly"
        inactive = "" if self.active else " (inactive)"
        return (
            f"registered as id {self.agent_id}{inactive}, last heartbeat {self.age_seconds:.0f} s ago, "
            + through
        )


def heartbeats(
    fleet: Fleet, found: PemAgents | None, clients: dict[str, list[Client]]
) -> dict[str, Heartbeat]:
    """Every agent of the inventory, by name. clients: of each pooler that answered, by its name."""
    known = {agent["name"]: agent for agent in (found or {"agents": [], "backends": []})["agents"]}
    backends = set(found["backends"]) if found else set()
    result = {}
    for host in fleet.agent.hosts:
        agent, address = known.get(host.name), str(host.address)
        seen = [
            (client["request_time"], pooler, client["user"])
            for pooler, there in clients.items()
            for client in there
            if client["address"] == address and client["user"] == fleet.pem_server.agent_user
        ]
        _, pooler, user = max(seen, default=("", "", ""))
        result[host.name] = Heartbeat(
            host.name,
            agent["id"] if agent else None,
            bool(agent and agent["active"]),
            agent["heartbeat_age_seconds"] if agent else None,
            pooler,
            user,
            address in backends,
        )
    return result
