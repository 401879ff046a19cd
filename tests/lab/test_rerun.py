"""A second run changes nothing, and renewing every certificate costs no agent its connection."""

import re

import pytest

from tests.lab.conftest import Lab, pyinfra, raw_pyinfra

pytestmark = pytest.mark.lab

DEPLOYS = ("ca", "pem_server", "pgbouncer", "agent")


@pytest.mark.parametrize("deploy", DEPLOYS)
@pytest.mark.usefixtures("lab")
def test_a_second_run_changes_nothing(deploy: str) -> None:
    run = pyinfra("unchanged", f"deploys/{deploy}.py")
    assert run.returncode == 0, run.stdout
    assert ": 0 of " in run.stdout


@pytest.mark.parametrize("deploy", DEPLOYS)
@pytest.mark.usefixtures("lab")
def test_pyinfra_itself_plans_the_same_file_and_finds_nothing_to_do(deploy: str) -> None:
    plan = raw_pyinfra(f"deploys/{deploy}.py", "--dry")
    assert plan.returncode == 0, plan.stdout
    table = plan.stdout.partition("Detected changes:")[2]
    assert table, plan.stdout
    assert not re.search(r"\b(pem1|bouncer[12]|agent[123])\b", table), table


def _shown(lab: Lab, address: str) -> str:
    """The serial number of the certificate that a server shows, as openssl sees it."""
    return lab.run(
        "agent1",
        f"openssl s_client -connect {address} -starttls postgres </dev/null 2>/dev/null"
        " | openssl x509 -noout -serial",
    )


def test_all_certificates_are_renewed_while_every_agent_stays_connected(lab: Lab) -> None:
    servers = ("pem1:5432", "bouncer1:6432", "bouncer2:6432")
    shown = {server: _shown(lab, server) for server in servers}
    clients = {name: lab.connect_times(name) for name in ("bouncer1", "bouncer2")}
    assert sum(map(len, clients.values())) == 3
    papers = lab.run("agent1", "sha256sum /etc/pem-fleet/agent/pem_agent_user1.crt")

    # What is not there is issued like what is due.
    for kind in ("servers", "clients"):
        for certificate in (lab.fleet.certificate_authority.path / kind).glob("*.crt"):
            certificate.unlink()
    run = pyinfra("deploy")
    assert run.returncode == 0, run.stdout

    assert all(_shown(lab, server) != shown[server] for server in servers)
    assert lab.run("agent1", "sha256sum /etc/pem-fleet/agent/pem_agent_user1.crt") != papers
    assert {name: lab.connect_times(name) for name in clients} == clients
    # New logins use the new papers, on both sides of a pooler.
    with lab.console("bouncer1") as console:
        console.execute("RECONNECT")
    assert lab.serves("bouncer1")
    again = pyinfra("unchanged")
    assert again.returncode == 0, again.stdout
