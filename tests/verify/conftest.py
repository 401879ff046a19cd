"""What can be said of any deployed fleet without changing it: `make verify INVENTORY=…`.

These tests read files, systemd, psql and consoles over ssh. Against the poolers they try logins
that must be refused: each leaves a line in the pooler's log, and nothing else. Where something
cannot be seen (a firewall, a missing program) a test is skipped and says why.
"""

import pytest
from pyinfra.api.exceptions import InventoryError

from fleet.inventory import fleet_of
from tests.site import Site


def pytest_ignore_collect(config):
    """Without an inventory there is nothing to look at."""
    return None if config.getoption("--inventory") else True


def _fleet(config):
    try:
        return fleet_of(config.getoption("--inventory"))
    except InventoryError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc):
    """A test that wants a machine, pooler, server or agent is run for each one, by its name."""
    fleet = _fleet(metafunc.config)
    roles = {
        "machine": fleet.machines(),
        "server": fleet.pem_server.hosts,
        "pooler": fleet.pgbouncer.hosts,
        "agent": fleet.agent.hosts,
    }
    for role, hosts in roles.items():
        if role in metafunc.fixturenames:
            metafunc.parametrize(role, [host.name for host in hosts])


@pytest.fixture(scope="session")
def site(request):
    """The fleet of the inventory."""
    return Site(_fleet(request.config))
