"""An agent that PEM's own registration made: moved onto the poolers with its id, and moved back.

The tests follow one another: agent3 is direct at first, and its new row in PEM is gone at the end.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from fleet import ROOT
from tests.lab.conftest import INVENTORY, PYINFRA, Lab, pyinfra, within

pytestmark = pytest.mark.lab

HOST = "agent3"
CONFIG = "/usr/edb/pem/agent/etc/agent.cfg"
WORKER = "/usr/edb/pem/agent/bin/pemworker"
DROP_IN = "/etc/systemd/system/pemagent.service.d/pem-fleet.conf"
HOLD = "/etc/systemd/system/pemagent.service.d/hold.conf"
HOME = "/etc/pem-fleet/agent"
DISPLAY_NAME = "db-17.example.com"

# As `pemworker --register-agent --pem-server pem1` does it, and as an operator's host looks.
REGISTER_DIRECTLY = f"""\
IFS= read -r PEM_SERVER_PASSWORD
export PEM_SERVER_PASSWORD PGSSLMODE=require
systemctl stop pemagent
rm -rf {HOME} {DROP_IN} {CONFIG} /root/.pem
systemctl daemon-reload
{WORKER} --register-agent --pem-server pem1 --pem-port 5432 --pem-user pem_admin1 \
    --display-name {DISPLAY_NAME}
"""

DECORATED = """\
# kept by hand, see the wiki
[BARMAN/1]
pem_host=not-this-one

[PEM/agent]
log_level=warning
our_own_key = stays
agent_ssl_crt = /root/.pem/agent{id}.crt
agent_ssl_key = /root/.pem/agent{id}.key
;pem_host=10.0.0.1
pem_port=5432
agent_id = {id}
pem_ssl_mode=require
pem_host=pem1

[WEBHOOK/chat]
enable_smtp=true"""


class Agent:
    """The direct agent: its number in PEM, and what its host and PEM say of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        password = lab.fleet.pem_server.admin_password.get_secret_value()
        done = lab.feed(HOST, REGISTER_DIRECTLY, password)
        assert done.returncode == 0, done.stderr
        named = f"SELECT max(id) FROM pem.agent WHERE description = '{DISPLAY_NAME}'"
        self.id = int(lab.sql(named))
        self.text = DECORATED.format(id=self.id)
        self.write(self.text)

    def write(self, text: str) -> None:
        """Another agent.cfg, which the agent runs on."""
        self.lab.run(HOST, f"cat > {CONFIG} <<'EOF'\n{text}\nEOF\ntruncate -s -1 {CONFIG}")
        self.lab.run(HOST, "systemctl restart pemagent")
        within(30, "it beats directly", self.beats_directly)

    def config(self) -> str:
        return self.lab.on(HOST).file(CONFIG).content_string

    def started(self) -> str:
        return self.lab.run(
            HOST, "systemctl show -p ActiveEnterTimestampMonotonic --value pemagent"
        )

    def heartbeat_age(self) -> float:
        return float(
            self.lab.sql(
                "SELECT extract(epoch FROM now() - last_heartbeat) FROM pem.agent_heartbeat"
                f" WHERE agent_id = {self.id}"
            )
            or "inf"
        )

    def backends(self) -> int:
        """Connections to the server that it holds by itself, as the role of its own."""
        return int(
            self.lab.sql(f"SELECT count(*) FROM pg_stat_activity WHERE usename = 'agent{self.id}'")
        )

    def pooled(self) -> int:
        """Its connections to poolers."""
        address = self.lab.machines[HOST].address
        return sum(
            row["addr"] == address
            for pooler in self.lab.fleet.pgbouncer.hosts
            for row in self.lab.ask(pooler.name, "SHOW CLIENTS")
        )

    def beats_directly(self) -> bool:
        return self.backends() > 0 and self.pooled() == 0 and self.heartbeat_age() < 5

    def is_back(self) -> bool:
        """On its former agent.cfg, and it beats; no pooler is asked."""
        return self.config() == self.text and self.backends() > 0 and self.heartbeat_age() < 5

    def assert_untouched_trial_over(self) -> None:
        """Nothing of a trial is left, but its backup."""
        assert self.config() == self.text
        host = self.lab.on(HOST)
        assert host.file(CONFIG).mode == 0o644
        for path in (DROP_IN, f"{HOME}/trial", f"{HOME}/candidate"):
            assert not host.file(path).exists, path
        timer = self.lab.on(HOST).run("systemctl is-active pem-fleet-agent-trial.timer")
        assert timer.stdout.strip() == "inactive"


@pytest.fixture(scope="module")
def agent(lab: Lab) -> Iterator[Agent]:
    old = lab.sql(f"SELECT max(id) FROM pem.agent WHERE description = '{HOST}' AND active")
    try:
        yield Agent(lab)
    finally:
        lab.run(HOST, f"systemctl stop pemagent; rm -rf {CONFIG} {HOME} {DROP_IN}")
        new = lab.sql(f"SELECT max(id) FROM pem.agent WHERE description = '{DISPLAY_NAME}'")
        lab.sql(f"DELETE FROM pem.agent WHERE description = '{DISPLAY_NAME}'")
        lab.sql(f"DROP ROLE IF EXISTS agent{new}")
    assert pyinfra("deploy", "deploys/agent.py", limit=HOST).returncode == 0
    assert lab.sql(f"SELECT max(id) FROM pem.agent WHERE description = '{HOST}'") == old


@contextmanager
def heartbeats_refused(lab: Lab, agent: Agent) -> Iterator[None]:
    """The pooled role logs in and reads, but its heartbeats for this agent are errors."""
    lab.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        f" IF NEW.agent_id = {agent.id} AND session_user = 'pem_agent_user1'"
        " THEN RAISE EXCEPTION 'planted failure'; END IF; RETURN NEW; END$$;"
        " CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON pem.agent_heartbeat"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    try:
        yield
    finally:
        lab.sql("DROP FUNCTION refuse CASCADE")


@contextmanager
def poolers_stopped(lab: Lab, agent: Agent) -> Iterator[None]:  # noqa: ARG001  as the others
    """PgBouncer runs on no pooler."""
    poolers = [host.name for host in lab.fleet.pgbouncer.hosts]
    try:
        for name in poolers:
            # At once: in good order it would wait for its clients.
            lab.run(name, "systemctl stop --no-block pgbouncer; systemctl kill -s KILL pgbouncer")
        yield
    finally:
        for name in poolers:
            lab.run(name, "systemctl start pgbouncer")


@contextmanager
def poolers_frozen(lab: Lab, agent: Agent) -> Iterator[None]:  # noqa: ARG001  as the others
    """The poolers' hosts stand still: their kernels take connections, nobody answers."""
    poolers = [host.name for host in lab.fleet.pgbouncer.hosts]
    try:
        lab.command("pause", *poolers)
        yield
    finally:
        lab.command("resume", *poolers)


HELD = """\
[Service]
ExecStartPre=timeout 15 sh -c 'until [ -e /run/go ]; do sleep 0.2; done'
"""


@contextmanager
def held_at_its_start(lab: Lab) -> Iterator[None]:
    """The agent does not start before there is /run/go: meanwhile the poolers can be broken."""
    lab.run(HOST, f"rm -f /run/go; mkdir -p {HOLD.rpartition('/')[0]}")
    lab.run(HOST, f"cat > {HOLD} <<'EOF'\n{HELD}EOF\nsystemctl daemon-reload")
    try:
        yield
    finally:
        lab.run(HOST, f"rm -f /run/go {HOLD}; systemctl daemon-reload")


@contextmanager
def poolers_out_of_reach(lab: Lab) -> Iterator[None]:
    """The agent's host cannot connect to any pooler."""
    poolers = " ".join(host.address for host in lab.fleet.pgbouncer.hosts)
    lab.run(HOST, f"for one in {poolers}; do ip route add unreachable $one; done")
    try:
        yield
    finally:
        lab.run(HOST, f"for one in {poolers}; do ip route del unreachable $one; done")


def test_an_agent_whose_poolers_cannot_be_reached_is_not_interrupted(
    lab: Lab, agent: Agent
) -> None:
    started = agent.started()
    with poolers_out_of_reach(lab):
        run = pyinfra("deploy", "deploys/agent.py", limit=HOST)
        assert run.returncode != 0
        assert "the agent stays direct: it cannot connect: " in run.stdout
    agent.assert_untouched_trial_over()
    assert not lab.on(HOST).file(f"{HOME}/backups").exists
    assert agent.started() == started
    assert agent.heartbeat_age() < 16 + 5
    assert agent.pooled() == 0


Breaks = Callable[[Lab, Agent], AbstractContextManager[None]]


@pytest.mark.parametrize(
    "broken",
    [heartbeats_refused, poolers_stopped, poolers_frozen],
    ids=["heartbeats are refused", "PgBouncer is stopped", "the poolers' hosts are frozen"],
)
def test_an_agent_on_trial_beats_directly_within_60_s_when_the_poolers_break(
    lab: Lab, agent: Agent, broken: Breaks
) -> None:
    with held_at_its_start(lab), _run() as run:
        within(180, "the trial begins", lambda: lab.on(HOST).file(f"{HOME}/trial").exists)
        began = time.monotonic()
        with broken(lab, agent):
            lab.run(HOST, "touch /run/go")
            left = began + 60 - time.monotonic()
            within(left, "it beats directly again", agent.is_back)
            said = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    assert f"no heartbeat of agent {agent.id} came through a pooler within 35 s" in said, said
    if broken is heartbeats_refused:
        assert "planted failure" in said, "the agent's own reason"
    assert "the former agent.cfg is back, it beats again" in said
    agent.assert_untouched_trial_over()


@pytest.mark.parametrize("power", ["stays", "is lost"])
def test_a_host_goes_back_by_itself_when_the_operators_machine_is_lost_and_its_power(
    lab: Lab, agent: Agent, power: str
) -> None:
    with heartbeats_refused(lab, agent), _run() as run:
        within(180, "the trial begins", lambda: lab.on(HOST).file(f"{HOME}/trial").exists)
        run.kill()
        if power == "is lost":
            with lab.without(HOST):
                pass
            assert lab.on(HOST).file(f"{HOME}/trial").exists, "it went down in mid-trial"
        within(60, "it beats directly again", agent.is_back)
    agent.assert_untouched_trial_over()


def test_a_run_undoes_the_trial_of_another_that_was_cut_off_and_then_moves_the_agent(
    lab: Lab, agent: Agent
) -> None:
    with heartbeats_refused(lab, agent), _run() as cut_off:
        within(180, "the trial begins", lambda: lab.on(HOST).file(f"{HOME}/trial").exists)
        cut_off.kill()
    run = pyinfra("deploy", "deploys/agent.py", limit=HOST)
    assert run.returncode == 0, run.stdout
    assert agent.pooled() == 1
    assert not lab.on(HOST).file(f"{HOME}/trial").exists


def _run() -> subprocess.Popen[str]:
    """A run of the deploy, which goes on while the test looks."""
    return subprocess.Popen(
        [PYINFRA, INVENTORY, "deploys/agent.py", "-y", "--limit", HOST],
        cwd=ROOT,
        env={**os.environ, "PYINFRA_PROGRESS": "off"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_agent_that_moved_keeps_its_id_and_everything_in_its_file(
    lab: Lab, agent: Agent
) -> None:
    within(30, "it beats through a pooler", lambda: agent.pooled() == 1)
    assert (agent.backends(), agent.heartbeat_age() < 30) == (0, True)

    papers = f"/root/.pem/agent{agent.id}"
    changed = {
        f"agent_ssl_crt = {papers}.crt": f"agent_ssl_crt = {HOME}/pem_agent_user1.crt",
        f"agent_ssl_key = {papers}.key": f"agent_ssl_key = {HOME}/pem_agent_user1.key",
        "pem_port=5432": "pem_port=6432,6432",
        "pem_ssl_mode=require": "pem_ssl_mode=verify-full",
        "pem_host=pem1": f"pem_host={_poolers_in(agent.config())}\nagent_user=pem_agent_user1"
        "\nconnect_timeout=10\nheartbeat_connection=false",
    }
    lines = [changed.get(line, line) for line in agent.text.split("\n")]
    assert agent.config() == "\n".join(lines)

    names = lab.sql(f"SELECT description FROM pem.agent WHERE id = {agent.id}")
    assert names == DISPLAY_NAME
    again = pyinfra("unchanged", "deploys/agent.py", limit=HOST)
    assert again.returncode == 0, again.stdout


def _poolers_in(text: str) -> str:
    """The poolers in the file, in the order that the agent's name decides."""
    lists = ("bouncer1,bouncer2", "bouncer2,bouncer1")
    return next(one for one in lists if f"\npem_host={one}\n" in text)


def test_the_backup_of_a_moved_agent_is_for_root_alone(lab: Lab, agent: Agent) -> None:
    newest = lab.run(HOST, f"ls -1d {HOME}/backups/*").splitlines()[-1]
    listing = lab.run(HOST, f"stat -c '%a %U %n' {newest} {newest}/*").splitlines()
    assert listing == [
        f"700 root {newest}",
        *(f"600 root {newest}/{name}" for name in ("agent.cfg", "certificate", "key", "paths")),
    ]
    assert lab.on(HOST).file(f"{newest}/agent.cfg").content_string == agent.text


def test_a_moved_agent_returns_to_its_backup(lab: Lab, agent: Agent) -> None:
    papers = " ".join(f"/root/.pem/agent{agent.id}.{kind}" for kind in ("crt", "key"))
    compared = f"sha256sum {papers}; stat -c '%a %U:%G' {papers}"
    before = lab.run(HOST, compared)
    lab.run(HOST, f"rm {papers}")
    run = pyinfra("deploy", "deploys/agent_rollback.py", limit=HOST)
    assert run.returncode == 0, run.stdout
    within(20, "it beats directly", agent.beats_directly)
    agent.assert_untouched_trial_over()
    assert lab.run(HOST, compared) == before
    again = pyinfra("unchanged", "deploys/agent_rollback.py", limit=HOST)
    assert again.returncode == 0, again.stdout


def test_an_agent_that_was_never_moved_has_nothing_to_return_to(lab: Lab) -> None:
    before = lab.run("agent1", f"cat {CONFIG}")
    run = pyinfra("deploy", "deploys/agent_rollback.py", limit="agent1")
    assert run.returncode != 0
    assert "this agent was never moved" in run.stdout
    assert lab.run("agent1", f"cat {CONFIG}") == before


def test_an_agent_with_a_spooler_stays_direct_and_the_run_says_so(agent: Agent) -> None:
    agent.write(agent.text.replace("our_own_key = stays", "enable_snmp = TRUE"))
    started, text = agent.started(), agent.config()
    run = pyinfra("unchanged", "deploys/agent.py", limit=HOST)
    assert run.returncode == 0, run.stdout
    assert "the agent stays direct: LISTEN of enable_snmp does not pass" in run.stdout
    assert (agent.started(), agent.config()) == (started, text)
    said = _status()
    assert (said["id"], said["way"], said["well"]) == (agent.id, "direct", True)
    assert said["words"].endswith(f"directly as agent{agent.id}, as it must with enable_snmp")
    agent.write(agent.text)


def _status() -> dict[str, object]:
    """What status says of the agent, by its name in the inventory."""
    command = [sys.executable, "-m", "fleet.status", INVENTORY, "--no-drift", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    agents: list[dict[str, object]] = json.loads(done.stdout)["agents"]
    return next(one for one in agents if one["name"] == HOST)


def test_an_inactive_agent_keeps_its_id_even_with_a_pemworker_that_gives_it_another(
    lab: Lab, agent: Agent
) -> None:
    lab.sql(f"UPDATE pem.agent SET active = false WHERE id = {agent.id}")
    with old_pemworker(lab):
        run = pyinfra("deploy", "deploys/agent.py", limit=HOST)
    assert run.returncode == 0, run.stdout
    assert f"\nagent_id = {agent.id}\n" in agent.config()
    assert "our_own_key = stays" in agent.config()
    rows = lab.sql(f"SELECT id, active FROM pem.agent WHERE id >= {agent.id} ORDER BY id")
    assert rows.splitlines() == [f"{agent.id}|t", f"{agent.id + 1}|f"]
    assert (agent.pooled(), agent.heartbeat_age() < 30) == (1, True)
    assert lab.on(HOST).file(f"{CONFIG}.before-pem-fleet").content_string == agent.text
    again = pyinfra("unchanged", "deploys/agent.py", limit=HOST)
    assert again.returncode == 0, again.stdout


def test_a_registration_that_was_cut_off_half_way_ends_with_the_old_id_and_one_active_row(
    lab: Lab, agent: Agent
) -> None:
    promised = f"{HOME}/agent_id"
    before = lab.sql("SELECT max(id) FROM pem.agent")
    lab.sql(f"UPDATE pem.agent SET active = false WHERE id = {agent.id}")
    active = f"SELECT id FROM pem.agent WHERE description = '{DISPLAY_NAME}' AND active"
    with old_pemworker(lab, seconds_after=20), _run() as cut_off:
        within(180, "pemworker has made a new row", lambda: lab.sql(active) != "")
        within(5, "and written its id", lambda: f"agent_id = {agent.id}\n" not in agent.config())
        cut_off.kill()
    new = lab.sql(active)
    assert int(new) > int(before)
    assert lab.on(HOST).file(promised).content_string == f"{agent.id}\n"
    assert agent.config().replace(" ", "").count(f"agent_id={new}\n") == 1

    run = pyinfra("deploy", "deploys/agent.py", limit=HOST)
    assert run.returncode == 0, run.stdout
    assert lab.sql(active) == str(agent.id)
    assert agent.config().replace(" ", "").count(f"\nagent_id={agent.id}\n") == 1
    assert not lab.on(HOST).file(promised).exists
    assert (agent.pooled(), agent.heartbeat_age() < 30) == (1, True)


@contextmanager
def old_pemworker(lab: Lab, seconds_after: int = 0) -> Iterator[None]:
    """A pemworker that gives an agent a new id, and goes on for some time after it did."""
    text = OLD_PEMWORKER.replace("SECONDS_AFTER", str(seconds_after))
    lab.run(HOST, f"mv {WORKER} {WORKER}.real && cat > {WORKER} <<'EOF'\n{text}EOF")
    lab.run(HOST, f"chmod 755 {WORKER}")
    try:
        yield
    finally:
        lab.run(HOST, f"mv {WORKER}.real {WORKER}")


OLD_PEMWORKER = f"""\
#!/bin/bash
# Does not know the key: it leaves `-o agent_id=…` out.
kept=()
while [ $# -gt 0 ]; do
    if [ "$1" = -o ] && [[ $2 == agent_id=* ]]; then shift 2; continue; fi
    kept+=("$1")
    shift
done
{WORKER}.real "${{kept[@]}}"
code=$?
[[ " ${{kept[*]}} " != *" --register-agent "* ]] || sleep SECONDS_AFTER
exit $code
"""
