"""A second run changes nothing, and a first one says before what it would do."""

import subprocess
import sys
from pathlib import Path

import pytest

from fleet import ROOT
from tests.lab.conftest import INVENTORY, Lab, pyinfra

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("deploy", ["ca", "pem_server", "pgbouncer", "agent"])
def test_a_second_run_changes_nothing(lab: Lab, deploy: str) -> None:  # noqa: ARG001  the lab must be up
    run = pyinfra("unchanged", f"deploys/{deploy}.py")
    assert run.returncode == 0, run.stdout
    assert ": 0 of " in run.stdout


@pytest.mark.parametrize("deploy", ["ca", "pem_server", "pgbouncer", "agent"])
def test_pyinfra_itself_plans_the_same_file(lab: Lab, deploy: str) -> None:  # noqa: ARG001  as above
    plan = subprocess.run(
        [
            str(Path(sys.executable).with_name("pyinfra")),
            INVENTORY,
            f"deploys/{deploy}.py",
            "--dry",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={"PYINFRA_PROGRESS": "off", "PATH": "/usr/bin:/bin"},
    )
    assert plan.returncode == 0, plan.stderr
    changing = [line for line in plan.stderr.splitlines() if " | " in line and "(" in line]
    assert changing == []
