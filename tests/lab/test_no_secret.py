"""No password and no private key is left anywhere: planted ones are searched after a full deploy.

In a lab of its own: once deployed fresh with everything that pyinfra can show, then again with
other passwords. The search is proven first, by markers that are put where it looks.
"""

import base64
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import ROOT
from fleet.run import DEPLOYS
from lab.hosts import current_lab
from tests.lab.conftest import INVENTORY, PYINFRA

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

HOSTS = ("pem1", "bouncer1", "agent1")

# Every argument list on this machine, the lab's hosts' included: they share its kernel.
SAMPLER = """
import glob, sys, time
seen = set()
while True:
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            line = open(path, "rb").read()
        except OSError:
            continue
        if line not in seen:
            seen.add(line)
            sys.stdout.buffer.write(line + b"\\n")
            sys.stdout.flush()
    time.sleep(0.005)
"""

# What a host's ordinary users, its logs and its temporary folders hold. The needles are in a file
# of root's alone, which no place of these is.
SEARCH = """
umask 077
cat > /root/needles
[ -s /root/needles ] || exit 1
{
    grep -rlF -f /root/needles /tmp /var/tmp /var/log /run/log 2>/dev/null
    grep -lF -f /root/needles /root/.*history /home/*/.*history 2>/dev/null
    find / /run /dev/shm -xdev -type f -perm -004 -mmin -120 -size -9M \
        -exec grep -lF -f /root/needles {} + 2>/dev/null
    journalctl -q --no-pager -o cat | grep -qF -f /root/needles && echo journal
    journalctl -q --no-pager -o cat _COMM=sudo | grep -qF -f /root/needles && echo sudo
}
rm /root/needles
echo "$through"
"""
THROUGH = "the search is through"

# Where the search must find what is put there; the marker comes by standard input.
PLACES = {
    "/tmp/planted": "tee /tmp/planted",  # noqa: S108  a host's, and looked at only
    "/var/tmp/planted": "tee /var/tmp/planted",  # noqa: S108  a host's, and looked at only
    "/var/log/planted": "tee /var/log/planted",
    "/root/.bash_history": "tee -a /root/.bash_history",
    "/srv/planted": "sh -c 'cat > /srv/planted; chmod 644 /srv/planted'",
    "/dev/shm/planted": "sh -c 'cat > /dev/shm/planted; chmod 644 /dev/shm/planted'",  # noqa: S108  a host's, and looked at only
    "journal": "logger",
    "sudo": "sh -c 'read marker; sudo true $marker'",
}


def password(name: str) -> tuple[str, str]:
    """A password that wants care at every step on its way, and the part of it to look for."""
    needle = f"{name}{secrets.token_hex(8)}"
    return f"""it's "{needle}" $HOME `id` \\n %s%% 100% !;&|""", needle


def forms(needle: str) -> set[str]:
    """A needle as it is, and within any base64 text."""
    encoded = {
        base64.b64encode(b"x" * shift + needle.encode()).decode()[4:-4].rstrip("=")
        for shift in range(3)
    }
    return {needle, *encoded}


class Planted:
    """A lab with planted secrets, and everything that was said while it was deployed."""

    def __init__(self, folder: Path) -> None:
        self.inventory = folder / "planted.py"
        only = f"if group in one.groups and one.name in {HOSTS}"
        text = (ROOT / INVENTORY).read_text()
        assert "if group in one.groups" in text
        self.inventory.write_text(text.replace("if group in one.groups", only))
        self.needles: dict[str, str] = {}
        self.said: list[str] = []

    def deploy(self, *options: str) -> None:
        """All deploys by pyinfra itself, with new passwords."""
        environment = {**os.environ, "PYINFRA_PROGRESS": "off"}
        for variable in ("LAB_ADMIN_PASSWORD", "LAB_SUPERUSER_PASSWORD"):
            environment[variable], needle = password(variable.split("_")[1].lower())
            self.needles[f"{variable} {len(self.needles)}"] = needle
        for name in DEPLOYS:
            done = subprocess.run(
                [PYINFRA, str(self.inventory), f"deploys/{name}.py", "-y", *options],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            self.said.append(done.stdout)
            assert done.returncode == 0, done.stdout[-3000:]

    def keys(self) -> dict[str, str]:
        """A line of every private key of the operator's."""
        return {
            path.name: path.read_text().splitlines()[2]
            for path in (current_lab().directory / "ca").rglob("*.key")
        }


def on(name: str, command: str, given: str = "") -> str:
    """What a command on a host prints; it must succeed."""
    done = subprocess.run(
        ["ssh", "-F", str(current_lab().ssh_config_file), name, command],
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (name, command[:80], done.stdout, done.stderr)
    return done.stdout


def found_on(name: str, needles: set[str]) -> set[str]:
    """Where a host has a needle that others could see. Fails if not all of it was searched."""
    search = f"through='{THROUGH}'\n{SEARCH}"
    command = "sudo sh -c '" + search.replace("'", "'\\''") + "'"
    lines = on(name, command, "\n".join(sorted(needles)) + "\n").splitlines()
    assert lines[-1:] == [THROUGH], lines
    return set(lines[:-1])


def within(text: str, needles: dict[str, str]) -> list[str]:
    """The names of those needles that are in a text, in any of their forms."""
    return [name for name, needle in needles.items() if any(f in text for f in forms(needle))]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Planted, str]]:
    """The lab after both deploys, and all argument lists that were seen meanwhile."""
    folder = tmp_path_factory.mktemp("planted")
    command = [sys.executable, "-m", "lab"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_NAME", "planted")
        patch.setenv("LAB_NETWORK", "10.77.205.0/24")
        subprocess.run([*command, "down"], cwd=ROOT, check=True)
        sampled = folder / "sampled"
        try:
            subprocess.run([*command, "up", *HOSTS], cwd=ROOT, check=True)
            with (
                sampled.open("wb") as log,
                subprocess.Popen([sys.executable, "-c", SAMPLER], stdout=log) as sampler,
            ):
                try:
                    # The proof that the sampler sees what runs on a host.
                    on("agent1", "sleep 1; sh -c 'sleep 1; true' planted-argument")
                    lab = Planted(folder)
                    lab.deploy("-vvv", "--diff")
                    lab.deploy("-vvv", "--json")
                finally:
                    sampler.kill()
            yield lab, sampled.read_bytes().decode(errors="replace")
        finally:
            subprocess.run([*command, "down"], cwd=ROOT, check=True)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("host", HOSTS)
def test_the_search_finds_what_is_planted(host: str) -> None:
    by_sudo, elsewhere = secrets.token_hex(8), secrets.token_hex(8)
    for place, command in PLACES.items():
        on(host, f"sudo {command}", (by_sudo if place == "sudo" else elsewhere) + "\n")
    assert "sudo" in found_on(host, {by_sudo})
    found = found_on(host, {elsewhere})
    assert PLACES.keys() - found == {"sudo"}
    assert found_on(host, {secrets.token_hex(8)}) == set()


def test_a_text_is_found_within_base64() -> None:
    for shift in range(3):
        encoded = base64.b64encode(b"a" * shift + b"planted-text" + b"bcd").decode()
        assert within(encoded, {"it": "planted-text"}) == ["it"]


def test_the_argument_lists_of_hosts_are_seen(planted: tuple[Planted, str]) -> None:
    assert "planted-argument" in planted[1]


def test_pyinfra_shows_no_secret_however_much_it_is_asked_to(
    planted: tuple[Planted, str],
) -> None:
    lab, _ = planted
    said = "\n".join(lab.said)
    # It was asked for everything: commands and what they print.
    assert ">>> " in said
    assert re.search(r'"operations": ', said)
    assert within(said, lab.needles | lab.keys()) == []


def test_no_argument_list_has_a_secret(planted: tuple[Planted, str]) -> None:
    lab, arguments = planted
    assert "--register-agent" in arguments
    assert within(arguments, lab.needles | lab.keys()) == []


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_keeps_no_secret_where_others_could_see_it(
    planted: tuple[Planted, str], host: str
) -> None:
    lab, _ = planted
    every = {form for needle in (lab.needles | lab.keys()).values() for form in forms(needle)}
    assert found_on(host, every) == set()


def test_the_operator_keeps_no_secret_outside_of_the_authority(
    planted: tuple[Planted, str],
) -> None:
    lab, _ = planted
    for path in (ROOT / "pyinfra-debug.log", Path.home() / ".pyinfra"):
        for file in [path, *path.rglob("*")] if path.exists() else []:
            if file.is_file():
                text = file.read_text(errors="replace")
                assert within(text, lab.needles | lab.keys()) == [], file
    tracked = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "debug" not in tracked.stdout
