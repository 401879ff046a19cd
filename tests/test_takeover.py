"""Which PgBouncers a host has, and what becomes of those that are not ours."""

import pytest

from fleet.facts.poolers import PgBouncerUnits, PortHolders
from fleet.operations import pgbouncer as operations
from fleet.platforms import pgbouncer
from tests.planning import fails

EDB = pgbouncer("debian", "edb", "1.25")


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
