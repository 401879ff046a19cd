"""Hosts in a bad state: each is told in plain words, nothing is half done, the next run heals.

Faults are made with the hosts' own means (mount, systemd-run, apt), the findings are asked with
sha256sum and systemctl.
"""

from collections.abc import Iterator

import pytest

from tests.lab.conftest import Lab, within
from tests.lab.faults import (
    CUT,
    deploy,
    full,
    in_effect,
    leftovers,
    reachable,
    read_only,
    refused,
    when,
)

pytestmark = pytest.mark.lab

HOST = "bouncer2"
DEPLOY = "pgbouncer.py"
FOLDER = "/etc/pgbouncer"
INI = f"{FOLDER}/pgbouncer.ini"
DROP_IN = "/etc/systemd/system/pgbouncer.service.d/pem-fleet.conf"
BY_HAND = "; changed by hand"
POOLER_FILES = (
    *(f"{FOLDER}/tls/{name}" for name in ("server.crt", "server.key")),
    *(f"{FOLDER}/tls/{name}" for name in ("pem_agent_pool.crt", "pem_agent_pool.key")),
    f"{FOLDER}/hba.conf",
    INI,
    DROP_IN,
)
AGENT_FILES = (
    "/etc/pem-fleet/agent/pem_agent_user1.crt",
    "/etc/pem-fleet/agent/pem_agent_user1.key",
    "/etc/systemd/system/pemagent.service.d/pem-fleet.conf",
)
ANCHORS = ("/etc/pem-fleet/client-ca.crt", "/etc/pem-fleet/server-ca.crt")


@pytest.fixture(autouse=True)
def healthy(lab: Lab) -> Iterator[str]:
    """Every test begins with a file to write on the host, and ends with everything in order.

    What the pooler's files were before.
    """
    healthy = found(lab)[0]
    lab.run(HOST, f"echo '{BY_HAND}' >> {INI}")
    yield healthy
    if found(lab)[0] != healthy:
        deploy(DEPLOY, HOST)
    assert BY_HAND not in lab.run(HOST, f"cat {INI}")
    assert leftovers(lab, HOST) == ""
    assert lab.serves(HOST)


def found(lab: Lab) -> tuple[str, str]:
    """The pooler's files with their contents, and the process that runs."""
    return (
        lab.run(HOST, f"cd {FOLDER} && find . ! -type d -exec sha256sum {{}} + | sort -k 2"),
        lab.run(HOST, "systemctl show -p MainPID -p ActiveState -p NRestarts pgbouncer"),
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(read_only(FOLDER), "Read-only file system"), (full(FOLDER), "No space left on device")],
    ids=["read-only", "full"],
)
def test_a_disk_that_takes_nothing_more_keeps_the_old_files(
    lab: Lab, fault: str, reason: str
) -> None:
    with in_effect(lab, HOST, fault, f"umount {FOLDER}"):
        before = found(lab)
        said = refused(DEPLOY, HOST)
        assert f"{FOLDER}/tls/server.crt cannot be written: " in said
        assert reason in said
        assert f"HINT: findmnt -T {FOLDER}" in said
        assert found(lab) == before
        assert leftovers(lab, HOST) == ""


def test_a_full_tmp_keeps_nobody_from_proving_a_configuration(lab: Lab) -> None:
    full = "mount -t tmpfs -o size=4k tmpfs /tmp && (cat /dev/zero > /tmp/filling; true)"
    with in_effect(lab, HOST, full, "umount /tmp"):
        deploy(DEPLOY, HOST)
        assert BY_HAND not in lab.run(HOST, f"cat {INI}")


def test_one_file_that_cannot_be_replaced_keeps_all_old_ones(lab: Lab) -> None:
    lab.run(HOST, f"echo '# by hand' >> {FOLDER}/hba.conf")
    with in_effect(lab, HOST, f"mount --bind {INI} {INI}", f"umount {INI}"):
        before = found(lab)
        said = refused(DEPLOY, HOST)
        assert f"{INI} cannot be replaced: " in said
        assert "busy; all files are as they were" in said
        assert found(lab) == before


def test_a_directory_in_the_way_of_a_file_is_told_and_stays(lab: Lab) -> None:
    begin = f"mv {INI} {INI}.away && mkdir {INI} && touch {INI}/theirs"
    with in_effect(lab, HOST, begin, f"rm -r {INI} && mv {INI}.away {INI}"):
        before = found(lab)
        said = refused(DEPLOY, HOST)
        assert f"{INI} is a directory, a file belongs there; nothing was changed" in said
        assert f"HINT: mv {INI} {INI}.away, then run again" in said
        assert found(lab) == before


def test_a_file_in_the_way_of_a_directory_is_told_and_stays(lab: Lab) -> None:
    folder = "/etc/pem-fleet"
    begin = f"mv {folder} {folder}.away && echo theirs > {folder}"
    with in_effect(lab, "agent3", begin, f"rm {folder} && mv {folder}.away {folder}"):
        said = refused("ca.py", "agent3")
        assert f"{folder} is a regular file, a directory belongs there; it was not changed" in said
        assert lab.run("agent3", f"cat {folder}") == "theirs"
    deploy("ca.py", "agent3")


def test_a_link_in_the_way_of_a_file_is_kept_as_a_link(lab: Lab) -> None:
    lab.run(HOST, f"mv {INI} /srv/theirs.ini && ln -s /srv/theirs.ini {INI}")
    before = lab.run(HOST, "sha256sum /srv/theirs.ini")
    try:
        deploy(DEPLOY, HOST)
        assert lab.run(HOST, f"stat -c %F {INI}") == "regular file"
        assert lab.run(HOST, f"readlink {INI}.before-pem-fleet") == "/srv/theirs.ini"
        assert lab.run(HOST, "sha256sum /srv/theirs.ini") == before
    finally:
        lab.run(HOST, f"rm -f /srv/theirs.ini {INI}.before-pem-fleet")


@pytest.mark.parametrize(
    ("name", "host", "paths"),
    [
        ("ca.py", "agent3", ANCHORS),
        ("pgbouncer.py", HOST, POOLER_FILES),
        ("agent.py", "agent3", AGENT_FILES),
    ],
    ids=["ca", "pgbouncer", "agent"],
)
def test_a_foreign_file_in_the_place_of_each_of_ours_is_kept_beside_it(
    lab: Lab, name: str, host: str, paths: tuple[str, ...]
) -> None:
    for path in paths:
        lab.run(host, f"echo '# of somebody else: {path}' > {path}")
    try:
        deploy(name, host)
        for path in paths:
            kept = lab.run(host, f"cat {path}.before-pem-fleet")
            assert kept == f"# of somebody else: {path}"
            assert "Written by pem-fleet" in lab.run(host, f"head -n 1 {path}")
    finally:
        lab.run(host, f"rm -f {' '.join(f'{path}.before-pem-fleet' for path in paths)}")


def test_ssh_that_is_lost_while_a_configuration_is_proven_leaves_it_whole(
    lab: Lab, healthy: str
) -> None:
    edited = found(lab)[0]
    assert edited != healthy
    with when(lab, HOST, f"[ -e {INI}.pem-fleet-new ]", CUT):
        said = refused(DEPLOY, HOST)
    assert "the connection was lost" in said, said
    # The script goes on to its end without anybody who listens.
    within(30, "nothing is left of the proof", lambda: leftovers(lab, HOST) == "")
    assert found(lab)[0] in (edited, healthy)


def test_ssh_that_is_lost_while_packages_are_installed_is_healed(lab: Lab) -> None:
    lab.run(HOST, "dpkg -r postgresql-client >/dev/null 2>&1")
    with when(lab, HOST, "pgrep -x dpkg", CUT):
        said = refused(DEPLOY, HOST)
    assert "the connection was lost" in said, said
    deploy(DEPLOY, HOST)
    assert lab.run(HOST, "dpkg --audit") == ""


def test_a_package_source_that_does_not_answer_is_told(lab: Lab) -> None:
    lab.run(HOST, "dpkg -r postgresql-client >/dev/null 2>&1")
    nobody = 'Acquire::http::Proxy "http://127.0.0.1:9";'
    file = "/etc/apt/apt.conf.d/99nobody"
    begin = f"apt-get clean && echo '{nobody}' > {file}"
    with in_effect(lab, HOST, begin, f"rm {file}"):
        before = found(lab)
        said = refused(DEPLOY, HOST)
        assert "postgresql-client" in said
        assert "127.0.0.1:9" in said
        assert "Connection refused" in said
        assert found(lab) == before


def test_a_pooler_that_is_cut_from_the_database_keeps_what_it_runs(lab: Lab) -> None:
    lab.command("cut", HOST)
    try:
        before = found(lab)
        said = refused(DEPLOY, HOST)
        assert (
            "refused, the running configuration stays: the database does not do its part" in said
        ), said
        assert found(lab) == before
    finally:
        lab.command("heal")


def test_a_user_who_may_not_use_sudo_is_told(lab: Lab) -> None:
    # The host gives the right back by itself: nobody else could.
    away = "/etc/sudoers.d.away"
    lab.run(
        HOST,
        f"mv /etc/sudoers.d {away} && systemd-run -q --collect sh -c"
        f" 'sleep 8; mv {away} /etc/sudoers.d'",
    )
    said = refused(DEPLOY, HOST)
    assert "sudo wants a password and there is no terminal to ask on" in said
    assert "HINT: on the host: " in said
    within(30, "sudo is allowed again", lambda: reachable(lab, HOST))


def test_a_host_whose_network_falls_silent_is_given_up(lab: Lab) -> None:
    silent = "ip link set host0 down; sleep 40; ip link set host0 up"
    with when(lab, HOST, f"[ -e {INI}.pem-fleet-new ]", silent):
        said = refused(DEPLOY, HOST)
    assert "the connection was lost" in said, said
