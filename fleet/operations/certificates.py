"""Making authorities and leaves, on the operator's machine, as steps of a plan."""

from collections.abc import Callable, Generator

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, operation
from pyinfra.api.command import PyinfraCommand

from fleet.hosts import CertificateAuthority
from fleet.operations.messages import fail
from fleet.pki import Leaf, PkiError, authorities_missing, issue, make_authorities, why_issue


@operation()
def authorities(settings: CertificateAuthority) -> Generator[PyinfraCommand, None, None]:
    """Make the server CA and the client CA, where they are not there yet."""
    if not authorities_missing(settings):
        host.noop(f"the authorities are in {settings.path}")
        return
    yield _locally(lambda: make_authorities(settings))


@operation()
def leaf(settings: CertificateAuthority, leaf: Leaf) -> Generator[PyinfraCommand, None, None]:
    """Issue a certificate that is missing, ends soon, or says something else than it should."""
    try:
        reason = why_issue(settings, leaf)
    except PkiError as error:
        yield fail(str(error))
        return
    if not reason:
        host.noop(f"{leaf.file_stem} is good")
        return

    def make() -> None:
        issue(settings, leaf)
        logger.info(f"{host.print_prefix}issued {leaf.file_stem}: {reason}")

    yield _locally(make)


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
