"""Which LAB_ROOT the running lab of a name belongs to: two of one name would end each other.

Control groups and namespaces are the machine's, so they carry the lab's name only. The record
stands in /run: a machine that was restarted has none, and no lab that runs.
"""

from pathlib import Path

from lab import cgroup, network
from lab.errors import LabError
from lab.hosts import Lab
from lab.machine import write_atomically


def claim(lab: Lab) -> None:
    """Write down that the lab of this name is ours."""
    write_atomically(_record(lab), f"{lab.root}\n")


def release(lab: Lab) -> None:
    """The lab of this name is down."""
    _record(lab).unlink(missing_ok=True)


def require_own(lab: Lab) -> None:
    """Raise LabError if a lab of this name is up under another LAB_ROOT."""
    up = network.namespace_file(lab).exists() or any(
        group.alive() for group in cgroup.groups(lab.name)
    )
    record = _record(lab)
    if record.exists():
        owner = record.read_text().strip()
    else:  # a chroot has a /run of its own
        owner = str(lab.root) if lab.state_file.exists() else "not known from here"
    if up and Path(owner).resolve() != lab.root.resolve():
        raise LabError(
            f"a lab {lab.name!r} is up under another LAB_ROOT ({owner})",
            hint=f"LAB_NAME={lab.name}2 .venv/bin/python -m lab up",
        )


def _record(lab: Lab) -> Path:
    return Path("/run") / network.namespace(lab)
