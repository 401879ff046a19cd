"""PgBouncer: prove a configuration before it replaces the running one, and see that it runs."""

import shlex
from collections.abc import Callable, Generator

from pyinfra import host, logger
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.pgbouncer import PgBouncerConfig, PgBouncerVersion
from fleet.facts.poolers import PgBouncerUnits
from fleet.facts.services import ReplacedBinaries, Service
from fleet.operations.commands import fail, shell, tell
from fleet.platforms import Pooler, pgbouncer_advice
from fleet.processes import Process
from fleet.render import script

# How long a process may take to follow: to run on new files.
FOLLOW_SECONDS = 15


def proof(**values: str) -> str:
    """Shell that proves a candidate configuration on its host.

    The values are the variables that files/prove-pgbouncer.sh wants, named and explained there.
    """
    return f"(\n{script('prove-pgbouncer.sh', values)})"


@operation()
def unit_reads(place: Pooler, port: int) -> Generator[PyinfraCommand, None, None]:
    """Fail when the unit, installed a moment ago, reads another file than the one planned.

    Documents disagree about the names in EDB's packages. The next plan is made from the unit.
    A version that is older than advised is told.
    """
    unit = host.get_fact(PgBouncerUnits, port=port).get(place.unit)
    planned = f"{place.directory}/{place.ini}"
    if unit is None or (unit["ini"], unit["binary"]) == (planned, place.binary):
        tell(filter(None, [pgbouncer_advice(host.get_fact(PgBouncerVersion, binary=place.binary))]))
        host.noop(f"{place.unit} reads {planned}")
        return
    yield fail(
        f"{place.unit}, installed just now, runs {unit['binary']} {unit['ini']};"
        f" planned was {place.binary} {planned}. Nothing was configured yet."
        "\nHINT: run the same again, the plan is then made from what the unit says"
    )


@operation()
def runs_as_written(
    processes: tuple[Process, ...],
    user: str,
    port: int,
    settings: Callable[[], dict[str, str]],
    open_files: int,
    files: tuple[str, ...],
) -> Generator[PyinfraCommand, None, None]:
    """Reload those processes of PgBouncer that run on something else than what is written.

    user: the service's OS user, whom the console lets in by each process' socket.
    settings: gives those of the written ini, as SHOW CONFIG names them. `auth_query` ends with the
    fingerprint of all files: it tells which of certificates and HBA rules it read, which no SHOW
    does.
    A restart only where RELOAD cannot do it: another address, port or socket, or a console that
    does not answer where it should. One after the other, each seen to run before the next.
    files: what a process reads. It is reloaded, too, when one was put in its place since its last
        reload: somebody had edited it by hand, perhaps reloaded, and the fingerprint is as ever.
    open_files: the soft limit that each process must have at least.
    """
    expected = settings()
    steps = []
    for process in processes:
        running = host.get_fact(
            PgBouncerConfig,
            directory=process.socket_directory,
            port=port,
            _sudo=True,
            _sudo_user=user,
        )
        state = host.get_fact(Service, unit=process.unit, files=files)
        wanted = expected | {
            "unix_socket_dir": process.socket_directory,
            "peer_id": str(process.peer_id),
        }
        differing = [
            name
            for name, value in wanted.items()
            if name not in running or running[name]["value"] != value
        ]
        short = state["active"] and state["open_files"] < open_files
        if state["active"] and not differing and not short and not state["unread"]:
            continue
        frozen = [name for name in differing if name in running and not running[name]["reloadable"]]
        steps += [
            f"verb={'reload' if running and not frozen else 'restart'}",
            _raise_limit(process.unit, open_files) if short else "",
            _follow(process, "$verb"),
        ]
    _tell_of_upgrades(processes)
    if not steps:
        host.noop(f"{', '.join(process.unit for process in processes)}: runs as written")
        return
    yield shell("\n".join([_functions(user, port, expected), *steps]))


@operation()
def restarted(
    processes: tuple[Process, ...], user: str, port: int, settings: dict[str, str]
) -> Generator[PyinfraCommand, None, None]:
    """Restart the processes of a host, one after the other, each seen to run before the next.

    No query is cut and no client that leaves by itself sees an error: the unit itself sees to
    that (templates/pgbouncer-limits.conf.j2). Clients that stay are closed while they are idle.
    Refused when what is written is not what `settings` want: what would start then is not what
    the inventory says.
    """
    fingerprint = shlex.quote(settings["auth_query"])
    refusal = (
        "$ini is not what the inventory says; nothing was restarted"
        "\nHINT: make deploy INVENTORY=… DEPLOY=deploys/pgbouncer.py"
    )
    script = [
        _functions(user, port, settings),
        f"for ini in {shlex.join(process.ini for process in processes)}; do",
        f'    grep -qF {fingerprint} "$ini" || {{ echo "{refusal}" >&2; exit 1; }}',
        "done",
    ]
    yield shell("\n".join(script + [_follow(process, "restart") for process in processes]))


def _tell_of_upgrades(processes: tuple[Process, ...]) -> None:
    old = host.get_fact(ReplacedBinaries, units=tuple(process.unit for process in processes))
    if old:
        logger.warning(
            f"{host.print_prefix}{', '.join(old)}: the package was upgraded, and the old program"
            f" still runs\nHINT: make restart-poolers INVENTORY=… LIMIT={host.name}"
        )


def _functions(user: str, port: int, settings: dict[str, str]) -> str:
    """Shell: follow UNIT VERB SOCKET, which ends the script when the process does not follow."""
    return f"""\
follow() {{
    systemctl "$2" "$1" || {{ echo "HINT: journalctl -u $1 -n 50" >&2; exit 1; }}
    for try in $(seq {FOLLOW_SECONDS * 5}); do
        runuser -u {user} -- psql -XAtq -U pgbouncer -d pgbouncer -h "$3" -p {port} \\
            -c 'SHOW CONFIG' 2>/dev/null | grep -qF {shlex.quote(settings["auth_query"])} && return
        sleep 0.2
    done
    echo "$1 does not run on the new configuration {FOLLOW_SECONDS} s after its $2" >&2
    echo "HINT: journalctl -u $1 -n 50" >&2
    exit 1
}}"""


def _follow(process: Process, verb: str) -> str:
    socket = shlex.quote(process.socket_directory)
    return f"follow {shlex.quote(process.unit)} {verb} {socket}"


def _raise_limit(unit: str, open_files: int) -> str:
    """Shell: a new soft limit for the running process; a restart if its hard one is lower."""
    pid = f"$(systemctl show -p MainPID --value {shlex.quote(unit)})"
    return f"prlimit --pid {pid} --nofile={open_files}: 2>/dev/null || verb=restart"
