"""PEM's own programs: run once, on hosts that are ours, with secrets by standard input alone."""

import pytest

from fleet.facts.files import FileBytes, FileStates
from fleet.facts.pem import AgentVerification, RegisteredAgents
from fleet.facts.pgbouncer import PgBouncerClients
from fleet.operations import pem
from fleet.platforms import postgres as postgres_row
from tests.planning import fails
from tests.samples import ADMIN_PASSWORD, DEBIAN_13, SUPERUSER_PASSWORD

AGENT_CFG = "/usr/edb/pem/agent/etc/agent.cfg"


def configure(plan, fleet, record):
    return plan(
        pem.configured,
        "pem.example.com",
        {FileStates: record},
        server=fleet.pem_server,
        place=postgres_row("debian", "distribution", 17),
    )


def test_pem_is_configured_once(plan, fleet):
    state = {"user": "root", "group": "root", "mode": "600", "sha256": "0" * 64}
    record = {"/usr/edb/pem/share/.install-config": state}
    assert configure(plan, fleet, record).changing == []


def test_pems_configuration_asks_for_its_password_on_standard_input(plan, fleet):
    planned = configure(plan, fleet, {})
    assert planned.inputs == [f"{SUPERUSER_PASSWORD}\n"]
    assert SUPERUSER_PASSWORD not in planned.shell[0]


def register(plan, fleet, text, agents=()):
    return plan(
        pem.registered,
        "app1",
        DEBIAN_13
        | {
            FileBytes: text,
            RegisteredAgents: None if agents is None else {"agents": list(agents), "backends": []},
        },
        fleet=fleet, poolers=("bouncer2", "bouncer1"), certificate="/c.crt", key="/c.key",
    )  # fmt: skip


def test_a_registered_agent_stays_as_it_is(plan, fleet):
    text = b"[PEM/agent]\nagent_id=3\nagent_user=pem_agent_user1\n"
    assert register(plan, fleet, text).changing == []


@pytest.mark.parametrize(
    ("line", "user"), [(b"", "agent3"), (b"agent_user=pem_agent_user9\n", "pem_agent_user9")]
)
def test_an_agent_that_is_registered_as_somebody_else_is_not_touched(
    plan, fleet, caplog, line, user
):
    text = b"[PEM/agent]\nagent_id=3\n" + line
    planned = plan(pem.ours_to_register, "app1", {FileBytes: text}, server=fleet.pem_server)
    said = fails(planned, caplog)
    assert f"agent 3 is registered as {user}, the inventory wants pem_agent_user1" in said
    assert "nothing on this host was changed" in said
    assert "HINT: /usr/edb/pem/agent/bin/pemworker --unregister-agent" in said


@pytest.mark.parametrize(
    "text",
    [None, b"[PEM/agent]\npem_host=x\n", b"[PEM/agent]\nagent_id=3\nagent_user=pem_agent_user1\n"],
    ids=["no agent", "not registered", "registered by us"],
)
def test_an_agent_that_is_new_or_ours_may_be_deployed(plan, fleet, text):
    planned = plan(pem.ours_to_register, "app1", {FileBytes: text}, server=fleet.pem_server)
    assert planned.changing == []


def test_whose_agent_it_is_comes_before_every_change(plan):
    registered = b"[PEM/agent]\nagent_id=3\nagent_user=agent3\n"
    planned = plan("deploys/agent.py", "app1", DEBIAN_13 | {FileBytes: registered})
    assert planned.changing[0] == "Agent | See that it is ours to register"


@pytest.mark.parametrize("text", [None, b"", b"[PEM/agent]\npem_host=x\n"])
def test_an_agent_without_an_id_registers_with_the_password_on_standard_input(plan, fleet, text):
    planned = register(plan, fleet, text)
    assert planned.inputs == [f"{ADMIN_PASSWORD}\n"]
    assert "--pem-server bouncer2,bouncer1 --pem-port 6432,6432" in planned.shell[0]
    assert ADMIN_PASSWORD not in planned.shell[0]
    assert "--force-registration" not in planned.shell[0]


def test_an_agent_that_pem_knows_by_name_keeps_its_id(plan, fleet):
    known = {"id": 7, "name": "app1", "active": True, "heartbeat_age_seconds": 900.0}
    planned = register(plan, fleet, None, [known])
    assert planned.shell[0].endswith(" --force-registration -o agent_id=7")


def test_no_agent_is_registered_while_pem_cannot_say_whether_it_is_known(plan, fleet, caplog):
    said = fails(register(plan, fleet, None, None), caplog)
    assert "PEM's database on pem.example.com does not answer" in said
    assert "HINT: pyinfra INVENTORY deploys/pem_server.py" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, f"{AGENT_CFG} is not there: the agent is not registered"),
        (b"[other]\n", f"{AGENT_CFG}: section [PEM/agent] is not there"),
    ],
)
def test_settings_of_an_agent_that_is_not_registered_fail_the_host(plan, caplog, text, said):
    planned = plan(pem.agent_settings, "app1", {FileBytes: text}, values={"pem_host": "b"})
    assert said in fails(planned, caplog)


def test_settings_that_are_there_are_left_alone(plan):
    facts = {FileBytes: b"[PEM/agent]\npem_host = b\n"}
    assert plan(pem.agent_settings, "app1", facts, values={"pem_host": "b"}).changing == []


@pytest.mark.parametrize(("code", "changes"), [(0, 0), (1, 1), (2, 1), (3, 1), (None, 1)])
def test_a_registration_is_verified_until_pem_says_it_is_good(plan, code, changes):
    assert len(plan(pem.verified, "app1", {AgentVerification: code}).shell) == changes


def test_a_fresh_heartbeat_is_not_waited_for(plan, fleet):
    agent = {"id": 7, "name": "app1", "active": True, "heartbeat_age_seconds": 2.0}
    client = {
        "user": "pem_agent_user1",
        "database": "pem",
        "address": "192.0.2.31",
        "connected_seconds": 60.0,
    }
    facts = DEBIAN_13 | {
        RegisteredAgents: {"agents": [agent], "backends": []},
        PgBouncerClients: [client],
    }
    assert plan(pem.beats, "app1", facts, fleet=fleet).changing == []
    assert plan(pem.beats, "app2", facts, fleet=fleet).changing != []


def test_an_agent_cfg_that_is_not_utf_8_keeps_its_bytes(plan):
    facts = {FileBytes: b"[PEM/agent]\nlog_location=/var/log/\xe9\npem_host=a\n"}
    planned = plan(pem.agent_settings, "app1", facts, values={"pem_host": "b"})
    (file,) = planned.files.values()
    assert file.content == b"[PEM/agent]\nlog_location=/var/log/\xe9\npem_host=b\n"
