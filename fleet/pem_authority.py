"""PEM's own CA, asked on the PEM server over its ssh connection: what it is, and what it signs.

Its key is in the data directory of PEM's database and stays there. Public things alone come to
the operator: the CA's certificate, requests for certificates, and certificates.
"""

from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from paramiko import SSHException
from pyinfra import state
from pyinfra.api import FactBase

from fleet.asking import ask, family_on
from fleet.certificates import Leaf, issued_by
from fleet.facts.authority import PemAuthority
from fleet.facts.postgres import PostgresStandby
from fleet.hosts import Fleet
from fleet.keystore import PkiError, not_there
from fleet.operations.commands import run_script
from fleet.pki import authority_file
from fleet.platforms import postgres
from fleet.render import script

Answer = TypeVar("Answer")

_TIMEOUT_SECONDS = 30


def pem_authority(fleet: Fleet) -> x509.Certificate:
    """PEM's CA, of all database hosts that answer; the others are copies of them.

    Raises PkiError when none has it, none can be reached, or they have different ones.
    """
    return next(iter(_found(fleet).values()))


def trusted_clients(fleet: Fleet) -> str:
    """The certificates of all CAs whose clients the poolers let in, one after the other.

    Raises PkiError when one of them is not there.
    """
    settings, texts = fleet.certificate_authority, []
    for name in settings.client_authorities:
        if name == "pem":
            authority = pem_authority(fleet)
            texts.append(authority.public_bytes(serialization.Encoding.PEM).decode())
            continue
        path = authority_file(settings, "client")
        if not path.exists():
            raise not_there(path)
        texts.append(path.read_text())
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts)


def sign(fleet: Fleet, leaf: Leaf, request: str) -> x509.Certificate:
    """Have PEM's CA sign a request, on the PEM server. Raises PkiError.

    A request comes from another host: one that asks for anything but the leaf is refused here.
    """
    asked = read_request(request, leaf)
    found = _found(fleet)
    authority = next(iter(found.values()))
    days_left = (authority.not_valid_after_utc - datetime.now(UTC)).days
    values = {
        "port": str(fleet.pem_server.port),
        "request": request,
        "days": str(min(fleet.certificate_authority.leaf_days, days_left)),
    }
    problems = []
    for name in _primary_first(fleet, list(found)):
        try:
            certificate = read(_signed_on(fleet, name, values), f"what PEM's CA on {name} signed")
        except PkiError as refused:
            problems.append(str(refused))
            continue
        if issued_by(certificate, authority) and certificate.public_key() == asked.public_key():
            return certificate
        problems.append(
            f"the certificate from {name} is not of ca_certificate.crt, or"
            " for another key\nHINT: do ca_certificate.crt and ca_key.key belong together?"
        )
    raise PkiError("\n".join(problems))


def read_request(text: str, leaf: Leaf) -> x509.CertificateSigningRequest:
    """A request for the leaf's certificate. Raises PkiError for anything else."""
    try:
        request = x509.load_pem_x509_csr(text.encode())
    except ValueError as error:
        raise PkiError(
            f"{leaf.host}: no certificate request: {error}\nHINT: openssl version, on {leaf.host}"
        ) from None
    if not request.is_signature_valid or request.subject != subject(leaf):
        raise PkiError(
            f"{leaf.host} asks for a certificate of {request.subject.rfc4514_string()}, not of"
            f" {leaf.common_name}\nHINT: who else works on {leaf.host}? Nothing was signed"
        )
    return request


def subject(leaf: Leaf) -> x509.Name:
    """The subject of a certificate that PEM's CA signs for us: the host, and the user."""
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, leaf.host),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, leaf.common_name),
        ]
    )


def read(text: str, what: str) -> x509.Certificate:
    """A certificate from its PEM text. Raises PkiError."""
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except ValueError as error:
        raise PkiError(
            f"{what} cannot be read as a certificate: {error}"
            "\nHINT: openssl x509 -noout -text -in FILE"
        ) from None


def ask_server(
    fleet: Fleet, name: str, fact: type[FactBase[Answer]], **arguments: object
) -> Answer | None:
    """What a fact says on a database host, as the database's OS user. Raises PkiError."""
    return ask(name, fact, _database_user(fleet, name), **arguments)


def _signed_on(fleet: Fleet, name: str, values: dict[str, str]) -> str:
    """What a database host signs, as text. Raises PkiError when it does not."""
    user = _database_user(fleet, name)
    try:
        signed, said = run_script(
            state.inventory.get_host(name),
            script("sign-request.sh", values),
            _sudo=True,
            _sudo_user=user,
            _timeout=_TIMEOUT_SECONDS,
        )
    except (SSHException, OSError) as lost:
        raise PkiError(f"{name} did not sign: {lost}\nHINT: ssh {name}") from None
    if not signed:
        raise PkiError(
            f"PEM's CA on {name} did not sign: {said.stderr}"
            "\nHINT: ca_key.key must be in the data directory, readable by the server's OS user"
        )
    return "\n".join(said.stdout_lines)


def _primary_first(fleet: Fleet, names: list[str]) -> list[str]:
    """Database hosts in the order in which they are asked to sign."""
    if len(names) == 1:
        return names

    def follows(name: str) -> bool:
        standby: bool | None = ask_server(fleet, name, PostgresStandby, port=fleet.pem_server.port)
        return bool(standby)

    return sorted(names, key=follows)


def _found(fleet: Fleet) -> dict[str, x509.Certificate]:
    """PEM's CA on each database host that answers and has it, by the host's name.

    Raises PkiError when there is none, or when they differ.
    """
    problems: list[str] = []
    found: dict[str, x509.Certificate] = {}
    for host in fleet.pem_server.hosts:
        try:
            text = ask_server(fleet, host.name, PemAuthority, port=fleet.pem_server.port)
        except PkiError as unreachable:
            problems.append(str(unreachable))
            continue
        if text is not None:
            found[host.name] = read(text, f"ca_certificate.crt of PEM on {host.name}")
            continue
        problems.append(
            f"ca_certificate.crt of PEM is not in the data directory on {host.name}"
            "\nHINT: make deploy INVENTORY=… DEPLOY=deploys/pem_server.py; a PEM that was"
            " configured with --skip-db-certificate has no CA, and there"
            ' client_authorities=("own",) belongs'
        )
    if not found:
        raise PkiError("\n".join(problems))
    if len(set(found.values())) > 1:
        sides = (
            f"that of {name} ends {one.not_valid_after_utc:%Y-%m-%d}, serial number"
            f" {one.serial_number:x}"
            for name, one in found.items()
        )
        raise PkiError(
            f"the database hosts have different ca_certificate.crt: {'; '.join(sides)}"
            "\nHINT: copy ca_certificate.crt and ca_key.key of the primary to the data directories"
            " of the others"
        )
    return found


def _database_user(fleet: Fleet, name: str) -> str:
    """The OS user of the database. Raises PkiError when its host cannot be reached."""
    family = family_on(name)
    if family is None:
        raise PkiError(f"{name} cannot be reached, and PEM's CA is there\nHINT: ssh {name}")
    return postgres(family, fleet.pem_server.vendor, fleet.pem_server.postgres_version).user
