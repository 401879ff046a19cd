"""What tests of certificates share: two leaves, and the openssl command as the judge."""

import re
import subprocess
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from fleet.certificates import Leaf
from fleet.keystore import PkiError
from fleet.pki import (
    authority_file,
    certificate_file,
)

SERVER = Leaf(
    "server",
    "bouncer1",
    "bouncer1",
    ("bouncer1", "bouncer1.example.com"),
    (ip_address("192.0.2.21"),),
)
CLIENT = Leaf("client", "pem_agent_user1", "app1")


def openssl(*arguments):
    """The exit code and everything that openssl prints."""
    done = subprocess.run(
        ["openssl", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def verifies(settings, leaf, authority, purpose):
    code, said = openssl(
        "verify", "-x509_strict", "-purpose", purpose,
        "-CAfile", authority_file(settings, authority), certificate_file(settings, leaf),
    )  # fmt: skip
    assert (code == 0) == said.rstrip().endswith(": OK"), said
    return code == 0


def text_of(path):
    code, said = openssl("x509", "-noout", "-text", "-in", path)
    assert code == 0, said
    return said


def extension(text, name):
    """The value of an extension as openssl prints it, '' when it is not there."""
    found = re.search(rf"{name}:( critical)?\s*\n\s*(.*)", text)
    return f"{(found[1] or '').strip()} {found[2].strip()}".strip() if found else ""


def ends(path):
    """When a certificate ends, by openssl."""
    code, said = openssl("x509", "-noout", "-enddate", "-in", path)
    assert code == 0, said
    return datetime.strptime(said.strip(), "notAfter=%b %d %H:%M:%S %Y %Z").replace(tzinfo=UTC)


def contents(settings):
    return {path: path.read_bytes() for path in settings.path.rglob("*") if path.is_file()}


def refusal(work, *arguments):
    """What a PkiError says, and its hint."""
    with pytest.raises(PkiError) as error:
        work(*arguments)
    problem, hint = str(error.value).split("\nHINT: ")
    return problem, hint
