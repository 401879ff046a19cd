"""The stand-in for PEM behaves as PEM's documents say, on two hosts of a lab of its own.

pem1 is the server with its database, agent1 an agent's host that connects directly.
"""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.hosts import current_lab
from lab.standin import build

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
PEM_CONFIGURE = "/usr/edb/pem/bin/configure-pem-server.sh"
PEMWORKER = "/usr/edb/pem/agent/bin/pemworker"
REGISTER = f"{PEMWORKER} --register-agent --pem-server pem1 --pem-user pem_admin1"
DATA = "/var/lib/postgresql/17/main"
SUPERUSER_PASSWORD = "of-the-superuser"
ADMIN_PASSWORD = "of-pem-admin1"

INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends"
INSTALL_SERVER = f"""
apt-get update -qq
{INSTALL} postgresql-17 postgresql-17-sslutils edb-pem
echo "listen_addresses = '*'" > /etc/postgresql/17/main/conf.d/listen.conf
runuser -u postgres -- psql -qc "ALTER ROLE postgres PASSWORD '{SUPERUSER_PASSWORD}'"
"""
CONFIGURE = f"""
echo {SUPERUSER_PASSWORD} | {PEM_CONFIGURE} --type 3 --db-install-path /usr/lib/postgresql/17 \
    --host 127.0.0.1 --port 5432 --superuser postgres --db-unitfile postgresql@17-main
"""
ADMINISTRATOR = f"""
CREATE ROLE pem_admin1 LOGIN CREATEROLE PASSWORD '{ADMIN_PASSWORD}';
GRANT pem_admin, pem_agent_pool TO pem_admin1;
GRANT pem_agent TO pem_admin1 WITH ADMIN OPTION;
SELECT pem.create_proxy_agent_user('pem_agent_user1');
"""


# A broken connection is noticed when it is used: every 2 s instead of every 10.
QUICK = "-o long_wait=2 -o short_wait=2 -o log_level=info"
SEEN_READ_ONLY = 'grep -q "session is read-only" /var/log/pem/worker.log'


class Host:
    """A host of the lab, reached over ssh as its ordinary user, who may become root."""

    def __init__(self, name):
        self.ssh = ["ssh", "-F", str(current_lab().ssh_config_file), name]

    def run(self, script, *, expect=0):
        """Run a shell script as root; its output, both kinds. `expect` is its exit code."""
        done = subprocess.run(
            [*self.ssh, "sudo bash -e -o pipefail -s"],
            input=f"export PEM_SERVER_PASSWORD={ADMIN_PASSWORD}\n{script}",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == expect, done.stdout
        return done.stdout.strip()

    def sql(self, statements, *, expect=0, **variables):
        """Run SQL in database pem as the superuser, :name for a variable; unaligned rows."""
        psql = "runuser -u postgres -- psql -X -q -At -v ON_ERROR_STOP=1 pem"
        given = " ".join(f"-v '{name}={value}'" for name, value in variables.items())
        return self.run(f"{psql} {given} <<'END'\n{statements}\nEND", expect=expect)

    def heartbeat_age_seconds(self, agent_id):
        statement = """
            SELECT extract(epoch FROM clock_timestamp() - last_heartbeat)
            FROM pem.agent_heartbeat WHERE agent_id = :agent_id;
        """
        return float(self.sql(statement, agent_id=agent_id) or "inf")

    def wait_for_heartbeat(self, agent_id, within_seconds, *, new=True):
        """Wait for a heartbeat; for a new one, until it was sent after this moment."""
        began = time.monotonic()
        while (age := self.heartbeat_age_seconds(agent_id)) > time.monotonic() - began:
            if not new and age < float("inf"):
                return
            waited = time.monotonic() - began
            assert waited < within_seconds, f"agent {agent_id}: no heartbeat in {waited:.0f} s"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def lab():
    """Two hosts up, PEM configured on pem1, the agent's package on agent1; taken down again."""
    command = [sys.executable, "-m", "lab"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_NAME", "standin")
        subprocess.run([*command, "down"], cwd=ROOT, check=True)
        try:
            subprocess.run([*command, "up", "pem1", "agent1"], cwd=ROOT, check=True)
            hosts = {name: Host(name) for name in ("pem1", "agent1")}
            install_agent = f"apt-get update -qq; {INSTALL} edb-pem-agent"
            with ThreadPoolExecutor() as pool:
                agent = pool.submit(hosts["agent1"].run, install_agent)
                hosts["pem1"].run(INSTALL_SERVER)
                hosts["pem1"].first_run = hosts["pem1"].run(CONFIGURE)
                hosts["pem1"].sql(ADMINISTRATOR)
                agent.result()
            yield hosts
        finally:
            subprocess.run([*command, "down"], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def pem1(lab):
    return lab["pem1"]


@pytest.fixture(scope="module")
def agent1(lab):
    return lab["agent1"]


@pytest.fixture(scope="module")
def agent_id(agent1):
    """agent1 registered as a direct agent that runs; its id."""
    said = agent1.run(f"{REGISTER} --display-name one {QUICK}")
    assert said == "Postgres Enterprise Manager Agent registered successfully!"
    agent1.run("systemctl start pemagent")
    return int(agent1.run("sed -n s/^agent_id=//p /usr/edb/pem/agent/etc/agent.cfg"))


# The packages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["edb-pem", "edb-pem-agent", "postgresql-17-sslutils"])
def test_a_package_says_that_it_is_a_stand_in(pem1, package):
    assert "stand-in for tests, not EDB's software" in pem1.run(f"dpkg -s {package}")


def test_the_agent_is_neither_started_nor_enabled_by_its_installation(agent1):
    assert agent1.run("systemctl is-enabled pemagent", expect=1) == "disabled"


def test_the_versions_are_shown_as_by_the_real_programs(agent1):
    shown = agent1.run("/usr/edb/pem/agent/bin/pemagent --version")
    assert re.fullmatch(r"Version: 10\.6\.0\nSchema Supported: \d{9}", shown)


def test_a_changed_source_is_an_upgrade_and_an_unchanged_one_is_not_built(tmp_path):
    def offered():
        build.build_repository(tmp_path)
        listed = (tmp_path / "www/standin/deb/Packages").read_text()
        return re.search("Version: (.*)", listed).group(1)

    first = offered()
    assert offered() == first
    (tmp_path / "www/standin/built-from").write_text("another-source 1")
    newer = offered()
    subprocess.run(["dpkg", "--compare-versions", newer, "gt", first], check=True)


# The server ---------------------------------------------------------------------------------------


def test_pem_makes_its_six_files_in_the_data_directory_for_postgres_alone(pem1):
    files = "ca_certificate.crt ca_key.key root.crl root.crt server.crt server.key"
    listed = pem1.run(f"cd {DATA} && stat -c '%n %U %a' {files}")
    assert listed.splitlines() == [f"{name} postgres 600" for name in files.split()]


def test_the_certificate_of_the_server_cannot_be_verified(pem1):
    said = pem1.run(f"cd {DATA} && openssl verify -CAfile root.crt server.crt", expect=2)
    assert "error 18 at 0 depth lookup: self-signed certificate" in said


def test_the_certificate_of_an_agent_can_be_verified_and_has_no_key_usage(pem1):
    certificate = "/root/.pem/agent1.crt"
    assert pem1.run(f"openssl verify -CAfile {DATA}/root.crt {certificate}").endswith("OK")
    text = pem1.run(f"openssl x509 -noout -text -in {certificate}")
    assert "Public-Key: (4096 bit)" in text
    assert "Key Usage" not in text
    assert "Alternative Name" not in text


def test_the_lines_of_pem_stand_at_the_top_of_pg_hba(pem1):
    hba_file = "/etc/postgresql/17/main/pg_hba.conf"
    own = f"{current_lab().hosts['pem1'].address}/32"
    assert [line.split() for line in pem1.run(f"head -6 {hba_file}").splitlines()] == [
        ["hostssl", "pem", "+pem_user", own, "scram-sha-256"],
        ["hostssl", "postgres", "+pem_user", own, "scram-sha-256"],
        ["hostssl", "pem", "+pem_user", "127.0.0.1/32", "scram-sha-256"],
        ["hostssl", "pem", "+pem_agent", "127.0.0.1/32", "cert"],
        ["hostssl", "pem", "+pem_user", "0.0.0.0/0", "scram-sha-256"],
        ["hostssl", "pem", "+pem_agent", "0.0.0.0/0", "cert"],
    ]
    assert pem1.run(f"stat -c '%U %a' {hba_file}") == "postgres 640"


def test_the_password_is_neither_shown_nor_recorded(pem1):
    record = pem1.run("cat /usr/edb/pem/share/.install-config")
    assert "SUPERUSER=postgres" in record
    assert SUPERUSER_PASSWORD not in record + pem1.first_run


def test_a_second_run_is_an_upgrade_and_changes_no_file(pem1):
    files = f"{DATA}/*.crt {DATA}/*.key /etc/postgresql/17/main/* /usr/edb/pem/agent/etc/*"
    before = pem1.run(f"sha256sum {files} 2>/dev/null || true")
    assert "upgrade mode" in pem1.run(f"echo {SUPERUSER_PASSWORD} | {PEM_CONFIGURE}")
    assert pem1.run(f"sha256sum {files} 2>/dev/null || true") == before


def test_the_local_agent_is_number_1_and_sends_a_heartbeat_within_20_seconds(pem1):
    pem1.wait_for_heartbeat(1, within_seconds=20)


def test_a_direct_agent_hears_of_spooled_messages_within_3_seconds(pem1):
    sent = pem1.sql("""
        INSERT INTO pem.spool (kind, message) VALUES ('smtp', 'text');
        SELECT pg_sleep(3);
        SELECT count(*) FROM pem.spool WHERE sent_at IS NOT NULL;
    """)
    assert sent == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--type 2", "2 is PEM's web server"),
        ("--replication-solution patroni", "cannot do that"),
        ("-uac /tmp/a.crt", "must be given together"),
    ],
)
def test_configure_refuses_what_it_does_not_know_or_cannot_do(pem1, options, message):
    assert message in pem1.run(f"{PEM_CONFIGURE} {options} < /dev/null", expect=1)


# The pool functions -------------------------------------------------------------------------------


def test_the_auth_function_gives_direct_members_only_and_overlooks_an_expired_password(pem1):
    said = pem1.sql("""
        BEGIN;
        CREATE ROLE expired LOGIN PASSWORD 'x' VALID UNTIL '2001-01-01' IN ROLE pem_agent_pool;
        CREATE ROLE super SUPERUSER LOGIN PASSWORD 'x' IN ROLE pem_agent_pool;
        CREATE ROLE between IN ROLE pem_agent_pool;
        CREATE ROLE indirect LOGIN PASSWORD 'x' IN ROLE between;
        SELECT name, (SELECT left(password, 13) FROM pem.get_agent_pool_auth(name))
        FROM unnest(ARRAY['expired', 'super', 'indirect', 'pem_agent_user1']) AS name;
        ROLLBACK;
    """)
    assert said.splitlines() == [
        "expired|SCRAM-SHA-256",
        "super|",
        "indirect|",
        "pem_agent_user1|SCRAM-SHA-256",
    ]


def test_any_agent_may_ask_the_auth_function_and_a_stranger_may_not(pem1):
    question = "SELECT count(*) FROM pem.get_agent_pool_auth('pem_admin1');"
    assert pem1.sql(f"SET ROLE pem_agent_user1; {question}") == "1"
    stranger = "BEGIN; CREATE ROLE stranger; GRANT USAGE ON SCHEMA pem TO stranger;"
    said = pem1.sql(f"{stranger} SET ROLE stranger; {question}", expect=3)
    assert "permission denied for function get_agent_pool_auth" in said


def test_execute_on_the_auth_function_is_revoked_from_pem_admin(pem1):
    granted = pem1.sql("""
        SELECT grantee::regrole FROM pg_proc, aclexplode(proacl)
        WHERE proname = 'get_agent_pool_auth' ORDER BY grantee::regrole::text;
    """)
    assert granted.splitlines() == ["pem_agent", "pem_user", "postgres"]


def test_row_security_lets_only_administrators_of_pem_add_agents(pem1):
    statements = """
        BEGIN;
        CREATE ROLE half_admin LOGIN CREATEROLE IN ROLE pem_agent;
        GRANT INSERT ON pem.agent TO half_admin;
        SET ROLE half_admin;
        SELECT pem.create_agent('x', -1, true, true);
    """
    assert "violates row-level security policy" in pem1.sql(statements, expect=3)


# An agent -----------------------------------------------------------------------------------------


def test_a_registered_agent_sends_its_first_heartbeat_within_5_seconds_and_verifies(
    pem1, agent1, agent_id
):
    pem1.wait_for_heartbeat(agent_id, within_seconds=5, new=False)
    said = agent1.run(f"{PEMWORKER} --verify-registration")
    assert said == "Verify registration done successfully."
    files = "/root/.pem/* /usr/edb/pem/agent/etc/agent.cfg"
    assert agent1.run(f"stat -c '%n %U %a' {files}").splitlines() == [
        f"/root/.pem/agent{agent_id}.crt root 600",
        f"/root/.pem/agent{agent_id}.key root 600",
        "/usr/edb/pem/agent/etc/agent.cfg root 644",
    ]


@pytest.mark.usefixtures("agent_id")
def test_a_registered_host_is_not_registered_again_by_accident(agent1):
    assert "--force-registration" in agent1.run(REGISTER, expect=1)


def test_verify_registration_answers_1_without_an_id(agent1):
    said = agent1.run(
        f"mkdir -p /root/none; {PEMWORKER} --verify-registration --config-dir /root/none", expect=1
    )
    assert "cannot read" in said


@pytest.mark.usefixtures("agent_id")
def test_verify_registration_answers_2_without_a_connection(agent1):
    said = agent1.run(
        f"""mkdir -p /root/port; sed s/^pem_port=.*/pem_port=1/ /usr/edb/pem/agent/etc/agent.cfg \
            > /root/port/agent.cfg
            {PEMWORKER} --verify-registration --config-dir /root/port""",
        expect=2,
    )
    assert "Connection refused" in said


@pytest.mark.usefixtures("agent_id")
def test_an_agent_whose_configuration_names_no_server_looks_for_it_on_its_own_host(agent1):
    said = agent1.run(
        f"""mkdir -p /root/nameless; cd /root/nameless
            sed "/^pem_host=/d; /^pem_port=/d" /usr/edb/pem/agent/etc/agent.cfg > agent.cfg
            {PEMWORKER} --unregister-agent --pem-user pem_admin1 --config-dir .""",
        expect=1,
    )
    assert 'server at "127.0.0.1", port 5432 failed: Connection refused' in said


def test_verify_registration_answers_3_for_an_inactive_agent(pem1, agent1, agent_id):
    switch = "UPDATE pem.agent SET active = :active WHERE id = :agent_id"
    pem1.sql(switch, active=False, agent_id=agent_id)
    assert "not active" in agent1.run(f"{PEMWORKER} --verify-registration", expect=3)
    pem1.sql(switch, active=True, agent_id=agent_id)


def test_an_agent_comes_back_within_20_seconds_after_a_restart_of_postgres(pem1, agent_id):
    pem1.run("systemctl restart postgresql@17-main")
    pem1.wait_for_heartbeat(agent_id, within_seconds=20)


def test_an_agent_leaves_a_server_that_became_read_only(pem1, agent1, agent_id):
    set_to = "ALTER DATABASE pem SET default_transaction_read_only"
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'agent%'"
    pem1.sql(f"{set_to} = on; {kill};")
    try:
        agent1.run(f"timeout 10 sh -c 'until {SEEN_READ_ONLY}; do sleep 0.5; done'")
    finally:
        pem1.sql(f"SET default_transaction_read_only = off; {set_to} = off; {kill};")
    pem1.wait_for_heartbeat(agent_id, within_seconds=20)


def test_a_heartbeat_connection_is_one_more_and_the_agent_ends_within_5_seconds(
    pem1, agent1, agent_id
):
    config_file = "/usr/edb/pem/agent/etc/agent.cfg"
    connections = "SELECT application_name FROM pg_stat_activity WHERE usename = :'user'"
    user = f"agent{agent_id}"
    switch = f"sed -i 's/^heartbeat_connection=.*/heartbeat_connection=true/' {config_file}"
    agent1.run(f"{switch}; systemctl restart pemagent")
    pem1.wait_for_heartbeat(agent_id, within_seconds=20)
    names = ["pemagent heartbeat", "pemagent main"]
    assert sorted(pem1.sql(connections, user=user).splitlines()) == names
    agent1.run("timeout 5 systemctl stop pemagent")
    assert pem1.sql(connections, user=user) == ""


# Registration that must fail ----------------------------------------------------------------------


def registration(directory, options=""):
    """A registration beside the host's own, into a directory."""
    places = f"--config-dir {directory} --cert-path {directory}"
    return f"mkdir -p {directory}; {REGISTER} {places} {options}"


def test_of_two_registrations_at_once_one_fails_as_with_the_real_program(agent1):
    left, right = registration("/root/left"), registration("/root/right")
    said = agent1.run(f"({left} || echo failed) & ({right} || echo failed) & wait")
    assert said.count("registered successfully!") == 1
    assert said.count("ERROR: tuple concurrently updated") == 1
    assert said.count("failed") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--pem-port http", 'argument --pem-port: "http" is not a port'),
        ("--pem-ssl-mode maybe", "invalid choice: 'maybe'"),
        ("-o long_wait", '"long_wait" is not of the form key=value'),
        ("--verify-registration", "not allowed with argument"),
        ("--register-server", "this stand-in for tests has no --register-server"),
    ],
)
def test_pemworker_refuses_wrong_options_with_an_exit_code_of_its_own(agent1, options, message):
    assert message in agent1.run(f"{REGISTER} {options}", expect=64)


def test_a_wrong_password_fails_in_the_words_of_libpq(agent1):
    said = agent1.run(f"PEM_SERVER_PASSWORD=wrong; {registration('/root/wrong')}", expect=1)
    assert 'password authentication failed for user "pem_admin1"' in said


@pytest.mark.parametrize("user", ["", "--pem-agent-user pem_agent_user1"])
def test_a_certificate_of_another_user_is_refused_and_nothing_stays_behind(
    pem1, agent1, agent_id, user
):
    state = "SELECT count(*) FROM pem.agent; SELECT count(*) FROM pg_roles"
    before = pem1.sql(state)
    files = [f"-o agent_ssl_{kind}=/root/.pem/agent{agent_id}.{kind}" for kind in ("crt", "key")]
    said = agent1.run(registration("/root/other", f"{user} {' '.join(files)}"), expect=1)
    assert "is not valid for user" in said
    assert pem1.sql(state) == before
    assert agent1.run("ls -A /root/other") == ""


def test_the_id_of_an_active_agent_is_refused_and_force_takes_it_over(agent1, agent_id):
    wish = f"--display-name one -o agent_id={agent_id}"
    said = agent1.run(registration("/root/again", wish), expect=1)
    assert f"agent id {agent_id} belongs to an agent that is active" in said
    agent1.run(registration("/root/again", f"{wish} --force-registration"))
    assert f"agent_id={agent_id}" in agent1.run("cat /root/again/agent.cfg").splitlines()


# Ends ---------------------------------------------------------------------------------------------


def test_revoking_takes_the_right_to_write_files_besides_the_right_to_read_them(pem1):
    said = pem1.sql(
        """
        BEGIN;
        CREATE ROLE reader IN ROLE pg_read_server_files;
        SET ROLE reader;
        SELECT openssl_revoke_certificate('', 'root.crl');
        """,
        expect=3,
    )
    assert "must be a member of pg_write_server_files" in said


def test_a_revoked_certificate_is_refused_by_postgres(pem1, agent1, agent_id):
    certificate = agent1.run(f"cat /root/.pem/agent{agent_id}.crt")
    pem1.sql(f"SELECT openssl_revoke_certificate('{certificate}\n', 'root.crl')")
    pem1.run("systemctl reload postgresql@17-main")
    assert "revoked" in agent1.run(f"{PEMWORKER} --verify-registration", expect=2)


def test_an_unregistered_agent_is_inactive_and_its_configuration_gone(pem1, agent1, agent_id):
    said = agent1.run(f"{PEMWORKER} --unregister-agent --pem-user pem_admin1")
    assert "unregistered successfully" in said
    active = "SELECT active FROM pem.agent WHERE id = :agent_id"
    assert pem1.sql(active, agent_id=agent_id) == "f"
    assert "cannot read" in agent1.run(f"{PEMWORKER} --verify-registration", expect=1)
