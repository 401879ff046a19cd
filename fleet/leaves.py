"""Which certificates a fleet needs: one for each server, one for each user on each host."""

from ipaddress import ip_address

from fleet.certificates import Leaf
from fleet.hosts import Fleet, Host
from fleet.values import POOL_USER


def server_leaf(fleet: Fleet, host: Host) -> Leaf:
    """What a server on this host shows: all its names and its address.

    A database of a cluster answers to the endpoint as well, as each may become the primary.
    """
    endpoint = fleet.pem_server.endpoint if host in fleet.pem_server.hosts else None
    names, addresses = list(host.all_names), [host.ip]
    if endpoint is not None:
        try:
            addresses.append(ip_address(endpoint))
        except ValueError:
            names.append(endpoint)
    return Leaf(
        "server", host.name, host.name, tuple(dict.fromkeys(names)), tuple(dict.fromkeys(addresses))
    )


def pool_leaf(host: Host) -> Leaf:
    """What the pooler on this host logs in to the database with."""
    return Leaf("client", POOL_USER, host.name)


def agent_leaf(fleet: Fleet, host: Host) -> Leaf:
    """What the agent on this host logs in to a pooler with."""
    return Leaf("client", fleet.pem_server.agent_user, host.name)


def leaves_of(fleet: Fleet, host: Host) -> tuple[Leaf, ...]:
    """Every certificate that our authorities issue to this host for its roles."""
    leaves: list[Leaf] = []
    if host in fleet.pem_server.hosts or host in fleet.pgbouncer.hosts:
        leaves.append(server_leaf(fleet, host))
    if fleet.certificate_authority.client_issuer == "pem":
        return tuple(leaves)
    if host in fleet.pgbouncer.hosts:
        leaves.append(pool_leaf(host))
    if host in fleet.agent.hosts:
        leaves.append(agent_leaf(fleet, host))
    return tuple(leaves)
