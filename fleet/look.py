"""Asking all hosts of a fleet at once, over ssh: nothing is written, nothing restarted.

Reads files of the hosts, systemd, psql and PgBouncer's consoles, each as root or as the service's
own OS user. A host that does not answer hides no other.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import gevent
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import DeployError, PyinfraError
from pyinfra.context import ctx_state

from fleet.asking import ask, family_on
from fleet.drift import drift
from fleet.facts.certificates import Certificates
from fleet.facts.database import Database, PostgresDatabase
from fleet.facts.pooling import PgBouncerPooling
from fleet.facts.postgres import PostgresServer
from fleet.facts.services import Service
from fleet.findings import Agent, Drift, Findings, Machine, Pooler, Server
from fleet.heartbeats import Heartbeat
from fleet.hosts import GROUPS, Fleet, Group, Host, sources
from fleet.lifetimes import Held, files_on, lifetimes
from fleet.observe import observe
from fleet.places import place_on
from fleet.platforms import PEM_AGENT_UNIT, Family, pgbouncer_advice, postgres
from fleet.platforms import Pooler as Place
from fleet.pooler import consoles
from fleet.processes import processes

CONNECT_SECONDS = 5
ASK_SECONDS = 30


@dataclass
class _Answers:
    """What one host said; what it did not say stays as it is here."""

    services: dict[str, bool] = field(default_factory=dict)
    certificates: list[Held] = field(default_factory=list)
    poolers: tuple[Pooler, ...] = ()
    server: Server | None = None
    blackouts: dict[str, str] = field(default_factory=dict)
    unanswered: str = ""


def look(fleet: Fleet, *, with_drift: bool = True) -> Findings:
    """One look at every host of the fleet.

    with_drift: plan every deploy too, to find what on the hosts is not as the inventory says.
    """
    state = _state(fleet)
    with ctx_state.use(state):
        with contextlib.suppress(PyinfraError):  # no host at all answers: each is told
            connect_all(state)
        up = {host.name for host in state.inventory.iter_activated_hosts() if host.connected}
        machines = {host.name: host for host in fleet.machines()}
        beats = gevent.spawn(observe, fleet, unreachable=machines.keys() - up)
        asked = {name: gevent.spawn(_ask, fleet, machines[name]) for name in machines if name in up}
        gevent.joinall([beats, *asked.values()], timeout=ASK_SECONDS)
        late = _Answers(unanswered=f"it did not answer within {ASK_SECONDS} s")
        answers = {name: one.get() if one.ready() else late for name, one in asked.items()}
        seen: dict[str, Heartbeat] = beats.get() if beats.ready() else {}
        for name, one in seen.items():
            if one.spoolers and name in answers:
                # It stays direct, and has none of our papers.
                answers[name].certificates = [
                    held for held in answers[name].certificates if held.certificates
                ]
        steps, unplanned = drift(state) if with_drift else (None, {})
        disconnect_all(state)
    unanswered = {name: one.unanswered for name, one in answers.items() if one.unanswered}
    return _findings(fleet, answers, seen, steps, {**unplanned, **unanswered})


def _findings(
    fleet: Fleet,
    answers: dict[str, _Answers],
    seen: dict[str, Heartbeat],
    steps: tuple[Drift, ...] | None,
    unanswered: dict[str, str],
) -> Findings:
    nobody = _Answers()
    blackouts = {key: kind for one in answers.values() for key, kind in one.blackouts.items()}
    return Findings(
        machines=tuple(
            Machine(
                host.name,
                host.address,
                tuple(role for role, one in fleet.memberships() if one == host),
                host.name in answers,
                answers.get(host.name, nobody).services,
            )
            for host in fleet.machines()
        ),
        certificates=lifetimes(
            fleet, [held for one in answers.values() for held in one.certificates]
        ),
        poolers=tuple(
            pooler
            for host in fleet.pgbouncer.hosts
            for pooler in answers.get(host.name, nobody).poolers
            or (Pooler(host.name, "", answers=False),)
        ),
        agents=tuple(
            _agent(seen[host.name], blackouts) for host in fleet.agent.hosts if host.name in seen
        ),
        servers=tuple(
            answers.get(host.name, nobody).server or Server(host.name, answers=False)
            for host in fleet.pem_server.hosts
        ),
        drift=steps,
        unanswered=unanswered,
    )


def _state(fleet: Fleet) -> State:
    """The fleet as pyinfra sees it: the groups of the inventory, and one try to connect."""
    groups: dict[str, Group] = {}
    for role in GROUPS:
        hosts, shared = fleet.group(role)
        groups[role] = ([(name, _one_try(data)) for name, data in hosts], shared)
    everyone = {name: data for hosts, _ in groups.values() for name, data in hosts}
    inventory = Inventory((list(everyone.items()), {}), **groups)
    return State(inventory, Config(CONNECT_TIMEOUT=CONNECT_SECONDS))


def _one_try(data: dict[str, Any]) -> dict[str, object]:
    """The ssh settings of a host, for whom a late answer is none.

    The kernel of a host that hangs still takes connections; what does not come then is sshd's
    banner.
    """
    limits = {"banner_timeout": CONNECT_SECONDS, "auth_timeout": CONNECT_SECONDS}
    paramiko = {**data.get("ssh_paramiko_connect_kwargs", {}), **limits}
    return {**data, "ssh_connect_retries": 0, "ssh_paramiko_connect_kwargs": paramiko}


def _ask(fleet: Fleet, machine: Host) -> _Answers:
    """Everything that one host is asked, but for its part in the heartbeats."""
    answers = _Answers()
    try:
        family = family_on(machine.name)
        if family is None:
            answers.unanswered = "it stopped answering"
            return answers
        place = None
        if machine in fleet.pgbouncer.hosts:
            place = place_on(fleet.pgbouncer, machine.name)
            if place is None:
                answers.unanswered = "it stopped answering"
                return answers
        files = files_on(fleet, machine, place)
        found = ask(machine.name, Certificates, "root", paths=tuple(files)) or {}
        answers.certificates = [
            Held(f"{machine.name}:{path}", own, tuple(found.get(path, ())))
            for path, own in files.items()
        ]
        for unit in _units(fleet, machine, family, place):
            state = ask(machine.name, Service, "root", unit=unit)
            answers.services[unit] = bool(state and state["active"])
        if place is not None:
            answers.poolers = _poolers(fleet, machine, place)
        if machine in fleet.pem_server.hosts:
            answers.server, answers.blackouts = _server(fleet, machine, family)
    except DeployError as error:
        answers.unanswered = str(error)
    return answers


def _units(fleet: Fleet, machine: Host, family: Family, place: Place | None) -> list[str]:
    """The services that the host's roles run."""
    server, units = fleet.pem_server, []
    if machine in server.hosts:
        units.append(postgres(family, server.vendor, server.postgres_version).unit)
    if place is not None:
        units += [process.unit for process in processes(fleet, place)]
    if machine in fleet.agent.hosts:
        units.append(PEM_AGENT_UNIT)
    return units


def _poolers(fleet: Fleet, machine: Host, place: Place) -> tuple[Pooler, ...]:
    found = []
    for directory in consoles(fleet, place):
        said = ask(
            machine.name,
            PgBouncerPooling,
            place.user,
            directory=directory,
            port=fleet.pgbouncer.listen_port,
        )
        if said is None:
            found.append(Pooler(machine.name, directory, answers=False))
            continue
        pooler = Pooler(
            machine.name,
            directory,
            answers=True,
            version=said["version"],
            clients=said["clients"],
            max_client_conn=said["max_client_conn"],
            server_connections=said["server_connections"],
            pool_size=said["pool_size"],
            waiting=said["waiting"],
            waiting_seconds=said["waiting_seconds"],
            paused=tuple(said["paused"]),
            advice=pgbouncer_advice(said["version"]),
        )
        found.append(pooler)
    return tuple(found)


def _server(fleet: Fleet, machine: Host, family: Family) -> tuple[Server | None, dict[str, str]]:
    """The server, and the agents whose alerts are off by their ids."""
    settings = fleet.pem_server
    user = postgres(family, settings.vendor, settings.postgres_version).user
    files = ask(machine.name, PostgresServer, user, port=settings.port)
    database: Database | None = ask(
        machine.name,
        PostgresDatabase,
        user,
        agent_user=settings.agent_user,
        poolers=sources(fleet.pgbouncer.hosts, settings.hosts),
        port=settings.port,
    )
    if files is None or database is None:
        return None, {}
    server = Server(
        machine.name,
        answers=True,
        version=database["version"],
        standby=database["standby"],
        connections=database["connections"],
        max_connections=database["max_connections"],
        hba_errors=tuple(database["hba_errors"]),
        ident_errors=tuple(database["ident_errors"]),
        unread=tuple(files["unread"]),
        pending_restart=tuple(files["pending_restart"]),
    )
    return server, database["blackouts"]


def _agent(seen: Heartbeat, blackouts: dict[str, str]) -> Agent:
    return Agent(
        name=seen.agent,
        id=seen.agent_id,
        way=seen.way,
        pooler=seen.pooler,
        heartbeat_age_seconds=seen.age_seconds,
        active=seen.active,
        blackout=blackouts.get(str(seen.agent_id), ""),
        well=seen.well,
        words=seen.sentence(),
    )
