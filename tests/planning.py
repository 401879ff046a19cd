"""What a deploy would do to a host of given facts, read from the commands that it would run.

Nothing of ours is replaced. pyinfra's @fake connector stands for the connection, and a table for
what the host would answer when it is asked for a fact.
"""

import base64
import functools
import re
import runpy
import shlex
from dataclasses import dataclass
from typing import NamedTuple

from pyinfra.api import Config, FunctionCommand, Inventory, State, StringCommand, connectors
from pyinfra.api.connect import connect_all
from pyinfra.api.deploy import add_deploy
from pyinfra.api.facts import ShortFactBase
from pyinfra.context import ctx_host, ctx_state

from fleet import ROOT
from fleet.hosts import GROUPS

# pyinfra asks for its connectors many times in each inventory, and each time Python reads the
# metadata of every installed package.
connectors.entry_points = functools.cache(connectors.entry_points)


class Written(NamedTuple):
    """A file as a deploy writes it; user and mode are '' where they stay as they are."""

    user: str
    mode: str
    content: bytes


@dataclass(frozen=True)
class Plan:
    """The commands of each step, by the steps' names in their order.

    asked: the standard input of each command that was run while planning.
    """

    host: object
    state: object
    asked: list[str]
    steps: dict[str, list]

    @property
    def changing(self):
        """The names of the steps that would change something."""
        return [name for name, commands in self.steps.items() if commands]

    @property
    def shell(self):
        """Every shell command as the host's process list would have it, unmasked."""
        return [one.get_raw_value() for one in self._all(StringCommand)]

    @property
    def inputs(self):
        """What each shell command gets on its standard input."""
        return [one.connector_arguments.get("_stdin", "") for one in self._all(StringCommand)]

    @property
    def files(self):
        """Every file that would be written, by its path."""
        return {path: file for text in self.inputs for path, file in files_of(text).items()}

    def run_functions(self):
        """Run the commands that are functions of ours, as pyinfra would; what each answers."""
        with ctx_state.use(self.state), ctx_host.use(self.host):
            return [
                one.execute(self.state, self.host, {}) is not False
                for one in self._all(FunctionCommand)
            ]

    def _all(self, kind):
        return [
            one for commands in self.steps.values() for one in commands if isinstance(one, kind)
        ]


def files_of(script):
    """The files that a script writes, by their paths; see files/replace-files.sh."""
    calls = [shlex.split(line) for line in script.splitlines() if _WRITES.match(line)]
    found = {}
    for function, path, *rest in calls:
        user, mode = rest[:2] if function == "candidate" else ("", "")
        found[path] = Written(user, mode, base64.b64decode(rest[-1]))
    return found


_WRITES = re.compile("(candidate|likeness) ")


def make_plan(fleet, deploy, host, facts, /, answers=None, **arguments):
    """The plan of `deploy`: a file's name ("deploys/agent.py"), or an operation and its arguments.

    host: a name in the fleet. facts: {fact: value}, or a function of the fact's arguments; a fact
    that is not there has its default. answers: what a command that is run while planning prints,
    {part of the command: text}.
    """
    groups = {role: fleet.group(role) for role in GROUPS}
    quick = {"fake_delay": 0, "fake_delay_jitter": 0, "fake_responses": answers or {}}
    names = [f"@fake/{machine.name}" for machine in fleet.machines()]
    fake_groups = {
        role: ([(f"@fake/{name}", {**data, **quick}) for name, data in hosts], shared)
        for role, (hosts, shared) in groups.items()
    }
    inventory = Inventory((names, {}), **fake_groups)
    for one in inventory:
        one.name = one.name.removeprefix("@fake/")
        one.get_fact = lambda fact, *rest, **given: _said(facts, fact, *rest, **given)
    inventory.hosts = {one.name: one for one in inventory}
    state = State(inventory, Config())
    connect_all(state)
    target = inventory.get_host(host)
    asked = _note_inputs(target.connector)
    if isinstance(deploy, str):
        add_deploy(
            state, lambda: runpy.run_path(str(ROOT / deploy), run_name="__main__"), host=target
        )
    else:
        add_deploy(state, deploy, host=target, **arguments)
    with ctx_state.use(state), ctx_host.use(target):
        return Plan(
            target,
            state,
            asked,
            {
                " | ".join(sorted(state.get_op_meta(step).names)): list(
                    state.get_op_data_for_host(target, step).command_generator()
                )
                for step in state.get_op_order()
            },
        )


def _note_inputs(connector):
    """The list that gets the standard input of each command, which @fake itself forgets."""
    inputs, answer = [], connector.run_shell_command

    def note(command, **arguments):
        inputs.append(arguments.get("_stdin", ""))
        return answer(command, **arguments)

    connector.run_shell_command = note
    return inputs


def _said(facts, fact, *rest, **given):
    if issubclass(fact, ShortFactBase):
        return fact().process_data(_said(facts, fact.fact, *rest, **given))
    value = facts.get(fact, fact().default())
    asked = {name: argument for name, argument in given.items() if not name.startswith("_")}
    return value(*rest, **asked) if callable(value) else value


def fails(planned, caplog):
    """Run a plan, which must fail its host by a function of ours alone; what it says."""
    assert (planned.shell, planned.run_functions()) == ([], [False])
    return caplog.text
