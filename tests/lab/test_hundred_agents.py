"""A hundred agents at once, against sshd's own default limit of simultaneous logins: none is lost.

There are three agent hosts under a hundred names (tests/lab/hundred_agents.py), so that many names
of one host write the same file at the same moment.
"""

import json
import subprocess
from collections.abc import Iterator

import pytest

from fleet import ROOT
from fleet.hosts import Fleet
from fleet.inventory import fleet_of
from fleet.leaves import agent_leaf
from fleet.pki import authority_file, certificate_file, key_file
from tests.lab.conftest import PYINFRA, Lab, raw_pyinfra

pytestmark = pytest.mark.lab

INVENTORY = "tests/lab/hundred_agents.py"
ANCHORS = {"server": "/etc/pem-fleet/server-ca.crt", "client": "/etc/pem-fleet/client-ca.crt"}


@pytest.fixture
def many(lab: Lab) -> Iterator[Fleet]:
    """The fleet with 100 agents; the certificates that they get go again."""
    assert len(lab.fleet.agent.hosts) == 3
    fleet = fleet_of(INVENTORY)
    yield fleet
    for host in fleet.agent.hosts:
        for file in (certificate_file, key_file):
            file(fleet.certificate_authority, agent_leaf(fleet, host)).unlink(missing_ok=True)


def turned_away(lab: Lab) -> int:
    """How often the agents' sshd said that it drops connections, by its journals."""
    said = (
        "journalctl -q --no-pager -o cat -u ssh | grep -ci 'drop connection .* maxstartups' || true"
    )
    return sum(int(lab.run(host.name, said)) for host in lab.fleet.agent.hosts)


@pytest.mark.usefixtures("many")
def test_a_hundred_logins_without_retries_lose_some(lab: Lab) -> None:
    before = turned_away(lab)
    # pyinfra's own option: over what the inventory says of each host.
    once = raw_pyinfra(
        "exec", "-y", "--data", "ssh_connect_retries=0", "--", "true", inventory=INVENTORY
    )
    assert once.returncode == 1, once.stdout
    assert turned_away(lab) > before


def test_a_hundred_agents_are_deployed_at_once_and_none_is_lost(lab: Lab, many: Fleet) -> None:
    real = [host.name for host in lab.fleet.agent.hosts]
    for name in real:
        assert "maxstartups 10:30:100" in lab.run(name, "sshd -T")
        lab.run(name, f"rm -f {' '.join(ANCHORS.values())}")
    before = turned_away(lab)

    run = subprocess.run(
        [PYINFRA, INVENTORY, "deploys/ca.py", "-y", "--json"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert turned_away(lab) > before, "sshd let everybody in: this run proved nothing"
    once, *steps = json.loads(run.stdout)["results"]["operations"]
    assert len(once["success"] + once["no_change"]) == 1
    everywhere = {host.name for host in many.machines()}
    assert len(everywhere) == 103
    assert len(steps) == 3
    for step in steps:
        assert set(step["success"] + step["no_change"]) == everywhere, step
    authority = many.certificate_authority
    for host in many.agent.hosts:
        assert certificate_file(authority, agent_leaf(many, host)).exists()
    for name in real:
        for kind, path in ANCHORS.items():
            wanted = authority_file(authority, kind).read_text()
            assert lab.run(name, f"cat {path}").endswith(wanted.strip())
        assert lab.run(name, "find /etc/pem-fleet -name '*.pem-fleet-*'") == ""


@pytest.mark.usefixtures("many")
def test_a_hundred_agents_are_planned_and_none_is_lost() -> None:
    plan = raw_pyinfra("deploys/agent.py", "--dry", inventory=INVENTORY)
    assert plan.returncode == 0, plan.stdout
    ready = [line for line in plan.stdout.splitlines() if "Ready: deploys/agent.py" in line]
    assert len([line for line in ready if "many" in line]) == 100
