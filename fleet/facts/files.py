"""Files on a host, several in one round trip. These facts never fail a host."""

import base64
from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


class FileState(TypedDict):
    """Owner, mode (as in `stat -c %a`) and content hash of a file."""

    user: str
    group: str
    mode: str
    sha256: str


class FileStates(FactBase[dict[str, FileState]]):
    """The state of each path that is a readable file; others are left out."""

    default = dict

    @override
    def command(self, paths: tuple[str, ...]) -> StringCommand:
        return StringCommand(
            "for f in",
            *(QuoteString(path) for path in paths),
            '; do [ -f "$f" ] &&'
            ' echo "$(stat -c "%U %G %a" "$f") $(sha256sum < "$f" | cut -c 1-64) $f"; done; true',
        )

    @override
    def process(self, output: list[str]) -> dict[str, FileState]:
        states: dict[str, FileState] = {}
        for line in output:
            user, group, mode, sha256, path = line.split(" ", 4)
            states[path] = {"user": user, "group": group, "mode": mode, "sha256": sha256}
        return states


class InodeState(TypedDict):
    """What a path is, a link itself and not what it leads to; kind as `stat -c %F` has it."""

    kind: str
    user: str
    group: str
    mode: str


class Inode(FactBase[InodeState | None]):
    """What is at a path; None when nothing is."""

    @override
    def command(self, path: str) -> StringCommand:
        return StringCommand(
            "LC_ALL=C stat -c '%F|%U|%G|%a'", QuoteString(path), "2>/dev/null; true"
        )

    @override
    def process(self, output: list[str]) -> InodeState | None:
        if not output:
            return None
        kind, user, group, mode = output[0].split("|")
        return {"kind": kind, "user": user, "group": group, "mode": mode}


class FileBytes(FactBase[bytes | None]):
    """A file's exact content; None when it is not there."""

    @override
    def command(self, path: str) -> StringCommand:
        quoted = QuoteString(path)
        return StringCommand(
            "if [ -f", quoted, "]; then echo there; base64 -w 0 <", quoted, "; fi; true"
        )

    @override
    def process(self, output: list[str]) -> bytes | None:
        return base64.b64decode("".join(output[1:])) if output[:1] == ["there"] else None
