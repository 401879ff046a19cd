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

from fleet import ROOT
from fleet.heartbeats import FRESH_SECONDS
from fleet.leaves import pool_leaf
from fleet.pki import certificate_file
from tests.lab.conftest import INVENTORY, Lab, killed_at, pyinfra, status, within
from tests.lab.test_existing_agent import CONFIG, DISPLAY_NAME, DROP_IN, REGISTER_DIRECTLY
from tests.lab.watching import backends, lost, sampled

pytestmark = pytest.mark.lab

POOLERS = ("bouncer1", "bouncer2")
POOL = "/etc/pgbouncer/tls/pem_agent_pool"
AGENT = "/root/.pem/pem_agent_user1"
PEM_CA = "/var/lib/postgresql/17/main/ca_certificate.crt"
PEM_CA_KEY = "/var/lib/postgresql/17/main/ca_key.key"
OUR_PAPERS = "/etc/pem-fleet/agent"
WORKER_LOG = "/var/log/pem/worker.log"
IDS = "SELECT string_agg(id || description, ' ' ORDER BY id) FROM pem.agent WHERE active"

Inventory = Callable[..., str]


OWN = 'organization="pem-fleet lab"'


@pytest.fixture(scope="module", autouse=True)
def ours_again(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """However the walk ends, the lab is back where it began."""
    yield
    if pyinfra("deploy").returncode != 0:
        # It broke off where PEM's CA issues, and from there the way leads through both.
        both = tmp_path_factory.mktemp("both") / "lab.py"
        text = (ROOT / INVENTORY).read_text()
        both.write_text(text.replace(OWN, f'{OWN}, client_authorities=("own", "pem")'))
        assert pyinfra("deploy", inventory=str(both)).returncode == 0
        assert pyinfra("deploy").returncode == 0


def stage(other_inventory: Inventory, *names: str, leaf_days: int = 90) -> str:
    """The lab's inventory with these authorities for clients."""
    return other_inventory(OWN, f"{OWN}, client_authorities={names!r}, leaf_days={leaf_days}")


def refusals(lab: Lab) -> dict[str, int]:
    """How often each agent could not connect, by its own log."""
    return {
        host.name: int(lab.run(host.name, f"grep -c 'cannot connect' {WORKER_LOG} || true"))
        for host in lab.fleet.agent.hosts
    }


def move(lab: Lab, inventory: str, *, seen_before: bool = False) -> None:
    """A full deploy: every agent beats all the while, none is refused; then all is well.

    A second run changes nothing; that is not asked again of a stage that was seen before.
    """
    before = refusals(lab)
    with sampled(lab.heartbeat_ages) as ages:
        run = pyinfra("deploy", inventory=inventory)
        assert run.returncode == 0, run.stdout
        moved = time.monotonic()
        within(60, "every agent beats after the move", lambda: lab.all_beat_since(moved))
    assert max(max(one.values()) for one in ages) < FRESH_SECONDS
    assert refusals(lab) == before
    if not seen_before:
        again = pyinfra("unchanged", inventory=inventory)
        assert again.returncode == 0, again.stdout
    look = status("--no-drift", inventory=inventory)
    assert look.returncode == 0, look.stdout
    assert "Problems:\n  none\n" in look.stdout


def issuer(lab: Lab, host: str, path: str) -> str:
    return lab.run(host, f"openssl x509 -noout -issuer -nameopt RFC2253 -in {path}")


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


def pool_serials(lab: Lab) -> dict[str, int]:
    """The serial number of each pooler's certificate for the database, by openssl."""
    show = f"openssl x509 -noout -serial -in {POOL}.crt"
    return {name: int(lab.run(name, show).partition("=")[2], 16) for name in POOLERS}


def used_serials(lab: Lab) -> dict[str, set[int]]:
    """Those that Postgres saw when the poolers' present connections logged in."""
    used: dict[str, set[int]] = {name: set() for name in POOLERS}
    names = {lab.machines[name].address: name for name in POOLERS}
    for backend in backends(lab).by_pid.values():
        used[names[backend.pooler_address]].add(backend.certificate_serial)
    return used


def renew(lab: Lab, inventory: str, *deploys: str, papers: dict[str, str]) -> None:
    """Renew the pool's certificates: no client is lost, no transaction, and no server connection.

    From 1.24 on PgBouncer compares the paths of its TLS files on RELOAD, not their contents: server
    connections that are there stay, new ones use the new certificate. RECONNECT has all use it.
    """
    old, clients = pool_serials(lab), {name: lab.connect_times(name) for name in POOLERS}
    assert sum(map(len, clients.values())) == 3
    with sampled(lambda: backends(lab)) as seen, ExitStack() as stack:
        held = []
        for name in POOLERS:
            connection = stack.enter_context(lab.connect(name, **papers))
            connection.execute("BEGIN")
            held.append((connection, connection.execute("SELECT pg_backend_pid()").fetchone()))
        for deploy in deploys:
            run = pyinfra("deploy", deploy, inventory=inventory)
            assert run.returncode == 0, run.stdout
        new = pool_serials(lab)
        assert not set(new.values()) & set(old.values())
        for connection, pid in held:
            assert connection.execute("SELECT pg_backend_pid()").fetchone() == pid
            connection.execute("COMMIT")
        renewed = time.monotonic()
        within(60, "every agent beats after it", lambda: lab.all_beat_since(renewed))
    assert {name: lab.connect_times(name) for name in POOLERS} == clients
    assert lost(seen) == []
    assert {str(pid[0]) for _, pid in held if pid} <= seen[-1].by_pid.keys(), "after COMMIT too"
    assert all(old[name] in used for name, used in used_serials(lab).items())

    # The new certificates serve; and what RELOAD did not do is seen here where it is done.
    with sampled(lambda: backends(lab)) as seen:
        for name in POOLERS:
            with lab.console(name) as console:
                console.execute("RECONNECT")
            with lab.connect(name, **papers) as connection:
                connection.execute("SELECT 1")
        wanted = {name: {serial} for name, serial in new.items()}
        within(30, "Postgres sees the new certificates alone", lambda: used_serials(lab) == wanted)
    assert lost(seen)
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
    before = lab.sql(IDS)
    move(lab, stage(other_inventory, "pem", "own"))
    assert lab.sql(IDS) == before, "every agent keeps its id, and there is no further one"
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


def test_an_agent_with_papers_of_the_former_authority_is_refused_and_its_log_says_so(
    lab: Lab,
) -> None:
    """So the count of refusals that every move looks at does count."""
    before = refusals(lab)["agent2"]
    config = f"sed -i 's|{{}}/pem_agent_user1|{{}}/pem_agent_user1|' {CONFIG}"
    restart = " && systemctl restart pemagent"
    lab.run("agent2", config.format("/root/.pem", OUR_PAPERS) + restart)
    try:
        within(30, "agent2 is refused", lambda: refusals(lab)["agent2"] > before)
    finally:
        lab.run("agent2", config.format(OUR_PAPERS, "/root/.pem") + restart)
        restarted = time.monotonic()
        within(60, "agent2 beats again", lambda: lab.all_beat_since(restarted))


@contextmanager
def registered_directly(lab: Lab, host: str) -> Iterator[int]:
    """An agent that PEM's own registration made, under a new id; at the end it is gone."""
    password = lab.fleet.pem_server.admin_password.get_secret_value()
    done = lab.feed(host, REGISTER_DIRECTLY, password)
    assert done.returncode == 0, done.stderr
    lab.run(host, "systemctl start pemagent")
    named = f"FROM pem.agent WHERE description = '{DISPLAY_NAME}'"
    agent_id = int(lab.sql(f"SELECT max(id) {named}"))
    try:
        yield agent_id
    finally:
        lab.run(host, f"systemctl stop pemagent; rm -rf {CONFIG} {OUR_PAPERS} {DROP_IN}")
        lab.sql(f"DELETE {named}")
        lab.sql(f"DROP ROLE IF EXISTS agent{agent_id}")


def test_new_hosts_and_an_agent_that_was_direct_get_pems_certificates_in_one_deploy(
    lab: Lab, other_inventory: Inventory
) -> None:
    inventory, before = stage(other_inventory, "pem"), lab.sql(IDS)
    lab.command("reset", "agent3", "bouncer2")
    with registered_directly(lab, "agent2") as agent_id:
        with_the_direct_one = lab.sql(IDS)
        run = pyinfra("deploy", inventory=inventory)
        assert run.returncode == 0, run.stdout
        for host, path in (("bouncer2", POOL), ("agent2", AGENT), ("agent3", AGENT)):
            assert "CN=PEM" in issuer(lab, host, f"{path}.crt")
        assert lab.on("agent3").file(f"{OUR_PAPERS}/pem_agent_user1.crt").exists is False
        assert lab.config("agent2").agent_id == agent_id
        assert lab.config("agent2").user == "pem_agent_user1"
        assert lab.sql(IDS) == with_the_direct_one, "every agent keeps its id"
        look = status("--no-drift", inventory=inventory)
        assert look.returncode == 0, look.stdout
    run = pyinfra("deploy", "deploys/agent.py", inventory=inventory, limit="agent2")
    assert run.returncode == 0, run.stdout
    assert lab.sql(IDS) == before


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
