"""A worked example of a whole site: 30 hosts in two data centres.

    three PEM servers (a cluster that somebody else manages), two poolers, 25 agents

Start from inventories/example.py, and take from here what you need. The settings that a role knows
are in fleet/hosts.py, those of databases and users in fleet/databases.py.
"""

from functools import partial

from fleet.databases import Access, Database, PoolerRule, Rule, User
from fleet.hosts import Agent, CertificateAuthority, Fleet, Host, PemServer, PgBouncer
from fleet.secrets import secret
from fleet.ssh import ssh

# Data centre 1 is reached directly, data centre 2 through a bastion: ~/.ssh/config-dc2 has
#     Host bastion.dc2.example.com
#         User deploy
#         IdentityFile ~/.ssh/id_ed25519
#         UserKnownHostsFile ~/.ssh/known_hosts-pem
#         StrictHostKeyChecking yes
#     Host *.dc2.example.com !bastion.dc2.example.com
#         ProxyJump bastion.dc2.example.com
# Every host's key must be in known_hosts-pem, nobody is trusted at first sight.
_ssh = partial(ssh, user="deploy", key="~/.ssh/id_ed25519", known_hosts="~/.ssh/known_hosts-pem")
_dc1 = _ssh()
_dc2 = _ssh(config="~/.ssh/config-dc2")

# Numbers are given, not counted: a host that leaves must not rename the others. Names beginning
# with "_" are helpers; any other list or tuple of this file would be a group to pyinfra.
_pem_numbers = {1: "192.0.2.11", 2: "192.0.2.12", 3: "192.0.2.13"}
_databases = {
    number: Host(name=f"pem{number}.dc1.example.com", address=address, ssh=_dc1)
    for number, address in _pem_numbers.items()
}

# One pooler in each data centre. `names`: what else its certificate is good for.
bouncer1 = Host(
    name="bouncer1.dc1.example.com",
    address="192.0.2.21",
    names=("pem-bouncer1.example.com",),
    ssh=_dc1,
)
bouncer2 = Host(
    name="bouncer2.dc2.example.com",
    address="198.51.100.21",
    names=("pem-bouncer2.example.com",),
    ssh=_dc2,
)

# 20 application servers, whose addresses go with their numbers; 5 databases that have IPv6 only.
_applications = tuple(
    Host(name=f"app{number:02}.dc2.example.com", address=f"198.51.100.{100 + number}", ssh=_dc2)
    for number in range(1, 21)
)
_monitored = tuple(
    Host(name=f"db{number}.dc1.example.com", address=f"2001:db8:0:31::{number}", ssh=_dc1)
    for number in (1, 2, 3, 5, 8)
)

authority = CertificateAuthority(
    directory="~/.pem-fleet/prod",
    organization="Example Ltd",
    # deploys/ca.py and the others run each week here; renewed with 20 of 60 days left.
    leaf_days=60,
)

server = PemServer(
    hosts=tuple(_databases.values()),
    # Moved by the cluster manager. Each server's certificate has this name beside its own.
    endpoint="pem.example.com",
    vendor="pgdg",
    postgres_version=17,
    # All pools full, with room for the rest; the inventory is refused where they do not fit.
    # Under Patroni set the same number there, as it passes its own to Postgres.
    max_connections=200,
    # The environment wins over the command: PEM_ADMIN_PASSWORD=… make deploy …
    admin_password=secret("PEM_ADMIN_PASSWORD", command="pass show pem/prod/admin"),
)

bouncer = PgBouncer(
    hosts=(bouncer1, bouncer2),
    server=server,
    vendor="pgdg",
    # Where administrators sit: they alone reach the console.
    admin_networks=("192.0.2.240/28", "2001:db8:0:1::/64"),
    # Whole networks, so that another agent needs no new rule on the poolers.
    agent_networks=("198.51.100.0/24", "2001:db8:0:31::/64"),
    # A process uses one core; two of them restart one after the other, and no client notices.
    processes=2,
    # Monitoring looks at the console's figures with a user that can do nothing else.
    stats_user="pem_stats",
    stats_password=secret("PEM_STATS_PASSWORD", command="pass show pem/prod/stats"),
    stats_networks=("192.0.2.230/32",),
    # Settings that the recipe leaves to you: notice hosts that vanished without a word.
    extra={
        "tcp_keepidle": "60",
        "tcp_keepintvl": "10",
        "tcp_keepcnt": "6",
        "tcp_user_timeout": "120000",
    },
)

agents = Agent(
    hosts=(*_applications, *_monitored),
    via=bouncer,
    # Heartbeats on a connection of their own: a slow probe does not look like a dead host.
    heartbeat_connection=True,
)

# A second database on the same server, reached through the same poolers by password.
access = Access(
    databases=(
        Database(name="inventory", owner="inventory_owner", revoke_connect=True, pooled=True),
    ),
    users=(
        User(name="inventory_owner", login=False),
        User(
            name="inventory_app",
            password=secret("INVENTORY_APP_PASSWORD", command="pass show pem/prod/inventory_app"),
            roles=("dbrole_readwrite",),
            databases=("inventory",),
            pooled=True,
            pool_connection_limit=10,
            settings={"statement_timeout": "30s"},
        ),
        User(
            name="inventory_ddl",
            password=secret("INVENTORY_DDL_PASSWORD", command="pass show pem/prod/inventory_ddl"),
            roles=("dbrole_admin",),
            databases=("inventory",),
        ),
    ),
    # Migrations go to the server itself, from where administrators sit.
    rules=(Rule(users=("inventory_ddl",), networks=("192.0.2.240/28",)),),
    pooler_rules=(PoolerRule(networks=("198.51.100.0/24",)),),
)

fleet = Fleet(
    certificate_authority=authority,
    pem_server=server,
    pgbouncer=bouncer,
    agent=agents,
    access=access,
)

# The groups that the deploys work on; each holds its hosts and the whole fleet.
pem_server = fleet.group("pem_server")
pgbouncer = fleet.group("pgbouncer")
agent = fleet.group("agent")
