"""The PEM database: who comes in, by what rule, and what an auth_query may learn."""

import re

import pytest

from tests.lab.conftest import Lab, pyinfra

pytestmark = pytest.mark.lab


def test_the_poolers_rules_are_the_first_and_no_rule_has_an_error(lab: Lab) -> None:
    rules = lab.sql(
        "SELECT type, user_name, address, auth_method, options FROM pg_hba_file_rules"
        " ORDER BY rule_number"
    ).splitlines()
    assert rules[:2] == [
        f"hostssl|{{+pem_agent_pool}}|{host.address}|cert|{{map=pem_agent_pool,clientcert=verify-full}}"
        for host in lab.fleet.pgbouncer.hosts
    ]
    assert "+pem_user" in rules[2]
    assert lab.sql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"
    assert lab.sql("SELECT count(*) FROM pg_ident_file_mappings WHERE error IS NOT NULL") == "0"


def test_pems_own_files_are_kept_beside_ours(lab: Lab) -> None:
    data = lab.sql("SHOW data_directory")
    for name in ("root.crt", "root.crl"):
        kept = lab.on("pem1").file(f"{data}/{name}.before-pem-fleet").content_string
        assert lab.on("pem1").file(f"{data}/{name}").content_string.startswith(kept)
    # PEM's own certificate cannot be verified by anybody, which is why ours took its place.
    verify = lab.on("pem1").run(f"openssl verify -CAfile {data}/root.crt {data}/server.crt")
    assert "self-signed" in verify.stderr


def test_pems_own_agent_still_beats_directly(lab: Lab) -> None:
    beats = "SELECT now() - last_heartbeat < '30 s' FROM pem.agent_heartbeat WHERE agent_id = 1"
    assert lab.sql(beats) == "t"


def test_files_that_were_written_but_not_read_are_read_by_the_next_run(lab: Lab) -> None:
    """What a run leaves behind that was killed between writing pg_hba.conf and the reload."""
    path = lab.sql("SHOW hba_file")
    remote = lab.on("pem1")
    wanted = remote.file(path).content_string
    without = "\n".join(line for line in wanted.splitlines() if "pem_agent_pool" not in line)
    lab.run("pem1", f"cat > {path} <<'EOF'\n{without}\nEOF")
    lab.sql("SELECT pg_reload_conf()")
    lab.run("pem1", f"cat > {path} <<'EOF'\n{wanted}EOF")

    healed = pyinfra("deploy", "deploys/pem_server.py", limit="pem_server")
    assert healed.returncode == 0, healed.stdout
    assert re.search(r"\b1 of \d+ steps changed something", healed.stdout), healed.stdout
    assert lab.sql(f"SELECT modification <= pg_conf_load_time() FROM pg_stat_file('{path}')") == "t"
    with lab.as_agent("bouncer1") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_rule_that_postgres_would_not_read_is_put_back(lab: Lab) -> None:
    path = lab.sql("SHOW hba_file")
    before = lab.on("pem1").file(path).content_string
    lab.run(
        "pem1", f"sed -i '/BEGIN pem-fleet/,/END pem-fleet/d; $ a host all all nonsense' {path}"
    )
    broken = lab.on("pem1").file(path).content_string
    try:
        run = pyinfra("deploy", "deploys/pem_server.py", limit="pem_server")
        assert run.returncode != 0
        assert "would be wrong, the old file is back: line" in run.stdout
        assert lab.on("pem1").file(path).content_string == broken
        with lab.as_agent("bouncer1") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        lab.run("pem1", f"cat > {path} <<'EOF'\n{before}EOF")
        assert pyinfra("deploy", "deploys/pem_server.py", limit="pem_server").returncode == 0


def test_a_run_cut_off_while_the_rules_were_on_trial_begins_again_with_the_old_ones(
    lab: Lab,
) -> None:
    path = lab.sql("SHOW hba_file")
    before = lab.on("pem1").file(path).content_string
    # As a run leaves it that ends between the replacement and the verdict.
    lab.run("pem1", f"cp -p {path} {path}.pem-fleet-old; echo nonsense >> {path}")
    run = pyinfra("deploy", "deploys/pem_server.py", limit="pem_server")
    assert run.returncode == 0, run.stdout
    assert lab.on("pem1").file(path).content_string == before
    assert "nonsense" in lab.run("pem1", f"cat {path}.pem-fleet-cut-off")
    lab.run("pem1", f"rm {path}.pem-fleet-cut-off")
    assert lab.on("pem1").run(f"ls {path}.pem-fleet-old").failed
