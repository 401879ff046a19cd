"""What can be said of any deployed fleet without changing it: `make verify INVENTORY=…`.

These tests read files, systemd, psql and consoles over ssh, log in as an agent, and try what must
be refused: logins at the poolers, calls of the login function in the database. All they leave are
lines in the poolers' and Postgres' logs, of which those of refused calls are errors. Where
something cannot be seen (a firewall, a missing program) a test is skipped and says why.
"""

import pytest
from pyinfra.api.exceptions import InventoryError

from fleet.inventory import fleet_of
from fleet.platforms import PEM_AGENT_CONFIG, PEM_AGENT_UNIT, TRUST_DIRECTORY
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
    site = Site(_fleet(request.config))
    yield site
    site.close()


@pytest.fixture(scope="session", autouse=True)
def unchanged(site):
    """These tests themselves change no file of ours on any host, and restart no service."""
    before = {name: _traces(site, name) for name in site.machines}
    yield
    after = {name: _traces(site, name) for name in site.machines}
    assert after == before, "a host changed meanwhile; by whom, if not by a deploy of yours?"


def _traces(site, name):
    """The files of ours on a host, by inode and time of change, and its services' processes."""
    directories, units = [TRUST_DIRECTORY], []
    if name in {host.name for host in site.fleet.pgbouncer.hosts}:
        directories.append(site.place_of_pgbouncer(name).directory)
        units += site.units(name)
    if name in {host.name for host in site.fleet.pem_server.hosts}:
        units.append(site.place_of_postgres(name).unit)
    if name in {host.name for host in site.fleet.agent.hosts}:
        directories.append(PEM_AGENT_CONFIG)
        units.append(PEM_AGENT_UNIT)
    return site.run(
        name,
        f"find {' '.join(directories)} -printf '%i %m %u %C@ %p\\n' | sort;"
        f" systemctl show -p MainPID -p ActiveEnterTimestampMonotonic {' '.join(units)}",
    )
