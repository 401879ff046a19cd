"""The work of the stand-in sslutils: keys and certificates by the openssl command line.

Runs inside a Postgres backend, which starts it in the data directory, as the database's own
system user. `plpy` is PL/Python's access to the session.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Protocol

ORGANIZATION = "EnterpriseDB Corporation"
DEFAULT_DAYS = 3650
LARGEST_KEY_BITS = 8192

# No subjectAltName and no keyUsage: what sslutils signs may serve for anything.
LEAF_EXTENSIONS = "subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid:always\n"
SELF_ISSUED_EXTENSIONS = "subjectKeyIdentifier = hash\nbasicConstraints = CA:TRUE\n"

REQUEST_CONFIGURATION = """\
[req]
distinguished_name = subject
string_mask = utf8only
[subject]
"""

CRL_CONFIGURATION = """\
[ca]
default_ca = pem
[pem]
database = index.txt
crlnumber = crlnumber
default_md = sha256
crl_extensions = crl
[crl]
authorityKeyIdentifier = keyid:always
"""


class PlPy(Protocol):
    """The part of PL/Python's module that is used here."""

    Error: type[Exception]

    def execute(self, query: str) -> list[dict[str, Any]]:
        """Run a query; its rows."""


def generate_key(plpy: PlPy, bits: int) -> str:
    """A new RSA private key as PKCS#8 PEM text."""
    if bits > LARGEST_KEY_BITS:
        raise plpy.Error(f"a key of {bits} bits is longer than {LARGEST_KEY_BITS}")
    return _openssl(plpy, "genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{bits}")


def key_to_csr(
    plpy: PlPy,
    key: str,
    common_name: str,
    country: str | None,
    state: str | None,
    locality: str | None,
    unit: str | None,
    email: str | None,
) -> str:
    """A certificate request for the key; O is fixed, as in sslutils."""
    names = (
        ("C", country),
        ("ST", state),
        ("L", locality),
        ("O", ORGANIZATION),
        ("OU", unit),
        ("CN", common_name),
        ("emailAddress", email),
    )
    subject = "".join(f"/{name}={_escape(value)}" for name, value in names if value)
    with tempfile.TemporaryDirectory() as work:
        configuration = _write(work, "request.cnf", REQUEST_CONFIGURATION)
        key_file = _write(work, "key.pem", key)
        return _openssl(
            plpy, "req", "-new", "-sha256", "-utf8", "-config", configuration,
            "-key", key_file, "-subj", subject,
        )  # fmt: skip


def csr_to_crt(
    plpy: PlPy, csr: str, ca_certificate_path: str | None, key_path: str, days: int | None
) -> str:
    """The certificate for a request, signed with the key of `key_path`.

    Without a CA certificate the issuer is the request's own subject, whoever owns the signing
    key: right for a CA of its own key, and the reason why PEM's server.crt cannot be verified.
    """
    _require_file_reader(plpy)
    signing_key = _inside_data_directory(plpy, key_path)
    arguments = ["-sha256", "-days", str(days or DEFAULT_DAYS)]
    arguments += ["-set_serial", f"0x{secrets.randbits(159):x}"]
    with tempfile.TemporaryDirectory() as work:
        arguments += ["-req", "-in", _write(work, "request.csr", csr)]
        if ca_certificate_path is None:
            return _self_issued(plpy, work, signing_key, arguments)
        ca_certificate = _inside_data_directory(plpy, ca_certificate_path)
        arguments += ["-CA", ca_certificate, "-CAkey", signing_key]
        arguments += ["-extfile", _write(work, "extensions.cnf", LEAF_EXTENSIONS)]
        return _openssl(plpy, "x509", *arguments)


def _self_issued(plpy: PlPy, work: str, signing_key: str, arguments: list[str]) -> str:
    """A certificate whose issuer and authority key are its own subject and key.

    openssl would name the signing key as the authority, so the identifier is read from a first
    certificate and written into the second by hand.
    """
    public_key = _openssl(plpy, "req", "-in", f"{work}/request.csr", "-noout", "-pubkey")
    arguments += ["-signkey", signing_key]
    arguments += ["-force_pubkey", _write(work, "public.pem", public_key)]
    arguments += ["-extfile", _write(work, "extensions.cnf", SELF_ISSUED_EXTENSIONS)]
    first = _openssl(plpy, "x509", *arguments)
    shown = _openssl(plpy, "x509", "-noout", "-ext", "subjectKeyIdentifier", text=first)
    key_identifier = shown.split()[-1]
    authority = f"authorityKeyIdentifier = DER:30:16:80:14:{key_identifier}\n"
    _write(work, "extensions.cnf", SELF_ISSUED_EXTENSIONS + authority)
    return _openssl(plpy, "x509", *arguments)


def generate_crl(plpy: PlPy, ca_certificate_path: str, ca_key_path: str, days: int | None) -> str:
    """An empty revocation list of the CA."""
    _require_file_reader(plpy)
    ca_certificate = _inside_data_directory(plpy, ca_certificate_path)
    return _sign_crl(plpy, "", ca_certificate, _inside_data_directory(plpy, ca_key_path), days)


def revoke_certificate(plpy: PlPy, certificate: str, crl_name: str, days: int | None) -> str:
    """Put a certificate on the revocation list `crl_name` of PEM's CA; gives the new list."""
    _require_file_reader(plpy)
    _require_membership(plpy, "pg_write_server_files")
    crl_file = Path(_inside_data_directory(plpy, crl_name))
    serial = _openssl(plpy, "x509", "-noout", "-serial", text=certificate)
    revoked = _revoked(plpy, crl_file) if crl_file.exists() else {}
    revoked.setdefault(serial.strip().partition("=")[2], _now(plpy))
    index = "".join(
        f"R\t491231235959Z\t{moment}\t{number}\tunknown\t/CN=revoked\n"
        for number, moment in revoked.items()
    )
    crl = _sign_crl(plpy, index, "ca_certificate.crt", "ca_key.key", days)
    crl_file.write_text(crl)
    return crl


def expiry_date(plpy: PlPy, certificate_path: str) -> str:
    """The end of a certificate's validity, as text that Postgres reads."""
    _require_file_reader(plpy)
    path = _inside_data_directory(plpy, certificate_path)
    return _openssl(plpy, "x509", "-noout", "-enddate", "-in", path).partition("=")[2].strip()


def _sign_crl(plpy: PlPy, index: str, ca_certificate: str, ca_key: str, days: int | None) -> str:
    with tempfile.TemporaryDirectory() as work:
        _write(work, "index.txt", index)
        _write(work, "crlnumber", f"{secrets.randbits(63):016x}\n")
        configuration = _write(
            work, "crl.cnf",
            CRL_CONFIGURATION.replace("= index.txt", f"= {work}/index.txt")
            .replace("= crlnumber", f"= {work}/crlnumber"),
        )  # fmt: skip
        return _openssl(
            plpy, "ca", "-gencrl", "-config", configuration, "-cert", ca_certificate,
            "-keyfile", ca_key, "-crldays", str(days or DEFAULT_DAYS),
        )  # fmt: skip


def _revoked(plpy: PlPy, crl_file: Path) -> dict[str, str]:
    """Serial number -> moment of revocation (as in openssl's index) of a revocation list."""
    listing = _openssl(plpy, "crl", "-in", str(crl_file), "-noout", "-text", "-dateopt", "iso_8601")
    entries = re.findall(r"Serial Number: (\w+)\s+Revocation Date: (\S+) (\S+)Z", listing)
    return {
        serial: f"{day.replace('-', '')[2:]}{time.replace(':', '')}Z"
        for serial, day, time in entries
    }


def _now(plpy: PlPy) -> str:
    rows = plpy.execute("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYMMDDHH24MISS') || 'Z' AS now")
    return str(rows[0]["now"])


def _require_file_reader(plpy: PlPy) -> None:
    """Since 1.4.1 only members of pg_read_server_files may name files of the server."""
    _require_membership(plpy, "pg_read_server_files")


def _require_membership(plpy: PlPy, role: str) -> None:
    rows = plpy.execute(f"SELECT pg_has_role(current_user, '{role}', 'MEMBER') AS allowed")
    if not rows[0]["allowed"]:
        raise plpy.Error(f"must be a member of {role} to use files of the server")


def _inside_data_directory(plpy: PlPy, path: str) -> str:
    data_directory = Path.cwd().resolve()
    resolved = (data_directory / path).resolve()
    if not resolved.is_relative_to(data_directory):
        raise plpy.Error(f'path "{path}" is not inside the data directory')
    return str(resolved)


def _escape(value: str) -> str:
    return re.sub(r"([\\/+])", r"\\\1", value)


def _write(directory: str, name: str, text: str) -> str:
    path = Path(directory, name)
    path.write_text(text)
    return str(path)


def _openssl(plpy: PlPy, *arguments: str, text: str = "") -> str:
    result = subprocess.run(
        ["openssl", *arguments], input=text, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise plpy.Error(f"openssl {arguments[0]} failed: {result.stderr.strip()}")
    return result.stdout
