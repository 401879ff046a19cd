"""A PEM server in a bad state: it is told, pg_hba.conf stays byte for byte, the next run heals.

Only Postgres' configuration directory is touched, never its data: the server runs all the time.
"""

from collections.abc import Iterator

import pytest

from tests.lab.conftest import Lab, within
from tests.lab.faults import CUT, deploy, full, in_effect, leftovers, read_only, refused, when

pytestmark = pytest.mark.lab

HOST = "pem1"
DEPLOY = "pem_server.py"
BY_HAND = "# changed by hand"


class Rules:
    """pg_hba.conf with a line too many in our block, and as it was before."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.path = lab.sql("SHOW hba_file")
        self.folder = self.path.rpartition("/")[0]
        self.healthy = self.sums()
        lab.run(HOST, f"sed -i '/^# BEGIN pem-fleet/a {BY_HAND}' {self.path}")
        self.edited = self.sums()
        assert self.edited != self.healthy

    def sums(self) -> str:
        """Every file of the directory with its content, owner and mode."""
        return self.lab.run(
            HOST,
            f"cd {self.folder} && find . ! -type d ! -name filling -exec stat -c '%n %U %a' {{}} +"
            " -exec sha256sum {} + | sort",
        )


@pytest.fixture
def rules(lab: Lab) -> Iterator[Rules]:
    """Something to write on the server; all is in order at the end, and Postgres never stopped."""
    started = lab.sql("SELECT pg_postmaster_start_time()")
    rules = Rules(lab)
    yield rules
    deploy(DEPLOY, HOST)
    assert rules.sums() == rules.healthy
    assert leftovers(lab, HOST) == ""
    assert lab.sql("SELECT pg_postmaster_start_time()") == started


def test_rules_that_cannot_be_written_stay_as_they_are(lab: Lab, rules: Rules) -> None:
    for fault, reason in (
        (read_only(rules.folder), "Read-only file system"),
        (full(rules.folder), "No space left on device"),
    ):
        with in_effect(lab, HOST, fault, f"umount {rules.folder}"):
            said = refused(DEPLOY, HOST)
            assert f"{rules.path} cannot be written: " in said
            assert reason in said
            assert f"HINT: findmnt -T {rules.path}" in said
            assert rules.sums() == rules.edited


def test_ssh_that_is_lost_while_the_rules_are_written_leaves_the_old_or_the_new_ones(
    lab: Lab, rules: Rules
) -> None:
    with when(lab, HOST, f"[ -e {rules.path}.pem-fleet-new ]", CUT):
        said = refused(DEPLOY, HOST)
    assert "the connection was lost" in said, said
    # The script goes on to its end without anybody who listens.
    within(60, "nothing is left of the writing", lambda: leftovers(lab, HOST) == "")
    assert rules.sums() in (rules.edited, rules.healthy)
