"""The benchmark runs and cleans up behind itself; how fast it is, is not for a test."""

import pytest

from tests.bench import hundred
from tests.lab.conftest import Lab

pytestmark = pytest.mark.lab


def test_three_agents_are_measured_and_nothing_is_left_on_them(lab: Lab) -> None:
    # Without ansible-core, which `make bench-deploy` installs for itself.
    rows = hundred.measure(3, beside_ansible=False)
    assert [name for name, _, _ in rows] == [
        "3 agents, first run",
        "3 agents, second run",
        "3 logins, sshd's own MaxStartups 10:30:100",
        "  with MaxStartups 1000",
    ]
    assert all(seconds > 0 for _, seconds, _ in rows)
    for host in lab.fleet.agent.hosts:
        assert lab.run(host.name, f"ls -d /srv/bench {hundred.WIDE} 2>/dev/null; true") == ""
        assert "maxstartups 10:30:100" in lab.run(host.name, "sshd -T")
