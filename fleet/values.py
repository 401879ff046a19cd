"""The kinds of values that an inventory may hold; each is checked where it is written."""

import re
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, InstanceOf, SecretStr

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
HostName = Annotated[str, Field(pattern=_HOST_NAME, max_length=253)]


def _name_or_address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        if re.fullmatch(_HOST_NAME, text):
            return text
        raise ValueError(f"{text!r} is neither a host name nor an address") from None


NameOrAddress = Annotated[str, AfterValidator(_name_or_address)]
# Lower case only: such a name needs no quotes in SQL, in pg_hba.conf and in PgBouncer's files.
RoleName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=63)]
SettingName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f]*$")]
# No plain text: a password in an inventory is a password in git.
Secret = InstanceOf[SecretStr]
Vendor = Literal["distribution", "pgdg"]
PoolerVendor = Literal["distribution", "pgdg", "edb"]
