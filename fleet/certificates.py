"""What a certificate should say, and whether one does. Pure Python, no files."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Kind = Literal["server", "client"]
PURPOSE = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True)
class Leaf:
    """What a certificate should say, and where it is kept.

    common_name: the user for a client, the host for a server.
    host: the inventory name of the host that holds it.
    dns_names, addresses: what a server is reached by; always empty for a client.
    """

    kind: Kind
    common_name: str
    host: str
    dns_names: tuple[str, ...] = ()
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()

    @property
    def file_stem(self) -> str:
        """Its place below the authorities' directory, without the ending."""
        if self.kind == "server":
            return f"servers/{self.host}"
        return f"clients/{self.common_name}@{self.host}"

    @property
    def alternative_names(self) -> list[x509.GeneralName]:
        """The subject alternative names that it should have; none for a client."""
        if self.kind == "client":
            return []
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in self.dns_names]
        return names + [x509.IPAddress(address) for address in self.addresses]


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority signed a certificate, by its name and its key."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def why_renew(
    certificate: x509.Certificate,
    authority: x509.Certificate,
    renew_days: int,
    now: datetime | None = None,
) -> str:
    """The reason to renew a certificate of this authority soon, '' when there is time.

    One that ends with its authority is kept to its last day: a new one would not live longer.
    """
    now = now or datetime.now(UTC)
    days_left = (certificate.not_valid_after_utc - now).days
    ends = authority.not_valid_after_utc - certificate.not_valid_after_utc
    if days_left > renew_days or (ends < timedelta(days=1) and days_left >= 0):
        return ""
    return f"{days_left} days left"


def wrong_name(certificate: x509.Certificate, leaf: Leaf) -> str:
    """Why a certificate's common name is not the leaf's, '' when it is."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return "" if [name.value for name in names] == [leaf.common_name] else "its common name changed"


def wrong_words(certificate: x509.Certificate, leaf: Leaf) -> str:
    """In what a certificate does not say what the leaf should; '' when it does."""
    if wrong := wrong_name(certificate, leaf):
        return wrong
    said = extension(certificate, x509.SubjectAlternativeName, ())
    wanted = leaf.alternative_names
    if not set(wanted) <= set(said) or (said and not wanted):
        return "its names changed"
    if list(extension(certificate, x509.ExtendedKeyUsage, ())) != [PURPOSE[leaf.kind]]:
        return "its extended key usage is not its purpose alone"
    return ""


def extension(certificate: x509.Certificate, kind: type[Any], absent: Any) -> Any:  # noqa: ANN401  as x509 has it
    """The value of an extension, or `absent`."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return absent
