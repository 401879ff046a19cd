"""Asking another host than the one that is deployed, over its own ssh connection."""

from collections.abc import Iterable
from typing import TypeVar

import gevent
import gevent.lock
from paramiko import SSHException
from pyinfra import logger, state
from pyinfra.api import FactBase
from pyinfra.api.exceptions import ConnectError

from fleet.platforms import Family, family_of

Answer = TypeVar("Answer")

TIMEOUT_SECONDS = 10
# pyinfra's own time-out begins once a command runs: a frozen host never lets it begin, and its
# kernel still takes connections.
_BEGIN_SECONDS = 1
_CONNECT_SECONDS = 20
# One at a time: two greenlets that connect to one host at once lose one another's answers.
_connecting = gevent.lock.RLock()
_families: dict[str, Family] = {}
_unreachable: set[str] = set()


def leave_out(names: Iterable[str]) -> None:
    """Do not try to reach these hosts in this run."""
    _unreachable.update(names)


def family_on(name: str) -> Family | None:
    """The OS family of a host, asked once; None when it cannot be reached.

    It also connects, where this run has not; so ask for it before anything else.
    """
    with _connecting:
        if name not in _families and name not in _unreachable:
            try:
                with gevent.Timeout(_CONNECT_SECONDS, TimeoutError("it does not answer")):
                    _families[name] = family_of(state.inventory.get_host(name))
            except (ConnectError, SSHException, OSError) as error:
                _unreachable.add(name)
                logger.warning(f"{name} cannot be reached: {error}")
    return _families.get(name)


def ask(name: str, fact: type[FactBase[Answer]], user: str, **arguments: object) -> Answer | None:
    """What a fact says on another host, or None when that host does not answer.

    A host that is frozen takes some seconds more than TIMEOUT_SECONDS.
    """
    try:
        with gevent.Timeout(TIMEOUT_SECONDS + _BEGIN_SECONDS, TimeoutError("it is silent")):
            return state.inventory.get_host(name).get_fact(
                fact,
                _sudo=True,
                _sudo_user=user,
                _timeout=TIMEOUT_SECONDS,
                _ignore_errors=True,
                **arguments,
            )
    except (ConnectError, SSHException, OSError) as error:
        logger.warning(f"{name} does not answer: {error}")
        return None
