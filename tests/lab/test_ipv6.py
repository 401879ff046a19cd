"""IPv6: a pooler and the PEM server that know each other, and are known, by such addresses."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fleet import ROOT
from tests.lab.conftest import INVENTORY, Lab, pyinfra

pytestmark = pytest.mark.lab

# Unique local addresses, on the lab's cable beside the others.
ADDRESSES = {"pem1": "fd00:77::11", "bouncer2": "fd00:77::22"}
DEPLOYS = (("ca", None), ("pem_server", None), ("pgbouncer", "bouncer2"))


def deploy(inventory: str) -> None:
    for name, limit in DEPLOYS:
        run = pyinfra("deploy", f"deploys/{name}.py", inventory=inventory, limit=limit)
        assert run.returncode == 0, run.stdout


@pytest.fixture
def six(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An inventory in which pem1 and bouncer2 have IPv6 addresses, deployed for one test."""
    text = (ROOT / INVENTORY).read_text()
    changed = text.replace(
        "address=one.address,\n", f"address={ADDRESSES}.get(one.name, one.address),\n"
    ).replace("agent_networks=(_lab.network,),", 'agent_networks=(_lab.network, "fd00:77::/64"),')
    assert changed.count("fd00:77::") == 3
    path = tmp_path_factory.mktemp("six") / "lab.py"
    path.write_text(changed)
    with ExitStack() as undo:
        # What was open between addresses that are gone would hang for minutes, or hours.
        gone = f"client_addr = '{ADDRESSES['bouncer2']}'"
        terminate = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {gone}"
        undo.callback(lab.sql, terminate)
        undo.callback(lab.run, "bouncer2", "systemctl restart pgbouncer")
        undo.callback(deploy, INVENTORY)
        for name, address in ADDRESSES.items():
            there = lab.run(name, f"ip -o address show to {lab.machines[name].address}")
            device = there.split()[1]
            lab.run(name, f"ip -6 address add {address}/64 dev {device} nodad")
            undo.callback(lab.run, name, f"ip -6 address del {address}/64 dev {device}")
        # For the pooler, the server's name leads to its IPv6 address alone.
        lab.run("bouncer2", "cp -p /etc/hosts /etc/hosts.before")
        # Written, not moved: PgBouncer's resolver reads the file again when its time is newer.
        restore = "cat /etc/hosts.before > /etc/hosts && rm /etc/hosts.before"
        undo.callback(lab.run, "bouncer2", restore)
        hosts = f"sed -E '/[[:space:]]pem1([[:space:]]|$)/s/^[^[:space:]]+/{ADDRESSES['pem1']}/'"
        lab.run("bouncer2", f"{hosts} /etc/hosts.before > /etc/hosts")
        deploy(str(path))
        # What the pooler has open by IPv4 would serve the next client as well.
        with lab.console("bouncer2") as console:
            console.execute("RECONNECT")
        yield str(path)


def test_a_client_and_the_database_are_reached_by_ipv6_with_names_and_addresses_checked(
    lab: Lab, six: str
) -> None:
    for host in ("bouncer2", ADDRESSES["bouncer2"]):
        said = lab.feed(
            "pem1",
            "IFS= read -r PGPASSWORD; export PGPASSWORD;"
            " psql -XAtq -c 'SELECT inet_client_addr(), inet_server_addr()'"
            f" 'host={host} hostaddr={ADDRESSES['bouncer2']} port=6432 user=pem_admin1 dbname=pem"
            " sslmode=verify-full sslrootcert=/etc/pem-fleet/server-ca.crt'",
            lab.fleet.pem_server.admin_password.get_secret_value(),
        )
        assert said.stdout.strip() == f"{ADDRESSES['bouncer2']}|{ADDRESSES['pem1']}", said.stderr
    rules = lab.run("bouncer2", "cat /etc/pgbouncer/hba.conf")
    assert "hostssl pem pem_agent_user1 fd00:77::/64 cert" in rules
    again = pyinfra("unchanged", "deploys/pgbouncer.py", inventory=six, limit="bouncer2")
    assert again.returncode == 0, again.stdout
