"""The poolers: who is let in, who is not and with what words, and how the configuration changes."""

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from fleet import ROOT
from fleet.certificates import Leaf
from fleet.hosts import CertificateAuthority
from fleet.pki import certificate_file, issue, key_file
from tests.lab.conftest import INVENTORY, Lab, killed_at, pyinfra, within

pytestmark = pytest.mark.lab


def test_agents_come_in_by_certificate_and_are_the_proxy_user_on_the_server(lab: Lab) -> None:
    with lab.as_agent("bouncer1") as connection:
        row = connection.execute("SELECT session_user, inet_client_addr()").fetchone()
    assert [str(value) for value in row or ()] == [
        "pem_agent_user1",
        lab.machines["bouncer1"].address,
    ]


def test_many_clients_share_at_most_pool_size_server_connections(lab: Lab) -> None:
    clients = 20
    pool_size = int(lab.ask("bouncer1", "SHOW DATABASES")[0]["pool_size"])
    assert pool_size < clients

    def work() -> None:
        with lab.as_agent("bouncer1") as connection:
            connection.execute("SELECT pg_sleep(1)")

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(
            most,
            int(
                lab.sql(
                    "SELECT count(*) FROM pg_stat_activity WHERE usename = 'pem_agent_user1'"
                    f" AND client_addr = '{lab.machines['bouncer1'].address}'"
                )
            ),
        )
    for thread in threads:
        thread.join()
    assert 1 < most <= pool_size


def test_the_administrator_uses_the_console_from_the_admin_network(lab: Lab) -> None:
    settings = {row["key"]: row["value"] for row in lab.ask("bouncer1", "SHOW CONFIG")}
    assert settings["server_tls_sslmode"] == "verify-full"
    assert settings["client_tls_sslmode"] == "require"


def test_the_console_is_closed_to_other_networks(lab: Lab) -> None:
    said = lab.feed(
        "bouncer2",
        "IFS= read -r PGPASSWORD; export PGPASSWORD; psql -c 'SHOW VERSION'"
        " 'host=bouncer1 port=6432 user=pem_admin1 dbname=pgbouncer sslmode=require'",
        lab.fleet.pem_server.admin_password.get_secret_value(),
    )
    assert said.returncode != 0
    assert "no authentication method" in said.stderr, said.stderr


# Wrong papers. Each is refused, in the words of TLS or of PgBouncer.


@pytest.fixture
def papers(lab: Lab, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Certificates that a thief or a careless administrator might have."""

    def make(leaf: Leaf, *, signer: str = "client", days_ago: int = 0) -> dict[str, str]:
        settings = lab.fleet.certificate_authority.but(directory=str(tmp_path / "ca"))
        _copy_authority(lab.fleet.certificate_authority, settings, signer, leaf.kind)
        issue(settings, leaf, now=datetime.now(UTC) - timedelta(days=days_ago))
        return {
            "user": "pem_agent_user1",
            "sslcert": str(certificate_file(settings, leaf)),
            "sslkey": str(key_file(settings, leaf)),
        }

    return make


def _copy_authority(
    source: CertificateAuthority, target: CertificateAuthority, signer: str, role: str
) -> None:
    """The fleet's own authority `signer`, put where leaves of `role` are signed."""
    target.path.mkdir(mode=0o700)
    for ending in ("crt", "key"):
        copy = target.path / f"{role}-ca.{ending}"
        copy.touch(mode=0o600)
        copy.write_bytes((source.path / f"{signer}-ca.{ending}").read_bytes())


AGENT = Leaf("client", "pem_agent_user1", "thief")


def refusal(lab: Lab, **parameters: str) -> str:
    """The words in which bouncer1 refuses to log somebody in."""
    with (
        pytest.raises(psycopg.OperationalError) as refused,
        lab.connect("bouncer1", **parameters) as it,
    ):
        it.execute("SELECT 1")
    return str(refused.value)


def test_a_certificate_of_somebody_else_is_refused(lab: Lab, papers) -> None:
    somebody = Leaf("client", "somebody", "thief")
    assert "certificate authentication failed" in refusal(lab, **papers(somebody))


def test_an_expired_certificate_is_refused(lab: Lab, papers) -> None:
    assert "expired" in refusal(lab, **papers(AGENT, days_ago=120))


def test_the_poolers_own_certificate_opens_nothing_for_a_client(lab: Lab, papers) -> None:
    pool = Leaf("client", "pem_agent_pool", "bouncer1")
    assert "certificate authentication failed" in refusal(lab, **papers(pool))


def test_a_servers_certificate_that_names_the_agents_user_is_refused(lab: Lab, papers) -> None:
    """PgBouncer would compare its DNS name with the user, before the common name."""
    server = Leaf("server", "web1", "web1", dns_names=("PEM_Agent_User1",))
    assert "unknown ca" in refusal(lab, **papers(server, signer="server"))


def test_so_it_is_when_the_clients_authority_signed_it(lab: Lab, papers) -> None:
    server = Leaf("server", "web1", "web1", dns_names=("pem_agent_user1",))
    assert "unsupported certificate" in refusal(lab, **papers(server, signer="client"))


def test_the_database_server_takes_the_pools_certificate_from_poolers_only(lab: Lab) -> None:
    """Stolen papers of a pooler are of no use elsewhere."""
    ca = lab.fleet.certificate_authority.path
    with pytest.raises(psycopg.OperationalError, match=r"certificate authentication failed"):
        psycopg.connect(
            host="pem1",
            hostaddr=lab.machines["pem1"].address,
            user="pem_agent_user1",
            dbname="pem",
            sslmode="verify-full",
            sslrootcert=str(ca / "server-ca.crt"),
            sslcert=str(ca / "clients/pem_agent_pool@bouncer1.crt"),
            sslkey=str(ca / "clients/pem_agent_pool@bouncer1.key"),
        )


# Changes of the configuration.


def test_a_new_pool_size_is_reloaded_and_no_agent_loses_its_connection(
    lab: Lab, other_inventory
) -> None:
    before = lab.connect_times("bouncer1")
    changed = other_inventory("server=server,\n", "server=server, pool_size=7,\n")
    run = pyinfra("deploy", "deploys/pgbouncer.py", inventory=changed, limit="bouncer1")
    try:
        assert run.returncode == 0, run.stdout
        assert lab.ask("bouncer1", "SHOW DATABASES")[0]["pool_size"] == "7"
        assert lab.connect_times("bouncer1") == before
    finally:
        assert pyinfra("deploy", "deploys/pgbouncer.py").returncode == 0
    assert lab.ask("bouncer1", "SHOW DATABASES")[0]["pool_size"] == "5"


def test_a_run_killed_between_file_and_reload_is_healed_by_the_next(
    lab: Lab, other_inventory
) -> None:
    changed = other_inventory("server=server,\n", "server=server, pool_size=6,\n")
    # The step after the one that writes.
    killed_at(changed, "deploys/pgbouncer.py", "bouncer1", step="Limit of open files")
    try:
        assert "pool_size=6" in lab.run("bouncer1", "cat /etc/pgbouncer/pgbouncer.ini")
        assert lab.ask("bouncer1", "SHOW DATABASES")[0]["pool_size"] == "5"

        healed = pyinfra("deploy", "deploys/pgbouncer.py", inventory=changed, limit="bouncer1")
        assert re.search(r"\b1 of \d+ steps changed something", healed.stdout), healed.stdout
        assert lab.ask("bouncer1", "SHOW DATABASES")[0]["pool_size"] == "6"
    finally:
        assert pyinfra("deploy", "deploys/pgbouncer.py").returncode == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ('extra={"max_packet_size": "x"}', "max_packet_size"),
        ("pool_size=20", "than the 97 that max_connections of pem1 leaves to ordinary users"),
    ],
    ids=["it does not start", "the database cannot bear it"],
)
def test_a_configuration_that_will_not_do_is_refused_and_the_old_one_runs_on(
    lab: Lab, other_inventory, settings: str, reason: str
) -> None:
    before = lab.run("bouncer1", "sha256sum /etc/pgbouncer/pgbouncer.ini /etc/pgbouncer/hba.conf")
    changed = other_inventory("server=server,\n", f"server=server, {settings},\n")
    run = pyinfra("deploy", "deploys/pgbouncer.py", inventory=changed, limit="bouncer1")
    assert run.returncode != 0
    assert "refused, the running configuration stays" in run.stdout
    assert reason in run.stdout, run.stdout
    after = lab.run("bouncer1", "sha256sum /etc/pgbouncer/pgbouncer.ini /etc/pgbouncer/hba.conf")
    assert before == after
    assert lab.run("bouncer1", "find /etc/pgbouncer /tmp -name '*pem-fleet-*'") == ""
    with lab.as_agent("bouncer1") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_database_that_would_not_let_the_pooler_in_is_noticed_before(
    lab: Lab, other_inventory
) -> None:
    lab.sql("ALTER ROLE pem_agent_user1 VALID UNTIL 'yesterday'")
    changed = other_inventory("server=server,\n", "server=server, pool_size=8,\n")
    try:
        run = pyinfra("deploy", "deploys/pgbouncer.py", inventory=changed, limit="bouncer1")
    finally:
        lab.sql("ALTER ROLE pem_agent_user1 VALID UNTIL 'infinity'")
    assert run.returncode != 0
    assert "the database does not do its part" in run.stdout
    assert "role pem_agent_user1 may not come in" in run.stdout
    assert lab.ask("bouncer1", "SHOW DATABASES")[0]["pool_size"] == "5"


def test_an_expired_agents_user_is_refused_even_by_a_pooler_that_knew_it(lab: Lab) -> None:
    with lab.as_agent("bouncer1") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    lab.sql("ALTER ROLE pem_agent_user1 VALID UNTIL 'yesterday'")
    try:
        assert "bouncer config error" in refusal(lab, **lab.agent_papers())
    finally:
        lab.sql("ALTER ROLE pem_agent_user1 VALID UNTIL 'infinity'")
    log = lab.run("bouncer1", "tail -n 50 /var/log/postgresql/pgbouncer.log")
    assert "role pem_agent_user1 may not come in through the pooler" in log


def test_rules_that_somebody_opened_by_hand_are_closed_again(lab: Lab) -> None:
    """Edited and reloaded: what runs is as wrong as what is written.

    So it is once more after a run that was cut off between the files and the reload.
    """
    lab.run("bouncer1", "echo 'host all all 0.0.0.0/0 trust' >> /etc/pgbouncer/hba.conf")
    lab.run("bouncer1", "systemctl reload pgbouncer")
    without_papers = {"user": "pem_agent_user1", "sslcertmode": "disable", "host": "bouncer1"}
    killed_at(INVENTORY, "deploys/pgbouncer.py", "bouncer1", step="Limit of open files")
    assert "trust" not in lab.run("bouncer1", "cat /etc/pgbouncer/hba.conf")
    run = pyinfra("deploy", "deploys/pgbouncer.py", limit="bouncer1")
    assert re.search(r"\b1 of \d+ steps changed something", run.stdout), run.stdout
    assert "certificate authentication failed" in refusal(lab, **without_papers)
    assert pyinfra("unchanged", "deploys/pgbouncer.py", limit="bouncer1").returncode == 0


def test_a_pooler_serves_again_after_a_restart_of_its_service(lab: Lab) -> None:
    lab.run("bouncer2", "systemctl restart pgbouncer")
    within(10, "bouncer2 serves after a restart of its service", lambda: lab.serves("bouncer2"))
    assert pyinfra("unchanged", "deploys/pgbouncer.py").returncode == 0


def test_old_pgbouncer_is_refused_with_the_reason(lab: Lab) -> None:
    """The proof itself, on the pooler's host, told to want a version that does not exist yet."""
    said = lab.on("bouncer1").run(
        "cd / && { echo pgbouncer=/usr/sbin/pgbouncer minimum=99.0 reason=because;"
        f" cat <<'EOF'\n{(ROOT / 'files/prove-pgbouncer.sh').read_text()}EOF\n}} | sh -s"
    )
    assert said.rc == 1
    assert "PgBouncer 1.24.1 is older than 99.0: because" in said.stderr
