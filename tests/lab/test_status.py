"""One look at the lab: its figures are those of psql and openssl, and each fault is told."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from fleet.leaves import pool_leaf
from fleet.pki import certificate_file
from tests.certificates import ends
from tests.lab.conftest import Lab, status, within

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("lab")]


def told(*options: str) -> tuple[int, dict]:
    """The exit code and the document."""
    done = status("--json", *options)
    return done.returncode, json.loads(done.stdout)


def problem(where: str, what: str) -> Callable[[], bool]:
    """Whether a look, without drift, ends with 1 and names this."""

    def seen() -> bool:
        code, document = told("--no-drift")
        return code == 1 and any(
            one["where"] == where and what in one["what"] for one in document["problems"]
        )

    return seen


def well() -> bool:
    return status("--no-drift").returncode == 0


@pytest.fixture(autouse=True)
def healthy() -> Iterator[None]:
    """Every test leaves the lab well."""
    yield
    within(60, "the lab is well again after the test", well)


def test_a_healthy_lab_is_well_in_all_its_parts(lab: Lab) -> None:
    done = status()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for host in lab.fleet.agent.hosts:
        line = next(line for line in done.stdout.splitlines() if f" {host.name}  reg" in line)
        assert "through bouncer" in line
        assert line.endswith("as pem_agent_user1")
    assert "none: every deploy would change nothing" in done.stdout
    assert "Problems:\n  none\n" in done.stdout


def test_the_figures_are_those_of_psql_openssl_and_the_console(lab: Lab) -> None:
    _, document = told("--no-drift")
    (server,) = document["servers"]
    assert server["version"] == lab.sql("SHOW server_version").split()[0]
    assert server["max_connections"] == int(lab.sql("SHOW max_connections"))
    for pooler in document["poolers"]:
        databases = {row["name"]: row for row in lab.ask(pooler["host"], "SHOW DATABASES")}
        settings = {row["key"]: row["value"] for row in lab.ask(pooler["host"], "SHOW CONFIG")}
        assert pooler["pool_size"] == int(databases["pem"]["pool_size"])
        assert pooler["max_client_conn"] == int(settings["max_client_conn"])
        assert f"PgBouncer {pooler['version']}" in lab.run(
            pooler["host"], "/usr/sbin/pgbouncer --version"
        )
    assert sum(pooler["clients"] for pooler in document["poolers"]) == 3
    rows = lab.sql("SELECT description, id FROM pem.agent").splitlines()
    ids = dict(row.split("|") for row in rows)
    assert {one["name"]: str(one["id"]) for one in document["agents"]}.items() <= ids.items()
    leaf = certificate_file(lab.fleet.certificate_authority, pool_leaf(lab.machines["bouncer2"]))
    (one,) = (
        one for one in document["certificates"] if one["name"] == "clients/pem_agent_pool@bouncer2"
    )
    left = (ends(leaf) - datetime.now(UTC)).total_seconds() / 86400
    assert one["days_left"] == pytest.approx(left, abs=0.01)


def test_the_document_holds_no_secret(lab: Lab) -> None:
    done = status("--json")
    password = lab.fleet.pem_server.admin_password.get_secret_value()
    key = lab.run("bouncer1", "cat /etc/pgbouncer/tls/server.key").splitlines()[1]
    verifier = lab.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'pem_admin1'")
    for secret in (password, key, verifier):
        assert secret
        assert secret not in done.stdout + done.stderr
    assert "PRIVATE" not in done.stdout


FILES = (
    "find /etc /usr/edb /var/lib/postgresql -xdev -type f -not -path '*/base/*' -not -path '*/pg_*'"
    " -not -path '*/global/*' -not -name '*.pid' -not -name 'postmaster.*'"
    " -printf '%i %m %u %T@ %p\\n' | sort;"
    " systemctl show -p ActiveEnterTimestampMonotonic -p MainPID"
    " pgbouncer postgresql@17-main pemagent 2>/dev/null"
)


def test_a_look_changes_nothing_on_any_host(lab: Lab) -> None:
    before = {name: lab.run(name, FILES) for name in lab.machines}
    assert status().returncode == 0
    assert {name: lab.run(name, FILES) for name in lab.machines} == before


@contextmanager
def undone(lab: Lab, name: str, do: str, undo: str) -> Iterator[None]:
    lab.run(name, do)
    try:
        yield
    finally:
        lab.run(name, undo)


def test_a_host_without_power_is_told_within_seconds_and_hides_no_other(lab: Lab) -> None:
    with lab.without("bouncer2"):
        code, document = told("--no-drift")
        assert code == 1
        told_of = [(one["where"], one["what"]) for one in document["problems"]]
        assert ("bouncer2", "it does not answer by ssh") in told_of
        assert document["seconds"] < 15
        assert {one["host"]: one["answers"] for one in document["poolers"]} == {
            "bouncer1": True,
            "bouncer2": False,
        }
        assert document["servers"][0]["answers"]


def test_a_host_that_hangs_is_told_within_seconds_too(lab: Lab) -> None:
    lab.command("pause", "agent3")
    try:
        code, document = told("--no-drift")
    finally:
        lab.command("resume", "agent3")
    assert code == 1
    assert {"level": "error", "where": "agent3", "what": "it does not answer by ssh"} in document[
        "problems"
    ]
    assert document["seconds"] < 15


def test_a_stopped_pooler_is_told(lab: Lab) -> None:
    with undone(lab, "bouncer1", "systemctl stop pgbouncer", "systemctl start pgbouncer"):
        within(10, "told", problem("bouncer1", "pgbouncer does not run"))
        assert problem("bouncer1", "the console of PgBouncer does not answer")()


def test_a_stopped_agent_is_told(lab: Lab) -> None:
    with undone(lab, "agent2", "systemctl stop pemagent", "systemctl start pemagent"):
        within(10, "its service is told", problem("agent2", "pemagent does not run"))
        within(60, "its way is told", problem("agent2", "through no pooler"))


def test_a_paused_pooler_is_told(lab: Lab) -> None:
    ask = "runuser -u postgres -- psql -Xq -U pgbouncer -d pgbouncer -h /run/postgresql -p 6432 -c"
    with undone(lab, "bouncer1", f"cd /; {ask} 'PAUSE pem'", f"cd /; {ask} 'RESUME pem'"):
        assert problem("bouncer1", "paused: pem")()


@pytest.mark.parametrize(
    ("column", "kind"), [("alert_blackout", "manual"), ("auto_alert_blackout", "automatic")]
)
def test_an_agent_without_alerts_is_told(lab: Lab, column: str, kind: str) -> None:
    lab.sql(f"UPDATE pem.agent SET {column} = true WHERE description = 'agent1'")
    try:
        assert problem("agent1", f"PEM raises no alerts: {kind} blackout")()
    finally:
        lab.sql(f"UPDATE pem.agent SET {column} = false WHERE description = 'agent1'")


def test_a_rule_that_postgres_cannot_read_is_told_with_its_line(lab: Lab) -> None:
    path = lab.sql("SHOW hba_file")
    lines = len(lab.on("pem1").file(path).content_string.splitlines())
    do, undo = f"cp -p {path} /run/hba && echo nonsense >> {path}", f"mv /run/hba {path}"
    with undone(lab, "pem1", do, undo):
        assert problem("pem1", f"pg_hba.conf, line {lines + 1}: ")()
        assert problem("pem1", f"Postgres has not read {path} since it changed")()


# Before each reload a second: Postgres tells the times of its files in whole ones.
ALTER = """cd /; sudo -u postgres psql -Xq -o /dev/null \\
    -c 'ALTER SYSTEM {}' -c 'SELECT pg_sleep(1.1), pg_reload_conf()' -c 'SELECT pg_sleep(0.5)'"""


def test_a_setting_that_waits_for_a_restart_is_told(lab: Lab) -> None:
    # The old value first: a setting that just vanishes from the file goes on waiting.
    undo = "; ".join(
        ALTER.format(how) for how in ("SET max_connections = 100", "RESET max_connections")
    )
    with undone(lab, "pem1", ALTER.format("SET max_connections = 99"), undo):
        assert problem("pem1", "max_connections waits for a restart of Postgres")()


def test_a_file_that_somebody_edited_is_named(lab: Lab) -> None:
    path = "/etc/pgbouncer/hba.conf"
    with undone(
        lab, "bouncer2", f"cp -p {path} /run/ && echo '#' >> {path}", f"mv /run/hba.conf {path}"
    ):
        code, document = told()
    assert code == 1
    (one,) = document["drift"]
    assert (one["host"], one["deploy"], one["files"]) == ("bouncer2", "pgbouncer", [path])


def test_a_key_that_others_may_read_is_named_and_so_is_an_edited_agent_cfg(lab: Lab) -> None:
    key, cfg = "/etc/pem-fleet/agent/pem_agent_user1.key", "/usr/edb/pem/agent/etc/agent.cfg"
    do = (
        f"chmod 644 {key}; cp -p {cfg} /run/; sed -i s/^connect_timeout=.*/connect_timeout=9/ {cfg}"
    )
    with undone(lab, "agent1", do, f"chmod 600 {key}; mv /run/agent.cfg {cfg}"):
        _, document = told()
    files = {file for one in document["drift"] for file in one["files"]}
    assert files == {key, cfg}
    assert {one["host"] for one in document["drift"]} == {"agent1"}


def test_a_certificate_that_is_due_is_a_warning_and_ends_with_1(other_inventory) -> None:
    """As it is after two months: this inventory would renew a month and more before the end."""
    longer = other_inventory(
        'organization="pem-fleet lab")', 'organization="pem-fleet lab", leaf_days=300)'
    )
    done = status("--no-drift", inventory=longer)
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if line.startswith("  warning: ")]
    assert len(lines) == 8, done.stdout
    assert all(line.endswith(" ends in 90 days") for line in lines)


def test_a_certificate_that_is_not_the_operators_is_told(lab: Lab) -> None:
    path = "/etc/pem-fleet/agent/pem_agent_user1.crt"
    other = lab.on("agent2").file(path).content_string
    with undone(
        lab,
        "agent1",
        f"cp -p {path} /run/mine.crt; cat > {path} <<'EOF'\n{other}EOF",
        f"mv /run/mine.crt {path}",
    ):
        claim = "clients/pem_agent_user1@agent1 is not the one that the operator has"
        assert problem(f"agent1:{path}", claim)()
