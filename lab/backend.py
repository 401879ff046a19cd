"""What a kind of lab can do with its hosts. The command line speaks to this and to nothing below.

A lab of containers is nspawn.py. A lab of virtual machines is another module with these verbs.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from lab.hosts import Lab, LabHost

State = Literal["running", "cut", "paused", "stopped"]
"""`cut`: running, but parted from other hosts. A paused host may be cut as well."""


@dataclass(frozen=True)
class Report:
    """How a host came up: systemd's word for the whole system, and the units that failed."""

    host: LabHost
    system: str
    failed_units: tuple[str, ...]


class Backend(Protocol):
    """One lab's power switches and cables. Every verb may be said twice.

    Each raises LabError; all but `up`, `down` and `states` do so for a lab that is not up.
    """

    lab: Lab

    def up(self, hosts: list[LabHost]) -> list[Report]:
        """Bring the lab up and start those of its `hosts` that do not run."""

    def down(self) -> None:
        """Remove the lab: everything but its images and packages."""

    def states(self) -> dict[str, State]:
        """The state of every host, by name."""

    def start(self, hosts: list[LabHost]) -> list[Report]:
        """Switch on, and wait until ssh answers and the system has started."""

    def stop(self, hosts: list[LabHost]) -> None:
        """Shut down in good order."""

    def kill(self, hosts: list[LabHost]) -> None:
        """Cut the power: all processes end at once, the disk stays as it is."""

    def pause(self, hosts: list[LabHost]) -> None:
        """Stop all processes where they stand; the kernel still answers ping and TCP."""

    def resume(self, hosts: list[LabHost]) -> None:
        """Let paused processes go on."""

    def cut(self, hosts: list[LabHost]) -> None:
        """Part the hosts from all others; they reach one another, and the control machine all."""

    def heal(self) -> None:
        """Undo every cut."""

    def reset(self, hosts: list[LabHost]) -> list[Report]:
        """Start over with fresh disks."""

    def log(self, host: LabHost) -> str:
        """What the host wrote on its console, and its journal if that can be read."""
