"""The kinds of values that an inventory may hold; each is checked where it is written."""

import re
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, InstanceOf, SecretStr, ValidationInfo

Port = Annotated[int, Field(ge=1, le=65535)]
Days = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1)]
Address = Annotated[str, AfterValidator(lambda text: str(ip_address(text)))]
Network = Annotated[str, AfterValidator(lambda text: str(ip_network(text)))]
_HOST_NAME = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"


def _apart(networks: tuple[str, ...]) -> tuple[str, ...]:
    for position, one in enumerate(networks):
        for other in networks[position + 1 :]:
            first, second = ip_network(one), ip_network(other)
            if first.version == second.version and first.overlaps(second):
                inner, outer = (other, one) if first.prefixlen <= second.prefixlen else (one, other)
                found = "is there twice" if one == other else f"lies in {outer}, also given"
                raise ValueError(f"{inner} {found}\nHINT: leave {inner} out once")
    return networks


# Each address in one of them at most: an entry that another one holds is not what it seems.
Networks = Annotated[tuple[Network, ...], AfterValidator(_apart)]

# Prefix lengths of the widest private networks there are: 10.0.0.0/8 and fc00::/7.
_WIDEST = {4: 8, 6: 7}


def _not_the_internet(networks: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    given = [ip_network(network) for network in networks]
    given4 = [network for network in given if isinstance(network, IPv4Network)]
    given6 = [network for network in given if isinstance(network, IPv6Network)]
    together: list[IPv4Network | IPv6Network]
    together = [*collapse_addresses(given4), *collapse_addresses(given6)]
    wide = [network for network in together if network.prefixlen < _WIDEST[network.version]]
    if wide:
        parts = ", ".join(str(part) for part in given if any(part.overlaps(one) for one in wide))
        raise ValueError(
            f"{parts}: wider than any private network, and lets the world try passwords at the"
            f' admin console\nHINT: {info.field_name}=("192.0.2.0/28",), where people work from'
        )
    return networks


# From where PgBouncer's admin console may be reached, by password.
ConsoleNetworks = Annotated[Networks, AfterValidator(_not_the_internet)]
HostName = Annotated[str, Field(pattern=_HOST_NAME, max_length=253)]


def _name_or_address(text: str, info: ValidationInfo) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        if re.fullmatch(_HOST_NAME, text):
            return text
        raise ValueError(
            f"{text!r} is neither a host name nor an address"
            f'\nHINT: {info.field_name}="pem.example.com": letters, digits, "-" and "."'
        ) from None


NameOrAddress = Annotated[str, AfterValidator(_name_or_address)]
# Lower case only: such a name needs no quotes in SQL, in pg_hba.conf and in PgBouncer's files.
RoleName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=63)]
SettingName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f]*$")]


def _not_empty(password: SecretStr) -> SecretStr:
    if not password.get_secret_value():
        raise ValueError("it is empty")
    return password


# No plain text: a password in an inventory is a password in git.
Secret = Annotated[InstanceOf[SecretStr], AfterValidator(_not_empty)]
Vendor = Literal["distribution", "pgdg"]
PoolerVendor = Literal["distribution", "pgdg", "edb"]
# The common name by which the poolers log in to the database; pg_ident.conf maps it to the roles.
POOL_USER = "pem_agent_pool"
# The role that the poolers ask for passwords with, over the pools' connections.
AUTH_USER = "pgbouncer"
# Roles that PEM, Postgres or the recipe have already: nobody in the inventory may take one.
PEM_ROLES = frozenset(
    (POOL_USER, AUTH_USER, "pem_admin", "pem_agent", "pem_user", "postgres", "enterprisedb")
)
