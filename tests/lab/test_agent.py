"""Agents: registered, beating through the poolers, and what happens when a pooler dies."""

import subprocess
import sys

import psycopg
import pytest

from fleet import ROOT
from tests.lab.conftest import INVENTORY, Lab, pyinfra, within

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


def _all_beat(lab: Lab) -> bool:
    return all(age < 20 for age in lab.heartbeat_ages().values())


def test_three_agents_beat_through_two_poolers(lab: Lab) -> None:
    within(30, "every agent beats", lambda: _all_beat(lab))
    addresses = {host.address for host in lab.fleet.agent.hosts}
    clients = _poolers_of(lab)
    assert set.union(*clients.values()) == addresses
    assert all(clients[pooler] for pooler in clients), "each pooler has a part of the agents"


def test_no_agent_goes_around_the_poolers(lab: Lab) -> None:
    backends = lab.sql(
        "SELECT DISTINCT host(client_addr) FROM pg_stat_activity WHERE usename = 'pem_agent_user1'"
    ).splitlines()
    assert set(backends) <= {host.address for host in lab.fleet.pgbouncer.hosts}


def test_pems_own_check_is_content(lab: Lab) -> None:
    for host in lab.fleet.agent.hosts:
        said = lab.on(host.name).run(
            "PGSSLROOTCERT=/etc/pem-fleet/server-ca.crt"
            " /usr/edb/pem/agent/bin/pemworker --verify-registration"
        )
        assert said.rc == 0, said.stderr


SEARCH = """\
cat > /run/pattern
grep -rlF -f /run/pattern /etc /root /tmp /var/log /usr/edb 2>/dev/null
journalctl --no-pager -q | grep -F -f /run/pattern
grep -alF -f /run/pattern /proc/[0-9]*/cmdline 2>/dev/null
rm /run/pattern
"""


def test_the_password_is_in_no_file_log_or_argument_list(lab: Lab) -> None:
    password = lab.fleet.pem_server.admin_password.get_secret_value()
    for name in ("agent1", "bouncer1", "pem1"):
        # The password comes by standard input, so that the search does not find itself.
        command = ["ssh", name, "--", "sudo", "sh", "-c", SEARCH]
        found = subprocess.run(
            [sys.executable, "-m", "lab", *command],
            cwd=ROOT,
            input=password,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (found.stdout, found.stderr) == ("", ""), name


def test_the_status_table_names_id_age_pooler_and_user(lab: Lab) -> None:
    within(30, "every agent beats", lambda: _all_beat(lab))
    status = subprocess.run(
        [sys.executable, "-m", "fleet.status", INVENTORY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert status.returncode == 0, status.stdout + status.stderr
    for host in lab.fleet.agent.hosts:
        line = next(line for line in status.stdout.splitlines() if line.startswith(host.name))
        assert "registered as id " in line
        assert "through bouncer" in line
        assert line.endswith("as pem_agent_user1")


def test_all_agents_beat_through_the_other_pooler_when_one_loses_power(lab: Lab) -> None:
    addresses = {host.address for host in lab.fleet.agent.hosts}
    with lab.without("bouncer1"):
        within(
            75,
            "all agents are clients of bouncer2 after bouncer1 lost power",
            lambda: _poolers_of(lab)["bouncer2"] == addresses,
        )
        within(30, "all agents beat through bouncer2", lambda: _all_beat(lab))
    with lab.as_agent("bouncer1") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_agent_whose_host_was_set_up_anew_keeps_its_id(lab: Lab) -> None:
    query = "SELECT string_agg(id::text, ' ') FROM pem.agent WHERE description = 'agent3'"
    before = lab.sql(query)
    lab.command("reset", "agent3")
    run = pyinfra("deploy", "deploys/ca.py", "deploys/agent.py", limit="agent3")
    assert run.returncode == 0, run.stdout
    assert lab.sql(query) == before
    assert lab.heartbeat_ages()["agent3"] < 30


def test_an_agent_that_is_registered_otherwise_is_left_alone(lab: Lab) -> None:
    config = "/usr/edb/pem/agent/etc/agent.cfg"
    before = lab.on("agent1").file(config).content_string
    lab.run("agent1", f"sed -i '/^agent_user=/d' {config}")
    direct = lab.on("agent1").file(config).content_string
    try:
        run = pyinfra("deploy", "deploys/agent.py", limit="agent1")
        assert run.returncode != 0
        assert "its registration is left as it is" in run.stdout
        assert lab.on("agent1").file(config).content_string == direct
    finally:
        lab.run("agent1", f"cat > {config} <<'EOF'\n{before}EOF")
        assert pyinfra("deploy", "deploys/agent.py", limit="agent1").returncode == 0
