"""files/move-agent.sh: an agent's files are backed up, changed on trial, and come back exactly."""

import hashlib
import os
import subprocess

import pytest

from fleet import ROOT


class AgentHost:
    """A directory with the files of an agent's host, and a systemctl that notes its arguments."""

    def __init__(self, root):
        self.root, self.home = root, root / "home"
        self.config, self.settings = root / "agent.cfg", root / "unit.d" / "pem-fleet.conf"
        self.key, self.certificate = root / "pem" / "agent3.key", root / "pem" / "agent3.crt"
        for folder in (self.home / "candidate", self.key.parent, root / "bin"):
            folder.mkdir(parents=True)
        self.key.write_text("the key\n")
        self.certificate.write_text("the certificate\n")
        self.key.chmod(0o600)
        self.config.write_bytes(
            b"# caf\xe9\r\n[x]\r\nagent_ssl_key=/not/this\r\n"
            b"[PEM/agent]\r\n#agent_ssl_key=/nor/this\r\n"
            + f"agent_ssl_key = {self.key}\r\nagent_ssl_crt={self.certificate}".encode()
        )
        self.config.chmod(0o640)
        (self.home / "candidate" / "agent.cfg").write_text("candidate\n")
        (self.home / "candidate" / "pem-fleet.conf").write_text("settings\n")
        self.systemctl("exit 0")

    def systemctl(self, answer):
        """What systemctl does after it noted its arguments."""
        program = self.root / "bin" / "systemctl"
        program.write_text(f'#!/bin/sh\necho "$*" >>{self.root}/asked\n{answer}\n')
        program.chmod(0o755)

    def run(self, *arguments):
        return subprocess.run(
            ["sh", str(ROOT / "files" / "move-agent.sh"), *arguments],
            env={
                "PATH": f"{self.root}/bin:{os.environ['PATH']}",
                "PEM_FLEET_AGENT": str(self.home),
                "PEM_AGENT_CONFIG": str(self.config),
                "PEM_AGENT_DROP_IN": str(self.settings),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def begin(self):
        sha256 = hashlib.sha256(self.config.read_bytes()).hexdigest()
        return self.run("try", str(self.home / "candidate"), sha256)

    def files(self):
        """Each file of the agent with its mode and content."""
        paths = (self.config, self.key, self.certificate, self.settings)
        return {
            path: (path.stat().st_mode & 0o777, path.read_bytes())
            for path in paths
            if path.exists()
        }

    def asked(self):
        return (self.root / "asked").read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    return AgentHost(tmp_path)


ARMED = "enable --quiet --now pem-fleet-agent-trial.timer"
DISARMED = "disable --quiet --now pem-fleet-agent-trial.timer"
RESTARTED = ["daemon-reload", "restart pemagent"]


def test_a_trial_backs_up_arms_the_timer_and_then_changes_the_agent(machine):
    before = machine.files()
    begun = machine.begin()
    assert (begun.returncode, begun.stderr) == (0, "")
    assert machine.asked() == [ARMED, *RESTARTED]
    assert machine.config.read_text() == "candidate\n"
    assert machine.config.stat().st_mode & 0o777 == 0o640
    assert machine.settings.read_text() == "settings\n"
    (backup,) = (machine.home / "backups").iterdir()
    assert (machine.home / "trial").read_text() == f"{backup}\n"
    kept = {path.name: path.read_bytes() for path in backup.iterdir()}
    del kept["paths"]
    assert kept == {
        "agent.cfg": before[machine.config][1],
        "key": b"the key\n",
        "certificate": b"the certificate\n",
    }
    assert {path.stat().st_mode & 0o777 for path in backup.iterdir()} == {0o600}
    assert backup.stat().st_mode & 0o777 == 0o700


def test_a_kept_trial_is_over(machine):
    machine.begin()
    assert machine.run("keep").returncode == 0
    assert machine.asked()[-1] == DISARMED
    assert machine.config.read_text() == "candidate\n"
    late = machine.run("keep")
    assert (late.returncode, "took too long" in late.stderr) == (1, True)


def test_going_back_restores_every_file_with_its_mode_and_takes_the_settings_away(machine):
    before = machine.files()
    machine.begin()
    machine.key.unlink()
    assert machine.run("back").returncode == 0
    assert machine.files() == before
    assert machine.asked()[-3:] == [*RESTARTED, DISARMED]
    assert not (machine.home / "trial").exists()
    assert machine.run("back").returncode == 0, "twice is as good as once"


def test_an_agent_that_does_not_stop_is_killed_on_its_way_back(machine):
    before = machine.files()
    machine.begin()
    machine.systemctl('[ "$1" != stop ]')
    assert machine.run("back").returncode == 0
    killed = ["stop pemagent", "kill --signal=KILL pemagent"]
    assert machine.asked()[-5:] == [*killed, *RESTARTED, DISARMED]
    assert machine.files() == before


def test_going_back_restores_the_units_settings_that_were_there(machine):
    machine.settings.parent.mkdir()
    machine.settings.write_text("as it was\n")
    before = machine.files()
    machine.begin()
    machine.run("back")
    assert machine.files() == before


def test_a_moved_agent_goes_back_to_a_backup_that_is_named(machine):
    before = machine.files()
    machine.begin()
    machine.run("keep")
    (backup,) = (machine.home / "backups").iterdir()
    assert machine.run("back", str(backup)).returncode == 0
    assert machine.files() == before
    assert backup.exists(), "a backup stays"


def test_an_agent_that_does_not_start_on_its_new_settings_is_back_at_once(machine):
    before = machine.files()
    machine.systemctl(f"case $1 in restart) ! grep -q candidate {machine.config} ;; esac")
    begun = machine.begin()
    assert begun.returncode != 0
    assert "pemagent does not restart" in begun.stderr
    assert machine.files() == before
    assert not (machine.home / "trial").exists()


def test_an_agent_that_does_not_start_on_its_old_settings_either_stays_on_trial(machine):
    machine.systemctl('[ "$1" != restart ]')
    before = machine.files()
    assert machine.begin().returncode != 0
    assert machine.files() == before
    assert (machine.home / "trial").exists(), "the timer tries again"


def test_a_file_that_somebody_changed_meanwhile_is_left_alone(machine):
    before = machine.files()
    begun = machine.run("try", str(machine.home / "candidate"), "0" * 64)
    assert (begun.returncode, machine.files()) == (1, before)
    assert "changed by somebody else just now" in begun.stderr
    assert not (machine.home / "backups").exists()


def test_a_second_trial_waits_for_the_end_of_the_first(machine):
    machine.begin()
    (machine.home / "candidate").mkdir()
    assert "another trial is under way" in machine.begin().stderr


def test_what_a_link_points_to_is_replaced_and_restored(machine):
    real = machine.root / "real.cfg"
    machine.config.rename(real)
    machine.config.symlink_to(real)
    before = real.read_bytes()
    machine.begin()
    assert (machine.config.is_symlink(), real.read_text()) == (True, "candidate\n")
    machine.run("back")
    assert (machine.config.is_symlink(), real.read_bytes()) == (True, before)


def test_a_link_beside_the_key_leads_root_nowhere(machine):
    elsewhere = machine.root / "of-root"
    elsewhere.write_text("not the agent's\n")
    machine.begin()
    machine.key.with_name(machine.key.name + ".pem-fleet-new").symlink_to(elsewhere)
    assert machine.run("back").returncode == 0
    assert (machine.key.read_text(), elsewhere.read_text()) == ("the key\n", "not the agent's\n")
