"""Agents: registered, beating, and let in by every pooler."""

import psycopg
import pytest

from fleet.heartbeats import FRESH_SECONDS
from fleet.platforms import PEM_AGENT_UNIT, PEM_WORKER, SERVER_CA_FILE
from fleet.pooler import agent_pair


@pytest.fixture
def config(site, agent):
    """The agent.cfg of an agent that is to be pooled."""
    config = site.config(agent)
    if config.spoolers:
        pytest.skip(f"{agent} stays direct, with {', '.join(config.spoolers)}")
    return config


def test_it_runs_and_starts_at_boot(site, agent):
    service = site.on(agent).service(PEM_AGENT_UNIT)
    assert service.is_running
    assert service.is_enabled


def test_pems_own_check_is_content(site, agent):
    said = site.on(agent).run(f"PGSSLROOTCERT={SERVER_CA_FILE} {PEM_WORKER} --verify-registration")
    assert said.rc == 0, said.stderr


def test_it_knows_all_poolers_and_checks_their_names(site, config):
    poolers = {host.name for host in site.fleet.pgbouncer.hosts}
    assert set((config.value("pem_host") or "").split(",")) == poolers
    assert config.value("pem_ssl_mode") == "verify-full"
    assert config.user == site.fleet.pem_server.agent_user


def test_pem_had_a_heartbeat_of_it_just_now(site, agent):
    """By the database that is no standby."""
    ages = [
        site.sql(
            "SELECT extract(epoch FROM now() - last_heartbeat) FROM pem.agent_heartbeat"
            f" WHERE agent_id = {site.config(agent).agent_id} AND NOT pg_is_in_recovery()",
            server=server.name,
        )
        for server in site.fleet.pem_server.hosts
    ]
    (age,) = (one for one in ages if one)
    assert float(age) <= FRESH_SECONDS


@pytest.mark.usefixtures("config")
def test_its_certificate_opens_every_pooler(site, agent):
    """By psql where that is installed; PEM's agent does not bring it."""
    if not site.has(agent, "psql"):
        pytest.skip(f"psql is not installed on {agent}; see the next test")
    user, port = site.fleet.pem_server.agent_user, site.fleet.pgbouncer.listen_port
    certificate, key = agent_pair(site.fleet)
    for pooler in site.fleet.pgbouncer.hosts:
        answer = site.run(
            agent,
            f"psql -XAtq -c 'SELECT 1' 'host={pooler.name} port={port} dbname=pem user={user}"
            f" connect_timeout=10 sslmode=verify-full sslrootcert={SERVER_CA_FILE}"
            f" sslcert={certificate} sslkey={key}'",
        )
        assert answer == "1", pooler.name


@pytest.mark.usefixtures("config")
def test_every_pooler_takes_its_certificate_and_shows_one_of_its_own_name(site, agent):
    if not site.has(agent, "openssl"):
        pytest.skip(f"openssl is not installed on {agent}")
    port = site.fleet.pgbouncer.listen_port
    certificate, key = agent_pair(site.fleet)
    for pooler in site.fleet.pgbouncer.hosts:
        shown = site.on(agent).run(
            f"sleep 1 | openssl s_client -connect {pooler.name}:{port} -starttls postgres"
            f" -cert {certificate} -key {key} -CAfile {SERVER_CA_FILE}"
            f" -verify_return_error -verify_hostname {pooler.name}"
        )
        assert "Verify return code: 0 (ok)" in shown.stdout, (pooler.name, shown.stderr)
        assert "alert" not in shown.stderr, (pooler.name, shown.stderr)


def test_the_first_agents_papers_open_every_pooler_from_this_machine(site):
    """Where the rules of the poolers let this machine try."""
    if site.fleet.certificate_authority.client_issuer == "pem":
        pytest.skip("PEM's CA issues the agents' certificates: their keys are on their hosts alone")
    for pooler in site.fleet.pgbouncer.hosts:
        port = site.fleet.pgbouncer.listen_port
        if not site.reachable(pooler.name):
            pytest.skip(f"{pooler.name}:{port} cannot be reached from this machine")
        try:
            with site.as_agent(pooler.name) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError as refused:
            if "no authentication method" not in str(refused):
                raise
            pytest.skip(f"this machine is in none of the agents' networks of {pooler.name}")
