"""Databases and users beside PEM's: what an inventory may say of them, and what becomes of it."""

import re

import pytest
from pydantic import SecretStr
from pyinfra.api.exceptions import InventoryError

from fleet.databases import Access, Database, PoolerRule, Rule, User
from fleet.facts.postgres import PostgresHolds, PostgresNames, PostgresStandby
from fleet.grants import database_wishes, privilege_wishes
from fleet.operations.postgres import database, left_behind
from fleet.sizing import sizing
from fleet.users import user_wishes
from tests.samples import DEBIAN_13, USER_PASSWORD, sample_access

PASSWORD = SecretStr(USER_PASSWORD)
NETWORKS = ("192.0.2.64/28",)
OWNER = User(name="shop_owner", login=False)
APP = User(name="shop_app", password=PASSWORD, databases=("shop",), pooled=True)
SHOP = Database(name="shop", owner="shop_owner", revoke_connect=True, pooled=True)


def access(databases=(SHOP,), users=(OWNER, APP), pooler_rules=None, **more):
    """A small access, with changes."""
    rules = (PoolerRule(networks=NETWORKS),) if pooler_rules is None else pooler_rules
    return Access(databases=databases, users=users, pooler_rules=rules, **more)


def mistakes(fleet, make):
    """The problems and hints that a fleet's error names, when its access is as `make` makes it."""
    with pytest.raises(InventoryError) as error:
        fleet.but(access=make())
    assert USER_PASSWORD not in str(error.value)
    return re.findall(r" line \d+: (.*)\n    HINT: (.+)$", str(error.value), re.MULTILINE)


WRONG = {
    "an owner that nobody is": (
        lambda: access(users=(APP,)),
        "Fleet: Database shop: its owner shop_owner is not among the users",
        'add User(name="shop_owner", login=False)',
    ),
    "a user in two entries": (
        lambda: access(users=(OWNER, APP, APP)),
        "Fleet: User shop_app is in the inventory twice",
        "say all of it in one entry; which of two would count?",
    ),
    "a database in two entries": (
        lambda: access(databases=(SHOP, SHOP)),
        "Fleet: Database shop is in the inventory twice",
        "say all of it in one entry; which of two would count?",
    ),
    "a role that is none of ours": (
        lambda: access(users=(OWNER, APP, User(name="one", roles=("pg_monitor",)))),
        "User(roles.0): input should be 'dbrole_readonly', 'dbrole_readwrite', 'dbrole_admin' or"
        " 'dbrole_offline'",
        "roles: any of dbrole_readonly, dbrole_offline, dbrole_readwrite, dbrole_admin",
    ),
    "a superuser": (
        lambda: access(users=(OWNER, APP, User(name="dba", superuser=True))),
        "User(superuser): no such setting",
        "known: name, password, login, roles, databases, connection_limit, valid_until, settings,"
        " comment, pooled, pool_mode, pool_connection_limit",
    ),
    "the superuser's name": (
        lambda: access(users=(OWNER, APP, User(name="postgres"))),
        "User(name): postgres is a name of PEM, Postgres or PgBouncer",
        "choose another name; roles of these are not the inventory's business",
    ),
    "a role of PEM's": (
        lambda: access(users=(OWNER, APP, User(name="pem_agent_pool"))),
        "User(name): pem_agent_pool is a name of PEM, Postgres or PgBouncer",
        "choose another name; roles of these are not the inventory's business",
    ),
    "database pem": (
        lambda: access(databases=(SHOP, Database(name="pem", owner="shop_owner"))),
        "Database(name): pem is a name of PEM, Postgres or PgBouncer",
        "choose another name; databases of these are not the inventory's business",
    ),
    "a rule for database pem": (
        lambda: access(rules=(Rule(databases=("pem",), networks=NETWORKS),)),
        "Rule(databases.0): pem is a name of PEM, Postgres or PgBouncer",
        "choose another name; databases of these are not the inventory's business",
    ),
    "a rule for everything": (
        lambda: access(rules=(Rule(databases=("all",), networks=NETWORKS),)),
        "Rule(databases.0): all is a name of PEM, Postgres or PgBouncer",
        "choose another name; databases of these are not the inventory's business",
    ),
    "the admin console for a user": (
        lambda: access(pooler_rules=(PoolerRule(databases=("pgbouncer",), networks=NETWORKS),)),
        "PoolerRule(databases.0): pgbouncer is a name of PEM, Postgres or PgBouncer",
        "choose another name; databases of these are not the inventory's business",
    ),
    "a rule for a database that is not there": (
        lambda: access(rules=(Rule(databases=("shpo",), networks=NETWORKS),)),
        "Fleet: Rule for 192.0.2.64/28: database shpo is not in the inventory",
        "known: shop",
    ),
    "a rule for a user that is not there": (
        lambda: access(rules=(Rule(users=("shop_ap",), networks=NETWORKS),)),
        "Fleet: Rule for 192.0.2.64/28: user shop_ap is not in the inventory",
        "known: shop_owner, shop_app",
    ),
    "a user of a database that is not there": (
        lambda: access(users=(OWNER, APP.but(databases=("shpo",)))),
        "Fleet: User shop_app: database shpo is not in the inventory",
        "known: shop",
    ),
    "a rule by password for a user without one": (
        lambda: access(rules=(Rule(users=("shop_owner",), networks=NETWORKS),)),
        "Fleet: Rule for 192.0.2.64/28: user shop_owner has no password",
        'password=secret("SHOP_OWNER_PASSWORD"), or method="cert"',
    ),
    "a rule that fits nobody": (
        lambda: Access(
            databases=(SHOP.but(pooled=False),),
            users=(OWNER,),
            rules=(Rule(networks=NETWORKS),),
        ),
        "Fleet: Rule for 192.0.2.64/28: no user can log in by scram-sha-256",
        "User(password=…), or no rule",
    ),
    "a method without TLS and SCRAM": (
        lambda: access(rules=(Rule(networks=NETWORKS, method="trust"),)),
        "Rule(method): input should be 'scram-sha-256', 'cert' or 'reject'",
        'method: "scram-sha-256", "cert" or "reject"',
    ),
    "an address with host bits": (
        lambda: access(rules=(Rule(networks=("192.0.2.65/28",)),)),
        "Rule(networks.0): 192.0.2.65/28 has host bits set",
        "networks: from where they come",
    ),
    "a pooled user without a pooled database": (
        lambda: access(databases=(SHOP.but(pooled=False),)),
        "Fleet: shop_app: pooled, and no database is",
        "Database(…, pooled=True)",
    ),
    "a pooler's rule without anybody in the pool": (
        lambda: access(users=(OWNER, APP.but(pooled=False))),
        "Fleet: pooler_rules are there, and nobody is pooled",
        "User(…, pooled=True), or leave pooler_rules out",
    ),
    "a pooler's rule for a user who is not pooled": (
        lambda: access(pooler_rules=(PoolerRule(users=("shop_owner",), networks=NETWORKS),)),
        "Fleet: PoolerRule for 192.0.2.64/28: shop_owner is not pooled",
        'User(name="shop_owner", pooled=True, …)',
    ),
    "a pool without a rule": (
        lambda: access(pooler_rules=()),
        "Fleet: users or databases are pooled, and no rule lets anybody into the poolers",
        'Access(pooler_rules=(PoolerRule(networks=("192.0.2.0/24",)),), …)',
    ),
    "a pooled user without a password": (
        lambda: access(users=(OWNER, User(name="shop_app", pooled=True))),
        "User: shop_app is pooled and has no password, by which poolers let it in",
        'password=secret("SHOP_APP_PASSWORD")',
    ),
    "an offline user in the pool": (
        lambda: access(users=(OWNER, APP.but(roles=("dbrole_offline",)))),
        "User: shop_app is pooled and in dbrole_offline, which is for long queries from a few"
        " hosts",
        "give it a Rule(…) and take pooled= away, or another role",
    ),
    "settings of the pool for a user who is not pooled": (
        lambda: access(users=(OWNER.but(pool_mode="session"), APP)),
        "Fleet: User shop_owner has settings of the pool and is not pooled",
        "pooled=True, or leave pool_mode and pool_connection_limit out",
    ),
    "a user named like a host": (
        lambda: access(users=(OWNER, APP, User(name="bouncer1"))),
        "Fleet: User bouncer1 is also the name of a host, whose certificate could log in as that"
        " user",
        "choose another name for one of them",
    ),
    "a date that is none": (
        lambda: access(users=(OWNER, APP.but(valid_until="2027-02-30"))),
        "User(valid_until): input should be a valid date or datetime, day value is outside"
        " expected range",
        'valid_until: "2027-12-31": from its first second (UTC) the password is void',
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_with_what_to_type(fleet, case):
    make, problem, hint = WRONG[case]
    assert mistakes(fleet, make) == [(problem, hint)]


def test_all_mistakes_are_told_at_once(fleet):
    def make():
        return access(
            users=(APP, APP, User(name="postgres")),
            rules=(Rule(users=("nobody",), databases=("nowhere",), networks=NETWORKS),),
        )

    assert [problem for problem, _ in mistakes(fleet, make)] == [
        "User(name): postgres is a name of PEM, Postgres or PgBouncer",
        "Fleet: User shop_app is in the inventory twice",
        "Fleet: Database shop: its owner shop_owner is not among the users",
        "Fleet: Rule for 192.0.2.64/28: user nobody is not in the inventory",
        "Fleet: Rule for 192.0.2.64/28: database nowhere is not in the inventory",
    ]


def test_an_administrator_of_pem_under_a_name_of_its_own_is_not_a_user(fleet):
    server = fleet.pem_server.but(admin_user="registrar")
    pooler = fleet.pgbouncer.but(server=server)
    agent = fleet.agent.but(via=pooler)
    changed = fleet.but(pem_server=server, pgbouncer=pooler, agent=agent)
    assert mistakes(changed, lambda: access(users=(OWNER, APP, User(name="registrar")))) == [
        (
            "Fleet: User registrar is PemServer(admin_user=…) already",
            "choose another name; PEM's roles are made by deploys/pem_server.py",
        )
    ]


def test_the_clients_of_other_databases_are_added_to_the_agents(fleet):
    alone, beside = sizing(fleet.pgbouncer, fleet.agent), sizing(
        fleet.pgbouncer, fleet.agent, access(databases=(SHOP.but(pool_clients=2000),))
    )  # fmt: skip
    assert beside.max_client_conn == alone.max_client_conn + 2000
    assert beside.pool_size == alone.pool_size
    assert (alone.open_files, beside.open_files) == (1024, 3072)


def test_a_max_client_conn_that_leaves_the_agents_too_little_is_refused(fleet):
    pooler = fleet.pgbouncer.but(max_client_conn=102)
    changed = fleet.but(pgbouncer=pooler, agent=fleet.agent.but(via=pooler))
    assert mistakes(changed, access) == [
        (
            "Fleet: max_client_conn (102) is below the 3 connections of all agents and the"
            " 100 pool_clients of other databases",
            "leave it out, it is computed; 103 at least",
        )
    ]


def sql_of(wishes):
    return {wish.what: wish.sql for wish in wishes}


@pytest.mark.parametrize(
    ("setting", "value", "typed", "stored"),
    [
        ("statement_timeout", "30s", "'30s'", "statement_timeout=30s"),
        ("search_path", '"$user", shop', "'$user', 'shop'", 'search_path="$user", shop'),
        ("application_name", "it's, ok", "'it''s, ok'", "application_name=it''s, ok"),
    ],
)
def test_a_session_default_is_compared_as_postgres_keeps_it(setting, value, typed, stored):
    wish = next(
        one for one in user_wishes(APP.but(settings={setting: value})) if "RESET" in one.sql
    )
    assert wish.sql.endswith(f'ALTER ROLE "shop_app" SET {setting} TO {typed};')
    assert f"ARRAY['{stored}']" in wish.holds


def test_a_user_without_settings_has_none():
    wish = next(one for one in user_wishes(APP) if "RESET" in one.sql)
    assert wish.sql == 'ALTER ROLE "shop_app" RESET ALL;'


def test_roles_that_the_inventory_does_not_give_are_taken_back():
    said = sql_of(user_wishes(APP.but(roles=("dbrole_readonly",), pooled=False)))
    assert said["shop_app is a member of dbrole_readonly"] == 'GRANT dbrole_readonly TO "shop_app"'
    for role in ("dbrole_readwrite", "dbrole_admin", "dbrole_offline", "pem_fleet_pooled"):
        revoke = f'REVOKE {role} FROM "shop_app" GRANTED BY %s CASCADE'
        assert f"EXECUTE format('{revoke}', grantor)" in said[f"shop_app is no member of {role}"]


def test_only_those_who_name_a_closed_database_may_connect():
    stranger = User(name="stranger", password=PASSWORD)
    said = sql_of(database_wishes(access(users=(OWNER, APP, stranger)), SHOP))
    assert (
        said["not everybody may connect to shop"] == 'REVOKE CONNECT ON DATABASE "shop" FROM PUBLIC'
    )
    assert said["CONNECT on shop for shop_app"] == 'GRANT CONNECT ON DATABASE "shop" TO "shop_app"'
    assert "stranger has no right of its own to connect to shop" in said


def test_default_privileges_are_for_the_owner_and_for_those_who_make_objects():
    wanted = sample_access()
    makers = [wish.what.split()[1] for wish in privilege_wishes(wanted, wanted.databases[0])[2:]]
    assert makers == ["shop_owner", "dbrole_admin", "shop_ddl"]


def test_a_database_is_made_once_and_never_on_a_standby(plan):
    def steps(**facts):
        changed = DEBIAN_13 | dict(facts.values())
        return plan(database, "pem.example.com", changed, database="shop", owner="shop_owner")

    assert steps().inputs == ['CREATE DATABASE "shop" OWNER "shop_owner";']
    assert steps(there=(PostgresHolds, [True])).inputs == []
    assert steps(standby=(PostgresStandby, True)).inputs == []


def test_what_left_the_inventory_is_told_and_nothing_is_done(plan, caplog):
    planned = plan(
        left_behind,
        "pem.example.com",
        DEBIAN_13 | {PostgresNames: ["shop_app"]},
        queries={"user": "SELECT 'shop_app'"},
    )
    assert planned.shell == []
    assert "user shop_app is not in the inventory any more, and still there" in caplog.text
    assert "HINT: nothing is dropped here" in caplog.text
