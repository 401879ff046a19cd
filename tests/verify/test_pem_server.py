"""The PEM database: who comes in, by what rule, and what an auth_query may learn."""

import pytest

from fleet.leaves import server_leaf
from fleet.values import AUTH_USER, POOL_USER

ASK = "SELECT count(*) FROM pem_fleet.get_pool_auth('{}')"
POOL_FUNCTION = "pem_fleet.get_pool_auth(text)"
PEM_FUNCTION = "pem.get_agent_pool_auth(text)"


@pytest.fixture
def ask(site, server):
    """Ask the server's own psql."""
    return lambda statement: site.sql(statement, server=server)


def test_it_runs_and_starts_at_boot(site, server):
    service = site.on(server).service(site.place_of_postgres(server).unit)
    assert service.is_running
    # On Debian the cluster is enabled by its own start.conf.
    assert service.is_enabled or "auto" in site.run(
        server, "cat /etc/postgresql/*/*/start.conf 2>/dev/null || true"
    )


def test_no_rule_and_no_map_has_an_error(ask):
    assert ask("SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL") == ""
    if int(ask("SHOW server_version_num")) >= 150000:
        assert ask("SELECT error FROM pg_ident_file_mappings WHERE error IS NOT NULL") == ""


def test_the_poolers_rules_are_before_any_that_could_answer_for_them(site, ask):
    rules = ask(
        "SELECT host(address::inet), auth_method, options::text, user_name::text"
        " FROM pg_hba_file_rules WHERE address ~ '^[0-9a-f.:]+$' ORDER BY line_number"
    ).splitlines()
    for host in site.fleet.pgbouncer.hosts:
        first = next(rule for rule in rules if rule.startswith(f"{host.address}|"))
        assert first.startswith(f"{host.address}|cert|")
        assert f"map={POOL_USER}" in first
        assert f"+{POOL_USER}" in first


def test_it_has_read_its_files_and_waits_for_no_restart(ask):
    assert ask("SELECT name FROM pg_settings WHERE pending_restart") == ""
    for setting in ("hba_file", "ident_file"):
        read = (
            f"modification <= pg_conf_load_time() FROM pg_stat_file(current_setting('{setting}'))"
        )
        assert ask(f"SELECT {read}") == "t", setting


def test_its_certificate_verifies_for_each_of_its_names(site, server):
    port, anchor = site.fleet.pem_server.port, "/etc/pem-fleet/server-ca.crt"
    for name in server_leaf(site.fleet, site.machines[server]).dns_names:
        shown = site.on(server).run(
            f"openssl s_client -connect {site.machines[server].address}:{port} -starttls postgres"
            f" -verify_return_error -verify_hostname {name} -CAfile {anchor} </dev/null"
        )
        assert "Verify return code: 0 (ok)" in shown.stdout, (name, shown.stderr)


def test_the_auth_query_answers_for_the_agents_user_and_the_administrator(site, ask):
    settings = site.fleet.pem_server
    assert [ask(ASK.format(user)) for user in (settings.agent_user, settings.admin_user)] == [
        "1",
        "1",
    ]


def test_the_auth_query_answers_for_no_superuser_and_no_stranger(site, server, ask):
    superuser = ask("SELECT rolname FROM pg_roles WHERE rolsuper ORDER BY oid LIMIT 1")
    for user in (superuser, "nobody-of-this-name"):
        said = site.on(server).run(site.psql(server, ASK.format(user)))
        # An error, not an empty answer: PgBouncer would go on with what it knew before.
        assert said.failed
        assert f"role {user} may not come in through the pooler" in said.stderr


def test_only_the_poolers_role_may_call_it(site, ask):
    settings = site.fleet.pem_server
    for role, may in ((AUTH_USER, "t"), (settings.admin_user, "f"), (settings.agent_user, "f")):
        assert ask(f"SELECT has_function_privilege('{role}', '{POOL_FUNCTION}', 'EXECUTE')") == may


def test_no_agent_may_read_the_verifiers_by_pems_function(site, ask):
    settings = site.fleet.pem_server
    for role in (settings.agent_user, settings.admin_user, "pem_agent"):
        assert ask(f"SELECT has_function_privilege('{role}', '{PEM_FUNCTION}', 'EXECUTE')") == "f"


def test_no_role_of_the_pool_is_a_superuser(site, ask):
    settings = site.fleet.pem_server
    roles = ", ".join(f"'{one}'" for one in (AUTH_USER, settings.admin_user, settings.agent_user))
    assert ask(f"SELECT count(*) FROM pg_roles WHERE rolname IN ({roles})") == "3"
    assert ask(f"SELECT rolname FROM pg_roles WHERE rolsuper AND rolname IN ({roles})") == ""


def test_pooled_agents_come_from_poolers_and_by_their_certificate_only(site, server, ask):
    user = site.fleet.pem_server.agent_user
    rows = ask(
        "SELECT DISTINCT host(client_addr), coalesce(client_dn, '-') FROM pg_stat_activity"
        f" JOIN pg_stat_ssl USING (pid) WHERE usename = '{user}'"
    ).splitlines()
    if not rows:
        pytest.skip(f"no pooled agent has a connection on {server} (a standby?)")
    poolers = {host.address for host in site.fleet.pgbouncer.hosts} | {"127.0.0.1", "::1"}
    for row in rows:
        address, _, subject = row.partition("|")
        assert address in poolers
        assert f"CN={POOL_USER}" in subject
