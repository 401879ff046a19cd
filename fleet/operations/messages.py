"""Failing one host of a run with a sentence, not a traceback."""

from pyinfra import logger
from pyinfra.api import FunctionCommand, Host, State


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
