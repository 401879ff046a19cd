"""What on the hosts is not as the inventory says: every deploy is planned, nothing is run.

It is `pyinfra INVENTORY deploys/*.py --dry` in this process, on connections that are there, so
that the commands behind a step can be looked at: they name the files that differ.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pyinfra
from pyinfra.api import Host, State
from pyinfra.api.state import StateOperationHostData, StateStage
from pyinfra.context import ctx_config, ctx_host
from pyinfra_cli.util import exec_file

from fleet import ROOT
from fleet.findings import Drift
from fleet.operations.commands import Script
from fleet.run import DEPLOYS

# Steps that change nothing: they look until something is so.
WAITING = ("Agent | Verify the registration", "Agent | See a heartbeat through a pooler")
PLAN_SECONDS = 60


def drift(state: State) -> tuple[tuple[Drift, ...], dict[str, str]]:
    """What each deploy would change on the hosts of a state that are connected.

    Also the hosts that could not be planned, and why.
    """
    found, unplanned = [], {}
    state.set_stage(StateStage.Prepare)
    with _as_the_command_line():
        for number, name in enumerate(DEPLOYS):
            path = str(ROOT / "deploys" / f"{name}.py")
            # By these and the lines of the file pyinfra tells one step from another.
            state.current_deploy_filename, state.current_op_file_number = path, number
            planned = {host: gevent.spawn(_plan, state, host, path) for host in _up(state)}
            gevent.joinall(list(planned.values()), timeout=PLAN_SECONDS)
            for host, plan in planned.items():
                if not plan.successful():
                    reason = plan.exception or f"no answer within {PLAN_SECONDS} s"
                    unplanned[host.name] = f"deploys/{name}.py cannot be planned: {reason}"
                    plan.kill()
                    continue
                found += [Drift(host.name, name, step, files) for step, files in plan.value]
    return tuple(found), unplanned


def _plan(state: State, host: Host, path: str) -> list[tuple[str, tuple[str, ...]]]:
    """The steps of one deploy that would change one host, and the files that they would write."""
    before = len(host.op_hash_order)
    found = []
    with ctx_config.use(state.config.copy()), ctx_host.use(host):
        exec_file(path)
        for step in host.op_hash_order[before:]:
            planned = state.ops[host].get(step)
            name = " or ".join(sorted(state.op_meta[step].names))
            if planned and planned.operation_meta.will_change and name not in WAITING:
                found.append((name, tuple(_files(planned))))
    return found


def _files(planned: StateOperationHostData) -> Iterator[str]:
    """The files of a step that differ from what it would write."""
    for command in planned.command_generator():
        if isinstance(command, Script):
            yield from command.writes


def _up(state: State) -> list[Host]:
    return [host for host in state.inventory if host.connected]


@contextmanager
def _as_the_command_line() -> Iterator[None]:
    """A deploy file reads the same as when pyinfra's own command runs it."""
    before, pyinfra.is_cli = pyinfra.is_cli, True
    try:
        yield
    finally:
        pyinfra.is_cli = before
