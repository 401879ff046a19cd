"""PEM's own programs: run once, on hosts that are ours, with secrets by standard input alone."""

import subprocess

import pytest
from paramiko import SSHException
from pyinfra.api.exceptions import ConnectError

from fleet import asking
from fleet.facts.files import FileBytes, FileStates
from fleet.facts.pem import AgentVerification, RegisteredAgents
from fleet.facts.pgbouncer import PgBouncerClients
from fleet.operations import pem
from fleet.platforms import postgres as postgres_row
from tests.planning import fails
from tests.samples import ADMIN_PASSWORD, DEBIAN_13, SUPERUSER_PASSWORD, with_cluster

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


def row(agent_id=3, name="app1", active=True):
    return {"id": agent_id, "name": name, "active": active, "heartbeat_age_seconds": 900.0}


def register(plan, fleet, text, agents=(), promised=None):
    """The plan of a registration. promised: the id that an earlier one, cut off, was to keep."""
    files = {AGENT_CFG: text, "/etc/pem-fleet/agent/agent_id": promised}
    return plan(
        pem.registered,
        "app1",
        DEBIAN_13
        | {
            FileBytes: lambda path: files[path],
            RegisteredAgents: None if agents is None else {"agents": list(agents), "backends": []},
        },
        of=fleet, fleet=fleet, poolers=("bouncer2", "bouncer1"), certificate="/c.crt", key="/c.key",
    )  # fmt: skip


REGISTERED = b"[PEM/agent]\nagent_id=3\nagent_user=pem_agent_user1\n"
NOTED = "echo 3 >/etc/pem-fleet/agent/agent_id"
FORGOTTEN = "rm -f /etc/pem-fleet/agent/agent_id"


@pytest.mark.parametrize("agents", [[row()], [row(name="whatever")], None])
def test_a_registered_agent_stays_as_it_is_also_while_pem_does_not_answer(plan, fleet, agents):
    assert register(plan, fleet, REGISTERED, agents).changing == []


@pytest.mark.parametrize("name", ["app1", "whatever"])
def test_an_agent_that_was_made_inactive_is_registered_again_with_its_id_and_name(
    plan, fleet, name
):
    planned = register(plan, fleet, REGISTERED, [row(name=name, active=False), row(agent_id=9)])
    register_agent = planned.shell[1]
    assert register_agent.endswith(" --force-registration -o agent_id=3")
    assert f"--display-name {name} " in register_agent
    assert NOTED in planned.inputs[0]
    assert "cp -p --backup=numbered /usr/edb/pem/agent/etc/agent.cfg" in planned.inputs[0]
    assert FORGOTTEN in planned.inputs[2]


def test_an_agent_whose_row_pem_lost_asks_for_its_id(plan, fleet):
    planned = register(plan, fleet, REGISTERED, [row(agent_id=9)])
    assert [one.endswith(" --force-registration -o agent_id=3") for one in planned.shell] == [True]


def test_a_registration_that_made_a_new_row_is_given_the_old_id_and_the_row_made_inactive(
    plan, fleet
):
    # As pemworker leaves it when it does not know `-o agent_id`; the run was cut off behind it.
    text = REGISTERED.replace(b"agent_id=3", b"agent_id=9")
    agents = [row(active=False), row(agent_id=9)]
    planned = register(plan, fleet, text, agents, promised=b"3\n")
    assert "a function of ours" not in planned.shell
    assert not any("--register-agent" in one for one in planned.shell), "not a third row"
    assert planned.files[AGENT_CFG].content == REGISTERED
    assert FORGOTTEN in planned.inputs[-1]
    statements = []
    database = planned.state.inventory.get_host("pem.example.com").connector

    def answer(_command, **arguments):
        statements.append((arguments["_sudo_user"], arguments["_stdin"]))
        return True, ""

    database.run_shell_command = answer
    assert planned.run_functions() == [True]
    assert statements == [
        ("postgres", "UPDATE pem.agent SET active = (id = 3) WHERE id IN (3, 9);")
    ]


def test_the_old_row_becomes_active_again_on_the_host_that_answers(plan, fleet, caplog):
    text = REGISTERED.replace(b"agent_id=3", b"agent_id=9")
    cluster = with_cluster(fleet)
    planned = register(plan, cluster, text, [row(active=False), row(agent_id=9)], promised=b"3\n")
    hosts = {name: planned.state.inventory.get_host(name) for name in ("pem1", "pem2", "pem3")}
    asking._families.pop("pem1", None)

    def down(*_arguments, **_options):
        raise ConnectError("no route to host")

    def cut(*_arguments, **_options):
        raise SSHException("connection lost")

    hosts["pem1"].get_fact = down
    hosts["pem2"].connector.run_shell_command = cut
    hosts["pem3"].connector.run_shell_command = lambda *_arguments, **_options: (True, "")
    caplog.set_level("INFO")
    assert planned.run_functions() == [True]
    assert "keeps id 3; the new row 9 is inactive" in caplog.text
    hosts["pem3"].connector.run_shell_command = cut
    assert planned.run_functions() == [False]
    assert "pem1 cannot be reached; pem2 does not answer: connection lost; pem3" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"",
        b"[PEM/agent]\npem_host=x\n",
        b"[PEM/agent]\nagent_id=0\n",
        b"[PEM/agent]\nagent_id=\n",
    ],
)
def test_an_agent_without_an_id_registers_with_the_password_on_standard_input(plan, fleet, text):
    planned = register(plan, fleet, text)
    assert planned.inputs == [f"{ADMIN_PASSWORD}\n"]
    assert "--pem-server bouncer2,bouncer1 --pem-port 6432,6432" in planned.shell[0]
    assert ADMIN_PASSWORD not in planned.shell[0]
    assert "--force-registration" not in planned.shell[0]


def test_an_agent_that_pem_knows_by_name_keeps_its_id(plan, fleet):
    planned = register(plan, fleet, None, [row(agent_id=7)])
    assert planned.shell[1].endswith(" --force-registration -o agent_id=7")


def test_no_agent_is_registered_while_pem_cannot_say_whether_it_is_known(plan, fleet, caplog):
    said = fails(register(plan, fleet, None, None), caplog)
    assert "PEM's database on pem.example.com does not answer" in said
    assert "HINT: make deploy INVENTORY=… DEPLOY=deploys/pem_server.py" in said


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


PAPERS = b"[PEM/agent]\nagent_id=3\nagent_ssl_crt=/old.crt\nagent_ssl_key=/old.key\n"


@pytest.mark.parametrize(
    ("values", "tried"),
    [({"agent_ssl_crt": "/new.crt"}, True), ({"connect_timeout": "10"}, False)],
    ids=["another certificate", "the same"],
)
def test_another_certificate_is_tried_at_the_poolers_before_the_agent_gets_it(plan, values, tried):
    planned = plan(pem.agent_settings, "app1", {FileBytes: PAPERS}, values=values)
    checks = [text for text in planned.inputs if "--verify-registration" in text]
    assert planned.inputs[: len(checks)] == checks, "before anything is written"
    assert len(checks) == tried
    assert len(planned.files) == 1


@pytest.mark.parametrize("code", [0, 2])
def test_an_agent_that_poolers_would_not_let_in_keeps_its_agent_cfg(
    plan, tmp_path, monkeypatch, code
):
    worker, seen = tmp_path / "pemworker", tmp_path / "seen"
    worker.write_text(f'#!/bin/sh\ncat "$3/agent.cfg" >{seen}\necho unknown ca\nexit {code}\n')
    worker.chmod(0o755)
    monkeypatch.setattr(pem, "PEM_WORKER", str(worker))
    monkeypatch.setattr(pem, "AGENT_DIRECTORY", str(tmp_path))
    values = {"agent_ssl_crt": "/new.crt"}
    check = plan(pem.agent_settings, "app1", {FileBytes: PAPERS}, values=values).inputs[0]
    text = check.replace("sleep 1", "sleep 0")
    done = subprocess.run(["sh"], input=text, capture_output=True, text=True, check=False)
    assert seen.read_bytes() == PAPERS.replace(b"/old.crt", b"/new.crt")
    assert not list(tmp_path.glob("check.*")), "the candidate is gone"
    if code == 0:
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert (done.returncode, done.stderr) == (
        1,
        "not let in by the poolers, agent.cfg stays as it is: it cannot connect: unknown ca\n"
        "HINT: tail /var/log/pem/worker.log, and the poolers' logs\n"
        "HINT: poolers first: pyinfra INVENTORY deploys/pgbouncer.py\n",
    )


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
