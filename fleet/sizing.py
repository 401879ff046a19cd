"""How many connections a pooler needs for its agents, with the arithmetic to print beside it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet.databases import Access
    from fleet.hosts import Agent, PgBouncer

# EDB's own example allows 80 server connections for at most 500 clients.
BUSY_SHARE = 0.16
SMALLEST_POOL = 5
# A client that lost its pooler connects again before the old connection is known to be dead.
RECONNECT_FACTOR = 2
ADMIN_CONNECTIONS = 20
OTHER_DESCRIPTORS = 100
# The limit goes in steps, so that a further agent seldom changes it.
DESCRIPTOR_STEP = 1024


@dataclass(frozen=True)
class Sizing:
    """Limits of one pooler. Each must carry all agents, for the day the other one is down."""

    pool_size: int
    max_client_conn: int
    open_files: int
    explanation: tuple[str, ...]


def sizing(pooler: "PgBouncer", agent: "Agent", access: "Access | None" = None) -> Sizing:
    """The limits of one pooler of `pooler` for all agents of `agent`, and for other databases.

    Those have limits of their own, which are added: their clients take nothing from the agents.
    """
    databases = access.pooled_databases if access is not None else ()
    others = sum(database.pool_clients for database in databases)
    count, each = len(agent.hosts), agent.connections
    clients = count * each
    computed_pool = max(SMALLEST_POOL, math.ceil(clients * BUSY_SHARE))
    pool_size = pooler.pool_size or computed_pool
    computed_max = clients * RECONNECT_FACTOR + ADMIN_CONNECTIONS + others
    max_client_conn = pooler.max_client_conn or max(computed_max, pool_size)
    # The agents, the administrator and the auth_query each have a pool of their own.
    # Another database has pool_size for all of its users together.
    servers = 3 * pool_size + sum(database.pool_size for database in databases)
    needed = max_client_conn + servers + OTHER_DESCRIPTORS
    open_files = math.ceil(needed / DESCRIPTOR_STEP) * DESCRIPTOR_STEP
    explanation = (
        f"{count} agents x {each} = {clients} client connections, all of them at one pooler"
        " when the other is down.",
        f"pool_size {pool_size}: "
        + (
            "as the inventory says."
            if pooler.pool_size
            else f"{BUSY_SHARE:.0%} of {clients} busy at once, and at least {SMALLEST_POOL}."
        ),
        f"max_client_conn {max_client_conn}: "
        + (
            "as the inventory says."
            if pooler.max_client_conn
            else f"{clients} x {RECONNECT_FACTOR} while lost connections linger,"
            f" and {ADMIN_CONNECTIONS} for administrators and registrations"
            + (f", and {others} for other databases." if others else ".")
        ),
    )
    return Sizing(pool_size, max_client_conn, open_files, explanation)
