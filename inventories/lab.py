"""The lab's hosts (lab/hosts.yml) as a fleet: the same roles and deploys as in production.

make lab-up
pyinfra inventories/lab.py deploys/pgbouncer.py --dry
"""

from pyinfra.api.exceptions import InventoryError

from fleet.hosts import (
    Agent,
    CertificateAuthority,
    Fleet,
    Host,
    PemInstallation,
    PemServer,
    PgBouncer,
)
from fleet.secrets import secret
from fleet.ssh import ssh
from lab.hosts import current_lab

_lab = current_lab()
if not _lab.password_file.exists():
    raise InventoryError(f"lab {_lab.name} is not up\nHINT: make lab-up")

_ssh = ssh(user=_lab.user, key=str(_lab.key_file), known_hosts=str(_lab.known_hosts_file))
# Variables of its own: a password of production that is exported is not for the lab.
_password = f"cat {_lab.password_file}"


def _hosts(group: str) -> tuple[Host, ...]:
    return tuple(
        Host(
            name=one.name,
            address=one.address,
            names=(f"{one.name}.{_lab.domain}",),
            # The names are for the hosts among themselves; this machine goes by address.
            ssh={**_ssh, "ssh_hostname": one.address},
        )
        for one in _lab.hosts.values()
        if group in one.groups
    )


authority = CertificateAuthority(directory=str(_lab.directory / "ca"), organization="pem-fleet lab")

server = PemServer(
    hosts=_hosts("pem_server"),
    admin_password=secret("LAB_ADMIN_PASSWORD", command=_password),
    installation=PemInstallation(
        superuser_password=secret("LAB_SUPERUSER_PASSWORD", command=_password),
        network=_lab.network,
    ),
)

bouncer = PgBouncer(
    hosts=_hosts("pgbouncer"),
    server=server,
    admin_networks=(f"{_lab.gateway}/32",),
    # The whole lab: the tests on this machine knock like agents, with right and wrong papers.
    agent_networks=(_lab.network,),
)

agents = Agent(hosts=_hosts("agent"), via=bouncer)

fleet = Fleet(certificate_authority=authority, pem_server=server, pgbouncer=bouncer, agent=agents)

pem_server = fleet.group("pem_server")
pgbouncer = fleet.group("pgbouncer")
agent = fleet.group("agent")
