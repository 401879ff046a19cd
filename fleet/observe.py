"""Asking the database and the poolers about agents, from a deploy or from `fleet.status`.

Every host is asked over its ssh connection, so nothing else need be reachable from the operator.
"""

import time
from collections.abc import Iterable

import gevent.lock
import gevent.pool
from pyinfra import state

from fleet.agent_config import AgentConfig
from fleet.asking import ask, family_on, leave_out
from fleet.facts.files import FileBytes
from fleet.facts.pem import PemAgents, RegisteredAgents
from fleet.facts.pgbouncer import Client, PgBouncerClients
from fleet.heartbeats import Heartbeat, heartbeat, heartbeats
from fleet.hosts import Fleet, PemServer
from fleet.places import place_on
from fleet.platforms import PEM_AGENT_CONFIG, Pooler, postgres
from fleet.pooler import consoles

# Many agents wait for their heartbeats at once: one asks, all read the answer.
ANSWER_SECONDS = 1.0
_AT_ONCE = 20
_asking = gevent.lock.RLock()
_answer: tuple[float, PemAgents | None, dict[str, list[Client]]] = (0.0, None, {})


def observe(fleet: Fleet, unreachable: Iterable[str] = ()) -> dict[str, Heartbeat]:
    """Every agent of the inventory with its last heartbeat and the way it came, by name.

    Hosts that cannot be reached, and those already known to be `unreachable`, are left out of the
    picture: agents show no pooler that is among them. The hosts of agents are asked for their
    agent.cfg where pyinfra is connected to them.
    """
    leave_out(unreachable)
    found, clients = _seen(fleet)
    names = [host.name for host in fleet.agent.hosts if _connected(host.name)]
    asked = zip(names, gevent.pool.Pool(_AT_ONCE).imap(_config, names), strict=True)
    return heartbeats(fleet, found, clients, {name: config for name, config in asked if config})


def heartbeat_of(fleet: Fleet, agent: str, config: AgentConfig | None = None) -> Heartbeat:
    """One agent's heartbeat, by the id in its agent.cfg, or by its name.

    Raises KeyError when the inventory has no such agent.
    """
    hosts = {host.name: host for host in fleet.agent.hosts}
    return heartbeat(fleet, hosts[agent], *_seen(fleet), config)


def _seen(fleet: Fleet) -> tuple[PemAgents | None, dict[str, list[Client]]]:
    """What PEM's database and the poolers said within the last second."""
    global _answer  # noqa: PLW0603  one answer for all greenlets of a run
    with _asking:
        asked, found, clients = _answer
        if time.monotonic() - asked < ANSWER_SECONDS:
            return found, clients
        # Of several hosts the primary answers alone.
        answers = (_registered(fleet.pem_server, host.name) for host in fleet.pem_server.hosts)
        found = next((answer for answer in answers if answer is not None), None)
        clients = {
            host.name: _clients(fleet, host.name, place)
            for host in fleet.pgbouncer.hosts
            if (place := place_on(fleet.pgbouncer, host.name))
        }
        _answer = (time.monotonic(), found, clients)
        return found, clients


def _clients(fleet: Fleet, name: str, place: Pooler) -> list[Client]:
    """The clients of all processes of one pooler; none of those whose console does not answer."""
    port = fleet.pgbouncer.listen_port
    return [
        client
        for directory in consoles(fleet, place)
        for client in ask(name, PgBouncerClients, place.user, directory=directory, port=port) or ()
    ]


def _connected(name: str) -> bool:
    host = state.inventory.get_host(name)
    return host is not None and bool(host.connected)


def _config(name: str) -> AgentConfig | None:
    """The agent.cfg of a host; None when it has none, or does not answer."""
    content = ask(name, FileBytes, "root", path=PEM_AGENT_CONFIG)
    return None if content is None else AgentConfig(content)


def _registered(server: PemServer, name: str) -> PemAgents | None:
    """PEM's agents as one of its database hosts knows them; None from a standby."""
    family = family_on(name)
    if family is None:
        return None
    return ask(
        name,
        RegisteredAgents,
        postgres(family, server.vendor, server.postgres_version).user,
        port=server.port,
    )
