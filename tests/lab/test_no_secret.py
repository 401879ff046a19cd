"""No password and no private key is left anywhere: planted ones are searched after a full deploy.

In a lab of its own: deployed fresh with everything that pyinfra can show, then again with other
passwords, while Postgres logs every statement and a direct agent is moved; then that agent is
rolled back and a pooler restarted. The search is proven first, on every host, by markers that are
put where it looks.

Argument lists are read when the kernel tells that a program starts. One that ends at once may be
missed, so the share that is seen is measured with such programs, and must be at least SEEN_SHARE.
A secret in an argument list would be in three at least (the login's shell, sudo, sudo's shell), and
in those of both deploys: all six unseen would be once in 15 000 times. What sudo ran is in its log
without gaps, and that is searched as well.
"""

import base64
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import ROOT
from fleet.run import DEPLOYS
from lab.hosts import current_lab
from tests.lab.conftest import INVENTORY, PYINFRA
from tests.lab.test_existing_agent import REGISTER_DIRECTLY

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

HOSTS = ("pem1", "bouncer1", "agent1")

# Of programs that end at once, this share is seen by tests/lab/watch_arguments.py at the least.
SEEN_SHARE = 0.8
SHORT_PROGRAMS = 100

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


# More secrets than the lab's inventory has: monitoring, a user of another database.
MORE = {
    "    admin_networks=": """\
    processes=2,
    stats_user="planted_stats",
    stats_password=secret("LAB_STATS_PASSWORD"),
    admin_networks=""",
    "fleet = Fleet(": """\
from fleet.databases import Access, Database, PoolerRule, User

access = Access(
    databases=(Database(name="planted", owner="planted_owner", pooled=True),),
    users=(
        User(name="planted_owner", login=False),
        User(
            name="planted_user",
            password=secret("LAB_USER_PASSWORD"),
            databases=("planted",),
            pooled=True,
        ),
    ),
    pooler_rules=(PoolerRule(networks=(_lab.network,)),),
)
fleet = Fleet(access=access, """,
    "if group in one.groups": f"if group in one.groups and one.name in {HOSTS}",
}
VARIABLES = tuple(f"LAB_{whose}_PASSWORD" for whose in ("ADMIN", "SUPERUSER", "STATS", "USER"))
ROLES = ("pem_admin1", "postgres", "planted_stats", "planted_user")


class Planted:
    """A lab with planted secrets, and everything that was said while it was deployed."""

    def __init__(self, folder: Path) -> None:
        self.inventory = folder / "planted.py"
        text = (ROOT / INVENTORY).read_text()
        for old, new in MORE.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        self.inventory.write_text(text)
        self.environment = {**os.environ, "PYINFRA_PROGRESS": "off"}
        self.needles: dict[str, str] = {}
        self.said: list[str] = []

    def new_passwords(self) -> None:
        """Other passwords for everybody, from the next run on."""
        for variable in VARIABLES:
            self.environment[variable], needle = password(variable.split("_")[1].lower())
            self.needles[f"{variable} {len(self.needles)}"] = needle

    def run(self, deploy: str, *options: str) -> None:
        """A deploy by pyinfra itself."""
        done = subprocess.run(
            [PYINFRA, str(self.inventory), f"deploys/{deploy}.py", "-y", "-vvv", *options],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.said.append(done.stdout)
        assert done.returncode == 0, done.stdout[-3000:]

    def sql(self, statement: str) -> str:
        return on("pem1", "cd / && sudo -u postgres psql -XAtq -f -", statement)

    def note_verifiers(self) -> None:
        """What the server keeps of the passwords, by the part that every use of it has."""
        for role in ROLES:
            kept = self.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'")
            assert kept.startswith("SCRAM-SHA-256$"), role
            salted = kept.split("$")[1]
            self.needles[f"verifier of {role} {len(self.needles)}"] = f"{salted}$"

    def log_statements(self) -> None:
        """Have Postgres write down whatever it is asked."""
        self.sql("ALTER SYSTEM SET log_statement = 'all'")
        self.sql("ALTER SYSTEM SET log_min_duration_statement = 0")
        self.sql("SELECT pg_reload_conf()")

    def make_direct(self, agent: str) -> None:
        """An agent as PEM's own registration makes it, and its key among the needles."""
        command = "sudo sh -c '" + REGISTER_DIRECTLY.replace("'", "'\\''") + "'"
        on(agent, command, self.environment["LAB_ADMIN_PASSWORD"] + "\n")
        on(agent, "sudo systemctl start pemagent")
        key = on(agent, "sudo sh -c 'sed -n 3p /root/.pem/*.key'").strip()
        assert len(key) > 20
        self.needles[f"key of {agent}"] = key

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


def prove_the_watch() -> None:
    """Start programs on a host that end at once, each with an argument of its own."""
    time.sleep(1)
    on(
        "agent1",
        f"i=0; while [ $i -lt {SHORT_PROGRAMS} ]; do"
        " /bin/true planted-argument-$i-$$; i=$((i + 1)); done",
    )
    time.sleep(1)


def play(lab: Planted) -> None:
    """Two full deploys, with everything between and after them that handles a secret."""
    lab.new_passwords()
    for name in DEPLOYS:
        lab.run(name, "--diff")
    lab.note_verifiers()
    # Before statements are logged: PEM's own registration has the server sign a key in a statement.
    lab.make_direct("agent1")
    lab.log_statements()
    lab.new_passwords()
    for name in DEPLOYS:
        lab.run(name, "--json")
    lab.note_verifiers()
    lab.run("agent_rollback", "--limit", "agent1")
    lab.run("pgbouncer_restart", "--limit", "bouncer1")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Planted, str]]:
    """The lab after both deploys, and all argument lists that were seen meanwhile."""
    folder = tmp_path_factory.mktemp("planted")
    command = [sys.executable, "-m", "lab"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_NAME", "planted")
        patch.setenv("LAB_NETWORK", "10.77.205.0/24")
        subprocess.run([*command, "down"], cwd=ROOT, check=True)
        started = folder / "started"
        try:
            subprocess.run([*command, "up", *HOSTS], cwd=ROOT, check=True)
            watch = [sys.executable, str(Path(__file__).with_name("watch_arguments.py"))]
            with started.open("wb") as log, subprocess.Popen(watch, stdout=log) as watcher:
                try:
                    prove_the_watch()
                    lab = Planted(folder)
                    play(lab)
                    # Under the load of the whole, too.
                    prove_the_watch()
                finally:
                    watcher.kill()
            yield lab, started.read_bytes().decode(errors="replace")
        finally:
            subprocess.run([*command, "down"], cwd=ROOT, check=True)


@pytest.fixture
def arguments(planted: tuple[Planted, str]) -> str:
    """All argument lists that were seen."""
    if not planted[1]:
        pytest.skip("the kernel tells of no program's start (PROC_EVENTS): no list was searched")
    return planted[1]


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


def test_programs_that_end_at_once_are_seen(arguments: str) -> None:
    seen = set(re.findall(r"/bin/true\0(planted-argument-\d+-\d+)", arguments))
    share = len(seen) / (2 * SHORT_PROGRAMS)
    print(f"{share:.0%} of {2 * SHORT_PROGRAMS} programs that end at once were seen")
    assert share >= SEEN_SHARE


def test_postgres_wrote_down_what_it_was_asked_but_for_passwords(
    planted: tuple[Planted, str],
) -> None:
    lab, _ = planted
    log = on("pem1", "sudo sh -c 'cat /var/log/postgresql/*.log'")
    assert "statement: SET log_statement = 'none'" in log
    assert "FROM pg_roles" in log
    assert within(log, lab.needles) == []


def test_the_agent_was_moved_with_its_key_kept_and_is_direct_again(
    planted: tuple[Planted, str],
) -> None:
    lab, _ = planted
    own = {name: key for name, key in lab.needles.items() if name.endswith("of agent1")}
    assert own
    kept = on("agent1", "sudo sh -c 'cat /etc/pem-fleet/agent/backups/*/key'")
    assert set(within(kept, own)) == set(own)
    assert "pem_host=pem1" in on("agent1", "sudo cat /usr/edb/pem/agent/etc/agent.cfg")


def test_pyinfra_shows_no_secret_however_much_it_is_asked_to(
    planted: tuple[Planted, str],
) -> None:
    lab, _ = planted
    said = "\n".join(lab.said)
    # It was asked for everything: commands and what they print.
    assert ">>> " in said
    assert re.search(r'"operations": ', said)
    assert within(said, lab.needles | lab.keys()) == []


def test_no_argument_list_has_a_secret(planted: tuple[Planted, str], arguments: str) -> None:
    lab, _ = planted
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
