"""Which agent beats, and through which pooler: put together from the database and the poolers."""

from dataclasses import dataclass

from fleet.facts.pem import PemAgents
from fleet.facts.pgbouncer import Client
from fleet.hosts import Fleet

# PEM counts an agent as down 30 s after its last heartbeat: tolerance 15 s and interval 15 s.
FRESH_SECONDS = 30
# Ages come from two hosts, and the pooler's in whole seconds.
_CLOCK_SECONDS = 1


@dataclass(frozen=True)
class Heartbeat:
    """One agent as the fleet sees it.

    agent_id: None when PEM does not know it, or did not answer (answered is False).
    age_seconds: of its last heartbeat, None before the first.
    pooler: the host that it is a client of, '' when of none; connected_seconds: since when.
    direct: its address has a backend of its own on the server.
    """

    agent: str
    agent_id: int | None
    active: bool
    age_seconds: float | None
    pooler: str
    user: str
    connected_seconds: float
    direct: bool
    answered: bool = True

    @property
    def fresh(self) -> bool:
        """Alive by PEM's own measure, and by a heartbeat that came through the pooler."""
        return (
            self.active
            and self.age_seconds is not None
            and self.age_seconds <= FRESH_SECONDS
            and bool(self.pooler)
            and self.age_seconds <= self.connected_seconds + _CLOCK_SECONDS
            and not self.direct
        )

    def sentence(self) -> str:
        """What there is to say of it, for people."""
        if not self.answered:
            return "unknown: PEM's database does not answer"
        if self.agent_id is None:
            return "not registered"
        registered = f"registered as id {self.agent_id}" + ("" if self.active else " (inactive)")
        if self.age_seconds is None:
            return f"{registered}, no heartbeat yet"
        through = f"through {self.pooler} as {self.user}" if self.pooler else "through no pooler"
        directly = ", and directly" if self.direct else ""
        return f"{registered}, last heartbeat {self.age_seconds:.0f} s ago, {through}{directly}"


def heartbeats(
    fleet: Fleet, found: PemAgents | None, clients: dict[str, list[Client]]
) -> dict[str, Heartbeat]:
    """Every agent of the inventory, by name. clients: of each pooler that answered, by its name.

    An agent that is a client of two poolers (it moved, and the old one has not noticed) counts
    with the connection that is younger.
    """
    # Of several rows with one name the active one counts, and of those the newest.
    rows = sorted(found["agents"], key=lambda row: (row["active"], row["id"])) if found else []
    known = {agent["name"]: agent for agent in rows}
    backends = set(found["backends"]) if found else set()
    backends -= {host.address for host in fleet.pgbouncer.hosts}
    result = {}
    for host in fleet.agent.hosts:
        agent = known.get(host.name)
        seen = [
            (client["connected_seconds"], pooler, client["user"])
            for pooler, there in clients.items()
            for client in there
            if client["address"] == host.address and client["user"] == fleet.pem_server.agent_user
        ]
        connected, pooler, user = min(seen, default=(0.0, "", ""))
        result[host.name] = Heartbeat(
            agent=host.name,
            agent_id=agent["id"] if agent else None,
            active=bool(agent and agent["active"]),
            age_seconds=agent["heartbeat_age_seconds"] if agent else None,
            pooler=pooler,
            user=user,
            connected_seconds=connected,
            direct=host.address in backends,
            answered=found is not None,
        )
    return result
