"""The control machine: its programs, its disk, its locks, the settings the lab needs changed."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError

TOOLS = {  # program: its Debian package, one of packages.txt
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
}

# Every systemd takes several inotify instances, and root has 128 in all: twelve hosts use them up.
INOTIFY_SETTING = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_INSTANCES = 1024


def run(
    *command: str | Path, stdin: str | None = None, check: bool = True, log: Path | None = None
) -> str:
    """Run a program to its end and return its standard output.

    What it says is written to the file `log` as well, for programs that say much.
    Raises LabError with the program's own last words if it fails and `check` is set.
    """
    argv = [str(word) for word in command]
    done = subprocess.run(argv, input=stdin, check=False, capture_output=True, text=True)
    if log:
        log.write_text(f"{' '.join(argv)}\n{done.stdout}{done.stderr}")
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise LabError(
            f"{Path(argv[0]).name} failed (exit code {done.returncode}): {words[-1]}",
            hint=f"less {log}" if log else f"see the whole message of: {' '.join(argv)}",
        )
    return done.stdout


def require_root() -> None:
    """Raise LabError unless we may make namespaces, mounts and bridges."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root", hint="sudo .venv/bin/python -m lab up")


def require_tools() -> None:
    """Raise LabError naming the Debian packages of the programs that are missing.

    Adds the folders of system programs to PATH, which an ordinary login does not have.
    """
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        packages = sorted({TOOLS[tool] for tool in missing})
        raise LabError(
            f"missing on this machine: {', '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {' '.join(packages)}",
        )


def require_space(folder: Path, wanted_mib: int, purpose: str) -> None:
    """Raise LabError if the file system of `folder` has less than `wanted_mib` MiB left."""
    folder.mkdir(parents=True, exist_ok=True)
    free_mib = shutil.disk_usage(folder).free // 2**20
    if free_mib < wanted_mib:
        raise LabError(
            f"{folder}: {purpose} needs {wanted_mib} MiB, and {free_mib} MiB are free",
            hint="LAB_ROOT=/a/larger/disk/lab .venv/bin/python -m lab up",
        )


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock `file`; another command that holds it is waited for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another command, which holds {file}", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_atomically(file: Path, content: str, mode: int = 0o644) -> None:
    """Write a file so that neither a reader nor a crash ever meets a part of it."""
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    with part.open("w") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    part.chmod(mode)
    part.rename(file)


def raise_inotify_limit(root: Path) -> None:
    """Give all hosts together enough inotify instances; the value before is kept under `root`."""
    before = int(INOTIFY_SETTING.read_text())
    if before < INOTIFY_INSTANCES:
        write_atomically(root / "sysctl.json", json.dumps({"before": before}))
        INOTIFY_SETTING.write_text(str(INOTIFY_INSTANCES))


def restore_inotify_limit(root: Path) -> None:
    """Undo `raise_inotify_limit`, unless the limit was changed since; for the last lab's end."""
    kept = root / "sysctl.json"
    if kept.exists():
        if int(INOTIFY_SETTING.read_text()) == INOTIFY_INSTANCES:
            INOTIFY_SETTING.write_text(str(json.loads(kept.read_text())["before"]))
        kept.unlink()


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)
