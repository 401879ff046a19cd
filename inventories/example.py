"""The inventory to copy: one PEM server, two poolers, and agents behind them.

    cp inventories/example.py inventories/site.py
    export PEM_ADMIN_PASSWORD=$(pass show pem/admin)
    make plan   INVENTORY=inventories/site.py
    make deploy INVENTORY=inventories/site.py

Every setting that a role knows, with its meaning and default, is in its class: see fleet/hosts.py.
"""

from fleet.hosts import Agent, CertificateAuthority, Fleet, Host, PemServer, PgBouncer
from fleet.secrets import secret
from fleet.ssh import ssh

# For what is commented out below:
# from fleet.databases import Access, Database, PoolerRule, Rule, User
# from fleet.hosts import PemInstallation

# Who logs in to the hosts; root's work is done by sudo. Host keys must be in known_hosts.
_ssh = ssh(user="deploy", key="~/.ssh/id_ed25519", known_hosts="~/.ssh/known_hosts")

# A host: a name that the others can resolve, and its address.
pem = Host(name="pem.example.com", address="192.0.2.10", ssh=_ssh)
bouncer1 = Host(name="bouncer1.example.com", address="192.0.2.21", ssh=_ssh)
bouncer2 = Host(name="bouncer2.example.com", address="192.0.2.22", ssh=_ssh)
app1 = Host(name="app1.example.com", address="192.0.2.31", ssh=_ssh)
app2 = Host(name="app2.example.com", address="192.0.2.32", ssh=_ssh)

# Private keys stay on this machine, outside of git, and want a backup as good as your passwords'.
authority = CertificateAuthority(directory="~/.pem-fleet/example", organization="Example")

server = PemServer(
    hosts=(pem,),
    admin_password=secret("PEM_ADMIN_PASSWORD"),
    # To have PEM installed as well, instead of preparing one that is there:
    # installation=PemInstallation(
    #     superuser_password=secret("PEM_SUPERUSER_PASSWORD"), network="192.0.2.0/24"
    # ),
)

bouncer = PgBouncer(
    hosts=(bouncer1, bouncer2),
    server=server,
    admin_networks=("192.0.2.0/28",),
)

agents = Agent(hosts=(app1, app2), via=bouncer)

# Where more than PEM runs on this server: databases, users and rules (fleet/databases.py), and
# access=access in the Fleet below.
# access = Access(
#     databases=(Database(name="shop", owner="shop_owner", revoke_connect=True, pooled=True),),
#     users=(
#         User(name="shop_owner", login=False),
#         User(
#             name="shop_app",
#             password=secret("SHOP_APP_PASSWORD"),
#             roles=("dbrole_readwrite",),
#             databases=("shop",),
#             pooled=True,
#             pool_connection_limit=10,
#             valid_until="2027-12-31",
#             settings={"statement_timeout": "30s"},
#         ),
#         User(
#             name="shop_ddl",
#             password=secret("SHOP_DDL_PASSWORD"),
#             roles=("dbrole_admin",),
#             databases=("shop",),
#         ),
#     ),
#     rules=(Rule(users=("shop_ddl",), networks=("192.0.2.0/28",)),),
#     pooler_rules=(PoolerRule(networks=("192.0.2.48/28",)),),
# )

fleet = Fleet(certificate_authority=authority, pem_server=server, pgbouncer=bouncer, agent=agents)

# The groups that the deploys work on.
pem_server = fleet.group("pem_server")
pgbouncer = fleet.group("pgbouncer")
agent = fleet.group("agent")
