"""Services that run on what is written: daemon-reload and restart only where they are behind."""

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.services import Service


@operation()
def units_read(unit: str) -> Generator[PyinfraCommand, None, None]:
    """Have systemd read a unit's changed files; nothing is restarted."""
    if not host.get_fact(Service, unit=unit)["needs_daemon_reload"]:
        host.noop(f"systemd has read the files of {unit}")
        return
    yield StringCommand("systemctl daemon-reload")


@operation()
def restarted_since(unit: str, files: tuple[str, ...]) -> Generator[PyinfraCommand, None, None]:
    """Start a unit, or restart it when one of the files changed after it started."""
    state = host.get_fact(Service, unit=unit, files=files)
    if state["active"] and not state["older_than"]:
        host.noop(f"{unit} runs on its present files")
        return
    yield StringCommand("systemctl restart", QuoteString(unit))
