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
# The agents, the administrator who registers them, and the auth_query: one pool each.
POOLS = 3
# A client that lost its pooler connects again before the old connection is known to be dead.
RECONNECT_FACTOR = 2
ADMIN_CONNECTIONS = 20
OTHER_DESCRIPTORS = 100
# From here on, the agents that come back from a lost pooler would bury all else in the log.
LOGGED_CONNECTIONS = 100
# The limit goes in steps, so that a further agent seldom changes it.
DESCRIPTOR_STEP = 1024


@dataclass(frozen=True)
class Sizing:
    """Limits of one process of a pooler, and what it logs.

    Each pooler must carry all agents, for the day the other one is down.
    pool_size: server connections of each process. Divided among the processes, because what the
        database bears is their sum.
    max_client_conn: not divided, because the others carry the clients of a process that restarts,
        and the kernel hands out connections without counting them.
    explanation, log_reason: the arithmetic, for the ini.
    """

    pool_size: int
    max_client_conn: int
    open_files: int
    explanation: tuple[str, ...]
    log_connections: bool
    log_reason: str
    processes: int = 1

    def share(self, connections: int) -> int:
        """What each process gets of a pooler's server connections, rounded up."""
        return math.ceil(connections / self.processes)


def sizing(pooler: "PgBouncer", agent: "Agent", access: "Access | None" = None) -> Sizing:
    """The limits of each process of `pooler` for all agents of `agent`, and for other databases.

    Those have limits of their own, which are added: their clients take nothing from the agents.
    """
    databases = access.pooled_databases if access is not None else ()
    others = sum(database.pool_clients for database in databases)
    count, each = len(agent.hosts), agent.connections
    clients = count * each
    computed_pool = max(SMALLEST_POOL, math.ceil(clients * BUSY_SHARE))
    total = pooler.pool_size or computed_pool
    pool_size = math.ceil(total / pooler.processes)
    computed_max = clients * RECONNECT_FACTOR + ADMIN_CONNECTIONS + others
    max_client_conn = pooler.max_client_conn or max(computed_max, pool_size)
    # Another database has pool_size for all of its users together.
    servers = POOLS * pool_size + sum(database.pool_size for database in databases)
    needed = max_client_conn + servers + OTHER_DESCRIPTORS
    open_files = math.ceil(needed / DESCRIPTOR_STEP) * DESCRIPTOR_STEP
    explanation = [
        f"{count} agents x {each} = {clients} client connections, all of them at one pooler"
        " when the other is down.",
        f"pool_size {total}: "
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
    ]
    if pooler.processes > 1:
        explanation += [
            f"{pooler.processes} processes: pool_size {total} / {pooler.processes} = {pool_size}"
            " for each, rounded up; max_client_conn",
            "is for each, as it carries the clients of the others while they restart.",
        ]
    log, reason = _logs_connections(pooler, clients)
    return Sizing(
        pool_size, max_client_conn, open_files, tuple(explanation), log, reason, pooler.processes
    )


def _logs_connections(pooler: "PgBouncer", clients: int) -> tuple[bool, str]:
    if pooler.log_connections is not None:
        return pooler.log_connections, "as the inventory says."
    log = clients <= LOGGED_CONNECTIONS
    return log, (
        f"{'on' if log else 'off'}, as {clients} client connections are"
        f" {'at most' if log else 'more than'} {LOGGED_CONNECTIONS}."
    )
