"""Poolers that were there before: of another vendor, of PEM's old recipe, or of somebody else."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.lab.conftest import Lab, pyinfra, raw_pyinfra, within

pytestmark = pytest.mark.lab

POOLERS = "deploys/pgbouncer.py"
OLD = "/etc/edb/pgbouncer1.9"
OLD_UNIT = "edb-pgbouncer-1.9"


def state(lab: Lab, name: str, unit: str) -> str:
    """Whether a unit runs, and whether it starts at boot, as systemctl says."""
    said = lab.on(name).run(f"systemctl is-active {unit}; systemctl is-enabled {unit}")
    return " ".join(said.stdout.split())


def deploy(inventory: str, limit: str, *files: str) -> subprocess.CompletedProcess[str]:
    """A deploy that must succeed."""
    run = pyinfra("deploy", *files, inventory=inventory, limit=limit)
    assert run.returncode == 0, run.stdout
    return run


def test_edbs_pgbouncer_takes_the_port_from_the_distributions_and_gives_it_back(
    lab: Lab, other_inventory: Callable[..., str]
) -> None:
    edb = other_inventory("server=server,\n", 'server=server, vendor="edb", version="1.25",\n')
    try:
        first = pyinfra("deploy", POOLERS, inventory=edb, limit="bouncer2")
        # The stand-in names its ini as one of EDB's documents, we plan with the other's name.
        assert first.returncode != 0
        assert "edb-pgbouncer125, installed just now, runs" in first.stdout, first.stdout
        assert "HINT: run the same again" in first.stdout
        assert state(lab, "bouncer2", "pgbouncer") == "active enabled"
        deploy(edb, "bouncer2", POOLERS)
        assert state(lab, "bouncer2", "edb-pgbouncer125") == "active enabled"
        assert state(lab, "bouncer2", "pgbouncer") == "inactive disabled"
        assert lab.run("bouncer2", "ps -o user= -C pgbouncer") == "enterprisedb"
        assert lab.run("bouncer2", "ls /etc/pgbouncer/tls | grep 'key$' || true") == ""
        assert lab.serves("bouncer2")
        within(
            60, "agents beat through EDB's PgBouncer", lambda: "agent2" in clients(lab, "bouncer2")
        )
        again = pyinfra("unchanged", POOLERS, inventory=edb, limit="bouncer2")
        assert again.returncode == 0, again.stdout
    finally:
        back = deploy("inventories/lab.py", "bouncer2", POOLERS)
        lab.run("bouncer2", "DEBIAN_FRONTEND=noninteractive apt-get purge -q -y edb-pgbouncer125")
        lab.run("bouncer2", "rm -rf /etc/edb/pgbouncer1.25 /etc/systemd/system/edb-pgbouncer*")
    assert "edb-pgbouncer125 listens on port 6432; it is stopped and disabled" in back.stdout
    assert state(lab, "bouncer2", "pgbouncer") == "active enabled"
    assert lab.serves("bouncer2")


FOREIGN = """\
[databases]
shop = host=127.0.0.1 dbname=shop password=old-secret
[pgbouncer]
logfile = /var/log/postgresql/pgbouncer.log
pidfile = /var/run/postgresql/pgbouncer.pid
unix_socket_dir = /var/run/postgresql
listen_addr = *
listen_port = 6432
auth_type = md5
auth_file = /etc/pgbouncer/userlist.txt
default_pool_size = 33
"""


def test_a_configuration_that_somebody_wrote_by_hand_is_told_kept_and_replaced(lab: Lab) -> None:
    there = "/etc/pgbouncer"
    kept = f"{there}/pgbouncer.ini.before-pem-fleet"
    lab.run(
        "bouncer2", f"cp -p {there}/userlist.txt /root; [ ! -e {kept} ] || mv {kept} /root/kept"
    )
    lab.run("bouncer2", f"printf '{FOREIGN}' > {there}/pgbouncer.ini; systemctl restart pgbouncer")
    lab.run("bouncer2", f'echo \'"shop" "old-secret"\' > {there}/userlist.txt')
    try:
        run = deploy("inventories/lab.py", "bouncer2", POOLERS)
        assert lab.run("bouncer2", f"cat {kept}") == FOREIGN.strip()
        assert lab.run("bouncer2", f"stat -c '%a %n' {there}/userlist*") == (
            f"600 {there}/userlist.txt.before-pem-fleet"
        )
    finally:
        lab.run("bouncer2", f"rm {kept}* {there}/userlist*; mv /root/userlist.txt {there}")
        lab.run("bouncer2", f"[ ! -e /root/kept ] || mv /root/kept {kept}")
    assert "[databases] shop = host=127.0.0.1 dbname=shop: is gone" in run.stdout, run.stdout
    assert 'HINT: PgBouncer(extra={"default_pool_size": "33"}) keeps them' in run.stdout
    assert "old-secret" not in run.stdout
    assert lab.serves("bouncer2")
    assert pyinfra("unchanged", POOLERS, limit="bouncer2").returncode == 0


def clients(lab: Lab, pooler: str) -> set[str]:
    """The agents' hosts that are clients of a pooler."""
    names = {host.address: host.name for host in lab.fleet.agent.hosts}
    rows = lab.ask(pooler, "SHOW CLIENTS")
    return {names[row["addr"]] for row in rows if row["addr"] in names}


def test_a_port_that_another_program_holds_is_refused_before_anything_changes(lab: Lab) -> None:
    lab.run("bouncer2", "systemctl stop pgbouncer")
    lab.run("bouncer2", "systemd-run --unit=stranger --collect nc -lk 6432")
    lab.run("bouncer2", "echo '# edited' >> /etc/pgbouncer/hba.conf")
    try:
        run = pyinfra("deploy", POOLERS, limit="bouncer2")
        assert run.returncode != 0
        assert "port 6432 is held by nc (process" in run.stdout, run.stdout
        assert "HINT: systemctl disable --now stranger" in run.stdout
        assert "# edited" in lab.run("bouncer2", "cat /etc/pgbouncer/hba.conf")
    finally:
        lab.run("bouncer2", "systemctl stop stranger")
        deploy("inventories/lab.py", "bouncer2", POOLERS)
    assert lab.serves("bouncer2")


DATABASE = "port=5432 host=/var/run/postgresql dbname=pem auth_user=pgbouncer"
INI = f"""\
[databases]
pem = {DATABASE} pool_size=80 pool_mode=transaction
* = {DATABASE} pool_size=10
[pgbouncer]
logfile = /var/log/edb/pgbouncer1.9/edb-pgbouncer-1.9.log
pidfile = /run/edb/pgbouncer1.9/edb-pgbouncer-1.9.pid
listen_addr = *
listen_port = 6432
client_tls_sslmode = require
client_tls_ca_file = /etc/pem-fleet/client-ca.crt
client_tls_key_file = {OLD}/server.key
client_tls_cert_file = {OLD}/server.crt
auth_type = hba
auth_file = {OLD}/userlist.txt
auth_hba_file = {OLD}/hba_file
auth_query = SELECT * FROM pem.get_agent_pool_auth($1)
admin_users = pem_admin1
stats_users = pem_admin1
server_reset_query = DISCARD ALL
max_client_conn = 500
server_idle_timeout = 60
"""
RULES = """\
local pgbouncer all md5
host pgbouncer,pem pem_admin1 0.0.0.0/0 md5
hostssl pem pem_agent_user1 0.0.0.0/0 cert
"""
UNIT = f"""\
[Service]
Type=notify
User=enterprisedb
RuntimeDirectory=edb/pgbouncer1.9
LogsDirectory=edb/pgbouncer1.9
ExecStart=/usr/edb/pgbouncer1.9/bin/pgbouncer {OLD}/edb-pgbouncer.ini
KillSignal=SIGINT
[Install]
WantedBy=multi-user.target
"""
# By hand, as PEM's guide of 7.11 says, with the program of today. What the guide forgets is the
# second rule: PgBouncer logs in as the agents' user too.
INSTALL = f"""
set -eu
cd /
export DEBIAN_FRONTEND=noninteractive
apt-get -q -y update >/dev/null
apt-get -q -y install --no-install-recommends pgbouncer >/dev/null
systemctl disable -q --now pgbouncer
useradd --system --user-group enterprisedb
mkdir -p {OLD} /usr/edb/pgbouncer1.9/bin
ln -sf /usr/sbin/pgbouncer /usr/edb/pgbouncer1.9/bin/pgbouncer
cp /etc/pem-fleet/postgres/server.crt /etc/pem-fleet/postgres/server.key {OLD}
cat > {OLD}/edb-pgbouncer.ini <<'END'
{INI}END
cat > {OLD}/hba_file <<'END'
{RULES}END
cat > {OLD}/userlist.txt <<'END'
"pgbouncer" "old-secret"
END
cat > /etc/systemd/system/{OLD_UNIT}.service <<'END'
{UNIT}END
chown -R enterprisedb: {OLD}
chmod 700 {OLD}
sudo -u postgres psql -XAtq -v ON_ERROR_STOP=1 -d pem <<'END'
GRANT USAGE ON SCHEMA pem TO pgbouncer;
GRANT EXECUTE ON FUNCTION pem.get_agent_pool_auth(text) TO pgbouncer;
ALTER ROLE pgbouncer PASSWORD 'old-secret';
SET password_encryption = md5;
ALTER ROLE pem_agent_user1 PASSWORD 'old-agents-secret';
END
hba=$(sudo -u postgres psql -XAtqc 'SHOW hba_file')
sed -i '1i local pem pgbouncer,pem_admin1 md5\\nlocal pem pem_agent_user1 md5' "$hba"
sudo -u postgres psql -XAtqc 'SELECT pg_reload_conf()' >/dev/null
systemctl daemon-reload
systemctl enable -q --now {OLD_UNIT}
"""
REMOVE = f"""
cd /
systemctl disable -q --now {OLD_UNIT} pgbouncer
DEBIAN_FRONTEND=noninteractive apt-get -q -y purge pgbouncer >/dev/null
rm -rf {OLD} /usr/edb/pgbouncer1.9 /etc/pgbouncer /etc/systemd/system/{OLD_UNIT}.service
rm -rf /etc/systemd/system/pgbouncer.service.d /var/log/edb/pgbouncer1.9
systemctl daemon-reload
userdel enterprisedb
hba=$(sudo -u postgres psql -XAtqc 'SHOW hba_file')
sed -i '/^local pem pem_agent_user1 md5$/d; /^local pem pgbouncer,pem_admin1 md5$/d' "$hba"
"""
AGENT_CFG = "/usr/edb/pem/agent/etc/agent.cfg"


@pytest.fixture
def old_installation(lab: Lab) -> Iterator[None]:
    """PEM's recipe of 7.11 on the PEM server, with agent1 behind it."""
    verifier = lab.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'pem_agent_user1'")
    lab.run("agent1", f"cp -p {AGENT_CFG} {AGENT_CFG}.test")
    try:
        lab.run("pem1", INSTALL)
        lab.run(
            "agent1",
            f"sed -i 's/^pem_host=.*/pem_host=pem1/; s/^pem_port=.*/pem_port=6432/' {AGENT_CFG}",
        )
        lab.run("agent1", "systemctl restart pemagent")
        yield
    finally:
        lab.run("agent1", f"mv {AGENT_CFG}.test {AGENT_CFG}; systemctl restart pemagent")
        lab.on("pem1").run(REMOVE)
        secret = f"'{verifier}'" if verifier else "NULL"
        lab.sql(f"ALTER ROLE pem_agent_user1 PASSWORD {secret}")
        lab.sql("ALTER ROLE pgbouncer PASSWORD NULL")
        lab.sql("REVOKE EXECUTE ON FUNCTION pem.get_agent_pool_auth(text) FROM pgbouncer")
        deploy("inventories/lab.py", "pem1", "deploys/pem_server.py")
        for file in (lab.fleet.certificate_authority.path / "clients").glob(
            "pem_agent_pool@pem1.*"
        ):
            file.unlink()


def way_in(lab: Lab) -> str:
    """How the pooler on the PEM server comes in for agents: "certificate", or by the socket."""
    address = lab.machines["pem1"].address
    return lab.sql(
        "SELECT DISTINCT CASE WHEN ssl THEN 'certificate' ELSE 'socket' END FROM pg_stat_ssl"
        " JOIN pg_stat_activity USING (pid) WHERE usename = 'pem_agent_user1'"
        f" AND coalesce(host(client_addr), '') IN ('', '127.0.0.1', '{address}')"
    )


@pytest.mark.usefixtures("old_installation")
def test_pems_recipe_of_7_11_is_moved_to_the_present_one(
    lab: Lab, other_inventory: Callable[..., str]
) -> None:
    new = other_inventory(
        'hosts=_hosts("pgbouncer"),', 'hosts=(*_hosts("pgbouncer"), *server.hosts),'
    )
    rule = "local pem pgbouncer,pem_admin1 md5"
    within(30, "agent1 comes through the old pooler", lambda: way_in(lab) == "socket")

    # The rule stays as long as the old pooler needs it.
    server = deploy(new, "pem1", "deploys/ca.py", "deploys/pem_server.py")
    assert (
        f"keeps '{rule}' of PEM's recipe of 7.11 to early 9 as long as {OLD_UNIT}" in server.stdout
    )
    assert "role pgbouncer has a password" in server.stdout
    hba = lab.sql("SHOW hba_file")
    assert rule in lab.run("pem1", f"cat {hba}").splitlines()
    assert lab.serves("pem1")

    # It is told before it is done, and no password with it.
    plan = raw_pyinfra(POOLERS, "--dry", "--limit", "pem1", inventory=new)
    for told in (
        "It is PEM's recipe of 7.11 to early 9: to the database by /var/run/postgresql",
        "[databases] * = port=5432",
        "HINT: PgBouncer(max_client_conn=500) keeps it",
        f"{OLD_UNIT} listens on port 6432",
    ):
        assert told in plan.stdout, plan.stdout
    assert "old-secret" not in plan.stdout

    # One that does not start gives the port back.
    broken = "/etc/systemd/system/pgbouncer.service.d/broken.conf"
    lab.run(
        "pem1",
        f"mkdir -p $(dirname {broken}); printf '[Service]\\nExecStartPre=false\\n' > {broken}",
    )
    failed = pyinfra("deploy", POOLERS, inventory=new, limit="pem1")
    lab.run("pem1", f"rm {broken}; systemctl daemon-reload")
    assert failed.returncode != 0
    assert f"{OLD_UNIT} runs again" in failed.stdout, failed.stdout
    assert state(lab, "pem1", OLD_UNIT) == "active enabled"
    assert lab.serves("pem1")

    deploy(new, "pem1", POOLERS)
    assert state(lab, "pem1", OLD_UNIT) == "inactive disabled"
    assert state(lab, "pem1", "pgbouncer") == "active enabled"
    assert lab.run("pem1", f"cd {OLD}; stat -c '%a %n' userlist*") == (
        "600 userlist.txt.before-pem-fleet"
    )
    for name in ("edb-pgbouncer.ini", "hba_file"):
        lab.run("pem1", f"cmp {OLD}/{name} {OLD}/{name}.before-pem-fleet")
    within(60, "agent1 comes by certificate", lambda: way_in(lab) == "certificate")

    gone = deploy(new, "pem1", "deploys/pem_server.py")
    assert f"has '{rule}' of PEM's recipe of 7.11 to early 9. It is taken out" in gone.stdout
    rules = lab.run("pem1", f"cat {hba}").splitlines()
    assert rule not in rules
    assert "local pem pem_agent_user1 md5" in rules
    again = pyinfra("unchanged", "deploys/pem_server.py", POOLERS, inventory=new, limit="pem1")
    assert again.returncode == 0, again.stdout
    assert lab.serves("pem1")
