"""The machines of an inventory, and the networks that they come from."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from fleet.databases import twice
from fleet.roles import Role
from fleet.values import Address, HostName


class Host(Role):
    """A machine: its name in the inventory and in DNS, its address, and how to log in."""

    name: HostName = Field(description="a name that the fleet's hosts can resolve")
    address: Address = Field(description="the address that the other hosts see")
    names: tuple[HostName, ...] = Field((), description="further names for its certificates")
    ssh: dict[str, Any] = Field(
        default={}, repr=False, exclude=True, description="what fleet.ssh.ssh() returns"
    )

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        """The address as an object."""
        return ip_address(self.address)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every DNS name of the host, its inventory name first."""
        return tuple(dict.fromkeys((self.name, *self.names)))


def _each_once(hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    names = twice(host.name for host in hosts)
    if names:
        raise ValueError(f"{', '.join(names)} is there twice\nHINT: name each host once in a role")
    return hosts


Hosts = Annotated[
    tuple[Host, ...],
    Field(min_length=1, description="a tuple of Host(…)"),
    AfterValidator(_each_once),
]


def sources(clients: Hosts, servers: Hosts) -> tuple[str, ...]:
    """The networks that clients come from: each one's address, and loopback on a shared host.

    A name of its own may lead a host to 127.0.1.1, so that it comes to itself from loopback.
    """
    networks = [f"{host.address}/{host.ip.max_prefixlen}" for host in clients]
    if {host.name for host in clients} & {host.name for host in servers}:
        networks += ["127.0.0.1/32", "::1/128"]
    return tuple(networks)
