"""Which PgBouncers a host has, and what becomes of those that are not ours."""

import pytest

from fleet.access import obsolete_hba_lines
from fleet.facts.files import FileBytes
from fleet.facts.poolers import PgBouncerUnits, PortHolders
from fleet.facts.postgres import PostgresHolds
from fleet.operations import pgbouncer as operations
from fleet.operations import postgres, takeover
from fleet.operations.commands import _told
from fleet.parts import without_lines
from fleet.platforms import pgbouncer
from fleet.pooler import configuration
from fleet.takeover import Configuration, report
from tests.planning import fails
from tests.samples import DEBIAN_13

EDB = pgbouncer("debian", "edb", "1.25")
DEBIAN = pgbouncer("debian", "distribution")


@pytest.fixture(autouse=True)
def _nothing_told_yet():
    """Each test is a run of its own, which tells each thing once."""
    _told.clear()


def unit(command, *variables, state="active", enabled="enabled"):
    """What systemd says of a unit."""
    return [
        "unit=edb-pgbouncer125.service",
        f"ExecStart={{ path={command.split()[0]} ; argv[]={command} ; ignore_errors=no ; pid=7 }}",
        f"ActiveState={state}",
        f"UnitFileState={enabled}",
        *(f"variable={variable}" for variable in variables),
    ]


@pytest.mark.parametrize(
    "said",
    [
        unit("/bin/pgbouncer /etc/x.ini"),
        unit("/bin/pgbouncer -q -u nobody /etc/x.ini"),
        unit("/bin/pgbouncer ${BOUNCERCONF}", "BOUNCERCONF=/etc/x.ini"),
        unit("/bin/pgbouncer -d $CONF -q", "CONF=/etc/x.ini", "OTHER=/y"),
    ],
)
def test_a_unit_tells_its_program_and_its_ini(said):
    assert PgBouncerUnits().process(said) == {
        "edb-pgbouncer125": {
            "active": True,
            "enabled": True,
            "binary": "/bin/pgbouncer",
            "ini": "/etc/x.ini",
        }
    }


def test_a_unit_of_another_program_is_no_pgbouncer():
    assert PgBouncerUnits().process(unit("/usr/bin/pgbouncer_exporter --web")) == {}


def test_the_holders_of_a_port_are_told_with_their_units():
    said = ["1 systemd init.scope", "12 pgbouncer edb-pgbouncer-1.9.service", "13 nc"]
    assert [(one["program"], one["unit"]) for one in PortHolders().process(said)] == [
        ("systemd", ""),
        ("pgbouncer", "edb-pgbouncer-1.9"),
        ("nc", ""),
    ]


def edb_unit(ini):
    return {
        PgBouncerUnits: {
            "edb-pgbouncer125": {
                "active": False,
                "enabled": False,
                "binary": EDB.binary,
                "ini": ini,
            }
        }
    }


def test_a_unit_that_was_installed_just_now_and_reads_another_file_fails_the_run(plan, caplog):
    facts = edb_unit("/etc/edb/pgbouncer1.25/edb-pgbouncer-1.25.ini")
    said = fails(plan(operations.unit_reads, "bouncer1", facts, place=EDB, port=6432), caplog)
    assert "planned was /usr/edb/pgbouncer1.25/bin/pgbouncer /etc/edb/pgbouncer1.25/edb-" in said
    assert "HINT: run the same again" in said


def test_a_unit_that_reads_the_planned_file_is_as_it_should_be(plan):
    facts = edb_unit("/etc/edb/pgbouncer1.25/edb-pgbouncer.ini")
    assert plan(operations.unit_reads, "bouncer1", facts, place=EDB, port=6432).changing == []


def test_an_installed_unit_decides_where_the_configuration_is():
    place = EDB.as_installed("/etc/elsewhere/my.ini", "/opt/pgbouncer")
    assert (place.directory, place.ini, place.binary) == (
        "/etc/elsewhere",
        "my.ini",
        "/opt/pgbouncer",
    )


# What was there before


RECIPE_7_11 = """\
[databases]
pem = port=5444 host=/tmp dbname=pem auth_user=pgbouncer pool_size=80 pool_mode=transaction
* = port=5444 host=/tmp dbname=pem auth_user=pgbouncer pool_size=10
[pgbouncer]
logfile = /var/log/edb/pgbouncer1.9/edb-pgbouncer-1.9.log
listen_addr = *
listen_port = 6432
client_tls_sslmode = require
auth_type = hba
auth_file = /etc/edb/pgbouncer1.9/userlist.txt
auth_hba_file = /etc/edb/pgbouncer1.9/hba_file
auth_query = SELECT * FROM pem.get_agent_pool_auth($1)
admin_users = pem_admin1
max_client_conn = 500
server_idle_timeout = 60
"""

SOMEBODYS = """\
;; by hand
%include /etc/pgbouncer/more.ini
[databases]
app = host=db1 dbname='the app' user=app password=hunter2 connect_query='SET x = 1'
[users]
app = pool_mode=session
[pgbouncer]
listen_port = 6433
default_pool_size = 40
auth_ldap_options = ldapbindpasswd=hunter2
"""


def told(fleet, text, path="/etc/pgbouncer/pgbouncer.ini"):
    ours = configuration(fleet, fleet.pgbouncer.hosts[0], DEBIAN)[-1].content
    return report(Configuration(path, text), ours, fleet)


def test_what_a_foreign_configuration_has_beside_ours_is_told_with_what_keeps_it(fleet):
    lines = told(fleet, SOMEBODYS)
    for line in (
        "[databases] app = host=db1 dbname=the app user=app: is gone",
        "HINT: on the PEM server, Fleet(access=Access(databases=(Database(name='app', owner=…,"
        " pooled=True),))) keeps it; another server's database wants a PgBouncer of its own, on"
        " another port than 6432",
        "[users] app = pool_mode=session: is gone",
        "%include /etc/pgbouncer/more.ini: is no longer read",
        "listen_port = 6433: becomes 6432",
        "HINT: PgBouncer(listen_port=6433) keeps it",
        "default_pool_size = 40: becomes the default",
        'HINT: PgBouncer(extra={"default_pool_size": "40"}) keeps them',
    ):
        assert line in lines
    assert lines[-1].endswith("kept: /etc/pgbouncer/pgbouncer.ini.before-pem-fleet")


def test_no_secret_of_a_foreign_configuration_is_told(fleet):
    assert "hunter2" not in "\n".join(told(fleet, SOMEBODYS))


def test_a_configuration_without_databases_is_nobodys_loss(fleet):
    assert told(fleet, "[databases]\n[pgbouncer]\nlisten_addr = localhost\n") == []


def test_the_recipe_of_pem_7_11_is_recognised_and_its_successor_told(fleet):
    lines = told(fleet, RECIPE_7_11)
    assert lines[1].startswith(
        "It is PEM's recipe of 7.11 to early 9: to the database by /tmp, with md5 passwords"
        " that lie in /etc/edb/pgbouncer1.9/userlist.txt."
    )
    assert "HINT: PgBouncer(pool_size=80) keeps the size of the pool" in lines
    assert "HINT: PgBouncer(max_client_conn=500) keeps it" in lines
    assert any(
        line.startswith("auth_file /etc/edb/pgbouncer1.9/userlist.txt: no") for line in lines
    )


def test_its_entries_that_the_guide_broke_over_two_lines_are_told(fleet):
    broken = RECIPE_7_11.replace(" pool_size=", "\npool_size=")
    assert "cut over two lines" in told(fleet, broken)[1]
    assert "cut over two lines" not in told(fleet, RECIPE_7_11)[1]


OLD_UNIT = {
    "edb-pgbouncer-1.9": {
        "active": True,
        "enabled": True,
        "binary": "/usr/edb/pgbouncer1.9/bin/pgbouncer",
        "ini": "/etc/edb/pgbouncer1.9/edb-pgbouncer.ini",
    }
}


def survey(plan, fleet, holders, units=OLD_UNIT, text=RECIPE_7_11):
    facts = {PortHolders: holders, PgBouncerUnits: units, FileBytes: text.encode()}
    return plan(takeover.surveyed, "bouncer1", facts, fleet=fleet, place=DEBIAN, ini="")


def test_a_port_that_another_program_holds_is_refused_by_its_name(plan, fleet, caplog):
    holders = [{"program": "nginx", "pid": 7, "unit": "nginx"}]
    said = fails(survey(plan, fleet, holders), caplog)
    assert "port 6432 is held by nginx (process 7, of nginx)" in said
    assert "HINT: systemctl disable --now nginx, or PgBouncer(listen_port=…)" in said


def test_a_pgbouncer_that_no_service_started_is_refused(plan, fleet, caplog):
    said = fails(survey(plan, fleet, [{"program": "pgbouncer", "pid": 7, "unit": ""}]), caplog)
    assert "held by pgbouncer (process 7, which no service started)" in said


def test_a_port_that_systemd_holds_for_a_socket_unit_is_refused(plan, fleet, caplog):
    said = fails(survey(plan, fleet, [{"program": "systemd", "pid": 1, "unit": ""}]), caplog)
    assert "HINT: systemctl list-sockets | grep 6432" in said


def take_over(plan, units, text, holders=()):
    facts = {PortHolders: list(holders), PgBouncerUnits: units, FileBytes: text.encode()}
    return plan(
        takeover.taken_over, "bouncer1", facts, place=DEBIAN, port=6432, units=("pgbouncer",)
    )


def test_another_pgbouncer_on_our_port_is_stopped_and_its_passwords_are_put_aside(plan):
    script = take_over(plan, OLD_UNIT, RECIPE_7_11).inputs[0]
    assert "\nothers=edb-pgbouncer-1.9\n" in script
    assert "mv --backup=numbered -T /etc/edb/pgbouncer1.9/userlist.txt" in script


def test_of_our_own_pooler_of_another_vendor_the_private_keys_go(plan):
    script = take_over(plan, OLD_UNIT, ";; Written by pem-fleet\n" + RECIPE_7_11).inputs[0]
    assert script.rstrip("}\n").endswith(
        "rm -f /etc/edb/pgbouncer1.9/tls/server.key /etc/edb/pgbouncer1.9/tls/pem_agent_pool.key"
    )


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ({}, RECIPE_7_11.replace("6432", "6433")),
        ({"active": False, "enabled": False}, RECIPE_7_11),
    ],
    ids=["another port", "it neither runs nor is to run"],
)
def test_a_pgbouncer_that_is_in_nobodys_way_is_left_alone(plan, unit, text):
    units = {"edb-pgbouncer-1.9": OLD_UNIT["edb-pgbouncer-1.9"] | unit}
    assert take_over(plan, units, text).changing == []


def test_our_own_services_are_no_others(plan):
    units = dict.fromkeys(("pgbouncer", "pgbouncer@2"), OLD_UNIT["edb-pgbouncer-1.9"])
    assert take_over(plan, units, RECIPE_7_11).changing == []


def test_passwords_that_nobody_reads_any_more_are_put_aside(plan):
    texts = {
        "/p/x.ini.before-pem-fleet": b"[pgbouncer]\nauth_file = /p/userlist.txt\n",
        "/p/x.ini": b";; Written by pem-fleet\n",
        "/p/userlist.txt": b'"pgbouncer" "hunter2"\n',
    }

    place = DEBIAN.as_installed("/p/x.ini", "/usr/sbin/pgbouncer")

    def put_aside(units=None):
        facts = {FileBytes: lambda path: texts.get(path)}  # noqa: PLW0108  facts pass names
        facts[PgBouncerUnits] = units or {}
        return plan(takeover.passwords_put_aside, "bouncer1", facts, place=place, port=6432)

    script = put_aside().inputs[0]
    assert "/p/userlist.txt.before-pem-fleet" in script
    assert "hunter2" not in script
    other = OLD_UNIT["edb-pgbouncer-1.9"] | {"ini": "/p/x.ini.before-pem-fleet"}
    assert put_aside({"my-pgbouncer": other}).changing == [], "another one reads them"
    texts["/p/userlist.txt"] = b""
    assert put_aside().changing == []


# The PEM server

OLD_HBA = b"""\
# Allow the PEM agent proxy user
local   pem  pgbouncer,pem_admin1\tmd5
local pem pgbouncer,pem_admin1 md5 # ours\r
local pem pgbouncer,pem_admin1,joe md5
local all all peer"""


def test_only_the_old_recipes_exact_line_is_taken_out_however_it_is_spaced(fleet):
    new = without_lines(OLD_HBA, obsolete_hba_lines(fleet.pem_server))
    assert new.splitlines(keepends=True) == [
        line for line in OLD_HBA.splitlines(keepends=True) if b"\tmd5" not in line
    ]


@pytest.mark.parametrize("in_use_by", [(), ("edb-pgbouncer-1.9",)], ids=["unused", "in use"])
def test_the_old_rule_goes_when_no_old_pooler_comes_in_by_it(plan, fleet, caplog, in_use_by):
    facts = DEBIAN_13 | {FileBytes: lambda path: OLD_HBA if path.endswith("hba.conf") else None}
    facts |= {PostgresHolds: [True]}
    given = {"obsolete": obsolete_hba_lines(fleet.pem_server), "in_use_by": in_use_by}
    planned = plan(postgres.hba_block, "pem.example.com", facts, lines=("a",), **given)
    (written,) = planned.files.values()
    assert (b"\tmd5\n" in written.content) == bool(in_use_by)
    assert (
        plan(takeover.old_recipe_told, "pem.example.com", facts, role="pgbouncer", **given).changing
        == []
    )
    assert ("It is taken out" in caplog.text) == (not in_use_by)
    assert ("systemctl disable --now edb-pgbouncer-1.9" in caplog.text) == bool(in_use_by)
    assert 'psql -c "ALTER ROLE pgbouncer PASSWORD NULL"' in caplog.text
