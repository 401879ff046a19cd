"""Asking the database and the poolers about agents, from a deploy or from `fleet.status`.

Every host is asked over its ssh connection, so nothing else need be reachable from the operator.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import gevent
import gevent.lock
import gevent.pool
from pyinfra import state

from fleet.agent_config import AgentConfig
from fleet.asking import TIMEOUT_SECONDS, ask, family_on, leave_out
from fleet.facts.files import FileBytes
from fleet.facts.pem import PemAgents, RegisteredAgents
from fleet.facts.pgbouncer import Client, PgBouncerClients
from fleet.heartbeats import Heartbeat, heartbeat, heartbeats
from fleet.hosts import Fleet, PemServer
from fleet.places import place_on
from fleet.platforms import PEM_AGENT_CONFIG, postgres
from fleet.pooler import consoles

# Many agents wait for their heartbeats at once: one asks, all read the answer.
ANSWER_SECONDS = 1.0
_AT_ONCE = 20
_asking = gevent.lock.RLock()


class Seen(NamedTuple):
    """What PEM's database said, and the poolers by name; None and absent: those that did not.

    answered_at: when the database did; until: how long this may be read. Both of time.monotonic().
    """

    found: PemAgents | None
    clients: dict[str, list[Client]]
    answered_at: float
    until: float


_last = Seen(None, {}, 0.0, 0.0)


def observe(fleet: Fleet, unreachable: Iterable[str] = ()) -> dict[str, Heartbeat]:
    """Every agent of the inventory with its last heartbeat and the way it came, by name.

    Hosts that cannot be reached, and those already known to be `unreachable`, are left out of the
    picture: agents show no pooler that is among them. The hosts of agents are asked for their
    agent.cfg where pyinfra is connected to them.
    """
    leave_out(unreachable)
    seen = _seen(fleet)
    names = [host.name for host in fleet.agent.hosts if _connected(host.name)]
    asked = zip(names, gevent.pool.Pool(_AT_ONCE).imap(_config, names), strict=True)
    configs = {name: config for name, config in asked if config}
    return heartbeats(fleet, seen.found, seen.clients, configs)


def heartbeat_of(fleet: Fleet, agent: str, config: AgentConfig | None = None) -> Heartbeat:
    """One agent's heartbeat, by the id in its agent.cfg, or by its name.

    Raises KeyError when the inventory has no such agent.
    """
    hosts = {host.name: host for host in fleet.agent.hosts}
    seen = _seen(fleet)
    return heartbeat(fleet, hosts[agent], seen.found, seen.clients, config, seen.answered_at)


def awaited(
    fleet: Fleet,
    agent: str,
    config: AgentConfig | None,
    holds: Callable[[Heartbeat], bool],
    deadline: float,
) -> Heartbeat:
    """The agent's heartbeat as soon as it `holds`, or the one seen last when time is up.

    deadline: of time.monotonic(). With a host that is frozen the last answer comes some ten
    seconds later.
    """
    while True:
        seen = heartbeat_of(fleet, agent, config)
        if holds(seen) or time.monotonic() > deadline:
            return seen
        gevent.sleep(0.5)


def _seen(fleet: Fleet) -> Seen:
    """What PEM's database and the poolers said within the last second."""
    global _last  # noqa: PLW0603  one answer for all greenlets of a run
    with _asking:
        if time.monotonic() < _last.until:
            return _last
        # All at once: the one that is frozen must not make old what the others say.
        poolers = {
            host.name: gevent.spawn(_clients, fleet, host.name) for host in fleet.pgbouncer.hosts
        }
        servers = [
            gevent.spawn(_registered, fleet.pem_server, host.name)
            for host in fleet.pem_server.hosts
        ]
        # Of several hosts the primary answers alone.
        answers = [answer for server in servers if (answer := server.get())]
        found, answered_at = answers[0] if answers else (None, 0.0)
        asked = {name: pooler.get() for name, pooler in poolers.items()}
        clients = {name: there for name, there in asked.items() if there is not None}
        _last = Seen(found, clients, answered_at, time.monotonic() + ANSWER_SECONDS)
        return _last


def _clients(fleet: Fleet, name: str) -> list[Client] | None:
    """The clients of all processes of one pooler, but of those whose console does not answer.

    None when the host cannot be reached.
    """
    # A frozen host is asked once, not again for each of its processes.
    deadline = time.monotonic() + TIMEOUT_SECONDS
    place, port = place_on(fleet.pgbouncer, name), fleet.pgbouncer.listen_port
    if place is None:
        return None
    found: list[Client] = []
    for directory in consoles(fleet, place):
        if time.monotonic() < deadline:
            asked = ask(name, PgBouncerClients, place.user, directory=directory, port=port)
            found += asked or ()
    return found


def _connected(name: str) -> bool:
    host = state.inventory.get_host(name)
    return host is not None and bool(host.connected)


def _config(name: str) -> AgentConfig | None:
    """The agent.cfg of a host; None when it has none, or does not answer."""
    content = ask(name, FileBytes, "root", path=PEM_AGENT_CONFIG)
    return None if content is None else AgentConfig(content)


def _registered(server: PemServer, name: str) -> tuple[PemAgents, float] | None:
    """PEM's agents as one of its database hosts knows them, and when; None from a standby."""
    family = family_on(name)
    if family is None:
        return None
    found = ask(
        name,
        RegisteredAgents,
        postgres(family, server.vendor, server.postgres_version).user,
        port=server.port,
    )
    return None if found is None else (found, time.monotonic())
