"""What `make verify` says of a fleet in which much is wrong."""

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from fleet import ROOT
from fleet.platforms import CLIENT_CA_FILE, SERVER_CA_FILE
from tests.lab.conftest import INVENTORY, Lab, undone, within

pytestmark = pytest.mark.lab

PYTEST = Path(sys.executable).with_name("pytest")
KEY, HBA = "/etc/pgbouncer/tls/server.key", "/etc/pgbouncer/hba.conf"
CFG = "/usr/edb/pem/agent/etc/agent.cfg"
FUNCTION = "FUNCTION pem_fleet.get_pool_auth(text)"


def test_each_fault_fails_the_tests_that_are_about_it_and_no_other(lab: Lab) -> None:
    faults = [
        ("bouncer1", f"chmod 644 {KEY}", f"chmod 600 {KEY} && systemctl reload pgbouncer"),
        # Everybody from everywhere, above our rules.
        (
            "bouncer2",
            f"cp -p {HBA} /run/ && sed -i '1i hostssl all all 0.0.0.0/0 trust' {HBA}"
            " && systemctl reload pgbouncer",
            f"mv /run/hba.conf {HBA} && systemctl reload pgbouncer",
        ),
        ("agent1", f"cp -p {CFG} /run/ && sed -i s/verify-full/require/ {CFG}",
         f"mv /run/agent.cfg {CFG}"),
        ("agent2", "systemctl disable -q pemagent", "systemctl enable -q pemagent"),
        # The certificate of another CA.
        (
            "agent3",
            f"cp -p {CLIENT_CA_FILE} /run/ && cat {SERVER_CA_FILE} > {CLIENT_CA_FILE}",
            f"mv /run/client-ca.crt {CLIENT_CA_FILE}",
        ),
        ("pem1", lab.psql("pem1", f"GRANT EXECUTE ON {FUNCTION} TO pem_admin1"),
         lab.psql("pem1", f"REVOKE EXECUTE ON {FUNCTION} FROM pem_admin1")),
    ]  # fmt: skip
    with ExitStack() as stack:
        for name, do, undo in faults:
            stack.enter_context(undone(lab, name, do, undo))
        within(10, "bouncer2 has read its rules", lambda: _lets_anybody_in(lab, "bouncer2"))
        done = subprocess.run(
            [PYTEST, "-q", "--tb=no", "tests/verify", f"--inventory={INVENTORY}"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1, done.stdout + done.stderr
    failed = re.findall(r"^(?:FAILED|ERROR) tests/verify/test_(\S+)", done.stdout, re.MULTILINE)
    assert sorted(failed) == [
        "agent.py::test_it_knows_all_poolers_and_checks_their_names[agent1]",
        "agent.py::test_it_runs_and_starts_at_boot[agent2]",
        "ca.py::test_a_certificate_verifies_for_its_own_purpose_only[agent3]",
        "ca.py::test_a_host_trusts_the_authorities_of_this_inventory[agent3-client]",
        "ca.py::test_a_private_key_is_its_owners_alone[bouncer1]",
        "pem_server.py::test_only_the_poolers_role_may_call_it[pem1]",
        "pgbouncer.py::test_its_console_is_closed_to_itself_unless_it_is_an_administrators_host[bouncer2]",
        "pgbouncer.py::test_nobody_comes_in_without_a_certificate[bouncer2]",
    ]


def _lets_anybody_in(lab: Lab, pooler: str) -> bool:
    user = lab.fleet.pem_server.agent_user
    address, port = lab.machines[pooler].address, lab.fleet.pgbouncer.listen_port
    asked = lab.on(pooler).run(
        f"cd / && psql -w -c 'SELECT 1'"
        f" 'host={address} port={port} dbname=pem user={user} sslmode=require'"
    )
    return asked.succeeded
