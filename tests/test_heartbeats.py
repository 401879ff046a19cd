"""Which agent counts as alive, and what is said of the others."""

import pytest

from fleet.agent_config import AgentConfig
from fleet.facts.pem import RegisteredAgents
from fleet.facts.pgbouncer import PgBouncerClients
from fleet.heartbeats import heartbeats

APP1 = "192.0.2.31"


def agent(age, name="app1", active=True, agent_id=7):
    return {"id": agent_id, "name": name, "active": active, "heartbeat_age_seconds": age}


def client(address=APP1, user="pem_agent_user1", connected_seconds=3600.0):
    return {
        "user": user,
        "database": "pem",
        "address": address,
        "connected_seconds": connected_seconds,
    }


ONE_CLIENT = {"bouncer1": [client()], "bouncer2": []}


def backend(address=APP1, user="pem_agent_user1"):
    return {"user": user, "address": address}


def config(text=""):
    return AgentConfig(f"[PEM/agent]\nagent_id=7\n{text}".encode())


def seen(fleet, agents, clients, backends=(), config=None):
    found = {"agents": agents, "backends": list(backends)}
    return heartbeats(fleet, found, clients, {"app1": config} if config else {})["app1"]


@pytest.mark.parametrize(
    ("agents", "clients", "backends", "fresh", "sentence"),
    [
        pytest.param(
            [agent(4.2)], ONE_CLIENT, (), True,
            "registered as id 7, last heartbeat 4 s ago, through bouncer1 as pem_agent_user1",
            id="through a pooler, in time",
        ),
        pytest.param(
            [agent(30.0)], ONE_CLIENT, (), True,
            "registered as id 7, last heartbeat 30 s ago, through bouncer1 as pem_agent_user1",
            id="just in time",
        ),
        pytest.param(
            [agent(31.0)], ONE_CLIENT, (), False,
            "registered as id 7, last heartbeat 31 s ago, through bouncer1 as pem_agent_user1",
            id="too old",
        ),
        pytest.param(
            [agent(10.0)], {"bouncer1": [client(connected_seconds=2.0)]}, (), False,
            "registered as id 7, last heartbeat 10 s ago, through bouncer1 as pem_agent_user1",
            id="older than the connection, so it came another way",
        ),
        pytest.param(
            [agent(4.2)], {"bouncer1": [], "bouncer2": []}, (), False,
            "registered as id 7, last heartbeat 4 s ago, through no pooler",
            id="through no pooler",
        ),
        pytest.param(
            [agent(4.2)], ONE_CLIENT, (backend(),), False,
            "registered as id 7, last heartbeat 4 s ago,"
            " through bouncer1 as pem_agent_user1, and directly",
            id="through a pooler and around it",
        ),
        pytest.param(
            [agent(4.2)], {}, (backend(),), False,
            "registered as id 7, last heartbeat 4 s ago, directly as pem_agent_user1",
            id="around the poolers",
        ),
        pytest.param(
            [agent(4.2)], {}, (backend(user="agent7"),), False,
            "registered as id 7, last heartbeat 4 s ago, directly as agent7",
            id="directly, by a role of its own",
        ),
        pytest.param(
            [agent(4.2)], {}, (backend("192.0.2.99", user="agent7"),), False,
            "registered as id 7, last heartbeat 4 s ago, directly as agent7",
            id="directly, through something that hides its address",
        ),
        pytest.param(
            [agent(4.2)], ONE_CLIENT, (backend(user="agent8"), backend(user="pem_admin1")), True,
            "registered as id 7, last heartbeat 4 s ago, through bouncer1 as pem_agent_user1",
            id="others that log in from its host are not the agent",
        ),
        pytest.param(
            [agent(4.2, active=False)], ONE_CLIENT, (), False,
            "registered as id 7 (inactive), last heartbeat 4 s ago,"
            " through bouncer1 as pem_agent_user1",
            id="inactive",
        ),
        pytest.param(
            [agent(None)], ONE_CLIENT, (), False,
            "registered as id 7, no heartbeat yet",
            id="registered, silent",
        ),
        pytest.param([], ONE_CLIENT, (), False, "not registered", id="unknown to PEM"),
        pytest.param(
            [agent(4.2, name="app2")], ONE_CLIENT, (), False, "not registered",
            id="another one's heartbeat is not its own",
        ),
        pytest.param(
            [agent(4.2)], {"bouncer1": [client(address="192.0.2.32")]}, (), False,
            "registered as id 7, last heartbeat 4 s ago, through no pooler",
            id="another one's connection is not its own",
        ),
        pytest.param(
            [agent(4.2)], {"bouncer1": [client(user="pem_admin1")]}, (), False,
            "registered as id 7, last heartbeat 4 s ago, through no pooler",
            id="an administrator's connection from its host is not its own",
        ),
        pytest.param(
            [agent(4.2)], ONE_CLIENT, (backend("192.0.2.21"), backend("192.0.2.22")), True,
            "registered as id 7, last heartbeat 4 s ago, through bouncer1 as pem_agent_user1",
            id="the poolers' own backends are not direct",
        ),
    ],
)  # fmt: skip
def test_an_agent_is_well_when_it_beats_in_time_and_through_a_pooler_only(
    fleet, agents, clients, backends, fresh, sentence
):
    heartbeat = seen(fleet, agents, clients, backends)
    assert (heartbeat.fresh, heartbeat.sentence()) == (fresh, sentence)


def test_an_agent_on_a_poolers_host_is_not_direct_by_the_poolers_own_backends(fleet):
    agents = fleet.agent.but(hosts=(*fleet.agent.hosts, fleet.pgbouncer.hosts[0]))
    found = {"agents": [agent(4.2, name="bouncer1")], "backends": [backend("192.0.2.21")]}
    clients = {"bouncer1": [client(address="192.0.2.21")]}
    seen = heartbeats(fleet.but(agent=agents), found, clients)["bouncer1"]
    assert (seen.direct, seen.fresh) == (False, True)


@pytest.mark.parametrize(
    ("clients", "backends", "way"),
    [
        (ONE_CLIENT, (), "pooled"),
        ({}, (backend(user="agent7"),), "direct"),
        (ONE_CLIENT, (backend(),), "direct"),
        ({}, (), "none"),
    ],
    ids=["through a pooler", "directly", "both ways", "not logged in"],
)
def test_the_way_of_an_agent_is_pooled_direct_or_none(fleet, clients, backends, way):
    assert seen(fleet, [agent(4.2)], clients, backends).way == way


def test_an_agent_whose_host_was_asked_is_known_by_its_id_whatever_its_display_name(fleet):
    agents = [agent(4.2, name="db-17.example.com"), agent(900.0, name="app1", agent_id=8)]
    heartbeat = seen(fleet, agents, ONE_CLIENT, config=config())
    assert (heartbeat.agent_id, heartbeat.fresh) == (7, True)
    assert seen(fleet, agents, ONE_CLIENT).agent_id == 8


def test_an_id_that_pem_does_not_know_is_not_replaced_by_a_namesake(fleet):
    heartbeat = seen(fleet, [agent(4.2, agent_id=8)], ONE_CLIENT, config=config())
    assert heartbeat.sentence() == "not registered"


@pytest.mark.parametrize("key", ["enable_smtp", "enable_snmp", "enable_webhook", "enable_nagios"])
def test_an_agent_with_a_spooler_is_well_when_it_beats_directly(fleet, key):
    spooling, direct = config(f"{key}=true\n"), (backend(user="agent7"),)
    heartbeat = seen(fleet, [agent(4.2)], {}, direct, spooling)
    assert (heartbeat.well, heartbeat.fresh) == (True, False)
    assert heartbeat.sentence() == (
        f"registered as id 7, last heartbeat 4 s ago, directly as agent7, as it must with {key}"
    )
    assert not seen(fleet, [agent(31.0)], {}, direct, spooling).well, "it is silent"
    assert not seen(fleet, [agent(4.2)], ONE_CLIENT, (), spooling).well, "it went through a pooler"
    assert not seen(fleet, [agent(4.2)], {}, direct, config()).well, "it has no spooler"


OLD, NEW = 3, 9


@pytest.mark.parametrize(
    ("active", "counts"),
    [({OLD}, OLD), ({NEW}, NEW), ({OLD, NEW}, NEW), (set(), NEW)],
    ids=["the old is active", "the new is active", "both are", "neither is"],
)
@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)])
def test_of_two_rows_with_one_name_the_active_then_the_newest_counts(fleet, order, active, counts):
    rows = [agent(4.2, agent_id=number, active=number in active) for number in order]
    assert seen(fleet, rows, ONE_CLIENT).agent_id == counts


def test_of_two_poolers_the_younger_connection_counts(fleet):
    clients = {
        "bouncer1": [client(connected_seconds=900.0)],
        "bouncer2": [client(connected_seconds=5.0)],
    }
    assert seen(fleet, [agent(1.0)], clients).pooler == "bouncer2"


def test_every_agent_of_the_inventory_is_there_even_when_the_database_is_not(fleet):
    found = heartbeats(fleet, None, {})
    assert {name: one.sentence() for name, one in found.items()} == dict.fromkeys(
        ("app1", "app2", "app3"), "unknown: PEM's database does not answer"
    )


def test_clients_are_read_by_the_columns_names_and_the_console_is_none_of_them():
    said = [
        "2026-03-01 12:00:10",
        "type\tuser\tnew_column\tdatabase\taddr\tconnect_time",
        "C\tpem_agent_user1\tx\tpem\t192.0.2.31\t2026-03-01 12:00:00 UTC",
        "C\tpgbouncer\tx\tpgbouncer\tunix\t2026-03-01 12:00:10 UTC",
    ]
    assert PgBouncerClients().process(said) == [client(connected_seconds=10.0)]


@pytest.mark.parametrize("said", [["2026-03-01 12:00:10"], ["2026-03-01 12:00:10", ""]])
def test_a_pooler_that_does_not_answer_has_no_clients(said):
    assert PgBouncerClients().process(said) == []


@pytest.mark.parametrize("said", [[], [""]])
def test_a_database_that_does_not_answer_has_no_agents(said):
    assert RegisteredAgents().process(said) is None
