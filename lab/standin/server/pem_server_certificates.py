"""PEM's CA and the server's certificate, made by the extension sslutils into the data directory."""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import os
from pathlib import Path

from pem_server_database import Connection, row

KEY_BITS = 4096
CERTIFICATE_DAYS = 3650
SUBJECT = (
    "PEM",
    "US",
    "MA",
    "Bedford",
    "EDB Postgres Enterprise Manager",
    "support@enterprisedb.com",
)


def make_certificates(connection: Connection, directory: Path) -> None:
    """Six files in the data directory, unless the CA is there already."""
    ca_key, ca_certificate = directory / "ca_key.key", directory / "ca_certificate.crt"
    if ca_key.exists() and ca_certificate.exists():
        print(f"{ca_certificate} exists: no certificates are made", flush=True)
        return
    print(f"Making certificates in {directory}", flush=True)
    key = make_key(connection)
    write(ca_key, key)
    certificate = sign(connection, key, ca_key)
    write(directory / "root.crt", certificate)
    server_key = make_key(connection)
    write(directory / "server.key", server_key)
    write(directory / "server.crt", sign(connection, server_key, ca_key))
    write(directory / "root.crl", make_crl(connection, directory / "root.crt", ca_key))
    # Last, because its presence says that all the others are there.
    write(ca_certificate, certificate)


def make_key(connection: Connection) -> str:
    """A private key."""
    return row(connection, "SELECT public.openssl_rsa_generate_key(%s)", KEY_BITS)[0]


def make_crl(connection: Connection, ca_certificate: Path, ca_key: Path) -> str:
    """An empty revocation list."""
    statement = "SELECT public.openssl_rsa_generate_crl(%s, %s, %s)"
    return row(connection, statement, str(ca_certificate), str(ca_key), CERTIFICATE_DAYS)[0]


def sign(connection: Connection, key: str, ca_key: Path) -> str:
    """A certificate for the key, signed by the CA's key.

    The CA's certificate is not given, not even for server.crt: so that names itself as its own
    issuer, and nobody can verify it. PEM does it this way.
    """
    request = "SELECT public.openssl_rsa_key_to_csr(%s, %s, %s, %s, %s, %s, %s)"
    (csr,) = row(connection, request, key, *SUBJECT)
    statement = "SELECT public.openssl_csr_to_crt(%s, NULL, %s, %s)"
    return row(connection, statement, csr, str(ca_key), CERTIFICATE_DAYS)[0]


def write(path: Path, text: str) -> None:
    """A file of mode 0600 that belongs to the owner of its directory."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    owner = path.parent.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
