"""Certificates, with the openssl command as the judge."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from fleet.hosts import CertificateAuthority
from fleet.keystore import PkiError
from fleet.pki import (
    Leaf,
    authorities_missing,
    authority_file,
    bundle_lines,
    certificate_file,
    check_authorities,
    issue,
    key_file,
    make_authorities,
    why_issue,
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


def contents(settings):
    return {path: path.read_bytes() for path in settings.path.rglob("*") if path.is_file()}


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


def refusal(work, *arguments):
    """What a PkiError says, and its hint."""
    with pytest.raises(PkiError) as error:
        work(*arguments)
    problem, hint = str(error.value).split("\nHINT: ")
    return problem, hint


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
    assert refusal(make_authorities, given) == (
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
def test_a_bundle_gets_the_lines_of_the_file_as_it_is(made, ending):
    path = authority_file(made, "client", ending)
    assert "\n".join(bundle_lines(path)) + "\n" == path.read_text()


@pytest.mark.parametrize("ending", ["crt", "crl"])
def test_a_bundle_waits_for_a_file_that_is_not_made_yet(settings, ending):
    path = authority_file(settings, "client", ending)
    assert refusal(bundle_lines, path) == (
        f"{path} does not exist",
        "pyinfra INVENTORY deploys/ca.py",
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
        "pyinfra INVENTORY deploys/ca.py",
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
        import signal  # noqa: PLC0415

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            issue(settings, CLIENT)
        except PkiError as error:
            os._exit(0 if "cannot be written" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {path: text for path, text in contents(settings).items() if path in before} == before
