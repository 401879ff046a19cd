"""A shop beside PEM on its server: what psql shows, who is let in, who is not and in what words."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from fleet import ROOT
from fleet.pki import authority_file
from tests.lab.conftest import INVENTORY, Lab, pyinfra, within

pytestmark = pytest.mark.lab

PASSWORD = "planted-shop-password"
USERS = ("owner", "app", "reader", "ddl", "stranger", "offline", "locked", "expired", "direct")
ACCESS = """\
from pydantic import SecretStr

from fleet.databases import Access, Database, PoolerRule, Rule, User

_secret = SecretStr("planted-shop-password")
_here = (f"{_lab.gateway}/32",)


def _pooled(name: str, **more: object) -> User:
    return User(name=name, password=_secret, databases=("shop",), pooled=True, **more)


access = Access(
    databases=(
        Database(
            name="shop",
            owner="shop_owner",
            revoke_connect=True,
            connection_limit=30,
            comment="orders",
            pooled=True,
            pool_size=6,
            pool_clients=8,
        ),
        Database(name="reports", owner="shop_owner", pooled=True, pool_mode="session"),
    ),
    users=(
        User(name="shop_owner", login=False),
        _pooled(
            "shop_app",
            roles=("dbrole_readwrite",),
            valid_until="2099-12-31",
            settings={"statement_timeout": "30s", "search_path": '"$user", public'},
            pool_mode="session",
            pool_connection_limit=2,
        ),
        _pooled("shop_reader", roles=("dbrole_readonly",)),
        _pooled("shop_ddl", roles=("dbrole_admin",)),
        _pooled("shop_locked", login=False),
        _pooled("shop_expired", valid_until="2020-01-01"),
        User(name="shop_stranger", password=_secret, pooled=True),
        User(
            name="shop_offline", password=_secret, roles=("dbrole_offline",), databases=("shop",)
        ),
        User(name="shop_direct", password=_secret, databases=("shop",), connection_limit=1),
    ),
    rules=(Rule(users=("shop_offline", "shop_direct", "shop_stranger"), networks=_here),),
    pooler_rules=(
        PoolerRule(networks=_here),
        PoolerRule(users=("shop_app",), databases=("shop",), networks=(_lab.network,)),
    ),
)
fleet = Fleet(access=access, """


def written(path: Path, old: str = "", new: str = "") -> str:
    """The lab's inventory with the shop in it, and with a change; the path of a file."""
    text = (ROOT / INVENTORY).read_text().replace("fleet = Fleet(", ACCESS)
    assert old in text
    path.write_text(text.replace(old, new))
    return os.fspath(path)


def deployed(inventory: str, *, pooler: bool = True) -> str:
    """What the deploys said that make the shop; one pooler is enough here."""
    runs = [pyinfra("deploy", "deploys/access.py", inventory=inventory)]
    if pooler:
        runs.append(
            pyinfra("deploy", "deploys/pgbouncer.py", inventory=inventory, limit="bouncer1")
        )
    said = "\n".join(run.stdout for run in runs)
    assert [run.returncode for run in runs] == [0] * len(runs), said
    return said


@pytest.fixture(scope="module")
def shop(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of an inventory that is deployed, for the time of these tests."""
    inventory = written(tmp_path_factory.mktemp("shop") / "lab.py")
    try:
        deployed(inventory)
        yield inventory
    finally:
        without_shop(lab)


def without_shop(lab: Lab) -> None:
    """Leave the lab as it was: the files by the lab's own inventory, the rest by psql."""
    for deploy, limit in (("pgbouncer", "bouncer1"), ("pem_server", "pem_server")):
        run = pyinfra("deploy", f"deploys/{deploy}.py", limit=limit)
        assert run.returncode == 0, run.stdout
    for database in ("shop", "reports"):
        lab.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)", "postgres")
    lab.sql("DROP FUNCTION pem_fleet.get_user_auth(text)")
    groups = ["pem_fleet_pooled", "pem_fleet_users", "dbrole_offline", "dbrole_admin"]
    roles = [*(f"shop_{user}" for user in USERS), *groups, "dbrole_readwrite", "dbrole_readonly"]
    lab.sql(f"DROP ROLE {', '.join(roles)}", "postgres")


def psql(lab: Lab, user: str, database: str = "shop", *, host: str = "bouncer1") -> str:
    """What psql shows who logs in from this machine: the answer, or the reason of the refusal."""
    machine = lab.machines[host]
    port = lab.fleet.pgbouncer.listen_port if host != "pem1" else lab.fleet.pem_server.port
    anchor = authority_file(lab.fleet.certificate_authority, "server")
    target = (
        f"host={host} hostaddr={machine.address} port={port} dbname={database} user={user}"
        f" sslmode=verify-full sslrootcert={anchor} connect_timeout=10"
    )
    done = subprocess.run(
        ["psql", "-XAtq", target, "-c", "SELECT current_user"],
        env={**os.environ, "PGPASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[0].rpartition("failed: ")[2]


def connect(lab: Lab, user: str, **parameters: str) -> psycopg.Connection:
    """A connection through the pooler to database shop."""
    return lab.connect("bouncer1", dbname="shop", user=user, password=PASSWORD, **parameters)


def shown(lab: Lab, command: str, database: str = "shop") -> list[str]:
    """The lines of one of psql's own lists."""
    return lab.sql(command, database).splitlines()


@pytest.mark.usefixtures("shop")
def test_psql_lists_the_databases_as_declared(lab: Lab) -> None:
    listed = "\n".join(shown(lab, r"\l+ shop"))
    assert listed.startswith("shop|shop_owner|UTF8|")
    assert listed.endswith("|pg_default|orders")
    may_connect = {line.partition("=")[0] for line in listed.splitlines()[1:] if "=c/" in line}
    assert may_connect == {
        *("shop_app", "shop_reader", "shop_ddl", "shop_offline"),
        *("shop_locked", "shop_expired", "shop_direct"),
    }
    assert "=T/shop_owner" in listed
    assert "=Tc/shop_owner" in "\n".join(shown(lab, r"\l reports"))
    limits = "SELECT datname, datconnlimit FROM pg_database WHERE datname IN ('shop', 'reports')"
    assert sorted(shown(lab, limits)) == ["reports|-1", "shop|30"]


@pytest.mark.usefixtures("shop")
def test_psql_lists_the_users_as_declared(lab: Lab) -> None:
    attributes = dict(line.split("|") for line in shown(lab, r"\du shop_*") if "|" in line)
    assert set(attributes) == {f"shop_{user}" for user in USERS}
    assert attributes["shop_owner"] == attributes["shop_locked"] == "Cannot login"
    assert attributes["shop_direct"] == "1 connection"
    assert attributes["shop_app"] == "Password valid until 2099-12-31 00:00:00+00"
    assert shown(lab, r"\drds shop_*") == [
        "shop_app||statement_timeout=30s",
        'search_path="$user", public',
    ]
    groups = [line.split("|")[:2] for line in shown(lab, r"\drg dbrole_*")]
    assert groups == [
        ["dbrole_admin", "dbrole_readwrite"],
        ["dbrole_admin", "pg_monitor"],
        ["dbrole_readwrite", "dbrole_readonly"],
    ]
    members = [line.split("|")[:2] for line in shown(lab, r"\drg shop_app")]
    assert [group for _, group in members] == [
        "dbrole_readwrite",
        "pem_fleet_pooled",
        "pem_fleet_users",
    ]


@pytest.mark.usefixtures("shop")
def test_psql_lists_default_privileges_in_the_declared_databases_and_none_in_pem(lab: Lab) -> None:
    listed = "\n".join(shown(lab, r"\ddp")).split("\nshop_owner||table|")[1].splitlines()
    assert set(listed) == {
        "dbrole_readonly=r/shop_owner",
        "dbrole_readwrite=awd/shop_owner",
        "dbrole_admin=Dxt/shop_owner",
        "dbrole_offline=r/shop_owner",
        "shop_owner=arwdDxtm/shop_owner",
    }
    assert {line.split("||")[0] for line in shown(lab, r"\ddp", "reports") if "||" in line} == {
        *("dbrole_admin", "shop_ddl", "shop_owner")
    }
    assert not [line for line in shown(lab, r"\ddp", "pem") if "dbrole" in line or "shop" in line]
    privileges = "SELECT has_schema_privilege('shop_reader', 'public', 'CREATE')"
    assert lab.sql(privileges, "shop") == "f"


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("maker", ["shop_owner", "dbrole_admin", "shop_ddl"])
def test_what_makers_make_is_read_and_written_by_those_who_should(lab: Lab, maker: str) -> None:
    table = f"of_{maker}"
    lab.sql(f"SET ROLE {maker}; CREATE TABLE {table} (id serial, what text)", "shop")
    try:
        for user, privileges in {
            "shop_reader": ["SELECT"],
            "shop_app": ["SELECT", "INSERT", "UPDATE", "DELETE"],
            "shop_ddl": ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"],
            "shop_offline": ["SELECT"],
            "shop_direct": [],
        }.items():
            if user != maker:
                assert privileges_on(lab, table, user) == privileges, user
        assert lab.sql(
            f"SET ROLE shop_app; INSERT INTO {table} DEFAULT VALUES RETURNING id", "shop"
        )
    finally:
        lab.sql(f"DROP TABLE {table}", "shop")


def privileges_on(lab: Lab, table: str, user: str) -> list[str]:
    """What Postgres says that a user may do with a table."""
    return lab.sql(
        "SELECT what FROM unnest(ARRAY['SELECT','INSERT','UPDATE','DELETE','TRUNCATE']) AS what"
        f" WHERE has_table_privilege('{user}', '{table}', what)",
        "shop",
    ).splitlines()


NOT_VOUCHED_FOR = "FATAL:  bouncer config error"
NO_RULE = "FATAL:  no authentication method is found"


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("user", "database", "words"),
    [
        ("shop_app", "shop", "shop_app"),
        ("shop_ddl", "reports", "shop_ddl"),
        ("shop_stranger", "shop", 'FATAL:  permission denied for database "shop"'),
        ("shop_app", "pem", NOT_VOUCHED_FOR),
        ("shop_app", "pgbouncer", NOT_VOUCHED_FOR),
        ("shop_app", "postgres", NO_RULE),
        ("shop_expired", "shop", NOT_VOUCHED_FOR),
        ("shop_locked", "shop", NOT_VOUCHED_FOR),
        ("shop_offline", "shop", NOT_VOUCHED_FOR),
        ("shop_owner", "shop", NOT_VOUCHED_FOR),
        ("dbrole_admin", "shop", NOT_VOUCHED_FOR),
        ("postgres", "shop", NOT_VOUCHED_FOR),
        ("pem_admin1", "shop", NOT_VOUCHED_FOR),
        ("pem_agent_user1", "shop", NOT_VOUCHED_FOR),
    ],
)
def test_at_the_pooler(lab: Lab, user: str, database: str, words: str) -> None:
    assert psql(lab, user, database) == words


@pytest.mark.usefixtures("shop")
def test_at_postgres_itself(lab: Lab) -> None:
    assert psql(lab, "shop_direct", host="pem1") == "shop_direct"
    assert psql(lab, "shop_offline", host="pem1") == "shop_offline"
    assert psql(lab, "shop_stranger", host="pem1") == (
        'FATAL:  permission denied for database "shop"'
    )
    for user, database in (
        ("shop_app", "shop"),
        ("shop_direct", "pem"),
        ("shop_direct", "postgres"),
    ):
        said = psql(lab, user, database, host="pem1")
        assert said.startswith("FATAL:  no pg_hba.conf entry for host"), (user, database, said)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("bouncer1 port=6432 user=shop_app", "shop_app"),
        ("bouncer1 port=6432 user=shop_reader", NO_RULE),
        ("pem1 port=5432 user=shop_direct", "no pg_hba.conf entry for host"),
    ],
)
def test_from_another_network(lab: Lab, target: str, words: str) -> None:
    script = "IFS= read -r PGPASSWORD; export PGPASSWORD; psql -XAtc 'SELECT current_user'"
    said = lab.feed("bouncer1", f"{script} 'host={target} dbname=shop sslmode=require'", PASSWORD)
    assert words in said.stdout + said.stderr


@pytest.mark.usefixtures("shop")
def test_an_agent_with_its_certificate_gets_into_pem_and_not_into_the_shop(lab: Lab) -> None:
    with lab.as_agent("bouncer1") as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("pem",)
    with pytest.raises(psycopg.OperationalError, match="bouncer config error"):
        lab.as_agent("bouncer1", dbname="shop")


@pytest.mark.usefixtures("shop")
def test_a_user_who_was_let_in_before_is_refused_once_expired(lab: Lab) -> None:
    assert psql(lab, "shop_reader") == "shop_reader"
    lab.sql("ALTER ROLE shop_reader VALID UNTIL 'yesterday'")
    try:
        assert psql(lab, "shop_reader") == NOT_VOUCHED_FOR
    finally:
        lab.sql("ALTER ROLE shop_reader VALID UNTIL 'infinity'")
    assert psql(lab, "shop_reader") == "shop_reader"


@pytest.mark.usefixtures("shop")
def test_the_pooler_shows_the_modes_and_limits_of_the_inventory(lab: Lab) -> None:
    databases = {row["name"]: row for row in lab.ask("bouncer1", "SHOW DATABASES")}
    limits = ("pool_mode", "pool_size", "max_connections", "max_client_connections")
    assert [databases["shop"][limit] for limit in limits] == ["transaction", "6", "6", "8"]
    assert databases["reports"]["pool_mode"] == "session"
    users = {row["name"]: row for row in lab.ask("bouncer1", "SHOW USERS")}
    assert users["shop_app"]["pool_mode"] == "session"
    assert users["shop_app"]["max_user_connections"] == "2"
    assert users["shop_reader"]["max_user_connections"] == "0"


@pytest.mark.usefixtures("shop")
def test_the_third_session_waits_for_one_of_the_two_that_a_user_has(lab: Lab) -> None:
    # In session mode a client keeps its server connection; in transaction mode none would wait.
    with ExitStack() as stack:
        first, second = (stack.enter_context(connect(lab, "shop_app")) for _ in range(2))
        for connection in (first, second):
            assert connection.execute("SELECT current_user").fetchone() == ("shop_app",)
        third = stack.enter_context(waiting(lab))
        within(5, "the third client of shop_app waits", lambda: waiting_clients(lab) == 1)
        first.close()
        out, _ = third.communicate(timeout=10)
        assert out.strip() == "shop_app"


def waiting(lab: Lab) -> subprocess.Popen[str]:
    """psql, as it logs in beside this."""
    host, anchor = (
        lab.machines["bouncer1"],
        authority_file(lab.fleet.certificate_authority, "server"),
    )
    target = (
        f"host={host.name} hostaddr={host.address} port={lab.fleet.pgbouncer.listen_port}"
        f" dbname=shop user=shop_app sslmode=verify-full sslrootcert={anchor}"
    )
    return subprocess.Popen(
        ["psql", "-XAtq", target, "-c", "SELECT current_user"],
        env={**os.environ, "PGPASSWORD": PASSWORD},
        stdout=subprocess.PIPE,
        text=True,
    )


def waiting_clients(lab: Lab) -> int:
    pools = lab.ask("bouncer1", "SHOW POOLS")
    return sum(int(row["cl_waiting"]) for row in pools if row["user"] == "shop_app")


@pytest.mark.usefixtures("shop")
def test_the_shops_clients_are_limited_and_take_nothing_from_the_agents(lab: Lab) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connect(lab, "shop_reader"))
        assert "max_db_client_connections" in psql(lab, "shop_reader")
        assert lab.serves("bouncer1")


@pytest.mark.usefixtures("shop")
def test_the_second_connection_of_a_user_who_has_one_is_refused(lab: Lab) -> None:
    pem = lab.machines["pem1"]
    direct = {"host": pem.name, "hostaddr": pem.address, "port": str(lab.fleet.pem_server.port)}
    with connect(lab, "shop_direct", **direct):
        assert psql(lab, "shop_direct", host="pem1") == (
            'FATAL:  too many connections for role "shop_direct"'
        )


def test_a_second_run_of_each_deploy_changes_nothing(shop: str) -> None:
    for deploy, limit in (("access", "pem1"), ("pem_server", "pem1"), ("pgbouncer", "bouncer1")):
        run = pyinfra("unchanged", f"deploys/{deploy}.py", inventory=shop, limit=limit)
        assert run.returncode == 0, run.stdout


# The function that vouches for these users: each protection is taken out in turn, and then the one
# comes in whom it keeps out. All of it in transactions that are rolled back.

FUNCTION = (ROOT / "files" / "get_user_auth.sql").read_text()
OUTSIDE_THE_GROUP = "AND pooled.rolname = 'pem_fleet_pooled'"
PROTECTIONS = {
    "LOGIN": ("role.rolcanlogin", "ALTER ROLE shop_reader NOLOGIN"),
    "no superuser": ("NOT role.rolsuper", "ALTER ROLE shop_reader SUPERUSER"),
    "VALID UNTIL": (
        "(role.rolvaliduntil IS NULL OR role.rolvaliduntil > pg_catalog.now())",
        "ALTER ROLE shop_reader VALID UNTIL 'yesterday'",
    ),
    "the group": (OUTSIDE_THE_GROUP, "REVOKE pem_fleet_pooled FROM shop_reader"),
    "not the agents' pool": (
        "AND pool.rolname = 'pem_agent_pool'",
        "GRANT pem_agent_pool TO shop_reader",
    ),
}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("protection", PROTECTIONS)
def test_each_protection_of_the_function_keeps_somebody_out(lab: Lab, protection: str) -> None:
    line, attack = PROTECTIONS[protection]
    assert FUNCTION.count(line) == 1
    instead = {"the group": "", "not the agents' pool": "AND false"}.get(protection, "true")
    assert "may not come in" in vouched(lab, attack)
    assert vouched(lab, attack, FUNCTION.replace(line, instead)) == "shop_reader"


def vouched(lab: Lab, before: str, function: str = "SELECT 1") -> str:
    """What the function says of shop_reader to the poolers' role, or its error."""
    script = (
        f"BEGIN; {before};\n\\o /dev/null\n{function};\n\\o\nSET LOCAL SESSION AUTHORIZATION"
        " pgbouncer;\nSELECT username FROM pem_fleet.get_user_auth('shop_reader');\nROLLBACK;"
    )
    command = "sudo -u postgres psql -XAtq -v ON_ERROR_STOP=1 -d pem -f -"
    done = lab.on("pem1").run(f"{command} <<'END_OF_SCRIPT'\n{script}\nEND_OF_SCRIPT")
    return (done.stdout if done.succeeded else done.stderr).strip()


@pytest.mark.usefixtures("shop")
def test_only_the_poolers_role_may_ask_it(lab: Lab) -> None:
    for role, may in (("pgbouncer", "t"), ("shop_app", "f"), ("pem_agent_user1", "f")):
        privilege = f"has_function_privilege('{role}', 'pem_fleet.get_user_auth(text)', 'EXECUTE')"
        assert lab.sql(f"SELECT {privilege}") == may, role


# Changes, for the rest of the tests.

READER = """\
        _pooled("shop_reader", roles=("dbrole_readonly",)),
"""
OTHER_READER = """\
        _pooled("shop_reader", settings={"work_mem": "8MB"}, connection_limit=5),
"""
STRANGER = """\
        User(name="shop_stranger", password=_secret, pooled=True),
"""


@pytest.mark.usefixtures("shop")
def test_a_superuser_of_a_users_name_is_refused_and_stays_as_it_is(
    lab: Lab, tmp_path: Path
) -> None:
    inventory = written(
        tmp_path / "lab.py", "    users=(\n", '    users=(\n        User(name="dba"),\n'
    )
    lab.sql("CREATE ROLE dba SUPERUSER NOLOGIN")
    try:
        run = pyinfra("deploy", "deploys/access.py", inventory=inventory)
        assert run.returncode != 0
        assert "role dba is there already, and is a superuser or replicates" in run.stdout
        assert lab.sql("SELECT rolsuper, rolcanlogin FROM pg_roles WHERE rolname = 'dba'") == "t|f"
    finally:
        lab.sql("DROP ROLE dba")


@pytest.mark.usefixtures("shop")
def test_poolers_are_refused_what_the_database_has_no_answer_for(lab: Lab, tmp_path: Path) -> None:
    inventory = written(tmp_path / "lab.py", "pool_size=6", "pool_size=7")
    lab.sql("ALTER FUNCTION pem_fleet.get_user_auth(text) RENAME TO not_yet")
    try:
        run = pyinfra("deploy", "deploys/pgbouncer.py", inventory=inventory, limit="bouncer1")
        assert run.returncode != 0
        assert "the database does not answer for users of other databases" in run.stdout, run.stdout
        assert "HINT: make deploy INVENTORY=... DEPLOY=deploys/access.py" in run.stdout
    finally:
        lab.sql("ALTER FUNCTION pem_fleet.not_yet(text) RENAME TO get_user_auth")
    assert psql(lab, "shop_reader") == "shop_reader"


@pytest.fixture(scope="module")
def changed(lab: Lab, shop: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An inventory with another reader and without the stranger, and what its deploys said.

    Before it was deployed, somebody had changed the reader by hand.
    """
    assert psql(lab, "shop_stranger", "reports") == "shop_stranger"
    lab.sql("ALTER ROLE shop_reader CREATEDB CONNECTION LIMIT 3; GRANT dbrole_admin TO shop_reader")
    # By a role that may hand the membership on: Postgres takes it back from that role alone.
    lab.sql("GRANT dbrole_admin TO shop_owner WITH ADMIN OPTION")
    lab.sql("SET ROLE shop_owner; GRANT dbrole_admin TO shop_reader")
    text = Path(shop).read_text()
    assert READER in text
    assert STRANGER in text
    inventory = tmp_path_factory.mktemp("changed") / "lab.py"
    text = text.replace(READER, OTHER_READER).replace(STRANGER, "")
    inventory.write_text(text.replace('"shop_direct", "shop_stranger"', '"shop_direct"'))
    return os.fspath(inventory), deployed(os.fspath(inventory))


@pytest.mark.usefixtures("changed")
def test_what_was_changed_by_hand_and_what_is_declared_no_more_is_taken_back(lab: Lab) -> None:
    roles = [line.split("|")[1] for line in shown(lab, r"\drg shop_reader")]
    assert roles == ["pem_fleet_pooled", "pem_fleet_users"]
    assert shown(lab, r"\du shop_reader")[0] == "shop_reader|5 connections"
    attributes = "SELECT rolcreatedb FROM pg_roles WHERE rolname = 'shop_reader'"
    assert lab.sql(attributes) == "f"
    assert shown(lab, r"\drds shop_reader") == ["shop_reader||work_mem=8MB"]


def test_who_left_the_inventory_is_reported_kept_and_not_let_in(
    lab: Lab, changed: tuple[str, str]
) -> None:
    inventory, said = changed
    assert "user shop_stranger is not in the inventory any more, and still there" in said
    assert "HINT: nothing is dropped here" in said
    assert lab.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'shop_stranger'") == "t"
    assert psql(lab, "shop_stranger", "reports") == NO_RULE
    said = psql(lab, "shop_stranger", "reports", host="pem1")
    assert said.startswith("FATAL:  no pg_hba.conf entry for host")
    again = pyinfra("unchanged", "deploys/access.py", inventory=inventory)
    assert again.returncode == 0, again.stdout
    assert "user shop_stranger is not in the inventory any more" in again.stdout
