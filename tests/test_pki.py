"""Certificates as they are made and renewed, with the openssl command as the judge."""

import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from fleet.certificates import Leaf
from fleet.hosts import CertificateAuthority
from fleet.keystore import PkiError
from fleet.pki import (
    authorities_missing,
    authority_file,
    certificate_file,
    check_authorities,
    issue,
    key_file,
    make_authorities,
    why_issue,
)
from tests.certificates import (
    CLIENT,
    SERVER,
    contents,
    ends,
    extension,
    openssl,
    text_of,
    verifies,
)


@pytest.fixture
def settings(tmp_path):
    """Settings of a directory that is not there yet."""
    return CertificateAuthority(directory=str(tmp_path / "pki"), organization="Example")


@pytest.fixture(scope="module", params=["p256", "rsa3072"])
def made(request, tmp_path_factory):
    """Settings of a directory that holds both authorities and one leaf of each kind. Only read."""
    settings = CertificateAuthority(
        directory=str(tmp_path_factory.mktemp("made") / "pki"),
        organization="Example",
        key_type=request.param,
    )
    make_authorities(settings)
    issue(settings, SERVER)
    issue(settings, CLIENT)
    return settings


@pytest.mark.parametrize(
    ("leaf", "authority", "purpose", "good"),
    [
        (SERVER, "server", "sslserver", True),
        (SERVER, "server", "sslclient", False),
        (SERVER, "client", "sslserver", False),
        (SERVER, "client", "sslclient", False),
        (CLIENT, "client", "sslclient", True),
        (CLIENT, "client", "sslserver", False),
        (CLIENT, "server", "sslclient", False),
        (CLIENT, "server", "sslserver", False),
    ],
)
def test_a_leaf_is_good_for_its_own_authority_and_purpose_alone(
    made, leaf, authority, purpose, good
):
    assert verifies(made, leaf, authority, purpose) is good


def test_a_server_is_known_by_all_its_names_and_addresses(made):
    text = text_of(certificate_file(made, SERVER))
    assert extension(text, "X509v3 Subject Alternative Name") == (
        "DNS:bouncer1, DNS:bouncer1.example.com, IP Address:192.0.2.21"
    )


def test_a_client_has_no_name_but_its_subject(made):
    text = text_of(certificate_file(made, CLIENT))
    assert extension(text, "X509v3 Subject Alternative Name") == ""
    assert re.search(r"Subject: O ?= ?Example, OU ?= ?app1, CN ?= ?pem_agent_user1\n", text)


def test_a_client_gets_no_names_even_when_it_is_given_some(settings):
    named = Leaf("client", "pem_agent_user1", "app1", ("bouncer1",), SERVER.addresses)
    make_authorities(settings)
    issue(settings, named)
    text = text_of(certificate_file(settings, named))
    assert extension(text, "X509v3 Subject Alternative Name") == ""


def test_a_leaf_says_what_it_is_for_and_that_it_is_no_authority(made):
    usage = "critical Digital Signature" + (", Key Encipherment" * (made.key_type == "rsa3072"))
    for leaf, purpose in ((SERVER, "Server"), (CLIENT, "Client")):
        text = text_of(certificate_file(made, leaf))
        assert extension(text, "X509v3 Extended Key Usage") == f"TLS Web {purpose} Authentication"
        assert extension(text, "X509v3 Key Usage") == usage
        assert extension(text, "X509v3 Basic Constraints") == "critical CA:FALSE"


def test_an_authority_signs_leaves_and_lists_and_nothing_below_another_authority(made):
    for kind in ("server", "client"):
        text = text_of(authority_file(made, kind))
        assert extension(text, "X509v3 Basic Constraints") == "critical CA:TRUE, pathlen:0"
        assert extension(text, "X509v3 Key Usage") == "critical Certificate Sign, CRL Sign"


def test_keys_are_of_the_type_that_the_inventory_says(made):
    code, said = openssl("pkey", "-noout", "-text", "-in", key_file(made, SERVER))
    assert code == 0
    assert ("NIST CURVE: P-256" if made.key_type == "p256" else "(3072 bit") in said


def test_a_certificate_belongs_to_the_key_beside_it(made):
    for leaf in (SERVER, CLIENT):
        _, of_certificate = openssl(
            "x509", "-noout", "-pubkey", "-in", certificate_file(made, leaf)
        )
        _, of_key = openssl("pkey", "-pubout", "-in", key_file(made, leaf))
        assert of_certificate == of_key


def test_the_revocation_list_is_the_client_authoritys_and_lives_as_long(settings):
    make_authorities(settings)
    listed = authority_file(settings, "client", "crl")
    code, said = openssl(
        "crl", "-noout", "-verify", "-nextupdate",
        "-CAfile", authority_file(settings, "client"), "-in", listed,
    )  # fmt: skip
    assert (code, "verify OK" in said) == (0, True)
    _, until = openssl("x509", "-noout", "-enddate", "-in", authority_file(settings, "client"))
    assert f"nextUpdate={until.partition('=')[2].strip()}" in said


def test_a_client_passes_with_the_revocation_list_checked(settings):
    make_authorities(settings)
    issue(settings, CLIENT)
    code, said = openssl(
        "verify", "-crl_check", "-CRLfile", authority_file(settings, "client", "crl"),
        "-CAfile", authority_file(settings, "client"), certificate_file(settings, CLIENT),
    )  # fmt: skip
    assert code == 0, said


def test_only_the_owner_may_look(made):
    modes = {
        path.relative_to(made.path): path.stat().st_mode & 0o777
        for path in (made.path, *made.path.rglob("*"))
    }
    assert {
        path: mode
        for path, mode in modes.items()
        if mode != (0o700 if (made.path / path).is_dir() else 0o600)
    } == {}


def test_making_again_changes_nothing(settings):
    assert authorities_missing(settings) == ("server-ca.crt", "client-ca.crt", "client-ca.crl")
    make_authorities(settings)
    issue(settings, SERVER)
    before = contents(settings)
    make_authorities(settings)
    assert contents(settings) == before
    assert authorities_missing(settings) == ()
    assert why_issue(settings, SERVER) == ""


@pytest.mark.parametrize(
    ("days", "reason"), [(0, ""), (59, ""), (60, "30 days left"), (91, "-1 days left")]
)
def test_a_leaf_is_renewed_when_a_third_of_its_life_is_left(settings, days, reason):
    make_authorities(settings)
    now = datetime.now(UTC).replace(microsecond=0)
    issue(settings, CLIENT, now=now)
    assert ends(certificate_file(settings, CLIENT)) == now + timedelta(days=90)
    assert why_issue(settings, CLIENT, now=now + timedelta(days=days)) == reason


@pytest.mark.parametrize(
    "changed",
    [
        replace(SERVER, dns_names=(*SERVER.dns_names, "pooler.example.com")),
        replace(SERVER, addresses=(ip_address("192.0.2.99"),)),
    ],
)
def test_a_server_is_issued_again_when_its_names_change(settings, changed):
    make_authorities(settings)
    issue(settings, SERVER)
    assert why_issue(settings, changed) == "its names changed"
    issue(settings, changed)
    assert why_issue(settings, changed) == ""


def test_a_leaf_is_issued_again_when_it_names_somebody_else(settings):
    make_authorities(settings)
    another = replace(CLIENT, common_name="pem_agent_user9")
    issue(settings, another)
    for file in (certificate_file, key_file):
        file(settings, another).rename(file(settings, CLIENT))
    assert why_issue(settings, CLIENT) == "its common name changed"


def test_a_leaf_beside_a_key_that_is_not_its_own_is_issued_again(settings):
    make_authorities(settings)
    issue(settings, SERVER)
    issue(settings, CLIENT)
    shutil.copy(key_file(settings, SERVER), key_file(settings, CLIENT))
    assert why_issue(settings, CLIENT) == "its key is another certificate's"
    issue(settings, CLIENT)
    assert why_issue(settings, CLIENT) == ""


@pytest.mark.parametrize("ending", ["crt", "key"])
def test_a_leaf_without_one_of_its_files_is_issued(settings, ending):
    make_authorities(settings)
    issue(settings, CLIENT)
    certificate_file(settings, CLIENT).with_suffix(f".{ending}").unlink()
    assert why_issue(settings, CLIENT) == "not issued yet"


def test_a_leaf_of_a_former_authority_of_the_same_name_is_issued_again(settings):
    make_authorities(settings)
    issue(settings, CLIENT)
    for path in settings.path.glob("client-ca.*"):
        path.unlink()
    make_authorities(settings)
    assert not verifies(settings, CLIENT, "client", "sslclient")
    assert why_issue(settings, CLIENT).startswith("not issued by the present client-ca.crt")
    issue(settings, CLIENT)
    assert verifies(settings, CLIENT, "client", "sslclient")


def test_no_leaf_outlives_its_authority(settings):
    short = settings.but(authority_days=100, leaf_days=90)
    make_authorities(short)
    issue(short, CLIENT, now=datetime.now(UTC) + timedelta(days=50))
    assert ends(certificate_file(short, CLIENT)) == ends(authority_file(short, "client"))


def test_a_leaf_that_ends_with_its_authority_is_not_issued_again_and_again(settings):
    short = settings.but(authority_days=100, leaf_days=90)
    make_authorities(short)
    now = datetime.now(UTC)
    issue(short, CLIENT, now=now + timedelta(days=50))
    for days, reason in ((60, ""), (90, ""), (101, "-2 days left")):
        assert why_issue(short, CLIENT, now=now + timedelta(days=days)) == reason


@pytest.mark.parametrize(("days", "left"), [(0, None), (3558, None), (3559, 90), (3649, 0)])
def test_an_authority_that_ends_within_a_leafs_life_is_told(settings, days, left):
    make_authorities(settings)
    now = datetime.now(UTC) + timedelta(days=days)
    assert check_authorities(settings, now) == (
        []
        if left is None
        else [
            f"{authority_file(settings, kind)} ends in {left} days, and every certificate of it"
            " with it; a new one must reach all hosts before"
            for kind in ("server", "client")
        ]
    )


def test_what_an_interrupted_run_left_is_neither_used_nor_in_the_way(settings):
    make_authorities(settings)
    half = certificate_file(settings, CLIENT).with_name("pem_agent_user1@app1.crt.new")
    half.parent.mkdir()
    half.write_text("-----BEGIN CERTI")
    assert why_issue(settings, CLIENT) == "not issued yet"
    issue(settings, CLIENT)
    assert verifies(settings, CLIENT, "client", "sslclient")
    assert not half.exists()


def test_a_disk_that_is_full_leaves_the_old_file_whole(settings):
    make_authorities(settings)
    issue(settings, CLIENT)
    before = contents(settings)
    # A child with a file size limit of 100 bytes: what it writes is cut off, as on a full disk.
    child = os.fork()
    if child == 0:
        import resource  # noqa: PLC0415  only for the child
        import signal  # noqa: PLC0415  as above

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            issue(settings, CLIENT)
        except PkiError as error:
            os._exit(0 if "cannot be written" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {path: text for path, text in contents(settings).items() if path in before} == before
