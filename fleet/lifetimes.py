"""How long each certificate lasts, on the operator's machine and in the files of the hosts."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fleet.facts.certificates import Found, certificates_in
from fleet.findings import OPERATOR, Certificate
from fleet.hosts import Fleet, Host
from fleet.leaves import agent_leaf, leaves_of, pool_leaf, server_leaf
from fleet.pki import KINDS, authority_file, certificate_file
from fleet.platforms import (
    CLIENT_CA_FILE,
    POSTGRES_DIRECTORY,
    SERVER_CA_FILE,
    TRUSTED_CLIENTS_FILE,
    Pooler,
)
from fleet.pooler import agent_pair, certificates, pool_pair

_DAY_SECONDS = 86400


@dataclass(frozen=True)
class Held:
    """A file of certificates somewhere. own: the operator's file that it is to be a copy of."""

    place: str
    own: Path
    certificates: tuple[Found, ...]


def files_on(fleet: Fleet, machine: Host, place: Pooler | None) -> dict[str, Path]:
    """The certificates that a host holds by its roles: its file, and the operator's of the same.

    place: where PgBouncer is on the host, if it is a pooler.

    What PEM's CA issued has no copy there; the operator's path is then its name alone.
    """
    authority = fleet.certificate_authority
    from_pem = authority.client_issuer == "pem"
    files = {
        SERVER_CA_FILE: authority_file(authority, "server"),
        CLIENT_CA_FILE: authority_file(authority, "client"),
    }
    if machine in fleet.pem_server.hosts:
        own = certificate_file(authority, server_leaf(fleet, machine))
        files[f"{POSTGRES_DIRECTORY}/server.crt"] = own
    if place is not None:
        for file in certificates(fleet, machine, place):
            if isinstance(file.content, Path) and file.content.suffix == ".crt":
                files[file.path] = file.content
        if from_pem:
            files[pool_pair(place)[0]] = certificate_file(authority, pool_leaf(machine))
        if "pem" in authority.client_authorities:
            # With PEM's CA in it, it is no copy of a file of the operator's.
            files[TRUSTED_CLIENTS_FILE] = authority.path / "trusted-clients.crt"
    if machine in fleet.agent.hosts:
        own = certificate_file(authority, agent_leaf(fleet, machine))
        files[agent_pair(fleet)[0]] = own
    return files


def lifetimes(fleet: Fleet, on_hosts: Iterable[Held]) -> tuple[Certificate, ...]:
    """Every certificate that there is or should be, the soonest to end first."""
    settings, now = fleet.certificate_authority, datetime.now(UTC)
    authorities = {authority_file(settings, kind) for kind in KINDS}
    leaves = {
        certificate_file(settings, leaf)
        for machine in fleet.machines()
        for leaf in leaves_of(fleet, machine)
    }
    ours = {path: _of_operator(path) for path in authorities | leaves}
    places: dict[tuple[Path, str], list[str]] = defaultdict(list)
    seen: dict[str, Found] = {}
    for held in [*ours.values(), *on_hosts]:
        for one in held.certificates:
            seen[one["fingerprint"]] = one
            places[held.own, one["fingerprint"]].append(held.place)
        if not held.certificates:
            places[held.own, ""].append(held.place)
    found = []
    for (own, fingerprint), where in places.items():
        said = seen.get(fingerprint)
        left = (said["ends"] - now).total_seconds() / _DAY_SECONDS if said else None
        found.append(
            Certificate(
                name=str(own.relative_to(settings.path)).removesuffix(".crt"),
                authority=own in authorities,
                subject=said["subject"] if said else "",
                places=tuple(where),
                of_operator=own not in ours
                or any(fingerprint == kept["fingerprint"] for kept in ours[own].certificates),
                days_left=left,
                # As deploys/ca.py says it of an authority, and does it for the others.
                renew_days=settings.leaf_days if own in authorities else settings.renew_days,
            )
        )
    return tuple(sorted(found, key=_soonest_first))


def _of_operator(path: Path) -> Held:
    text = path.read_bytes() if path.is_file() else b""
    return Held(f"{OPERATOR}:{path}", path, tuple(certificates_in(text)))


def _soonest_first(one: Certificate) -> tuple[float, str]:
    return (float("-inf") if one.days_left is None else one.days_left, one.name)
