"""Secrets come from the operator's environment or from a command; nothing is stored here."""

import os
import shlex
import subprocess

from pydantic import SecretStr

from fleet.mistakes import Mistake, inventory_line, note

_COMMAND_TIMEOUT_SECONDS = 30


def secret(variable: str, command: str | None = None) -> SecretStr:
    """The secret in environment variable ``variable``, else what ``command`` prints.

    The variable wins, so that one run can override a password store. ``command`` is split as a
    shell would and run without one; its standard output, less a final newline, is the secret.
    A missing or empty secret is one of the inventory's mistakes: it is reported with all others.
    """
    value = os.environ.get(variable, "")
    if value:
        return SecretStr(value)
    if command is None:
        problem = f"{variable} is not set"
        hint = f"export {variable}=$(pass show pem/{variable.lower()})"
    else:
        value, problem = _output(command)
        hint = f"run `{command}` by hand, or export {variable}"
    if problem:
        note(Mistake(inventory_line(), f'secret("{variable}")', problem, hint))
        # Never used, as no fleet is made; not empty, so that the role does not tell it again.
        return SecretStr("missing")
    return SecretStr(value)


def _output(command: str) -> tuple[str, str]:
    """What ``command`` printed, and the problem with it ('' when there is none)."""
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        return "", f"`{command}` ended with exit code {error.returncode}" + (
            f": {said[-1]}" if said else ""
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return "", f"`{command}` could not be run: {error}"
    value = done.stdout.removesuffix("\n")
    return value, "" if value else f"`{command}` printed nothing"
