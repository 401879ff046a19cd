"""The lab's command line: python -m lab COMMAND, each with --help."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

from lab.backend import Backend, Report
from lab.errors import LabError
from lab.hosts import current_lab
from lab.machine import require_root, require_tools
from lab.nspawn import Nspawn
from lab.ssh import replace_by_ssh


def main() -> int:
    """Run one command; its exit code."""
    os.umask(0o022)  # what is written becomes hosts' files, and their users have to read them
    ours, command = _split(sys.argv[1:])
    arguments = _parser().parse_args(ours)
    arguments.command = command
    try:
        lab = current_lab()
        lab.choose(_names(arguments))  # a wrong name is said before anything else
        require_root()
        require_tools()
        arguments.run(Nspawn(lab), arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        # For ssh as ssh itself: any other exit code is the command's.
        return 255 if arguments.run is _ssh else 1
    except OSError as error:
        hint = "LAB_ROOT is a folder on a disk of this machine that root may write to"
        print(f"lab: {error}\nHINT: {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _up(lab: Backend, arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    reports = lab.up(lab.lab.choose(arguments.names))
    _say(reports)
    seconds = time.monotonic() - began
    print(f"lab {lab.lab.name} is up: {len(reports)} hosts in {seconds:.1f} s")


def _down(lab: Backend, _: argparse.Namespace) -> None:
    lab.down()


def _ls(lab: Backend, arguments: argparse.Namespace) -> None:
    states = lab.states()
    rows = [
        {"name": host.name, "address": host.address, "image": host.image, "state": states[name]}
        for name, host in lab.lab.hosts.items()
    ]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(f"{row['name']:13} {row['address']:15} {row['image']:12} {row['state']}")


def _ssh(lab: Backend, arguments: argparse.Namespace) -> None:
    (host,) = lab.lab.choose([arguments.name])
    if lab.states()[host.name] == "stopped":
        raise LabError(f"{host.name} does not run", hint=f".venv/bin/python -m lab up {host.name}")
    replace_by_ssh(lab.lab, host, arguments.command)


def _start(lab: Backend, arguments: argparse.Namespace) -> None:
    _say(lab.start(lab.lab.choose(arguments.names)))


def _restart(lab: Backend, arguments: argparse.Namespace) -> None:
    lab.stop(lab.lab.choose(arguments.names))
    _start(lab, arguments)


def _reset(lab: Backend, arguments: argparse.Namespace) -> None:
    _say(lab.reset(lab.lab.choose(arguments.names)))


def _heal(lab: Backend, _: argparse.Namespace) -> None:
    lab.heal()


def _logs(lab: Backend, arguments: argparse.Namespace) -> None:
    print(lab.log(lab.lab.hosts[arguments.name]), end="")


def _say(reports: list[Report]) -> None:
    for report in reports:
        if report.system != "running":
            units = f": {', '.join(report.failed_units)}" if report.failed_units else ""
            print(f"{report.host.name} is up, and systemd says {report.system}{units}")


def _names(arguments: argparse.Namespace) -> list[str]:
    return list(getattr(arguments, "names", [])) or [
        name for name in [getattr(arguments, "name", "")] if name
    ]


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Our own words, and after "--" those for the host."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="bring the lab up, all hosts or the named ones")
    up.add_argument("names", nargs="*", metavar="NAME")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="remove the lab; images and packages stay")
    down.set_defaults(run=_down)

    ls = commands.add_parser("ls", help="list the hosts and their states")
    ls.add_argument("--json", action="store_true", help="a list of objects")
    ls.set_defaults(run=_ls)

    ssh = commands.add_parser(
        "ssh",
        help="log in, or run a command; its exit code is ours",
        usage="%(prog)s [-h] NAME [-- COMMAND ...]",
        epilog="A COMMAND of one word is a line for the host's shell; of several words, a program"
        " and its arguments.",
    )
    ssh.add_argument("name", metavar="NAME")
    ssh.set_defaults(run=_ssh)

    verbs = {
        "start": (_start, "switch hosts on"),
        "stop": (_verb("stop"), "shut hosts down in good order"),
        "restart": (_restart, "stop, then start"),
        "kill": (_verb("kill"), "power loss: all processes end at once, the disk is kept"),
        "pause": (_verb("pause"), "stop all processes where they stand"),
        "resume": (_verb("resume"), "let paused hosts go on"),
        "cut": (_verb("cut"), "part the named hosts from all others; control keeps ssh to all"),
        "reset": (_reset, "start over with a fresh disk"),
    }
    for name, (function, text) in verbs.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("names", nargs="+", metavar="NAME")
        command.set_defaults(run=function)

    heal = commands.add_parser("heal", help="undo every cut")
    heal.set_defaults(run=_heal)

    logs = commands.add_parser("logs", help="a host's console and journal")
    logs.add_argument("name", metavar="NAME")
    logs.set_defaults(run=_logs)
    return parser


def _verb(name: str) -> Callable[[Backend, argparse.Namespace], None]:
    def function(lab: Backend, arguments: argparse.Namespace) -> None:
        getattr(lab, name)(lab.lab.choose(arguments.names))

    return function


if __name__ == "__main__":
    sys.exit(main())
