"""What the poolers may open on the database, beside what it takes: both sides of the arithmetic."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet.sizing import POOLS, sizing

if TYPE_CHECKING:
    from fleet.hosts import Fleet

# Postgres' own default of superuser_reserved_connections.
SUPERUSER_RESERVED = 3
# The PEM server's own agent and other direct ones, the web application, replication, backups, you.
OTHER_CONNECTIONS = 40


@dataclass(frozen=True)
class Demand:
    """Server connections that all poolers together may open at most."""

    connections: int
    explanation: str

    @property
    def max_connections(self) -> int:
        """What Postgres must take for them and for everybody else."""
        return self.connections + SUPERUSER_RESERVED + OTHER_CONNECTIONS


def demand(fleet: "Fleet") -> Demand:
    """The sum of all pools of all processes, when each is full."""
    pooler = fleet.pgbouncer
    limits = sizing(pooler, fleet.agent, fleet.access)
    others = fleet.access.pooled_databases if fleet.access is not None else ()
    shares = {database.name: limits.share(database.pool_size) for database in others}
    each = POOLS * limits.pool_size + sum(shares.values())
    processes = len(pooler.hosts) * pooler.processes
    pools = [f"{POOLS} pools of {limits.pool_size}"]
    pools += [f"{share} for {name}" for name, share in shares.items()]
    several = f" x {pooler.processes} processes" if pooler.processes > 1 else ""
    return Demand(
        processes * each,
        f"{len(pooler.hosts)} poolers{several} x ({' + '.join(pools)})"
        f" = {processes * each} server connections",
    )
