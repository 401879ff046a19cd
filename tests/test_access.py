"""What the PEM database must hold for the poolers, as SQL and rules."""

import pytest

from fleet.access import FUNCTION, function_wishes, hba_lines, ident_lines, role_wishes
from fleet.hosts import Host, sources
from fleet.platforms import pgbouncer
from fleet.pooler import configuration

PEM = Host(name="pem", address="192.0.2.10")
V6 = Host(name="v6", address="2001:db8::6")


@pytest.mark.parametrize(
    ("servers", "networks"),
    [
        ((PEM,), ("2001:db8::6/128",)),
        ((PEM, V6), ("2001:db8::6/128", "127.0.0.1/32", "::1/128")),
    ],
    ids=["apart", "on a shared host"],
)
def test_clients_come_from_their_addresses_and_on_a_shared_host_from_loopback_too(
    servers, networks
):
    assert sources((V6,), servers) == networks


def test_the_database_lets_poolers_in_from_their_addresses_alone(fleet):
    assert hba_lines(fleet) == (
        "hostssl pem +pem_agent_pool 192.0.2.21/32 cert map=pem_agent_pool",
        "hostssl pem +pem_agent_pool 192.0.2.22/32 cert map=pem_agent_pool",
    )


def on_shared_hosts(fleet):
    """The same fleet with the first pooler on the PEM server and an agent on the second one."""
    (pem,), bouncer2 = fleet.pem_server.hosts, fleet.pgbouncer.hosts[1]
    bouncer = fleet.pgbouncer.but(hosts=(pem, bouncer2))
    agent = fleet.agent.but(hosts=(bouncer2,), via=bouncer)
    return fleet.but(pgbouncer=bouncer, agent=agent)


def test_a_pooler_on_the_databases_host_may_come_from_loopback(fleet):
    assert [line.split()[3] for line in hba_lines(on_shared_hosts(fleet))] == [
        "192.0.2.10/32",
        "192.0.2.22/32",
        "127.0.0.1/32",
        "::1/128",
    ]


def test_an_agent_on_a_poolers_host_may_come_from_loopback(fleet):
    shared = on_shared_hosts(fleet)
    place = pgbouncer("debian", "distribution")
    rules = configuration(shared, shared.pgbouncer.hosts[1], place)[-2].content.splitlines()
    assert [line.split()[3] for line in rules if line.startswith("hostssl pem pem_agent_")] == [
        "192.0.2.22/32",
        "127.0.0.1/32",
        "::1/128",
    ]


def test_a_certificate_of_the_pool_may_be_the_pools_three_roles(fleet):
    assert ident_lines(fleet) == (
        "pem_agent_pool pem_agent_pool pem_agent_user1",
        "pem_agent_pool pem_agent_pool pem_admin1",
        "pem_agent_pool pem_agent_pool pgbouncer",
    )


@pytest.mark.parametrize("role", ["pgbouncer", "pem_admin1"])
def test_a_role_that_is_a_superuser_is_refused_and_not_made_an_ordinary_one(fleet, role):
    (wish,) = [one for one in role_wishes(fleet.pem_server) if one.what == f"role {role}"]
    check = f"IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}' AND rolsuper) THEN"
    refusal = f"RAISE EXCEPTION 'role {role} is a superuser, and poolers let no superuser in'"
    hint = f"USING HINT = 'name another role in the inventory, or ALTER ROLE {role} NOSUPERUSER';"
    places = [wish.sql.index(part) for part in (check, refusal, hint, "CREATE ROLE", "ALTER ROLE ")]
    assert places[:4] == sorted(places[:4])
    assert "NOSUPERUSER" not in wish.sql.replace(hint, "")
    assert "AND NOT rolsuper" in wish.holds


def test_a_function_that_everybody_may_call_is_seen_even_without_any_grant():
    # Without an ACL of its own a function has the default one, by which PUBLIC may call it.
    (wish,) = (wish for wish in function_wishes() if wish.what == FUNCTION)
    assert "aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee = 0" in wish.holds
    revoked = wish.sql.index("REVOKE ALL ON FUNCTION pem_fleet.get_pool_auth(text) FROM PUBLIC;")
    assert revoked < wish.sql.index("GRANT EXECUTE ON FUNCTION")
