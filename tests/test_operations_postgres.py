"""What an operation does to a running Postgres, and that it does nothing where all is well."""

import base64
import hashlib
import re
import shlex
from pathlib import Path

import pytest
from pydantic import SecretStr

from fleet import ROOT
from fleet.access import role_wishes
from fleet.facts.files import FileBytes
from fleet.facts.postgres import (
    PostgresHolds,
    PostgresPasswordSalt,
    PostgresServer,
    PostgresStandby,
)
from fleet.operations import files, postgres
from fleet.scram import verifier
from tests.planning import fails
from tests.samples import ADMIN_PASSWORD, DEBIAN_13

SERVER = DEBIAN_13[PostgresServer]
CLIENT_CA = ROOT / "tests" / "authority" / "client-ca.crt"


def test_wishes_that_hold_are_left_alone(plan, fleet):
    wishes = role_wishes(fleet.pem_server)
    facts = {PostgresHolds: [True] * len(wishes)}
    assert plan(postgres.wishes, "pem.example.com", facts, wishes=wishes).changing == []


@pytest.mark.parametrize("held", [0, 3, 5])
def test_only_wishes_that_do_not_hold_are_run_in_one_transaction(plan, fleet, held):
    wishes = role_wishes(fleet.pem_server)
    facts = {PostgresHolds: [number != held for number in range(len(wishes))]}
    planned = plan(postgres.wishes, "pem.example.com", facts, wishes=wishes)
    assert planned.inputs == [f"-- {wishes[held].what}\n{wishes[held].sql};\n"]
    assert "--single-transaction" in planned.shell[0]


def test_without_an_answer_all_wishes_are_run_in_their_order(plan, fleet):
    wishes = role_wishes(fleet.pem_server)
    planned = plan(postgres.wishes, "pem.example.com", {PostgresHolds: None}, wishes=wishes)
    said = re.findall(r"^-- (.*)$", planned.inputs[0], re.MULTILINE)
    assert said == [wish.what for wish in wishes]


def test_on_a_standby_neither_wishes_nor_passwords_are_touched(plan, fleet):
    standby = {PostgresStandby: True, PostgresHolds: None}
    wishes = role_wishes(fleet.pem_server)
    assert plan(postgres.wishes, "pem.example.com", standby, wishes=wishes).changing == []
    arguments = {"role": "pem_admin1", "password": SecretStr(ADMIN_PASSWORD)}
    assert plan(postgres.password, "pem.example.com", standby, **arguments).changing == []


@pytest.mark.parametrize(
    ("said", "standby"), [(["t"], True), (["f"], False), ([], False)],
    ids=["a standby", "a primary", "no server"],
)  # fmt: skip
def test_only_a_server_that_says_so_is_a_standby(said, standby):
    assert PostgresStandby().process(said) is standby


SALT = base64.b64encode(b"sixteen bytes ok").decode()


def give_password(plan, salt, same="", password=ADMIN_PASSWORD):
    return plan(
        postgres.password,
        "pem.example.com",
        {PostgresPasswordSalt: salt},
        answers={"psql": same},
        role="pem_admin1",
        password=SecretStr(password),
    )


def test_a_role_that_has_its_password_keeps_it(plan):
    assert give_password(plan, f"4096:{SALT}", "t").changing == []


@pytest.mark.parametrize(
    ("salt", "same"),
    [(None, ""), (f"4096:{SALT}", "f"), (f"4096:{SALT}", {"stdout": "t", "success": False})],
    ids=["no password", "another password", "no answer"],
)
def test_a_role_is_given_its_password_as_a_verifier_on_standard_input(plan, salt, same):
    planned = give_password(plan, salt, same)
    (text,) = planned.inputs
    found = re.fullmatch(
        r"""ALTER ROLE "pem_admin1" PASSWORD '(SCRAM-SHA-256\$(\d+):(\S+?)\$\S+)';""",
        text.splitlines()[-1],
    )
    assert found[1] == verifier(ADMIN_PASSWORD, base64.b64decode(found[3]), int(found[2]))
    assert planned.shell == ["psql -XAtq -v ON_ERROR_STOP=1 -p 5432 -d postgres -f - >/dev/null"]


UNLOGGED = [
    "SET log_statement = 'none'",
    "SET log_min_duration_statement = -1",
    "SET log_min_error_statement = 'panic'",
    "SET pg_stat_statements.track = 'none'",
]


def test_the_servers_log_is_off_before_a_verifier_is_told(plan):
    planned = give_password(plan, f"4096:{SALT}", "f")
    assert planned.asked
    for text in (*planned.asked, *planned.inputs):
        before, verifier_follows, _ = text.partition("SCRAM-SHA-256$")
        assert verifier_follows
        assert [one.strip() for one in before.split(";")][:-1] == UNLOGGED


def test_asking_for_a_password_shows_neither_it_nor_its_verifier(plan):
    planned = give_password(plan, f"4096:{SALT}", "t")
    asked = planned.host.connector.executed_commands
    assert asked
    assert not [one for one in asked if ADMIN_PASSWORD in one or "SCRAM" in one]


def test_a_password_that_clients_would_change_fails_the_host(plan, caplog):
    said = fails(give_password(plan, None, password="two\nlines"), caplog)
    assert "password of pem_admin1: a password must be printable" in said
    assert "HINT: openssl rand -hex 24" in said
    assert "two" not in said


@pytest.mark.parametrize(("holds", "changes"), [([True], 0), ([False], 1), (None, 1)])
def test_a_server_setting_is_set_only_where_it_differs(plan, holds, changes):
    planned = plan(
        postgres.setting, "pem.example.com", {PostgresHolds: holds}, setting="x", value="it's"
    )
    assert planned.inputs == ["ALTER SYSTEM SET x = 'it''s';"] * changes


@pytest.mark.parametrize(("unread", "changes"), [([], 0), ([SERVER["hba_file"]], 1)])
def test_the_server_is_reloaded_only_when_a_file_is_newer_than_what_it_read(plan, unread, changes):
    facts = {PostgresServer: SERVER | {"unread": unread}}
    assert len(plan(postgres.reload, "pem.example.com", facts).shell) == changes


@pytest.mark.parametrize("unread", [[], [SERVER["hba_file"]]])
def test_what_waits_for_a_restart_is_told_and_left_to_the_operator(plan, caplog, unread):
    waits = {"pending_restart": ["listen_addresses", "port"], "unread": unread}
    planned = plan(postgres.reload, "pem.example.com", {PostgresServer: SERVER | waits})
    assert "waits for a restart of Postgres, which is yours to choose: listen_addresses, port" in (
        caplog.text
    )
    assert not [text for text in (*planned.shell, *planned.inputs) if "restart" in text]


def test_nothing_is_told_where_nothing_waits_for_a_restart(plan, caplog):
    plan(postgres.reload, "pem.example.com", {PostgresServer: SERVER})
    assert "restart" not in caplog.text


def files_on_host(**texts):
    """A host's FileBytes of these paths alone."""

    def text_of(path):
        return texts.get(path)

    return {PostgresServer: SERVER, FileBytes: text_of}


WITH_OURS = b"# BEGIN pem-fleet\nours\n# END pem-fleet\ntheirs\n"
BLOCKS = [(postgres.hba_block, "hba_file"), (postgres.ident_block, "ident_file")]


@pytest.mark.parametrize(("block", "setting"), BLOCKS)
def test_rules_that_are_there_are_left_alone(plan, block, setting):
    facts = files_on_host(**{SERVER[setting]: WITH_OURS})
    assert plan(block, "pem.example.com", facts, lines=("ours",)).changing == []


@pytest.mark.parametrize(("block", "setting"), BLOCKS)
def test_rules_that_a_cut_off_run_left_on_trial_are_taken_back_first(plan, block, setting):
    path = SERVER[setting]
    facts = files_on_host(**{path: b"on trial\n", f"{path}{files.UNDO}": b"theirs\n"})
    planned = plan(block, "pem.example.com", facts, lines=("ours",))
    assert sorted(planned.files[path].content.split(b"\n")) == sorted(WITH_OURS.split(b"\n"))
    # What was on trial is kept, and the file that is taken back is what the change begins with.
    assert shlex.split(planned.shell[0].partition("&&")[2]) == [
        *("cp", "-p", "$real", f"{path}{files.CUT_OFF}"),
        *("&&", "mv", "-f", f"{path}{files.UNDO}", "$real"),
    ]
    assert hashlib.sha256(b"theirs\n").hexdigest() in planned.inputs[-1]


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (postgres.hba_block, {"lines": ("ours",)}),
        (postgres.ident_block, {"lines": ("ours",)}),
        (postgres.bundle_block, {"setting": "ssl_ca_file", "certificates": CLIENT_CA}),
        (postgres.reload, {}),
    ],
)
def test_without_a_server_psql_says_why_in_its_own_words(plan, operation, arguments):
    planned = plan(operation, "pem.example.com", {PostgresServer: None}, **arguments)
    assert [shlex.split(command)[-2:] for command in planned.shell] == [
        ["-c", "SELECT 'Postgres answers'"]
    ]


def test_rules_that_cannot_be_read_fail_the_host(plan, caplog):
    facts = {PostgresServer: SERVER, FileBytes: None}
    said = fails(plan(postgres.hba_block, "pem.example.com", facts, lines=("ours",)), caplog)
    assert f"{SERVER['hba_file']}, the server's hba_file, cannot be read" in said


@pytest.mark.parametrize(
    ("operation", "arguments", "file"),
    [
        (postgres.hba_block, {"lines": ("ours",)}, "hba_file"),
        (
            postgres.bundle_block,
            {"setting": "ssl_ca_file", "certificates": CLIENT_CA},
            "ssl_ca_file",
        ),
    ],
)
def test_a_mark_of_ours_without_its_other_half_fails_the_host(
    plan, caplog, operation, arguments, file
):
    facts = {PostgresServer: SERVER, FileBytes: lambda path: half if path == SERVER[file] else None}
    half = b"first\n# BEGIN pem-fleet\n"
    said = fails(plan(operation, "pem.example.com", facts, **arguments), caplog)
    assert f"{SERVER[file]}: line 2: a mark of pem-fleet without its other half" in said
    assert "HINT: take that line out by hand" in said


def test_a_server_that_checks_no_clients_needs_none_of_our_certificates(plan):
    planned = plan(
        postgres.bundle_block,
        "pem.example.com",
        {PostgresServer: SERVER | {"ssl_crl_file": ""}},
        setting="ssl_crl_file",
        certificates=CLIENT_CA.with_suffix(".crl"),
    )
    assert planned.changing == []


@pytest.mark.parametrize(
    ("setting", "path", "said"),
    [
        ("ssl_ca_file", "", "ssl_ca_file of the server is not set, and no such file is there"),
        ("ssl_ca_file", "/x.crt", "ssl_ca_file of the server is /x.crt, and no such file is there"),
        (
            "ssl_crl_file",
            "/x.crl",
            "ssl_crl_file of the server is /x.crl, and no such file is there",
        ),
    ],
    ids=["not set", "not there", "a list that is not there"],
)
def test_a_server_that_could_check_no_client_fails_the_host(plan, caplog, setting, path, said):
    planned = plan(
        postgres.bundle_block,
        "pem.example.com",
        {PostgresServer: SERVER | {setting: path}},
        setting=setting,
        certificates=CLIENT_CA.with_suffix(".crt" if setting == "ssl_ca_file" else ".crl"),
    )
    said_by_it = fails(planned, caplog)
    assert said in said_by_it
    assert "HINT: configure PEM first, /usr/edb/pem/bin/configure-pem-server.sh" in said_by_it


def test_a_bundle_that_holds_our_certificate_is_left_alone(plan):
    ours = CLIENT_CA.read_bytes()
    text = b"theirs\n# BEGIN pem-fleet\n" + ours + b"# END pem-fleet\n"
    planned = plan(
        postgres.bundle_block,
        "pem.example.com",
        files_on_host(**{SERVER["ssl_ca_file"]: text}),
        setting="ssl_ca_file",
        certificates=CLIENT_CA,
    )
    assert planned.changing == []


def test_a_file_that_is_no_certificate_gets_into_no_bundle(plan, caplog):
    planned = plan(
        postgres.bundle_block,
        "pem.example.com",
        files_on_host(**{SERVER["ssl_ca_file"]: b""}),
        setting="ssl_ca_file",
        certificates=Path(__file__),
    )
    assert f"{__file__} cannot be read as a certificate" in fails(planned, caplog)


def test_certificates_that_are_not_made_yet_fail_the_host(plan, caplog, tmp_path):
    planned = plan(
        postgres.bundle_block,
        "pem.example.com",
        {PostgresServer: SERVER},
        setting="ssl_ca_file",
        certificates=tmp_path / "client-ca.crt",
    )
    said = fails(planned, caplog)
    assert f"{tmp_path}/client-ca.crt does not exist" in said
    assert "HINT: make deploy INVENTORY=… DEPLOY=deploys/ca.py" in said


def test_a_setting_that_waits_for_a_restart_is_written_once(plan):
    """Until then the server calls it an error of the file, so that is asked with it."""
    asked = []

    def holds(conditions, port):  # noqa: ARG001  a fact is asked with both
        asked.extend(conditions)
        return [True]

    arguments = {"setting": "max_connections", "value": "200"}
    planned = plan(postgres.setting, "pem.example.com", {PostgresHolds: holds}, **arguments)
    assert planned.changing == []
    assert "'max_connections' IN (SELECT name FROM pg_settings WHERE pending_restart)" in asked[0]


def test_what_waits_after_a_reload_is_told_in_the_same_run(plan, caplog):
    answers = [SERVER, SERVER, SERVER | {"pending_restart": ["max_connections"]}]

    def said(port):  # noqa: ARG001  a fact is asked with it
        return answers.pop(0) if len(answers) > 1 else answers[0]

    facts = {PostgresServer: said}
    plan(postgres.reload, "pem.example.com", facts)
    assert "waits for a restart of Postgres, which is yours to choose: max_connections" in (
        caplog.text
    )
