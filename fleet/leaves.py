"""Which certificates a fleet needs: one for each server, one for each user on each host."""

from fleet.hosts import Fleet, Host
from fleet.pki import Leaf

# The common name by which the poolers log in to the database; pg_ident.conf maps it to the roles.
POOL_USER = "pem_agent_pool"


def server_leaf(host: Host) -> Leaf:
    """What a server on this host shows: all its names and its address."""
    return Leaf("server", host.name, host.name, host.all_names, (host.ip,))


def pool_leaf(host: Host) -> Leaf:
    """What the pooler on this host logs in to the database with."""
    return Leaf("client", POOL_USER, host.name)


def agent_leaf(fleet: Fleet, host: Host) -> Leaf:
    """What the agent on this host logs in to a pooler with."""
    return Leaf("client", fleet.pem_server.agent_user, host.name)


def leaves_of(fleet: Fleet, host: Host) -> tuple[Leaf, ...]:
    """Every certificate that this host needs for its roles."""
    leaves: list[Leaf] = []
    if host in fleet.pem_server.hosts or host in fleet.pgbouncer.hosts:
        leaves.append(server_leaf(host))
    if host in fleet.pgbouncer.hosts:
        leaves.append(pool_leaf(host))
    if host in fleet.agent.hosts:
        leaves.append(agent_leaf(fleet, host))
    return tuple(leaves)
