"""The lab of containers: every host a systemd-nspawn container on the lab's bridge.

What is true is asked from the kernel (control groups, namespace, nftables), not remembered, so a
crashed run leaves nothing that could mislead the next one.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from lab import cgroup, image, network, owner, proxy, seed, ssh
from lab.backend import Report, State
from lab.cgroup import Group
from lab.errors import LabError
from lab.hosts import Lab, LabHost, current_lab, other_networks, read_lab
from lab.machine import (
    locked,
    raise_inotify_limit,
    remove_tree,
    require_space,
    restore_inotify_limit,
    run,
    write_atomically,
)
from lab.standin.build import build_repository

BOOT_MIB = 300  # of disk for each host that starts: its journal, the packages of a deploy
STOP_SECONDS = 90
Item = TypeVar("Item")
Result = TypeVar("Result")


class Nspawn:
    """The backend of containers; its verbs are described in backend.Backend."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    # --- the lab

    def up(self, hosts: list[LabHost]) -> list[Report]:
        """Bring the lab up and start those of its `hosts` that do not run."""
        with self._locked():
            self._require_space(hosts)
            self._choose_network()
            owner.claim(self.lab)
            if not network.exists(self.lab):
                self._end_everything()  # hosts of a crashed run hang on a cable to nowhere
                network.create(self.lab)
            proxy.start(self.lab)
            seed.write_keys(self.lab)
            build_repository(self.lab.root)
            # With the addresses of the network that was chosen just now.
            return self._start([self.lab.hosts[host.name] for host in hosts])

    def down(self) -> None:
        """Remove the lab: everything but its images and packages."""
        with self._locked():
            self._end_everything()
            network.remove(self.lab)
            cgroup.remove_all(self.lab.name)
            remove_tree(self.lab.directory)
            with locked(self.lab.root / "lock"):
                if not list((self.lab.root / "labs").glob("*/state.json")):
                    restore_inotify_limit(self.lab.root)
            owner.release(self.lab)

    def states(self) -> dict[str, State]:
        """The state of every host, by name."""
        cut = network.cut_ports(self.lab) if network.exists(self.lab) else set()
        return {name: self._state(host, cut) for name, host in self.lab.hosts.items()}

    # --- the hosts

    def start(self, hosts: list[LabHost]) -> list[Report]:
        """Switch on, and wait until ssh answers and the system has started."""
        with self._locked_and_up():
            return self._start(hosts)

    def stop(self, hosts: list[LabHost]) -> None:
        """Shut down in good order; after 90 s the power is cut."""
        with self._locked_and_up():
            _in_parallel(self._stop, hosts)

    def kill(self, hosts: list[LabHost]) -> None:
        """Cut the power: all processes end at once, the disk stays as it is."""
        with self._locked_and_up():
            _in_parallel(self._kill, hosts)

    def pause(self, hosts: list[LabHost]) -> None:
        """Stop all processes where they stand; the kernel still answers ping and TCP."""
        with self._locked_and_up():
            for host in hosts:
                self._running(host).freeze(frozen=True)

    def resume(self, hosts: list[LabHost]) -> None:
        """Let paused processes go on."""
        with self._locked_and_up():
            for host in hosts:
                self._running(host).freeze(frozen=False)

    def cut(self, hosts: list[LabHost]) -> None:
        """Part the hosts from all others; they reach one another, and the control machine all."""
        with self._locked_and_up():
            network.cut(self.lab, hosts)

    def heal(self) -> None:
        """Undo every cut."""
        with self._locked_and_up():
            network.heal(self.lab)

    def reset(self, hosts: list[LabHost]) -> list[Report]:
        """Start over with fresh disks."""
        with self._locked_and_up():
            _in_parallel(self._kill, hosts)
            for host in hosts:
                remove_tree(self._directory(host))
            return self._start(hosts)

    def log(self, host: LabHost) -> str:
        """The console, and the journal as it stands on the host's disk."""
        console = self._directory(host) / "console.log"
        if not console.exists():
            raise LabError(
                f"{host.name} was never started",
                hint=f".venv/bin/python -m lab up {host.name}",
            )
        journal = self._directory(host) / "disk" / "var" / "log" / "journal"
        entries = run("journalctl", "--no-pager", "--directory", journal, check=False)
        return f"{console.read_text(errors='replace')}\n{entries}"

    # --- inside

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One command at a time changes this lab."""
        with locked(self.lab.root / "labs" / f".{self.lab.name}.lock"):
            self.lab = current_lab()
            owner.require_own(self.lab)
            yield

    @contextmanager
    def _locked_and_up(self) -> Iterator[None]:
        with self._locked():
            if not network.exists(self.lab):
                raise LabError(
                    f"the lab {self.lab.name!r} is not up", hint=".venv/bin/python -m lab up"
                )
            yield

    def _choose_network(self) -> None:
        """Settle which network the lab has, and write it down for those who read `current_lab`."""
        wanted = os.environ.get("LAB_NETWORK", "")
        with locked(self.lab.root / "lock"):
            if not self.lab.state_file.exists():
                default = read_lab(self.lab.name, self.lab.root).network
                chosen = network.choose(self.lab, default, bool(wanted), other_networks(self.lab))
                self.lab.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomically(self.lab.state_file, f'{{"network": "{chosen}"}}\n')
            elif wanted and wanted != self.lab.network:
                raise LabError(
                    f"the lab {self.lab.name!r} has the network {self.lab.network} already",
                    hint=f".venv/bin/python -m lab down, then up with LAB_NETWORK={wanted}",
                )
            elif not network.namespace_file(self.lab).exists():
                network.require_free(self.lab)
            raise_inotify_limit(self.lab.root)
        self.lab = current_lab()

    def _start(self, hosts: list[LabHost]) -> list[Report]:
        """Start those that do not run, and wait for all that are not paused."""
        off = self._require_space(hosts)
        fresh = [host for host in off if not (self._directory(host) / "seeded").exists()]
        if fresh:
            self._prepare(fresh)
        _in_parallel(self._boot, off)
        awake = [host for host in hosts if not self._started(host).frozen()]
        return _in_parallel(self._wait, awake)

    def _require_space(self, hosts: list[LabHost]) -> list[LabHost]:
        """The hosts that do not run, once it is sure that the disk has room for them."""
        off = [host for host in hosts if not self._group(host)]
        if off:
            require_space(self.lab.root, BOOT_MIB * len(off), f"starting {len(off)} hosts")
        return off

    def _prepare(self, hosts: list[LabHost]) -> None:
        """Give the hosts fresh disks of their images."""
        images = {
            name: image.ready(name, self.lab, seed.proxy_url(self.lab))
            for name in {host.image for host in hosts}
        }
        key = build_repository(self.lab.root)
        for host in hosts:
            directory = self._directory(host)
            remove_tree(directory)  # of a start that was broken off
            for name in ("disk", "work", "root"):
                (directory / name).mkdir(parents=True)
            (directory / "disk").chmod(0o755)  # it becomes the host's /
            (directory / "image").symlink_to(images[host.image])
            seed.write_seed(self.lab, host, directory / "seed", images[host.image], key)

    def _boot(self, host: LabHost) -> None:
        for group in cgroup.groups(self.lab.name, host.name):
            group.kill()  # what is left of a host whose launcher was killed
        group = Group.create(self.lab.name, host.name)
        directory = self._directory(host)
        seed.refresh_hosts_file(self.lab, directory)
        command: list[str | Path] = [
            Path(__file__).with_name("nspawn-host.sh"),
            directory,
            (directory / "image").readlink(),
            network.namespace_file(self.lab),
            host.name,
            *group.everywhere,
        ]
        with (directory / "console.log").open("ab") as console:
            # It returns when the host is on its way; what becomes of it is seen in its group.
            subprocess.run(
                command, check=False, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )

    def _wait(self, host: LabHost) -> Report:
        return ssh.wait_until_up(self.lab, host, lambda: self._group(host) is not None)

    def _stop(self, host: LabHost) -> None:
        group = self._group(host)
        if not group:
            self._kill(host)
            return
        group.freeze(frozen=False)
        # nspawn passes it on to the host's systemd as an orderly power-off.
        for process in _children(group.launcher()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        if not group.wait_until_dead(STOP_SECONDS):
            print(f"{host.name} did not stop within {STOP_SECONDS} s: power cut", file=sys.stderr)
        group.kill()

    def _kill(self, host: LabHost) -> None:
        for group in cgroup.groups(self.lab.name, host.name):
            group.kill()

    def _end_everything(self) -> None:
        """Cut the power of all hosts and of the proxy, also of those no longer in hosts.yml."""
        _in_parallel(Group.kill, cgroup.groups(self.lab.name))

    def _directory(self, host: LabHost) -> Path:
        return self.lab.directory / "hosts" / host.name

    def _group(self, host: LabHost) -> Group | None:
        """The group of a host that runs under its launcher, else None."""
        found = [g for g in cgroup.groups(self.lab.name, host.name) if g.launcher()]
        return found[-1] if found else None

    def _started(self, host: LabHost) -> Group:
        group = self._group(host)
        if not group:
            console = (self._directory(host) / "console.log").read_text(errors="replace")
            said = console.strip().splitlines()[-1:] or ["it said nothing"]
            raise LabError(
                f"{host.name} did not start: {said[0]}",
                hint=f".venv/bin/python -m lab logs {host.name}",
            )
        return group

    def _running(self, host: LabHost) -> Group:
        group = self._group(host)
        if not group:
            raise LabError(
                f"{host.name} does not run", hint=f".venv/bin/python -m lab start {host.name}"
            )
        return group

    def _state(self, host: LabHost, cut: set[str]) -> State:
        group = self._group(host)
        if not group:
            return "stopped"
        if group.frozen():
            return "paused"
        return "cut" if network.port(host) in cut else "running"


def _children(process: int) -> list[int]:
    with suppress(FileNotFoundError):
        children = Path(f"/proc/{process}/task/{process}/children").read_text()
        return [int(child) for child in children.split()]
    return []


def _in_parallel(verb: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Do the same to all at once; the first error is raised when all have come to an end."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return [done.result() for done in [pool.submit(verb, item) for item in items]]
