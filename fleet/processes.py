"""The PgBouncer processes of one host: one, or several that listen on the same port.

One runs as the package's own unit. Several run as instances of a template unit of ours, as a
process uses one CPU core at most. Each has an ini of its own, which differs from the others' in
four lines: PgBouncer's %include begins the settings anew, so that they cannot share one.
"""

from dataclasses import dataclass

from fleet import ROOT
from fleet.hosts import Fleet
from fleet.operations.files import File
from fleet.platforms import Pooler
from fleet.render import render
from fleet.sizing import sizing

# systemd's own default for the hard limit.
HARD_OPEN_FILES = 524288
# What a query may still take, once its process is to stop. Then it is cut.
LAST_QUERY_SECONDS = 300
UNITS = "/etc/systemd/system"


@dataclass(frozen=True)
class Process:
    """One PgBouncer process: its unit, the ini that it reads, and what no other may share.

    peer_id: by which the processes of a host know each other, from 1; 0 where there is only one.
    """

    unit: str
    ini: str
    socket_directory: str
    pid_file: str
    log_file: str
    peer_id: int = 0


def processes(fleet: Fleet, place: Pooler) -> tuple[Process, ...]:
    """The processes that a host is to have, in the order in which they are restarted."""
    ini, count = f"{place.directory}/{place.ini}", fleet.pgbouncer.processes
    if count == 1:
        return (Process(place.unit, ini, place.run_directory, place.pid_file, place.log_file),)
    stem, log = ini.removesuffix(".ini"), place.log_file.removesuffix(".log")
    name = template_name(place)
    return tuple(
        Process(
            unit=f"{name}@{number}",
            ini=f"{stem}-{number}.ini",
            socket_directory=f"/run/{name}-{number}",
            pid_file=f"/run/{name}-{number}/pgbouncer.pid",
            log_file=f"{log}-{number}.log",
            peer_id=number,
        )
        for number in range(1, count + 1)
    )


def template_name(place: Pooler) -> str:
    """The name of our template unit, before the @: `pgbouncer@` itself may be somebody else's."""
    return f"pem-fleet-{place.unit}"


def drop_in_directory(fleet: Fleet, place: Pooler) -> str:
    """Where our settings of the unit are: the package's, or the template of several processes."""
    return f"{UNITS}/{_unit_name(fleet, place)}.service.d"


def template_paths(place: Pooler) -> tuple[str, ...]:
    """The template unit of several processes and its settings, for a host that has one process."""
    template = f"{UNITS}/{template_name(place)}@.service"
    return template, f"{template}.d"


def unit_files(fleet: Fleet, place: Pooler) -> tuple[File, ...]:
    """What systemd reads: limits, how a process stops, and the template of several processes."""
    several = fleet.pgbouncer.processes > 1
    open_files = sizing(fleet.pgbouncer, fleet.agent, fleet.access).open_files
    settings = render(
        "pgbouncer-limits.conf.j2",
        place=place,
        open_files=open_files,
        hard_open_files=max(HARD_OPEN_FILES, open_files),
        drain_seconds=(drain_seconds := fleet.pgbouncer.drain_seconds),
        stop_seconds=drain_seconds + LAST_QUERY_SECONDS,
        socket_directory=f"/run/{template_name(place)}-%i" if several else place.run_directory,
        port=fleet.pgbouncer.listen_port,
    )
    drain = (ROOT / "files" / "drain-pgbouncer.sh").read_text()
    files = [
        File(f"{place.directory}/drain.sh", drain),
        File(f"{drop_in_directory(fleet, place)}/pem-fleet.conf", settings),
    ]
    if several:
        stem = f"{place.directory}/{place.ini}".removesuffix(".ini")
        unit = render(
            "pgbouncer-process.service.j2", place=place, name=template_name(place), stem=stem
        )
        files.append(File(f"{UNITS}/{_unit_name(fleet, place)}.service", unit))
    return tuple(files)


def _unit_name(fleet: Fleet, place: Pooler) -> str:
    return f"{template_name(place)}@" if fleet.pgbouncer.processes > 1 else place.unit
