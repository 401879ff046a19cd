"""One look at the fleet: its hosts, and each agent's last heartbeat and the way it came.

    python -m fleet.status INVENTORY

Reads only, over ssh. Ends with 1 when an agent's heartbeat is missing, old, or came around the
poolers.
"""

# pyinfra's connections are greenlets; its sockets and locks must be patched before anything else.
from gevent import monkey  # isort: skip

monkey.patch_all()  # isort: skip

import argparse  # noqa: E402  after the patch
import sys  # noqa: E402
from typing import Any  # noqa: E402

from pyinfra.api import Config, Inventory, State  # noqa: E402
from pyinfra.api.connect import connect_all  # noqa: E402
from pyinfra.api.exceptions import InventoryError, PyinfraError  # noqa: E402
from pyinfra.context import ctx_state  # noqa: E402

from fleet.heartbeats import Heartbeat  # noqa: E402
from fleet.hosts import Fleet  # noqa: E402
from fleet.inventory import fleet_of  # noqa: E402
from fleet.observe import observe  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns 0 when every agent is well, 1 when one is not, 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="fleet.status", description=__doc__.splitlines()[0])
    parser.add_argument("inventory", help="inventories/….py")
    try:
        fleet = fleet_of(parser.parse_args(arguments).inventory)
    except InventoryError as error:
        print(error, file=sys.stderr)
        return 2
    up, seen = look(fleet)
    print(table(fleet, up, seen))
    return 0 if seen and all(heartbeat.fresh for heartbeat in seen.values()) else 1


def look(fleet: Fleet) -> tuple[set[str], dict[str, Heartbeat]]:
    """The names of the database and pooler hosts that answer, and every agent's heartbeat."""
    asked = {host.name: host for host in (*fleet.pem_server.hosts, *fleet.pgbouncer.hosts)}
    # One try each: what does not answer now is a finding, not something to wait for.
    hosts: list[tuple[str, dict[str, Any]]] = [
        (name, {**host.ssh, "ssh_connect_retries": 0}) for name, host in asked.items()
    ]
    state = State(Inventory((hosts, {})), Config(CONNECT_TIMEOUT=5))
    with ctx_state.use(state):
        try:
            connect_all(state)
        except PyinfraError as error:
            print(error, file=sys.stderr)
        up = {host.name for host in state.inventory.iter_activated_hosts() if host.connected}
        return up, observe(fleet, unreachable=asked.keys() - up)


def table(fleet: Fleet, up: set[str], seen: dict[str, Heartbeat]) -> str:
    """The findings as a table, a line for each host."""
    servers = (("pem_server", fleet.pem_server.hosts), ("pgbouncer", fleet.pgbouncer.hosts))
    rows = [
        (host.name, host.address, role, "up" if host.name in up else "DOWN")
        for role, hosts in servers
        for host in hosts
    ] + [
        (host.name, host.address, "agent", seen[host.name].sentence()) for host in fleet.agent.hosts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
