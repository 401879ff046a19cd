"""What only the whole inventory shows: roles that do not fit together, all told at once."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING

from fleet.access_checks import access_problems
from fleet.capacity import OTHER_CONNECTIONS, SUPERUSER_RESERVED, demand
from fleet.mistakes import Mistake, any_noted, inventory_line, note
from fleet.values import AUTH_USER, PEM_ROLES, POOL_USER

if TYPE_CHECKING:
    from fleet.hosts import Fleet


def note_problems(fleet: "Fleet") -> None:
    """Note every problem that the checks of this module find in a fleet, each with its HINT."""
    for check in CHECKS:
        try:
            for text in check(fleet):
                problem, _, hint = text.partition("\nHINT: ")
                note(Mistake(inventory_line(), "Fleet", problem, hint))
        except (AttributeError, TypeError):
            # A check stumbled over a role that is wrong itself, and is noted already.
            if not any_noted():
                raise


def _roles_belong_together(fleet: "Fleet") -> Iterator[str]:
    if fleet.pgbouncer.server is not fleet.pem_server:
        yield (
            "the poolers' server is not the fleet's PEM server"
            "\nHINT: PgBouncer(server=server, …) and Fleet(pem_server=server, …)"
        )
    if fleet.agent.via is not fleet.pgbouncer:
        yield (
            "the agents go through poolers that are not in the fleet"
            "\nHINT: Agent(via=bouncer, …) and Fleet(pgbouncer=bouncer, …)"
        )


def _every_client_may_connect(fleet: "Fleet") -> Iterator[str]:
    agents = len(fleet.agent.hosts) * fleet.agent.connections
    databases = fleet.access.pooled_databases if fleet.access is not None else ()
    others = sum(database.pool_clients for database in databases)
    limit = fleet.pgbouncer.max_client_conn
    if limit is not None and limit < agents + others:
        yield (
            f"max_client_conn ({limit}) is below the {agents} connections of all agents"
            + (f" and the {others} pool_clients of other databases" if others else "")
            + f"\nHINT: leave it out, it is computed; {agents + others} at least"
        )


def _every_agent_is_let_in(fleet: "Fleet") -> Iterator[str]:
    networks = fleet.pgbouncer.agent_networks
    outside = [
        host
        for host in fleet.agent.hosts
        if not any(host.ip in ip_network(network) for network in networks)
    ]
    if networks and outside:
        yield (
            f"{', '.join(f'{host.name} ({host.address})' for host in outside)}: in none of"
            f" agent_networks ({', '.join(networks)}), so that no pooler lets it in"
            "\nHINT: add its network to agent_networks, or leave agent_networks out: each agent's"
            " own address"
        )


def _the_database_bears_all_pools(fleet: "Fleet") -> Iterator[str]:
    limit = fleet.pem_server.max_connections
    if limit is None:
        return
    pools = demand(fleet)
    wanted = pools.max_connections
    if wanted > limit:
        yield (
            f"max_connections ({limit}) is below {wanted}: {pools.explanation},"
            f" {SUPERUSER_RESERVED} that Postgres keeps for superusers, and {OTHER_CONNECTIONS} for"
            " direct agents, web application and replication"
            f"\nHINT: max_connections={wanted} in PemServer(…), or a smaller pool_size"
        )


def _one_machine_one_entry(fleet: "Fleet") -> Iterator[str]:
    machines = {id(host): host for _, host in fleet.memberships()}.values()
    owners: dict[tuple[str, str], list[str]] = {}
    for host in machines:
        for name in {name.lower() for name in host.all_names}:
            owners.setdefault(("name", name), []).append(host.name)
        owners.setdefault(("address", host.address), []).append(host.name)
    for (what, value), names in owners.items():
        if len(names) > 1:
            yield (
                f"{what} {value} is given to {len(names)} hosts: {', '.join(names)}"
                "\nHINT: make the Host once and give the same object to each of its roles"
            )


def _each_service_has_its_port(fleet: "Fleet") -> Iterator[str]:
    server, pooler = fleet.pem_server, fleet.pgbouncer
    both = {host.name for host in server.hosts} & {host.name for host in pooler.hosts}
    if both and server.port == pooler.listen_port:
        yield (
            f"{', '.join(sorted(both))}: Postgres and PgBouncer both want port {server.port}"
            f"\nHINT: listen_port=6432 in PgBouncer(…), another one than port={server.port}"
        )


def _no_host_is_named_like_a_role(fleet: "Fleet") -> Iterator[str]:
    # PgBouncer compares a client certificate's DNS names with the user that logs in, before
    # the common name and whatever the case (measured on 1.26.1).
    server = fleet.pem_server
    users = {server.admin_user, server.agent_user, AUTH_USER, POOL_USER}
    if (server.endpoint or "").lower() in users:
        yield (
            f"endpoint {server.endpoint} is also a database role; the servers' certificates could"
            " log in as that role\nHINT: another name for the endpoint"
        )
    found = {name for _, host in fleet.memberships() for name in host.all_names}
    for name in sorted(found):
        if name.lower() in users:
            yield (
                f"host name {name} is also a database role; its server certificate could"
                " log in as that role\nHINT: rename the host, or the role in PemServer(…)"
            )


def _pooled_agents_are_not_the_server(fleet: "Fleet") -> Iterator[str]:
    both = {host.name for host in fleet.agent.hosts} & {
        host.name for host in fleet.pem_server.hosts
    }
    if both:
        yield (
            f"{', '.join(sorted(both))}: the PEM server's own agent uses LISTEN, which"
            " transaction pooling breaks; it stays direct\nHINT: take it out of Agent(hosts=…)"
        )


def _stats_user_is_its_own(fleet: "Fleet") -> Iterator[str]:
    server, name = fleet.pem_server, fleet.pgbouncer.stats_user
    taken = {*PEM_ROLES, server.admin_user, server.agent_user}
    taken |= {user.name for user in fleet.access.users} if fleet.access is not None else set()
    if name in taken:
        yield (
            f"stats_user ({name}) is a role with another part to play"
            '\nHINT: stats_user="pem_stats", a role for this alone'
        )


CHECKS = (
    _stats_user_is_its_own,
    _roles_belong_together,
    _every_client_may_connect,
    _every_agent_is_let_in,
    _the_database_bears_all_pools,
    _one_machine_one_entry,
    _each_service_has_its_port,
    _no_host_is_named_like_a_role,
    _pooled_agents_are_not_the_server,
    access_problems,
)
