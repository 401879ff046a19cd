"""Agents: registered, beating through the poolers, and what happens when a pooler dies."""

import time

import psycopg
import pytest

from tests.lab.conftest import Lab, killed_at, pyinfra, raw_pyinfra, within

pytestmark = pytest.mark.lab


def _poolers_of(lab: Lab) -> dict[str, set[str]]:
    """The agents' addresses that are clients of each pooler that is up."""
    found = {}
    for host in lab.fleet.pgbouncer.hosts:
        try:
            found[host.name] = {
                row["addr"]
                for row in lab.ask(host.name, "SHOW CLIENTS")
                if row["user"] == "pem_agent_user1"
            }
        except psycopg.OperationalError:
            found[host.name] = set()
    return found


def test_three_agents_beat_through_two_poolers(lab: Lab) -> None:
    started = time.monotonic()
    within(30, "every agent beats", lambda: lab.all_beat_since(started))
    addresses = {host.address for host in lab.fleet.agent.hosts}
    clients = _poolers_of(lab)
    assert set.union(*clients.values()) == addresses
    assert all(clients[pooler] for pooler in clients), "each pooler has a part of the agents"


SEARCH = """\
cat > /run/pattern
grep -rlF -f /run/pattern /etc /root /tmp /var/log /usr/edb 2>/dev/null
journalctl --no-pager -q | grep -F -f /run/pattern
grep -alF -f /run/pattern /proc/[0-9]*/cmdline 2>/dev/null
rm /run/pattern
"""


def test_the_password_is_in_no_file_log_or_argument_list(lab: Lab) -> None:
    password = lab.fleet.pem_server.admin_password.get_secret_value()
    for name in lab.machines:
        # It comes by standard input, so that the search does not find itself.
        found = lab.feed(name, SEARCH, password)
        assert (found.stdout, found.stderr) == ("", ""), name


def test_all_agents_beat_through_the_other_pooler_when_one_loses_power(lab: Lab) -> None:
    addresses = {host.address for host in lab.fleet.agent.hosts}
    with lab.without("bouncer1"):
        within(
            75,
            "all agents are clients of bouncer2 after bouncer1 lost power",
            lambda: _poolers_of(lab)["bouncer2"] == addresses,
        )
        moved = time.monotonic()
        within(30, "all agents beat through bouncer2", lambda: lab.all_beat_since(moved))
    within(20, "bouncer1 serves when it has power again", lambda: lab.serves("bouncer1"))


def test_a_host_that_was_set_up_anew_is_planned_then_deployed_and_its_agent_keeps_its_id(
    lab: Lab,
) -> None:
    query = "SELECT string_agg(id::text, ' ') FROM pem.agent WHERE description = 'agent3'"
    before = lab.sql(query)
    lab.command("reset", "agent3")

    plan = pyinfra("plan", "deploys/ca.py", "deploys/agent.py", limit="agent3")
    assert plan.returncode == 0, plan.stdout
    assert "Register through the poolers" in plan.stdout
    assert lab.on("agent3").run("ls /etc/pem-fleet /usr/edb").failed, "a plan touches nothing"

    said = ""
    for deploy in ("deploys/ca.py", "deploys/agent.py"):
        run = raw_pyinfra(deploy, "-y", "-vvv", "--diff", "--limit", "agent3")
        assert run.returncode == 0, run.stdout
        said += run.stdout
    assert lab.sql(query) == before
    assert lab.heartbeat_ages()["agent3"] < 30
    # With everything that pyinfra can say of such a run, neither password nor key was said.
    key = lab.on("agent3").file("/etc/pem-fleet/agent/pem_agent_user1.key").content_string
    for secret in (lab.fleet.pem_server.admin_password.get_secret_value(), key.split("\n")[1]):
        assert secret not in said


def test_a_run_killed_between_agent_cfg_and_the_restart_is_healed_by_the_next(
    lab: Lab, other_inventory
) -> None:
    since = "systemctl show -p ActiveEnterTimestampMonotonic --value pemagent"
    started = lab.run("agent1", since)
    changed = other_inventory("via=bouncer)", "via=bouncer, heartbeat_connection=True)")
    killed_at(changed, "deploys/agent.py", "agent1", step="Start at boot")
    assert "heartbeat_connection=true" in lab.run("agent1", "cat /usr/edb/pem/agent/etc/agent.cfg")
    assert lab.run("agent1", since) == started, "the killed run did not come to the restart"

    healed = pyinfra("deploy", "deploys/agent.py", inventory=changed, limit="agent1")
    assert healed.returncode == 0, healed.stdout
    assert int(lab.run("agent1", since)) > int(started)
    within(
        30,
        "agent1 has two connections to a pooler",
        lambda: sum(len(_rows_of(lab, "agent1", name)) for name in ("bouncer1", "bouncer2")) == 2,
    )
    assert pyinfra("deploy", "deploys/agent.py", limit="agent1").returncode == 0


def _rows_of(lab: Lab, agent: str, pooler: str) -> list[dict[str, str]]:
    address = lab.machines[agent].address
    return [row for row in lab.ask(pooler, "SHOW CLIENTS") if row["addr"] == address]
