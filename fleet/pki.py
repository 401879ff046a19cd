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

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from fleet.certificates import (
    PURPOSE,
    Kind,
    Leaf,
    extension,
    issued_by,
    why_renew,
    wrong_words,
)
from fleet.hosts import CertificateAuthority
from fleet.keystore import (
    PkiError,
    check_revocations,
    make_directory,
    not_there,
    read_certificate,
    read_key,
    write,
)

KINDS: tuple[Kind, ...] = ("server", "client")
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# Clocks differ: a certificate is valid from a little before it was made.
_BACKDATE = timedelta(hours=1)


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
    wanted = [authority_file(settings, kind) for kind in KINDS]
    wanted.append(authority_file(settings, "client", "crl"))
    return tuple(path.name for path in wanted if not path.exists())


def check_authorities(settings: CertificateAuthority, now: datetime | None = None) -> list[str]:
    """What to say of the authorities that are there: those that end before long.

    Raises PkiError for one, made before or given, that cannot be used.
    """
    now, ending = now or datetime.now(UTC), []
    for kind in KINDS:
        if authority_file(settings, kind).exists():
            certificate, _ = _authority(settings, kind, now)
            left = (certificate.not_valid_after_utc - now).days
            if left <= settings.leaf_days:
                ending.append(
                    f"{authority_file(settings, kind)} ends in {left} days, and every certificate"
                    " of it with it; a new one must reach all hosts before"
                )
            revocations = authority_file(settings, kind, "crl")
            if revocations.exists():
                check_revocations(revocations, certificate, now)
    return ending


def make_authorities(settings: CertificateAuthority) -> None:
    """Make the authorities that are not there, and the client authority's revocation list.

    One that is there is checked and kept. Raises PkiError.
    """
    make_directory(settings.path)
    check_authorities(settings)
    for kind in KINDS:
        if not authority_file(settings, kind).exists():
            _make_authority(settings, kind)
    if not authority_file(settings, "client", "crl").exists():
        _make_revocation_list(settings)


def why_issue(settings: CertificateAuthority, leaf: Leaf, now: datetime | None = None) -> str:
    """The reason to issue a leaf (again), or '' when the one that is there will do.

    A leaf that was given, not issued here, may say more than ours would: another organization,
    further names.
    """
    path, key_path = certificate_file(settings, leaf), key_file(settings, leaf)
    if not path.exists() or not key_path.exists():
        return "not issued yet"
    ca_path = authority_file(settings, leaf.kind)
    if not ca_path.exists():
        return f"{ca_path.name} is missing"
    certificate, ca_certificate = read_certificate(path), read_certificate(ca_path)
    if not issued_by(certificate, ca_certificate):
        return f"not issued by the present {ca_path.name}"
    key = read_key(key_path)
    if key is None or key.public_key() != certificate.public_key():
        return "its key is another certificate's"
    reason = why_renew(certificate, ca_certificate, settings.renew_days, now)
    return reason or wrong_words(certificate, leaf)


def issue(settings: CertificateAuthority, leaf: Leaf, now: datetime | None = None) -> None:
    """Make a new key and certificate for a leaf, valid from `now` on.

    Raises PkiError when the authority is missing or unfit, or its key is kept elsewhere.
    """
    now = now or datetime.now(UTC)
    ca_certificate, ca_key = _authority(settings, leaf.kind, now)
    if ca_key is None:
        raise PkiError(
            f"{authority_file(settings, leaf.kind, 'key')} is not there, so"
            f" {certificate_file(settings, leaf)} cannot be issued\nHINT: put the authority's key"
            " there, or this certificate and its key"
        )
    key = _new_key(settings)
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
        .add_extension(x509.ExtendedKeyUsage([PURPOSE[leaf.kind]]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_issuer_identifier(ca_certificate), critical=False)
    )
    names = leaf.alternative_names
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    # The key first: a certificate without its key would look issued.
    write(key_file(settings, leaf), _key_text(key))
    write(certificate_file(settings, leaf), certificate.public_bytes(serialization.Encoding.PEM))


def bundle_lines(path: Path) -> tuple[str, ...]:
    """The lines of an authority's certificate or revocation list. Raises PkiError if it is none."""
    if not path.exists():
        raise not_there(path)
    if path.suffix == ".crl":
        check_revocations(path, read_certificate(path.with_suffix(".crt")), datetime.now(UTC))
    else:
        read_certificate(path)
    return tuple(path.read_text().splitlines())


def _authority(
    settings: CertificateAuthority, kind: Kind, now: datetime
) -> tuple[x509.Certificate, CertificateIssuerPrivateKeyTypes | None]:
    """An authority's certificate and key (None when its owner keeps it elsewhere), checked."""
    path = authority_file(settings, kind)
    if not path.exists():
        raise not_there(path)
    certificate = read_certificate(path)
    constraints = extension(certificate, x509.BasicConstraints, None)
    if constraints is None or not constraints.ca:
        raise PkiError(f"{path} is no CA certificate\nHINT: openssl x509 -noout -text -in {path}")
    if certificate.issuer != certificate.subject:
        raise PkiError(
            f"{path} is an intermediate CA; OpenSSL trusts a chain by its self-signed root only"
            f"\nHINT: openssl req -x509 -new -key {authority_file(settings, kind, 'key')} …"
        )
    if certificate.not_valid_after_utc < now:
        raise PkiError(
            f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
            "\nHINT: move it and its key away and run deploys/ca.py; every leaf is issued again"
        )
    key = read_key(authority_file(settings, kind, "key"))
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
    write(authority_file(settings, kind, "key"), _key_text(key))
    write(authority_file(settings, kind), certificate.public_bytes(serialization.Encoding.PEM))


def _make_revocation_list(settings: CertificateAuthority) -> None:
    """Postgres with an ssl_crl_file refuses clients of a CA that has no list in it.

    The list is handed out by deploys, nobody fetches it: it is valid as long as the CA, since an
    expired one would lock every pooler out, and a revocation counts once it is deployed.
    """
    now = datetime.now(UTC)
    certificate, key = _authority(settings, "client", now)
    if key is None:
        raise PkiError(
            f"{authority_file(settings, 'client', 'crl')} is missing, and so is the key to sign it"
            "\nHINT: put the client CA's revocation list there (PEM format)"
        )
    revocations = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(now - _BACKDATE)
        .next_update(certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(_issuer_identifier(certificate), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = authority_file(settings, "client", "crl")
    write(path, revocations.public_bytes(serialization.Encoding.PEM))


def _subject(settings: CertificateAuthority, leaf: Leaf) -> x509.Name:
    # OU tells the holders of one shared user apart, in logs and in SHOW CLIENTS.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, settings.organization),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, leaf.host),
            x509.NameAttribute(NameOID.COMMON_NAME, leaf.common_name),
        ]
    )


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
    # A given CA may have none: the identifier is then its key's hash, as verifiers compute it.
    own = extension(certificate, x509.SubjectKeyIdentifier, None)
    own = own or x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
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
