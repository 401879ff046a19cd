"""The files of a pooler: what proves them is what runs, and every change of them shows."""

import difflib
from ipaddress import ip_address

import pytest
from pydantic import SecretStr

from fleet.access import hba_lines
from fleet.hosts import Host
from fleet.leaves import leaves_of, server_leaf
from fleet.operations.files import CANDIDATE
from fleet.platforms import pgbouncer
from fleet.pooler import (
    configuration,
    consoles,
    login,
    preferred,
    runtime_settings,
    spare_ini,
)
from fleet.processes import unit_files
from tests.samples import with_cluster, with_ipv6, with_pooler, with_server

PLACE = pgbouncer("debian", "distribution")


def changed(fleet, **roles):
    """The same fleet with some settings of its poolers, agents or server changed."""
    server = fleet.pem_server.but(**roles.get("pem_server", {}))
    bouncer = fleet.pgbouncer.but(server=server, **roles.get("pgbouncer", {}))
    agent = fleet.agent.but(via=bouncer, **roles.get("agent", {}))
    return fleet.but(pem_server=server, pgbouncer=bouncer, agent=agent)


def fingerprint(fleet):
    """What SHOW CONFIG shows of the files that run."""
    return runtime_settings(fleet, fleet.pgbouncer.hosts[0], PLACE)["auth_query"]


def test_the_second_instance_differs_in_where_it_listens_and_that_it_reads_candidates(fleet):
    machine = fleet.pgbouncer.hosts[0]
    ini = configuration(fleet, machine, PLACE)[-1].content
    lines = difflib.ndiff(ini.splitlines(), spare_ini(fleet, machine, PLACE).splitlines())
    spare = dict(line[2:].split(" =", 1) for line in lines if line.startswith("+ "))
    assert {key: value.strip() for key, value in spare.items()} == {
        "logfile": "@SPARE@/log",
        "pidfile": "@SPARE@/pid",
        "unix_socket_dir": "@SPARE@",
        "listen_addr": "",
        "client_tls_ca_file": f"/etc/pem-fleet/trusted-clients.crt{CANDIDATE}",
        "client_tls_cert_file": f"/etc/pgbouncer/tls/server.crt{CANDIDATE}",
        "client_tls_key_file": f"/etc/pgbouncer/tls/server.key{CANDIDATE}",
        "auth_hba_file": f"/etc/pgbouncer/hba.conf{CANDIDATE}",
        "server_tls_cert_file": f"/etc/pgbouncer/tls/pem_agent_pool.crt{CANDIDATE}",
        "server_tls_key_file": f"/etc/pgbouncer/tls/pem_agent_pool.key{CANDIDATE}",
    }


def test_the_proof_logs_in_as_the_pooler_would_with_the_names_checked(fleet):
    said = dict(word.split("=", 1) for word in login(fleet, PLACE).split())
    assert said == {
        "host": "pem.example.com",
        "port": "5432",
        "dbname": "pem",
        "user": "pgbouncer",
        "connect_timeout": "10",
        "sslmode": "verify-full",
        "sslrootcert": "/etc/pem-fleet/server-ca.crt",
        "sslcert": f"/etc/pgbouncer/tls/pem_agent_pool.crt{CANDIDATE}",
        "sslkey": f"/etc/pgbouncer/tls/pem_agent_pool.key{CANDIDATE}",
    }


def test_the_fingerprint_stays_while_nothing_changes(fleet):
    assert fingerprint(fleet) == fingerprint(changed(fleet))


@pytest.mark.parametrize(
    "roles",
    [
        {"pgbouncer": {"pool_size": 9}},
        {"pgbouncer": {"processes": 2}},
        {"pgbouncer": {"log_connections": False}},
        {"pgbouncer": {"stats_user": "pem_stats", "stats_password": SecretStr("x")}},
        {"pgbouncer": {"extra": {"verbose": "1"}}},
        {"pgbouncer": {"listen_port": 6433}},
        {"pgbouncer": {"admin_networks": ("192.0.2.0/30",)}},
        {"pgbouncer": {"agent_networks": ("192.0.2.0/24",)}},
        {"pem_server": {"port": 5433}},
        {"agent": {"heartbeat_connection": True}},
        {"agent": {"hosts": (Host(name="app9", address="192.0.2.39"),)}},
    ],
    ids=str,
)
def test_the_fingerprint_shows_every_change_of_the_inventory(fleet, roles):
    assert fingerprint(changed(fleet, **roles)) != fingerprint(fleet)


@pytest.mark.parametrize(
    "name",
    [
        "server-ca.crt",
        "client-ca.crt",
        "servers/bouncer1.crt",
        "servers/bouncer1.key",
        "clients/pem_agent_pool@bouncer1.crt",
        "clients/pem_agent_pool@bouncer1.key",
    ],
)
def test_the_fingerprint_shows_every_new_certificate_and_key(fleet, name):
    before = fingerprint(fleet)
    (fleet.certificate_authority.path / name).write_text("renewed\n")
    assert fingerprint(fleet) != before


def test_another_hosts_certificate_changes_nothing_here(fleet):
    before = fingerprint(fleet)
    (fleet.certificate_authority.path / "servers/bouncer2.crt").write_text("renewed\n")
    assert fingerprint(fleet) == before


def test_settings_of_the_inventory_are_in_the_ini(fleet):
    wanted = changed(fleet, pgbouncer={"extra": {"verbose": "1", "tcp_keepidle": "30"}})
    ini = configuration(wanted, wanted.pgbouncer.hosts[0], PLACE)[-1].content
    assert ini.endswith("\n;; From the inventory.\nverbose = 1\ntcp_keepidle = 30\n")


def test_agents_come_from_their_networks_where_the_inventory_names_them(fleet):
    wanted = changed(fleet, pgbouncer={"agent_networks": ("192.0.2.0/24", "2001:db8::/64")})
    rules = configuration(wanted, wanted.pgbouncer.hosts[0], PLACE)[-2].content
    assert [line for line in rules.splitlines() if line.startswith("hostssl pem ")] == [
        "hostssl pem pem_agent_user1 192.0.2.0/24 cert",
        "hostssl pem pem_admin1 192.0.2.0/24 scram-sha-256",
        "hostssl pem pem_agent_user1 2001:db8::/64 cert",
        "hostssl pem pem_admin1 2001:db8::/64 scram-sha-256",
    ]


def test_every_agent_knows_all_poolers_and_about_half_begin_at_each(fleet):
    hosts = [Host(name=f"app{n}", address="192.0.2.9") for n in range(100)]
    orders = [preferred(fleet.pgbouncer, host) for host in hosts]
    assert set(orders) == {("bouncer1", "bouncer2"), ("bouncer2", "bouncer1")}
    assert 40 <= sum(order[0] == "bouncer1" for order in orders) <= 60


def test_each_host_gets_the_certificates_of_its_roles_alone(fleet):
    stems = {
        host.name: [leaf.file_stem for leaf in leaves_of(fleet, host)] for host in fleet.machines()
    }
    assert stems == {
        "pem.example.com": ["servers/pem.example.com"],
        "bouncer1": ["servers/bouncer1", "clients/pem_agent_pool@bouncer1"],
        "bouncer2": ["servers/bouncer2", "clients/pem_agent_pool@bouncer2"],
        "app1": ["clients/pem_agent_user1@app1"],
        "app2": ["clients/pem_agent_user1@app2"],
        "app3": ["clients/pem_agent_user1@app3"],
    }


def test_poolers_go_to_the_endpoint_of_a_cluster_which_every_database_answers_to(fleet):
    cluster = with_cluster(fleet)
    machine = cluster.pgbouncer.hosts[0]
    assert "pem = host=pem.example.com port=" in configuration(cluster, machine, PLACE)[-1].content
    assert login(cluster, PLACE).startswith("host=pem.example.com ")
    names = [server_leaf(cluster, host).dns_names for host in cluster.pem_server.hosts]
    assert names == [(name, "pem.example.com") for name in ("pem1", "pem2", "pem3")]
    assert server_leaf(cluster, machine).dns_names == ("bouncer1",)


def test_an_endpoint_may_be_an_address_and_is_one_in_the_certificates(fleet):
    cluster = with_cluster(fleet)
    cluster = with_server(cluster, endpoint="2001:db8::10")
    leaf = server_leaf(cluster, cluster.pem_server.hosts[0])
    assert (leaf.dns_names, [str(one) for one in leaf.addresses]) == (
        ("pem1",),
        ["192.0.2.11", "2001:db8::10"],
    )


# Several processes


def inis(fleet):
    """The ini of each process, by its name."""
    files = configuration(fleet, fleet.pgbouncer.hosts[0], PLACE)
    return {
        file.path.rpartition("/")[2]: file.content for file in files if file.path.endswith(".ini")
    }


def test_the_inis_of_several_processes_differ_in_what_no_two_can_share(fleet):
    texts = inis(with_pooler(fleet, processes=3))
    assert list(texts) == ["pgbouncer-1.ini", "pgbouncer-2.ini", "pgbouncer-3.ini"]
    one, _, three = texts.values()
    lines = difflib.ndiff(one.splitlines(), three.splitlines())
    assert [line[2:] for line in lines if line.startswith("+ ")] == [
        "logfile = /var/log/postgresql/pgbouncer-3.log",
        "pidfile = /run/pem-fleet-pgbouncer-3/pgbouncer.pid",
        "unix_socket_dir = /run/pem-fleet-pgbouncer-3",
        "peer_id = 3",
    ]


def test_every_process_knows_the_console_of_every_other(fleet):
    several = with_pooler(fleet, processes=2)
    assert consoles(several, PLACE) == ("/run/pem-fleet-pgbouncer-1", "/run/pem-fleet-pgbouncer-2")
    for text in inis(several).values():
        peers = text.partition("[peers]\n")[2].partition("\n\n")[0]
        assert [line for line in peers.splitlines() if not line.startswith(";;")] == [
            "1 = host=/run/pem-fleet-pgbouncer-1 port=6432",
            "2 = host=/run/pem-fleet-pgbouncer-2 port=6432",
        ]


def test_one_process_is_the_packages_own_with_its_socket(fleet):
    assert list(inis(fleet)) == ["pgbouncer.ini"]
    assert consoles(fleet, PLACE) == ("/run/postgresql",)
    assert [word for word in ("peer", "reuseport") if word in inis(fleet)["pgbouncer.ini"]] == []


@pytest.mark.parametrize("processes_wanted", [1, 2])
def test_a_unit_drains_by_the_console_of_its_process(fleet, processes_wanted):
    several = with_pooler(fleet, processes=processes_wanted, drain_seconds=7)
    (settings,) = [file for file in unit_files(several, PLACE) if file.path.endswith(".conf")]
    socket = "/run/postgresql" if processes_wanted == 1 else "/run/pem-fleet-pgbouncer-%i"
    drain = f"/bin/sh /etc/pgbouncer/drain.sh 7 {socket} 6432 $MAINPID"
    assert f"ExecStop={drain}\nTimeoutStopSec=307\n" in settings.content


# Who watches, and what is logged


def test_the_stats_user_comes_to_the_console_alone_and_from_its_networks(fleet):
    watched = with_pooler(
        fleet,
        stats_user="pem_stats",
        stats_password=SecretStr("x"),
        stats_networks=("192.0.2.64/26",),
    )
    rules = configuration(watched, watched.pgbouncer.hosts[0], PLACE)[-2].content
    assert [line for line in rules.splitlines() if "pem_stats" in line] == [
        "hostssl pgbouncer pem_stats 192.0.2.64/26 scram-sha-256"
    ]
    assert "\nstats_users = pem_stats\n" in inis(watched)["pgbouncer.ini"]


def test_what_is_not_a_setting_of_ours_is_passed_on_such_as_syslog(fleet):
    extra = {"syslog": "1", "syslog_facility": "local0", "stats_period": "300"}
    text = inis(with_pooler(fleet, extra=extra))["pgbouncer.ini"]
    assert text.endswith("\nsyslog = 1\nsyslog_facility = local0\nstats_period = 300\n")


# IPv6


def test_ipv6_addresses_are_in_every_rule_and_in_the_certificate(fleet):
    six = with_ipv6(fleet)
    rules = configuration(six, six.pgbouncer.hosts[0], PLACE)[-2].content
    assert "hostssl pgbouncer pem_admin1 2001:db8::/124 scram-sha-256" in rules
    assert "hostssl pem pem_agent_user1 2001:db8::31/128 cert" in rules
    assert hba_lines(six)[0] == (
        "hostssl pem +pem_agent_pool 2001:db8::21/128 cert map=pem_agent_pool"
    )
    leaf = server_leaf(six, six.pgbouncer.hosts[0])
    assert leaf.addresses == (ip_address("2001:db8::21"),)


def test_an_endpoint_may_be_an_ipv6_address(fleet):
    hosts = tuple(Host(name=f"pem{n}", address=f"2001:db8::1{n}") for n in (1, 2))
    cluster = with_server(with_ipv6(fleet), hosts=hosts, endpoint="2001:db8::9", installation=None)
    assert "\npem = host=2001:db8::9 port=5432 " in inis(cluster)["pgbouncer.ini"]
    assert login(cluster, PLACE).startswith("host=2001:db8::9 port=5432 ")
