"""The files of one pooler, as text: those that are written, and those that prove them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fleet.databases import Access
from fleet.hosts import Fleet, Host, PgBouncer, sources
from fleet.leaves import pool_leaf, server_leaf
from fleet.operations.files import CANDIDATE, File
from fleet.pki import KINDS, authority_file, certificate_file, key_file
from fleet.platforms import CLIENT_CA_FILE, SERVER_CA_FILE, Pooler
from fleet.processes import Process, processes
from fleet.render import render
from fleet.sizing import sizing

# Of IPv4 and IPv6.
EVERY_ADDRESS = "*"


@dataclass(frozen=True)
class Place:
    """Where an instance of PgBouncer reads and writes. suffix: of every file it reads.

    peers: all processes of the host, where there are several; peer_id: which of them it is.
    """

    directory: str
    suffix: str
    log_file: str
    pid_file: str
    socket_directory: str
    listen_addr: str
    listen_port: int
    peers: tuple[Process, ...]
    peer_id: int
    client_ca_file: str = CLIENT_CA_FILE
    server_ca_file: str = SERVER_CA_FILE


def configuration(fleet: Fleet, machine: Host, place: Pooler) -> tuple[File, ...]:
    """Every file of the pooler on this host, owned by its service user."""
    rules, auth_query = f"{place.directory}/hba.conf", _auth_query(fleet, machine, place)
    inis = {
        process.ini: _ini(fleet, _service(fleet, place, process), auth_query)
        for process in processes(fleet, place)
    }
    return (
        *_certificates(fleet, machine, place),
        File(rules, _hba(fleet, place), place.user, place.user, "600"),
        *(File(path, text, place.user, place.user, "640") for path, text in inis.items()),
    )


def consoles(fleet: Fleet, place: Pooler) -> tuple[str, ...]:
    """The directory of each process' Unix socket, by which its admin console is asked."""
    return tuple(process.socket_directory for process in processes(fleet, place))


def spare_ini(fleet: Fleet, machine: Host, place: Pooler) -> str:
    """The same configuration for a second instance on the candidate files.

    It listens on a socket in @SPARE@ alone, so it is in nobody's way.
    """
    spare = replace(
        _first(fleet, place),
        suffix=CANDIDATE,
        log_file="@SPARE@/log",
        pid_file="@SPARE@/pid",
        socket_directory="@SPARE@",
        listen_addr="",
        listen_port=6432,
    )
    return _ini(fleet, spare, _auth_query(fleet, machine, place))


def login(fleet: Fleet, place: Pooler) -> str:
    """PgBouncer's own way to the database, as a libpq connection string on the candidate files."""
    server = fleet.pem_server
    stem = f"{place.directory}/tls/pem_agent_pool"
    return (
        f"host={server.connect_name} port={server.port} dbname=pem user=pgbouncer"
        f" connect_timeout=10 sslmode=verify-full sslrootcert={SERVER_CA_FILE}"
        f" sslcert={stem}.crt{CANDIDATE} sslkey={stem}.key{CANDIDATE}"
    )


def runtime_settings(fleet: Fleet, machine: Host, place: Pooler) -> dict[str, str]:
    """What SHOW CONFIG shows, in every process, when the written configuration runs.

    auth_query carries the fingerprint of all files; the others are what a reload cannot change.
    """
    return {
        "auth_query": _auth_query(fleet, machine, place),
        "listen_addr": EVERY_ADDRESS,
        "listen_port": str(fleet.pgbouncer.listen_port),
        "so_reuseport": str(int(fleet.pgbouncer.processes > 1)),
    }


def preferred(pooler: PgBouncer, agent: Host) -> tuple[str, ...]:
    """All poolers' names, each agent beginning at another one.

    The agent's name decides (agent1, agent2, … alternate), so that a further agent moves no other.
    """
    names = tuple(host.name for host in pooler.hosts)
    start = sum(agent.name.encode()) % len(names)
    return names[start:] + names[:start]


def _service(fleet: Fleet, place: Pooler, process: Process) -> Place:
    return Place(
        directory=place.directory,
        suffix="",
        log_file=process.log_file,
        pid_file=process.pid_file,
        socket_directory=process.socket_directory,
        listen_addr=EVERY_ADDRESS,
        listen_port=fleet.pgbouncer.listen_port,
        peers=processes(fleet, place) if process.peer_id else (),
        peer_id=process.peer_id,
    )


def _first(fleet: Fleet, place: Pooler) -> Place:
    """The first process, where one stands for all."""
    return _service(fleet, place, processes(fleet, place)[0])


def _certificates(fleet: Fleet, machine: Host, place: Pooler) -> tuple[File, ...]:
    authority, files = fleet.certificate_authority, []
    for name, leaf in (
        ("server", server_leaf(fleet, machine)),
        ("pem_agent_pool", pool_leaf(machine)),
    ):
        for ending, path in (
            ("crt", certificate_file(authority, leaf)),
            ("key", key_file(authority, leaf)),
        ):
            target = f"{place.directory}/tls/{name}.{ending}"
            files.append(File(target, path, place.user, place.user, "600"))
    return tuple(files)


def _hba(fleet: Fleet, place: Pooler) -> str:
    pooler = fleet.pgbouncer
    networks = pooler.agent_networks or sources(fleet.agent.hosts, pooler.hosts)
    stats_networks = pooler.stats_networks or pooler.admin_networks if pooler.stats_user else ()
    console, *_ = consoles(fleet, place)
    return render(
        "hba.conf.j2",
        server=fleet.pem_server,
        admin_networks=pooler.admin_networks,
        agent_networks=networks,
        stats_user=pooler.stats_user,
        stats_networks=stats_networks,
        other_rules=tuple(_other_rules(fleet.access)) if fleet.access is not None else (),
        console=f"psql -h {console} -p {pooler.listen_port} -U pgbouncer pgbouncer",
    )


def _ini(fleet: Fleet, where: Place, auth_query: str) -> str:
    return render(
        "pgbouncer.ini.j2",
        server=fleet.pem_server,
        sizing=sizing(fleet.pgbouncer, fleet.agent, fleet.access),
        other_databases=fleet.access.pooled_databases if fleet.access is not None else (),
        users=fleet.access.pooled_users if fleet.access is not None else (),
        place=where,
        auth_query=auth_query,
        stats_user=fleet.pgbouncer.stats_user,
        extra=fleet.pgbouncer.extra,
    )


def _other_rules(access: Access) -> Iterator[str]:
    """Lines of the HBA file for other databases; PgBouncer knows no groups."""
    all_users = ",".join(user.name for user in access.pooled_users)
    all_databases = ",".join(database.name for database in access.pooled_databases)
    for rule in access.pooler_rules:
        databases = ",".join(rule.databases) or all_databases
        users = ",".join(rule.users) or ("all" if rule.method == "reject" else all_users)
        kind = "host" if rule.method == "reject" else "hostssl"
        for network in rule.networks:
            yield f"{kind} {databases} {users} {network} {rule.method}"


def _auth_query(fleet: Fleet, machine: Host, place: Pooler) -> str:
    return (
        "SELECT username, password FROM pem_fleet.get_pool_auth($1)"
        f" /* {_fingerprint(fleet, machine, place)} */"
    )


def _fingerprint(fleet: Fleet, machine: Host, place: Pooler) -> str:
    """A short hash over everything that PgBouncer reads: settings, rules, certificates and CAs."""
    authority = fleet.certificate_authority
    # Without the query, which is to carry the fingerprint.
    texts = (_ini(fleet, _first(fleet, place), auth_query=""), _hba(fleet, place))
    parts = [text.encode() for text in texts]
    paths = [file.content for file in _certificates(fleet, machine, place)]
    paths += [authority_file(authority, kind) for kind in KINDS]
    # Before deploys/ca.py has run there is nothing to read, and nothing to write either.
    parts += [path.read_bytes() for path in paths if isinstance(path, Path) and path.exists()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
