"""PgBouncer between the agents and the PEM database, TLS and client certificates on both sides.

    pyinfra inventories/example.py deploys/pgbouncer.py

The new configuration is proven by a second instance and a login to the database before it
replaces the running one. PgBouncer is reloaded: agents keep their connections. `make deploy` takes
one pooler after the other; pyinfra itself goes to all of them at once, unless it is told --limit.
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import systemd

from fleet import is_entrypoint
from fleet.access import USER_FUNCTION
from fleet.capacity import demand
from fleet.hosts import Fleet, Host
from fleet.leaves import pool_leaf
from fleet.operations import pem_authority
from fleet.operations.files import directory, put
from fleet.operations.packages import installed
from fleet.operations.pgbouncer import (
    proof,
    runs_as_written,
    unit_reads,
)
from fleet.operations.services import units_read
from fleet.operations.takeover import passwords_put_aside, surveyed, taken_over
from fleet.places import place_here
from fleet.platforms import (
    PGBOUNCER_MINIMUM,
    PGBOUNCER_REASON,
    Family,
    Pooler,
    family_of,
)
from fleet.pooler import (
    configuration,
    login,
    pool_pair,
    read_files,
    runtime_settings,
    spare_ini,
    written_inis,
)
from fleet.processes import drop_in_directory, processes, unit_files
from fleet.sizing import sizing


@deploy("PgBouncer")
def pgbouncer(fleet: Fleet, machine: Host, family: Family, place: Pooler) -> None:
    """One pooler, from its package to a configuration that runs."""
    settings, running = fleet.pgbouncer, processes(fleet, place)
    limits = sizing(settings, fleet.agent, fleet.access)
    pools = demand(fleet)

    surveyed(
        name="See what is on the host",
        fleet=fleet,
        place=place,
        ini=written_inis(fleet, machine, place)[running[0].ini],
    )
    installed(
        name="Install PgBouncer, psql and logrotate",
        # The packages' rules for logrotate cover PgBouncer's logs, but do not bring it along.
        names=(place.package, place.psql_package, "logrotate"),
        family=family,
    )
    unit_reads(name="See which file its unit reads", place=place, port=settings.listen_port)
    certificate, key = pool_pair(place)
    pem_authority.trusted_still(
        name="See that agents are let in with the certificates they have",
        fleet=fleet,
        certificate=certificate,
        key=key,
    )
    directory(
        name="Directory for keys",
        path=f"{place.directory}/tls",
        # Root writes here: where a service could write too, it could lead root astray by a link.
        user="root",
        group=place.user,
        mode="750",
    )
    if fleet.certificate_authority.client_issuer == "pem":
        installed(name="Install openssl", names=("openssl",), family=family)
        pem_authority.waiting(
            name="Have PEM's CA sign the pooler's certificate, if it is due",
            fleet=fleet,
            leaf=pool_leaf(machine),
            certificate=certificate,
            key=key,
            user=place.user,
        )
    # As functions: what a step before this one makes is in the files.
    put(
        name="Write the configuration, once it is proven",
        files=lambda: configuration(fleet, machine, place),
        check=lambda: proof(
            service_user=place.user,
            pgbouncer=place.binary,
            minimum=PGBOUNCER_MINIMUM,
            reason=PGBOUNCER_REASON,
            spare_ini=spare_ini(fleet, machine, place),
            login=login(fleet, place),
            agent_user=fleet.pem_server.agent_user,
            connect_name=fleet.pem_server.connect_name,
            pools=str(pools.connections),
            enough=str(pools.max_connections),
            arithmetic=pools.explanation,
            user_function=USER_FUNCTION if fleet.access and fleet.access.pooled_users else "",
        ),
    )

    units = [process.unit for process in running]
    directory(
        name="Directory for the unit's limits", path=drop_in_directory(fleet, place), mode="755"
    )
    put(name="Limit of open files, and how to stop", files=unit_files(fleet, place))
    for unit in host.loop(units):
        units_read(name=f"Have systemd read {unit}", unit=unit)
    taken_over(
        name="Take the port from other processes",
        place=place,
        port=settings.listen_port,
        keep=running,
    )
    for unit in host.loop(units):
        systemd.service(
            name=f"Start {unit} now and at boot",
            service=f"{unit}.service",
            running=True,
            enabled=True,
        )
    runs_as_written(
        name="Reload if it runs on something else",
        processes=running,
        user=place.user,
        port=settings.listen_port,
        settings=lambda: runtime_settings(fleet, machine, place),
        open_files=limits.open_files,
        files=read_files(fleet, machine, place),
    )
    passwords_put_aside(
        name="Put passwords aside that nobody reads", place=place, port=settings.listen_port
    )


if is_entrypoint(__name__) and "pgbouncer" in host.groups:
    pgbouncer(
        fleet=host.data.fleet,
        machine=host.data.machine,
        family=family_of(host),
        place=place_here(host.data.pgbouncer),
        _sudo=True,
    )
