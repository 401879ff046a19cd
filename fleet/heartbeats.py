"""Which agent beats, and which way: put together from the database, the poolers and agent.cfg."""

from collections.abc import Mapping
from dataclasses import dataclass

from fleet.agent_config import AgentConfig
from fleet.facts.pem import PemAgents, Registered
from fleet.facts.pgbouncer import Client
from fleet.findings import Way
from fleet.hosts import Fleet, Host

# PEM counts an agent as down 30 s after its last heartbeat: tolerance 15 s and interval 15 s.
FRESH_SECONDS = 30
# Ages come from two hosts, and the pooler's in whole seconds.
_CLOCK_SECONDS = 1


@dataclass(frozen=True)
class Heartbeat:
    """One agent as the fleet sees it.

    agent: its name in the inventory; display_name: its name in PEM, '' when PEM does not know it.
    agent_id: None when PEM does not know it, or did not answer (answered is False).
    age_seconds: of its last heartbeat, None before the first.
    pooler: the host that it is a client of, '' when of none; connected_seconds: since when.
    user: the role that it is logged in as, '' when it is not.
    direct: it is logged in to the server itself, by a role of its own from whichever address, or
    by the pooled one from its own address.
    spoolers: keys of its agent.cfg that are on and keep it direct; known only where its host was
    asked.
    answered_at: the moment of time.monotonic() up to which age_seconds counts.
    """

    agent: str
    agent_id: int | None
    active: bool
    age_seconds: float | None
    pooler: str
    user: str
    connected_seconds: float
    direct: bool
    display_name: str = ""
    spoolers: tuple[str, ...] = ()
    answered: bool = True
    answered_at: float = 0.0

    @property
    def way(self) -> Way:
        """The way by which it is logged in; "direct" also when it is so beside a pooler."""
        if self.direct:
            return "direct"
        return "pooled" if self.pooler else "none"

    @property
    def alive(self) -> bool:
        """By PEM's own measure: active, and its heartbeat is young, whichever way it came."""
        return self.active and self.age_seconds is not None and self.age_seconds <= FRESH_SECONDS

    @property
    def fresh(self) -> bool:
        """Alive, and by a heartbeat that came through the pooler."""
        return (
            self.alive
            and self.way == "pooled"
            and (self.age_seconds or 0.0) <= self.connected_seconds + _CLOCK_SECONDS
        )

    @property
    def well(self) -> bool:
        """Alive the way it should be: through a pooler, or directly when it has spoolers."""
        return self.alive and self.way == "direct" if self.spoolers else self.fresh

    def beat_after(self, moment: float) -> bool:
        """Whether a heartbeat came after a moment of time.monotonic(), whichever way."""
        return (
            self.active
            and self.age_seconds is not None
            and self.answered_at - self.age_seconds > moment
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
        return f"{registered}, last heartbeat {self.age_seconds:.0f} s ago, {self._login()}"

    def _login(self) -> str:
        why = f", as it must with {', '.join(self.spoolers)}" if self.spoolers else ""
        if self.way == "direct" and not self.pooler:
            return f"directly as {self.user}{why}"
        through = f"through {self.pooler} as {self.user}" if self.pooler else "through no pooler"
        return through + (", and directly" if self.direct else "")


def heartbeats(
    fleet: Fleet,
    found: PemAgents | None,
    clients: dict[str, list[Client]],
    configs: Mapping[str, AgentConfig] = {},
) -> dict[str, Heartbeat]:
    """Every agent of the inventory, by name. configs: the agent.cfg of those that were asked."""
    return {
        host.name: heartbeat(fleet, host, found, clients, configs.get(host.name))
        for host in fleet.agent.hosts
    }


def heartbeat(
    fleet: Fleet,
    host: Host,
    found: PemAgents | None,
    clients: dict[str, list[Client]],
    config: AgentConfig | None = None,
    answered_at: float = 0.0,
) -> Heartbeat:
    """One agent, from what PEM's database and the poolers that answered (by name) say.

    config: its agent.cfg, if its host was asked; the id there is the one that counts, otherwise it
    is known by its display name. An agent that is a client of two poolers (it moved, and the old
    one has not noticed) counts with the connection that is younger.
    """
    agent = _row(found, host, config)
    pooled = fleet.pem_server.agent_user
    seen = [
        (client["connected_seconds"], pooler, client["user"])
        for pooler, there in clients.items()
        for client in there
        if client["address"] == host.address and client["user"] == pooled
    ]
    connected, pooler, user = min(seen, default=(0.0, "", ""))
    around = _direct_user(fleet, host, found, agent, config)
    return Heartbeat(
        agent=host.name,
        agent_id=agent["id"] if agent else None,
        active=bool(agent and agent["active"]),
        age_seconds=agent["heartbeat_age_seconds"] if agent else None,
        pooler=pooler,
        user=user or around,
        connected_seconds=connected,
        direct=bool(around),
        display_name=agent["name"] if agent else "",
        spoolers=config.spoolers if config else (),
        answered=found is not None,
        answered_at=answered_at,
    )


def _row(found: PemAgents | None, host: Host, config: AgentConfig | None) -> Registered | None:
    """PEM's row of an agent: by the id in its agent.cfg, or by its display name."""
    rows = found["agents"] if found else []
    if config is not None and config.agent_id is not None:
        return next((row for row in rows if row["id"] == config.agent_id), None)
    named = [row for row in rows if row["name"] == host.name]
    # Of several rows with one name the active one counts, and of those the newest.
    return max(named, key=lambda row: (row["active"], row["id"]), default=None)


def _direct_user(
    fleet: Fleet,
    host: Host,
    found: PemAgents | None,
    agent: Registered | None,
    config: AgentConfig | None,
) -> str:
    """The role that an agent has a backend of its own as, on the server; '' when it has none."""
    pooled = fleet.pem_server.agent_user
    # A role of its own is nobody else's, from whichever address (through a load balancer, say).
    own = {f"agent{agent['id']}"} if agent else set()
    own |= {config.user} if config else set()
    own -= {pooled}
    # A pooler's own backends come from its host, also when there is an agent beside it.
    poolers = {pooler.address for pooler in fleet.pgbouncer.hosts}
    there = {
        backend["user"]
        for backend in (found["backends"] if found else [])
        if backend["user"] in own
        or (backend["user"] == pooled and backend["address"] in {host.address} - poolers)
    }
    return min(there, default="")
