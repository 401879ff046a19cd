"""Faults made on the lab's hosts by the hosts' own means, and how a run that meets one must end."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.conftest import Lab, pyinfra, within

# The sessions of the operator's user, each by its process id.
CUT = 'for p in $(pgrep -u admin sshd-session); do kill -9 "$p"; done'


def read_only(folder: str) -> str:
    """Shell: a directory that nothing can be written to, until it is unmounted."""
    return f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"


def full(folder: str) -> str:
    """Shell: a disk with the same files on it and not a byte more, until it is unmounted."""
    return (
        f"mount -t tmpfs -o size=256k,mode=755 tmpfs /mnt && cp -a {folder}/. /mnt"
        f" && chown --reference={folder} /mnt"
        " && (cat /dev/zero > /mnt/filling 2>/dev/null; true)"
        f" && mount --bind /mnt {folder} && umount /mnt"
    )


@contextmanager
def in_effect(lab: Lab, host: str, begin: str, end: str) -> Iterator[None]:
    """A state that shell makes on a host, for the time of the block."""
    lab.run(host, begin)
    try:
        yield
    finally:
        lab.run(host, end)


@contextmanager
def when(lab: Lab, host: str, condition: str, do: str) -> Iterator[None]:
    """Have a host do something at the moment when something is so on it."""
    script = f"until {condition}; do sleep 0.005; done; {do}"
    lab.run(host, f"systemd-run -q --collect --unit=fault sh -c {shlex.quote(script)}")
    try:
        yield
    finally:
        within(60, "the host is in reach", lambda: reachable(lab, host))
        lab.run(host, "systemctl stop fault 2>/dev/null; true")


def reachable(lab: Lab, host: str) -> bool:
    """Whether ssh comes in, and sudo with it."""
    try:
        return lab.on(host).run("true").rc == 0
    except RuntimeError:  # ssh itself failed
        return False


def deploy(name: str, host: str) -> None:
    """A deploy on a host, which must succeed."""
    run = pyinfra("deploy", f"deploys/{name}", limit=host)
    assert run.returncode == 0, run.stdout


def refused(name: str, host: str) -> str:
    """What a deploy says that fails, as a failed deploy should."""
    run = pyinfra("deploy", f"deploys/{name}", limit=host)
    assert run.returncode == 1, run.stdout
    assert "Traceback" not in run.stdout, run.stdout
    assert f"[{host}]" in run.stdout, run.stdout
    return run.stdout


def leftovers(lab: Lab, host: str) -> str:
    """Files of ours that only a run that is under way may have."""
    return lab.run(
        host,
        "find /etc /tmp /run '(' -name '*.pem-fleet-*' -o -name 'pem-fleet-spare*' ')'"
        " ! -name '*.before-pem-fleet*' 2>/dev/null; true",
    )
