"""How long the lab and the deploys take, measured in one run; figures are for this machine today.

Run by `make bench-deploy`. It takes the lab down and up again, from the cached image and packages.
With COLD=1 it also throws the image and the packages away first: a first `make lab-up`, less the
Python environment and the machine's packages. At the end a hundred agents, beside ansible-core
(tests/bench/hundred.py).

ONLY=lab leaves the hundred agents out. ONLY=hundred measures nothing else, in the lab as it is.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench import hundred

ROOT = Path(__file__).resolve().parents[1]
PYTHON = str(ROOT / ".venv" / "bin" / "python")
LAB_ROOT = Path(os.environ.get("LAB_ROOT") or "/var/lib/pem-fleet-lab")
INVENTORY = "inventories/lab.py"


def timed(*arguments: str) -> float:
    """Seconds that a `python -m …` took; the benchmark ends when it fails."""
    return hundred.seconds_of(" ".join(arguments), [PYTHON, "-m", *arguments])


def up() -> tuple[float, float, float]:
    """Seconds of the boot, of all deploys, and of the final table."""
    return (
        timed("lab", "up"),
        timed("fleet.run", "deploy", INVENTORY),
        timed("fleet.status", INVENTORY),
    )


def main() -> None:
    """Measure and print."""
    only = os.environ.get("ONLY", "")
    if only not in ("", "lab", "hundred"):
        sys.exit(f"ONLY is {only}, it can be lab or hundred\nHINT: make bench-deploy ONLY=hundred")
    table: list[tuple[str, float, str]] = []
    if only == "hundred":
        # A lab that is up stays as it is.
        timed("lab", "up")
    else:
        table += the_lab()
    if only != "lab":
        table += hundred.measure()
    for name, seconds, remark in table:
        print(f"{name:45} {seconds:6.1f} s   {remark}")


def the_lab() -> list[tuple[str, float, str]]:
    """Rows of seconds and remarks: from nothing to a fleet, and a second run."""
    rows: list[tuple[str, float]] = []
    timed("lab", "down")
    if os.environ.get("COLD") == "1":
        for folder in ("images", "packages"):
            shutil.rmtree(LAB_ROOT / folder, ignore_errors=True)
        rows.append(("cold: image, packages, boot, deploys, table", sum(up())))
        timed("lab", "down")
    boot, deploys, table = up()
    second = timed("fleet.run", "unchanged", INVENTORY)
    hosts = len(json.loads(_ls()))
    rows += [
        ("cached: boot, deploys, table", boot + deploys + table),
        (f"  boot of {hosts} hosts, until ssh answers", boot),
        ("  first run of all deploys", deploys),
        ("  table", table),
        ("second run of all deploys, 0 changes", second),
    ]
    return [(name, seconds, f"{seconds / second:.1f} x the second run") for name, seconds in rows]


def _ls() -> str:
    return subprocess.run(
        [PYTHON, "-m", "lab", "ls", "--json"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


if __name__ == "__main__":
    main()
