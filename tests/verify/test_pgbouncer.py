"""The poolers: what they show, whom they refuse, and that their limits hold."""

import re

import psycopg
import pytest

from fleet.certificates import Leaf
from fleet.leaves import server_leaf
from fleet.pki import certificate_file, issue, key_file, make_authorities


@pytest.fixture
def show(site, pooler):
    """The rows of a SHOW of each process of a pooler."""
    return lambda what: [
        row for directory in site.sockets(pooler) for row in site.show(pooler, what, directory)
    ]


def test_it_runs_and_starts_at_boot(site, pooler):
    for unit in site.units(pooler):
        service = site.on(pooler).service(unit)
        assert service.is_running, unit
        assert service.is_enabled, unit


def test_both_sides_are_tls_and_verified(show):
    settings = {row["key"]: row["value"] for row in show("CONFIG")}
    assert settings["client_tls_sslmode"] == "require"
    assert settings["server_tls_sslmode"] == "verify-full"
    assert settings["auth_type"] == "hba"


def test_no_database_is_for_any_name(show):
    assert "*" not in {row["name"] for row in show("DATABASES")}


def test_no_database_is_paused(show):
    assert {row["paused"] for row in show("DATABASES")} == {"0"}


def test_the_limit_of_open_files_covers_clients_and_pools(site, pooler):
    for unit, directory in zip(site.units(pooler), site.sockets(pooler), strict=True):
        settings = {row["key"]: row["value"] for row in site.show(pooler, "CONFIG", directory)}
        pools = [int(row["pool_size"]) for row in site.show(pooler, "DATABASES", directory)]
        limits = site.run(pooler, f"cat /proc/$(systemctl show -p MainPID --value {unit})/limits")
        limit = re.search(r"Max open files\s+(\d+)", limits)
        assert int(limit[1]) >= int(settings["max_client_conn"]) + sum(pools), unit


def test_server_connections_stay_within_the_pool(site, pooler, show):
    sizes = sum(int(row["pool_size"]) for row in show("DATABASES") if row["name"] == "pem")
    user, address = site.fleet.pem_server.agent_user, site.machines[pooler].address
    used = sum(
        int(
            site.sql(
                "SELECT count(*) FROM pg_stat_activity"
                f" WHERE usename = '{user}' AND client_addr = '{address}'",
                server=server.name,
            )
        )
        for server in site.fleet.pem_server.hosts
    )
    assert used <= sizes


def test_its_certificate_verifies_for_each_of_its_names(site, pooler):
    port, anchor = site.fleet.pgbouncer.listen_port, "/etc/pem-fleet/server-ca.crt"
    if not site.has(pooler, "openssl"):
        pytest.skip(f"openssl is not installed on {pooler}")
    for name in server_leaf(site.fleet, site.machines[pooler]).dns_names:
        shown = site.on(pooler).run(
            f"openssl s_client -connect {site.machines[pooler].address}:{port} -starttls postgres"
            f" -verify_return_error -verify_hostname {name} -CAfile {anchor} </dev/null"
        )
        assert "Verify return code: 0 (ok)" in shown.stdout, (name, shown.stderr)


def test_its_console_is_closed_to_itself_unless_it_is_an_administrators_host(site, pooler):
    """A try without a password: where the console is closed, PgBouncer asks for none."""
    said = site.on(pooler).run(
        f"cd / && psql -w -c 'SHOW VERSION' 'host={site.machines[pooler].address}"
        f" port={site.fleet.pgbouncer.listen_port} dbname=pgbouncer sslmode=require"
        f" user={site.fleet.pem_server.admin_user}'"
    )
    assert said.failed
    if "no password supplied" in said.stderr:
        pytest.skip(f"the admin_networks of the inventory hold {pooler} itself")
    assert "no authentication method" in said.stderr


# From here: tries to log in that must be refused.


@pytest.fixture
def refusal(site, pooler):
    """The words in which a pooler refuses to log somebody in."""
    if not site.reachable(pooler):
        port = site.fleet.pgbouncer.listen_port
        pytest.skip(f"{pooler}:{port} cannot be reached from this machine")

    def words(**parameters):
        with (
            pytest.raises(psycopg.OperationalError) as refused,
            site.as_agent(pooler, **parameters) as connection,
        ):
            connection.execute("SELECT 1")
        return str(refused.value)

    return words


def test_nobody_comes_in_without_tls(refusal):
    assert "SSL required" in refusal(sslmode="disable")


def test_nobody_comes_in_without_a_certificate(refusal):
    # "no authentication method": this machine is in none of the agents' networks either.
    assert re.search(
        "certificate authentication failed|no authentication method",
        refusal(sslcertmode="disable"),
    )


def test_a_certificate_of_another_authority_is_refused(site, refusal, tmp_path):
    stranger = site.fleet.certificate_authority.but(directory=str(tmp_path / "ca"))
    leaf = Leaf("client", site.fleet.pem_server.agent_user, "stranger")
    make_authorities(stranger)
    issue(stranger, leaf)
    said = refusal(
        sslcert=str(certificate_file(stranger, leaf)), sslkey=str(key_file(stranger, leaf))
    )
    assert "unknown ca" in said
