"""The CA's private keys are the operator's alone, or no host is touched."""

import os
import subprocess
import sys

import pytest

from fleet import ROOT
from fleet.hosts import CertificateAuthority
from fleet.keystore import key_problems
from fleet.mistakes import raise_noted


@pytest.fixture
def directory(tmp_path):
    """A CA directory as our own deploy leaves it."""
    path = tmp_path / "ca"
    (path / "clients").mkdir(parents=True)
    path.chmod(0o700)
    for name in ("server-ca.key", "client-ca.key", "clients/user@app1.key", "server-ca.crt"):
        (path / name).write_text("a key\n")
        (path / name).chmod(0o600)
    return path


def said(directory):
    """What the inventory says of a CA in this directory, without the line."""
    CertificateAuthority(directory=str(directory))
    with pytest.raises(Exception, match="1 mistake in the inventory; no host was touched") as error:
        raise_noted()
    return str(error.value).partition("CertificateAuthority: ")[2]


def test_keys_of_one_user_are_fine(directory):
    assert key_problems(directory) == []


def test_a_directory_that_is_not_there_is_made_later(tmp_path):
    assert key_problems(tmp_path / "none") == []


def test_a_certificate_may_be_read_by_everybody(directory):
    (directory / "server-ca.crt").chmod(0o644)
    assert key_problems(directory) == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_keys_that_others_can_read_are_told_all_together(directory, mode):
    for name in ("server-ca.key", "clients/user@app1.key"):
        (directory / name).chmod(mode)
    assert said(directory) == (
        f"{directory}/server-ca.key, {directory}/clients/user@app1.key can be read by others"
        f"\n    HINT: chown -R $USER {directory} && chmod -R go= {directory}"
    )


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_can_write_is_told(directory, mode):
    directory.chmod(mode)
    assert said(directory).startswith(f"{directory} can be written by others\n")


def test_a_key_that_leads_nowhere_is_told(directory):
    (directory / "other-ca.key").symlink_to("stick/other-ca.key")
    assert said(directory).startswith(
        f"{directory}/other-ca.key cannot be read: No such file or directory\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's keys take root to make")
@pytest.mark.parametrize("closed", ["ca", "ca/client-ca.key"])
def test_keys_that_the_operator_may_not_read_are_told(directory, closed):
    """As another user, asked in a process of its own."""
    (directory.parent / closed).chmod(0o000)
    if closed == "ca/client-ca.key":
        directory.chmod(0o755)
    for path in (directory, *directory.rglob("*")):
        if path.name != closed.rpartition("/")[2]:
            os.chown(path, 65534, 65534)
    code = (
        "import os, sys; from pathlib import Path; from fleet.keystore import key_problems;"
        " os.setgid(65534); os.setuid(65534); print(key_problems(Path('ca')))"
    )
    os.chown(directory.parent, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory.parent,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{closed} cannot be read: Permission denied" in done.stdout, done.stderr
