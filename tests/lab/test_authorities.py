"""From our own client CA to PEM's and back, while every agent beats; and renewal in both modes.

The tests are stages of one walk and run in this order. Agents restart when they get another
certificate; nothing else may cost them a connection.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from fleet.leaves import pool_leaf
from fleet.pki import certificate_file
from tests.lab.conftest import Lab, killed_at, pyinfra, within

pytestmark = pytest.mark.lab

POOLERS = ("bouncer1", "bouncer2")
POOL = "/etc/pgbouncer/tls/pem_agent_pool"
AGENT = "/root/.pem/pem_agent_user1"
PEM_CA = "/var/lib/postgresql/17/main/ca_certificate.crt"
PEM_CA_KEY = "/var/lib/postgresql/17/main/ca_key.key"
WORKER_LOG = "/var/log/pem/worker.log"

Inventory = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def ours_again() -> Iterator[None]:
    """However the walk ends, the lab is back where it began."""
    yield
    assert pyinfra("deploy").returncode == 0


def stage(other_inventory: Inventory, *names: str, leaf_days: int = 90) -> str:
    """The lab's inventory with these authorities for clients."""
    old = 'organization="pem-fleet lab"'
    return other_inventory(old, f"{old}, client_authorities={names!r}, leaf_days={leaf_days}")


def refusals(lab: Lab) -> dict[str, int]:
    """How often each agent could not connect, by its own log."""
    return {
        host.name: int(lab.run(host.name, f"grep -c 'cannot connect' {WORKER_LOG} || true"))
        for host in lab.fleet.agent.hosts
    }


def move(lab: Lab, inventory: str, *, seen_before: bool = False) -> None:
    """A full deploy; agents beat after it, none was refused.

    A second run changes nothing; that is not asked again of a stage that was seen before.
    """
    before = refusals(lab)
    run = pyinfra("deploy", inventory=inventory)
    assert run.returncode == 0, run.stdout
    moved = time.monotonic()
    within(60, "every agent beats after the move", lambda: lab.all_beat_since(moved))
    assert refusals(lab) == before
    if not seen_before:
        again = pyinfra("unchanged", inventory=inventory)
        assert again.returncode == 0, again.stdout


def issuer(lab: Lab, host: str, path: str) -> str:
    return lab.run(host, f"openssl x509 -noout -issuer -nameopt RFC2253 -in {path}")


def backends(lab: Lab) -> set[str]:
    """The processes of the server that serve agents."""
    query = "SELECT pid FROM pg_stat_activity WHERE usename = 'pem_agent_user1'"
    return set(lab.sql(query).split())


@contextmanager
def papers_of_agent1(lab: Lab, directory: Path) -> Iterator[dict[str, str]]:
    """The certificate that PEM gave to agent1, on this machine."""
    paths = {}
    for name, ending in (("sslcert", "crt"), ("sslkey", "key")):
        path = directory / f"agent1.{ending}"
        path.touch(mode=0o600)
        path.write_text(lab.on("agent1").file(f"{AGENT}.{ending}").content_string)
        paths[name] = str(path)
    yield {"user": "pem_agent_user1", **paths}
    for path in paths.values():
        Path(path).unlink()


def renew(lab: Lab, inventory: str, *deploys: str, papers: dict[str, str]) -> None:
    """Renew the pool's certificates; transactions that are open meanwhile go on.

    PgBouncer 1.24.1 compares the paths of its TLS files on RELOAD, not their contents: server
    connections that are there stay, new ones use the new certificate.
    """
    serial = f"openssl x509 -noout -serial -in {POOL}.crt"
    old = {name: lab.run(name, serial) for name in POOLERS}
    clients = {name: lab.connect_times(name) for name in POOLERS}
    assert sum(map(len, clients.values())) == 3
    with ExitStack() as stack:
        held = []
        for name in POOLERS:
            connection = stack.enter_context(lab.connect(name, **papers))
            connection.execute("BEGIN")
            held.append((connection, connection.execute("SELECT pg_backend_pid()").fetchone()))
        served = backends(lab)
        for deploy in deploys:
            run = pyinfra("deploy", deploy, inventory=inventory)
            assert run.returncode == 0, run.stdout
        assert all(lab.run(name, serial) != old[name] for name in POOLERS)
        for connection, pid in held:
            assert connection.execute("SELECT pg_backend_pid()").fetchone() == pid
            connection.execute("COMMIT")
            # Not another server connection after the transaction either.
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert {str(pid[0]) for _, pid in held if pid} <= backends(lab) & served
    assert {name: lab.connect_times(name) for name in POOLERS} == clients


def test_our_pool_certificate_is_renewed_and_no_client_or_backend_is_lost(
    lab: Lab, other_inventory: Inventory
) -> None:
    # What is not there is issued like what is due.
    for name in POOLERS:
        leaf = pool_leaf(lab.machines[name])
        certificate_file(lab.fleet.certificate_authority, leaf).unlink()
    deploys = ("deploys/ca.py", "deploys/pgbouncer.py")
    renew(lab, stage(other_inventory, "own"), *deploys, papers=lab.agent_papers())


def test_poolers_trust_pems_authority_beside_ours(lab: Lab, other_inventory: Inventory) -> None:
    move(lab, stage(other_inventory, "own", "pem"))
    for name in POOLERS:
        assert lab.run(name, "grep -c BEGIN /etc/pem-fleet/trusted-clients.crt") == "2"
        assert "pem-fleet lab client CA" in issuer(lab, name, f"{POOL}.crt")


def test_pems_authority_issues_and_ours_is_trusted_still(
    lab: Lab, other_inventory: Inventory, tmp_path: Path
) -> None:
    ids = "SELECT string_agg(id || description, ' ' ORDER BY id) FROM pem.agent WHERE active"
    before = lab.sql(ids)
    move(lab, stage(other_inventory, "pem", "own"))
    assert lab.sql(ids) == before, "every agent keeps its id, and there is no further one"
    for host, path in [(name, POOL) for name in POOLERS] + [("agent1", AGENT)]:
        assert "CN=PEM" in issuer(lab, host, f"{path}.crt")
    assert lab.serves("bouncer1"), "a certificate of ours"
    with (
        papers_of_agent1(lab, tmp_path) as papers,
        lab.connect("bouncer1", **papers) as connection,
    ):
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_pems_authority_alone_is_trusted(lab: Lab, other_inventory: Inventory) -> None:
    move(lab, stage(other_inventory, "pem"))
    for name in POOLERS:
        assert lab.run(name, "grep -c BEGIN /etc/pem-fleet/trusted-clients.crt") == "1"
        with pytest.raises(psycopg.OperationalError, match="unknown ca"):
            lab.as_agent(name)
    for bundle in ("root.crt", "root.crl"):
        path = f"/var/lib/postgresql/17/main/{bundle}"
        assert "pem-fleet" not in lab.run("pem1", f"cat {path}")
    assert lab.run("pem1", "find / -xdev -name '*.srl' 2>/dev/null") == ""
    assert lab.run("pem1", "find /tmp -name 'pem-fleet*'") == ""


def test_openssl_verifies_the_pools_certificate_for_a_client_alone(lab: Lab) -> None:
    # Not -x509_strict: PEM's CA says nothing of its key's usage, whatever it signs.
    for name in POOLERS:
        verify = "openssl verify -CAfile /etc/pem-fleet/trusted-clients.crt -purpose"
        assert lab.on(name).run(f"{verify} sslclient {POOL}.crt").succeeded
        assert lab.on(name).run(f"{verify} sslserver {POOL}.crt").failed
        key = lab.on(name).file(f"{POOL}.key")
        assert (key.user, oct(key.mode)) == ("postgres", "0o600")
    assert lab.run("bouncer1", f"sha256sum < {POOL}.key") != lab.run(
        "bouncer2", f"sha256sum < {POOL}.key"
    )


SEARCH = """\
cat > /run/pattern
grep -rlF -f /run/pattern /etc /root /home /tmp /var /usr/edb 2>/dev/null
rm /run/pattern
"""


@pytest.mark.parametrize(
    ("home", "path"), [("pem1", PEM_CA_KEY), *((name, f"{POOL}.key") for name in POOLERS)]
)
def test_a_key_is_on_its_own_host_alone(lab: Lab, home: str, path: str) -> None:
    text = lab.on(home).file(path).content_string
    line = next(line for line in text.splitlines() if not line.startswith(("-", "#")))
    found = {name: lab.feed(name, SEARCH, line).stdout.split() for name in lab.machines}
    assert found == {name: [path] if name == home else [] for name in lab.machines}
    for file in lab.fleet.certificate_authority.path.rglob("*"):
        assert not file.is_file() or line not in file.read_text()


def test_pems_certificate_of_the_pool_is_renewed_and_no_client_or_backend_is_lost(
    lab: Lab, other_inventory: Inventory, tmp_path: Path
) -> None:
    longer = stage(other_inventory, "pem", leaf_days=400)
    # A run before it is killed when the new certificate waits for its proof.
    step = "Write the configuration, once it is proven"
    killed_at(longer, "deploys/pgbouncer.py", "bouncer1", step)
    waits = f"sha256sum < {POOL}.key.pem-fleet-issued"
    key = lab.run("bouncer1", waits)
    assert lab.run("bouncer1", f"sha256sum < {POOL}.key") != key
    with papers_of_agent1(lab, tmp_path) as papers:
        renew(lab, longer, "deploys/pgbouncer.py", papers=papers)
    assert lab.run("bouncer1", f"sha256sum < {POOL}.key") == key, "the next run took what waited"
    assert lab.on("bouncer1").run(waits).failed


def test_a_step_that_would_lock_the_poolers_out_is_refused_before_it_is_made(
    lab: Lab, other_inventory: Inventory, tmp_path: Path
) -> None:
    """From PEM's CA back to ours; then straight to PEM's alone, with the step between left out."""
    move(lab, stage(other_inventory, "own", "pem"), seen_before=True)
    bundle = lab.run("pem1", "sha256sum /var/lib/postgresql/17/main/root.crt")
    run = pyinfra("deploy", "deploys/pem_server.py", inventory=stage(other_inventory, "pem"))
    assert run.returncode == 1, run.stdout
    assert "bouncer1 and bouncer2 log in" in run.stdout
    assert 'client_authorities=("pem", "own")' in run.stdout
    assert lab.run("pem1", "sha256sum /var/lib/postgresql/17/main/root.crt") == bundle

    with papers_of_agent1(lab, tmp_path) as papers:
        move(lab, stage(other_inventory, "own"), seen_before=True)
        for name in POOLERS:
            with pytest.raises(psycopg.OperationalError, match="unknown ca"):
                lab.connect(name, **papers)
        assert all(lab.serves(name) for name in POOLERS)
