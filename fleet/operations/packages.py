"""Packages: what is missing is installed, what is there stays as it is."""

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.packages import MissingPackages
from fleet.platforms import Family

_LOCK_WAIT_SECONDS = 120


@operation()
def installed(names: tuple[str, ...], family: Family) -> Generator[PyinfraCommand, None, None]:
    """Install those packages that are missing. None is upgraded: that is a decision of its own.

    The lists are read anew first; they are as old as the last install otherwise.
    """
    missing = host.get_fact(MissingPackages, names=names)
    if not missing:
        host.noop(f"{', '.join(names)}: installed")
        return
    quoted = [QuoteString(name) for name in missing]
    if family == "debian":
        apt = f"apt-get -q -y -o DPkg::Lock::Timeout={_LOCK_WAIT_SECONDS}"
        yield StringCommand(f"{apt} update >/dev/null")
        yield StringCommand(
            f"DEBIAN_FRONTEND=noninteractive {apt} install --no-install-recommends --no-upgrade",
            *quoted,
        )
    else:
        yield StringCommand("dnf install -q -y", *quoted)
