"""One look at the lab: its figures are those of psql and openssl, and each fault is told."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from fleet.leaves import pool_leaf
from fleet.pki import certificate_file
from tests.certificates import ends
from tests.lab.conftest import Lab, status, undone, within

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


def counted(lab: Lab) -> dict[str, dict[str, int]]:
    """What psql says of the server's connections, and each console of its pools."""
    poolers = {host.address: host.name for host in lab.fleet.pgbouncer.hosts}
    kinds = {"agents pooled": 0, "agents direct": 0, "poolers": 0}
    for row in lab.sql(
        "SELECT usename, host(client_addr) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend'"
    ).splitlines():
        user, address = row.split("|")
        if user.startswith("agent"):
            kinds["agents direct"] += 1
        elif address in poolers:
            kinds["agents pooled" if user == "pem_agent_user1" else "poolers"] += 1
    found = {"pem1": {kind: number for kind, number in kinds.items() if number}}
    for name in poolers.values():
        (socket,) = lab.sockets(name)
        pools = [row for row in lab.show(name, "POOLS", socket) if row["database"] == "pem"]
        # Servers that are being logged in, tested or cancelled are gone in a moment.
        found[name] = {
            figure: sum(int(pool[column]) for pool in pools for column in columns)
            for figure, columns in {
                "clients": ("cl_active", "cl_waiting"),
                "waiting": ("cl_waiting",),
                "server_connections": ("sv_active", "sv_idle", "sv_used"),
            }.items()
        }
    return found


def test_the_counts_are_those_of_pg_stat_activity_and_show_pools(lab: Lab) -> None:
    """With a full pool on bouncer1, and a client that waits for it."""
    looks = []

    def same() -> bool:
        before = counted(lab)
        _, document = told("--no-drift")
        (server,) = document["servers"]
        # Others are psql's own sessions, the look's among them.
        kinds = {kind: n for kind, n in server["connections"].items() if kind != "others"}
        said = {"pem1": kinds} | {
            pooler["host"]: {figure: pooler[figure] for figure in before[pooler["host"]]}
            for pooler in document["poolers"]
        }
        looks.append((before, said))
        return before == said

    with ExitStack() as stack:
        clients = [stack.enter_context(lab.as_agent("bouncer1")) for _ in range(6)]
        for client in clients:
            # Not waited for: whoever finds no server connection waits.
            client.pgconn.send_query(b"BEGIN")
        try:
            # Agents come and go: a look that fell between two beats.
            within(60, "the counts are those of psql and the console", same)
        finally:
            for client in clients:
                client.pgconn.finish()
    before, _ = looks[-1]
    assert before["bouncer1"]["waiting"] >= 1
    assert before["bouncer1"]["server_connections"] >= 5
    assert before["pem1"]["agents pooled"] >= 5


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


def test_what_somebody_changed_by_hand_is_named_by_host_step_and_file(lab: Lab) -> None:
    """A file, an agent.cfg, the mode of a key, a rule, a grant and an attribute."""
    hba, cfg = "/etc/pgbouncer/hba.conf", "/usr/edb/pem/agent/etc/agent.cfg"
    key = "/etc/pem-fleet/agent/pem_agent_user1.key"
    rules = lab.sql("SHOW hba_file")
    function = "FUNCTION pem_fleet.get_pool_auth(text)"
    edits = [
        (
            "bouncer2",
            f"cp -p {hba} /run/ && echo '#' >> {hba}",
            f"mv /run/hba.conf {hba} && systemctl reload pgbouncer",
        ),
        (
            "agent1",
            f"cp -p {cfg} /run/ && sed -i s/^connect_timeout=.*/connect_timeout=9/ {cfg}",
            f"mv /run/agent.cfg {cfg}",
        ),
        ("agent2", f"chmod 644 {key}", f"chmod 600 {key}"),
        (
            "pem1",
            f"cp -p {rules} /run/hba && sed -i '1i host pem all 192.0.2.0/24 reject' {rules}",
            f"mv /run/hba {rules}",
        ),
        (
            "pem1",
            lab.psql("pem1", f"REVOKE EXECUTE ON {function} FROM pgbouncer"),
            lab.psql("pem1", f"GRANT EXECUTE ON {function} TO pgbouncer"),
        ),
        (
            "pem1",
            lab.psql("pem1", "ALTER ROLE pem_agent_user1 NOLOGIN"),
            lab.psql("pem1", "ALTER ROLE pem_agent_user1 LOGIN"),
        ),
    ]
    with ExitStack() as stack:
        for name, do, undo in edits:
            stack.enter_context(undone(lab, name, do, undo))
        code, document = told()
    assert code == 1
    steps = {(one["host"], one["step"], *one["files"]) for one in document["drift"]}
    assert steps == {
        ("bouncer2", "PgBouncer | Write the configuration, once it is proven", hba),
        ("agent1", "Agent | Settings of agent.cfg", cfg),
        ("agent2", "Agent | Write the agent's certificate", key),
        ("pem1", "PEM server | Let the poolers in", rules),
        ("pem1", "PEM server | Function that PgBouncer asks"),
        ("pem1", "PEM server | Roles and grants of the pool"),
        # What follows from the files above.
        ("bouncer2", "PgBouncer | Reload if it runs on something else"),
        ("agent1", "Agent | Start, or restart on new settings"),
        ("pem1", "PEM server | Reload Postgres if it is behind"),
    }


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
