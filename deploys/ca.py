"""Our two certificate authorities, what they issue for the fleet, and their anchors on its hosts.

    pyinfra inventories/example.py deploys/ca.py

Run it once a month: a certificate with a third of its lifetime left is renewed. The roles' own
deploys bring the new ones to their hosts, and renew what PEM's own CA issued.
"""

from pyinfra import host
from pyinfra.api import deploy

from fleet import is_entrypoint
from fleet.hosts import Fleet, Host
from fleet.leaves import leaves_of
from fleet.operations.certificates import authorities, leaves
from fleet.operations.files import File, directory, put
from fleet.pki import authority_file
from fleet.platforms import CLIENT_CA_FILE, SERVER_CA_FILE, TRUST_DIRECTORY


@deploy("CA")
def ca(fleet: Fleet, machine: Host) -> None:
    """The authorities and leaves on the operator's machine, the anchors on the host."""
    settings = fleet.certificate_authority
    authorities(name="Make the server CA and the client CA", settings=settings, _run_once=True)

    wanted = leaves_of(fleet, machine)
    if wanted:
        leaves(name="Issue the certificates of its roles", settings=settings, wanted=wanted)

    directory(name=f"Directory {TRUST_DIRECTORY}", path=TRUST_DIRECTORY, mode="755")
    put(
        name="Write the trust anchors",
        files=(
            File(SERVER_CA_FILE, authority_file(settings, "server")),
            File(CLIENT_CA_FILE, authority_file(settings, "client")),
        ),
    )


if is_entrypoint(__name__) and host.data.get("fleet"):
    ca(fleet=host.data.fleet, machine=host.data.machine, _sudo=True)
