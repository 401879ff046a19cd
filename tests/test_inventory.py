"""Wrong inventories: all mistakes at once, where they are and what to type, before any host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyinfra.api.exceptions import InventoryError

from fleet import ROOT
from fleet.inventory import fleet_of

PASSWORD = "planted-admin-password"

GOOD = """\
from fleet.hosts import Agent, CertificateAuthority, Fleet, Host, PemServer, PgBouncer
from fleet.secrets import secret

pem = Host(name="pem", address="192.0.2.10")
bouncer1 = Host(name="bouncer1", address="192.0.2.21")
bouncer2 = Host(name="bouncer2", address="192.0.2.22")
app1 = Host(name="app1", address="192.0.2.31")
authority = CertificateAuthority(directory="~/.pem-fleet/test")
server = PemServer(hosts=(pem,), admin_password=secret("PEM_ADMIN_PASSWORD"))
bouncer = PgBouncer(hosts=(bouncer1, bouncer2), server=server, admin_networks=("192.0.2.0/28",))
agents = Agent(hosts=(app1,), via=bouncer)
fleet = Fleet(certificate_authority=authority, pem_server=server, pgbouncer=bouncer, agent=agents)
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(text): the fleet of an inventory of this text, with only PEM_ADMIN_PASSWORD set."""
    monkeypatch.setenv("PEM_ADMIN_PASSWORD", PASSWORD)
    file = tmp_path / "inventory.py"

    def load(text):
        file.write_text(text)
        return fleet_of(str(file))

    return load


def mistakes(load, text):
    """What is said of a wrong inventory: for each mistake its line, the problem and the hint."""
    with pytest.raises(InventoryError) as error:
        load(text)
    said = str(error.value)
    assert PASSWORD not in said
    found = re.findall(r"^\S*/inventory\.py line (\d+): (.*)\n    HINT: (.+)$", said, re.MULTILINE)
    count = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
    assert said.startswith(f"{count} in the inventory; no host was touched\n\n")
    return [(int(line), problem, hint) for line, problem, hint in found]


def line_of(start):
    """The line of the good inventory that begins so."""
    return next(n for n, line in enumerate(GOOD.splitlines(), 1) if line.startswith(start))


BOUNCERS = "hosts=(bouncer1, bouncer2)"
WRONG = [
    pytest.param(
        BOUNCERS, f"{BOUNCERS}, listen_prt=1", "bouncer =",
        "PgBouncer(listen_prt): no such setting", "write listen_port=…",
        id="an unknown setting with a near name",
    ),
    pytest.param(
        BOUNCERS, f"{BOUNCERS}, wholly_else=1", "bouncer =",
        "PgBouncer(wholly_else): no such setting",
        "known: hosts, server, listen_port, vendor, version, admin_networks, agent_networks,"
        " processes, drain_seconds, pool_size, max_client_conn, stats_user, stats_password,"
        " stats_networks, log_connections, extra",
        id="an unknown setting without one",
    ),
    pytest.param(
        ', admin_networks=("192.0.2.0/28",)', "", "bouncer =",
        "PgBouncer(admin_networks): required, and not given",
        "add admin_networks=…: from where the admin console may be reached",
        id="a missing setting",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, pool_size="40"', "bouncer =",
        "PgBouncer(pool_size): input should be a valid integer",
        "pool_size: of all processes together; computed from the agents when not given",
        id="a text where a number belongs",
    ),
    pytest.param(
        BOUNCERS, "hosts=bouncer1", "bouncer =",
        "PgBouncer(hosts): input should be a valid tuple", "hosts: a tuple of Host(…)",
        id="a host where a tuple of hosts belongs",
    ),
    pytest.param(
        BOUNCERS, "hosts=()", "bouncer =",
        "PgBouncer(hosts): tuple should have at least 1 item after validation, not 0",
        "hosts: a tuple of Host(…)",
        id="a role without hosts",
    ),
    pytest.param(
        BOUNCERS, f"{BOUNCERS}, listen_port=65536", "bouncer =",
        "PgBouncer(listen_port): input should be less than or equal to 65535",
        "listen_port: see the class in fleet/hosts.py",
        id="a port out of range",
    ),
    pytest.param(
        "192.0.2.31", "192.0.2.310", "app1 =",
        "Host(address): '192.0.2.310' does not appear to be an IPv4 or IPv6 address",
        "address: the address that the other hosts see",
        id="an address that is none",
    ),
    pytest.param(
        "hosts=(pem,)", 'hosts=(pem,), vendor="debian"', "server =",
        "PemServer(vendor): input should be 'distribution' or 'pgdg'",
        "vendor: whose Postgres packages it runs",
        id="an unknown vendor",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, vendor="enterprisedb"', "bouncer =",
        "PgBouncer(vendor): input should be 'distribution', 'pgdg' or 'edb'",
        "vendor: whose PgBouncer package it is",
        id="a vendor whose packages were never seen",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, vendor="edb"', "bouncer =",
        "PgBouncer: vendor is 'edb', whose packages carry a version; none is given",
        'PgBouncer(vendor="edb", version="1.25"), no version for other vendors',
        id="EDB without a version",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, version="1.25"', "bouncer =",
        "PgBouncer: version (1.25) is given, but only EDB's packages carry one in their name,"
        " and vendor is 'distribution'",
        'PgBouncer(vendor="edb", version="1.25"), no version for other vendors',
        id="a version of others than EDB",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, vendor="edb", version="1.18"', "bouncer =",
        "PgBouncer: version (1.18) is not like 1.25, or older than 1.24, the oldest that the"
        " recipe works with",
        'PgBouncer(vendor="edb", version="1.25"), no version for other vendors',
        id="a version of EDB that is too old",
    ),
    pytest.param(
        '"192.0.2.0/28"', '"192.0.2.1/28"', "bouncer =",
        "PgBouncer(admin_networks.0): 192.0.2.1/28 has host bits set",
        "admin_networks: from where the admin console may be reached",
        id="an address where a network belongs, told once",
    ),
    pytest.param(
        "hosts=(pem,)", 'hosts=(pem,), admin_user="Pem-Admin"', "server =",
        "PemServer(admin_user): string should match pattern '^[a-z_][a-z0-9_]*$'",
        "admin_user: registers agents, watches poolers",
        id="a role name that needs quotes",
    ),
    pytest.param(
        "hosts=(pem,)", 'hosts=(pem,), admin_user="pem_one", agent_user="pem_one"', "server =",
        "PemServer: agent_user (pem_one) is a role with another part to play",
        "leave agent_user out, or give a role that is for this alone",
        id="one role for administrators and agents",
    ),
    pytest.param(
        "hosts=(pem,)", 'hosts=(pem,), admin_user="pgbouncer"', "server =",
        "PemServer: admin_user (pgbouncer) is a role with another part to play",
        "leave admin_user out, or give a role that is for this alone",
        id="the pooler's own role for administrators",
    ),
    pytest.param(
        "hosts=(pem,)", 'hosts=(pem,), agent_user="postgres"', "server =",
        "PemServer: agent_user (postgres) is a role with another part to play",
        "leave agent_user out, or give a role that is for this alone",
        id="a superuser for agents",
    ),
    pytest.param(
        "server = PemServer(hosts=(pem,)",
        "from fleet.hosts import PemInstallation\n"
        'installation = PemInstallation(superuser_password=secret("PEM_ADMIN_PASSWORD"),'
        ' superuser="dba")\n'
        'server = PemServer(hosts=(pem,), installation=installation, admin_user="dba"',
        "server =",
        "PemServer: admin_user (dba) is a role with another part to play",
        "leave admin_user out, or give a role that is for this alone",
        id="the installation's superuser for administrators",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, stats_user="pem_stats"', "bouncer =",
        "PgBouncer: stats_user is given, and stats_password is not",
        'stats_user="pem_stats", stats_password=secret("PEM_STATS_PASSWORD")',
        id="a stats user without a password",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, stats_networks=("192.0.2.0/28",)', "bouncer =",
        "PgBouncer: stats_networks is given, and no stats_user who would come from there",
        "add stats_user and stats_password, or leave stats_networks out",
        id="networks of no stats user",
    ),
    pytest.param(
        BOUNCERS,
        f'{BOUNCERS}, stats_user="pem_admin1", stats_password=secret("PEM_ADMIN_PASSWORD")',
        "fleet =",
        "Fleet: stats_user (pem_admin1) is a role with another part to play",
        'stats_user="pem_stats", a role for this alone',
        id="the administrator as stats user",
    ),
    pytest.param(
        BOUNCERS, f"{BOUNCERS}, processes=0", "bouncer =",
        "PgBouncer(processes): input should be greater than or equal to 1",
        "processes: PgBouncer processes on each host; each uses one CPU core at most",
        id="no process at all",
    ),
    pytest.param(
        "via=bouncer", "via=bouncer.but(pool_size=9)", "fleet =",
        "Fleet: the agents go through poolers that are not in the fleet",
        "Agent(via=bouncer, …) and Fleet(pgbouncer=bouncer, …)",
        id="agents behind poolers that are not in the fleet",
    ),
    pytest.param(
        "server=server,", "server=server.but(port=5433),", "fleet =",
        "Fleet: the poolers' server is not the fleet's PEM server",
        "PgBouncer(server=server, …) and Fleet(pem_server=server, …)",
        id="poolers of another server",
    ),
    pytest.param(
        BOUNCERS, f"{BOUNCERS}, pool_size=300, max_client_conn=200", "bouncer =",
        "PgBouncer: pool_size (300) is above max_client_conn (200)",
        "leave both out, they are computed from the number of agents",
        id="a pool larger than its clients",
    ),
    pytest.param(
        "via=bouncer)", "via=bouncer.but(max_client_conn=1), heartbeat_connection=True)\n"
        "bouncer = agents.via",
        "fleet =",
        "Fleet: max_client_conn (1) is below the 2 connections of all agents",
        "leave it out, it is computed; 2 at least",
        id="fewer clients than the agents need",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, extra={{"auth_type": "any", "verbose": "1"}}', "bouncer =",
        "PgBouncer: extra sets auth_type, which the recipe itself decides",
        "use the setting of PgBouncer(…) where there is one, or leave it out",
        id="an extra setting that the recipe owns",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, extra={{"tcp keepidle": "30"}}', "bouncer =",
        "PgBouncer(extra.tcp keepidle.[key]): string should match pattern '^[a-z][a-z0-9_]*$'",
        "extra: further settings of pgbouncer.ini's [pgbouncer] section",
        id="an extra setting with a blank in its name",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, extra={{"verbose": "1\\nauth_type = any"}}', "bouncer =",
        "PgBouncer(extra.verbose): string should match pattern '^[^\\x00-\\x1f]*$'",
        "extra: further settings of pgbouncer.ini's [pgbouncer] section",
        id="an extra setting that smuggles in a second line",
    ),
    pytest.param(
        'name="app1"', 'name="app1", names=("PgBouncer",)', "fleet =",
        "Fleet: host name PgBouncer is also a database role; its server certificate could log in"
        " as that role",
        "rename the host, or the role in PemServer(…)",
        id="a host named like a role",
    ),
    pytest.param(
        "192.0.2.22", "192.0.2.21", "fleet =",
        "Fleet: address 192.0.2.21 is given to 2 hosts: bouncer1, bouncer2",
        "make the Host once and give the same object to each of its roles",
        id="one address for two hosts",
    ),
    pytest.param(
        '"bouncer2"', '"Bouncer1"', "fleet =",
        "Fleet: name bouncer1 is given to 2 hosts: bouncer1, Bouncer1",
        "make the Host once and give the same object to each of its roles",
        id="one name for two hosts, whatever the case",
    ),
    pytest.param(
        "(app1,)", "(app1, app1)", "agents =",
        "Agent(hosts): app1 is there twice", "name each host once in a role",
        id="one host twice in a role",
    ),
    pytest.param(
        "(app1,)", "(app1, pem)", "fleet =",
        "Fleet: pem: the PEM server's own agent uses LISTEN, which transaction pooling breaks;"
        " it stays direct",
        "take it out of Agent(hosts=…)",
        id="the PEM server among the pooled agents",
    ),
    pytest.param(
        "hosts=(pem,)", "hosts=(pem, bouncer1)", "server =",
        "PemServer: pem, bouncer1 are a cluster, and poolers need one name that leads to its"
        " primary",
        'endpoint="pem.example.com", a name that the cluster manager moves',
        id="a cluster without an endpoint",
    ),
    pytest.param(
        "hosts=(pem,)", 'hosts=(pem, bouncer1), endpoint="pem"', "server =",
        "PemServer: endpoint pem is pem's own, and leads there even when another host is the"
        " primary",
        "one that the cluster manager moves",
        id="an endpoint that cannot move",
    ),
    pytest.param(
        "hosts=(pem,)", 'hosts=(pem,), endpoint="pem_vip"', "server =",
        "PemServer(endpoint): 'pem_vip' is neither a host name nor an address",
        'endpoint="pem.example.com": letters, digits, "-" and "."',
        id="an endpoint that no certificate could name",
    ),
    pytest.param(
        "hosts=(pem,)", 'hosts=(pem,), endpoint="PgBouncer"', "fleet =",
        "Fleet: endpoint PgBouncer is also a database role; the servers' certificates could log in"
        " as that role",
        "another name for the endpoint",
        id="an endpoint named like a role",
    ),
    pytest.param(
        "hosts=(pem,)", "hosts=(pem,), max_connections=72", "fleet =",
        "Fleet: max_connections (72) is below 73: 2 poolers x (3 pools of 5) = 30 server"
        " connections, 3 that Postgres keeps for superusers, and 40 for direct agents, web"
        " application and replication",
        "max_connections=73 in PemServer(…), or a smaller pool_size",
        id="pools that the database cannot bear",
    ),
    pytest.param(
        "via=bouncer)", "via=bouncer.but(server=server.but(max_connections=100), pool_size=40))\n"
        "bouncer, server = agents.via, agents.via.server",
        "fleet =",
        "Fleet: max_connections (100) is below 283: 2 poolers x (3 pools of 40) = 240 server"
        " connections, 3 that Postgres keeps for superusers, and 40 for direct agents, web"
        " application and replication",
        "max_connections=283 in PemServer(…), or a smaller pool_size",
        id="a pool larger than the server's max_connections",
    ),
    pytest.param(
        '"192.0.2.0/28",', '"192.0.2.0/24", "2001:db8::/32", "192.0.2.0/28",', "bouncer =",
        "PgBouncer(admin_networks): 192.0.2.0/28 lies in 192.0.2.0/24, also given",
        "leave 192.0.2.0/28 out once",
        id="a network within another one",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, agent_networks=("192.0.2.16/28", "192.0.2.16/28")', "bouncer =",
        "PgBouncer(agent_networks): 192.0.2.16/28 is there twice",
        "leave 192.0.2.16/28 out once",
        id="one network twice",
    ),
    pytest.param(
        '"192.0.2.0/28"', '"0.0.0.0/0"', "bouncer =",
        "PgBouncer(admin_networks): 0.0.0.0/0: wider than any private network, and lets the world"
        " try passwords at the admin console",
        'admin_networks=("192.0.2.0/28",), where people work from',
        id="an admin console for everybody",
    ),
    pytest.param(
        '"192.0.2.0/28"', '"192.0.2.0/28", "::/0"', "bouncer =",
        "PgBouncer(admin_networks): ::/0: wider than any private network, and lets the world try"
        " passwords at the admin console",
        'admin_networks=("192.0.2.0/28",), where people work from',
        id="an admin console for everybody with IPv6",
    ),
    pytest.param(
        '"192.0.2.0/28"', '"0.0.0.0/1", "128.0.0.0/1"', "bouncer =",
        "PgBouncer(admin_networks): 0.0.0.0/1, 128.0.0.0/1: wider than any private network, and"
        " lets the world try passwords at the admin console",
        'admin_networks=("192.0.2.0/28",), where people work from',
        id="an admin console for everybody in two halves",
    ),
    pytest.param(
        BOUNCERS,
        f'{BOUNCERS}, stats_user="pem_stats", stats_password=secret("PEM_ADMIN_PASSWORD"),'
        ' stats_networks=("0.0.0.0/0",)',
        "bouncer =",
        "PgBouncer(stats_networks): 0.0.0.0/0: wider than any private network, and lets the world"
        " try passwords at the admin console",
        'stats_networks=("192.0.2.0/28",), where people work from',
        id="figures for everybody",
    ),
    pytest.param(
        BOUNCERS,
        f'{BOUNCERS}, stats_user="pem_stats", stats_password=secret("PEM_ADMIN_PASSWORD"),'
        ' stats_networks=("192.0.2.9/32", "192.0.2.9/32")',
        "bouncer =",
        "PgBouncer(stats_networks): 192.0.2.9/32 is there twice",
        "leave 192.0.2.9/32 out once",
        id="one network twice for figures",
    ),
    pytest.param(
        BOUNCERS, f'{BOUNCERS}, agent_networks=("198.51.100.0/24", "2001:db8::/64")', "fleet =",
        "Fleet: app1 (192.0.2.31): in none of agent_networks (198.51.100.0/24, 2001:db8::/64), so"
        " that no pooler lets it in",
        "add its network to agent_networks, or leave agent_networks out: each agent's own address",
        id="an agent from outside the agents' networks",
    ),
    pytest.param(
        'secret("PEM_ADMIN_PASSWORD")', '__import__("pydantic").SecretStr("")', "server =",
        "PemServer(admin_password): it is empty",
        'admin_password: secret("PEM_ADMIN_PASSWORD")',
        id="an empty password",
    ),
    pytest.param(
        '"192.0.2.0/28"', '"2001:db8::1/64"', "bouncer =",
        "PgBouncer(admin_networks.0): 2001:db8::1/64 has host bits set",
        "admin_networks: from where the admin console may be reached",
        id="an IPv6 address where a network belongs",
    ),
    pytest.param(
        "hosts=(bouncer1, bouncer2)", "hosts=(pem, bouncer2), listen_port=5432", "fleet =",
        "Fleet: pem: Postgres and PgBouncer both want port 5432",
        "listen_port=6432 in PgBouncer(…), another one than port=5432",
        id="one port for two services of a host",
    ),
    pytest.param(
        'name="app1"', 'name="app1", names=("BOUNCER2",)', "fleet =",
        "Fleet: name bouncer2 is given to 2 hosts: bouncer2, app1",
        "make the Host once and give the same object to each of its roles",
        id="a further name that is another host's",
    ),
    pytest.param(
        "hosts=(app1,)", 'hosts=(app1, bouncer1.but(name="app2"))', "fleet =",
        "Fleet: address 192.0.2.21 is given to 2 hosts: bouncer1, app2",
        "make the Host once and give the same object to each of its roles",
        id="one host under two names",
    ),
    pytest.param(
        "PEM_ADMIN_PASSWORD", "PEM_OTHER_PASSWORD", "server =",
        'secret("PEM_OTHER_PASSWORD"): PEM_OTHER_PASSWORD is not set',
        "export PEM_OTHER_PASSWORD=$(pass show pem/pem_other_password)",
        id="a secret that is not set",
    ),
    pytest.param(
        '"PEM_ADMIN_PASSWORD"', '"OTHER", command="ls /does-not-exist"', "server =",
        'secret("OTHER"): `ls /does-not-exist` ended with exit code 2: ls: cannot access'
        " '/does-not-exist': No such file or directory",
        "run `ls /does-not-exist` by hand, or export OTHER",
        id="a secret whose command fails",
    ),
    pytest.param(
        '"PEM_ADMIN_PASSWORD"', '"OTHER", command="does-not-exist"', "server =",
        'secret("OTHER"): `does-not-exist` could not be run: [Errno 2] No such file or directory:'
        " 'does-not-exist'",
        "run `does-not-exist` by hand, or export OTHER",
        id="a secret whose command is not there",
    ),
    pytest.param(
        '"PEM_ADMIN_PASSWORD"', '"OTHER", command="true"', "server =",
        'secret("OTHER"): `true` printed nothing', "run `true` by hand, or export OTHER",
        id="a secret whose command prints nothing",
    ),
    pytest.param(
        'secret("PEM_ADMIN_PASSWORD")', f'"{PASSWORD}"', "server =",
        "PemServer(admin_password): input should be an instance of SecretStr",
        'admin_password: secret("PEM_ADMIN_PASSWORD")',
        id="a password in plain text",
    ),
    pytest.param(
        "~/.pem-fleet/test", f"{ROOT}/keys", "authority =",
        f"CertificateAuthority: directory {ROOT}/keys lies in the git checkout {ROOT}, and private"
        " keys do not belong there",
        'directory="~/.pem-fleet/keys"',
        id="private keys in a git checkout",
        marks=pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout"),
    ),
    pytest.param(
        'fleet/test"', 'fleet/test", leaf_days=400, authority_days=365', "authority =",
        "CertificateAuthority: leaf_days (400) is above authority_days (365)",
        "a certificate is worth nothing once its CA has expired; lower leaf_days",
        id="certificates that outlive their CA",
    ),
    pytest.param(
        'fleet/test"', 'fleet/test", leaf_days=2', "authority =",
        "CertificateAuthority: leaf_days (2) leaves no day to renew in",
        "leaf_days=90, and run deploys/ca.py at least once a month",
        id="certificates too short to be renewed in time",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("good", "wrong", "line", "problem", "hint"), WRONG)
def test_a_mistake_is_told_with_its_line_and_what_to_type(load, good, wrong, line, problem, hint):
    assert good in GOOD
    found = mistakes(load, GOOD.replace(good, wrong, 1))
    assert found == [(line_of(line) + wrong.count("\n"), problem, hint)]


def test_a_cluster_is_installed_by_whoever_manages_it(load):
    text = GOOD.replace(
        "hosts=(pem,)",
        """hosts=(pem, bouncer1), endpoint="db", installation=(
    __import__("fleet.hosts").hosts.PemInstallation(superuser_password=secret("PEM_ADMIN_PASSWORD"))
)""",
    )
    ((_, problem, hint),) = mistakes(load, text)
    assert problem == "PemServer: installation is for one host, and there are 2: pem, bouncer1"
    assert hint == "install PEM and its cluster first, and leave installation out"


def test_the_good_inventory_has_none(load):
    fleet = load(GOOD)
    assert [host.name for host in fleet.machines()] == ["pem", "bouncer1", "bouncer2", "app1"]


def test_all_mistakes_of_an_inventory_are_told_together_in_their_order(load):
    text = (
        GOOD.replace("192.0.2.31", "somewhere")
        .replace("PEM_ADMIN_PASSWORD", "PEM_OTHER_PASSWORD")
        .replace(BOUNCERS, f'{BOUNCERS}, listen_prt=1, pool_size="40"')
        .replace("(app1,)", "(app1, pem)")
    )
    assert [(line, problem.partition(":")[0]) for line, problem, _ in mistakes(load, text)] == [
        (line_of("app1 ="), "Host(address)"),
        (line_of("server ="), 'secret("PEM_OTHER_PASSWORD")'),
        (line_of("bouncer ="), "PgBouncer(pool_size)"),
        (line_of("bouncer ="), "PgBouncer(listen_prt)"),
        (line_of("fleet ="), "Fleet"),
    ]


def test_a_mistake_is_forgotten_once_it_is_told(load):
    mistakes(load, GOOD.replace("192.0.2.31", "somewhere"))
    assert load(GOOD).agent.hosts[0].address == "192.0.2.31"


def test_an_inventory_without_a_fleet_says_so(load):
    with pytest.raises(InventoryError, match=r"makes 0 Fleet\(…\), one is wanted\nHINT: "):
        load("nothing = 1\n")


def test_the_environment_wins_over_the_password_store(load):
    fleet = load(GOOD.replace('"PEM_ADMIN_PASSWORD"', '"PEM_ADMIN_PASSWORD", command="echo no"'))
    assert fleet.pem_server.admin_password.get_secret_value() == PASSWORD


def test_a_command_gives_the_secret_without_its_final_newline(load):
    fleet = load(GOOD.replace('"PEM_ADMIN_PASSWORD"', '"OTHER", command="echo \' a b \'"'))
    assert fleet.pem_server.admin_password.get_secret_value() == " a b "


def test_no_secret_is_in_what_a_fleet_prints_of_itself(load):
    fleet = load(GOOD)
    assert PASSWORD not in f"{fleet} {fleet!r} {fleet.to_json()} {fleet.model_dump_json()}"


def test_nothing_can_be_changed_behind_the_checks(load):
    bouncer = load(GOOD).pgbouncer
    with pytest.raises(ValueError, match="frozen"):
        bouncer.pool_size = 9
    assert bouncer.but(pool_size=9).pool_size == 9
    assert bouncer.pool_size is None


def pyinfra(*arguments):
    """pyinfra's command line from the repository's root, PEM_ADMIN_PASSWORD alone set."""
    return subprocess.run(
        [Path(sys.executable).with_name("pyinfra"), *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PEM_ADMIN_PASSWORD": PASSWORD},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_example_needs_one_password_and_debug_inventory_masks_it():
    done = pyinfra("inventories/example.py", "debug-inventory")
    assert done.returncode == 0, done.stdout
    assert '"admin_password": "**********"' in done.stdout
    assert PASSWORD not in done.stdout


def test_what_the_example_has_commented_out_works_when_it_is_uncommented(load, monkeypatch):
    for name in ("PEM_SUPERUSER", "SHOP_APP", "SHOP_DDL"):
        monkeypatch.setenv(f"{name}_PASSWORD", PASSWORD)
    text = (ROOT / "inventories" / "example.py").read_text()
    for block in (
        r"# from fleet\..*",
        r"    # installation=(?s:.*?)\n    # \),",
        r"# access = (?s:.*?)\n# \)",
    ):
        text = re.sub(f"(?m)^{block}$", lambda found: found[0].replace("# ", ""), text)
    fleet = load(text.replace("agent=agents)", "agent=agents, access=access)"))
    assert fleet.pem_server.installation.network == "192.0.2.0/24"
    assert [user.name for user in fleet.access.users] == ["shop_owner", "shop_app", "shop_ddl"]


def test_pyinfra_stops_at_a_mistake_before_it_connects(tmp_path):
    file = tmp_path / "inventory.py"
    file.write_text(GOOD.replace("192.0.2.31", "somewhere"))
    done = pyinfra(str(file), "deploys/ca.py", "-y")
    assert done.returncode != 0
    assert "line 7: Host(address): 'somewhere' does not appear to be" in done.stdout
    assert "no host was touched" in done.stdout
    assert "Connecting" not in done.stdout


@pytest.mark.parametrize(
    "case",
    [
        "an unknown setting with a near name",
        "agents behind poolers that are not in the fleet",
        "pools that the database cannot bear",
        "a secret that is not set",
    ],
)
def test_the_command_line_stops_at_a_mistake_before_any_host(tmp_path, case):
    (good, wrong, _, problem, hint) = next(one.values for one in WRONG if one.id == case)
    file = tmp_path / "bad.py"
    file.write_text(GOOD.replace(good, wrong, 1))
    done = subprocess.run(
        [sys.executable, "-m", "fleet.run", "plan", str(file)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PEM_ADMIN_PASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("1 mistake in the inventory; no host was touched\n")
    assert f": {problem}\n    HINT: {hint}\n" in done.stderr
    assert PASSWORD not in done.stderr
