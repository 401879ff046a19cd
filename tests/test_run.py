"""`python -m fleet.run` never calls a run a success that pyinfra did not do."""

import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from fleet import ROOT
from fleet.inventory import fleet_of
from fleet.run import DEPLOYS, RunError, _where, changes, main

INVENTORY = """\
from fleet.hosts import Agent, CertificateAuthority, Fleet, Host, PemServer, PgBouncer
from fleet.secrets import secret
from fleet.ssh import ssh

# Nobody listens on this port.
_ssh = ssh(user="nobody", port={port}, known_hosts="/dev/null", connect_retries=0)
_here = {{**_ssh, "ssh_hostname": "127.0.0.1"}}

pem = Host(name="pem", address="192.0.2.10", ssh=_here)
bouncer1 = Host(name="bouncer1", address="192.0.2.21", ssh=_here)
app1 = Host(name="app1", address="192.0.2.31", ssh=_here)
authority = CertificateAuthority(directory="{directory}/pki")
server = PemServer(hosts=(pem,), admin_password=secret("PEM_ADMIN_PASSWORD"))
bouncer = PgBouncer(hosts=(bouncer1,), server=server, admin_networks=("192.0.2.0/28",))
agents = Agent(hosts=(app1,), via=bouncer)
fleet = Fleet(certificate_authority=authority, pem_server=server, pgbouncer=bouncer, agent=agents)

pem_server = fleet.group("pem_server")
pgbouncer = fleet.group("pgbouncer")
agent = fleet.group("agent")
"""


@pytest.fixture
def inventory(tmp_path):
    """An inventory whose hosts refuse every connection."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    file = tmp_path / "inventory.py"
    file.write_text(INVENTORY.format(port=port, directory=tmp_path))
    return str(file)


@pytest.fixture
def run(monkeypatch, capfd):
    """run(arguments): the exit code of fleet.run, and what it and pyinfra print."""
    monkeypatch.setenv("PEM_ADMIN_PASSWORD", "planted-admin-password")

    def run(*arguments):
        code = main(list(arguments))
        said = capfd.readouterr()
        return code, said.out + said.err

    return run


def command(*arguments):
    """The exit code of a command, started in the root, and what it prints."""
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_pyinfra_alone_calls_a_missing_inventory_a_success():
    # The reason for the wrapper: the path is taken for the name of a host, and nobody is reached.
    code, said = command(
        Path(sys.executable).with_name("pyinfra"), "inventories/no.py", "deploys/ca.py", "-y"
    )
    assert code == 0, said


def test_a_missing_inventory_is_a_failure():
    code, said = command(sys.executable, "-m", "fleet.run", "deploy", "inventories/no.py")
    assert code == 1
    assert said == (
        "inventory inventories/no.py does not exist"
        "\nHINT: there are inventories/example.py, inventories/lab.py, inventories/prod.py\n"
    )


def test_a_missing_deploy_is_a_failure_before_any_other_runs(run, inventory):
    code, said = run("deploy", inventory, "deploys/ca.py", "deploys/no.py")
    assert code == 1
    assert said == (
        "deploy deploys/no.py does not exist\nHINT: there are deploys/access.py, deploys/agent.py,"
        " deploys/agent_rollback.py, deploys/ca.py, deploys/pem_server.py, deploys/pgbouncer.py,"
        " deploys/pgbouncer_restart.py\n"
    )


def test_an_agent_is_rolled_back_by_its_hosts_name_alone():
    # As if the environment was made: the target looks at its variables first.
    code, said = command(
        "make",
        "-o",
        ".venv/installed",
        "agent-rollback",
        "INVENTORY=inventories/example.py",
        "HOST=",
    )
    assert code != 0
    # Between make's own lines, where this test runs under another make.
    assert (
        "HOST is not given"
        "\nHINT: make agent-rollback INVENTORY=inventories/example.py HOST=agent1\n"
    ) in said


@pytest.mark.parametrize("limits", [["--limit", "agent"], []], ids=["a group", "no limit"])
def test_agents_are_not_rolled_back_all_at_once(run, inventory, limits):
    code, said = run("deploy", inventory, "deploys/agent_rollback.py", *limits)
    assert code == 1
    assert said == (
        "deploys/agent_rollback.py goes to one host at a time, not to the group agent"
        f"\nHINT: make agent-rollback INVENTORY={inventory} HOST=app1\n"
    )


@pytest.mark.parametrize(
    ("deploys", "limit", "idle"),
    [
        (["deploys/ca.py"], "nobody", "deploys/ca.py"),
        (["deploys/agent.py"], "bouncer1", "deploys/agent.py"),
        (["deploys/agent_rollback.py"], "bouncer1", "deploys/agent_rollback.py"),
        (["deploys/ca.py", "deploys/agent.py"], "bouncer1", "deploys/agent.py"),
        (["deploys/pem_server.py", "deploys/agent.py"], "pgbouncer",
         "deploys/pem_server.py, deploys/agent.py"),
        ([], "nobody", ", ".join(f"deploys/{name}.py" for name in DEPLOYS)),
    ],
    ids=[
        "no such host", "another role", "rolling back no agent", "one of two", "a group",
        "none named, no such host",
    ],
)  # fmt: skip
def test_a_limit_that_leaves_a_named_deploy_without_a_host_is_a_failure(
    run, inventory, deploys, limit, idle
):
    code, said = run("deploy", inventory, *deploys, "--limit", limit)
    assert code == 1
    assert said == (
        f"{inventory}: {idle} has nothing to do on {limit}"
        "\nHINT: the hosts are pem, bouncer1, app1\n"
    )


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        (
            None,
            {
                "deploys/ca.py": ["pem", "bouncer1", "app1"],
                "deploys/pem_server.py": ["pem"],
                "deploys/pgbouncer.py": ["bouncer1"],
                "deploys/agent.py": ["app1"],
            },
        ),
        ("app1", {"deploys/ca.py": ["app1"], "deploys/agent.py": ["app1"]}),
        ("pgbouncer", {"deploys/ca.py": ["bouncer1"], "deploys/pgbouncer.py": ["bouncer1"]}),
    ],
    ids=["no limit", "a host", "a group"],
)
def test_without_a_named_deploy_each_role_goes_to_its_own_hosts_and_others_are_left_out(
    monkeypatch, inventory, limit, wanted
):
    monkeypatch.setenv("PEM_ADMIN_PASSWORD", "planted-admin-password")
    options = Namespace(inventory=inventory, deploys=[], limit=limit)
    deploys = [f"deploys/{name}.py" for name in DEPLOYS]
    assert _where(fleet_of(inventory), options, deploys) == wanted


@pytest.mark.parametrize("verb", ["plan", "deploy"])
def test_hosts_that_cannot_be_reached_are_a_failure(run, inventory, verb):
    code, said = run(verb, inventory, "deploys/pgbouncer.py", "--limit", "bouncer1")
    assert code == 1
    assert "deploys/pgbouncer.py failed: see the lines above" in said
    assert "HINT: mend that and run again, it goes on where it stopped" in said


def test_after_a_failed_deploy_the_next_one_does_not_run(run, inventory):
    code, said = run("deploy", inventory, "deploys/pem_server.py", "deploys/pgbouncer.py")
    assert code == 1
    assert "=== deploys/pem_server.py" in said
    assert "=== deploys/pgbouncer.py" not in said


def test_a_roles_deploy_logs_in_to_the_hosts_of_the_role_alone(run, inventory):
    _, said = run("plan", inventory, "deploys/agent.py")
    assert "[app1]" in said
    assert "[bouncer1]" not in said


def test_poolers_are_restarted_one_after_the_other_and_none_after_a_failure(run, inventory):
    text = Path(inventory).read_text()
    second = 'Host(name="bouncer2", address="192.0.2.22", ssh=_here)'
    Path(inventory).write_text(text.replace("(bouncer1,)", f"(bouncer1, {second})"))
    code, said = run("restart", inventory)
    assert code == 1
    assert said.count("=== deploys/pgbouncer_restart.py") == 1
    assert "[bouncer1]" in said
    assert "[bouncer2]" not in said


def test_mistakes_of_the_inventory_are_told_without_a_traceback(run, inventory):
    Path(inventory).write_text(Path(inventory).read_text().replace("192.0.2.31", "somewhere"))
    code, said = run("plan", inventory)
    assert code == 1
    assert said.startswith("1 mistake in the inventory; no host was touched\n")
    assert "Traceback" not in said


def results(*steps):
    operations = [{"name": name, "success": hosts, "no_change": []} for name, hosts in steps]
    return {"results": {"totals": {"hosts": 1}, "operations": operations}}


def test_steps_that_changed_a_host_are_named():
    document = results(("Install", []), ("Write", ["app1"]), ("Start", []))
    assert changes(document, "inventories/lab.py") == ["Write"]


@pytest.mark.parametrize(
    "document", [None, {"results": {"totals": {"hosts": 0}, "operations": []}}]
)
def test_a_run_on_no_host_is_a_failure(document):
    with pytest.raises(RunError, match=r"nothing ran\nHINT: pyinfra inventories/lab.py debug"):
        changes(document, "inventories/lab.py")
