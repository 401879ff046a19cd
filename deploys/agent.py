"""PEM agents: registered through the poolers or moved onto them, by certificate, and seen to beat.

pyinfra inventories/example.py deploys/agent.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import systemd

from fleet import is_entrypoint
from fleet.hosts import Fleet, Host
from fleet.leaves import agent_leaf
from fleet.operations import agent_move, pem, pem_authority
from fleet.operations.files import File, directory, put
from fleet.operations.packages import installed
from fleet.operations.services import restarted_since, units_read
from fleet.pki import certificate_file, key_file
from fleet.platforms import (
    AGENT_DIRECTORY,
    AGENT_DROP_IN,
    AGENT_TRIAL,
    PEM_AGENT_CONFIG,
    PEM_AGENT_PACKAGE,
    PEM_AGENT_UNIT,
    SERVER_CA_FILE,
    Family,
    family_of,
)
from fleet.pooler import agent_pair, preferred

DROP_IN_TEXT = f"""\
# Written by pem-fleet; edits here are lost.
# The agent checks the pooler's certificate (pem_ssl_mode=verify-full) against this CA.
[Service]
Environment=PGSSLROOTCERT={SERVER_CA_FILE}
"""


@deploy("Agent")
def agent(fleet: Fleet, machine: Host, family: Family) -> None:
    """One agent, from what is there to a heartbeat that came through a pooler."""
    authority, leaf = fleet.certificate_authority, agent_leaf(fleet, machine)
    from_pem = authority.client_issuer == "pem"
    certificate, key = agent_pair(fleet)
    standing = agent_move.standing(fleet)

    if standing == "spooling":
        agent_move.stays_direct(name="See that an agent with spoolers is direct", fleet=fleet)
        return
    agent_move.back_from_a_cut_off_trial(name="Go back from a trial that was cut off")
    installed(name="Install the agent", names=(PEM_AGENT_PACKAGE,), family=family)
    directory(name="Directory for keys", path=AGENT_DIRECTORY, mode="700")
    if from_pem:
        installed(name="Install openssl", names=("openssl",), family=family)
        pem_authority.by_registration(
            name="Have PEM make a certificate for the pooled role, if it is due",
            fleet=fleet,
            leaf=leaf,
            poolers=preferred(fleet.pgbouncer, machine),
            certificate=certificate,
            key=key,
            _serial=True,
        )
    else:
        put(
            name="Write the agent's certificate",
            files=(
                File(certificate, certificate_file(authority, leaf), mode="600"),
                File(key, key_file(authority, leaf), mode="600"),
            ),
        )
    if standing == "direct":
        move(fleet=fleet, values=settings(fleet, machine, certificate, key))
    else:
        register(fleet=fleet, machine=machine, certificate=certificate, key=key)
    systemd.service(name="Start at boot", service=PEM_AGENT_UNIT, running=None, enabled=True)
    restarted_since(
        name="Start, or restart on new settings",
        unit=PEM_AGENT_UNIT,
        files=(PEM_AGENT_CONFIG, AGENT_DROP_IN),
    )
    pem.verified(name="Verify the registration")
    pem.beats(name="See a heartbeat through a pooler", fleet=fleet)


def move(fleet: Fleet, values: dict[str, str]) -> None:
    """An agent that is registered and direct: onto the poolers, on trial."""
    put(name="Bring the way back", files=agent_move.TOOLS)
    units_read(name="Have systemd read its timer", unit=f"{AGENT_TRIAL}.timer")
    agent_move.moved(
        name="Move onto the poolers, on trial",
        fleet=fleet,
        values=values,
        unit_settings=DROP_IN_TEXT,
    )


def register(fleet: Fleet, machine: Host, certificate: str, key: str) -> None:
    """An agent that is new or lost, or registered here: through the poolers, with our settings."""
    drop_in_directory = AGENT_DROP_IN.rpartition("/")[0]
    directory(name="Directory for the unit's settings", path=drop_in_directory, mode="755")
    put(name="Have it check the poolers' names", files=(File(AGENT_DROP_IN, DROP_IN_TEXT),))
    units_read(name="Have systemd read the unit", unit=PEM_AGENT_UNIT)
    # One after the other: simultaneous registrations fail in PEM's database.
    pem.registered(
        name="Register through the poolers",
        fleet=fleet,
        poolers=preferred(fleet.pgbouncer, machine),
        certificate=certificate,
        key=key,
        _serial=True,
    )
    pem.agent_settings(
        name="Settings of agent.cfg", values=settings(fleet, machine, certificate, key)
    )


def settings(fleet: Fleet, machine: Host, certificate: str, key: str) -> dict[str, str]:
    """The keys of agent.cfg that are ours."""
    poolers = preferred(fleet.pgbouncer, machine)
    return {
        "pem_host": ",".join(poolers),
        "pem_port": ",".join(str(fleet.pgbouncer.listen_port) for _ in poolers),
        "agent_user": fleet.pem_server.agent_user,
        "agent_ssl_key": key,
        "agent_ssl_crt": certificate,
        "pem_ssl_mode": "verify-full",
        # Without a limit, a pooler that drops packets would keep an agent from the other one.
        "connect_timeout": "10",
        "heartbeat_connection": str(fleet.agent.heartbeat_connection).lower(),
    }


if is_entrypoint(__name__) and "agent" in host.groups:
    agent(
        fleet=host.data.fleet,
        machine=host.data.machine,
        family=family_of(host),
        _sudo=True,
    )
