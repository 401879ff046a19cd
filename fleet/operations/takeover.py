"""What is on a pooler's host before us: it is told, kept, and makes place for ours."""

import shlex
from collections.abc import Generator, Iterable
from pathlib import PurePosixPath

from pyinfra import host
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.files import FileBytes, Inode
from fleet.facts.poolers import Holder, PgBouncerUnit, PgBouncerUnits, PortHolders
from fleet.facts.postgres import PostgresHolds, PostgresServer, literal
from fleet.facts.services import PresentUnits
from fleet.hosts import Fleet
from fleet.operations.commands import fail, shell, tell
from fleet.operations.files import BACKUP, SIGNATURE
from fleet.parts import without_lines
from fleet.platforms import Pooler
from fleet.processes import Process, processes, template_name, template_paths
from fleet.render import script
from fleet.takeover import Configuration, report
from fleet.values import POOL_USER

# How long our units may take to listen.
TAKE_OVER_SECONDS = 15


@operation()
def surveyed(fleet: Fleet, place: Pooler, ini: str) -> Generator[PyinfraCommand, None, None]:
    """Say what this deploy will replace, and refuse what it must not.

    That is a port that no PgBouncer of systemd holds, and another service that reads the very file
    that we write.
    ini: the text of ours, to compare with.
    """
    port = fleet.pgbouncer.listen_port
    services = host.get_fact(PgBouncerUnits, port=port)
    for one in host.get_fact(PortHolders, port=port):
        if one["program"] != "pgbouncer" or one["unit"] not in services:
            yield fail(_refusal(one, port))
            return
    written = {f"{place.directory}/{place.ini}", *(one.ini for one in processes(fleet, place))}
    for name, other in services.items():
        if not _is_ours(name, place) and other["ini"] in written and _is_used(other):
            yield fail(
                f"{name} runs PgBouncer on {other['ini']}, which is {place.unit}'s, and which this"
                " deploy writes; nothing was changed"
                f"\nHINT: systemctl disable --now {name}, or give it a file of its own"
            )
            return
    replaced = _configuration(f"{place.directory}/{place.ini}")
    unit = services.get(place.unit)
    # One that neither runs nor is to run is as its package brought it.
    if replaced and not replaced.is_ours and unit and _is_used(unit):
        tell(report(replaced, ini, fleet, passwords_stay=not _may_move(replaced, place.user)))
    for name, other in _others(place, port).items():
        found = _configuration(other["ini"])
        if found and not found.is_ours:
            tell(report(found, ini, fleet, passwords_stay=not _may_move(found, other["user"])))
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
    place: Pooler, port: int, keep: tuple[Process, ...]
) -> Generator[PyinfraCommand, None, None]:
    """Stop and disable what else is on our port, and start ours; if it fails, the other way.

    That is other PgBouncers, and processes of ours that are not wanted any more. All take no new
    clients from the moment on, and ours end as at any stop (files/drain-pgbouncer.sh). They go
    together, since one that stays keeps the port from those that come: nobody listens on this host
    for that time, and new clients go to the other pooler.

    What the others read is kept beside it, ending in `.before-pem-fleet`; their files of passwords
    are put aside under that name. Of another of ours, another vendor's, the private keys go.
    keep: the processes that are wanted.
    """
    others, units = _others(place, port), host.get_fact(PgBouncerUnits, port=port)
    wanted = [process.unit for process in keep]
    present = host.get_fact(PresentUnits, unit=place.unit, template=template_name(place))
    surplus = [name for name in present if name not in wanted]
    leaving = [*others, *surplus]
    if not leaving:
        host.noop(f"no other process than {', '.join(wanted)} is on port {port}")
        return
    values = {
        "units": " ".join(wanted),
        "port": str(port),
        "others": " ".join(leaving),
        "running": " ".join(name for name in leaving if name not in units or units[name]["active"]),
        "deadline_seconds": str(TAKE_OVER_SECONDS),
    }
    needed = _password_files(place, port, but=others)
    parts = [script("take-over-port.sh", values)]
    for one in others.values():
        found = _configuration(one["ini"])
        if found and not found.is_ours:
            moved = found.password_file not in needed and _may_move(found, one["user"])
            parts.append(_kept(found, passwords=moved))
        elif found and str(PurePosixPath(found.path).parent) != place.directory:
            parts.append(_without_keys(found.path))
    if surplus:
        parts += _removed(place, surplus, keep)
    yield shell("\n".join(parts))


@operation()
def passwords_put_aside(place: Pooler, port: int) -> Generator[PyinfraCommand, None, None]:
    """Put the password file of the configuration that ours replaced under another name.

    What was there before ours lies beside it, ending in `.before-pem-fleet`, or where it was, if
    several processes of ours read other files. A file that another PgBouncer of the host reads as
    well stays.
    """
    ini = f"{place.directory}/{place.ini}"
    now, unit = _configuration(ini), host.get_fact(PgBouncerUnits, port=port).get(place.unit)
    foreign = now is not None and not now.is_ours
    before = now if foreign else _configuration(ini + BACKUP)
    file = before.password_file if before else ""
    if not before or not file or host.get_fact(FileBytes, path=file) in (None, b""):
        host.noop("no file of passwords is left over")
        return
    if (foreign and unit and _is_used(unit)) or file in _password_files(place, port):
        host.noop(f"{file} is still read")
        return
    if not _may_move(before, place.user):
        host.noop(f"{file} is left as it is")
        return
    yield shell(_aside(before))


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
        if _is_ours(name, place):
            continue
        found = _configuration(unit["ini"]) if _is_used(unit) else None
        if name in holders or (found and found.port == port):
            others[name] = unit
    return others


def _is_ours(name: str, place: Pooler) -> bool:
    return name == place.unit or name.startswith(f"{template_name(place)}@")


def _is_used(unit: PgBouncerUnit) -> bool:
    """Whether it runs, or will at the next boot."""
    return unit["active"] or unit["enabled"]


def _configuration(path: str, **arguments: bool) -> Configuration | None:
    text = host.get_fact(FileBytes, path=path, **arguments) if path else None
    return None if text is None else Configuration(path, text.decode(errors="replace"))


def _password_files(place: Pooler, port: int, but: Iterable[str] = ()) -> set[str]:
    """The files of passwords that services of PgBouncer read, ours and those in `but` left out."""
    files = set()
    for name, unit in host.get_fact(PgBouncerUnits, port=port).items():
        if name != place.unit and name not in but and _is_used(unit):
            found = _configuration(unit["ini"])
            files.add(found.password_file if found else "")
    return files


def _may_move(found: Configuration, user: str) -> bool:
    """Whether root may put its file of passwords aside; a configuration can name any file.

    A regular file below the directory of the ini, of root's or of the service's own OS user.
    """
    file, directory = PurePosixPath(found.password_file), PurePosixPath(found.path).parent
    if directory not in file.parents or ".." in file.parts:
        return False
    there = host.get_fact(Inode, path=str(file))
    return there is None or (
        there["kind"].startswith("regular") and there["user"] in ("root", user)
    )


def _removed(place: Pooler, surplus: list[str], keep: tuple[Process, ...]) -> list[str]:
    """Shell: the files of processes of ours that are no more.

    Our template goes with its last instance. Of the package's own unit the ini stays.
    """
    ini, steps = f"{place.directory}/{place.ini}", []
    prefix = f"{template_name(place)}@"
    remove = [
        f"{ini.removesuffix('.ini')}-{name.removeprefix(prefix)}.ini"
        for name in surplus
        if name.startswith(prefix)
    ]
    if place.unit in surplus:
        # Who looks for the settings finds the way; a file of somebody else stays, and is kept.
        note = shlex.quote(f";; {SIGNATURE}. See {keep[0].ini} and its neighbours.")
        file, kept = shlex.quote(ini), shlex.quote(ini + BACKUP)
        steps.append(
            f"if head -n 1 {file} 2>/dev/null | grep -qF {shlex.quote(SIGNATURE)};"
            f" then echo {note} > {file}; elif [ -f {file} ] && ! cmp -s {file} {kept};"
            f" then cp -p --backup=numbered -T {file} {kept}; fi"
        )
    if keep[0].unit == place.unit:
        remove += template_paths(place)
    return [*steps, f"rm -rf {shlex.join(remove)}", "systemctl daemon-reload"]


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
    if passwords:
        lines.append(_aside(found))
    return "\n".join(lines)


def _aside(found: Configuration) -> str:
    """Shell: its file of passwords is renamed, for its owner alone; an empty one stays.

    Looked at once more, as others may write there: no link is followed out of the directory.
    """
    path = found.password_file
    file, directory = shlex.quote(path), shlex.quote(str(PurePosixPath(found.path).parent))
    return (
        f'case "$(readlink -f {file})" in "$(readlink -f {directory})"/*)'
        f" [ -L {file} ] || [ ! -s {file} ] || {{ chmod 600 {file}"
        f" && mv --backup=numbered -T {file} {shlex.quote(path + BACKUP)}; }};; esac"
    )
