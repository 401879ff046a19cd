"""An inventory: the lab's fleet with 100 agents, the lab's three agent hosts under many names.

Each has an address of its own, which nobody uses; ssh goes to one of the three.
"""

from fleet.hosts import Fleet, Host
from fleet.inventory import fleet_of


def _with_many_agents(lab: Fleet) -> Fleet:
    real = lab.agent.hosts
    aliases = tuple(
        Host(
            name=f"many{number:03}",
            address=f"198.51.100.{number}",
            ssh=real[number % len(real)].ssh,
        )
        for number in range(1, 101)
    )
    poolers = lab.pgbouncer.but(agent_networks=(*lab.pgbouncer.agent_networks, "198.51.100.0/24"))
    return lab.but(pgbouncer=poolers, agent=lab.agent.but(hosts=aliases, via=poolers))


fleet = _with_many_agents(fleet_of("inventories/lab.py"))

pem_server = fleet.group("pem_server")
pgbouncer = fleet.group("pgbouncer")
agent = fleet.group("agent")
