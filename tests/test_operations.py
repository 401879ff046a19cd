"""Operations do nothing where all is well, and fail one host, in words, where they cannot."""

import base64
import re

import pytest
from pydantic import SecretStr

from fleet.certificates import Leaf
from fleet.facts.files import FileStates
from fleet.facts.packages import MissingPackages
from fleet.facts.pgbouncer import PgBouncerConfig
from fleet.facts.services import ReplacedBinaries, Service
from fleet.hosts import CertificateAuthority
from fleet.operations import certificates, files, packages, pgbouncer, services
from fleet.pki import authorities_missing, make_authorities
from fleet.processes import Process
from tests.planning import fails
from tests.samples import ADMIN_PASSWORD

AGENT_CFG = "/usr/edb/pem/agent/etc/agent.cfg"
RUNS = {
    "active": True,
    "needs_daemon_reload": False,
    "older_than": [],
    "unread": [],
    "open_files": 1024,
}


# Packages and services


def test_packages_that_are_there_are_left_alone(plan):
    planned = plan(
        packages.installed, "app1", {MissingPackages: []}, names=("a", "b"), family="debian"
    )
    assert planned.changing == []


def test_only_missing_packages_are_installed_and_none_is_upgraded(plan):
    facts = {MissingPackages: ["b"]}
    planned = plan(packages.installed, "app1", facts, names=("a", "b"), family="debian")
    assert planned.shell[-1].endswith(" install --no-install-recommends --no-upgrade b")


@pytest.mark.parametrize(("behind", "commands"), [(False, []), (True, ["systemctl daemon-reload"])])
def test_systemd_reads_units_only_when_it_is_behind(plan, behind, commands):
    facts = {Service: RUNS | {"needs_daemon_reload": behind}}
    assert plan(services.units_read, "app1", facts, unit="pemagent").shell == commands


@pytest.mark.parametrize(
    ("state", "commands"),
    [
        ({}, []),
        ({"active": False}, ["systemctl restart pemagent"]),
        ({"older_than": [AGENT_CFG]}, ["systemctl restart pemagent"]),
    ],
    ids=["runs on its files", "does not run", "runs on older files"],
)
def test_a_service_is_restarted_only_when_it_is_behind(plan, state, commands):
    facts = {Service: RUNS | state}
    planned = plan(services.restarted_since, "app1", facts, unit="pemagent", files=(AGENT_CFG,))
    assert planned.shell == commands


def test_a_service_is_older_than_a_file_written_after_its_start_and_reads_it_when_reloaded():
    said = [
        "ActiveState=active",
        "NeedDaemonReload=no",
        "ActiveEnterTimestampMonotonic=100000000",
        "StateChangeTimestampMonotonic=150000000",
        "MainPID=1",
        "now=1700000200.0 200.0",
        "file=1700000099.9 1700000099.9 /before",
        "file=1700000100.1 1700000149.9 /after",
        "file=1700000000.0 1700000150.1 /put back",
        "limit=1024",
    ]
    assert Service().process(said) == RUNS | {"older_than": ["/after"], "unread": ["/put back"]}


# PgBouncer

WRITTEN = {"auth_query": "SELECT /* new */", "listen_addr": "*", "listen_port": "6432"}
ONLY = Process("pgbouncer", "/etc/pgbouncer/pgbouncer.ini", "/run/postgresql", "/pid", "/log")
SEVERAL = tuple(
    Process(f"pgbouncer@{n}", f"/etc/pgbouncer/pgbouncer-{n}.ini", f"/run/{n}", "/pid", "/log", n)
    for n in (1, 2)
)


def running(process=ONLY, **changes):
    """SHOW CONFIG of a process that runs as written, with changes."""
    own = {"unix_socket_dir": process.socket_directory, "peer_id": str(process.peer_id)}
    values = WRITTEN | own | changes
    return {
        name: {"value": value, "reloadable": name == "auth_query"} for name, value in values.items()
    }


def run_as_written(plan, config, service, **given):
    return plan(
        pgbouncer.runs_as_written,
        "bouncer1",
        {PgBouncerConfig: config, Service: RUNS | service} | given.pop("facts", {}),
        **{"processes": (ONLY,)} | given,
        user="postgres", port=6432, settings=lambda: WRITTEN, open_files=1024, files=("/hba",),
    )  # fmt: skip


def verbs(planned):
    """What systemctl would be told first, for each script."""
    return [verb for text in planned.inputs for verb in re.findall(r"(?m)^verb=(\w+)$", text)]


@pytest.mark.parametrize(
    ("config", "service", "verb", "raised"),
    [
        pytest.param(running(), {}, None, False, id="runs as written"),
        pytest.param(running(auth_query="SELECT /* old */"), {}, "reload", False, id="other files"),
        pytest.param(running(listen_port="6433"), {}, "restart", False, id="another port"),
        pytest.param(running(), {"open_files": 100}, "reload", True, id="too few descriptors"),
        pytest.param({}, {}, "restart", False, id="no answer"),
        pytest.param({}, {"active": False}, "restart", False, id="stopped"),
    ],
)
def test_a_pooler_is_reloaded_and_restarted_only_where_a_reload_cannot_do_it(
    plan, config, service, verb, raised
):
    planned = run_as_written(plan, config, service)
    assert verbs(planned) == ([verb] if verb else [])
    raising = (
        "prlimit --pid $(systemctl show -p MainPID --value pgbouncer) --nofile=1024:"
        " 2>/dev/null || verb=restart"
    )
    assert [raising in text.splitlines() for text in planned.inputs] == [raised] * bool(verb)


def test_a_pooler_is_reloaded_after_its_files_were_put_back_though_they_look_the_same(plan):
    planned = run_as_written(plan, running(), {"unread": ["/hba"]})
    assert verbs(planned) == ["reload"]


def test_of_several_processes_only_those_that_are_behind_are_touched_one_after_the_other(plan):
    def config(directory, **_):
        number = int(directory.rpartition("/")[2])
        return running(SEVERAL[number - 1], **({"listen_port": "6433"} if number == 2 else {}))

    planned = run_as_written(plan, config, {}, processes=SEVERAL)
    assert verbs(planned) == ["restart"]
    assert planned.inputs[-1].splitlines()[-2] == "follow pgbouncer@2 $verb /run/2"

    old = running(auth_query="SELECT /* old */")
    planned = run_as_written(plan, old, {}, processes=SEVERAL)
    assert [line for line in planned.inputs[-1].splitlines() if line.startswith("follow ")] == [
        "follow pgbouncer@1 $verb /run/1",
        "follow pgbouncer@2 $verb /run/2",
    ]


def test_a_process_that_still_runs_an_upgraded_program_is_told_with_the_way_to_restart_it(
    plan, caplog
):
    facts = {ReplacedBinaries: ["pgbouncer"]}
    assert run_as_written(plan, running(), {}, facts=facts).changing == []
    assert "pgbouncer: the package was upgraded, and the old program still runs" in caplog.text
    assert "HINT: make restart-poolers INVENTORY=… LIMIT=bouncer1" in caplog.text


# Certificates


def test_an_authority_that_is_there_is_not_made_again(plan, authority):
    assert plan(certificates.authorities, "app1", {}, settings=authority).changing == []


def test_an_authority_that_is_missing_is_made(plan, tmp_path):
    settings = CertificateAuthority(directory=str(tmp_path / "pki"))
    planned = plan(certificates.authorities, "app1", {}, settings=settings)
    assert planned.run_functions() == [True]
    assert authorities_missing(settings) == ()


def test_an_authority_that_ends_before_long_is_told_in_every_run(plan, tmp_path, caplog):
    settings = CertificateAuthority(
        directory=str(tmp_path / "pki"), authority_days=90, leaf_days=90
    )
    make_authorities(settings)
    assert plan(certificates.authorities, "app1", {}, settings=settings).changing == []
    for name in ("server-ca.crt", "client-ca.crt"):
        assert f"{settings.path}/{name} ends in 89 days" in caplog.text


def test_leaves_are_issued_with_their_reason_and_then_left_alone(plan, tmp_path, caplog):
    settings = CertificateAuthority(directory=str(tmp_path / "pki"))
    make_authorities(settings)
    leaf = Leaf("client", "pem_agent_user1", "app1")
    caplog.set_level("INFO")
    planned = plan(certificates.leaves, "app1", {}, settings=settings, wanted=(leaf,))
    assert planned.run_functions() == [True]
    assert "issued clients/pem_agent_user1@app1: not issued yet" in caplog.text
    planned = plan(certificates.leaves, "app1", {}, settings=settings, wanted=(leaf,))
    assert planned.changing == []


def test_an_authority_that_cannot_be_used_fails_the_host(plan, authority, caplog):
    (authority.path / "server-ca.crt").write_text("not PEM\n")
    said = fails(plan(certificates.authorities, "app1", {}, settings=authority), caplog)
    assert f"{authority.path}/server-ca.crt cannot be read as a certificate" in said
    assert f"HINT: openssl x509 -noout -text -in {authority.path}/server-ca.crt" in said


# Files, as far as their plan goes; tests/test_files.py runs it


def put(plan, states, **changes):
    file = files.File("/etc/x", **({"content": "text", "user": "u", "group": "g"} | changes))
    return plan(files.put, "app1", {FileStates: states}, files=(file,))


# echo -n text | sha256sum
TEXT_SHA256 = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
STATE = {"user": "u", "group": "g", "mode": "644", "sha256": TEXT_SHA256}


def test_a_file_that_is_as_it_should_be_is_left_alone(plan):
    assert put(plan, {"/etc/x": STATE}).changing == []


@pytest.mark.parametrize(
    "states",
    [{}] + [{"/etc/x": STATE | {name: "0"}} for name in ("user", "group", "mode", "sha256")],
    ids=["missing", "user", "group", "mode", "content"],
)
def test_a_file_that_differs_in_anything_is_written_whole(plan, states):
    assert put(plan, states).files == {"/etc/x": ("u:g", "644", b"text")}


def test_a_file_of_the_operator_that_is_not_made_yet_fails_the_host(plan, caplog, tmp_path):
    said = fails(put(plan, {}, content=tmp_path / "leaf.key"), caplog)
    assert f"{tmp_path}/leaf.key does not exist" in said
    assert "HINT: make deploy INVENTORY=… DEPLOY=deploys/ca.py" in said


def test_a_secret_file_is_in_no_command(plan):
    planned = put(plan, {}, content=SecretStr(ADMIN_PASSWORD))
    encoded = base64.b64encode(ADMIN_PASSWORD.encode()).decode()
    for text in planned.shell:
        assert ADMIN_PASSWORD not in text
        assert encoded not in text
    assert planned.files["/etc/x"].content == ADMIN_PASSWORD.encode()
