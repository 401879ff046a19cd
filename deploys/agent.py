"""PEM agents: registered through the poolers, by certificate, and seen to beat.

pyinfra inventories/example.py deploys/agent.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import systemd

from fleet import is_entrypoint
from fleet.hosts import Fleet, Host
from fleet.leaves import agent_leaf
from fleet.operations import pem
from fleet.operations.files import File, directory, put
from fleet.operations.packages import installed
from fleet.operations.services import restarted_since, units_read
from fleet.pki import certificate_file, key_file
from fleet.platforms import (
    AGENT_DIRECTORY,
    PEM_AGENT_CONFIG,
    PEM_AGENT_PACKAGE,
    PEM_AGENT_UNIT,
    SERVER_CA_FILE,
    Family,
    family_of,
)
from fleet.pooler import preferred

DROP_IN = f"/etc/systemd/system/{PEM_AGENT_UNIT}.service.d/pem-fleet.conf"
DROP_IN_TEXT = f"""\
# Written by pem-fleet; edits here are lost.
# The agent checks the pooler's certificate (pem_ssl_mode=verify-full) against this CA.
[Service]
Environment=PGSSLROOTCERT={SERVER_CA_FILE}
"""


@deploy("Agent")
def agent(fleet: Fleet, machine: Host, family: Family) -> None:
    """One agent, from its package to a heartbeat that came through a pooler."""
    authority, leaf = fleet.certificate_authority, agent_leaf(fleet, machine)
    user = fleet.pem_server.agent_user
    certificate, key = f"{AGENT_DIRECTORY}/{user}.crt", f"{AGENT_DIRECTORY}/{user}.key"
    poolers = preferred(fleet.pgbouncer, machine)

    pem.ours_to_register(name="See that it is ours to register", server=fleet.pem_server)
    installed(name="Install the agent", names=(PEM_AGENT_PACKAGE,), family=family)
    directory(name="Directory for keys", path=AGENT_DIRECTORY, mode="700")
    put(
        name="Write the agent's certificate",
        files=(
            File(certificate, certificate_file(authority, leaf), mode="600"),
            File(key, key_file(authority, leaf), mode="600"),
        ),
    )
    directory(name="Directory for the unit's settings", path=DROP_IN.rpartition("/")[0], mode="755")
    put(name="Have it check the poolers' names", files=(File(DROP_IN, DROP_IN_TEXT),))
    units_read(name="Have systemd read the unit", unit=PEM_AGENT_UNIT)

    # One after the other: simultaneous registrations fail in PEM's database.
    pem.registered(
        name="Register through the poolers",
        fleet=fleet,
        poolers=poolers,
        certificate=certificate,
        key=key,
        _serial=True,
    )
    pem.agent_settings(
        name="Settings of agent.cfg",
        values={
            "pem_host": ",".join(poolers),
            "pem_port": ",".join(str(fleet.pgbouncer.listen_port) for _ in poolers),
            "agent_user": user,
            "agent_ssl_key": key,
            "agent_ssl_crt": certificate,
            "pem_ssl_mode": "verify-full",
            # Without a limit, a pooler that drops packets would keep an agent from the other one.
            "connect_timeout": "10",
            "heartbeat_connection": str(fleet.agent.heartbeat_connection).lower(),
        },
    )
    systemd.service(name="Start at boot", service=PEM_AGENT_UNIT, running=None, enabled=True)
    restarted_since(
        name="Start, or restart on new settings",
        unit=PEM_AGENT_UNIT,
        files=(PEM_AGENT_CONFIG, DROP_IN),
    )
    pem.verified(name="Verify the registration")
    pem.beats(name="See a heartbeat through a pooler", fleet=fleet)


if is_entrypoint(__name__) and "agent" in host.groups:
    agent(
        fleet=host.data.fleet,
        machine=host.data.machine,
        family=family_of(host),
        _sudo=True,
    )
