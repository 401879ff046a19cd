"""The running lab, as the fleet's tests see it: hosts over ssh, databases by psycopg."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from pyinfra.api.exceptions import InventoryError

from fleet import ROOT
from fleet.inventory import fleet_of
from tests.site import Site

INVENTORY = "inventories/lab.py"
PYINFRA = str(Path(sys.executable).with_name("pyinfra"))


class Lab(Site):
    """The lab that is up, with the fleet deployed into it."""

    def ask(self, name: str, show: str) -> list[dict[str, str]]:
        """A SHOW of the admin console of a pooler, by the administrator's way in."""
        with self.console(name) as connection:
            answer = connection.execute(show)
            columns = [column.name for column in answer.description or ()]
            return [dict(zip(columns, map(str, row), strict=True)) for row in answer.fetchall()]

    def console(self, name: str) -> psycopg.Connection:
        server = self.fleet.pem_server
        return self.connect(
            name,
            dbname="pgbouncer",
            user=server.admin_user,
            password=server.admin_password.get_secret_value(),
        )

    def feed(self, name: str, script: str, secret: str) -> subprocess.CompletedProcess[str]:
        """A shell script on a host, as root, with a secret on its standard input."""
        command = ["ssh", name, "--", "sudo", "sh", "-c", script]
        return subprocess.run(
            [sys.executable, "-m", "lab", *command],
            cwd=ROOT,
            input=secret + "\n",
            capture_output=True,
            text=True,
            check=False,
        )

    def command(self, *arguments: str) -> None:
        """A command of the lab, such as `kill bouncer1`."""
        for name in arguments[1:]:
            self.hang_up(name)
        subprocess.run([sys.executable, "-m", "lab", *arguments], cwd=ROOT, check=True)

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """A host without power, for the time of the block."""
        self.command("kill", name)
        try:
            yield
        finally:
            self.command("start", name)

    def heartbeat_ages(self) -> dict[str, float]:
        """The age of each pooled agent's last heartbeat, in seconds."""
        rows = self.sql(
            "SELECT description, extract(epoch FROM now() - last_heartbeat) FROM pem.agent"
            " JOIN pem.agent_heartbeat ON agent_id = id"
        )
        ages = dict(row.split("|") for row in rows.splitlines())
        return {host.name: float(ages[host.name]) for host in self.fleet.agent.hosts}

    def all_beat_since(self, started: float) -> bool:
        """Whether every agent beat after a moment of time.monotonic()."""
        return max(self.heartbeat_ages().values()) < time.monotonic() - started

    def serves(self, pooler: str) -> bool:
        """Whether a pooler takes an agent through to the database."""
        try:
            with self.as_agent(pooler) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def connect_times(self, pooler: str) -> set[tuple[str, str]]:
        """The agents that are clients of a pooler, and since when."""
        agents = {host.address for host in self.fleet.agent.hosts}
        return {
            (row["addr"], row["connect_time"])
            for row in self.ask(pooler, "SHOW CLIENTS")
            if row["addr"] in agents
        }


def within(seconds: float, claim: str, holds: Callable[[], bool]) -> float:
    """Wait until something holds; the seconds it took. Fails with the claim when time is up."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > seconds:
            pytest.fail(f"not within {seconds:.0f} s: {claim}")
        time.sleep(0.5)
    return time.monotonic() - started


@contextmanager
def undone(lab: Lab, name: str, do: str, undo: str) -> Iterator[None]:
    """A command on a host, and one that undoes it after the block."""
    lab.run(name, do)
    try:
        yield
    finally:
        lab.run(name, undo)


def pyinfra(
    verb: str, *deploys: str, inventory: str = INVENTORY, limit: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m fleet.run`, its output kept."""
    limits = ["--limit", limit] if limit else []
    return _run([sys.executable, "-m", "fleet.run", verb, inventory, *deploys, *limits])


def status(*options: str, inventory: str = INVENTORY) -> subprocess.CompletedProcess[str]:
    """`python -m fleet.status`, its output kept."""
    return subprocess.run(
        [sys.executable, "-m", "fleet.status", inventory, *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def raw_pyinfra(
    deploy: str, *options: str, inventory: str = INVENTORY
) -> subprocess.CompletedProcess[str]:
    """pyinfra itself, its output kept."""
    return _run([PYINFRA, inventory, deploy, *options])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYINFRA_PROGRESS": "off"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )


def killed_at(inventory: str, deploy: str, limit: str, step: str) -> None:
    """Run pyinfra and kill it, without notice, when it says that it begins a step."""
    with subprocess.Popen(
        [PYINFRA, inventory, deploy, "-y", "--limit", limit],
        cwd=ROOT,
        env={**os.environ, "PYINFRA_PROGRESS": "off"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        for line in run.stderr or ():
            if step in line:
                run.kill()
                return
    pytest.fail(f"{deploy} never came to the step {step!r}")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    try:
        fleet = fleet_of(INVENTORY)
    except InventoryError as error:
        pytest.fail(f"the lab's tests cannot run: {error}", pytrace=False)
    lab = Lab(fleet)
    yield lab
    lab.close()


@pytest.fixture
def other_inventory(tmp_path: Path) -> Callable[..., str]:
    """A copy of the lab's inventory with a change, as the path of a file."""

    def write(old: str, new: str) -> str:
        text = (ROOT / INVENTORY).read_text()
        assert old in text
        path = tmp_path / "lab.py"
        path.write_text(text.replace(old, new))
        return os.fspath(path)

    return write
