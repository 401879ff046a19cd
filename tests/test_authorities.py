"""PEM's own CA beside ours: who is trusted, who issues, and where keys and certificates go."""

import getpass
import grp
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from pyinfra import state as state_of_run
from pyinfra.context import ctx_state

from fleet.certificates import Leaf, issued_by, wrong_words
from fleet.facts.authority import KeyPairs, PemAuthority
from fleet.facts.files import FileBytes, FileStates
from fleet.facts.pem import RegisteredAgents
from fleet.facts.poolers import PgBouncerUnits
from fleet.facts.postgres import PostgresStandby
from fleet.hosts import CertificateAuthority
from fleet.keystore import PkiError
from fleet.leaves import leaves_of, pool_leaf
from fleet.operations import files, pem_authority, postgres
from fleet.operations.files import ISSUED, File, OnHost
from fleet.pem_authority import read_request, subject, trusted_clients
from fleet.pem_authority import sign as sign_on_server
from fleet.pki import (
    authority_file,
    certificate_file,
    issue,
    key_file,
    make_authorities,
)
from fleet.render import script
from tests.certificates import openssl, refusal, text_of
from tests.planning import fails
from tests.samples import ADMIN_PASSWORD, DEBIAN_13, with_authorities, with_cluster

STATES = [("own",), ("own", "pem"), ("pem", "own"), ("pem",)]
POOL = Leaf("client", "pem_agent_pool", "bouncer1")
CERTIFICATE, KEY = "/etc/pgbouncer/tls/pem_agent_pool.crt", "/etc/pgbouncer/tls/pem_agent_pool.key"


@pytest.fixture
def pem(tmp_path):
    """A CA that stands for PEM's: settings whose client CA is it."""
    settings = CertificateAuthority(directory=str(tmp_path / "pem"), organization="PEM")
    make_authorities(settings)
    return settings


def ca_text(settings):
    """What the fact of PEM's CA answers."""
    return authority_file(settings, "client").read_text()


def pair(settings, leaf=POOL, *, days_ago=0, matches=True):
    """What the fact of key pairs answers of a certificate that an authority issued."""
    issue(settings, leaf, now=datetime.now(UTC) - timedelta(days=days_ago))
    text = certificate_file(settings, leaf).read_text()
    return {"certificate": text, "key_matches": matches}


# The setting.


@pytest.mark.parametrize("names", STATES, ids="-".join)
def test_the_first_authority_issues(names):
    settings = CertificateAuthority(directory="/ca", client_authorities=names)
    assert settings.client_issuer == names[0]


def test_without_a_word_our_own_authority_issues_and_is_trusted_alone():
    assert CertificateAuthority(directory="/ca").client_authorities == ("own",)


def test_only_certificates_of_servers_are_issued_here_where_pem_issues_to_clients(fleet):
    wanted = with_authorities(fleet, "pem", "own")
    stems = [leaf.file_stem for host in wanted.machines() for leaf in leaves_of(wanted, host)]
    assert stems == ["servers/pem.example.com", "servers/bouncer1", "servers/bouncer2"]


# Trust.


def blocks(text):
    return re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", text, re.DOTALL)


@pytest.mark.parametrize(
    "names", [("own",), ("own", "pem"), ("pem", "own"), ("pem",)], ids="-".join
)
def test_poolers_trust_every_authority_of_the_list_and_no_other(plan, fleet, pem, names):
    wanted = with_authorities(fleet, *names)
    facts = DEBIAN_13 | {PemAuthority: ca_text(pem)}
    written = plan("deploys/pgbouncer.py", "bouncer1", facts, of=wanted).files
    texts = {
        "own": authority_file(fleet.certificate_authority, "client").read_text(),
        "pem": ca_text(pem),
    }
    assert blocks(written["/etc/pem-fleet/trusted-clients.crt"].content.decode()) == [
        block for name in names for block in blocks(texts[name])
    ]


def test_a_pooler_is_planned_before_pem_is_installed(plan, fleet):
    planned = plan("deploys/pgbouncer.py", "bouncer1", DEBIAN_13, of=with_authorities(fleet, "pem"))
    assert (
        "PgBouncer | Have PEM's CA sign the pooler's certificate, if it is due" in planned.changing
    )
    assert "PgBouncer | Write the configuration, once it is proven" in planned.changing


def test_a_pem_without_a_ca_is_told_with_a_way_out(plan, fleet, caplog):
    wanted = with_authorities(fleet, "pem")
    planned = plan(
        files.put,
        "bouncer1",
        DEBIAN_13,
        files=lambda: (File("/x", trusted_clients(wanted)),),
    )
    said = fails(planned, caplog)
    assert "ca_certificate.crt of PEM is not in the data directory on pem.example.com" in said
    assert 'client_authorities=("own",) belongs' in said


@pytest.mark.parametrize("setting", ["ssl_ca_file", "ssl_crl_file"])
def test_our_block_leaves_the_servers_bundle_when_our_authority_is_not_trusted(plan, setting):
    theirs = b"theirs\n"
    planned = plan(
        postgres.bundle_block,
        "pem.example.com",
        DEBIAN_13 | {FileBytes: theirs + b"# BEGIN pem-fleet\nours\n# END pem-fleet\n"},
        setting=setting,
        certificates=None,
    )
    (written,) = planned.files.values()
    assert written.content == theirs


@pytest.mark.parametrize(
    ("issuer", "refused"), [("client", True), ("server", False), (None, False)], ids=str
)
def test_ours_is_trusted_by_postgres_while_a_pooler_logs_in_with_it(
    plan, fleet, pem, caplog, issuer, refused
):
    wanted = with_authorities(fleet, "pem")
    wanted = wanted.but(certificate_authority=pem.but(client_authorities=("pem",)))
    held = {} if issuer is None else {CERTIFICATE: pair(pem)}
    if issuer == "server":
        held[CERTIFICATE]["certificate"] = authority_file(pem, "server").read_text()
    planned = plan(
        pem_authority.ours_needed_no_more,
        "pem.example.com",
        DEBIAN_13 | {KeyPairs: held},
        fleet=wanted,
    )
    if not refused:
        assert planned.changing == []
        return
    said = fails(planned, caplog)
    assert "bouncer1 and bouncer2 log in to the database with certificates of" in said
    assert 'HINT: client_authorities=("pem", "own") and a full deploy' in said


INI = "/etc/elsewhere/my.ini"
ELSEWHERE = {
    PgBouncerUnits: {
        "pgbouncer": {"active": True, "enabled": True, "binary": "/usr/sbin/pgbouncer", "ini": INI}
    }
}


def ini_of(text):
    return {FileBytes: lambda path: text if path == INI else None}


def needed(plan, fleet, pem, facts):
    wanted = pem.but(client_authorities=("pem",))
    return plan(
        pem_authority.ours_needed_no_more,
        "pem.example.com",
        DEBIAN_13 | ELSEWHERE | facts,
        fleet=fleet.but(certificate_authority=wanted),
    )


def test_the_poolers_certificate_is_looked_for_where_the_installed_unit_reads(
    plan, fleet, pem, caplog
):
    held = {"/etc/elsewhere/tls/pem_agent_pool.crt": pair(pem)}
    said = fails(needed(plan, fleet, pem, {KeyPairs: held}), caplog)
    assert "bouncer1 and bouncer2 log in to the database with certificates of" in said


def test_a_pooler_of_ours_without_a_certificate_where_it_should_be_is_no_consent(
    plan, fleet, pem, caplog
):
    said = fails(needed(plan, fleet, pem, ini_of(b";; Written by pem-fleet\n")), caplog)
    assert "bouncer1 has no certificate /etc/elsewhere/tls/pem_agent_pool.crt" in said
    assert "HINT: make deploy INVENTORY=… DEPLOY=deploys/pgbouncer.py LIMIT=bouncer1" in said


def test_a_pooler_that_was_only_installed_yet_needs_no_certificate(plan, fleet, pem):
    assert needed(plan, fleet, pem, ini_of(b";; as its package brought it\n")).changing == []


@pytest.mark.parametrize(
    ("present", "wanted", "between"),
    [
        ("pem", ("own",), "('own', 'pem')"),
        ("own", ("pem",), "('pem', 'own')"),
        ("pem", ("own", "pem"), None),
        ("own", ("pem", "own"), None),
        ("own", ("own",), None),
        ("pem", ("pem",), None),
        ("made anew since", ("own",), None),
        ("made anew since", ("pem",), None),
        (None, ("own",), None),
    ],
    ids=str,
)
def test_a_pooler_drops_no_authority_while_its_own_certificate_is_of_it(
    plan, fleet, pem, caplog, tmp_path, present, wanted, between
):
    ours = pem.but(directory=str(tmp_path / "ours"), client_authorities=wanted)
    former = pem.but(directory=str(tmp_path / "former"))
    for authority in (ours, former):
        make_authorities(authority)
    issuers = {"own": ours, "pem": pem, "made anew since": former}
    held = {CERTIFICATE: pair(issuers[present])} if present else {}
    planned = plan(
        pem_authority.trusted_still,
        "bouncer1",
        DEBIAN_13 | {PemAuthority: ca_text(pem), KeyPairs: held},
        fleet=fleet.but(certificate_authority=ours),
        certificate=CERTIFICATE,
        key=KEY,
    )
    if between is None:
        assert planned.changing == []
        return
    said = fails(planned, caplog)
    assert f"{CERTIFICATE} is of the CA that poolers would trust no more" in said
    assert f"HINT: client_authorities={between} and a full deploy, then {wanted!r}" in said


# The pooler's certificate: what waits, what is good.


def wait(plan, fleet, pem, held, lone_key=False, answers=True):
    there = [path for path in (CERTIFICATE + ISSUED, KEY + ISSUED) if path in held or lone_key]
    facts = {
        PemAuthority: ca_text(pem) if answers else None,
        KeyPairs: held,
        FileStates: {path: state() for path in there},
    }
    return plan(
        pem_authority.waiting,
        "bouncer1",
        DEBIAN_13 | facts,
        fleet=with_authorities(fleet, "pem"),
        leaf=POOL,
        certificate=CERTIFICATE,
        key=KEY,
        user="postgres",
    )


def test_a_good_certificate_stays(plan, fleet, pem):
    assert wait(plan, fleet, pem, {CERTIFICATE: pair(pem)}).changing == []


def test_one_that_waits_already_is_not_issued_again(plan, fleet, pem):
    held = {CERTIFICATE: pair(pem, days_ago=70), CERTIFICATE + ISSUED: pair(pem)}
    assert wait(plan, fleet, pem, held).changing == []


def test_what_still_waits_beside_a_good_one_is_removed(plan, fleet, pem):
    held = {CERTIFICATE: pair(pem), CERTIFICATE + ISSUED: pair(pem)}
    planned = wait(plan, fleet, pem, held)
    assert planned.shell == [f"rm -f {CERTIFICATE}{ISSUED} {KEY}{ISSUED}"]


def test_a_key_that_got_no_signature_is_removed_beside_a_good_pair(plan, fleet, pem):
    planned = wait(plan, fleet, pem, {CERTIFICATE: pair(pem)}, lone_key=True)
    assert planned.shell == [f"rm -f {CERTIFICATE}{ISSUED} {KEY}{ISSUED}"]


@pytest.mark.parametrize("present", ["good", "none"])
def test_no_key_is_made_while_pems_authority_cannot_be_asked(plan, fleet, pem, caplog, present):
    held = {CERTIFICATE: pair(pem)} if present == "good" else {}
    said = fails(wait(plan, fleet, pem, held, answers=False), caplog)
    assert "ca_certificate.crt of PEM is not in the data directory on pem.example.com" in said


@pytest.mark.parametrize(
    "wrong", ["none", "due", "another issuer", "another key", "another user", "broken"]
)
def test_a_certificate_that_will_not_do_is_issued_anew(plan, fleet, pem, tmp_path, wrong):
    stranger = pem.but(directory=str(tmp_path / "stranger"))
    make_authorities(stranger)
    held = {
        "none": dict,
        "due": lambda: {CERTIFICATE: pair(pem, days_ago=61)},
        "another issuer": lambda: {CERTIFICATE: pair(stranger)},
        "another key": lambda: {CERTIFICATE: pair(pem, matches=False)},
        "another user": lambda: {CERTIFICATE: pair(pem, Leaf("client", "postgres", "bouncer1"))},
        "broken": lambda: {CERTIFICATE: {"certificate": "no such", "key_matches": False}},
    }[wrong]()
    planned = wait(plan, fleet, pem, held)
    # A function: the request, the signature and the certificate go from host to host.
    assert (planned.shell, len(planned.steps)) == ([], 1)
    assert planned.changing


def put_pair(plan, states):
    wanted = (
        File(CERTIFICATE, OnHost(), "postgres", "postgres", "600"),
        File(KEY, OnHost(), "postgres", "postgres", "600"),
    )
    return plan(files.put, "bouncer1", DEBIAN_13 | {FileStates: states}, files=wanted)


def state(sha256="a", mode="600"):
    return {"user": "postgres", "group": "postgres", "mode": mode, "sha256": sha256 * 64}


def test_what_is_on_the_host_is_left_alone_when_nothing_waits(plan):
    assert put_pair(plan, {CERTIFICATE: state(), KEY: state("b")}).changing == []


def test_what_waits_takes_its_place_and_is_taken_away_last(plan):
    states = {path: state() for path in (CERTIFICATE, KEY, CERTIFICATE + ISSUED, KEY + ISSUED)}
    (text,) = put_pair(plan, states).inputs
    lines = [line for line in text.splitlines() if ISSUED in line]
    assert lines == [
        f"copied {CERTIFICATE} postgres:postgres 600 {CERTIFICATE}{ISSUED}",
        f"copied {KEY} postgres:postgres 600 {KEY}{ISSUED}",
        f"'rm -f' {CERTIFICATE}{ISSUED} {KEY}{ISSUED}".replace("'rm -f'", "rm -f"),
    ]
    assert text.index("replace /etc") < text.index("rm -f /etc")


@pytest.mark.parametrize("alone", [CERTIFICATE, KEY])
def test_half_of_a_pair_that_waits_takes_nobodys_place(plan, alone):
    states = {CERTIFICATE: state(), KEY: state("b"), alone + ISSUED: state("c")}
    assert put_pair(plan, states).changing == []


def test_a_key_that_others_may_read_is_put_right_from_what_is_there(plan):
    (text,) = put_pair(plan, {CERTIFICATE: state(), KEY: state(mode="644")}).inputs
    assert f"copied {KEY} postgres:postgres 600 {KEY}\n" in text


# Requests and signatures, by openssl itself.


def run(text, **environment):
    done = subprocess.run(
        ["sh", "-s"], input=f"{{\n{text}\n}}\n", capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def request(tmp_path, subject="/OU=bouncer1/CN=pem_agent_pool", algorithm="p256"):
    values = {
        "key": str(tmp_path / "key"),
        "owner": f"{getpass.getuser()}:{grp.getgrgid(os.getgid()).gr_name}",
        "subject": subject,
        "algorithm": pem_authority._ALGORITHMS[algorithm],
        "signature": "Written by pem-fleet",
    }
    code, said, error = run(script("request-certificate.sh", values))
    assert code == 0, error
    return said


def sign(tmp_path, pem, text):
    """files/sign-request.sh on a data directory with the CA, whose server answers."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "ca_certificate.crt").write_text(ca_text(pem))
    (data / "ca_key.key").write_text(authority_file(pem, "client", "key").read_text())
    psql = tmp_path / "psql"
    psql.write_text(f"#!/bin/sh\necho {data}\n")
    psql.chmod(0o755)
    values = {"port": "5432", "request": text, "days": "90"}
    found = run(script("sign-request.sh", values), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert sorted(path.name for path in data.iterdir()) == ["ca_certificate.crt", "ca_key.key"]
    return found


@pytest.mark.parametrize("algorithm", ["p256", "rsa3072"])
def test_the_signed_certificate_is_for_a_client_alone_and_leaves_no_serial_behind(
    tmp_path, pem, algorithm
):
    code, said, error = sign(tmp_path, pem, request(tmp_path, algorithm=algorithm))
    assert code == 0, error
    certificate = x509.load_pem_x509_certificate(said.encode())
    assert issued_by(certificate, x509.load_pem_x509_certificate(ca_text(pem).encode()))
    assert wrong_words(certificate, POOL) == ""
    path = tmp_path / "crt"
    path.write_text(said)
    ca = authority_file(pem, "client")
    assert openssl("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", ca, path)[0] == 0
    assert openssl("verify", "-purpose", "sslserver", "-CAfile", ca, path)[0] != 0
    text = text_of(path)
    assert "CA:FALSE" in text
    assert re.search(r"X509v3 Key Usage: critical\n\s+Digital Signature\n", text)
    assert certificate.serial_number.bit_length() > 96


def test_the_key_of_a_request_is_its_owners_alone(tmp_path):
    request(tmp_path)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key").read_text().startswith("# Written by pem-fleet")


def test_a_ca_key_that_is_not_there_is_openssls_own_error(tmp_path, pem):
    text = request(tmp_path)
    authority_file(pem, "client", "key").write_text("")
    code, said, error = sign(tmp_path, pem, text)
    assert (code != 0, said) == (True, "")
    assert "ca_key.key" in error or "key" in error


def test_a_request_for_somebody_else_is_not_signed(tmp_path):
    """A pooler that was broken into could ask for the superuser's certificate."""
    for asked in ("/OU=bouncer1/CN=postgres", "/OU=bouncer1/CN=pem_agent_pool/CN=postgres"):
        text = request(tmp_path, asked)
        problem, hint = refusal(read_request, text, POOL)
        assert problem.startswith("bouncer1 asks for a certificate of CN=")
        assert hint.endswith("Nothing was signed")
    assert read_request(request(tmp_path), POOL)
    with pytest.raises(PkiError, match="bouncer1: no certificate request"):
        read_request("nothing", POOL)


@pytest.mark.parametrize("own_key", [True, False])
def test_the_fact_tells_a_pair_from_two_files_that_do_not_belong_together(tmp_path, pem, own_key):
    issue(pem, POOL)
    certificate, key = certificate_file(pem, POOL), key_file(pem, POOL)
    if not own_key:
        issue(pem, Leaf("client", "somebody", "x"))
        key = key_file(pem, Leaf("client", "somebody", "x"))
    pairs = ((str(certificate), str(key)), (str(tmp_path / "none"), str(key)))
    command = KeyPairs().command(pairs=pairs).get_raw_value()
    code, said, _ = run(command)
    assert code == 0
    assert "PRIVATE KEY" not in said
    found = KeyPairs().process(said.splitlines())
    assert found.keys() == {str(certificate)}
    assert found[str(certificate)]["key_matches"] is own_key
    assert found[str(certificate)]["certificate"].strip() == certificate.read_text().strip()


# A PEM database of several hosts.


@pytest.fixture
def cluster(plan, fleet, pem):
    """Three database hosts, with what they answer by name: their CA, and whether they follow."""
    wanted = with_authorities(with_cluster(fleet), "pem")
    planned = plan(files.directory, "bouncer1", DEBIAN_13, of=wanted, path="/x")
    answers = {name: (ca_text(pem), name != "pem2") for name in ("pem1", "pem2", "pem3")}
    signed = []
    for name in answers:
        one = planned.state.inventory.get_host(name)

        def said(fact, *_rest, name=name, **_given):
            return {PemAuthority: answers[name][0], PostgresStandby: answers[name][1]}.get(
                fact, DEBIAN_13.get(fact)
            )

        def runs(_command, *, name=name, **_given):
            signed.append(name)
            lines = certificate_file(pem, POOL).read_text().splitlines()
            return answers[name][0] is not None, SimpleNamespace(
                stdout_lines=lines, stderr="ca_key.key is not there"
            )

        one.get_fact, one.run_shell_command = said, runs
    with ctx_state.use(planned.state):
        yield wanted, answers, signed


def request_of_pool(pem):
    """A request for the pool's certificate, and the certificate for its key."""
    issue(pem, POOL)
    key = serialization.load_pem_private_key(key_file(pem, POOL).read_bytes(), None)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(POOL))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_the_primary_of_a_cluster_signs(cluster, pem):
    wanted, _, signed = cluster
    text = request_of_pool(pem)
    assert sign_on_server(wanted, POOL, text)
    assert signed == ["pem2"]


def test_a_host_that_cannot_sign_does_not_end_the_search(cluster, pem, monkeypatch):
    wanted, _, signed = cluster
    text = request_of_pool(pem)
    primary = state_of_run.inventory.get_host("pem2")
    signs = primary.run_shell_command
    monkeypatch.setattr(
        primary, "run_shell_command", lambda *rest, **given: (False, signs(*rest, **given)[1])
    )
    assert sign_on_server(wanted, POOL, text)
    assert signed == ["pem2", "pem1"]


def test_hosts_of_a_cluster_with_different_authorities_are_told_with_both_sides(
    cluster, pem, tmp_path
):
    wanted, answers, _ = cluster
    assert trusted_clients(wanted) == ca_text(pem)
    stranger = pem.but(directory=str(tmp_path / "stranger"))
    make_authorities(stranger)
    answers["pem3"] = (ca_text(stranger), True)
    problem, hint = refusal(trusted_clients, wanted)
    assert "that of pem1 ends" in problem
    assert "that of pem3 ends" in problem
    assert hint.startswith("copy ca_certificate.crt and ca_key.key of the primary")
    answers["pem3"] = (None, True)
    assert trusted_clients(wanted) == ca_text(pem), "one without a CA is no other side"


# Agents.


AGENT_CFG = b"[PEM/agent]\nagent_id=7\nagent_user=agent7\n# mine\n"
AGENT = Leaf("client", "pem_agent_user1", "app1")


def by_registration(plan, fleet, pem, text, held, agents=(("7", "old name"),)):
    known = [
        {"id": int(number), "name": name, "active": True, "heartbeat_age_seconds": 1.0}
        for number, name in agents or ()
    ]
    return plan(
        pem_authority.by_registration,
        "app1",
        DEBIAN_13
        | {
            PemAuthority: ca_text(pem),
            KeyPairs: held,
            FileBytes: text,
            RegisteredAgents: None if agents is None else {"agents": known, "backends": []},
        },
        fleet=with_authorities(fleet, "pem"),
        leaf=AGENT,
        poolers=("bouncer2", "bouncer1"),
        certificate="/root/.pem/pem_agent_user1.crt",
        key="/root/.pem/pem_agent_user1.key",
    )


def test_an_agent_that_is_not_registered_gets_its_certificate_when_it_is(plan, fleet, pem):
    assert by_registration(plan, fleet, pem, None, {}).changing == []


def test_an_agent_with_a_good_certificate_is_not_registered_again(plan, fleet, pem):
    held = {"/root/.pem/pem_agent_user1.crt": pair(pem, AGENT)}
    assert by_registration(plan, fleet, pem, AGENT_CFG, held).changing == []


def test_an_agent_without_one_is_registered_again_under_its_id_and_name_beside_its_agent_cfg(
    plan, fleet, pem
):
    planned = by_registration(plan, fleet, pem, AGENT_CFG, {})
    (command,) = planned.shell
    assert "--display-name 'old name' --force-registration -o agent_id=7" in command
    assert '--config-dir "$new" --cert-path "$new"' in command
    assert "/usr/edb/pem/agent/etc" not in command
    assert planned.inputs == [f"{ADMIN_PASSWORD}\n"]
    assert ADMIN_PASSWORD not in command


def test_an_agent_whose_row_pem_lost_gets_its_certificate_when_it_is_registered(plan, fleet, pem):
    assert by_registration(plan, fleet, pem, AGENT_CFG, {}, agents=()).changing == []


def test_no_agent_gets_a_certificate_while_pem_does_not_answer(plan, fleet, pem, caplog):
    said = fails(by_registration(plan, fleet, pem, AGENT_CFG, {}, agents=None), caplog)
    assert "PEM's database on pem.example.com does not answer, so agent 7 gets no" in said


def test_the_fingerprint_shows_another_certificate_on_the_host(plan, fleet, pem):
    def written(held):
        facts = DEBIAN_13 | {PemAuthority: ca_text(pem), KeyPairs: held}
        planned = plan("deploys/pgbouncer.py", "bouncer1", facts, of=with_authorities(fleet, "pem"))
        ini = planned.files["/etc/pgbouncer/pgbouncer.ini"].content.decode()
        return re.search(r"/\* (\w+) \*/", ini)[1]

    one, other = pair(pem), pair(pem)
    assert written({CERTIFICATE: one}) == written({CERTIFICATE: one})
    assert written({CERTIFICATE: one}) != written({CERTIFICATE: other})
    waits = {CERTIFICATE: one, CERTIFICATE + ISSUED: other}
    assert written(waits) == written({CERTIFICATE: other})
    assert pool_leaf(fleet.pgbouncer.hosts[0]) == POOL
