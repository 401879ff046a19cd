"""inventories/prod.py: every deploy can be planned on each of its 30 hosts, none of which exists.

One host of each role is compared with tests/rendered/prod/ROLE. Written anew as in test_rendered:

    .venv/bin/python -m pytest tests/test_prod.py --write-rendered; git diff tests/rendered
"""

import pytest

from fleet.facts.postgres import PostgresStandby
from fleet.inventory import fleet_of
from fleet.run import DEPLOYS
from tests.samples import DEBIAN_13, sample_authority, write_leaves
from tests.test_rendered import RENDERED, compare, reviewable

SECRETS = {
    name: f"planted-{name.lower()}"
    for name in (
        "PEM_ADMIN_PASSWORD",
        "PEM_STATS_PASSWORD",
        "INVENTORY_APP_PASSWORD",
        "INVENTORY_DDL_PASSWORD",
    )
}
HOSTS = {
    "pem_server": [f"pem{number}.dc1.example.com" for number in (1, 2, 3)],
    "pgbouncer": ["bouncer1.dc1.example.com", "bouncer2.dc2.example.com"],
    "agent": [
        *(f"app{number:02}.dc2.example.com" for number in range(1, 21)),
        *(f"db{number}.dc1.example.com" for number in (1, 2, 3, 5, 8)),
    ],
}
# What runs on the hosts of each role; pem1 is the primary.
DEPLOYS_OF = {
    "pem_server": ("ca", "pem_server", "access"),
    "pgbouncer": ("ca", "pgbouncer"),
    "agent": ("ca", "agent"),
}


@pytest.fixture
def prod(monkeypatch, tmp_path):
    """The fleet of inventories/prod.py, as an operator loads it who has a CA and the secrets."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    sample_authority(tmp_path / ".pem-fleet" / "prod")
    fleet = fleet_of("inventories/prod.py")
    write_leaves(fleet)
    return fleet


def facts_of(name):
    return DEBIAN_13 | {PostgresStandby: name in HOSTS["pem_server"][1:]}


def test_it_has_thirty_hosts_and_all_deploys_have_something_to_do(prod):
    found = {role: [host.name for host in getattr(prod, role).hosts] for role in HOSTS}
    assert found == HOSTS
    assert len(prod.machines()) == 30
    assert {deploy for deploys in DEPLOYS_OF.values() for deploy in deploys} == set(DEPLOYS)


@pytest.mark.parametrize("role", HOSTS)
def test_every_deploy_can_be_planned_on_each_host_and_shows_no_secret(prod, plan, role):
    for name in HOSTS[role]:
        for deploy in DEPLOYS_OF[role]:
            planned = plan(f"deploys/{deploy}.py", name, facts_of(name), of=prod)
            assert planned.steps, f"{deploy} does nothing on {name}"
            written = b"".join(file.content for file in planned.files.values()).decode()
            for value in SECRETS.values():
                assert value not in "\n".join(planned.shell) + written


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("pem_server", "pem1.dc1.example.com"),
        ("pgbouncer", "bouncer2.dc2.example.com"),
        ("agent", "db5.dc1.example.com"),
    ],
)
def test_a_host_of_each_role_gets_exactly_the_reviewed_files(prod, plan, request, role, name):
    planned = plan(f"deploys/{role}.py", name, facts_of(name), of=prod)
    compare(RENDERED / "prod" / role, reviewable(planned), request)


@pytest.mark.usefixtures("prod")
def test_a_missing_secret_is_told_with_what_to_type(monkeypatch):
    monkeypatch.delenv("INVENTORY_APP_PASSWORD")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Exception, match="1 mistake in the inventory") as error:
        fleet_of("inventories/prod.py")
    assert "HINT: run `pass show pem/prod/inventory_app` by hand, or export" in str(error.value)
