"""100 agents: our operations and ansible-core, the same content on the same hosts, in one run.

The lab's three agent hosts under a hundred names (tests/lab/hundred_agents.py), sshd as it comes.
Each tool in its own idiom: our `put` takes several files, Ansible's `copy` one. Ansible with
pipelining, ControlPersist (a connection for each name) and 50 forks.
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


def measure(count: int = 100) -> list[tuple[str, float, str]]:
    """Rows of seconds and remarks, for the first `count` agents. Leaves the hosts as they were."""
    agents = fleet_of(INVENTORY).agent.hosts[:count]
    limits = [word for host in agents for word in ("--limit", host.name)]
    run = [str(ROOT / ".venv/bin/pyinfra"), INVENTORY, "-y", *limits]
    real = list({str(host.ssh["ssh_hostname"]): host for host in agents}.values())
    try:
        with tempfile.TemporaryDirectory() as name:
            ansible = _ansible(Path(name), agents)
            pyinfra = [run[0], INVENTORY, "tests/bench/deploy.py", *run[2:]]
            first = [_seconds(pyinfra), _seconds(ansible)]
            second = [_seconds(pyinfra), _seconds(ansible)]
        _same_content(real)
        login = [_seconds([*run, "exec", "--", "true"])]
        for host in real:
            _on(host, f"echo MaxStartups 1000 > {WIDE}; systemctl reload ssh")
        login.append(_seconds([*run, "exec", "--", "true"]))
    finally:
        for host in real:
            _on(host, f"rm -rf {root_of('', '').rstrip('/')} {WIDE}; systemctl reload ssh")
    return [
        (f"{count} agents, first run", first[0], ""),
        ("  the same by ansible-core", first[1], f"{first[1] / first[0]:.1f} x ours"),
        (f"{count} agents, second run", second[0], ""),
        ("  the same by ansible-core", second[1], f"{second[1] / second[0]:.1f} x ours"),
        (f"{count} logins, sshd's own MaxStartups 10:30:100", login[0], ""),
        ("  with MaxStartups 1000", login[1], f"the limit costs {login[0] - login[1]:.1f} s"),
    ]


def _seconds(command: list[str]) -> float:
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
        sys.exit(f"{done.stdout[-5000:]}\n{' '.join(command)} failed")
    return time.monotonic() - started


ANSIBLE = {
    "ANSIBLE_FORKS": "50",
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
