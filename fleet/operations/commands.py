"""Commands that operations share: a script that runs whole or not at all, and a plain failure."""

from collections.abc import Iterable

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, StringCommand
from pyinfra.connectors.util import CommandOutput


class Script(StringCommand):
    """A shell script for the host, by standard input. writes: the files that it would change."""

    def __init__(self, text: str, writes: tuple[str, ...] = ()) -> None:
        super().__init__("sh -s", _stdin=f"{{\n{text.rstrip()}\n}}\n")
        self.writes = writes


def shell(text: str, writes: tuple[str, ...] = ()) -> Script:
    """A shell script for the host, by standard input: it is in no argument list and no log.

    In braces, so that the shell reads all of it before it begins: of a script that a cut
    connection left incomplete, nothing runs.
    """
    return Script(text, writes)


_told: set[tuple[str, str]] = set()


def tell(lines: Iterable[str]) -> None:
    """Warn of something on this host, each line once in a run.

    An operation's body runs in the plan, in the run, or in both.
    """
    for line in lines:
        if (host.name, line) not in _told:
            _told.add((host.name, line))
            logger.warning(f"{host.print_prefix}{line}")


def run_script(host: Host, text: str, **arguments: object) -> tuple[bool, CommandOutput]:
    """Run a shell script on a host at once: whether it succeeded, and what it said.

    For functions of a running operation. arguments: pyinfra's own, such as `_sudo`.
    """
    return host.run_shell_command(
        shell(text),
        print_output=False,
        print_input=False,
        **shell(text).connector_arguments,
        **arguments,
    )


def fail(text: str) -> FunctionCommand:
    """A command that fails its host and says why.

    As a command, not an exception: an exception inside an operation would end the run for all
    hosts, and a plan for hosts that are still empty could not be made.
    """

    def say(state: State, host: Host) -> bool:  # noqa: ARG001  pyinfra passes both
        for line in text.splitlines():
            logger.error(f"{host.print_prefix}{line}")
        return False

    return FunctionCommand(say, (), {})
