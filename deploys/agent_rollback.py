"""An agent that was moved onto the poolers: back to the agent.cfg, key and certificate it had.

    pyinfra inventories/example.py deploys/agent_rollback.py --limit HOST

The next deploys/agent.py moves it again; take it out of Agent(hosts=…) to keep it direct.
"""

from pyinfra import host
from pyinfra.api import deploy

from fleet import is_entrypoint
from fleet.hosts import Fleet
from fleet.operations import agent_move
from fleet.operations.files import directory, put
from fleet.operations.services import units_read
from fleet.platforms import AGENT_DIRECTORY, AGENT_TRIAL


@deploy("Agent rollback")
def agent_rollback(fleet: Fleet) -> None:
    """One agent back on its newest backup, to a heartbeat that came directly."""
    directory(name="Directory for keys", path=AGENT_DIRECTORY, mode="700")
    put(name="Bring the way back", files=agent_move.TOOLS)
    units_read(name="Have systemd read its timer", unit=f"{AGENT_TRIAL}.timer")
    agent_move.returned(name="Put the backup back", fleet=fleet)


if is_entrypoint(__name__) and "agent" in host.groups:
    agent_rollback(fleet=host.data.fleet, _sudo=True)
