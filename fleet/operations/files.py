"""Whole files, and our parts of others' files: validated first, then replaced at once."""

import base64
import hashlib
import shlex
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.files import FileState, FileStates, Inode
from fleet.keystore import PkiError, not_there
from fleet.operations.commands import Script, fail, shell
from fleet.render import script

# A file is written under this ending first, checked there, and renamed.
CANDIDATE = ".pem-fleet-new"
# The file as it was, while a replaced one is on trial.
UNDO = ".pem-fleet-old"
# A file that was made on its host and waits there for its trial.
ISSUED = ".pem-fleet-issued"
# A file whose trial was cut off, when the old one takes its place again.
CUT_OFF = ".pem-fleet-cut-off"
BACKUP = ".before-pem-fleet"
# Every file of ours says so in its first line; whatever does not is somebody else's.
SIGNATURE = "Written by pem-fleet"
# For another run that writes in the same directory, and perhaps proves what it writes.
_LOCK_WAIT_SECONDS = 60


class OnHost:
    """Content that is made on its host and stays there.

    What waits beside the file, ending in `.pem-fleet-issued`, takes its place, when all files of
    this kind in a `put` have something that waits; without that, what is there stays.
    """


@dataclass(frozen=True)
class File:
    """A file as it should be on a host.

    content: text, secret text, the path of a file on the operator's machine, read when the
        operation runs (a key that another deploy makes), or OnHost().

    A key or certificate gets a first line that says whose it is, as all other texts have it.
    """

    path: str
    content: str | SecretStr | Path | OnHost
    user: str = "root"
    group: str = "root"
    mode: str = "644"

    def text(self) -> bytes | None:
        """The content's bytes, None for OnHost. Raises FileNotFoundError for an operator's file."""
        if isinstance(self.content, OnHost):
            return None
        if isinstance(self.content, Path):
            text = self.content.read_bytes()
        elif isinstance(self.content, SecretStr):
            text = self.content.get_secret_value().encode()
        else:
            text = self.content.encode()
        if text.startswith(b"-----BEGIN "):
            return f"# {SIGNATURE}; edits here are lost.\n".encode() + text
        return text


@operation()
def directory(
    path: str, user: str = "root", group: str = "root", mode: str = "755"
) -> Generator[PyinfraCommand, None, None]:
    """A directory with its owner and mode. Something else in its way fails the host, and stays."""
    there = host.get_fact(Inode, path=path)
    if there is not None and there["kind"] != "directory":
        yield fail(
            f"{path} is a {there['kind']}, a directory belongs there; it was not changed"
            f"\nHINT: mv {path} {path}.away, then run again"
        )
        return
    if there == {"kind": "directory", "user": user, "group": group, "mode": mode}:
        host.noop(f"{path}: there")
        return
    yield StringCommand(
        "install -d -o", QuoteString(user), "-g", QuoteString(group), "-m", mode, QuoteString(path)
    )


@operation()
def put(
    files: tuple[File, ...] | Callable[[], tuple[File, ...]],
    check: str | Callable[[], str] = "",
) -> Generator[PyinfraCommand, None, None]:
    """Bring files to a host together: all of them are replaced, or none.

    Each is written under a second name with its final owner and mode, its content by standard
    input, so that it is in no argument list, no log and never wider than its mode. Then `check`, a
    piece of shell, may look at the candidates (path + `.pem-fleet-new`); when it fails, they are
    removed and what was there stays. A file that is not ours is kept beside the new one, ending in
    `.before-pem-fleet`.

    It is one script: of a connection that is cut, the host sees all of it or nothing. Runs that
    write in one directory (of two operators, of two names of one host) wait for one another.
    files, check: as functions where hosts must be asked first; they may raise PkiError.
    """
    try:
        files = files() if callable(files) else files
        check = check() if callable(check) else check
        texts = {file.path: file.text() for file in files}
    except FileNotFoundError as missing:
        yield fail(str(not_there(missing.filename)))
        return
    except PkiError as error:
        yield fail(str(error))
        return
    waiting = [path + ISSUED for path, text in texts.items() if text is None]
    states = host.get_fact(FileStates, paths=(*texts, *waiting))
    if not all(path in states for path in waiting):
        # A key without its certificate is what a run left that was cut off.
        waiting = []
    differing = tuple(
        file.path
        for file in files
        if file.path + ISSUED in waiting or not _same(states.get(file.path), file, texts[file.path])
    )
    if not differing:
        host.noop(f"{', '.join(texts)}: up to date")
        return
    candidates = []
    for file in files:
        text, owner = texts[file.path], f"{file.user}:{file.group}"
        if text is None:
            source = file.path + ISSUED if waiting else file.path
            candidates.append(_call("copied", file.path, owner, file.mode, source))
        else:
            candidates.append(_call("candidate", file.path, owner, file.mode, _encoded(text)))
    # Last of all: a run that is cut off before it finds what waited once more.
    taken = [_call("rm -f", *waiting)] if waiting else []
    lines = [*candidates, *_checked(check), _call("replace", *texts), *taken]
    yield _script(_call("begin", *texts), *lines, writes=differing)


def change(
    path: str, old: bytes, new: bytes, undo_check: str = ""
) -> Generator[PyinfraCommand, None, None]:
    """The commands that turn one content of a file into another, nothing when they are equal.

    Owner and mode stay. The first time, the file is kept as it was, ending in `.before-pem-fleet`.
    A file that was changed by somebody else since it was read is not touched.
    undo_check: shell that looks at the replaced file and prints what is wrong with it; when it
    prints something, the old file comes back.
    """
    if old == new:
        host.noop(f"{path}: up to date")
        return
    q = shlex.quote
    file, kept, undo = q(path), q(path + BACKUP), q(path + UNDO)
    changed = q(f"{path} was changed by somebody else just now; run again")
    lines = [
        _call("begin", path),
        f"echo '{_sha256(old)}  {path}' | sha256sum -c --quiet --status || die {changed}",
        _call("likeness", path, _encoded(new)),
        f"[ -e {kept} ] || copy {file} {kept} -L",
        f"copy {file} {undo} -L",
        "commit",
        # What a link points to is replaced, not the link.
        f"real=$(readlink -f {file})",
        f'mv -fT {q(path + CANDIDATE)} "$real"',
    ]
    if undo_check:
        lines += [
            f"wrong=$({undo_check}) || wrong=${{wrong:-the check itself failed}}",
            'if [ -n "$wrong" ]; then',
            f'    mv -f {undo} "$real"',
            f'    die "{path} would be wrong, the old file is back: $wrong"',
            "fi",
        ]
    lines.append(f"rm -f {undo}")
    yield _script(*lines, writes=(path,))


def _same(state: FileState | None, file: File, text: bytes | None) -> bool:
    if state is None:
        return False
    wanted: FileState = {
        "user": file.user,
        "group": file.group,
        "mode": file.mode,
        "sha256": state["sha256"] if text is None else _sha256(text),
    }
    return state == wanted


def _script(*lines: str, writes: tuple[str, ...]) -> Script:
    values = {
        "new": CANDIDATE,
        "old": UNDO,
        "kept": BACKUP,
        "signature": SIGNATURE,
        "wait_seconds": str(_LOCK_WAIT_SECONDS),
    }
    return shell("\n".join([script("replace-files.sh", values), *lines]), writes)


def _call(function: str, *words: str) -> str:
    return f"{function} {shlex.join(words)}"


def _checked(check: str) -> list[str]:
    # What a check starts must not hold the lock of the directory.
    return [f"(\n{check}\n) 9<&-"] if check else []


def _encoded(text: bytes) -> str:
    return base64.b64encode(text).decode()


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
