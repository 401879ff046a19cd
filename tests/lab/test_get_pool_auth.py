"""The function of PgBouncer's auth_query: who does not come in, and what keeps each of them out.

Each attack is tried on the function as it is deployed, and on a copy from which the one protection
is taken out. The copy must let the attacker in: that proves that the attack tries something. All
of it happens in transactions that are rolled back, in a session of the poolers' own role.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from fleet import ROOT
from tests.lab.conftest import Lab

pytestmark = pytest.mark.lab

FUNCTION = (ROOT / "files" / "get_pool_auth.sql").read_text()

EXPIRED = "ALTER ROLE pem_agent_user1 VALID UNTIL 'yesterday';"
UNEXPIRED = "(role.rolvaliduntil IS NULL OR role.rolvaliduntil > pg_catalog.now())"
# Whatever PEM's function returns: this one vouches for everybody.
CREDULOUS_PEM = """
CREATE OR REPLACE FUNCTION pem.get_agent_pool_auth(p_usename text)
RETURNS TABLE (username text, password text) LANGUAGE sql SECURITY DEFINER AS
$$ SELECT rolname::text, rolpassword::text FROM pg_authid WHERE rolname = p_usename $$;
"""
# An agent that may create objects somewhere finds that yesterday is later than today.
HOSTILE_OPERATOR = """
CREATE SCHEMA hostile AUTHORIZATION pem_agent_user1;
SET LOCAL ROLE pem_agent_user1;
CREATE FUNCTION hostile.always(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS
    'SELECT true';
CREATE OPERATOR hostile.>
    (FUNCTION = hostile.always, LEFTARG = timestamptz, RIGHTARG = timestamptz);
RESET ROLE;
"""
# PEM's function asks for pg_auth_members by its bare name.
HOSTILE_TABLE = """
CREATE TEMPORARY TABLE pg_auth_members AS
    SELECT stranger.oid AS member, pool.oid AS roleid FROM pg_roles AS stranger, pg_roles AS pool
    WHERE stranger.rolname = 'agent1' AND pool.rolname = 'pem_agent_pool';
"""


@dataclass(frozen=True)
class Attack:
    """Somebody who must not come in, and the protection that keeps them out.

    before: SQL of the server's superuser. session: SQL of the session that asks.
    protection, instead: what is replaced in the function so that it lets them in.
    """

    protection: str
    instead: str
    user: str = "pem_agent_user1"
    before: str = ""
    session: str = ""


ATTACKS = {
    "an expired user": Attack(UNEXPIRED, "true", before=EXPIRED),
    "a disabled user": Attack(
        "role.rolcanlogin", "true", before="ALTER ROLE pem_agent_user1 NOLOGIN;"
    ),
    "a superuser in the pool": Attack(
        "NOT role.rolsuper",
        "true",
        before=f"ALTER ROLE pem_agent_user1 SUPERUSER; {CREDULOUS_PEM}",
    ),
    "a user outside the pool": Attack(
        "pem.get_agent_pool_auth(p_usename)",
        "(SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolname = p_usename)",
        user="agent1",
    ),
    "an operator in a schema earlier in the search_path": Attack(
        "SET search_path = pg_catalog, pg_temp\n",
        "",
        before=EXPIRED + HOSTILE_OPERATOR,
        session="SET LOCAL search_path = hostile, pg_catalog;",
    ),
    "a temporary table with a catalog's name": Attack(
        "pg_catalog, pg_temp", "pg_catalog", user="agent1", session=HOSTILE_TABLE
    ),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def without(protection: str, instead: str) -> str:
    """The function's SQL with one protection taken out."""
    mutant = FUNCTION.replace(protection, instead)
    assert FUNCTION.count(protection) == 1, f"the function has no {protection!r} to take out"
    assert mutant != FUNCTION
    return mutant


def let_in(lab: Lab, attack: Attack, function: str = "") -> bool:
    """Whether the deployed function, or another one in its place, vouches for the attacker.

    No means an error, not an empty answer: PgBouncer would go on with what it knew before.
    """
    script = (
        f"BEGIN; {attack.before} {function};\nSET LOCAL SESSION AUTHORIZATION pgbouncer;\n"
        f"{attack.session}\n"
        f"SELECT username FROM pem_fleet.get_pool_auth('{attack.user}');\nROLLBACK;\n"
    )
    psql = "sudo -u postgres psql -XAtq -v ON_ERROR_STOP=1 -d pem -f -"
    done = lab.on("pem1").run(f"{psql} <<'END_OF_SCRIPT'\n{script}END_OF_SCRIPT")
    if done.succeeded:
        assert done.stdout.strip() == attack.user, "neither an answer nor an error"
        return True
    refusal = f"role {attack.user} may not come in through the pooler"
    assert refusal in done.stderr, done.stderr
    return False


@every_attack
def test_nobody_comes_in_who_should_not(lab: Lab, attack: Attack) -> None:
    assert not let_in(lab, attack)


@every_attack
def test_without_its_protection_the_same_attacker_comes_in(lab: Lab, attack: Attack) -> None:
    assert let_in(lab, attack, without(attack.protection, attack.instead))


def test_the_pools_users_come_in(lab: Lab) -> None:
    for user in ("pem_agent_user1", "pem_admin1"):
        assert let_in(lab, Attack("", "", user=user))


def test_without_the_error_a_refusal_would_be_an_empty_answer(lab: Lab) -> None:
    nobody = Attack("IF NOT FOUND", "IF false", user="nobody")
    assert not let_in(lab, nobody)
    with pytest.raises(AssertionError, match="neither an answer nor an error"):
        let_in(lab, nobody, without(nobody.protection, nobody.instead))


@contextmanager
def expired_administrator(lab: Lab) -> Iterator[None]:
    """The administrator, whom no running agent needs, with a password that has expired."""
    user = lab.fleet.pem_server.admin_user
    lab.sql(f"ALTER ROLE {user} VALID UNTIL 'yesterday'")
    try:
        yield
    finally:
        lab.sql(f"ALTER ROLE {user} VALID UNTIL 'infinity'")


def comes_through_the_pooler(lab: Lab) -> bool:
    """Whether the administrator reaches the database through a pooler, as for a registration."""
    server = lab.fleet.pem_server
    password = server.admin_password.get_secret_value()
    try:
        with lab.connect("bouncer1", user=server.admin_user, password=password) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError as error:
        if "bouncer config error" not in str(error):
            raise
        return False


def test_an_expired_user_comes_through_a_pooler_only_without_the_protection(lab: Lab) -> None:
    assert comes_through_the_pooler(lab)
    with expired_administrator(lab):
        assert not comes_through_the_pooler(lab)
        lab.sql(without(UNEXPIRED, "true"))
        try:
            assert comes_through_the_pooler(lab)
        finally:
            lab.sql(FUNCTION)
        assert not comes_through_the_pooler(lab)
    assert comes_through_the_pooler(lab)
