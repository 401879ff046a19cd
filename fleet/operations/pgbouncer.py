"""PgBouncer: prove a configuration before it replaces the running one, and see that it runs."""

import shlex
from collections.abc import Callable, Generator

from pyinfra import host
from pyinfra import state as pyinfra_state
from pyinfra.api import operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.pgbouncer import PgBouncerConfig
from fleet.facts.poolers import PgBouncerUnits
from fleet.facts.services import Service
from fleet.operations.commands import fail, shell
from fleet.platforms import Pooler
from fleet.render import script

# How long the service may take to run on new files.
TAKE_OVER_SECONDS = 15


def proof(**values: str) -> str:
    """Shell that proves a candidate configuration on its host.

    The values are the variables that files/prove-pgbouncer.sh wants, named and explained there.
    """
    return f"(\n{script('prove-pgbouncer.sh', values)})"


def installed_place(row: Pooler, port: int) -> Pooler:
    """The row of platforms.py, with the paths that the host's own unit names where there is one."""
    unit = host.get_fact(PgBouncerUnits, port=port).get(row.unit)
    return row.as_installed(unit["ini"], unit["binary"]) if unit and unit["ini"] else row


@operation()
def unit_reads(place: Pooler, port: int) -> Generator[PyinfraCommand, None, None]:
    """Fail when the unit, installed a moment ago, reads another file than the one planned.

    Documents disagree about the names in EDB's packages. The next plan is made from the unit.
    """
    unit = host.get_fact(PgBouncerUnits, port=port).get(place.unit)
    planned = f"{place.directory}/{place.ini}"
    if unit is None or (unit["ini"], unit["binary"]) == (planned, place.binary):
        host.noop(f"{place.unit} reads {planned}")
        return
    yield fail(
        f"{place.unit}, installed just now, runs {unit['binary']} {unit['ini']};"
        f" planned was {place.binary} {planned}. Nothing was configured yet."
        "\nHINT: run the same again, the plan is then made from what the unit says"
    )


@operation()
def runs_as_written(
    unit: str,
    user: str,
    directory: str,
    port: int,
    settings: dict[str, str],
    open_files: int,
    rewritten: Callable[[], bool],
) -> Generator[PyinfraCommand, None, None]:
    """Reload PgBouncer when what runs differs from what is written.

    user: the service's OS user, whom the console lets in by the socket in `directory`.
    settings: of the written ini, as SHOW CONFIG names them. `auth_query` ends with the fingerprint
    of all files: it tells that PgBouncer read its settings after the last of them was written,
    which no SHOW tells of certificates and HBA rules.
    A restart only where RELOAD cannot do it: another address, port or socket, or a console that
    does not answer where it should.
    rewritten: whether this run put files back that the fingerprint cannot tell apart: somebody
        had edited them by hand, and perhaps reloaded.
    open_files: the soft limit that the process must have at least.
    """
    running = host.get_fact(
        PgBouncerConfig, directory=directory, port=port, _sudo=True, _sudo_user=user
    )
    state = host.get_fact(Service, unit=unit)
    differing = [
        name
        for name, value in settings.items()
        if name not in running or running[name]["value"] != value
    ]
    short = state["active"] and state["open_files"] < open_files
    restored = pyinfra_state.is_executing and rewritten()
    if state["active"] and not differing and not short and not restored:
        host.noop(f"{unit} runs as written")
        return
    frozen = [name for name in differing if name in running and not running[name]["reloadable"]]
    verb = "reload" if running and not frozen else "restart"
    unit, socket = shlex.quote(unit), shlex.quote(directory)
    text = f"""\
verb={verb}
{_raise_limit(unit, open_files) if short else ""}
systemctl $verb {unit} || exit
for try in $(seq {TAKE_OVER_SECONDS * 5}); do
    runuser -u {user} -- psql -XAtq -U pgbouncer -d pgbouncer -h {socket} -p {port} \\
        -c 'SHOW CONFIG' 2>/dev/null | grep -qF {shlex.quote(settings["auth_query"])} && exit 0
    sleep 0.2
done
echo "PgBouncer does not run on the new configuration {TAKE_OVER_SECONDS} s after its $verb" >&2
echo "HINT: journalctl -u {unit} -n 50" >&2
exit 1
"""
    yield shell(text)


def _raise_limit(unit: str, open_files: int) -> str:
    """Shell: a new soft limit for the running process; a restart if its hard one is lower."""
    pid = f"$(systemctl show -p MainPID --value {unit})"
    return f"prlimit --pid {pid} --nofile={open_files}: 2>/dev/null || verb=restart"
