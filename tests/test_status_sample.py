"""The sample of docs/status.md is what a fleet in that state is told as."""

from fleet import ROOT
from fleet.facts.database import PostgresDatabase
from fleet.findings import Agent, Drift, Findings, Machine, Pooler, Server
from fleet.heartbeats import Heartbeat
from fleet.table import text
from fleet.verdict import problems


def pooler(name):
    return Pooler(
        name, "/run/postgresql", True, "1.24.1",
        clients=1, max_client_conn=26, server_connections=1, pool_size=5,
    )  # fmt: skip


def agent(name, agent_id, age, through):
    user = "pem_agent_user1" if through else ""
    seen = Heartbeat(name, agent_id, True, age, through, user, 3600.0, direct=False)
    return Agent(
        name, agent_id, seen.way, through, age, True, "", seen.well, seen.sentence()
    )  # fmt: skip


SAMPLE = Findings(
    machines=(Machine("agent3", "192.0.2.33", ("agent",), True, {"pemagent": False}),),
    certificates=(),
    poolers=(pooler("bouncer1"), pooler("bouncer2")),
    agents=(
        agent("agent1", 3, 7.0, "bouncer1"),
        agent("agent2", 2, 8.0, "bouncer2"),
        agent("agent3", 4, 43.0, ""),
    ),
    servers=(
        Server(
            "pem1", True, "17.12",
            connections={"agents direct": 4, "agents pooled": 2}, max_connections=100,
        ),
    ),
    drift=(
        Drift(
            "bouncer2", "pgbouncer", "PgBouncer | Write the configuration, once it is proven",
            ("/etc/pgbouncer/hba.conf",),
        ),
        Drift("agent3", "agent", "Agent | Start, or restart on new settings", ()),
    ),
    unanswered={},
)  # fmt: skip


def test_the_sample_is_what_status_prints():
    printed = text(SAMPLE, problems(SAMPLE))
    blocks = (ROOT / "docs/status.md").read_text().split("```\n")
    (sample,) = (block for block in blocks if block.startswith("Poolers:\n"))
    assert sample.rstrip() == "Poolers:\n" + printed.partition("Poolers:\n")[2]


def test_the_steps_of_the_sample_are_steps_of_the_deploys():
    for one in SAMPLE.drift:
        steps = (ROOT / f"tests/rendered/debian-13/{one.deploy}/steps.txt").read_text()
        assert one.step in steps.splitlines()


def test_the_kinds_of_connections_in_the_sample_are_those_that_the_database_is_asked_for():
    asked = str(PostgresDatabase().command("pem_agent_user1", ("192.0.2.21/32",)))
    for server in SAMPLE.servers:
        assert all(
            f"THEN {kind}" in asked.replace("'", "").replace('"', "") for kind in server.connections
        )
