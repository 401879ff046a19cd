"""Operations do nothing where all is well, and fail one host, in words, where they cannot."""

import base64
import hashlib
import re
import shlex
from pathlib import Path

import pytest
from pydantic import SecretStr

from fleet import ROOT
from fleet.access import role_wishes
from fleet.facts.files import FileBytes, FileStates
from fleet.facts.packages import MissingPackages
from fleet.facts.pem import AgentVerification, RegisteredAgents
from fleet.facts.pgbouncer import PgBouncerClients, PgBouncerConfig
from fleet.facts.postgres import PostgresHolds, PostgresPasswordSalt, PostgresServer
from fleet.facts.services import Service
from fleet.hosts import CertificateAuthority
from fleet.operations import certificates, files, packages, pem, pgbouncer, postgres, services
from fleet.pki import Leaf, authorities_missing, make_authorities
from fleet.platforms import postgres as postgres_row
from fleet.scram import verifier
from tests.samples import ADMIN_PASSWORD, DEBIAN_13, SUPERUSER_PASSWORD

AGENT_CFG = "/usr/edb/pem/agent/etc/agent.cfg"
SERVER = DEBIAN_13[PostgresServer]
CLIENT_CA = ROOT / "tests" / "authority" / "client-ca.crt"
RUNS = {"active": True, "needs_daemon_reload": False, "older_than": [], "open_files": 1024}


def fails(planned, caplog):
    """Run the plan, which must fail its host by a function of ours; what it says."""
    assert (planned.shell, planned.run_functions()) == ([], [False])
    return caplog.text


# Packages and services


def test_packages_that_are_there_are_left_alone(plan):
    planned = plan(
        packages.installed, "app1", {MissingPackages: []}, names=("a", "b"), family="debian"
    )
    assert planned.changing == []


def test_only_missing_packages_are_installed_and_none_is_upgraded(plan):
    facts = {MissingPackages: ["b"]}
    planned = plan(packages.installed, "app1", facts, names=("a", "b"), family="debian")
    assert planned.shell[-1].endswith(" install --no-install-recommends --no-upgrade b")


@pytest.mark.parametrize(("behind", "commands"), [(False, []), (True, ["systemctl daemon-reload"])])
def test_systemd_reads_units_only_when_it_is_behind(plan, behind, commands):
    facts = {Service: RUNS | {"needs_daemon_reload": behind}}
    assert plan(services.units_read, "app1", facts, unit="pemagent").shell == commands


@pytest.mark.parametrize(
    ("state", "commands"),
    [
        ({}, []),
        ({"active": False}, ["systemctl restart pemagent"]),
        ({"older_than": [AGENT_CFG]}, ["systemctl restart pemagent"]),
    ],
    ids=["runs on its files", "does not run", "runs on older files"],
)
def test_a_service_is_restarted_only_when_it_is_behind(plan, state, commands):
    facts = {Service: RUNS | state}
    planned = plan(services.restarted_since, "app1", facts, unit="pemagent", files=(AGENT_CFG,))
    assert planned.shell == commands


def test_a_service_is_older_than_a_file_that_changed_after_its_start():
    said = [
        "ActiveState=active",
        "NeedDaemonReload=no",
        "ActiveEnterTimestampMonotonic=100000000",
        "MainPID=1",
        "now=1700000200.0 200.0",
        "file=1700000099.9 /before",
        "file=1700000100.1 /after",
        "limit=1024",
    ]
    assert Service().process(said) == RUNS | {"older_than": ["/after"]}


# PgBouncer

WRITTEN = {"auth_query": "SELECT /* new */", "listen_addr": "*", "listen_port": "6432"}


def running(**changes):
    """SHOW CONFIG of a pooler that runs as written, with changes."""
    values = WRITTEN | changes
    return {
        name: {"value": value, "reloadable": name == "auth_query"} for name, value in values.items()
    }


def run_as_written(plan, config, service, rewritten=lambda: False):
    return plan(
        pgbouncer.runs_as_written,
        "bouncer1",
        {PgBouncerConfig: config, Service: RUNS | service},
        executing=True,
        unit="pgbouncer", user="postgres", directory="/run/postgresql", port=6432,
        settings=WRITTEN, open_files=1024, rewritten=rewritten,
    )  # fmt: skip


def verbs(planned):
    """What systemctl would be told first, for each script."""
    return [re.search(r"^verb=(\w+)$", text, re.MULTILINE)[1] for text in planned.inputs]


@pytest.mark.parametrize(
    ("config", "service", "verb", "raised"),
    [
        pytest.param(running(), {}, None, False, id="runs as written"),
        pytest.param(running(auth_query="SELECT /* old */"), {}, "reload", False, id="other files"),
        pytest.param(running(listen_port="6433"), {}, "restart", False, id="another port"),
        pytest.param(running(), {"open_files": 100}, "reload", True, id="too few descriptors"),
        pytest.param({}, {}, "restart", False, id="no answer"),
        pytest.param({}, {"active": False}, "restart", False, id="stopped"),
    ],
)
def test_a_pooler_is_reloaded_and_restarted_only_where_a_reload_cannot_do_it(
    plan, config, service, verb, raised
):
    planned = run_as_written(plan, config, service)
    assert verbs(planned) == ([verb] if verb else [])
    raising = (
        "prlimit --pid $(systemctl show -p MainPID --value pgbouncer) --nofile=1024:"
        " 2>/dev/null || verb=restart"
    )
    assert [raising in text.splitlines() for text in planned.inputs] == [raised] * bool(verb)


def test_a_pooler_is_reloaded_after_its_files_were_put_back_though_they_look_the_same(plan):
    assert verbs(run_as_written(plan, running(), {}, rewritten=lambda: True)) == ["reload"]


def test_a_plan_does_not_ask_whether_files_were_put_back(plan):
    def not_yet():
        raise RuntimeError("no step has run")

    planned = plan(
        pgbouncer.runs_as_written,
        "bouncer1",
        {PgBouncerConfig: running(), Service: RUNS},
        unit="pgbouncer", user="postgres", directory="/run/postgresql", port=6432,
        settings=WRITTEN, open_files=1024, rewritten=not_yet,
    )  # fmt: skip
    assert planned.changing == []


# Postgres


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
    assert planned.shell[0] == f'mv -f {path}.pem-fleet-old "$(readlink -f {path} )"'
    assert sorted(planned.files[path].content.split(b"\n")) == sorted(WITH_OURS.split(b"\n"))
    # The file that is taken back is what the change begins with.
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
    assert "HINT: pyinfra INVENTORY deploys/ca.py" in said


# PEM's programs


def configure(plan, fleet, record):
    return plan(
        pem.configured,
        "pem.example.com",
        {FileStates: record},
        server=fleet.pem_server,
        place=postgres_row("debian", "distribution", 17),
    )


def test_pem_is_configured_once(plan, fleet):
    state = {"user": "root", "group": "root", "mode": "600", "sha256": "0" * 64}
    record = {"/usr/edb/pem/share/.install-config": state}
    assert configure(plan, fleet, record).changing == []


def test_pems_configuration_asks_for_its_password_on_standard_input(plan, fleet):
    planned = configure(plan, fleet, {})
    assert planned.inputs == [f"{SUPERUSER_PASSWORD}\n"]
    assert SUPERUSER_PASSWORD not in planned.shell[0]


def register(plan, fleet, text, agents=()):
    return plan(
        pem.registered,
        "app1",
        DEBIAN_13
        | {
            FileBytes: text,
            RegisteredAgents: None if agents is None else {"agents": list(agents), "backends": []},
        },
        fleet=fleet, poolers=("bouncer2", "bouncer1"), certificate="/c.crt", key="/c.key",
    )  # fmt: skip


def test_a_registered_agent_stays_as_it_is(plan, fleet):
    text = b"[PEM/agent]\nagent_id=3\nagent_user=pem_agent_user1\n"
    assert register(plan, fleet, text).changing == []


@pytest.mark.parametrize(
    ("line", "user"), [(b"", "agent3"), (b"agent_user=pem_agent_user9\n", "pem_agent_user9")]
)
def test_an_agent_that_is_registered_as_somebody_else_is_not_touched(
    plan, fleet, caplog, line, user
):
    text = b"[PEM/agent]\nagent_id=3\n" + line
    planned = plan(pem.ours_to_register, "app1", {FileBytes: text}, server=fleet.pem_server)
    said = fails(planned, caplog)
    assert f"agent 3 is registered as {user}, the inventory wants pem_agent_user1" in said
    assert "nothing on this host was changed" in said
    assert "HINT: /usr/edb/pem/agent/bin/pemworker --unregister-agent" in said


@pytest.mark.parametrize(
    "text",
    [None, b"[PEM/agent]\npem_host=x\n", b"[PEM/agent]\nagent_id=3\nagent_user=pem_agent_user1\n"],
    ids=["no agent", "not registered", "registered by us"],
)
def test_an_agent_that_is_new_or_ours_may_be_deployed(plan, fleet, text):
    planned = plan(pem.ours_to_register, "app1", {FileBytes: text}, server=fleet.pem_server)
    assert planned.changing == []


def test_whose_agent_it_is_comes_before_every_change(plan):
    registered = b"[PEM/agent]\nagent_id=3\nagent_user=agent3\n"
    planned = plan("deploys/agent.py", "app1", DEBIAN_13 | {FileBytes: registered})
    assert planned.changing[0] == "Agent | See that it is ours to register"


@pytest.mark.parametrize("text", [None, b"", b"[PEM/agent]\npem_host=x\n"])
def test_an_agent_without_an_id_registers_with_the_password_on_standard_input(plan, fleet, text):
    planned = register(plan, fleet, text)
    assert planned.inputs == [f"{ADMIN_PASSWORD}\n"]
    assert "--pem-server bouncer2,bouncer1 --pem-port 6432,6432" in planned.shell[0]
    assert ADMIN_PASSWORD not in planned.shell[0]
    assert "--force-registration" not in planned.shell[0]


def test_an_agent_that_pem_knows_by_name_keeps_its_id(plan, fleet):
    known = {"id": 7, "name": "app1", "active": True, "heartbeat_age_seconds": 900.0}
    planned = register(plan, fleet, None, [known])
    assert planned.shell[0].endswith(" --force-registration -o agent_id=7")


def test_no_agent_is_registered_while_pem_cannot_say_whether_it_is_known(plan, fleet, caplog):
    said = fails(register(plan, fleet, None, None), caplog)
    assert "PEM's database on pem.example.com does not answer" in said
    assert "HINT: pyinfra INVENTORY deploys/pem_server.py" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, f"{AGENT_CFG} is not there: the agent is not registered"),
        (b"[other]\n", f"{AGENT_CFG}: section [PEM/agent] is not there"),
    ],
)
def test_settings_of_an_agent_that_is_not_registered_fail_the_host(plan, caplog, text, said):
    planned = plan(pem.agent_settings, "app1", {FileBytes: text}, values={"pem_host": "b"})
    assert said in fails(planned, caplog)


def test_settings_that_are_there_are_left_alone(plan):
    facts = {FileBytes: b"[PEM/agent]\npem_host = b\n"}
    assert plan(pem.agent_settings, "app1", facts, values={"pem_host": "b"}).changing == []


@pytest.mark.parametrize(("code", "changes"), [(0, 0), (1, 1), (2, 1), (3, 1), (None, 1)])
def test_a_registration_is_verified_until_pem_says_it_is_good(plan, code, changes):
    assert len(plan(pem.verified, "app1", {AgentVerification: code}).shell) == changes


def test_a_fresh_heartbeat_is_not_waited_for(plan, fleet):
    agent = {"id": 7, "name": "app1", "active": True, "heartbeat_age_seconds": 2.0}
    client = {
        "user": "pem_agent_user1",
        "database": "pem",
        "address": "192.0.2.31",
        "connected_seconds": 60.0,
    }
    facts = DEBIAN_13 | {
        RegisteredAgents: {"agents": [agent], "backends": []},
        PgBouncerClients: [client],
    }
    assert plan(pem.beats, "app1", facts, fleet=fleet).changing == []
    assert plan(pem.beats, "app2", facts, fleet=fleet).changing != []


# Certificates


def test_an_authority_that_is_there_is_not_made_again(plan, authority):
    assert plan(certificates.authorities, "app1", {}, settings=authority).changing == []


def test_an_authority_that_is_missing_is_made(plan, tmp_path):
    settings = CertificateAuthority(directory=str(tmp_path / "pki"))
    planned = plan(certificates.authorities, "app1", {}, settings=settings)
    assert planned.run_functions() == [True]
    assert authorities_missing(settings) == ()


def test_an_authority_that_ends_before_long_is_told_in_every_run(plan, tmp_path, caplog):
    settings = CertificateAuthority(
        directory=str(tmp_path / "pki"), authority_days=90, leaf_days=90
    )
    make_authorities(settings)
    assert plan(certificates.authorities, "app1", {}, settings=settings).changing == []
    for name in ("server-ca.crt", "client-ca.crt"):
        assert f"{settings.path}/{name} ends in 89 days" in caplog.text


def test_leaves_are_issued_with_their_reason_and_then_left_alone(plan, tmp_path, caplog):
    settings = CertificateAuthority(directory=str(tmp_path / "pki"))
    make_authorities(settings)
    leaf = Leaf("client", "pem_agent_user1", "app1")
    caplog.set_level("INFO")
    planned = plan(certificates.leaves, "app1", {}, settings=settings, wanted=(leaf,))
    assert planned.run_functions() == [True]
    assert "issued clients/pem_agent_user1@app1: not issued yet" in caplog.text
    planned = plan(certificates.leaves, "app1", {}, settings=settings, wanted=(leaf,))
    assert planned.changing == []


def test_an_authority_that_cannot_be_used_fails_the_host(plan, authority, caplog):
    (authority.path / "server-ca.crt").write_text("not PEM\n")
    said = fails(plan(certificates.authorities, "app1", {}, settings=authority), caplog)
    assert f"{authority.path}/server-ca.crt cannot be read as a certificate" in said
    assert f"HINT: openssl x509 -noout -text -in {authority.path}/server-ca.crt" in said


# Files, as far as their plan goes; tests/test_files.py runs it


def put(plan, states, **changes):
    file = files.File("/etc/x", **({"content": "text", "user": "u", "group": "g"} | changes))
    return plan(files.put, "app1", {FileStates: states}, files=(file,))


# echo -n text | sha256sum
TEXT_SHA256 = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
STATE = {"user": "u", "group": "g", "mode": "644", "sha256": TEXT_SHA256}


def test_a_file_that_is_as_it_should_be_is_left_alone(plan):
    assert put(plan, {"/etc/x": STATE}).changing == []


@pytest.mark.parametrize(
    "states",
    [{}] + [{"/etc/x": STATE | {name: "0"}} for name in ("user", "group", "mode", "sha256")],
    ids=["missing", "user", "group", "mode", "content"],
)
def test_a_file_that_differs_in_anything_is_written_whole(plan, states):
    assert put(plan, states).files == {"/etc/x": ("u:g", "644", b"text")}


def test_a_file_of_the_operator_that_is_not_made_yet_fails_the_host(plan, caplog, tmp_path):
    said = fails(put(plan, {}, content=tmp_path / "leaf.key"), caplog)
    assert f"{tmp_path}/leaf.key does not exist" in said
    assert "HINT: pyinfra INVENTORY deploys/ca.py" in said


def test_a_secret_file_is_in_no_command_and_no_script(plan):
    planned = put(plan, {}, content=SecretStr(ADMIN_PASSWORD))
    encoded = base64.b64encode(ADMIN_PASSWORD.encode()).decode()
    for text in (*planned.shell, planned.inputs[-1]):
        assert ADMIN_PASSWORD not in text
        assert encoded not in text
    assert planned.files["/etc/x"].content == ADMIN_PASSWORD.encode()
