"""Everything there is to check, in order; the last lines say what ran, what was skipped and why.

Run by `make test`. A stage that fails does not keep the next one from running, except that the
lab's tests need a lab.
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INVENTORY = "inventories/lab.py"
BIN = ROOT / ".venv" / "bin"
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|error)")
SKIPPED = re.compile(r"^SKIPPED .*", re.MULTILINE)


@dataclass
class Stage:
    """What became of one stage."""

    name: str
    ok: bool
    seconds: float
    counts: dict[str, int]
    skipped: list[str]


def run(name: str, *command: str) -> Stage:
    """Run one stage with its output shown."""
    print(f"\n=== {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    lines = []
    with subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    text = "".join(lines)
    counts = {what: int(number) for number, what in COUNTS.findall(lines[-1] if lines else "")}
    ok = process.returncode == 0
    return Stage(name, ok, time.monotonic() - started, counts, SKIPPED.findall(text))


def main() -> int:
    """Run all stages. Returns 0 when every one ran and passed."""
    stages = [
        run("format", "ruff", "format", "--check", "."),
        run("lint", "ruff", "check", "."),
        run("types", "mypy"),
        run("unit and rendered tests", "pytest", "-q", "tests", "--ignore=tests/lab"),
    ]
    lab = lab_is_ready()
    if lab.ok:
        stages.append(run("lab tests", "pytest", "-q", "--durations=10", "tests/lab"))
        stages.append(run("verify", "pytest", "-q", "tests/verify", f"--inventory={INVENTORY}"))
    else:
        stages.append(lab)

    print("\n=== what ran")
    for stage in stages:
        said = ", ".join(f"{number} {what}" for what, number in stage.counts.items())
        verdict = "ok" if stage.ok else "FAILED"
        print(f"{stage.name:24} {verdict:7} {stage.seconds:6.0f} s  {said}")
    reasons = [reason for stage in stages for reason in stage.skipped]
    print("\nskipped: " + ("nothing" if not reasons else ""))
    for reason in reasons:
        print(f"  {reason}")
    passed, failed, skipped = (
        sum(stage.counts.get(what, 0) for stage in stages)
        for what in ("passed", "failed", "skipped")
    )
    failed += sum(not stage.ok and not stage.counts.get("failed") for stage in stages)
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if all(stage.ok for stage in stages) else 1


def lab_is_ready() -> Stage:
    """Bring the lab up, and deploy what the checkout says into it; nothing new changes nothing."""
    up = run("lab", "python", "-m", "lab", "up")
    if up.ok:
        up = run("lab", "python", "-m", "fleet.run", "deploy", INVENTORY)
    if not up.ok:
        up.skipped.append("tests/lab, tests/verify: the lab did not come up, see above")
    return up


if __name__ == "__main__":
    sys.exit(main())
