"""Whole files, and our parts of others' files: validated first, then replaced at once."""

import base64
import hashlib
import shlex
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.files import FileState, FileStates
from fleet.operations.commands import fail, shell

# A file is written under this ending first, checked there, and renamed.
CANDIDATE = ".pem-fleet-new"
# The file as it was, while a replaced one is on trial.
UNDO = ".pem-fleet-old"
# A file whose trial was cut off, when the old one takes its place again.
CUT_OFF = ".pem-fleet-cut-off"
BACKUP = ".before-pem-fleet"
# Every file of ours that could be taken for somebody else's says so in its first lines.
SIGNATURE = "pem-fleet"


@dataclass(frozen=True)
class File:
    """A file as it should be on a host.

    content: text, secret text, or the path of a file on the operator's machine, read when the
        operation runs (a key that another deploy makes).
    keep_foreign: a file there that is not ours is kept beside it, ending in `.before-pem-fleet`.
    """

    path: str
    content: str | SecretStr | Path
    user: str = "root"
    group: str = "root"
    mode: str = "644"
    keep_foreign: bool = False

    def text(self) -> bytes:
        """The content's bytes. Raises FileNotFoundError when an operator's file is not there."""
        if isinstance(self.content, Path):
            return self.content.read_bytes()
        if isinstance(self.content, SecretStr):
            return self.content.get_secret_value().encode()
        return self.content.encode()


@operation()
def put(files: tuple[File, ...], check: str = "") -> Generator[PyinfraCommand, None, None]:
    """Bring files to a host together: all of them are replaced, or none.

    Each is written under a second name with its final owner and mode, its content by standard
    input, so that it is in no argument list, no log and never wider than its mode. Then `check`, a
    piece of shell, may look at the candidates (path + `.pem-fleet-new`); when it fails, they are
    removed and what was there stays.
    """
    try:
        texts = {file.path: file.text() for file in files}
    except FileNotFoundError as missing:
        yield fail(f"{missing.filename} does not exist\nHINT: pyinfra INVENTORY deploys/ca.py")
        return
    states = host.get_fact(FileStates, paths=tuple(texts))
    if all(_same(states.get(file.path), file, texts[file.path]) for file in files):
        host.noop(f"{', '.join(texts)}: up to date")
        return
    for file in files:
        yield _write_candidate(file, texts[file.path])
    yield shell("\n".join(_replace(files, texts, check)))


def change(
    path: str, old: bytes, new: bytes, check: str = "", undo_check: str = ""
) -> Generator[PyinfraCommand, None, None]:
    """The commands that turn one content of a file into another, nothing when they are equal.

    Owner and mode stay. The first time, the file is kept as it was, ending in `.before-pem-fleet`.
    A file that was changed by somebody else since it was read is not touched.
    check: shell that may refuse the candidate. undo_check: shell that looks at the replaced file
    and prints what is wrong with it; when it prints something, the old file comes back.
    """
    if old == new:
        host.noop(f"{path}: up to date")
        return
    candidate = QuoteString(path + CANDIDATE)
    yield StringCommand(
        "cp -p", QuoteString(path), candidate, "&& base64 -d >", candidate, _stdin=_encoded(new)
    )
    q = shlex.quote
    file, kept, undo = q(path), q(path + BACKUP), q(path + UNDO)
    changed = q(f"{path} was changed by somebody else just now; run again")
    script = [
        *_start([path], {path: new}),
        f"echo '{_sha256(old)}  {path}' | sha256sum -c --quiet --status || die {changed}",
        check,
        f"[ -e {kept} ] || cp -p {file} {kept}",
        f"cp -p {file} {undo}",
        # What a link points to is replaced, not the link.
        f"real=$(readlink -f {file})",
        f'mv -f {q(path + CANDIDATE)} "$real"',
    ]
    if undo_check:
        script += [
            f"wrong=$({undo_check}) || wrong=${{wrong:-the check itself failed}}",
            'if [ -n "$wrong" ]; then',
            f'    mv -f {undo} "$real"',
            f'    die "{path} would be wrong, the old file is back: $wrong"',
            "fi",
        ]
    script.append(f"rm -f {undo}")
    yield shell("\n".join(script))


def _same(state: FileState | None, file: File, text: bytes) -> bool:
    wanted: FileState = {
        "user": file.user,
        "group": file.group,
        "mode": file.mode,
        "sha256": _sha256(text),
    }
    return state == wanted


def _write_candidate(file: File, text: bytes) -> StringCommand:
    path = QuoteString(file.path + CANDIDATE)
    return StringCommand(
        "umask 077 && rm -f",
        path,
        "&& base64 -d >",
        path,
        "&& chown",
        QuoteString(f"{file.user}:{file.group}"),
        path,
        "&& chmod",
        file.mode,
        path,
        _stdin=_encoded(text),
    )


def _replace(files: tuple[File, ...], texts: dict[str, bytes], check: str) -> list[str]:
    script = _start([file.path for file in files], texts)
    script.append(check)
    for file in files:
        if file.keep_foreign:
            path, kept = shlex.quote(file.path), shlex.quote(file.path + BACKUP)
            script.append(
                f"if [ -e {path} ] && ! [ -e {kept} ] && ! grep -q {SIGNATURE} {path};"
                f" then cp -p {path} {kept}; fi"
            )
    script += [f"mv -f {shlex.quote(path + CANDIDATE)} {shlex.quote(path)}" for path in texts]
    return script


def _start(paths: list[str], texts: dict[str, bytes]) -> list[str]:
    """Candidates go away however the script ends; each must be whole, and on the disk."""
    candidates = " ".join(shlex.quote(path + CANDIDATE) for path in paths)
    return [
        "set -eu",
        "export LC_ALL=C",
        # Where the operator's home is closed, psql would complain about it.
        "cd /",
        'die() { echo "$1" >&2; exit 1; }',
        f"trap {shlex.quote(f'rm -f {candidates}')} EXIT",
        *(
            f"echo '{_sha256(texts[path])}  {path}{CANDIDATE}' | sha256sum -c --quiet --status"
            f" || die {shlex.quote(f'{path}: the connection was cut, run again')}"
            for path in paths
        ),
        f"sync {candidates}",
    ]


def _encoded(text: bytes) -> str:
    # Base64, because pyinfra ends standard input with a newline of its own.
    return base64.encodebytes(text).decode() or "\n"


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
