"""What only the whole inventory shows: roles that do not fit together, all told at once."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fleet.access_checks import access_problems
from fleet.mistakes import Mistake, any_noted, inventory_line, note

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


def _every_agent_may_connect(fleet: "Fleet") -> Iterator[str]:
    wanted = len(fleet.agent.hosts) * fleet.agent.connections
    limit = fleet.pgbouncer.max_client_conn
    if limit is not None and limit < wanted:
        yield (
            f"max_client_conn ({limit}) is below the {wanted} connections of all agents"
            "\nHINT: leave it out, it is computed from the number of agents"
        )


def _one_machine_one_entry(fleet: "Fleet") -> Iterator[str]:
    machines = {id(host): host for _, host in fleet.memberships()}.values()
    for what in ("name", "address"):
        counted = Counter(str(getattr(host, what)).lower() for host in machines)
        twice = [value for value, count in counted.items() if count > 1]
        if twice:
            names = [host.name for host in machines if str(getattr(host, what)).lower() in twice]
            yield (
                f"{what} {', '.join(twice)} is given to {len(names)} hosts: {', '.join(names)}"
                "\nHINT: make the Host once and give the same object to each of its roles"
            )


def _no_host_is_named_like_a_role(fleet: "Fleet") -> Iterator[str]:
    # PgBouncer compares a client certificate's DNS names with the user that logs in, before
    # the common name and whatever the case (measured on 1.26.1).
    server = fleet.pem_server
    users = {server.admin_user, server.agent_user, "pgbouncer", "pem_agent_pool"}
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


CHECKS = (
    _roles_belong_together,
    _every_agent_may_connect,
    _one_machine_one_entry,
    _no_host_is_named_like_a_role,
    _pooled_agents_are_not_the_server,
    access_problems,
)
