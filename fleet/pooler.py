"""The files of one pooler, as text: those that are written, and those that prove them."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pyinfra import host

from fleet.databases import Access
from fleet.facts.authority import KeyPairs
from fleet.hosts import Fleet, Host, PgBouncer, sources
from fleet.keystore import PkiError
from fleet.leaves import pool_leaf, server_leaf
from fleet.operations.files import CANDIDATE, ISSUED, File, OnHost
from fleet.pem_authority import trusted_clients
from fleet.pki import authority_file, certificate_file, key_file
from fleet.platforms import (
    AGENT_DIRECTORY,
    PEM_CERTIFICATES,
    SERVER_CA_FILE,
    TRUSTED_CLIENTS_FILE,
    Pooler,
)
from fleet.processes import Process, processes
from fleet.render import render
from fleet.sizing import sizing
from fleet.values import POOL_USER

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
    trusted_clients_file: str = TRUSTED_CLIENTS_FILE


def configuration(fleet: Fleet, machine: Host, place: Pooler) -> tuple[File, ...]:
    """Every file of the pooler on this host, owned by its service user.

    Raises PkiError when a CA that is trusted is not there; PEM's is asked of its server.
    """
    rules, inis = f"{place.directory}/hba.conf", written_inis(fleet, machine, place)
    return (
        *certificates(fleet, machine, place),
        File(TRUSTED_CLIENTS_FILE, trusted_clients(fleet)),
        File(rules, _hba(fleet, place), place.user, place.user, "600"),
        *(File(path, text, place.user, place.user, "640") for path, text in inis.items()),
    )


def read_files(fleet: Fleet, machine: Host, place: Pooler) -> tuple[str, ...]:
    """The path of every file that the processes read, in any order."""
    pairs = (file.path for file in certificates(fleet, machine, place))
    inis = (process.ini for process in processes(fleet, place))
    anchors = (SERVER_CA_FILE, TRUSTED_CLIENTS_FILE)
    return (*pairs, *anchors, f"{place.directory}/hba.conf", *inis)


def written_inis(fleet: Fleet, machine: Host, place: Pooler) -> dict[str, str]:
    """The text of each process' ini, by its path."""
    auth_query = _auth_query(fleet, machine, place)
    return {
        process.ini: _ini(fleet, _service(fleet, place, process), auth_query)
        for process in processes(fleet, place)
    }


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
        trusted_clients_file=TRUSTED_CLIENTS_FILE + CANDIDATE,
    )
    return _ini(fleet, spare, _auth_query(fleet, machine, place))


def login(fleet: Fleet, place: Pooler) -> str:
    """PgBouncer's own way to the database, as a libpq connection string on the candidate files."""
    server = fleet.pem_server
    certificate, key = pool_pair(place)
    return (
        f"host={server.connect_name} port={server.port} dbname=pem user=pgbouncer"
        f" connect_timeout=10 sslmode=verify-full sslrootcert={SERVER_CA_FILE}"
        f" sslcert={certificate}{CANDIDATE} sslkey={key}{CANDIDATE}"
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


def pool_pair(place: Pooler) -> tuple[str, str]:
    """Where the pooler's certificate for the database is on its host, and its key."""
    stem = f"{place.directory}/tls/{POOL_USER}"
    return f"{stem}.crt", f"{stem}.key"


def agent_pair(fleet: Fleet) -> tuple[str, str]:
    """Where an agent's certificate for the poolers is on its host, and its key."""
    from_pem = fleet.certificate_authority.client_issuer == "pem"
    stem = f"{PEM_CERTIFICATES if from_pem else AGENT_DIRECTORY}/{fleet.pem_server.agent_user}"
    return f"{stem}.crt", f"{stem}.key"


def certificates(fleet: Fleet, machine: Host, place: Pooler) -> tuple[File, ...]:
    """The pooler's two certificates, as a server and as the database's client, and their keys."""
    authority, server = fleet.certificate_authority, server_leaf(fleet, machine)
    certificate, key = pool_pair(place)
    contents: dict[str, Path | OnHost] = {
        f"{place.directory}/tls/server.crt": certificate_file(authority, server),
        f"{place.directory}/tls/server.key": key_file(authority, server),
        certificate: certificate_file(authority, pool_leaf(machine)),
        key: key_file(authority, pool_leaf(machine)),
    }
    if authority.client_issuer == "pem":
        contents |= {certificate: OnHost(), key: OnHost()}
    return tuple(
        File(path, content, place.user, place.user, "600") for path, content in contents.items()
    )


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
        server_ca_file=SERVER_CA_FILE,
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
    # Without the query, which is to carry the fingerprint.
    texts = [_ini(fleet, _first(fleet, place), auth_query=""), _hba(fleet, place)]
    # Before deploys/ca.py has run there is nothing to read, and nothing to write either.
    with suppress(PkiError):
        texts.append(trusted_clients(fleet))
    if fleet.certificate_authority.client_issuer == "pem":
        texts.append(_certificate_on_host(place))
    paths = [file.content for file in certificates(fleet, machine, place)]
    paths.append(authority_file(fleet.certificate_authority, "server"))
    parts = [text.encode() for text in texts]
    parts += [path.read_bytes() for path in paths if isinstance(path, Path) and path.exists()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _certificate_on_host(place: Pooler) -> str:
    """The pooler's certificate as it will be: the one that waits for its place, or the present."""
    certificate, key = pool_pair(place)
    new = (certificate + ISSUED, key + ISSUED)
    held = host.get_fact(KeyPairs, pairs=((certificate, key), new))
    waits = held.get(new[0])
    # A certificate whose key does not wait beside it takes nobody's place.
    found = waits if waits and waits["key_matches"] else held.get(certificate)
    return found["certificate"].strip() if found else ""
