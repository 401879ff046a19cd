"""Keys and certificates on the operator's disk: read with care, written whole, for nobody else."""

import os
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
# So many files of a kind are named in a message.
_NAMED = 3


class PkiError(Exception):
    """An authority or a leaf that cannot be used; the text ends with a HINT."""


def not_there(path: Path | str) -> PkiError:
    """The error for a file of the CA directory that deploys/ca.py has not made yet."""
    return PkiError(f"{path} does not exist\nHINT: make deploy INVENTORY=… DEPLOY=deploys/ca.py")


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file. Raises PkiError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PkiError(
            f"{path} cannot be read as a certificate: {error}"
            f"\nHINT: openssl x509 -noout -text -in {path}"
        ) from None


def read_key(path: Path) -> CertificateIssuerPrivateKeyTypes | None:
    """The private key in a file, None without one. Raises PkiError if others may read it."""
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


def key_problems(directory: Path) -> list[str]:
    """What is wrong with who may read the private keys below a directory, and write into it."""
    if not directory.exists():
        return []
    problems: list[str] = []

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    if directory.stat().st_mode & 0o022:
        problems.append(f"{directory} can be written by others")
    open_to_others = []
    for folder, folders, names in os.walk(directory, onerror=unreadable):
        folders.sort()
        for key in sorted(Path(folder, name) for name in names if name.endswith(".key")):
            try:
                key.open("rb").close()
            except OSError as error:
                unreadable(error)
            else:
                if key.stat().st_mode & 0o077:
                    open_to_others.append(str(key))
    if open_to_others:
        more = len(open_to_others) - _NAMED
        named = ", ".join(open_to_others[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        problems.append(f"{named} can be read by others")
    return problems


def make_directory(path: Path) -> None:
    """A directory for its owner alone. Raises PkiError."""
    try:
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        path.chmod(_DIRECTORY_MODE)
    except OSError as error:
        raise PkiError(
            f"{path} cannot be made: {error.strerror}"
            "\nHINT: CertificateAuthority(directory=…) names a folder of yours"
        ) from None


def write(path: Path, text: bytes) -> None:
    """Write a file whole, never readable by others, never half there."""
    make_directory(path.parent)
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


def check_revocations(path: Path, authority: x509.Certificate, now: datetime) -> None:
    """Raise PkiError unless a file is the authority's revocation list, and still valid."""
    try:
        revocations = x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PkiError(
            f"{path} cannot be read as a revocation list: {error}"
            f"\nHINT: openssl crl -noout -text -in {path}"
        ) from None
    if not revocations.is_signature_valid(authority.public_key()):  # type: ignore[arg-type]  # EC or RSA, as read
        raise PkiError(
            f"{path} is not signed by the client CA beside it; Postgres would refuse every pooler"
            "\nHINT: move it away and run deploys/ca.py, or put the CA's own list there"
        )
    until = revocations.next_update_utc
    if until is not None and until < now:
        raise PkiError(
            f"{path} ended on {until:%Y-%m-%d}; Postgres would refuse every pooler with it"
            "\nHINT: put a new list there"
        )
