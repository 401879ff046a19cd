"""What runs, as systemd and the kernel tell it. These facts never fail a host."""

from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


class ServiceState(TypedDict):
    """A unit that runs, against the files it was started from.

    older_than: those of the asked files that changed after the unit was started.
    unread: those that changed, if only by their names, after systemd last started or reloaded it.
    needs_daemon_reload: a unit file or drop-in changed after systemd read it.
    open_files: the running process' soft limit of file descriptors, 0 when it is not known.
    """

    active: bool
    needs_daemon_reload: bool
    older_than: list[str]
    unread: list[str]
    open_files: int


class Service(FactBase[ServiceState]):
    """The state of a unit; not active when there is none or no systemd."""

    @staticmethod
    @override
    def default() -> ServiceState:
        return {
            "active": False,
            "needs_daemon_reload": False,
            "older_than": [],
            "unread": [],
            "open_files": 0,
        }

    @override
    def command(self, unit: str, files: tuple[str, ...] = ()) -> StringCommand:
        # systemd gives its times on the monotonic clock, in microseconds, and the time of day in
        # seconds only; the files' times have fractions. So they are reckoned back from now. A file
        # that takes another's place has a new time of change (%Z), and may have an old content.
        return StringCommand(
            "LC_ALL=C systemctl show -p ActiveState -p NeedDaemonReload"
            " -p ActiveEnterTimestampMonotonic -p StateChangeTimestampMonotonic -p MainPID",
            QuoteString(unit),
            '2>/dev/null; echo "now=$(date +%s.%N) $(cut -d " " -f 1 /proc/uptime)"; for f in',
            *(QuoteString(path) for path in files),
            '; do [ -e "$f" ] && echo "file=$(stat -c "%.Y %.Z" "$f") $f"; done;'
            " pid=$(systemctl show -p MainPID --value",
            QuoteString(unit),
            '2>/dev/null); [ "${pid:-0}" -gt 0 ] &&'
            ' awk \'/^Max open files/ {print "limit=" $4}\' "/proc/$pid/limits"; true',
        )

    @override
    def process(self, output: list[str]) -> ServiceState:
        said = [line.split("=", 1) for line in output if "=" in line]
        one = {key: value for key, value in said if key != "file"}
        now, uptime = (float(number) for number in one.get("now", "0 0").split())

        def time_of(name: str) -> float:
            return now - uptime + int(one.get(f"{name}TimestampMonotonic") or 0) / 1_000_000

        started, settled = time_of("ActiveEnter"), time_of("StateChange")
        files = [value.split(" ", 2) for key, value in said if key == "file"]
        limit = one.get("limit", "0")
        return {
            "active": one.get("ActiveState") in ("active", "reloading"),
            "needs_daemon_reload": one.get("NeedDaemonReload") == "yes",
            "older_than": [path for written, _, path in files if float(written) > started],
            "unread": [path for _, changed, path in files if float(changed) > settled],
            "open_files": int(limit) if limit.isdigit() else 0,
        }


class PresentUnits(FactBase[list[str]]):
    """Those of a unit and the instances of a template that run, or start at boot.

    Without systemd none. Names are without `.service`.
    """

    default = list

    @override
    def command(self, unit: str, template: str) -> StringCommand:
        one, several = f"{unit}.service", f"{template}@*.service"
        return StringCommand(
            "{ LC_ALL=C systemctl list-units --plain --no-legend --all"
            " --state=active,reloading,activating,deactivating",
            QuoteString(one),
            QuoteString(several),
            '| cut -d " " -f 1; for link in /etc/systemd/system/*.wants/*; do',
            'case "${link##*/}" in',
            # A pattern must stay one, so it is not quoted; a unit's name holds nothing to quote.
            f'{one}|{several}) echo "${{link##*/}}";; esac; done; }} 2>/dev/null | sort -u; true',
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        return [line.removesuffix(".service") for line in output]


class ReplacedBinaries(FactBase[list[str]]):
    """Those of the units whose process runs a program file that is not there any more.

    A package that was upgraded left it so: what runs is older than what is installed.
    """

    default = list

    @override
    def command(self, units: tuple[str, ...]) -> StringCommand:
        return StringCommand(
            "for unit in",
            *(QuoteString(unit) for unit in units),
            '; do pid=$(systemctl show -p MainPID --value "$unit" 2>/dev/null);'
            ' case $(readlink "/proc/${pid:-0}/exe" 2>/dev/null) in'
            ' *" (deleted)") echo "$unit";; esac; done; true',
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        return list(output)
