"""How large the poolers are for their agents."""

import pytest

from fleet.hosts import Agent, Host
from fleet.sizing import sizing


def limits(fleet, agents, heartbeat_connection=False, **pooler):
    hosts = tuple(
        Host(name=f"app{n}", address=f"10.0.{n // 250}.{n % 250 + 1}") for n in range(agents)
    )
    bouncer = fleet.pgbouncer.but(**pooler)
    return sizing(
        bouncer, Agent(hosts=hosts, via=bouncer, heartbeat_connection=heartbeat_connection)
    )


@pytest.mark.parametrize(
    ("agents", "pool_size", "max_client_conn"),
    [(1, 5, 22), (3, 5, 26), (31, 5, 82), (32, 6, 84), (100, 16, 220), (500, 80, 1020)],
)
def test_limits_grow_with_the_agents(fleet, agents, pool_size, max_client_conn):
    found = limits(fleet, agents)
    assert (found.pool_size, found.max_client_conn) == (pool_size, max_client_conn)


def test_a_heartbeat_connection_counts_as_a_client_of_its_own(fleet):
    found = limits(fleet, 100, heartbeat_connection=True)
    assert (found.pool_size, found.max_client_conn) == (32, 420)
    assert found.explanation[0].startswith("100 agents x 2 = 200 client connections,")


@pytest.mark.parametrize("agents", [1, 7, 40, 500])
def test_each_pooler_alone_carries_every_agent_twice(fleet, agents):
    assert limits(fleet, agents).max_client_conn >= 2 * agents


def test_what_the_inventory_says_is_taken(fleet):
    found = limits(fleet, 100, pool_size=40, max_client_conn=300)
    assert (found.pool_size, found.max_client_conn) == (40, 300)


def test_clients_are_never_fewer_than_the_pool_that_the_inventory_wants(fleet):
    found = limits(fleet, 3, pool_size=200)
    assert found.max_client_conn >= found.pool_size


@pytest.mark.parametrize("agents", [1, 100, 500])
def test_descriptors_are_enough_for_all_clients_and_three_pools(fleet, agents):
    found = limits(fleet, agents)
    assert found.open_files > found.max_client_conn + 3 * found.pool_size


def test_the_arithmetic_is_shown_with_its_numbers(fleet):
    assert limits(fleet, 100).explanation == (
        (
            "100 agents x 1 = 100 client connections,"
            " all of them at one pooler when the other is down."
        ),
        "pool_size 16: 16% of 100 busy at once, and at least 5.",
        (
            "max_client_conn 220: 100 x 2 while lost connections linger,"
            " and 20 for administrators and registrations."
        ),
    )


def test_a_limit_of_the_inventory_is_shown_as_such(fleet):
    explanation = limits(fleet, 100, pool_size=40, max_client_conn=300).explanation
    assert explanation[1:] == (
        "pool_size 40: as the inventory says.",
        "max_client_conn 300: as the inventory says.",
    )


def test_the_servers_connections_are_divided_among_processes_and_clients_are_not(fleet):
    found = limits(fleet, 100, processes=3)
    assert (found.pool_size, found.max_client_conn) == (6, 220)
    assert found.explanation[-2:] == (
        "3 processes: pool_size 16 / 3 = 6 for each, rounded up; max_client_conn",
        "is for each, as it carries the clients of the others while they restart.",
    )


@pytest.mark.parametrize(
    ("agents", "wish", "log", "reason"),
    [
        (100, None, True, "on, as 100 client connections are at most 100."),
        (101, None, False, "off, as 101 client connections are more than 100."),
        (500, True, True, "as the inventory says."),
        (3, False, False, "as the inventory says."),
    ],
)
def test_logins_are_logged_where_they_do_not_bury_everything_else(fleet, agents, wish, log, reason):
    found = limits(fleet, agents, log_connections=wish)
    assert (found.log_connections, found.log_reason) == (log, reason)
