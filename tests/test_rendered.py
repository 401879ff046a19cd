"""What each deploy would do to a host: its steps, and its files byte for byte.

The expected texts are in tests/rendered/SYSTEM/DEPLOY/: `steps.txt`, and each file at the path it
has on the host; one that is a file of files/ byte for byte is told as `= files/NAME`. After a
change that is meant, write them anew and review them as any other change:

    .venv/bin/python -m pytest tests/test_rendered.py --write-rendered; git diff tests/rendered
"""

import pytest
from pyinfra.api.exceptions import DeployError

from fleet import ROOT
from fleet.facts.authority import PemAuthority
from fleet.facts.files import FileBytes
from fleet.facts.packages import MissingPackages
from fleet.facts.pem import AgentBackups, RegisteredAgents
from fleet.facts.postgres import PostgresStandby
from tests.planning import files_of
from tests.samples import (
    ADMIN_PASSWORD,
    DEBIAN_13,
    ROCKY_9,
    STATS_PASSWORD,
    SUPERUSER_PASSWORD,
    USER_PASSWORD,
    sample_access,
    with_authorities,
    with_cluster,
    with_ipv6,
    with_server,
    with_several_processes,
)

RENDERED = ROOT / "tests" / "rendered"
# What is in files/ is reviewed there.
VERBATIM = {
    path.read_bytes(): f"= files/{path.name}\n".encode() for path in (ROOT / "files").iterdir()
}
SYSTEMS = {"debian-13": DEBIAN_13, "rocky-9": ROCKY_9}

# PEM itself is installed on the Debian family only; elsewhere it is there before.
WITHOUT_INSTALLATION = {
    f"rocky-9/{case}pem_server" for case in ("", "access-", "processes-", "ipv6-", "pem-")
}

# As `pemworker --register-agent` leaves it.
AGENT_CFG = b"""\
[PEM/agent]
pem_host=bouncer1
pem_port=6432
agent_id=3
agent_user=pem_agent_user1
agent_ssl_key=/root/.pem/pem_agent_user1.key
agent_ssl_crt=/root/.pem/pem_agent_user1.crt
log_level=warning
log_location=/var/log/pem/agent.log
long_wait=30
pem_ssl_mode=verify-full
heartbeat_connection=false
"""


# As PEM leaves it without a pooler, and as people then change it.
DIRECT_CFG = b"""\
# caf\xe9: not UTF-8
[PEM/agent]
long_wait=30
agent_id=3
; pem_host=10.0.0.1
pem_host=pem.example.com
pem_port=5432
agent_ssl_crt=/root/.pem/agent3.crt
agent_ssl_key=/root/.pem/agent3.key
pem_ssl_mode=require
our_own_key=stays

[WEBHOOK/chat]
pem_host=not-this-one
"""


def with_agent(text, active=True):
    """The facts of a host with this agent.cfg, whose agent PEM knows as number 3."""

    def content(path):
        return text if path == "/usr/edb/pem/agent/etc/agent.cfg" else None

    row = {"id": 3, "name": "app1", "active": active, "heartbeat_age_seconds": 900.0}
    known = {"agents": [row], "backends": []}
    return {FileBytes: content, MissingPackages: [], RegisteredAgents: known}


def pem_ca(**_):
    """PEM's CA, as its server tells it."""
    return (ROOT / "tests" / "authority" / "server-ca.crt").read_text()


CASES = {
    "pem_server": ("deploys/pem_server.py", "pem.example.com", {}),
    "pgbouncer": ("deploys/pgbouncer.py", "bouncer1", {}),
    # The second host of a cluster: what comes by replication is left alone.
    "cluster-standby": ("deploys/pem_server.py", "pem2", {PostgresStandby: True}),
    "cluster-pgbouncer": ("deploys/pgbouncer.py", "bouncer1", {}),
    # An inventory with databases and users beside PEM's.
    "access": ("deploys/access.py", "pem.example.com", {}),
    "access-pem_server": ("deploys/pem_server.py", "pem.example.com", {}),
    "access-pgbouncer": ("deploys/pgbouncer.py", "bouncer1", {}),
    # Several processes on each pooler, and a user who watches them.
    "processes-pem_server": ("deploys/pem_server.py", "pem.example.com", {}),
    "processes-pgbouncer": ("deploys/pgbouncer.py", "bouncer1", {}),
    "ipv6-pem_server": ("deploys/pem_server.py", "pem.example.com", {}),
    "ipv6-pgbouncer": ("deploys/pgbouncer.py", "bouncer1", {}),
    # Where PEM's own CA issues the client certificates, and ours is not trusted.
    "pem-pem_server": ("deploys/pem_server.py", "pem.example.com", {}),
    "pem-pgbouncer": ("deploys/pgbouncer.py", "bouncer1", {PemAuthority: pem_ca}),
    "pem-agent": ("deploys/agent.py", "app1", {PemAuthority: pem_ca}),
    "pem-agent-registered": (
        "deploys/agent.py",
        "app1",
        with_agent(AGENT_CFG) | {PemAuthority: pem_ca},
    ),
    "pem-agent-direct": (
        "deploys/agent.py",
        "app1",
        with_agent(DIRECT_CFG) | {PemAuthority: pem_ca},
    ),
    "agent": ("deploys/agent.py", "app1", {}),
    "agent-registered": ("deploys/agent.py", "app1", with_agent(AGENT_CFG)),
    "agent-inactive": ("deploys/agent.py", "app1", with_agent(AGENT_CFG, active=False)),
    "agent-direct": ("deploys/agent.py", "app1", with_agent(DIRECT_CFG)),
    "agent-spooling": (
        "deploys/agent.py",
        "app1",
        with_agent(DIRECT_CFG.replace(b"our_own_key=stays", b"enable_snmp=Yes")),
    ),
    "agent-rollback": (
        "deploys/agent_rollback.py",
        "app1",
        with_agent(AGENT_CFG)
        | {AgentBackups: ["/etc/pem-fleet/agent/backups/2026-11-21T15-04-05Z"]},
    ),
}


@pytest.fixture(params=[(system, case) for system in SYSTEMS for case in CASES], ids="/".join)
def rendered(request, fleet, plan):
    """The folder of the expected files, and what would be written today."""
    system, case = request.param
    deploy, host, facts = CASES[case]
    if case.startswith("cluster-"):
        fleet = with_cluster(fleet)
    if case.startswith("pem-"):
        fleet = with_authorities(fleet, "pem")
    if case.startswith("access"):
        fleet = fleet.but(access=sample_access())
    if case.startswith("processes-"):
        fleet = with_several_processes(fleet)
    if case.startswith("ipv6-"):
        fleet = with_ipv6(fleet)
    if f"{system}/{case}" in WITHOUT_INSTALLATION:
        fleet = with_server(fleet, installation=None)
    return RENDERED / system / case, plan(deploy, host, SYSTEMS[system] | facts, of=fleet)


def test_pem_is_not_installed_on_the_rhel_family_and_the_way_out_is_told(plan):
    with pytest.raises(DeployError) as error:
        plan("deploys/pem_server.py", "pem.example.com", ROCKY_9)
    assert str(error.value) == (
        "pem.example.com: PEM is installed on Debian and Ubuntu only, so far"
        "\nHINT: install and configure PEM by hand, and leave installation= out"
    )


def test_a_host_gets_exactly_the_reviewed_steps_and_files(rendered, request):
    folder, planned = rendered
    compare(folder, {"steps.txt": steps(planned)} | reviewable(planned), request)


def reviewable(planned):
    """Every file that would be written, but those of deploys/ca.py."""
    return {
        path.lstrip("/"): VERBATIM.get(file.content, file.content)
        for path, file in planned.files.items()
        if not is_certificate(path)
    }


def compare(folder, today, request):
    """See that today's texts are those of a folder, or write the folder anew."""
    if request.config.getoption("--write-rendered"):
        write(folder, today)
        pytest.skip(f"{folder.relative_to(ROOT)} was written, not compared")
    reviewed = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert today == reviewed


@pytest.mark.parametrize("path", ["pg_hba.conf", "pg_ident.conf"])
def test_two_deploys_write_the_same_rules_so_that_neither_undoes_the_other(fleet, plan, path):
    fleet = fleet.but(access=sample_access())
    contents = {
        file.content
        for deploy in ("deploys/pem_server.py", "deploys/access.py")
        for name, file in plan(deploy, "pem.example.com", DEBIAN_13, of=fleet).files.items()
        if name.endswith(path)
    }
    assert len(contents) == 1


def test_no_password_is_in_a_step_or_in_a_file(rendered):
    _, planned = rendered
    shown = b"\n".join([steps(planned), *(file.content for file in planned.files.values())])
    for password in (ADMIN_PASSWORD, STATS_PASSWORD, SUPERUSER_PASSWORD, USER_PASSWORD):
        assert password.encode() not in shown


def steps(planned):
    """Every step with its commands; a script that writes files begins with them."""
    lines = []
    for name, commands in planned.steps.items():
        lines.append(name)
        for command in commands:
            text = getattr(command, "get_raw_value", lambda: "a function of ours")()
            for path, file in files_of(_input(command)).items():
                owner = f"{file.user} {file.mode}" if file.user else "(owner and mode stay)"
                lines.append(f"    write {path} {owner}")
            lines.append(f"    {text}")
    return "\n".join([*lines, ""]).encode()


def _input(command):
    return getattr(command, "connector_arguments", {}).get("_stdin", "")


def is_certificate(path):
    """True for files that deploys/ca.py makes: their content is not ours to review."""
    return path.endswith((".crt", ".key")) and "ca_certificates" not in path


def write(folder, texts):
    """Replace the folder's files."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text)
