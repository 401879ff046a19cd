"""The lab's own promises, on two small labs beside the real one (which is not touched).

What is true is asked from ssh, ip, findmnt, ps and the kernel's files, not from the lab's code.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PROJECT = Path(__file__).parent.parent.parent
ROOT = Path(os.environ.get("LAB_ROOT") or "/var/lib/pem-fleet-lab")
FIRST, SECOND = "selftest", "selftest2"
HOSTS = ("pem1", "bouncer1", "agent1")
NETWORK = "10.77.201"
COMMAND_SECONDS = 120  # building the image is the longest of them


def run(*command, **environment):
    return subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, "LAB_NETWORK": "", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        umask=0o077,  # a strict administrator's; the hosts' files must not take after it
        check=False,
    )


def lab(*words, name=FIRST, **environment):
    return run(sys.executable, "-m", "lab", *words, LAB_NAME=name, **environment)


def did(*words, **environment):
    """A lab command that has to succeed; what it printed."""
    done = lab(*words, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on(host, line, name=FIRST):
    """A line for the host's shell: exit code and output. ssh gives up after 10 s."""
    config = ROOT / "labs" / name / "ssh" / "config"
    done = run("timeout", "10", "ssh", "-F", str(config), host, line)
    return done.returncode, (done.stdout + done.stderr).strip()


def states():
    return {row["name"]: row["state"] for row in json.loads(did("ls", "--json"))}


def state(host):
    return states()[host]


def reaches(host, other):
    return on(host, f"ping -q -c 1 -W 1 {other}")[0] == 0


def boot(host):
    code, identity = on(host, "cat /proc/sys/kernel/random/boot_id")
    assert code == 0
    return identity


def within(seconds, question):
    """Whether the question is answered with yes before the deadline."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def processes(name, program=""):
    """Process ids of the lab's processes, those of one program if it is named."""
    listing = run("ps", "-eo", "pid,stat,comm,cgroup").stdout.splitlines()[1:]
    rows = [line.split(None, 3) for line in listing if lab_group(name) in line]
    # A zombie has ended; it is the machine's PID 1 that has not taken notice yet.
    living = [(int(pid), command) for pid, stat, command, _ in rows if not stat.startswith("Z")]
    return [pid for pid, command in living if command.startswith(program)]


def lab_group(name):
    return f"pem-fleet-lab.{name}/"


def leftovers(name):
    """Everything that a lab makes on the machine and has to take away again."""
    groups = run("find", "/sys/fs/cgroup", "-path", f"*{lab_group(name)}*").stdout
    links = [link["ifname"] for link in json.loads(run("ip", "-json", "link").stdout)]
    return {
        "processes": processes(name),
        "groups": groups.split(),
        "mounts": mounts(f"/labs/{name}/"),
        "namespaces": run("ip", "netns").stdout.split().count(f"pem-fleet-lab.{name}"),
        "cables": [link for link in links if link == f"lab-{name}"],
        "disks": list((ROOT / "labs").glob(f"{name}/*")),
        "records": list(Path("/run").glob(f"pem-fleet-lab.{name}*")),
    }


def mounts(below):
    """Mounts below a folder, in the mount namespaces of all processes."""
    found = set()
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            lines = table.read_text().splitlines()
        except OSError:  # the process has ended meanwhile
            continue
        found |= {line.split()[4] for line in lines if below in line.split()[4]}
    return sorted(found)


NOTHING = {
    "processes": [],
    "groups": [],
    "mounts": [],
    "namespaces": 0,
    "cables": [],
    "disks": [],
    "records": [],
}


@pytest.fixture(scope="module")
def _first_lab():
    try:
        did("up", *HOSTS, LAB_NETWORK=f"{NETWORK}.0/24")
        yield
    finally:
        did("down")


@pytest.fixture
def _no_second_lab():
    """A test that starts the second lab leaves none behind, whatever goes wrong in it."""
    try:
        yield
    finally:
        did("down", name=SECOND)


@pytest.fixture
def _running_lab(_first_lab):
    """Every test begins with all hosts on and no cut, whatever the one before left."""
    found = states()
    if any(found[host] != "running" for host in HOSTS):
        did("up", *HOSTS)
        did("heal")


on_running_lab = pytest.mark.usefixtures("_running_lab")
with_second_lab = pytest.mark.usefixtures("_no_second_lab")


# --- hosts


@on_running_lab
def test_a_host_is_a_real_host():
    assert on("pem1", "ps -o comm= -p 1") == (0, "systemd")
    assert on("pem1", "id -un; sudo id -un") == (0, "admin\nroot")
    assert on("pem1", "systemctl is-system-running") == (0, "running")
    assert on("pem1", "stat -c %a / /etc /etc/hosts") == (0, "755\n755\n644")
    assert f"{NETWORK}.11/24" in on("pem1", "ip -brief address show host0")[1]


@on_running_lab
def test_ssh_gives_the_exit_code_of_the_command():
    assert lab("ssh", "pem1", "--", "exit 7").returncode == 7
    assert did("ssh", "pem1", "--", "printf", "%s|", "two words", "$HOME") == "two words|$HOME|"


@on_running_lab
def test_host_keys_are_strict():
    known_hosts = ROOT / "labs" / FIRST / "ssh" / "known_hosts"
    kept = known_hosts.read_text()
    known_hosts.write_text("")
    try:
        assert "Host key verification failed" in on("pem1", "true")[1]
    finally:
        known_hosts.write_text(kept)
    assert on("pem1", "true")[0] == 0


@on_running_lab
def test_hosts_know_one_another_by_name():
    assert reaches("pem1", "agent1")
    assert reaches("agent1", "pem1.lab.test")
    assert on("agent1", "hostname -f") == (0, "agent1.lab.test")
    assert on("agent1", "getent hosts packages.lab.test")[1].split()[0] == f"{NETWORK}.1"


@on_running_lab
def test_hosts_have_no_way_out():
    assert on("pem1", "ip route show default") == (0, "")


@on_running_lab
def test_ls_gives_objects():
    rows = json.loads(did("ls", "--json"))
    assert rows[0] == {
        "name": "pem1",
        "address": f"{NETWORK}.11",
        "image": "debian13",
        "state": "running",
    }
    assert {row["name"]: row["state"] for row in rows}["agent3"] == "stopped"


@on_running_lab
def test_up_leaves_running_hosts_alone():
    before = boot("pem1")
    did("up", *HOSTS)
    assert boot("pem1") == before


@on_running_lab
def test_logs_show_the_console_and_the_journal():
    assert on("pem1", "logger --tag claim seen in the journal; sudo journalctl --sync")[0] == 0
    said = did("logs", "pem1")
    assert "claim" in said
    assert "seen in the journal" in said
    assert "was never started" in refused(lab("logs", "agent3"))


# --- power


@on_running_lab
def test_kill_ends_everything_at_once_and_keeps_the_disk():
    before = boot("pem1")
    assert on("pem1", "echo kept | sudo tee /root/note && sync")[0] == 0
    did("kill", "pem1")
    assert state("pem1") == "stopped"
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{lab_group(FIRST)}pem1.*"))
    did("start", "pem1")
    assert on("pem1", "sudo cat /root/note") == (0, "kept")
    assert boot("pem1") != before


@on_running_lab
def test_stop_is_orderly():
    before = boot("agent1").replace("-", "")
    did("stop", "agent1")
    assert state("agent1") == "stopped"
    did("start", "agent1")
    journal = on("agent1", f"sudo journalctl --boot {before} --lines 20 --output cat")[1]
    assert "Journal stopped" in journal


@on_running_lab
def test_a_host_can_reboot_itself():
    before = boot("agent1")
    on("agent1", "sudo systemctl reboot")
    assert within(20, lambda: on("agent1", "cat /proc/sys/kernel/random/boot_id")[1] != before)
    assert within(20, lambda: on("agent1", "systemctl is-system-running") == (0, "running"))
    assert state("agent1") == "running"


@on_running_lab
def test_a_paused_host_does_nothing_until_it_is_resumed():
    before = boot("agent1")
    did("pause", "agent1")
    assert state("agent1") == "paused"
    assert reaches("pem1", "agent1")  # the kernel answers
    config = str(ROOT / "labs" / FIRST / "ssh" / "config")
    assert run("timeout", "3", "ssh", "-F", config, "agent1", "true").returncode != 0
    did("resume", "agent1")
    assert boot("agent1") == before


@on_running_lab
def test_reset_gives_a_fresh_disk():
    assert on("agent1", "sudo touch /root/note")[0] == 0
    did("reset", "agent1")
    assert on("agent1", "sudo ls /root/note")[0] != 0


# --- partition


@on_running_lab
def test_cut_parts_the_named_hosts_from_the_rest():
    did("cut", "pem1", "agent1")
    assert state("pem1") == "cut"
    assert reaches("pem1", "agent1")  # on the same side
    assert not reaches("pem1", "bouncer1")
    assert not reaches("bouncer1", "agent1")
    assert reaches("pem1", "control")
    did("restart", "agent1")  # a cut outlives what it cuts off
    assert not reaches("agent1", "bouncer1")
    did("heal")
    assert reaches("bouncer1", "agent1")
    assert state("pem1") == "running"


# --- packages


@on_running_lab
def test_packages_come_through_the_proxy():
    assert on("bouncer1", "sudo apt-get update -qq")[0] == 0
    assert on("bouncer1", "sudo apt-get install -y -qq tree")[0] == 0
    assert on("bouncer1", "tree --version")[0] == 0
    assert on("bouncer1", "apt-cache policy edb-pem-agent | grep standin")[0] == 0


@on_running_lab
def test_what_was_fetched_once_needs_no_mirror():
    tree = "sudo apt-get update -qq && sudo apt-get install -y -qq tree"
    assert on("bouncer1", tree)[0] == 0
    for pid in processes(FIRST, "python"):  # only an offline lab's proxy is left to start
        os.kill(pid, signal.SIGKILL)
    try:
        did("up", *HOSTS, LAB_OFFLINE="1")
        code, said = on("agent1", tree)
        assert code == 0, said
        assert on("agent1", "tree --version")[0] == 0
        code, said = on("agent1", "sudo apt-get install -y -o Acquire::Retries=0 bsdgames")
        assert code != 0
        assert "not in the cache" in said or "504" in said
    finally:
        for pid in processes(FIRST, "python"):
            os.kill(pid, signal.SIGKILL)
        did("up", *HOSTS)


@on_running_lab
def test_other_servers_are_refused():
    proxy = f"http://{NETWORK}.1:3142"
    for url in ("http://example.org/", "https://example.org/", f"http://{NETWORK}.1/"):
        answer = on("bouncer1", f"curl --silent --show-error --fail --proxy {proxy} {url}")[1]
        assert "403" in answer, answer
    above = "http://packages.lab.test/%2e%2e/lock"
    assert "404" in on("bouncer1", f"curl -sSf --path-as-is --proxy {proxy} {above}")[1]


# --- several labs, and their end


@on_running_lab
@with_second_lab
def test_two_labs_run_side_by_side(tmp_path):
    did("up", "pem1", name=SECOND)
    assert on("pem1", "hostname", name=SECOND) == (0, "pem1")
    assert boot("pem1") != on("pem1", "cat /proc/sys/kernel/random/boot_id", name=SECOND)[1]
    address = json.loads(did("ls", "--json", name=SECOND))[0]["address"]
    assert not address.startswith(NETWORK)
    assert not reaches("pem1", address)
    assert mounts(f"/labs/{SECOND}/") != []  # what is looked for after `down` can be seen
    assert leftovers(SECOND)["cables"] != []
    for verb in (["up", "pem1"], ["kill", "pem1"], ["down"]):  # the same name, another root
        problem = refused(lab(*verb, name=SECOND, LAB_ROOT=str(tmp_path)))
        assert f"is up under another LAB_ROOT ({ROOT})" in problem
    assert on("pem1", "true", name=SECOND)[0] == 0
    did("down", name=SECOND)
    assert leftovers(SECOND) == NOTHING
    assert on("pem1", "true")[0] == 0


@on_running_lab
def test_up_clears_away_a_crash():
    assert on("pem1", "echo kept | sudo tee /root/note && sync")[0] == 0
    for pid in processes(FIRST, "systemd-nspawn"):  # the hosts' own processes live on
        os.kill(pid, signal.SIGKILL)
    assert within(5, lambda: state("pem1") == "stopped")
    did("up", *HOSTS)
    assert on("pem1", "sudo cat /root/note") == (0, "kept")
    run("ip", "link", "delete", f"lab-{FIRST}")
    did("up", *HOSTS)
    assert reaches("pem1", "agent1")


@with_second_lab
def test_down_after_a_crash_leaves_nothing():
    did("up", "pem1", name=SECOND)
    for pid in processes(SECOND, "sh") + processes(SECOND, "systemd-nspawn"):
        os.kill(pid, signal.SIGKILL)
    assert processes(SECOND) != []
    did("down", name=SECOND)
    assert leftovers(SECOND) == NOTHING
    did("down", name=SECOND)


@on_running_lab
@with_second_lab
def test_a_lost_state_file_does_not_lock_anybody_out():
    state_file = ROOT / "labs" / SECOND / "state.json"
    did("up", "pem1", name=SECOND)
    state_file.write_text("")
    problem = refused(lab("ls", name=SECOND))
    assert f"{state_file} is broken" in problem
    assert state("pem1") == "running"  # of the first lab
    state_file.unlink()
    did("down", name=SECOND)
    assert leftovers(SECOND) == NOTHING


def test_the_inotify_limit_is_given_back_unless_somebody_else_changed_it(tmp_path):
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    before = limit.read_text()
    question = (
        "import sys, pathlib, lab.machine as m; getattr(m, sys.argv[1])(pathlib.Path(sys.argv[2]))"
    )

    def limit_after(step):
        assert run(sys.executable, "-c", question, step, str(tmp_path)).returncode == 0
        return int(limit.read_text())

    try:
        for others, at_the_end in ((None, 1000), ("2000", 2000)):
            limit.write_text("1000")
            assert limit_after("raise_inotify_limit") == 1024
            limit.write_text(others or "1024")
            assert limit_after("restore_inotify_limit") == at_the_end
    finally:
        limit.write_text(before)


@with_second_lab
def test_a_machine_with_nothing_but_cgroup2_will_do():
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("this machine is one, and all other tests have shown it")
    # The layout of such a machine, for these commands alone. The controllers stay where they are.
    steps = f"""
        umount --recursive /sys/fs/cgroup
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        lab="{sys.executable} -m lab"
        $lab up pem1
        $lab ssh pem1 -- sudo systemctl reboot || true
        sleep 2
        $lab up pem1
        $lab kill pem1
        $lab start pem1
        $lab ssh pem1 -- cat /proc/self/cgroup
        $lab stop pem1
        $lab down
    """
    done = run("unshare", "--mount", "sh", "-eu", "-c", steps, LAB_NAME=SECOND)
    assert done.returncode == 0, done.stderr
    assert "0::/user.slice/" in done.stdout
    assert leftovers(SECOND) == NOTHING


# --- the command line


COMMANDS = [
    *("up", "down", "ls", "ssh", "start", "stop", "restart"),
    *("kill", "pause", "resume", "cut", "heal", "reset", "logs"),
]


def test_the_help_names_every_command():
    assert [word for word in COMMANDS if f"\n    {word} " not in did("--help")] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command):
    assert did(command, "--help").startswith(f"usage: python -m lab {command}")


# --- mistakes: one line, and a HINT


def refused(done):
    assert done.returncode == 1
    problem, hint = done.stderr.strip().split("\n")
    assert hint.startswith("HINT: ")
    return problem


def test_an_unknown_host_is_refused():
    problem = refused(lab("kill", "pem9"))
    assert "'pem9'" in problem
    assert "bouncer1" in problem


def test_a_lab_that_is_not_up_is_refused():
    assert "is not up" in refused(lab("kill", "pem1", name=SECOND))


def test_a_taken_network_is_refused():
    run("ip", "address", "add", "10.77.202.1/24", "dev", "lo")
    try:
        done = lab("up", name=SECOND, LAB_NETWORK="10.77.202.0/24")
    finally:
        run("ip", "address", "del", "10.77.202.1/24", "dev", "lo")
    assert "10.77.202.0/24 is taken on this machine: 10.77.202.0/24 on lo" in refused(done)
    assert "LAB_NETWORK=10." in done.stderr
    assert leftovers(SECOND) == NOTHING


@with_second_lab
def test_a_network_another_lab_wrote_down_is_taken():
    record = ROOT / "labs" / "selftest3" / "state.json"  # down, or crashed
    record.parent.mkdir()
    record.write_text('{"network": "10.77.203.0/24"}')
    try:
        done = lab("up", name=SECOND, LAB_NETWORK="10.77.203.0/24")
    finally:
        record.unlink()
        record.parent.rmdir()
    assert "10.77.203.0/24 is taken on this machine: 10.77.203.0/24 on another lab" in refused(done)


@with_second_lab
def test_a_lab_that_starts_again_looks_at_its_network_again():
    state_file = ROOT / "labs" / SECOND / "state.json"
    state_file.parent.mkdir()
    state_file.write_text('{"network": "10.77.202.0/24"}')
    run("ip", "address", "add", "10.77.202.1/24", "dev", "lo")
    try:
        done = lab("up", name=SECOND)
    finally:
        run("ip", "address", "del", "10.77.202.1/24", "dev", "lo")
    assert "10.77.202.0/24 is taken on this machine" in refused(done)


@with_second_lab
def test_a_taken_port_is_refused_and_half_a_default_route_is_not():
    network = "10.77.203"
    free_bind = 15  # IP_FREEBIND: the address comes to be only with the lab
    run("ip", "route", "add", "0.0.0.0/1", "dev", "lo", "table", "977")  # as OpenVPN's, unused
    try:
        with socket.socket() as other:
            other.setsockopt(socket.IPPROTO_IP, free_bind, 1)
            other.bind((f"{network}.1", 3142))
            other.listen()
            done = lab("up", "pem1", name=SECOND, LAB_NETWORK=f"{network}.0/24")
    finally:
        run("ip", "route", "flush", "table", "977")
    assert f"{network}.1:3142" in refused(done)
    assert "taken by another program" in done.stderr


def test_a_missing_tool_is_named_with_its_package():
    done = lab("up", name=SECOND, PATH="/nonexistent")
    assert "systemd-nspawn" in refused(done)
    assert "systemd-container" in done.stderr


def test_every_tool_is_in_the_list_of_packages():
    listed = (PROJECT / "lab" / "packages.txt").read_text().split()
    question = "from lab.machine import TOOLS; print(*TOOLS.values())"
    assert set(run(sys.executable, "-c", question).stdout.split()) <= set(listed)


def test_without_root_nothing_is_tried():
    # A user namespace without a map: the same files, and no longer root.
    done = run("unshare", "--user", sys.executable, "-m", "lab", "up", LAB_NAME=SECOND)
    assert "needs root" in refused(done)


def test_a_full_disk_is_seen_before_anything_is_made(tmp_path):
    run("mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(tmp_path))
    try:
        done = lab("up", name=SECOND, LAB_ROOT=str(tmp_path))
    finally:
        run("umount", str(tmp_path))
    assert "needs 1800 MiB" in refused(done)
    assert leftovers(SECOND) == NOTHING
