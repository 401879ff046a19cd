"""Making authorities and leaves, on the operator's machine, as steps of a plan."""

from collections.abc import Callable, Generator

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, operation
from pyinfra.api.command import PyinfraCommand

from fleet.certificates import Leaf
from fleet.hosts import CertificateAuthority
from fleet.keystore import PkiError
from fleet.operations.commands import fail
from fleet.pki import (
    authorities_missing,
    check_authorities,
    issue,
    make_authorities,
    why_issue,
)


@operation()
def authorities(settings: CertificateAuthority) -> Generator[PyinfraCommand, None, None]:
    """Make the server CA and the client CA, where they are not there yet; check those that are.

    One that ends before long is told in a line of every run.
    """
    try:
        for warning in check_authorities(settings):
            logger.warning(warning)
    except PkiError as error:
        yield fail(str(error))
        return
    if not authorities_missing(settings):
        host.noop(f"the authorities are in {settings.path}")
        return
    yield _locally(lambda: make_authorities(settings))


@operation()
def leaves(
    settings: CertificateAuthority, wanted: tuple[Leaf, ...]
) -> Generator[PyinfraCommand, None, None]:
    """Issue certificates that are missing, end soon, or say something else than they should."""
    try:
        reasons = {leaf: why_issue(settings, leaf) for leaf in wanted}
    except PkiError as error:
        yield fail(str(error))
        return
    for leaf, reason in reasons.items():
        if reason:
            yield _issue(settings, leaf, reason)
    if not any(reasons.values()):
        host.noop(f"{', '.join(leaf.file_stem for leaf in wanted)}: good")


def _issue(settings: CertificateAuthority, leaf: Leaf, reason: str) -> FunctionCommand:
    def make() -> None:
        issue(settings, leaf)
        logger.info(f"{host.print_prefix}issued {leaf.file_stem}: {reason}")

    return _locally(make)


def _locally(work: Callable[[], None]) -> FunctionCommand:
    """A command that runs here, not on the host, and fails the host with a sentence."""

    def run(state: State, host: Host) -> bool:  # noqa: ARG001  pyinfra passes both
        try:
            work()
        except PkiError as error:
            for line in str(error).splitlines():
                logger.error(f"{host.print_prefix}{line}")
            return False
        return True

    return FunctionCommand(run, (), {})
