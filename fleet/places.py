"""Where PgBouncer is on its host: as the unit that is installed says, else as documents do."""

from pyinfra import host

from fleet.asking import ask, family_on
from fleet.facts.poolers import PgBouncerUnit, PgBouncerUnits
from fleet.hosts import PgBouncer
from fleet.platforms import Family, Pooler, family_of
from fleet.platforms import pgbouncer as pgbouncer_row


def place_here(settings: PgBouncer) -> Pooler:
    """The place on the host that is deployed."""
    units = host.get_fact(PgBouncerUnits, port=settings.listen_port, _sudo=True)
    return installed_place(settings, family_of(host), units)


def place_on(settings: PgBouncer, name: str) -> Pooler | None:
    """The place on a host that is asked by its name; None when it does not answer."""
    family = family_on(name)
    if family is None:
        return None
    units = ask(name, PgBouncerUnits, "root", port=settings.listen_port)
    return None if units is None else installed_place(settings, family, units)


def installed_place(settings: PgBouncer, family: Family, units: dict[str, PgBouncerUnit]) -> Pooler:
    """The row of platforms.py, with the paths that the host's own unit names where there is one."""
    row = pgbouncer_row(family, settings.vendor, settings.version)
    unit = units.get(row.unit)
    return row.as_installed(unit["ini"], unit["binary"]) if unit and unit["ini"] else row
