"""PgBouncer: prove a configuration before it replaces the running one, and see that it runs."""

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet import ROOT
from fleet.facts.pgbouncer import PgBouncerConfig
from fleet.facts.services import Service

# How long the service may take to run on new files.
TAKE_OVER_SECONDS = 15


def proof(**values: str) -> str:
    """Shell that proves a candidate configuration on its host.

    The values are the variables that files/prove-pgbouncer.sh wants, named and explained there.
    """
    script = (ROOT / "files" / "prove-pgbouncer.sh").read_text()
    settings = "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())
    return f"(\n{settings}\n{script}\n)"


@operation()
def runs_as_written(
    unit: str,
    user: str,
    directory: str,
    port: int,
    settings: dict[str, str],
    open_files: int,
) -> Generator[PyinfraCommand, None, None]:
    """Reload PgBouncer when what runs differs from what is written.

    user: the service's OS user, whom the console lets in by the socket in `directory`.
    settings: of the written ini, as SHOW CONFIG names them. `auth_query` ends with the fingerprint
    of all files, so it tells whether certificates and HBA rules were read, which no SHOW does.
    A restart only where RELOAD cannot do it: another address, port or socket.
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
    if state["active"] and not differing and not short:
        host.noop(f"{unit} runs as written")
        return
    frozen = [name for name in differing if name in running and not running[name]["reloadable"]]
    verb = "reload" if running and not frozen else "restart"
    unit, socket = shlex.quote(unit), shlex.quote(directory)
    script = f"""\
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
    yield StringCommand("sh -s", _stdin=script)


def _raise_limit(unit: str, open_files: int) -> str:
    """Shell: a new soft limit for the running process; a restart if its hard one is lower."""
    pid = f"$(systemctl show -p MainPID --value {unit})"
    return f"prlimit --pid {pid} --nofile={open_files}: 2>/dev/null || verb=restart"
