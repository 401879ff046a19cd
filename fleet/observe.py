"""Asking the database and the poolers about agents, from a deploy or from `fleet.status`.

Every host is asked over its ssh connection, so nothing else need be reachable from the operator.
"""

import time
from collections.abc import Iterable
from typing import TypeVar

import gevent.lock
from paramiko import SSHException
from pyinfra import logger, state
from pyinfra.api import FactBase
from pyinfra.api.exceptions import ConnectError

from fleet.facts.pem import PemAgents, RegisteredAgents
from fleet.facts.pgbouncer import PgBouncerClients
from fleet.heartbeats import Heartbeat, heartbeats
from fleet.hosts import Fleet, PemServer
from fleet.platforms import Family, family_of, pgbouncer, postgres

Answer = TypeVar("Answer")

# Many agents wait for their heartbeats at once: one asks, all read the answer.
_ANSWER_SECONDS = 1.0
_TIMEOUT_SECONDS = 10
_asking = gevent.lock.RLock()
_answer: tuple[float, dict[str, Heartbeat]] = (0.0, {})
_families: dict[str, Family] = {}
_unreachable: set[str] = set()


def observe(fleet: Fleet, unreachable: Iterable[str] = ()) -> dict[str, Heartbeat]:
    """Every agent of the inventory with its last heartbeat and the way it came, by name.

    Hosts that cannot be reached, and those already known to be `unreachable`, are left out of the
    picture: their agents show no pooler.
    """
    global _answer  # noqa: PLW0603  one answer for all greenlets of a run
    _unreachable.update(unreachable)
    with _asking:
        asked, seen = _answer
        if time.monotonic() - asked < _ANSWER_SECONDS:
            return seen
        server, pooler = fleet.pem_server, fleet.pgbouncer
        # Of several hosts the primary answers alone.
        answers = (_registered(server, host.name) for host in server.hosts)
        found = next((answer for answer in answers if answer is not None), None)
        clients = {}
        for host in pooler.hosts:
            if family := family_on(host.name):
                place = pgbouncer(family, pooler.vendor, pooler.version)
                clients[host.name] = (
                    ask(
                        host.name,
                        PgBouncerClients,
                        place.user,
                        directory=place.run_directory,
                        port=pooler.listen_port,
                    )
                    or []
                )
        seen = heartbeats(fleet, found, clients)
        _answer = (time.monotonic(), seen)
        return seen


def heartbeat_of(fleet: Fleet, agent: str) -> Heartbeat:
    """One agent's heartbeat. Raises KeyError when the inventory has no such agent."""
    return observe(fleet)[agent]


def _registered(server: PemServer, name: str) -> PemAgents | None:
    """PEM's agents as one of its database hosts knows them; None from a standby."""
    family = family_on(name)
    if family is None:
        return None
    return ask(
        name,
        RegisteredAgents,
        postgres(family, server.vendor, server.postgres_version).user,
        agent_user=server.agent_user,
        port=server.port,
    )


def family_on(name: str) -> Family | None:
    """The OS family of a host, asked once; None when it cannot be reached."""
    if name not in _families and name not in _unreachable:
        try:
            _families[name] = family_of(state.inventory.get_host(name))
        except (ConnectError, SSHException, OSError) as error:
            _unreachable.add(name)
            logger.warning(f"{name} cannot be reached: {error}")
    return _families.get(name)


def ask(name: str, fact: type[FactBase[Answer]], user: str, **arguments: object) -> Answer | None:
    """What a fact says on another host, or None when that host does not answer."""
    try:
        return state.inventory.get_host(name).get_fact(
            fact,
            _sudo=True,
            _sudo_user=user,
            _timeout=_TIMEOUT_SECONDS,
            _ignore_errors=True,
            **arguments,
        )
    except (ConnectError, SSHException, OSError) as error:
        logger.warning(f"{name} does not answer: {error}")
        return None
