"""What is on a pooler's host before us: it is told, kept, and makes place for ours."""

import shlex
from collections.abc import Generator, Iterable

from pyinfra import host
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.files import FileBytes
from fleet.facts.poolers import Holder, PgBouncerUnit, PgBouncerUnits, PortHolders
from fleet.facts.postgres import PostgresHolds, PostgresServer, literal
from fleet.hosts import Fleet
from fleet.operations.commands import fail, shell, tell
from fleet.operations.files import BACKUP
from fleet.parts import without_lines
from fleet.platforms import Pooler
from fleet.render import script
from fleet.takeover import Configuration, report
from fleet.values import POOL_USER

# How long our units may take to listen.
TAKE_OVER_SECONDS = 15


@operation()
def surveyed(fleet: Fleet, place: Pooler, ini: str) -> Generator[PyinfraCommand, None, None]:
    """Say what this deploy will replace. A port that no PgBouncer of systemd holds is refused.

    ini: the text of ours, to compare with.
    """
    port = fleet.pgbouncer.listen_port
    services = host.get_fact(PgBouncerUnits, port=port)
    for one in host.get_fact(PortHolders, port=port):
        if one["program"] != "pgbouncer" or one["unit"] not in services:
            yield fail(_refusal(one, port))
            return
    replaced = _configuration(f"{place.directory}/{place.ini}")
    unit = services.get(place.unit)
    # One that neither runs nor is to run is as its package brought it.
    if replaced and not replaced.is_ours and unit and (unit["active"] or unit["enabled"]):
        tell(report(replaced, ini, fleet))
    for name, other in _others(place, port).items():
        found = _configuration(other["ini"])
        if found and not found.is_ours:
            tell(report(found, ini, fleet))
        if other["active"]:
            tell(
                [
                    f"{name} listens on port {port}; it is stopped and disabled as soon as"
                    f" {place.unit} is proven, and comes back if that does not run. Its clients"
                    " connect anew"
                ]
            )
    host.noop("seen")


@operation()
def taken_over(
    place: Pooler, port: int, units: tuple[str, ...]
) -> Generator[PyinfraCommand, None, None]:
    """Stop and disable other PgBouncers on our port, and start ours; if it fails, the other way.

    What the others read is kept beside it, ending in `.before-pem-fleet`; their files of passwords
    are put aside under that name. Of another of ours, another vendor's, the private keys go.
    units: ours.
    """
    others = _others(place, port)
    if not others:
        host.noop(f"no other PgBouncer is on port {port}")
        return
    values = {
        "units": " ".join(units),
        "port": str(port),
        "others": " ".join(others),
        "running": " ".join(name for name, one in others.items() if one["active"]),
        "deadline_seconds": str(TAKE_OVER_SECONDS),
    }
    found = [_configuration(one["ini"]) for one in others.values()]
    needed = _password_files(place, port, but=others)
    parts = [script("take-over-port.sh", values)]
    for one in found:
        if one and one.is_ours:
            parts.append(_without_keys(one.path))
        elif one:
            parts.append(_kept(one, passwords=one.password_file not in needed))
    yield shell("\n".join(parts))


@operation()
def passwords_put_aside(place: Pooler, port: int) -> Generator[PyinfraCommand, None, None]:
    """Put the password file of the configuration that ours replaced under another name.

    What was there before ours lies beside it, ending in `.before-pem-fleet`. A file that another
    PgBouncer of the host reads as well stays.
    """
    ini = f"{place.directory}/{place.ini}"
    before, now = _configuration(ini + BACKUP), _configuration(ini)
    file = before.password_file if before else ""
    if not before or not file or host.get_fact(FileBytes, path=file) in (None, b""):
        host.noop("no file of passwords is left over")
        return
    if not now or not now.is_ours or file in _password_files(place, port):
        host.noop(f"{file} is still read")
        return
    yield shell(_aside(file))


def _refusal(holder: Holder, port: int) -> str:
    """Why a port cannot be ours."""
    started_by, way_out = "which no service started", f"ps -fp {holder['pid']}"
    if holder["pid"] == 1:
        started_by, way_out = "for a socket unit", f"systemctl list-sockets | grep {port}"
    elif holder["unit"]:
        started_by = f"of {holder['unit']}"
        way_out = f"systemctl disable --now {holder['unit']}"
    return (
        f"port {port} is held by {holder['program']} (process {holder['pid']}, {started_by}),"
        " which is no PgBouncer that runs as a service of its own; nothing was changed"
        f"\nHINT: {way_out}, or PgBouncer(listen_port=…)"
    )


@operation()
def old_recipe_told(
    role: str, obsolete: tuple[str, ...], in_use_by: tuple[str, ...], port: int = 5432
) -> Generator[PyinfraCommand, None, None]:
    """Say what PEM's recipe of 7.11 to early 9 left on the server, and what becomes of it.

    role: the one that PgBouncer asks as; that recipe gave it a password. obsolete and in_use_by:
    as of `hba_block`.
    """
    server = host.get_fact(PostgresServer, port=port)
    text = host.get_fact(FileBytes, path=server["hba_file"]) if server else None
    said = []
    if server and text is not None and without_lines(text, obsolete) != text:
        rules, path = " and ".join(f"'{line}'" for line in obsolete), server["hba_file"]
        said = [
            f"{path} has {rules} of PEM's recipe of 7.11 to early 9. It is taken out: poolers come"
            f" by certificate. The file as it was is kept: {path}{BACKUP}"
        ]
        if in_use_by:
            said = [
                f"{path} keeps {rules} of PEM's recipe of 7.11 to early 9 as long as"
                f" {', '.join(in_use_by)} on this host comes in by it",
                "HINT: deploys/pgbouncer.py takes over a pooler of the inventory; another one"
                f" is yours to stop, systemctl disable --now {' '.join(in_use_by)}, once no agent"
                " uses it. Then deploys/pem_server.py again",
            ]
    has_password = f"SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = {literal(role)}"
    if host.get_fact(PostgresHolds, conditions=(has_password,), port=port) == [True]:
        said += [
            f"role {role} has a password, as in an old recipe; poolers no longer need it",
            f'HINT: once no old pooler runs, psql -c "ALTER ROLE {role} PASSWORD NULL"',
        ]
    tell(said)
    host.noop("seen")
    yield from ()


def password_poolers(port: int) -> tuple[str, ...]:
    """Running services of this host that are poolers of PEM's recipe of 7.11 to early 9."""
    running = []
    for name, unit in host.get_fact(PgBouncerUnits, port=port, _sudo=True).items():
        found = _configuration(unit["ini"], _sudo=True) if unit["active"] else None
        if found and found.is_password_recipe:
            running.append(name)
    return tuple(running)


def _others(place: Pooler, port: int) -> dict[str, PgBouncerUnit]:
    """Services of PgBouncer beside ours that hold the port, or would at the next boot."""
    holders = {one["unit"] for one in host.get_fact(PortHolders, port=port)}
    others = {}
    for name, unit in host.get_fact(PgBouncerUnits, port=port).items():
        if name == place.unit or name.startswith(f"{place.unit}@"):
            continue
        found = _configuration(unit["ini"]) if unit["active"] or unit["enabled"] else None
        if name in holders or (found and found.port == port):
            others[name] = unit
    return others


def _configuration(path: str, **arguments: bool) -> Configuration | None:
    text = host.get_fact(FileBytes, path=path, **arguments) if path else None
    return None if text is None else Configuration(path, text.decode(errors="replace"))


def _password_files(place: Pooler, port: int, but: Iterable[str] = ()) -> set[str]:
    """The files of passwords that services of PgBouncer read, ours and those in `but` left out."""
    files = set()
    for name, unit in host.get_fact(PgBouncerUnits, port=port).items():
        if name != place.unit and name not in but and (unit["active"] or unit["enabled"]):
            found = _configuration(unit["ini"])
            files.add(found.password_file if found else "")
    return files


def _without_keys(ini: str) -> str:
    """Shell: the private keys of a pooler of ours that is no more."""
    directory = ini.rpartition("/")[0]
    names = ("server.key", f"{POOL_USER}.key")
    return shlex.join(["rm", "-f", *(f"{directory}/tls/{name}" for name in names)])


def _kept(found: Configuration, *, passwords: bool) -> str:
    """Shell: copies of what a configuration is made of; its file of passwords is renamed."""
    lines = [
        f"[ ! -f {path} ] || [ -e {path}{BACKUP} ] || cp -p {path} {path}{BACKUP}"
        for path in map(shlex.quote, found.files)
    ]
    if passwords and found.password_file.startswith("/"):
        lines.append(_aside(found.password_file))
    return "\n".join(lines)


def _aside(path: str) -> str:
    """Shell: a file that holds passwords is renamed, for its owner alone; an empty one stays."""
    file = shlex.quote(path)
    return (
        f"[ ! -s {file} ] || {{ chmod 600 {file}"
        f" && mv --backup=numbered -T {file} {shlex.quote(path + BACKUP)}; }}"
    )
