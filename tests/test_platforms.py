"""What differs between operating systems and vendors."""

from dataclasses import astuple
from typing import get_args

import pytest
from pyinfra.api import Config, Inventory, State
from pyinfra.api.exceptions import DeployError
from pyinfra.facts.server import LinuxDistribution

from fleet.platforms import (
    FAMILIES,
    PGBOUNCER_ADVISED,
    PGBOUNCER_MINIMUM,
    family_of,
    pgbouncer,
    pgbouncer_advice,
    postgres,
)
from fleet.values import PoolerVendor, Vendor

FAMILY_NAMES = ("debian", "rhel")
VERSIONS = (14, 17, 18)


def texts(row):
    for value in astuple(row):
        yield from value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("vendor", get_args(Vendor))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_row_of_postgres_is_complete(family, vendor, version):
    row = postgres(family, vendor, version)
    assert all(texts(row))
    assert row.directory.startswith("/")


@pytest.mark.parametrize("vendor", get_args(PoolerVendor))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_row_of_pgbouncer_is_complete(family, vendor):
    row = pgbouncer(family, vendor, "1.25")
    assert all(texts(row))
    assert all(
        path.startswith("/")
        for path in (row.binary, row.directory, row.run_directory, row.log_file)
    )


@pytest.mark.parametrize(
    ("family", "vendor", "unit", "directory", "user"),
    [
        ("debian", "distribution", "postgresql@17-main", "/usr/lib/postgresql/17", "postgres"),
        ("debian", "pgdg", "postgresql@17-main", "/usr/lib/postgresql/17", "postgres"),
        ("rhel", "distribution", "postgresql", "/usr", "postgres"),
        ("rhel", "pgdg", "postgresql-17", "/usr/pgsql-17", "postgres"),
    ],
)
def test_where_postgres_lives(family, vendor, unit, directory, user):
    row = postgres(family, vendor, 17)
    assert (row.unit, row.directory, row.user) == (unit, directory, user)


@pytest.mark.parametrize(
    ("family", "unit", "ini"),
    [
        ("debian", "edb-pgbouncer125", "edb-pgbouncer.ini"),
        ("rhel", "edb-pgbouncer-1.25", "edb-pgbouncer-1.25.ini"),
    ],
)
def test_edb_puts_the_version_of_its_pgbouncer_into_every_name(family, unit, ini):
    row = pgbouncer(family, "edb", "1.25")
    assert (row.package, row.user, row.directory) == (
        "edb-pgbouncer125",
        "enterprisedb",
        "/etc/edb/pgbouncer1.25",
    )
    assert (row.unit, row.ini) == (unit, ini)


def test_an_unknown_pair_names_the_known_ones_and_what_to_type():
    with pytest.raises(DeployError) as error:
        postgres("rhel", "edb", 17)
    assert str(error.value) == (
        "no Postgres of vendor 'edb' is known for family 'rhel'; known: distribution on debian,"
        " pgdg on debian, distribution on rhel, pgdg on rhel"
        '\nHINT: vendor="distribution" in the inventory'
    )


def host_with(os_id):
    inventory = Inventory((["host1"], {}))
    State(inventory, Config())
    host = inventory.get_host("host1")
    answers = {LinuxDistribution: {"release_meta": {"ID": os_id} if os_id else {}}}
    host.get_fact = answers.__getitem__
    return host


@pytest.mark.parametrize(("os_id", "family"), FAMILIES.items())
def test_the_family_is_told_by_the_id_in_os_release(os_id, family):
    assert family_of(host_with(os_id)) == family


@pytest.mark.parametrize("os_id", ["alpine", None])
def test_another_system_is_refused_and_the_supported_ones_named(os_id):
    with pytest.raises(DeployError, match=r"host1 runs .*; supported: debian, ubuntu, rhel, rocky"):
        family_of(host_with(os_id))


@pytest.mark.parametrize("version", [PGBOUNCER_MINIMUM, "1.25.2", "1.26.0", "1.9.9", "1.26"])
def test_pgbouncers_with_known_holes_are_advised_against(version):
    assert pgbouncer_advice(version).startswith(f"PgBouncer {version} is older than 1.26.1: ")


@pytest.mark.parametrize("version", [PGBOUNCER_ADVISED, "1.26.2", "1.27.0", "2.0", ""])
def test_newer_and_unknown_ones_are_not(version):
    assert pgbouncer_advice(version) == ""
