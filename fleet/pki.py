"""The fleet's two certificate authorities and what they issue. Pure Python, no pyinfra.

One authority is for servers and one for clients, and a leaf says which it is by its extended key
usage. A certificate of a server must not log in as a role, even when its name equals the role's:
PgBouncer looks at DNS names before the common name, and only the key usage stops that (measured
on 1.26.1). So server leaves carry serverAuth alone, and client leaves clientAuth alone and no name
but their subject.

    directory/server-ca.crt   .key          trusted by whoever connects to a server
    directory/client-ca.crt   .key  .crl    trusted by servers that clients log in to
    directory/servers/HOST.crt   .key       one for each host
    directory/clients/USER@HOST.crt   .key  one for each user on each host
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.hosts import CertificateAuthority

Kind = Literal["server", "client"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# Clocks differ: a certificate is valid from a little before it was made.
_BACKDATE = timedelta(hours=1)
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_PURPOSE = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


class PkiError(Exception):
    """An authority or a leaf that cannot be used; the text ends with a HINT."""


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


def certificate_file(settings: CertificateAuthority, leaf: Leaf) -> Path:
    """Where the leaf's certificate is kept on the operator's machine."""
    return settings.path / f"{leaf.file_stem}.crt"


def key_file(settings: CertificateAuthority, leaf: Leaf) -> Path:
    """Where the leaf's private key is kept on the operator's machine."""
    return settings.path / f"{leaf.file_stem}.key"


def authority_file(settings: CertificateAuthority, kind: Kind, ending: str = "crt") -> Path:
    """A file of the server or the client authority: its crt, its key, or the client's crl."""
    return settings.path / f"{kind}-ca.{ending}"


def authorities_missing(settings: CertificateAuthority) -> tuple[str, ...]:
    """The files that `make_authorities()` would write, by name."""
    wanted = [authority_file(settings, kind) for kind in ("server", "client")]
    wanted.append(authority_file(settings, "client", "crl"))
    return tuple(path.name for path in wanted if not path.exists())


def make_authorities(settings: CertificateAuthority) -> None:
    """Make the authorities that are not there, and the client authority's revocation list.

    One that is there, made before or given, is checked and kept. Raises PkiError.
    """
    _make_directory(settings.path)
    for kind in ("server", "client"):
        if not authority_file(settings, kind).exists():
            _make_authority(settings, kind)
        _authority(settings, kind)
    if not authority_file(settings, "client", "crl").exists():
        _make_revocation_list(settings)


def why_issue(settings: CertificateAuthority, leaf: Leaf, now: datetime | None = None) -> str:
    """The reason to issue a leaf (again), or '' when the one that is there will do."""
    now = now or datetime.now(UTC)
    path = certificate_file(settings, leaf)
    if not path.exists() or not key_file(settings, leaf).exists():
        return "not issued yet"
    ca_path = authority_file(settings, leaf.kind)
    if not ca_path.exists():
        return f"{ca_path.name} is missing"
    certificate = _read_certificate(path)
    try:
        certificate.verify_directly_issued_by(_read_certificate(ca_path))
    except (ValueError, TypeError, InvalidSignature):
        return f"not issued by the present {ca_path.name}"
    if (certificate.not_valid_after_utc - now).days <= settings.renew_days:
        return f"{(certificate.not_valid_after_utc - now).days} days left"
    if _said(certificate) != _subject_and_names(settings, leaf):
        return "its names changed"
    return ""


def issue(settings: CertificateAuthority, leaf: Leaf, now: datetime | None = None) -> None:
    """Make a new key and certificate for a leaf, valid from `now` on.

    Raises PkiError when the authority is missing or unfit, or its key is kept elsewhere.
    """
    ca_certificate, ca_key = _authority(settings, leaf.kind)
    if ca_key is None:
        raise PkiError(
            f"{authority_file(settings, leaf.kind, 'key')} is not there, so"
            f" {certificate_file(settings, leaf)} cannot be issued\nHINT: put the authority's key"
            " there, or this certificate and its key"
        )
    key = _new_key(settings)
    now = now or datetime.now(UTC)
    ends = min(now + timedelta(days=settings.leaf_days), ca_certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(settings, leaf))
        .issuer_name(ca_certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_leaf_usage(key), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_PURPOSE[leaf.kind]]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_issuer_identifier(ca_certificate), critical=False)
    )
    names = _alternative_names(leaf)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    # The key first: a certificate without its key would look issued.
    _write(key_file(settings, leaf), _key_text(key))
    _write(certificate_file(settings, leaf), certificate.public_bytes(serialization.Encoding.PEM))


def days_left(path: Path, now: datetime | None = None) -> int:
    """Whole days until the certificate in a file expires; negative when it has."""
    return (_read_certificate(path).not_valid_after_utc - (now or datetime.now(UTC))).days


def _authority(
    settings: CertificateAuthority, kind: Kind
) -> tuple[x509.Certificate, CertificateIssuerPrivateKeyTypes | None]:
    """An authority's certificate and key (None when its owner keeps it elsewhere), checked."""
    path = authority_file(settings, kind)
    if not path.exists():
        raise PkiError(f"{path} does not exist\nHINT: pyinfra INVENTORY deploys/ca.py")
    certificate = _read_certificate(path)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca:
        raise PkiError(f"{path} is no CA certificate\nHINT: openssl x509 -noout -text -in {path}")
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise PkiError(
            f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
            "\nHINT: move it and its key away and run deploys/ca.py; every leaf is issued again"
        )
    key = _read_key(authority_file(settings, kind, "key"))
    if key is not None and key.public_key() != certificate.public_key():
        raise PkiError(
            f"{authority_file(settings, kind, 'key')} is not the key of {path}"
            "\nHINT: put the two that belong together there"
        )
    return certificate, key


def _make_authority(settings: CertificateAuthority, kind: Kind) -> None:
    key = _new_key(settings)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, settings.organization),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{settings.organization} {kind} CA"),
        ]
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=settings.authority_days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_authority_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(authority_file(settings, kind, "key"), _key_text(key))
    _write(authority_file(settings, kind), certificate.public_bytes(serialization.Encoding.PEM))


def _make_revocation_list(settings: CertificateAuthority) -> None:
    """Postgres with an ssl_crl_file refuses clients of a CA that has no list in it.

    The list is handed out by deploys, nobody fetches it: it is valid as long as the CA, since an
    expired one would lock every pooler out, and a revocation counts once it is deployed.
    """
    certificate, key = _authority(settings, "client")
    if key is None:
        raise PkiError(
            f"{authority_file(settings, 'client', 'crl')} is missing, and so is the key to sign it"
            "\nHINT: put the client CA's revocation list there (PEM format)"
        )
    revocations = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(datetime.now(UTC) - _BACKDATE)
        .next_update(certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(_issuer_identifier(certificate), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = authority_file(settings, "client", "crl")
    _write(path, revocations.public_bytes(serialization.Encoding.PEM))


def _subject(settings: CertificateAuthority, leaf: Leaf) -> x509.Name:
    # OU tells the holders of one shared user apart, in logs and in SHOW CLIENTS.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, settings.organization),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, leaf.host),
            x509.NameAttribute(NameOID.COMMON_NAME, leaf.common_name),
        ]
    )


def _alternative_names(leaf: Leaf) -> list[x509.GeneralName]:
    if leaf.kind == "client":
        return []
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in leaf.dns_names]
    return names + [x509.IPAddress(address) for address in leaf.addresses]


def _subject_and_names(
    settings: CertificateAuthority, leaf: Leaf
) -> tuple[x509.Name, list[x509.GeneralName]]:
    return _subject(settings, leaf), _alternative_names(leaf)


def _said(certificate: x509.Certificate) -> tuple[x509.Name, list[x509.GeneralName]]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return certificate.subject, []
    return certificate.subject, list(extension.value)


def _usage(flags: Iterable[str]) -> x509.KeyUsage:
    known = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{name: name in flags for name in known})


def _authority_usage() -> x509.KeyUsage:
    return _usage({"key_cert_sign", "crl_sign"})


def _leaf_usage(key: PrivateKey) -> x509.KeyUsage:
    rsa_only = {"key_encipherment"} if isinstance(key, rsa.RSAPrivateKey) else set()
    return _usage({"digital_signature"} | rsa_only)


def _issuer_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        # A given CA without one: the identifier is then its key's hash, as verifiers compute it.
        own = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _new_key(settings: CertificateAuthority) -> PrivateKey:
    if settings.key_type == "rsa3072":
        return rsa.generate_private_key(public_exponent=65537, key_size=3072)
    return ec.generate_private_key(ec.SECP256R1())


def _key_text(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PkiError(
            f"{path} cannot be read as a certificate: {error}"
            f"\nHINT: openssl x509 -noout -text -in {path}"
        ) from None


def _read_key(path: Path) -> CertificateIssuerPrivateKeyTypes | None:
    if not path.exists():
        return None
    if path.stat().st_mode & 0o077:
        raise PkiError(f"{path} can be read by others\nHINT: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise PkiError(
            f"{path} cannot be read as a private key: {error}\nHINT: openssl pkey -noout -in {path}"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise PkiError(f"{path} is neither an EC nor an RSA key\nHINT: use P-256 or RSA")
    return key


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        path.chmod(_DIRECTORY_MODE)
    except OSError as error:
        raise PkiError(
            f"{path} cannot be made: {error.strerror}"
            "\nHINT: CertificateAuthority(directory=…) names a folder of yours"
        ) from None


def _write(path: Path, text: bytes) -> None:
    """Write a file whole, never readable by others, never half there."""
    _make_directory(path.parent)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    try:
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError as error:
        raise PkiError(
            f"{path} cannot be written: {error.strerror}\nHINT: df {path.parent}"
        ) from None
