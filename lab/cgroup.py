"""Control groups: which processes belong to what, and power over all of them at once.

    LAB/NAME.SERIAL/launcher     the shell that starts the host again when it reboots
    LAB/NAME.SERIAL/boot1        nspawn and the host's own processes

SERIAL is new for every start. systemd 254 and later start services right inside their group, and
the kernel kills them at birth if a group above was ever hit by cgroup.kill. Processes stand in
leaves only, as pure cgroup2 demands.
"""

import os
import time
from pathlib import Path

from lab.errors import LabError

BASE = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """Every hierarchy a host must have a group of its own in; cgroup2 is the first.

    Raises LabError on a machine without cgroup2.
    """
    if (BASE / "cgroup.controllers").exists():
        return [BASE]
    unified = BASE / "unified"
    if not (unified / "cgroup.controllers").exists():
        raise LabError(
            f"no cgroup2 hierarchy at {BASE} or {unified}",
            hint=f"mkdir -p {unified} && mount -t cgroup2 cgroup2 {unified}",
        )
    # Both at once: cgroup2 beside the older ones. Hosts that share a group of the older ones
    # would mix their units there.
    return [
        BASE / name for name in ("unified", "systemd", "freezer", "pids") if (BASE / name).is_dir()
    ]


class Group:
    """The processes of one start of a host or of the proxy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, lab: str, name: str) -> "Group":
        """A new, empty group of the lab for `name`."""
        serial = time.monotonic_ns()
        for hierarchy in hierarchies():
            (hierarchy / folder(lab) / f"{name}.{serial}" / "launcher").mkdir(parents=True)
        return cls(hierarchies()[0] / folder(lab) / f"{name}.{serial}")

    @property
    def name(self) -> str:
        """The name of the host, or of the service."""
        return self.path.name.partition(".")[0]

    @property
    def everywhere(self) -> list[Path]:
        """The group's folder in each hierarchy."""
        below = self.path.relative_to(hierarchies()[0])
        return [hierarchy / below for hierarchy in hierarchies()]

    def add(self, process: int) -> None:
        """Move a process, the launcher, into the group."""
        for path in self.everywhere:
            (path / "launcher" / "cgroup.procs").write_text(str(process))

    def launcher(self) -> int:
        """The process id of the launcher, 0 if it is gone."""
        return _first_process(self.path / "launcher")

    def alive(self) -> bool:
        """Whether any process is left in the group or below."""
        return "populated 1" in _read(self.path / "cgroup.events")

    def frozen(self) -> bool:
        """Whether `freeze` stopped the processes."""
        return _read(self.path / "cgroup.freeze").strip() == "1"

    def freeze(self, *, frozen: bool) -> None:
        """Stop all processes where they stand, or let them go on.

        Raises LabError if some do not stop within 5 s.
        """
        (self.path / "cgroup.freeze").write_text("1" if frozen else "0")
        deadline = time.monotonic() + 5
        while frozen and "frozen 0" in _read(self.path / "cgroup.events"):
            if time.monotonic() > deadline:
                raise self._stuck("stand still")
            time.sleep(0.01)

    def kill(self, timeout_seconds: float = 20) -> None:
        """End all processes in one call of the kernel, as a power loss does, and remove the group.

        Raises LabError if processes are left after `timeout_seconds`.
        """
        if self.alive():
            (self.path / "cgroup.kill").write_text("1")
        if not self.wait_until_dead(timeout_seconds):
            raise self._stuck("end")
        self.remove()

    def wait_until_dead(self, timeout_seconds: float) -> bool:
        """Wait for the last process to end; False if it did not within `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _stuck(self, verb: str) -> LabError:
        return LabError(
            f"{self.name}: processes do not {verb}",
            hint=f"ps -eo pid,stat,wchan,args,cgroup | grep {self.path.name}",
        )

    def remove(self) -> None:
        """Remove the empty group from every hierarchy."""
        for path in self.everywhere:
            _remove_tree(path)


def folder(lab: str) -> str:
    """The name of the group that holds all groups of the lab."""
    return f"pem-fleet-lab.{lab}"


def groups(lab: str, name: str = "") -> list[Group]:
    """The lab's groups; those of one host or service if `name` is given. Oldest first."""
    found = sorted((hierarchies()[0] / folder(lab)).glob(f"{name or '*'}.*/"))
    return [Group(path) for path in found]


def remove_all(lab: str) -> None:
    """Remove what is left of the lab's groups; their processes have ended."""
    for hierarchy in hierarchies():
        _remove_tree(hierarchy / folder(lab))


def _first_process(path: Path) -> int:
    processes = _read(path / "cgroup.procs").split()
    return int(processes[0]) if processes else 0


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # the group was removed meanwhile
        return ""


def _remove_tree(path: Path) -> None:
    for below, _, _ in os.walk(path, topdown=False):
        try:
            Path(below).rmdir()
        except OSError:
            continue  # still in use: the next command tries again
