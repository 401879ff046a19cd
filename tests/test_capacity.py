"""Whether the database bears the poolers, and who says so when it does not."""

from fleet.capacity import OTHER_CONNECTIONS, SUPERUSER_RESERVED, demand
from fleet.sizing import sizing
from tests.samples import DEBIAN_13, sample_access, with_server


def test_every_pool_of_every_pooler_counts_as_full(fleet):
    each = sizing(fleet.pgbouncer, fleet.agent).pool_size
    assert demand(fleet).connections == 2 * 3 * each == 30
    assert demand(fleet).explanation == "2 poolers x (3 pools of 5) = 30 server connections"


def test_pools_of_several_processes_and_other_databases_count_too(fleet):
    bouncer = fleet.pgbouncer.but(processes=2, pool_size=9)
    larger = fleet.but(
        pgbouncer=bouncer, agent=fleet.agent.but(via=bouncer), access=sample_access()
    )
    assert demand(larger).connections == 2 * 2 * (3 * 5 + 10) == 100
    assert demand(larger).explanation == (
        "2 poolers x 2 processes x (3 pools of 5 + 10 for shop) = 100 server connections"
    )


def test_the_server_needs_room_for_everybody_else_too(fleet):
    assert demand(fleet).max_connections == 30 + SUPERUSER_RESERVED + OTHER_CONNECTIONS == 73


def test_without_a_wish_max_connections_is_left_as_it_is(fleet, plan):
    planned = plan("deploys/pem_server.py", "pem.example.com", DEBIAN_13, of=fleet)
    assert not any("max_connections" in text for text in planned.inputs)


def test_a_wish_is_written_for_the_next_restart(fleet, plan):
    wishing = with_server(fleet, max_connections=200)
    planned = plan("deploys/pem_server.py", "pem.example.com", DEBIAN_13, of=wishing)
    assert "ALTER SYSTEM SET max_connections = '200';" in planned.inputs
    assert not any("restart" in command for command in planned.shell)


def test_the_poolers_proof_gets_both_sides_of_the_arithmetic(fleet, plan):
    planned = plan("deploys/pgbouncer.py", "bouncer1", DEBIAN_13, of=fleet)
    (script,) = [text for text in planned.inputs if "prove" in text or "pools=" in text]
    assert "pools=30\n" in script
    assert "enough=73\n" in script
    assert "arithmetic='2 poolers x (3 pools of 5) = 30 server connections'\n" in script
