"""What a look at the fleet tells, and what of it is a problem; without hosts."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest

from fleet import ROOT
from fleet.drift import WAITING
from fleet.facts.certificates import Certificates, certificates_in
from fleet.facts.database import PostgresDatabase
from fleet.facts.pooling import PgBouncerPooling
from fleet.findings import (
    Agent,
    Certificate,
    Drift,
    Findings,
    Machine,
    Pooler,
    Server,
)
from fleet.leaves import leaves_of
from fleet.lifetimes import Held, files_on, lifetimes
from fleet.pki import issue, make_authorities
from fleet.platforms import pgbouncer, pgbouncer_advice
from fleet.status import main
from fleet.table import text
from fleet.verdict import problems
from tests.certificates import openssl

LEAF = Certificate("servers/b1", False, "CN=b1", ("operator:/ca/b1.crt",), True, 60.0, 30)
AUTHORITY = Certificate("server-ca", True, "CN=CA", ("operator:/ca/ca.crt",), True, 900.0, 90)
POOLER = Pooler("b1", "/run/pgbouncer", True, "1.25.2", clients=9, max_client_conn=50, pool_size=5)
AGENT = Agent("app1", 7, "pooled", "b1", 4.0, True, "", True, "registered as id 7")
SERVER = Server("pem", True, "17.2", connections={"others": 9}, max_connections=100)
MACHINE = Machine("b1", "192.0.2.21", ("pgbouncer",), True, {"pgbouncer": True})
WELL = Findings((MACHINE,), (LEAF, AUTHORITY), (POOLER,), (AGENT,), (SERVER,), (), {})


def but(**changes):
    """The healthy findings with one part changed: its class' name and the fields."""
    parts = {
        "machines": MACHINE,
        "certificates": LEAF,
        "poolers": POOLER,
        "agents": AGENT,
        "servers": SERVER,
    }
    ((part, fields),) = changes.items()
    return dataclasses.replace(WELL, **{part: (dataclasses.replace(parts[part], **fields),)})


def test_nothing_is_to_do_where_all_is_well():
    assert problems(WELL) == ()


DRIFT = dataclasses.replace(
    WELL, drift=(Drift("b1", "pgbouncer", "PgBouncer | Write it", ("/etc/a", "/etc/b")),)
)
RELOAD = dataclasses.replace(WELL, drift=(Drift("b1", "pgbouncer", "PgBouncer | Reload", ()),))


@pytest.mark.parametrize(
    ("findings", "problem"),
    [
        (but(machines={"answers": False, "services": {}}),
         "error: b1: it does not answer by ssh"),
        (but(machines={"services": {"pgbouncer": False}}), "error: b1: pgbouncer does not run"),
        (dataclasses.replace(WELL, unanswered={"b1": "runs 'plan9'"}), "error: b1: runs 'plan9'"),
        (but(certificates={"days_left": -2.0}),
         "error: operator:/ca/b1.crt: servers/b1 expired 2 days ago"),
        (but(certificates={"days_left": 30.0}),
         "warning: operator:/ca/b1.crt: servers/b1 ends in 30 days"),
        (but(certificates={"days_left": None}),
         "error: operator:/ca/b1.crt: servers/b1: there is no certificate"),
        (but(certificates={"of_operator": False, "places": ("b1:/x.crt",)}),
         "warning: b1:/x.crt: servers/b1 is not the one that the operator has"),
        (but(poolers={"answers": False}), "error: b1: the console of PgBouncer does not answer"),
        (but(poolers={"paused": ("pem",)}), "error: b1: paused: pem"),
        (but(poolers={"waiting": 3, "waiting_seconds": 7.0}),
         "error: b1: 3 clients wait, the first for 7 s"),
        (but(poolers={"clients": 45}), "warning: b1: 45 clients of at most 50"),
        (but(agents={"well": False, "words": "not registered"}), "error: app1: not registered"),
        (but(agents={"blackout": "manual"}),
         "warning: app1: PEM raises no alerts: manual blackout"),
        (but(servers={"answers": False}), None),
        (but(servers={"hba_errors": ("line 3: bad",)}),
         "error: pem: pg_hba.conf, line 3: bad"),
        (but(servers={"ident_errors": ("line 4: bad",)}),
         "error: pem: pg_ident.conf, line 4: bad"),
        (but(servers={"unread": ("/x/pg_hba.conf",)}),
         "warning: pem: Postgres has not read /x/pg_hba.conf since it changed"),
        (but(servers={"pending_restart": ("shared_buffers",)}),
         "warning: pem: shared_buffers waits for a restart of Postgres"),
        (but(servers={"connections": {"others": 80, "poolers": 10}}),
         "warning: pem: 90 connections of at most 100"),
        (DRIFT, "warning: b1: deploys/pgbouncer.py would change 'Write it': /etc/a, /etc/b"),
        (RELOAD, "warning: b1: deploys/pgbouncer.py would change 'Reload'"),
    ],
)  # fmt: skip
def test_each_thing_that_is_not_well_is_one_line_with_place_and_level(findings, problem):
    said = [f"{one.level}: {one.where}: {one.what}" for one in problems(findings)]
    # A host that does not answer is told once, not again for each service on it.
    assert said == ([problem] if problem else [])
    assert all(line in text(findings, problems(findings)) for line in said)


@pytest.mark.parametrize(
    "findings",
    [
        but(certificates={"days_left": 30.01}),
        but(poolers={"waiting": 3, "waiting_seconds": 4.9}),
        but(poolers={"clients": 44}),
        but(servers={"connections": {"others": 89}}),
        dataclasses.replace(WELL, drift=None),
    ],
)
def test_what_is_just_in_time_is_well(findings):
    assert problems(findings) == ()


def test_an_older_pgbouncer_is_told_once_and_is_no_problem():
    old = dataclasses.replace(POOLER, version="1.24.1", advice=pgbouncer_advice("1.24.1"))
    findings = dataclasses.replace(WELL, poolers=(old, dataclasses.replace(old, host="b2")))
    assert problems(findings) == ()
    assert text(findings, ()).count("advice: PgBouncer 1.24.1 is older than 1.26.1: ") == 1
    assert "your distribution may have mended the older number" in text(findings, ())


def test_errors_come_before_warnings():
    both = dataclasses.replace(DRIFT, poolers=(dataclasses.replace(POOLER, paused=("pem",)),))
    assert [one.level for one in problems(both)] == ["error", "warning"]


def test_the_findings_are_a_json_document_as_they_are():
    assert json.loads(json.dumps(dataclasses.asdict(WELL)))["agents"][0]["id"] == 7


def test_a_missing_inventory_is_a_mistake_of_the_call(capsys):
    assert main(["inventories/none.py"]) == 2
    assert "inventories/none.py does not exist" in capsys.readouterr().err


def test_steps_that_only_wait_are_known_by_their_names():
    steps = (ROOT / "tests/rendered/debian-13/agent/steps.txt").read_text()
    for name in WAITING:
        assert name.partition(" | ")[2] in steps


# Certificates.


@pytest.fixture
def issued(fleet, tmp_path):
    """The sample fleet with certificates that were made just now."""
    authority = fleet.certificate_authority.but(directory=str(tmp_path / "made"))
    fleet = fleet.but(certificate_authority=authority)
    make_authorities(authority)
    for machine in fleet.machines():
        for leaf in leaves_of(fleet, machine):
            issue(authority, leaf)
    return fleet


def place_of(fleet, machine, family):
    """Where PgBouncer is on a host, if it is a pooler."""
    return pgbouncer(family, "distribution") if machine in fleet.pgbouncer.hosts else None


def held_by(fleet, machine):
    """What the host's files hold when it was deployed just now."""
    return [
        Held(f"{machine.name}:{path}", own, tuple(certificates_in(own.read_bytes())))
        for path, own in files_on(fleet, machine, place_of(fleet, machine, "debian")).items()
    ]


def test_every_certificate_is_told_once_with_all_its_places(issued):
    machines = issued.machines()
    found = lifetimes(issued, [held for one in machines for held in held_by(issued, one)])
    leaves = [leaf.file_stem for one in machines for leaf in leaves_of(issued, one)]
    assert sorted(one.name for one in found) == sorted([*leaves, "server-ca", "client-ca"])
    assert all(one.of_operator and len(one.places) > 1 for one in found)
    assert {one.name: len(one.places) for one in found}["server-ca"] == 1 + len(machines)
    left = [one.days_left for one in found]
    assert left == sorted(left), "the soonest first"
    # Which of the two was made before the other is not asked; the clock may have ticked between.
    assert {one.name for one in found[-2:]} == {"client-ca", "server-ca"}


def test_an_older_certificate_on_a_host_is_another_one(issued):
    machine = issued.pgbouncer.hosts[0]
    on_host = held_by(issued, machine)
    for leaf in leaves_of(issued, machine):
        issue(issued.certificate_authority, leaf, now=datetime.now(UTC) + timedelta(days=1))
    name = f"servers/{machine.name}"
    old, new = (one for one in lifetimes(issued, on_host) if one.name == name)
    assert (old.of_operator, new.of_operator) == (False, True)
    assert new.days_left - old.days_left == pytest.approx(1.0, abs=0.01)
    assert old.places == (f"{machine.name}:/etc/pgbouncer/tls/server.crt",)


def test_a_file_without_a_certificate_is_told(issued):
    machine = issued.agent.hosts[0]
    on_host = [Held(held.place, held.own, ()) for held in held_by(issued, machine)]
    missing = [one for one in lifetimes(issued, on_host) if one.days_left is None]
    assert {one.name for one in missing} == {
        f"clients/pem_agent_user1@{machine.name}", "client-ca", "server-ca",
    }  # fmt: skip


def test_a_host_is_asked_for_no_key(fleet):
    for machine in fleet.machines():
        paths = files_on(fleet, machine, place_of(fleet, machine, "rhel"))
        command = Certificates().command(tuple(paths))
        assert ".key" not in str(command)
        assert ".crt" in str(command)


def test_end_and_fingerprint_are_openssls(issued):
    path = issued.certificate_authority.path / "server-ca.crt"
    (one,) = certificates_in(path.read_bytes())
    _, said = openssl("x509", "-noout", "-fingerprint", "-sha256", "-enddate", "-in", path)
    assert one["fingerprint"].upper() in said.replace(":", "")
    assert f"{one['ends']:%H:%M:%S %Y} GMT" in said


# What the poolers and the database say.

SAID = """\
version
PgBouncer 1.24.1
=
key\tvalue
active\tyes
paused\t{paused}
=
database\tuser\tnew_column\tcl_active\tcl_waiting\tsv_active\tsv_idle\tsv_used\tmaxwait\tmaxwait_us
pem\tpem_agent_user1\tx\t30\t2\t4\t1\t0\t1\t500000
pem\tpgbouncer\tx\t0\t0\t0\t1\t0\t0\t0
pgbouncer\tpgbouncer\tx\t1\t0\t0\t0\t0\t0\t0
=
name\tpool_size\tpaused
pem\t5\t{paused_database}
pgbouncer\t2\t0
=
key\tvalue\tdefault
max_client_conn\t50\t100
="""


def pooling(paused="no", paused_database="0"):
    said = SAID.format(paused=paused, paused_database=paused_database)
    return PgBouncerPooling().process(said.splitlines())


def test_a_pooler_is_read_by_the_columns_names_and_its_console_is_not_counted():
    assert pooling() == {
        "version": "1.24.1",
        "clients": 32,
        "waiting": 2,
        "waiting_seconds": 1.5,
        "server_connections": 6,
        "paused": [],
        "max_client_conn": 50,
        "pool_size": 5,
    }


@pytest.mark.parametrize("said", [{"paused": "yes"}, {"paused_database": "1"}])
def test_a_paused_database_is_told_by_name(said):
    assert pooling(**said)["paused"] == ["pem"]


@pytest.mark.parametrize("said", [[], [""], SAID.splitlines()[:9]])
def test_a_console_that_does_not_answer_to_the_end_says_nothing(said):
    assert PgBouncerPooling().process(said) is None


def test_before_postgres_15_there_is_no_view_of_pg_ident():
    database = {"version": "14.2", "connections": {}, "hba_errors": []}
    assert PostgresDatabase().process([json.dumps(database)])["ident_errors"] == []


@pytest.mark.parametrize("said", [[], [""]])
def test_a_database_that_does_not_answer_says_nothing(said):
    assert PostgresDatabase().process(said) is None
