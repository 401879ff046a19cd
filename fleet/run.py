"""pyinfra with its silent successes closed: what `make plan` and `make deploy` run.

    python -m fleet.run deploy INVENTORY DEPLOY...   one pyinfra run per file, in this order
    python -m fleet.run plan INVENTORY DEPLOY...     the same with --dry
    python -m fleet.run unchanged INVENTORY DEPLOY...  a deploy that fails when it changes anything
    python -m fleet.run restart INVENTORY            restart the poolers, one after the other

pyinfra itself ends with success when the inventory is missing or no host matches. Here both fail,
and so does a failed host. One run per file, because within one run the steps of different roles
are not in the order of the files; and one per pooler, so that never all of them change at once.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pyinfra.api.exceptions import InventoryError

from fleet import ROOT
from fleet.hosts import GROUPS, Fleet
from fleet.inventory import fleet_of

DEPLOYS = ("ca", "pem_server", "access", "pgbouncer", "agent")
RESTART = "deploys/pgbouncer_restart.py"
# A run for each host: pyinfra would go to all of them at once, and what goes wrong on one pooler,
# or interrupts it, is not to meet the others at the same time.
ONE_BY_ONE = ("deploys/pgbouncer.py", RESTART)
# Deploys that are not named like the group that they are for.
ROLLBACK = "deploys/agent_rollback.py"
GROUP_OF = {Path(ROLLBACK).stem: "agent"}


class RunError(Exception):
    """A run that must not count as a success; the text ends with a HINT."""


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns 0 when every file ran on its hosts without a failure."""
    options = _parser().parse_args(arguments)
    if options.verb == "restart":
        options.deploys = [RESTART]
    deploys = options.deploys or [f"deploys/{name}.py" for name in DEPLOYS]
    try:
        fleet = fleet_of(options.inventory)
        for deploy in deploys:
            _readable(deploy)
        for deploy, hosts in _where(fleet, options, deploys).items():
            one_by_one = deploy in ONE_BY_ONE and options.verb != "plan"
            for some in [[name] for name in hosts] if one_by_one else [hosts]:
                _run(options.verb, options.inventory, deploy, some)
    except (RunError, InventoryError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(verb: str, inventory: str, deploy: str, hosts: list[str]) -> None:
    limits = [word for name in hosts for word in ("--limit", name)]
    command = ["pyinfra", inventory, deploy, *limits]
    print(f"\n=== {deploy}", flush=True)
    if verb == "plan":
        _pyinfra([*command, "--dry"], deploy)
        return
    started = time.monotonic()
    document = json.loads(_pyinfra([*command, "-y", "--json"], deploy, capture=True) or "null")
    changed = changes(document, inventory)
    steps = document["results"]["operations"]
    print(
        f"=== {deploy}: {len(changed)} of {len(steps)} steps changed something,"
        f" on {_count(len(hosts), 'host')}, in {time.monotonic() - started:.1f} s",
        flush=True,
    )
    if verb == "unchanged" and changed:
        raise RunError(
            f"{deploy} was to change nothing, but did: {', '.join(changed)}"
            f"\nHINT: pyinfra {inventory} {deploy} -vv"
        )


def changes(document: Any, inventory: str) -> list[str]:  # noqa: ANN401  pyinfra's JSON
    """The names of the steps that changed a host, from pyinfra's own results.

    Raises RunError when there are no results, or no hosts in them.
    """
    if not document or not document["results"]["totals"]["hosts"]:
        raise RunError(f"{inventory}: nothing ran\nHINT: pyinfra {inventory} debug-inventory")
    return [step["name"] for step in document["results"]["operations"] if step["success"]]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _where(fleet: Fleet, options: argparse.Namespace, deploys: list[str]) -> dict[str, list[str]]:
    """Each deploy with the hosts it has something to do on, so that it logs in to no other.

    Raises RunError when --limit leaves a deploy that was named, or all of them, without a host.
    """
    members: dict[str, list[str]] = {
        group: [host.name for host in getattr(fleet, group).hosts] for group in GROUPS
    }
    members["access"] = members["pem_server"] if fleet.access is not None else []
    members[Path(RESTART).stem] = members["pgbouncer"]
    everywhere = [host.name for host in fleet.machines()]
    if ROLLBACK in deploys and (not options.limit or options.limit in members):
        example = next(iter(members["agent"]), "…")
        raise RunError(
            f"{ROLLBACK} goes to one host at a time, not to the group {options.limit or 'agent'}"
            f"\nHINT: make agent-rollback INVENTORY={options.inventory} HOST={example}"
        )
    wanted = members.get(options.limit, [options.limit]) if options.limit else everywhere
    group = {deploy: GROUP_OF.get(Path(deploy).stem, Path(deploy).stem) for deploy in deploys}
    hosts = {
        deploy: [name for name in members.get(group[deploy], everywhere) if name in wanted]
        for deploy in deploys
    }
    idle = [deploy for deploy in deploys if not hosts[deploy]]
    if idle == deploys or (idle and options.deploys):
        raise RunError(
            f"{options.inventory}: {', '.join(idle)} has nothing to do on"
            f" {options.limit or 'any host'}"
            f"\nHINT: {_why_idle(fleet, idle) or 'the hosts are ' + ', '.join(everywhere)}"
        )
    return {deploy: names for deploy, names in hosts.items() if names}


def _why_idle(fleet: Fleet, idle: list[str]) -> str:
    unwanted = fleet.access is None and [Path(deploy).stem for deploy in idle] == ["access"]
    return "Fleet(access=Access(…), …); see fleet/databases.py" if unwanted else ""


def _pyinfra(command: list[str], deploy: str, *, capture: bool = False) -> str:
    """Run pyinfra from the repository's root; its log goes to the terminal. Raises RunError."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        cwd=ROOT,
        env={**os.environ, "PYINFRA_PROGRESS": "off"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(
            f"{deploy} failed: see the lines above (pyinfra ended with {done.returncode})"
            "\nHINT: mend that and run again, it goes on where it stopped"
        )
    return done.stdout or ""


def _readable(deploy: str) -> None:
    if not (ROOT / deploy).is_file():
        there = ", ".join(
            sorted(f"deploys/{path.name}" for path in (ROOT / "deploys").glob("*.py"))
        )
        raise RunError(f"deploy {deploy} does not exist\nHINT: there are {there}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fleet.run", description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("plan", "deploy", "unchanged", "restart"))
    parser.add_argument("inventory", help="inventories/….py")
    parser.add_argument("deploys", nargs="*", help="deploys/….py; all of them when not given")
    parser.add_argument("--limit", help="a host or a group of the inventory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
