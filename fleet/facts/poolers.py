"""Which PgBouncers a host has, as systemd tells it, and who holds a port.

These facts never fail a host.
"""

import re
import shlex
from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


class PgBouncerUnit(TypedDict):
    """A service that runs PgBouncer. binary and ini are '' where its command line hides them.

    user: the OS user that systemd starts it as.
    """

    active: bool
    enabled: bool
    user: str
    binary: str
    ini: str


class PgBouncerUnits(FactBase[dict[str, PgBouncerUnit]]):
    """Every service named like PgBouncer or that holds `port`, without `.service`."""

    default = dict

    @override
    def command(self, port: int) -> StringCommand:
        # Of environments only what is a path: the rest is nobody's business.
        paths = r"s/^[[:space:]]*([A-Za-z_]+)=\"?(\/[^\" ]*)\"?[[:space:]]*$/variable=\1=\2/p"
        return StringCommand(
            "units() { systemctl list-unit-files --no-legend --plain --type=service '*pgbouncer*';"
            " systemctl list-units --all --no-legend --plain --type=service '*pgbouncer*';"
            " for p in $(ss -Hltnp",
            QuoteString(f"sport = :{port}"),
            "| grep -o 'pid=[0-9]*' | cut -d = -f 2); do ps -o unit= -p $p; done; };"
            " for u in $(units 2>/dev/null | awk '$1 ~ /[^@]\\.service$/ {print $1}' | sort -u);"
            ' do echo "unit=$u";'
            ' LC_ALL=C systemctl show -p ActiveState -p UnitFileState -p User -p ExecStart "$u";'
            ' { systemctl show -p Environment --value "$u" | tr " " "\\n";'
            ' for f in $(systemctl show -p EnvironmentFiles --value "$u" | sed "s/ (.*//");'
            f" do cat \"$f\" 2>/dev/null; done; }} | sed -nE '{paths}'; done; true",
        )

    @override
    def process(self, output: list[str]) -> dict[str, PgBouncerUnit]:
        units: dict[str, PgBouncerUnit] = {}
        for block in re.split(r"^unit=", "\n".join(output), flags=re.MULTILINE)[1:]:
            name, *lines = block.splitlines()
            said = dict(line.split("=", 1) for line in lines if not line.startswith("variable="))
            variables = dict(
                line.split("=", 2)[1:] for line in lines if line.startswith("variable=")
            )
            start = re.search(r"argv\[\]=(.*?) ; ", said.get("ExecStart", ""))
            binary, ini = _command_line(start[1] if start else "", variables)
            if binary.rpartition("/")[2] == "pgbouncer":
                units[name.removesuffix(".service")] = {
                    "active": said.get("ActiveState") in ("active", "activating", "reloading"),
                    "enabled": said.get("UnitFileState") == "enabled",
                    "user": said.get("User") or "root",
                    "binary": binary,
                    "ini": ini,
                }
        return units


def _command_line(text: str, variables: dict[str, str]) -> tuple[str, str]:
    """The program and the ini of an ExecStart, as PGDG's, whose ini stands in a variable."""
    known = re.sub(r"\$\{?(\w+)\}?", lambda name: variables.get(name[1], ""), text)
    try:
        binary, *arguments = shlex.split(known)
    except ValueError:
        return "", ""
    return binary, next((one for one in reversed(arguments) if one.startswith("/")), "")


class Holder(TypedDict):
    """A process that listens. unit: '' when systemd did not start it."""

    program: str
    pid: int
    unit: str


class PortHolders(FactBase[list[Holder]]):
    """Who listens on a TCP port, of any address; empty when nobody does, or `ss` is not there."""

    default = list

    @override
    def command(self, port: int) -> StringCommand:
        return StringCommand(
            "for p in $(ss -Hltnp",
            QuoteString(f"sport = :{port}"),
            "2>/dev/null | grep -o 'pid=[0-9]*' | cut -d = -f 2 | sort -un);"
            ' do echo "$p $(cat /proc/$p/comm) $(ps -o unit= -p $p)"; done; true',
        )

    @override
    def process(self, output: list[str]) -> list[Holder]:
        holders: list[Holder] = []
        for line in output:
            # A process that ended meanwhile has a number alone.
            if len(line.split()) < 2:
                continue
            pid, program, unit = (*line.split(), "")[:3]
            unit = unit.removesuffix(".service") if unit.endswith(".service") else ""
            holders.append({"program": program, "pid": int(pid), "unit": unit})
        return holders
