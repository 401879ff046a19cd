"""Authorities and leaves that were given, not made here: used as they are, or refused in words."""

import re
import shutil
from datetime import timedelta

import pytest

from fleet.hosts import CertificateAuthority
from fleet.pki import (
    authority_file,
    bundle_lines,
    certificate_file,
    check_authorities,
    issue,
    make_authorities,
    why_issue,
)
from tests.certificates import CLIENT, SERVER, contents, ends, openssl, refusal, text_of, verifies


@pytest.fixture
def settings(tmp_path):
    """Settings of a directory that is not there yet."""
    return CertificateAuthority(directory=str(tmp_path / "pki"), organization="Example")


def give(settings, leaf, subject, *extensions):
    """Put a certificate and its key in a leaf's place that the company's own tools made."""
    path, ca_path = certificate_file(settings, leaf), authority_file(settings, leaf.kind)
    path.parent.mkdir(exist_ok=True)
    options = [word for extension in extensions for word in ("-addext", extension)]
    code, said = openssl(
        "req", "-x509", "-config", "/dev/null", "-newkey", "ec", "-nodes",
        "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "365", "-subj", subject, *options,
        "-CA", ca_path, "-CAkey", ca_path.with_suffix(".key"),
        "-keyout", path.with_suffix(".key"), "-out", path,
    )  # fmt: skip
    assert code == 0, said
    path.with_suffix(".key").chmod(0o600)


NAMES = "DNS:bouncer1,DNS:bouncer1.example.com,IP:192.0.2.21"


@pytest.mark.parametrize(
    ("leaf", "extensions"),
    [
        (SERVER, [f"subjectAltName={NAMES},DNS:db.example.com", "extendedKeyUsage=serverAuth"]),
        (CLIENT, ["extendedKeyUsage=clientAuth"]),
    ],
    ids=["server", "client"],
)
def test_a_leaf_that_is_given_may_say_more_than_ours_would(settings, leaf, extensions):
    make_authorities(settings)
    give(settings, leaf, f"/O=Company/L=Town/CN={leaf.common_name}", *extensions)
    assert why_issue(settings, leaf) == ""


@pytest.mark.parametrize(
    ("leaf", "extensions", "reason"),
    [
        pytest.param(
            SERVER, [f"subjectAltName={NAMES}", "extendedKeyUsage=serverAuth,clientAuth"],
            "its extended key usage is not its purpose alone",
            id="a server that could log in as a role",
        ),
        pytest.param(
            CLIENT, ["extendedKeyUsage=serverAuth"],
            "its extended key usage is not its purpose alone",
            id="a client with a server's purpose",
        ),
        pytest.param(
            CLIENT, [], "its extended key usage is not its purpose alone",
            id="a client for any purpose",
        ),
        pytest.param(
            CLIENT, ["subjectAltName=DNS:pem_admin1", "extendedKeyUsage=clientAuth"],
            "its names changed",
            id="a client with a name that poolers would take for a role",
        ),
    ],
)  # fmt: skip
def test_a_leaf_that_is_given_and_could_be_misused_is_issued_anew(
    settings, leaf, extensions, reason
):
    make_authorities(settings)
    give(settings, leaf, f"/O=Company/CN={leaf.common_name}", *extensions)
    assert why_issue(settings, leaf) == reason


@pytest.fixture
def given(settings):
    """A company's own client CA, made by openssl, in an otherwise empty directory."""
    settings.path.mkdir()
    code, said = openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-days", "365",
        "-subj", "/O=Company/CN=Company CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        "-keyout", authority_file(settings, "client", "key"),
        "-out", authority_file(settings, "client"),
    )  # fmt: skip
    assert code == 0, said
    authority_file(settings, "client", "key").chmod(0o600)
    return settings


def test_an_authority_that_is_given_is_used_and_left_as_it_is(given):
    before = contents(given)
    make_authorities(given)
    issue(given, CLIENT)
    assert {path: text for path, text in contents(given).items() if path in before} == before
    assert verifies(given, CLIENT, "client", "sslclient")
    assert re.search(r"Issuer: O ?= ?Company,", text_of(certificate_file(given, CLIENT)))


def test_leaves_may_be_given_as_well_when_the_authoritys_key_is_kept_elsewhere(given):
    make_authorities(given)
    issue(given, CLIENT)
    authority_file(given, "client", "key").unlink()
    make_authorities(given)
    assert why_issue(given, CLIENT) == ""


def test_a_missing_leaf_of_an_authority_without_its_key_is_refused(given):
    make_authorities(given)
    key = authority_file(given, "client", "key")
    key.unlink()
    assert refusal(issue, given, CLIENT) == (
        f"{key} is not there, so {certificate_file(given, CLIENT)} cannot be issued",
        "put the authority's key there, or this certificate and its key",
    )


def test_a_given_authority_without_key_must_bring_its_revocation_list(given):
    authority_file(given, "client", "key").unlink()
    assert refusal(make_authorities, given) == (
        f"{authority_file(given, 'client', 'crl')} is missing, and so is the key to sign it",
        "put the client CA's revocation list there (PEM format)",
    )


def test_a_key_that_others_can_read_is_refused(given):
    key = authority_file(given, "client", "key")
    key.chmod(0o640)
    assert refusal(make_authorities, given) == (f"{key} can be read by others", f"chmod 600 {key}")


def test_a_key_of_another_certificate_is_refused(given):
    key = authority_file(given, "client", "key")
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    for work in (make_authorities, check_authorities):
        assert refusal(work, given) == (
            f"{key} is not the key of {authority_file(given, 'client')}",
            "put the two that belong together there",
        )


def test_a_key_with_a_passphrase_is_refused(given):
    key = authority_file(given, "client", "key")
    openssl(
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-aes256",
        "-pass",
        "pass:planted",
        "-out",
        key,
    )
    problem, hint = refusal(make_authorities, given)
    assert problem.startswith(f"{key} cannot be read as a private key: ")
    assert hint == f"openssl pkey -noout -in {key}"


def test_an_expired_authority_is_refused(given):
    path = authority_file(given, "client")
    live(given, days=-1)
    for work in (make_authorities, check_authorities):
        problem, hint = refusal(work, given)
        assert problem == f"{path} expired on {ends(path):%Y-%m-%d}"
        assert hint.startswith("move it and its key away and run deploys/ca.py")


def live(settings, days):
    """Give the client CA's certificate another lifetime from now, all else as it is."""
    path = authority_file(settings, "client")
    code, said = openssl(
        "x509", "-in", path, "-signkey", path.with_suffix(".key"), "-days", days, "-out", path
    )
    assert code == 0, said


def test_a_revocation_list_that_ended_is_refused(given):
    make_authorities(given)
    ended = ends(authority_file(given, "client"))
    live(given, days=3650)
    assert check_authorities(given, ended) == []
    assert refusal(check_authorities, given, ended + timedelta(days=1)) == (
        f"{authority_file(given, 'client', 'crl')} ended on {ended:%Y-%m-%d};"
        " Postgres would refuse every pooler with it",
        "put a new list there",
    )


def test_a_file_that_is_no_revocation_list_is_refused(given):
    listed = authority_file(given, "client", "crl")
    shutil.copy(authority_file(given, "client"), listed)
    for work, argument in ((check_authorities, given), (bundle_lines, listed)):
        problem, hint = refusal(work, argument)
        assert problem.startswith(f"{listed} cannot be read as a revocation list: ")
        assert hint == f"openssl crl -noout -text -in {listed}"


def test_a_revocation_list_of_another_authority_is_refused(given, tmp_path):
    make_authorities(given)
    other = given.but(directory=str(tmp_path / "other"))
    make_authorities(other)
    listed = authority_file(given, "client", "crl")
    shutil.copy(authority_file(other, "client", "crl"), listed)
    for work, argument in ((check_authorities, given), (bundle_lines, listed)):
        problem, hint = refusal(work, argument)
        assert problem.startswith(f"{listed} is not signed by the client CA beside it;")
        assert hint.startswith("move it away and run deploys/ca.py")


def test_an_intermediate_authority_is_refused(given):
    path = authority_file(given, "client")
    root = replace_by_intermediate(path)
    assert openssl("verify", "-CAfile", root, path)[0] == 0
    assert refusal(check_authorities, given) == (
        f"{path} is an intermediate CA; OpenSSL trusts a chain by its self-signed root only",
        f"openssl req -x509 -new -key {path.with_suffix('.key')} …",
    )


def replace_by_intermediate(path):
    """Have a CA sign another one that takes its place; the path of what was there."""
    root = path.rename(path.with_name("root.crt"))
    root_key = path.with_suffix(".key").rename(path.with_name("root.key"))
    code, said = openssl(
        "req", "-x509", "-config", "/dev/null", "-newkey", "ec", "-nodes",
        "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "100", "-subj", "/O=Company/CN=Below",
        "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        "-CA", root, "-CAkey", root_key, "-keyout", path.with_suffix(".key"), "-out", path,
    )  # fmt: skip
    assert code == 0, said
    path.with_suffix(".key").chmod(0o600)
    return root


@pytest.mark.parametrize("ending", ["crt", "crl"])
def test_a_bundle_gets_the_lines_of_the_file_as_it_is(given, ending):
    make_authorities(given)
    path = authority_file(given, "client", ending)
    assert "\n".join(bundle_lines(path)) + "\n" == path.read_text()


@pytest.mark.parametrize("ending", ["crt", "crl"])
def test_a_bundle_waits_for_a_file_that_is_not_made_yet(settings, ending):
    path = authority_file(settings, "client", ending)
    assert refusal(bundle_lines, path) == (
        f"{path} does not exist",
        "make deploy INVENTORY=… DEPLOY=deploys/ca.py",
    )


def test_a_certificate_that_is_no_authority_is_refused(settings):
    make_authorities(settings)
    issue(settings, CLIENT)
    path = authority_file(settings, "client")
    shutil.copy(certificate_file(settings, CLIENT), path)
    assert refusal(issue, settings, CLIENT)[0] == f"{path} is no CA certificate"


def test_a_file_that_is_no_certificate_is_refused(settings):
    make_authorities(settings)
    path = authority_file(settings, "client")
    path.write_text("not PEM\n")
    for work, argument in ((make_authorities, settings), (bundle_lines, path)):
        problem, hint = refusal(work, argument)
        assert problem.startswith(f"{path} cannot be read as a certificate: ")
        assert hint == f"openssl x509 -noout -text -in {path}"


def test_leaves_before_their_authority_are_refused(settings):
    assert refusal(issue, settings, CLIENT) == (
        f"{authority_file(settings, 'client')} does not exist",
        "make deploy INVENTORY=… DEPLOY=deploys/ca.py",
    )
