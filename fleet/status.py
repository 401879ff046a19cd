"""One look at the whole fleet, and what somebody must see to.

    python -m fleet.status INVENTORY [--no-drift] [--json]

Reads only, over ssh: nothing is written, reloaded or restarted on any host. Ends with

    0  all is well
    1  something is not: each reason is a line under "Problems:", errors before warnings
    2  the inventory or the call is wrong, no host was asked

Warnings (a certificate that is due for renewal, a file that differs) end with 1 as well, so that 0
means that nothing is left to do. A monitoring system that tells the two apart reads `--json`.

--no-drift  leaves out the planning of all deploys, which takes most of the time
--json      one document: {"inventory", "asked_at" (ISO 8601), "seconds" (what the look took),
            "well" (true or false), "problems": [{"level": "error" | "warning", "where", "what"}],
            and the fields of fleet.findings.Findings by their names}. No secrets are in it.
"""

# pyinfra's connections are greenlets; its sockets and locks must be patched before anything else.
from gevent import monkey  # isort: skip

monkey.patch_all()  # isort: skip

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime

from pyinfra.api.exceptions import InventoryError

from fleet.inventory import fleet_of
from fleet.look import look
from fleet.table import text
from fleet.verdict import problems


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code that the module's text explains."""
    parser = argparse.ArgumentParser(prog="fleet.status", description=__doc__.splitlines()[0])
    parser.add_argument("inventory", help="inventories/….py")
    parser.add_argument("--no-drift", action="store_true", help="do not plan the deploys")
    parser.add_argument("--json", action="store_true", help="one document, for programs")
    options = parser.parse_args(arguments)
    try:
        fleet = fleet_of(options.inventory)
    except InventoryError as error:
        print(error, file=sys.stderr)
        return 2
    # What pyinfra would log of hosts that do not answer is among the findings.
    logging.getLogger("pyinfra").setLevel(logging.CRITICAL)
    os.environ["PYINFRA_PROGRESS"] = "off"
    asked_at, started = datetime.now(UTC), time.monotonic()
    findings = look(fleet, with_drift=not options.no_drift)
    seconds, found = time.monotonic() - started, problems(findings)
    if options.json:
        document = {
            "inventory": options.inventory,
            "asked_at": asked_at.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "well": not found,
            "problems": [dataclasses.asdict(problem) for problem in found],
            **dataclasses.asdict(findings),
        }
        print(json.dumps(document, indent=2))
    else:
        hosts = len(findings.machines)
        print(f"{text(findings, found)}\n\n{hosts} hosts asked in {seconds:.1f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
