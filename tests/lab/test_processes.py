"""Several processes on one pooler: they share its port, stand in for each other, and restart."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from fleet import ROOT
from fleet.inventory import fleet_of
from fleet.platforms import pgbouncer
from fleet.pooler import consoles
from tests.lab.conftest import INVENTORY, Lab, killed_at, pyinfra, raw_pyinfra, within

pytestmark = pytest.mark.lab

POOLER = "bouncer2"
UNITS = ("pem-fleet-pgbouncer@1", "pem-fleet-pgbouncer@2")
SOCKETS = ("/run/pem-fleet-pgbouncer-1", "/run/pem-fleet-pgbouncer-2")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An inventory in which poolers have two processes, deployed for these tests."""
    text = (ROOT / INVENTORY).read_text()
    changed = text.replace(
        "server=server,\n",
        "server=server, processes=2, drain_seconds=3, log_connections=False,\n"
        '    stats_user="pem_stats",\n'
        '    stats_password=secret("LAB_STATS_PASSWORD", command=_password),\n',
    )
    assert changed != text
    path = tmp_path_factory.mktemp("two") / "lab.py"
    path.write_text(changed)
    try:
        run = pyinfra(
            "deploy", "deploys/pem_server.py", "deploys/pgbouncer.py", inventory=str(path)
        )
        assert run.returncode == 0, run.stdout
        yield str(path)
    finally:
        run = pyinfra("deploy", "deploys/pgbouncer.py")
        Lab(fleet_of(INVENTORY)).sql("DROP ROLE IF EXISTS pem_stats")
        assert run.returncode == 0, run.stdout


@pytest.fixture(scope="module")
def one(two: str) -> None:  # noqa: ARG001  it comes after the tests of two on both
    """bouncer1 as the lab's own inventory wants it, with the package's own unit."""
    run = pyinfra("deploy", "deploys/pgbouncer.py", limit="bouncer1")
    assert run.returncode == 0, run.stdout


def ask(lab: Lab, socket: str, show: str) -> list[dict[str, str]]:
    """What one process' console answers to its own OS user."""
    psql = f"psql -XA -P footer=off -U pgbouncer -d pgbouncer -p 6432 -h {socket}"
    columns, *rows = lab.run(POOLER, f"sudo -u postgres {psql} -c '{show}'").splitlines()
    return [dict(zip(columns.split("|"), row.split("|"), strict=False)) for row in rows]


def clients(lab: Lab, socket: str) -> int:
    """How many clients of database pem a process has."""
    return sum(client["database"] == "pem" for client in ask(lab, socket, "SHOW CLIENTS"))


@pytest.mark.usefixtures("two")
def test_both_processes_serve_and_the_packages_own_does_not(lab: Lab) -> None:
    held = []
    try:
        while len(held) < 50 and not all(clients(lab, socket) for socket in SOCKETS):
            held.append(lab.as_agent(POOLER))
        assert all(clients(lab, socket) for socket in SOCKETS), f"not with {len(held)} clients"
    finally:
        for connection in held:
            connection.close()
    states = [lab.on(POOLER).run(f"systemctl is-enabled {unit}") for unit in (*UNITS, "pgbouncer")]
    assert [state.stdout.strip() for state in states] == ["enabled", "enabled", "disabled"]
    assert lab.on(POOLER).run("systemctl is-active pgbouncer").stdout.strip() == "inactive"


def test_a_second_run_changes_nothing_and_fleet_asks_every_process(lab: Lab, two: str) -> None:
    run = pyinfra("unchanged", "deploys/pgbouncer.py", inventory=two, limit=POOLER)
    assert run.returncode == 0, run.stdout
    there = lab.run(POOLER, "ls -d /run/pem-fleet-pgbouncer-*").splitlines()
    settings = lab.fleet.pgbouncer.but(processes=2)
    fleet = lab.fleet.but(pgbouncer=settings, agent=lab.fleet.agent.but(via=settings))
    assert list(consoles(fleet, pgbouncer("debian", "distribution"))) == there


def test_status_and_verify_find_every_process_well(two: str) -> None:
    looks = [
        subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in (
            ("fleet.status", two),
            # Of verify what asks the processes; the rest is the same for one.
            ("pytest", "-q", "tests/verify/test_pgbouncer.py", f"--inventory={two}"),
        )
    ]
    status, verify = [look.communicate(timeout=300)[0] for look in looks]
    assert [look.returncode for look in looks] == [0, 0], f"{status}\n{verify}"
    for pooler in ("bouncer1", POOLER):
        assert all(f"{pooler}  {socket}" in status for socket in SOCKETS), status


@pytest.mark.usefixtures("two")
def test_a_request_to_cancel_reaches_the_query_at_whichever_process_it_arrives(lab: Lab) -> None:
    """The kernel chooses a process for each connection: of 12 requests some go astray."""
    for _ in range(12):
        with lab.as_agent(POOLER) as connection:
            threading.Timer(0.3, connection.cancel).start()
            started = time.monotonic()
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("SELECT pg_sleep(20)")
            assert time.monotonic() - started < 10


@pytest.mark.usefixtures("two")
def test_a_killed_process_comes_back_and_the_other_serves_meanwhile(lab: Lab) -> None:
    before = lab.run(POOLER, f"systemctl show -p MainPID --value {UNITS[0]}")
    lab.run(POOLER, f"kill -KILL {before}")
    assert lab.serves(POOLER)

    def returned() -> bool:
        now = lab.run(POOLER, f"systemctl show -p MainPID --value {UNITS[0]}")
        state = lab.on(POOLER).run(f"systemctl is-active {UNITS[0]}").stdout.strip()
        return state == "active" and now not in ("0", before)

    within(15, "systemd starts the killed process again", returned)


@pytest.mark.usefixtures("two")
def test_settings_are_written_for_each_process_and_run_in_each(lab: Lab) -> None:
    for socket in SOCKETS:
        settings = {row["key"]: row["value"] for row in ask(lab, socket, "SHOW CONFIG")}
        assert settings["log_connections"] == settings["log_disconnections"] == "0"
        assert settings["log_pooler_errors"] == "1"
        assert settings["stats_users"] == "pem_stats"
        assert settings["so_reuseport"] == "1"
        assert settings["peer_id"] == socket[-1]
        assert ask(lab, socket, "SHOW DATABASES")[0]["pool_size"] == "3"
    assert "pool_size 5 / 2 = 3 for each" in lab.run(POOLER, "cat /etc/pgbouncer/pgbouncer-2.ini")
    # What rotates the logs of the package rotates those of the processes.
    said = lab.run(POOLER, "logrotate --debug /etc/logrotate.d/postgresql-common 2>&1")
    assert all(f"/var/log/postgresql/pgbouncer-{n}.log" in said for n in (1, 2)), said


# Restarts.


@dataclass
class Load:
    """Short connections, one after the other in several threads, each with one query."""

    done: int = 0
    errors: list[str] = field(default_factory=list)
    longest_gap_seconds: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def one(self, connect: Callable[[], psycopg.Connection]) -> None:
        try:
            with connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            self.errors.append(str(error))
            return
        now = time.monotonic()
        self.longest_gap_seconds = max(self.longest_gap_seconds, now - self.last)
        self.done, self.last = self.done + 1, now


@contextmanager
def load(connect: Callable[[], psycopg.Connection], threads: int = 3) -> Iterator[Load]:
    """Load for the time of the block."""
    seen, over = Load(), threading.Event()

    def work() -> None:
        while not over.is_set():
            seen.one(connect)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield seen
    finally:
        over.set()
        for worker in workers:
            worker.join()


def to_both(lab: Lab) -> psycopg.Connection:
    """As an agent connects: to the first pooler of its list that answers."""
    hosts = [lab.machines[name] for name in (POOLER, "bouncer1")]
    return lab.as_agent(
        POOLER,
        host=",".join(host.name for host in hosts),
        hostaddr=",".join(host.address for host in hosts),
        port=",".join([str(lab.fleet.pgbouncer.listen_port)] * 2),
    )


def started(lab: Lab) -> list[str]:
    return [lab.run(POOLER, f"systemctl show -p MainPID --value {unit}") for unit in UNITS]


def test_a_rolling_restart_is_not_noticed_by_clients_that_come_and_go(lab: Lab, two: str) -> None:
    before, began = started(lab), time.monotonic()
    with (
        lab.as_agent(POOLER) as at_work,
        load(lambda: lab.as_agent(POOLER)) as alone,
        load(lambda: to_both(lab)) as both,
        ThreadPoolExecutor() as pool,
    ):
        # Longer than drain_seconds: its process waits for it.
        query = pool.submit(at_work.execute, "SELECT 'whole' FROM pg_sleep(8)")
        run = pyinfra("restart", inventory=two, limit=POOLER)
        assert run.returncode == 0, run.stdout
        assert query.result(timeout=60).fetchone() == ("whole",)
        assert all(new != old for new, old in zip(started(lab), before, strict=True))
    for name, seen in (("bouncer2 alone", alone), ("both poolers", both)):
        print(
            f"\n{name}: {seen.done} connections, {len(seen.errors)} errors,"
            f" longest gap {seen.longest_gap_seconds:.2f} s"
        )
        assert seen.errors == []
        assert seen.done > 20
    within(60, "every agent beats after the restart", lambda: lab.all_beat_since(began))


@pytest.mark.usefixtures("one")
def test_an_upgraded_program_is_told_and_restarted_while_the_other_pooler_serves(lab: Lab) -> None:
    # As a package's upgrade leaves it: another file under the same name.
    program = "/usr/sbin/pgbouncer"
    lab.run("bouncer1", f"cp -p {program} {program}.new && mv -f {program}.new {program}")
    told = "pgbouncer: the package was upgraded, and the old program still runs"
    run = pyinfra("unchanged", "deploys/pgbouncer.py", limit="bouncer1")
    assert run.returncode == 0, run.stdout
    assert told in run.stdout
    assert "HINT: make restart-poolers INVENTORY=… LIMIT=bouncer1" in run.stdout

    before = lab.run("bouncer1", "systemctl show -p MainPID --value pgbouncer")
    with load(lambda: to_both(lab)) as seen:
        run = pyinfra("restart", limit="bouncer1")
    assert run.returncode == 0, run.stdout
    assert lab.run("bouncer1", "systemctl show -p MainPID --value pgbouncer") != before
    print(f"\nboth poolers: {seen.done} connections, gap {seen.longest_gap_seconds:.2f} s")
    assert seen.errors == []
    assert told not in pyinfra("unchanged", "deploys/pgbouncer.py", limit="bouncer1").stdout


def test_a_run_killed_between_file_and_reload_is_healed_in_every_process(
    lab: Lab, two: str, tmp_path: Path
) -> None:
    changed = tmp_path / "lab.py"
    changed.write_text(Path(two).read_text().replace("processes=2,", "processes=2, pool_size=8,"))

    def sizes() -> list[str]:
        return [ask(lab, socket, "SHOW DATABASES")[0]["pool_size"] for socket in SOCKETS]

    killed_at(str(changed), "deploys/pgbouncer.py", POOLER, step="Limit of open files")
    assert sizes() == ["3", "3"]
    run = pyinfra("deploy", "deploys/pgbouncer.py", inventory=str(changed), limit=POOLER)
    assert run.returncode == 0, run.stdout
    assert sizes() == ["4", "4"]


@pytest.mark.usefixtures("one")
def test_a_restart_is_refused_while_files_are_not_what_the_inventory_says(
    lab: Lab, other_inventory: Callable[..., str]
) -> None:
    changed = other_inventory("server=server,\n", "server=server, pool_size=9,\n")
    before = lab.run("bouncer1", "systemctl show -p MainPID --value pgbouncer")
    run = pyinfra("restart", inventory=changed, limit="bouncer1")
    assert run.returncode != 0
    assert "is not what the inventory says; nothing was restarted" in run.stdout
    assert lab.run("bouncer1", "systemctl show -p MainPID --value pgbouncer") == before


@pytest.mark.usefixtures("lab")
def test_pyinfra_itself_does_not_restart_all_poolers_at_once() -> None:
    run = raw_pyinfra("deploys/pgbouncer_restart.py", "-y")
    assert run.returncode != 0
    assert "bouncer1, bouncer2 would restart at the same time" in run.stdout


# Who watches.


@pytest.fixture
def stats(lab: Lab, two: str) -> Callable[..., psycopg.Connection]:
    """stats(dbname=…): a connection to bouncer2 as pem_stats."""
    password = fleet_of(two).pgbouncer.stats_password
    assert password is not None

    def connect(**given: str) -> psycopg.Connection:
        return lab.connect(POOLER, user="pem_stats", password=password.get_secret_value(), **given)

    return connect


# All that change something; the program is Debian's, where KILL_CLIENT is mended.
ADMIN_COMMANDS = (
    *("PAUSE", "PAUSE pem", "SUSPEND", "RESUME", "DISABLE pem", "ENABLE pem", "KILL pem"),
    *("KILL_CLIENT 1", "RECONNECT", "WAIT_CLOSE", "RELOAD", "SET verbose = 1"),
    *("SHUTDOWN", "SHUTDOWN WAIT_FOR_CLIENTS", "SHUTDOWN WAIT_FOR_SERVERS"),
)


def test_the_stats_user_sees_figures_and_can_do_nothing_else(stats) -> None:
    with stats(dbname="pgbouncer") as connection:
        for show in ("STATS", "POOLS", "LISTS", "CLIENTS"):
            assert connection.execute(f"SHOW {show}").fetchall()
        for command in ADMIN_COMMANDS:
            with pytest.raises(psycopg.Error, match="admin access needed"):
                connection.execute(command)


def test_the_stats_user_comes_neither_through_the_pooler_nor_to_the_server(lab: Lab, stats) -> None:
    with pytest.raises(psycopg.OperationalError, match="no authentication method"):
        stats(dbname="pem")
    server = lab.fleet.pem_server.hosts[0]
    with pytest.raises(psycopg.OperationalError):
        stats(host=server.name, hostaddr=server.address, port="5432", dbname="postgres")
    limit = lab.sql("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'pem_stats'")
    assert limit == "0"
