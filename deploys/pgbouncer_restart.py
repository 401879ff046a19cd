"""Restart the poolers, one process after the other, without an error for their clients.

    make restart-poolers INVENTORY=inventories/example.py [LIMIT=bouncer1]

For a package that was upgraded, or any other reason; not needed for settings. It is not among the
deploys that run by default, and takes one pooler at a time, while the other serves.
"""

from pyinfra import host, state
from pyinfra.api import deploy
from pyinfra.api.exceptions import DeployError

from fleet import is_entrypoint
from fleet.asking import ask, family_on
from fleet.facts.poolers import PortHolders
from fleet.hosts import Fleet, Host
from fleet.operations.pgbouncer import restarted
from fleet.places import place_here
from fleet.platforms import Pooler
from fleet.pooler import runtime_settings
from fleet.processes import processes


@deploy("PgBouncer")
def restart(fleet: Fleet, machine: Host, place: Pooler) -> None:
    """Every process of one pooler, each seen to run as written before the next."""
    restarted(
        name="Restart one process after the other",
        processes=processes(fleet, place),
        user=place.user,
        port=fleet.pgbouncer.listen_port,
        settings=runtime_settings(fleet, machine, place),
    )


def listens(fleet: Fleet, name: str) -> bool:
    """Whether somebody takes connections on another pooler's port."""
    if family_on(name) is None:
        return False
    holders = ask(name, PortHolders, "root", port=fleet.pgbouncer.listen_port)
    return bool(holders)


if is_entrypoint(__name__) and "pgbouncer" in host.groups:
    here = [one for one in state.inventory if "pgbouncer" in one.groups]
    together = [one.name for one in here if state.is_host_in_limit(one)]
    if len(together) > 1:
        raise DeployError(
            f"{', '.join(together)} would restart at the same time"
            "\nHINT: make restart-poolers INVENTORY=…, which takes one after the other"
        )
    settings = host.data.pgbouncer
    others = [one.name for one in settings.hosts if one.name != host.name]
    if (
        settings.processes == 1
        and others
        and not any(listens(host.data.fleet, one) for one in others)
    ):
        raise DeployError(
            f"{host.name} is the last pooler: nobody listens on {', '.join(others)};"
            " nothing was restarted"
            f"\nHINT: make deploy INVENTORY=… DEPLOY=deploys/pgbouncer.py LIMIT={others[0]}"
        )
    place = place_here(settings)
    restart(fleet=host.data.fleet, machine=host.data.machine, place=place, _sudo=True)
