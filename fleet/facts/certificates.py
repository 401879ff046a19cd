"""Certificates in files of a host. This fact never fails a host."""

import base64
from datetime import datetime
from typing import TypedDict

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


class Found(TypedDict):
    """What a certificate says. fingerprint: SHA-256 of the whole, in hexadecimal digits."""

    subject: str
    fingerprint: str
    ends: datetime


class Certificates(FactBase[dict[str, list[Found]]]):
    """The certificates in each file, in their order; files that are not there are left out.

    Never ask it for a file with a key: whole files come over.
    """

    default = dict

    @override
    def command(self, paths: tuple[str, ...]) -> StringCommand:
        return StringCommand(
            "for f in",
            *(QuoteString(path) for path in paths),
            '; do [ -f "$f" ] && echo "$(base64 -w 0 < "$f") $f"; done; true',
        )

    @override
    def process(self, output: list[str]) -> dict[str, list[Found]]:
        found = {}
        for line in output:
            text, _, path = line.partition(" ")
            found[path] = certificates_in(base64.b64decode(text))
        return found


def certificates_in(pem: bytes) -> list[Found]:
    """The certificates of a PEM text; none when it is no such text."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return []
    return [
        {
            "subject": one.subject.rfc4514_string(),
            "fingerprint": one.fingerprint(hashes.SHA256()).hex(),
            "ends": one.not_valid_after_utc,
        }
        for one in certificates
    ]
