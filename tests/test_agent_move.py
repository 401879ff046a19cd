"""An existing agent: moved onto the poolers on trial, left direct, or put back."""

import base64
import hashlib
import re

import pytest

from fleet.agent_config import AgentConfig
from fleet.facts.files import FileBytes
from fleet.facts.pem import AgentBackups, LastLine, RegisteredAgents
from fleet.heartbeats import heartbeat
from fleet.operations import agent_move
from tests.planning import fails
from tests.samples import DEBIAN_13

AGENT_CFG = "/usr/edb/pem/agent/etc/agent.cfg"
TRIAL = "/etc/pem-fleet/agent/trial"
BACKUP = "/etc/pem-fleet/agent/backups/2026-11-21T15-04-05Z"
DIRECT = b"[PEM/agent]\nagent_id=3\npem_host=pem.example.com\npem_port=5432\n"
POOLED = b"[PEM/agent]\nagent_id=3\nagent_user=pem_agent_user1\npem_host=bouncer1\npem_port=6432\n"
CLIENT = {
    "user": "pem_agent_user1",
    "database": "pem",
    "address": "192.0.2.31",
    "connected_seconds": 60.0,
}


def facts(config, trial=None, age=900.0, active=True, backups=()):
    """An agent's host, whose agent PEM knows as number 3 by a name of PEM's own."""
    files = {AGENT_CFG: config, TRIAL: trial}
    row = {"id": 3, "name": "db-17", "active": active, "heartbeat_age_seconds": age}

    def content(path):
        return files.get(path)

    return DEBIAN_13 | {
        FileBytes: content,
        RegisteredAgents: {"agents": [row], "backends": []},
        AgentBackups: list(backups),
    }


def steps(plan, known):
    return plan("deploys/agent.py", "app1", known).steps


MOVE, REGISTER = "Agent | Move onto the poolers, on trial", "Agent | Register through the poolers"


@pytest.mark.parametrize(
    ("known", "moves"),
    [
        (facts(DIRECT), True),
        (facts(DIRECT.replace(b"pem_port", b"agent_user=pem_agent_user1\npem_port")), True),
        (facts(POOLED, trial=b"/backup\n"), True),
        (facts(POOLED), False),
        (facts(None), False),
        (facts(DIRECT.replace(b"=3", b"=")), False),
        (facts(DIRECT, active=False), False),
    ],
    ids=[
        "direct",
        "direct as the pooled role",
        "on a trial that was cut off",
        "pooled",
        "no agent",
        "no valid id",
        "inactive, so there is nothing to lose",
    ],
)
def test_a_direct_agent_moves_and_others_register(plan, known, moves):
    planned = steps(plan, known)
    assert (MOVE in planned, REGISTER in planned) == (moves, not moves)


def test_a_trial_that_was_cut_off_is_undone_before_anything_else(plan):
    planned = plan("deploys/agent.py", "app1", facts(POOLED, trial=b"/backup\n"))
    assert planned.changing[0] == "Agent | Go back from a trial that was cut off"
    assert "sh /etc/pem-fleet/agent/move-agent.sh back" in planned.inputs[0]


@pytest.mark.parametrize("key", ["enable_smtp", "enable_snmp", "enable_webhook", "enable_nagios"])
def test_nothing_is_touched_on_the_host_of_an_agent_with_a_spooler(plan, caplog, key):
    planned = plan("deploys/agent.py", "app1", facts(DIRECT + f"{key} = On\n".encode()))
    assert planned.changing == []
    assert f"the agent stays direct: LISTEN of {key} does not pass" in caplog.text


def test_an_agent_with_a_spooler_behind_the_poolers_fails_with_the_way_out(plan, fleet, caplog):
    known = facts(POOLED + b"enable_smtp=true\n")
    said = fails(plan(agent_move.stays_direct, "app1", known, fleet=fleet), caplog)
    assert "enable_smtp needs LISTEN, which does not pass the poolers that agent 3" in said
    assert "HINT: make agent-rollback INVENTORY=… HOST=app1, or set it to false there" in said


def move(plan, fleet, known):
    values = {"pem_host": "bouncer1", "agent_user": "pem_agent_user1"}
    return plan(
        agent_move.moved, "app1", known, fleet=fleet, values=values, unit_settings="[Service]\n"
    )


def test_pems_own_check_tries_the_new_settings_where_the_agent_does_not_look(plan, fleet):
    check = move(plan, fleet, facts(DIRECT)).inputs[0]
    written = re.search(r"printf %s (\S+) \| base64 -d >/etc/pem-fleet/agent/candidate/", check)
    assert base64.b64decode(written[1]) == (
        b"[PEM/agent]\nagent_id=3\npem_host=bouncer1\npem_port=5432\nagent_user=pem_agent_user1\n"
    )
    assert (
        "PGSSLROOTCERT=/etc/pem-fleet/server-ca.crt timeout 60 /usr/edb/pem/agent/bin/pemworker"
        " --verify-registration --config-dir /etc/pem-fleet/agent/candidate" in check
    )
    assert AGENT_CFG not in check, "the agent's own file is not touched"


def test_the_trial_begins_only_with_the_file_that_was_read(plan, fleet):
    sha256 = hashlib.sha256(DIRECT).hexdigest()
    assert (
        f"try /etc/pem-fleet/agent/candidate {sha256}" in move(plan, fleet, facts(DIRECT)).inputs[1]
    )


def test_an_agent_that_does_not_beat_through_a_pooler_goes_back_and_fails_its_host(
    plan, fleet, caplog, monkeypatch
):
    monkeypatch.setattr(agent_move, "TRIAL_SECONDS", 0)
    monkeypatch.setattr(agent_move, "RETURN_SECONDS", 0)
    planned = move(plan, fleet, facts(DIRECT) | {LastLine: "ERROR: planted"})
    assert planned.inputs[-1].splitlines()[1] == "sh /etc/pem-fleet/agent/move-agent.sh back"
    assert planned.run_functions() == [True, False]
    assert "no heartbeat of agent 3 came through a pooler within 0 s" in caplog.text
    assert "/var/log/pem/worker.log ends with: ERROR: planted" in caplog.text
    assert "the former agent.cfg is back, but no heartbeat within 0 s" in caplog.text


@pytest.mark.parametrize(("age", "proven"), [(0.5, True), (5.0, False)])
def test_a_heartbeat_counts_when_it_came_through_a_pooler_after_the_restart(fleet, age, proven):
    found = facts(POOLED, age=age)[RegisteredAgents]
    clients = {"bouncer1": [CLIENT]}
    agent = fleet.agent.hosts[0]
    seen = heartbeat(fleet, agent, found, clients, AgentConfig(POOLED), answered_at=1003.0)
    assert agent_move.came_through(seen, moment=1000.0) is proven


def test_an_agent_with_a_connection_string_is_not_moved(plan, fleet, caplog):
    known = facts(DIRECT + b"agent_conn_string=host=pem.example.com\n")
    said = fails(move(plan, fleet, known), caplog)
    assert "agent_conn_string leads the agent around pem_host" in said


def test_an_agent_is_put_back_on_its_newest_backup(plan, fleet):
    older = BACKUP.replace("2026", "2025")
    known = facts(POOLED, backups=[older, BACKUP])
    planned = plan(agent_move.returned, "app1", known, fleet=fleet)
    assert f"sh /etc/pem-fleet/agent/move-agent.sh back {BACKUP}" in planned.inputs[0]


def test_an_agent_that_is_direct_has_nowhere_to_return_to(plan, fleet):
    known = facts(DIRECT, backups=[BACKUP])
    assert plan(agent_move.returned, "app1", known, fleet=fleet).changing == []


def test_an_agent_that_was_never_moved_is_refused_untouched(plan, fleet, caplog):
    said = fails(plan(agent_move.returned, "app1", facts(POOLED), fleet=fleet), caplog)
    assert "this agent was never moved, so there is nothing to go back to" in said


def test_only_whole_backups_count_and_the_newest_is_the_last():
    found = [f"/b/{year}/paths" for year in (2026, 2024, 2025)]
    assert AgentBackups().process(found) == ["/b/2024", "/b/2025", "/b/2026"]
    assert AgentBackups().process([""]) == []
