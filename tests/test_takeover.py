"""Which PgBouncers a host has, and what becomes of those that are not ours."""

import subprocess

import pytest

from fleet.access import obsolete_hba_lines
from fleet.facts.files import FileBytes, Inode
from fleet.facts.pgbouncer import PgBouncerVersion
from fleet.facts.poolers import PgBouncerUnits, PortHolders
from fleet.facts.postgres import PostgresHolds
from fleet.facts.services import PresentUnits
from fleet.operations import pgbouncer as operations
from fleet.operations import postgres, takeover
from fleet.operations.commands import _told
from fleet.parts import without_lines
from fleet.places import installed_place
from fleet.platforms import pgbouncer
from fleet.pooler import configuration
from fleet.processes import Process
from fleet.takeover import Configuration, report
from tests.planning import fails
from tests.samples import DEBIAN_13

EDB = pgbouncer("debian", "edb", "1.25")
DEBIAN = pgbouncer("debian", "distribution")
OURS = "pem-fleet-pgbouncer"


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
        "User=enterprisedb",
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
            "user": "enterprisedb",
            "binary": "/bin/pgbouncer",
            "ini": "/etc/x.ini",
        }
    }


def test_a_unit_of_another_program_is_no_pgbouncer():
    assert PgBouncerUnits().process(unit("/usr/bin/pgbouncer_exporter --web")) == {}


def test_the_holders_of_a_port_are_told_with_their_units():
    said = ["1 systemd init.scope", "12 pgbouncer edb-pgbouncer-1.9.service", "13 nc", "14  "]
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
                "user": "enterprisedb",
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


@pytest.mark.parametrize(("version", "told"), [("1.26.0", True), ("1.26.1", False), ("", False)])
def test_a_version_with_known_holes_is_told_and_used(plan, caplog, version, told):
    facts = edb_unit("/etc/edb/pgbouncer1.25/edb-pgbouncer.ini") | {PgBouncerVersion: version}
    assert plan(operations.unit_reads, "bouncer1", facts, place=EDB, port=6432).changing == []
    assert ("PgBouncer 1.26.0 is older than 1.26.1: " in caplog.text) is told


def test_an_installed_unit_decides_where_the_configuration_is(fleet):
    settings = fleet.pgbouncer.but(vendor="edb", version="1.25")
    (units,) = edb_unit("/etc/elsewhere/my.ini").values()
    place = installed_place(settings, "debian", units)
    assert (place.directory, place.ini, place.binary) == ("/etc/elsewhere", "my.ini", EDB.binary)
    (hidden,) = edb_unit("").values()
    for unknown in ({}, hidden, {"pgbouncer": units["edb-pgbouncer125"]}):
        assert installed_place(settings, "debian", unknown) == EDB


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
        "user": "enterprisedb",
        "binary": "/usr/edb/pgbouncer1.9/bin/pgbouncer",
        "ini": "/etc/edb/pgbouncer1.9/edb-pgbouncer.ini",
    }
}


def survey(plan, fleet, holders, units=OLD_UNIT, text=RECIPE_7_11, inode=None):
    facts = {PortHolders: holders, PgBouncerUnits: units, FileBytes: text.encode(), Inode: inode}
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


@pytest.mark.parametrize("name", ["pgbouncer-pem", "pgbouncer@50001"])
def test_another_service_that_reads_the_file_that_we_write_is_refused(plan, fleet, caplog, name):
    units = {name: OLD_UNIT["edb-pgbouncer-1.9"] | {"ini": "/etc/pgbouncer/pgbouncer.ini"}}
    said = fails(survey(plan, fleet, [], units), caplog)
    assert f"{name} runs PgBouncer on /etc/pgbouncer/pgbouncer.ini, which is pgbouncer's" in said
    assert f"HINT: systemctl disable --now {name}, or give it a file of its own" in said


ONLY = (Process("pgbouncer", "/etc/pgbouncer/pgbouncer.ini", "/run/postgresql", "/pid", "/log"),)
SEVERAL = tuple(
    Process(f"{OURS}@{n}", f"/etc/pgbouncer/pgbouncer-{n}.ini", f"/run/{n}", "/pid", "/log", n)
    for n in (1, 2)
)


def take_over(plan, units, text, present=(), keep=ONLY, passwords="enterprisedb"):
    """What is done where these services are; passwords: the OS user whose file they are."""
    facts = {
        PgBouncerUnits: units,
        PresentUnits: list(present),
        FileBytes: text.encode(),
        Inode: {"kind": "regular file", "user": passwords, "group": "root", "mode": "640"},
    }
    return plan(takeover.taken_over, "bouncer1", facts, place=DEBIAN, port=6432, keep=keep)


def test_another_pgbouncer_on_our_port_is_stopped_and_its_passwords_are_put_aside(plan):
    script = take_over(plan, OLD_UNIT, RECIPE_7_11).inputs[0]
    assert "\nothers=edb-pgbouncer-1.9\n" in script
    assert "mv --backup=numbered -T /etc/edb/pgbouncer1.9/userlist.txt" in script


@pytest.mark.parametrize(
    ("file", "user"),
    [
        ("/etc/passwd", "enterprisedb"),
        ("/etc/edb/pgbouncer1.9/../../passwd", "enterprisedb"),
        ("/etc/edb/pgbouncer1.9/userlist.txt", "joe"),
    ],
)
def test_a_file_that_a_foreign_configuration_may_not_give_away_is_told_and_left(
    plan, fleet, caplog, file, user
):
    text = RECIPE_7_11.replace("/etc/edb/pgbouncer1.9/userlist.txt", file)
    script = take_over(plan, OLD_UNIT, text, passwords=user).inputs[0]
    assert "chmod" not in script
    assert "edb-pgbouncer.ini.before-pem-fleet" in script
    inode = {"kind": "regular file", "user": user, "group": "root", "mode": "640"}
    survey(plan, fleet, [], text=text, inode=inode)
    assert f"auth_file {file}: no longer read, and left as it is" in caplog.text


def test_a_link_is_no_file_of_passwords(plan):
    text = RECIPE_7_11.replace("userlist.txt", "link")
    facts = {PgBouncerUnits: OLD_UNIT, FileBytes: text.encode()}
    facts[Inode] = {"kind": "symbolic link", "user": "root", "group": "root", "mode": "777"}
    planned = plan(takeover.taken_over, "bouncer1", facts, place=DEBIAN, port=6432, keep=ONLY)
    assert "chmod" not in planned.inputs[0]


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
    units = dict.fromkeys(("pgbouncer", f"{OURS}@2"), OLD_UNIT["edb-pgbouncer-1.9"])
    assert take_over(plan, units, RECIPE_7_11).changing == []


def test_the_keys_that_ours_read_stay_when_another_service_read_our_directory(plan):
    ours = ";; Written by pem-fleet\n" + RECIPE_7_11
    other = OLD_UNIT["edb-pgbouncer-1.9"] | {"ini": "/etc/pgbouncer/old.ini"}
    assert "rm -f" not in take_over(plan, {"pgbouncer-pem": other}, ours).inputs[0]


# Processes of ours


@pytest.mark.parametrize(
    ("present", "keep"),
    [(["pgbouncer"], ONLY), ([], SEVERAL), ([f"{OURS}@1", f"{OURS}@2"], SEVERAL)],
    ids=["one", "a fresh host", "several"],
)
def test_processes_that_are_wanted_are_left_alone(plan, present, keep):
    assert take_over(plan, {}, "", present, keep).changing == []


TEMPLATE = f"/etc/systemd/system/{OURS}@.service"


@pytest.mark.parametrize(
    ("present", "keep", "units", "others", "removed"),
    [
        (["pgbouncer"], SEVERAL, f"'{OURS}@1 {OURS}@2'", "pgbouncer", ""),
        (
            [f"{OURS}@1", f"{OURS}@2", f"{OURS}@3"],
            SEVERAL,
            f"'{OURS}@1 {OURS}@2'",
            f"{OURS}@3",
            "/etc/pgbouncer/pgbouncer-3.ini",
        ),
        (
            [f"{OURS}@1"],
            ONLY,
            "pgbouncer",
            f"{OURS}@1",
            f"/etc/pgbouncer/pgbouncer-1.ini {TEMPLATE} {TEMPLATE}.d",
        ),
    ],
    ids=["one to several", "fewer", "several to one"],
)
def test_processes_that_are_not_wanted_any_more_give_way_and_are_removed(
    plan, present, keep, units, others, removed
):
    (text,) = take_over(plan, {}, "", present, keep).inputs
    assert f"\nunits={units}\nport=6432\nothers={others}\nrunning={others}\n" in text
    assert f"\nrm -rf {removed}\n" in text
    note = "' > /etc/pgbouncer/pgbouncer.ini;"
    assert (note in text) == (others == "pgbouncer")


def test_another_pgbouncer_and_our_surplus_leave_the_port_together(plan):
    (text,) = take_over(plan, OLD_UNIT, RECIPE_7_11, ["pgbouncer"], SEVERAL).inputs
    assert "\nothers='edb-pgbouncer-1.9 pgbouncer'\nrunning='edb-pgbouncer-1.9 pgbouncer'\n" in text
    failed = OLD_UNIT | {"pgbouncer": OLD_UNIT["edb-pgbouncer-1.9"] | {"active": False}}
    (text,) = take_over(plan, failed, RECIPE_7_11, ["pgbouncer"], SEVERAL).inputs
    assert "\nrunning=edb-pgbouncer-1.9\n" in text, "only what ran is started again"


@pytest.mark.parametrize("template", ["pgbouncer@50001", f"{OURS}d@1"])
def test_an_instance_of_somebody_elses_template_is_not_ours(plan, template):
    units = {template: OLD_UNIT["edb-pgbouncer-1.9"]}
    elsewhere = RECIPE_7_11.replace("6432", "6433")
    assert take_over(plan, units, elsewhere).changing == []
    (text,) = take_over(plan, units, RECIPE_7_11).inputs
    assert f"\nothers={template}\n" in text
    assert "rm -rf" not in text
    assert "edb-pgbouncer.ini.before-pem-fleet" in text


def test_a_configuration_by_hand_is_kept_when_several_processes_replace_it(tmp_path):
    ini = tmp_path / "pgbouncer.ini"
    ini.write_text("[pgbouncer]\n")
    place = DEBIAN.as_installed(str(ini), "/usr/sbin/pgbouncer")
    line = takeover._removed(place, ["pgbouncer"], SEVERAL)[0]
    kept = tmp_path / "pgbouncer.ini.before-pem-fleet"
    for _ in range(2):
        subprocess.run(["sh", "-euc", line], check=True)
        assert ini.read_text() == kept.read_text() == "[pgbouncer]\n"
    ini.write_text(";; Written by pem-fleet\n[pgbouncer]\n")
    subprocess.run(["sh", "-euc", line], check=True)
    assert ini.read_text().startswith(";; Written by pem-fleet. See /etc/pgbouncer/pgbouncer-1.ini")
    assert sorted(file.name for file in tmp_path.iterdir()) == [ini.name, kept.name]


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
        facts[Inode] = {"kind": "regular file", "user": "postgres", "group": "root", "mode": "640"}
        return plan(takeover.passwords_put_aside, "bouncer1", facts, place=place, port=6432)

    script = put_aside().inputs[0]
    assert "/p/userlist.txt.before-pem-fleet" in script
    assert "hunter2" not in script
    other = OLD_UNIT["edb-pgbouncer-1.9"] | {"ini": "/p/x.ini.before-pem-fleet"}
    assert put_aside({"my-pgbouncer": other}).changing == [], "another one reads them"
    # As several processes leave what somebody wrote for the package's own service.
    texts["/p/x.ini"] = texts.pop("/p/x.ini.before-pem-fleet")
    assert "/p/userlist.txt.before-pem-fleet" in put_aside().inputs[0]
    used = OLD_UNIT["edb-pgbouncer-1.9"] | {"ini": "/p/x.ini"}
    assert put_aside({"pgbouncer": used}).changing == [], "the package's own still reads them"
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
