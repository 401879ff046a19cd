"""What an inventory says of the authorities that issue its certificates."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fleet.keystore import key_problems
from fleet.roles import Role
from fleet.values import Days

ClientAuthority = Literal["own", "pem"]


def _each_authority_once(names: tuple[ClientAuthority, ...]) -> tuple[ClientAuthority, ...]:
    if len(set(names)) < len(names):
        raise ValueError(
            f"{', '.join(names)} names an authority twice"
            '\nHINT: ("own",), ("own", "pem"), ("pem", "own") or ("pem",)'
        )
    return names


class CertificateAuthority(Role):
    """The two certificate authorities, one for servers and one for clients.

    They live in a directory on the operator's machine. An authority found there
    (`server-ca.crt` and `server-ca.key`, `client-ca.crt` and `client-ca.key`) is used, one that is
    missing is made. PEM's own CA, in its database's data directory, may be the one for clients;
    docs/authorities.md tells how a fleet moves from one to the other.
    """

    directory: str = Field(description="where the keys live, outside of any git checkout")
    organization: str = Field("pem-fleet", min_length=1, description="O= of every subject")
    key_type: Literal["p256", "rsa3072"] = Field("p256", description='"p256" or "rsa3072"')
    authority_days: Days = Field(3650, description="lifetime of a CA made here")
    leaf_days: Days = Field(90, description="lifetime of each host's and user's certificate")
    client_authorities: Annotated[
        tuple[ClientAuthority, ...], Field(min_length=1), AfterValidator(_each_authority_once)
    ] = Field(
        ("own",),
        description='"own", "pem" (PEM\'s CA) or both: all are trusted, the first one issues',
    )

    @property
    def path(self) -> Path:
        """The directory, `~` resolved."""
        return Path(self.directory).expanduser()

    @property
    def client_issuer(self) -> ClientAuthority:
        """The authority that issues the poolers' and the agents' client certificates."""
        return self.client_authorities[0]

    @property
    def renew_days(self) -> int:
        """A leaf with no more than this many days left is renewed: a third of its lifetime."""
        return self.leaf_days // 3

    @model_validator(mode="after")
    def _outside_git(self) -> Self:
        for folder in (self.path, *self.path.parents):
            if (folder / ".git").exists():
                raise ValueError(
                    f"directory {self.path} lies in the git checkout {folder}, and private keys do"
                    f' not belong there\nHINT: directory="~/.pem-fleet/{self.path.name}"'
                )
        return self

    @model_validator(mode="after")
    def _keys_are_the_operators(self) -> Self:
        problems = key_problems(self.path)
        if problems:
            raise ValueError(
                "; ".join(problems)
                + f"\nHINT: chown -R $USER {self.path} && chmod -R go= {self.path}"
            )
        return self

    @model_validator(mode="after")
    def _leaf_outlives_its_renewal(self) -> Self:
        if self.renew_days < 1:
            raise ValueError(
                f"leaf_days ({self.leaf_days}) leaves no day to renew in"
                "\nHINT: leaf_days=90, and run deploys/ca.py at least once a month"
            )
        if self.leaf_days > self.authority_days:
            raise ValueError(
                f"leaf_days ({self.leaf_days}) is above authority_days ({self.authority_days})"
                "\nHINT: a certificate is worth nothing once its CA has expired; lower leaf_days"
            )
        return self
