"""An agent that is there already: onto the poolers on trial, and back to where it was.

The host's part is files/move-agent.sh. A trial that no run ends is ended by a timer of the host.
"""

import base64
import hashlib
import shlex
import time
from collections.abc import Generator
from typing import Literal

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, operation
from pyinfra.api.command import PyinfraCommand

from fleet import ROOT
from fleet.agent_config import AgentConfig
from fleet.facts.files import FileBytes
from fleet.facts.pem import AgentBackups, LastLine
from fleet.heartbeats import Heartbeat
from fleet.hosts import Fleet
from fleet.observe import ANSWER_SECONDS, awaited, heartbeat_of
from fleet.operations.commands import fail, shell, tell
from fleet.operations.files import File
from fleet.operations.pem import agent_config, verification
from fleet.platforms import AGENT_DIRECTORY, AGENT_DROP_IN, AGENT_TRIAL, PEM_AGENT_CONFIG

SCRIPT = f"{AGENT_DIRECTORY}/move-agent.sh"
TRIAL = f"{AGENT_DIRECTORY}/trial"
CANDIDATE = f"{AGENT_DIRECTORY}/candidate"
# From the start of the trial, so that with the way back it beats directly again within 60 s.
# An agent beats every 15 s: it has two chances. The host's own timer follows 5 s later.
TRIAL_SECONDS = 35
RETURN_SECONDS = 60

TOOLS = (
    File(SCRIPT, ROOT / "files" / "move-agent.sh", mode="600"),
    *(
        File(f"/etc/systemd/system/{AGENT_TRIAL}.{kind}", ROOT / "files" / f"{AGENT_TRIAL}.{kind}")
        for kind in ("service", "timer")
    ),
)

# new: to be registered. direct: to be moved. spooling: to be left where it is.
Standing = Literal["new", "pooled", "direct", "spooling"]


def standing(fleet: Fleet) -> Standing:
    """How this host's agent stands before the deploy has changed anything."""
    config = agent_config()
    if host.get_fact(FileBytes, path=TRIAL, _sudo=True) is not None:
        return "direct"
    if config is None or config.agent_id is None:
        return "new"
    if config.spoolers:
        return "spooling"
    known = heartbeat_of(fleet, host.name, config)
    if known.answered and not known.active:
        return "new"
    return "pooled" if config.goes_through(fleet) else "direct"


@operation()
def stays_direct(fleet: Fleet) -> Generator[PyinfraCommand, None, None]:
    """Leave an agent with spoolers alone. One that is behind the poolers fails its host."""
    config = agent_config()
    spoolers = ", ".join(config.spoolers) if config else ""
    if config is None or not config.goes_through(fleet):
        tell([f"the agent stays direct: LISTEN of {spoolers} does not pass a transaction pool"])
        host.noop("left as it is")
        return
    yield fail(
        f"{PEM_AGENT_CONFIG}: {spoolers} needs LISTEN, which does not pass the poolers that"
        f" agent {config.agent_id} goes through; nothing on this host was changed"
        f"\nHINT: make agent-rollback INVENTORY=… HOST={host.name}, or set it to false there"
    )


@operation()
def back_from_a_cut_off_trial() -> Generator[PyinfraCommand, None, None]:
    """Put the former agent.cfg back when a run was cut off before it saw the agent beat."""
    if host.get_fact(FileBytes, path=TRIAL) is None:
        host.noop("no trial is under way")
        return
    yield shell(f"sh {SCRIPT} back")


@operation()
def moved(
    fleet: Fleet, values: dict[str, str], unit_settings: str
) -> Generator[PyinfraCommand, None, None]:
    """Move a direct agent onto the poolers; its id, and all else in its agent.cfg, stays.

    values: the keys of agent.cfg that change. unit_settings: the drop-in of its unit.
    PEM's own check tries the new agent.cfg before the agent is interrupted. Then the agent is on
    trial: without a new heartbeat through a pooler it is put back, and the host fails.
    """
    config = agent_config()
    if config is None or config.goes_through(fleet):
        host.noop("there is none" if config is None else "it goes through the poolers")
        return
    if config.connection_string:
        yield fail(
            f"{PEM_AGENT_CONFIG}: {config.connection_string} leads the agent around pem_host, so"
            " it cannot be moved; nothing was changed"
            "\nHINT: write its parts as pem_host, pem_port and pem_ssl_mode, and take it out"
        )
        return
    yield shell(_preflight(config.but(values), unit_settings))
    started = time.monotonic()
    read = hashlib.sha256(config.content).hexdigest()
    yield shell(f"sh {SCRIPT} try {CANDIDATE} {read}", writes=(PEM_AGENT_CONFIG, AGENT_DROP_IN))
    restarted = time.monotonic()
    proven: list[bool] = []

    def wait(state: State, host: Host) -> bool:  # noqa: ARG001  pyinfra passes both
        def holds(seen: Heartbeat) -> bool:
            return came_through(seen, restarted)

        seen = awaited(fleet, host.name, config, holds, started + TRIAL_SECONDS)
        proven[:] = [holds(seen)]
        if not proven[0]:
            logger.error(
                f"{host.print_prefix}no heartbeat of agent {config.agent_id} came through a pooler"
                f" within {TRIAL_SECONDS} s: {seen.sentence()}{_last_words(host, config)}"
            )
        return True

    yield FunctionCommand(wait, (), {})
    if any(proven):
        yield shell(f"sh {SCRIPT} keep")
        return
    yield shell(f"sh {SCRIPT} back")
    yield _returned(fleet, config, "the former agent.cfg is back", success=False)


@operation()
def returned(fleet: Fleet) -> Generator[PyinfraCommand, None, None]:
    """Put a moved agent back on its newest backup, and see it beat directly."""
    config, backups = agent_config(), host.get_fact(AgentBackups, directory=AGENT_DIRECTORY)
    cut_off = host.get_fact(FileBytes, path=TRIAL) is not None
    if not cut_off and config is not None and not config.goes_through(fleet):
        host.noop(f"agent {config.agent_id} is direct already")
        return
    if not backups:
        yield fail(
            f"{AGENT_DIRECTORY}/backups holds nothing: this agent was never moved, so there is"
            " nothing to go back to; nothing was changed"
            "\nHINT: make status INVENTORY=… shows the way of each agent"
        )
        return
    yield shell(f"sh {SCRIPT} back" + ("" if cut_off else f" {shlex.quote(backups[-1])}"))
    config = agent_config()
    if config is not None:
        said = f"the backup {backups[-1]} is in place"
        yield _returned(fleet, config, said, success=True)


def _preflight(config: AgentConfig, unit_settings: str) -> str:
    """Shell that writes the candidate where the agent does not look, and has PEM's check try it."""
    q = shlex.quote
    encoded = base64.b64encode(config.content).decode()
    return f"""\
set -eu
umask 077
rm -rf {CANDIDATE}
mkdir {CANDIDATE}
printf %s {q(encoded)} | base64 -d >{CANDIDATE}/agent.cfg
printf %s {q(unit_settings)} >{CANDIDATE}/pem-fleet.conf
trap 'rm -rf {CANDIDATE}' EXIT
{verification(f"--config-dir {CANDIDATE}", "refused by the poolers, the agent stays direct")}
trap - EXIT
"""


def came_through(seen: Heartbeat, moment: float) -> bool:
    """A heartbeat through a pooler, after a moment of time.monotonic()."""
    # The answer may have been a second on its way.
    return seen.fresh and seen.beat_after(moment + ANSWER_SECONDS)


def came_directly(seen: Heartbeat, moment: float) -> bool:
    """A heartbeat around the poolers, after a moment of time.monotonic()."""
    return seen.way != "pooled" and seen.beat_after(moment + ANSWER_SECONDS)


def _returned(fleet: Fleet, config: AgentConfig, said: str, *, success: bool) -> FunctionCommand:
    """Wait for a direct heartbeat, and say what became of it. Only a `success` is one."""
    restarted = time.monotonic()

    def wait(state: State, host: Host) -> bool:  # noqa: ARG001  pyinfra passes both
        def holds(seen: Heartbeat) -> bool:
            return came_directly(seen, restarted)

        seen = awaited(fleet, host.name, config, holds, restarted + RETURN_SECONDS)
        beats = holds(seen)
        say = logger.info if beats and success else logger.error
        verdict = "it beats again" if beats else f"but no heartbeat within {RETURN_SECONDS} s"
        say(f"{host.print_prefix}{said}, {verdict}: {seen.sentence()}")
        if not beats or not success:
            say(f"{host.print_prefix}HINT: tail /var/log/pem/worker.log on {host.name}")
        return beats and success

    return FunctionCommand(wait, (), {})


def _last_words(host: Host, config: AgentConfig) -> str:
    """What the agent's own log says last."""
    path = config.value("log_location") or "/var/log/pem/worker.log"
    line = host.get_fact(LastLine, path=path, _sudo=True)
    return f"; {path} ends with: {line}" if line else ""
