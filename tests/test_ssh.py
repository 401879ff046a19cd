"""How hosts are reached: settings for pyinfra, and a transport for any way that leads there."""

import paramiko

from fleet.ssh import ssh


def test_files_are_found_in_the_operators_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = ssh(user="deploy", key="~/.ssh/key", known_hosts="~/known", config="~/config")
    assert settings["ssh_key"] == "/home/somebody/.ssh/key"
    assert settings["ssh_known_hosts_file"] == "/home/somebody/known"
    assert settings["ssh_config_file"] == "/home/somebody/config"


def test_what_is_not_given_is_left_to_pyinfra():
    assert {"ssh_key", "ssh_known_hosts_file", "ssh_config_file"}.isdisjoint(ssh(user="deploy"))


def test_a_channel_through_a_bastion_is_as_good_as_a_socket():
    connect = ssh(user="deploy")["ssh_paramiko_connect_kwargs"]
    channel = paramiko.Channel(1)
    assert connect["transport_factory"](channel).sock is channel
