"""Speaking to hosts as an operator does: by ssh, with strict host keys."""

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable

from lab.backend import Report
from lab.errors import LabError
from lab.hosts import Lab, LabHost

CONNECT_SECONDS = 60
SYSTEM_SECONDS = 60


def ssh_command(lab: Lab, host: LabHost, command: list[str]) -> list[str]:
    """The ssh command line. One word is a line for the host's shell; several are one program's."""
    line = command if len(command) < 2 else [shlex.join(command)]
    return ["ssh", "-F", str(lab.ssh_config_file), host.name, *line]


def replace_by_ssh(lab: Lab, host: LabHost, command: list[str]) -> None:
    """Become ssh: the exit code is the command's, 255 if the host cannot be reached."""
    os.execvp("ssh", ssh_command(lab, host, command))  # noqa: S606 -- no shell is wanted here


def wait_until_up(lab: Lab, host: LabHost, alive: Callable[[], bool]) -> Report:
    """Wait until the user can log in and systemd has started everything.

    Raises LabError if that takes more than 60 s each, or when `alive` says the host has ended.
    """
    deadline = time.monotonic() + CONNECT_SECONDS
    question = (
        f"timeout {SYSTEM_SECONDS} systemctl is-system-running --wait;"
        " systemctl list-units --failed --plain --no-legend"
    )
    while True:
        if not alive():
            raise LabError(
                f"{host.name} ended while it started",
                hint=f".venv/bin/python -m lab logs {host.name}",
            )
        if _answers(host.address):
            asked = subprocess.run(
                ssh_command(lab, host, [question]), check=False, capture_output=True, text=True
            )
            # 255 is ssh's own: early in the boot only root may log in.
            if asked.returncode != 255:
                system, *failed = asked.stdout.splitlines() or ["unknown"]
                return Report(host, system, tuple(line.split()[0] for line in failed if line))
        if time.monotonic() > deadline:
            raise LabError(
                f"{host.name} does not answer by ssh after {CONNECT_SECONDS} s",
                hint=f".venv/bin/python -m lab logs {host.name}",
            )
        time.sleep(0.1)


def _answers(address: str) -> bool:
    """Whether an ssh server says hello."""
    try:
        with socket.create_connection((address, 22), timeout=0.5) as connection:
            connection.settimeout(2)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
