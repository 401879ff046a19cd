"""100 agents: our operations and ansible-core, the same content on the same hosts, in one run.

The lab's three agent hosts under a hundred names (tests/lab/hundred_agents.py), sshd as it comes.
Each tool in its own idiom: our `put` takes several files, Ansible's `copy` one. Ansible with
pipelining, ControlPersist (a connection for each name) and as many forks as two cores bear.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fleet import ROOT
from fleet.hosts import Host
from fleet.inventory import fleet_of
from tests.bench.content import DIRECTORIES, FILES, SERVICE, root_of

INVENTORY = "tests/lab/hundred_agents.py"
PLAYBOOK = str(ROOT / ".venv/bench/bin/ansible-playbook")
WIDE = "/etc/ssh/sshd_config.d/bench.conf"


def measure(count: int = 100, *, beside_ansible: bool = True) -> list[tuple[str, float, str]]:
    """Rows of seconds and remarks, for the first `count` agents. Leaves the hosts as they were.

    Says what is set and what is going on while it measures.
    """
    agents = fleet_of(INVENTORY).agent.hosts[:count]
    limits = [word for host in agents for word in ("--limit", host.name)]
    run = [str(ROOT / ".venv/bin/pyinfra"), INVENTORY, "-y", *limits]
    real = list({str(host.ssh["ssh_hostname"]): host for host in agents}.values())
    _say(
        f"{count} agents are names of {len(real)} hosts, pyinfra with all of them at once"
        + (f", ansible-core with {FORKS} forks" if beside_ansible else "")
        + f"; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    rows: list[tuple[str, float, str]] = []
    try:
        with tempfile.TemporaryDirectory() as name:
            for which in ("first", "second"):
                what = f"{count} agents, {which} run"
                ours = seconds_of(what, [run[0], INVENTORY, "tests/bench/deploy.py", *run[2:]])
                rows.append((what, ours, ""))
                if beside_ansible:
                    theirs = seconds_of(f"{what}, ansible-core", _ansible(Path(name), agents))
                    rows.append(
                        ("  the same by ansible-core", theirs, f"{theirs / ours:.1f} x ours")
                    )
        if beside_ansible:
            _same_content(real)
        what = f"{count} logins, sshd's own MaxStartups 10:30:100"
        limited = seconds_of(what, [*run, "exec", "--", "true"])
        for host in real:
            _on(host, f"echo MaxStartups 1000 > {WIDE}; systemctl reload ssh")
        free = seconds_of("  with MaxStartups 1000", [*run, "exec", "--", "true"])
        rows.append((what, limited, ""))
        remark = f"the limit costs {limited - free:.1f} s"
        rows.append(("  with MaxStartups 1000", free, remark))
    finally:
        for host in real:
            _on(host, f"rm -rf {root_of('', '').rstrip('/')} {WIDE}; systemctl reload ssh")
    return rows


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def seconds_of(what: str, command: list[str]) -> float:
    """How long a command took, said before and after; the benchmark ends when it fails."""
    _say(what)
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **ANSIBLE, "PYINFRA_PROGRESS": "off"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(command)} failed")
    seconds = time.monotonic() - started
    _say(f"    {seconds:.1f} s")
    return seconds


FORKS = 20
ANSIBLE = {
    "ANSIBLE_FORKS": str(FORKS),
    "ANSIBLE_PIPELINING": "1",
    "ANSIBLE_GATHERING": "explicit",
    "ANSIBLE_SSH_RETRIES": "10",
    "ANSIBLE_DEPRECATION_WARNINGS": "0",
}


def _ansible(folder: Path, agents: tuple[Host, ...]) -> list[str]:
    """The same content as a playbook, and the command that runs it."""
    hosts = {
        host.name: {
            "ansible_host": host.ssh["ssh_hostname"],
            "ansible_user": host.ssh["ssh_user"],
            "ansible_ssh_private_key_file": host.ssh["ssh_key"],
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={host.ssh['ssh_known_hosts_file']}"
            " -o StrictHostKeyChecking=yes -o ControlMaster=auto -o ControlPersist=60s",
            "ansible_control_path": f"{folder}/{host.name}",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        for host in agents
    }
    root = root_of("ansible", "{{ inventory_hostname }}")
    tasks: list[dict[str, object]] = [
        {"file": {"path": f"{root}/{path}", "state": "directory", "mode": f"0{mode}"}}
        for path, mode in DIRECTORIES.items()
    ]
    tasks += [
        {
            "copy": {"dest": f"{root}/{path}", "content": text, "mode": f"0{mode}"},
            "no_log": secret,
        }
        for path, (text, mode, secret) in FILES.items()
    ]
    tasks.append({"systemd_service": {"name": SERVICE, "state": "started"}})
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (folder / "play.json").write_text(
        json.dumps([{"hosts": "all", "become": True, "gather_facts": False, "tasks": tasks}])
    )
    return [PLAYBOOK, "-i", str(folder / "hosts.json"), str(folder / "play.json")]


def _same_content(real: list[Host]) -> None:
    """End the benchmark unless both tools made the same files, owners and modes."""
    for host in real:
        ours, theirs = (
            _on(
                host,
                f"cd {root_of(tool, '')} && find . -printf '%p %y %m %u %g\\n' | sort"
                " && find . -type f -exec sha256sum {} + | sort -k 2",
            )
            for tool in ("pyinfra", "ansible")
        )
        if ours != theirs:
            sys.exit(f"{host.name}: the contents differ\n{ours}\n---\n{theirs}")
    if " f " not in ours:
        sys.exit("nothing was written")


def _on(host: Host, script: str) -> str:
    ssh = host.ssh
    options = ["-i", ssh["ssh_key"], "-o", f"UserKnownHostsFile={ssh['ssh_known_hosts_file']}"]
    return subprocess.run(
        ["ssh", *options, f"{ssh['ssh_user']}@{ssh['ssh_hostname']}", "sudo sh -s"],
        input=script,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
