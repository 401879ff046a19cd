"""The shell scripts that run on hosts: they parse everywhere, and say why they stop."""

import shutil
import subprocess

import pytest

from fleet import ROOT
from fleet.operations import commands
from fleet.operations.pgbouncer import proof
from fleet.render import script

SCRIPTS = sorted(path.name for path in (ROOT / "files").glob("*.sh"))

# Nobody listens on this port.
RELOAD = {
    "port": "1",
    "deadline_seconds": "1",
    "hba_file": "/hba",
    "hba_errors": "SELECT WHERE false",
    "ident_file": "/ident",
    "ident_errors": "SELECT WHERE false",
}
PROOF = {
    "service_user": "postgres",
    "minimum": "1.24.1",
    "reason": "it's why",
    "spare_ini": "",
    "login": "",
    "agent_user": "pem_agent_user1",
    "connect_name": "pem",
    "pools": "30",
    "enough": "73",
    "arithmetic": "2 poolers x (3 pools of 5) = 30 server connections",
    "user_function": "",
}


@pytest.fixture(params=["sh", "dash", "bash"])
def shell(request):
    """Each shell that may be a host's sh."""
    path = shutil.which(request.param)
    if path is None:
        pytest.skip(f"{request.param} is not on this machine")
    return [path, "--posix"] if request.param == "bash" else [path]


def run(shell, text, *options):
    """The exit code of a script on standard input, and what it says on both channels."""
    done = subprocess.run(
        [*shell, *options, "-s"], input=text, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_parses(shell, name):
    assert run(shell, script(name, {"any": "it's $quoted"}), "-n") == (0, "", "")


@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not on this machine")
def test_a_reload_without_a_server_fails_in_psqls_own_words(shell):
    code, said, error = run(shell, script("reload-postgres.sh", RELOAD))
    assert (code != 0, said) == (True, "")
    assert error.startswith("psql: error: connection to server ")


@pytest.mark.parametrize("version", ["1.23.1", "1.9.9"])
def test_a_pgbouncer_that_is_too_old_is_refused_before_anything_is_touched(
    shell, tmp_path, version
):
    binary = tmp_path / "pgbouncer"
    binary.write_text(f"#!/bin/sh\necho 'PgBouncer {version}'\necho 'libevent 2.1'\n")
    binary.chmod(0o755)
    assert run(shell, f"{proof(pgbouncer=str(binary), **PROOF)} || exit 7") == (
        7,
        "",
        f"refused, the running configuration stays: PgBouncer {version} is older than 1.24.1:"
        ' it\'s why\nHINT: vendor="pgdg" in PgBouncer(...) of the inventory, with that repository'
        " on the host\n",
    )


# A host's programs, each with what it answers. PgBouncer and the database are up and do their part.
PROGRAMS = {
    "pgbouncer": "[ \"$1\" != --version ] || echo 'PgBouncer 1.26.1'",
    "mktemp": 'mkdir -p "{spare}" && echo "{spare}"',
    "chown": "true",
    "runuser": 'shift 3; exec "$@"',
    "psql": """
for statement in "$@"; do :; done
case "$statement" in
    *get_pool_auth*) echo pem_agent_user1 ;;
    *pg_is_in_recovery*) {recovery} ;;
    *pg_settings*) {settings} ;;
    *has_function_privilege*) echo t ;;
esac""",
}


@pytest.fixture
def prove(shell, tmp_path):
    """prove(recovery="echo f", settings="echo 97"): the proof where psql answers so."""

    def run_there(recovery="echo f", settings="echo 97"):
        programs, spare = tmp_path / "programs", tmp_path / "spare"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            there = text.format(recovery=recovery, settings=settings, spare=spare)
            (programs / name).write_text(f"#!/bin/sh\n{there}\n")
            (programs / name).chmod(0o755)
        text = f"PATH={programs}:$PATH; export PATH\n{proof(pgbouncer='pgbouncer', **PROOF)}"
        answer = run(shell, f"set -e\n{text}\n")
        assert not spare.exists(), "the second instance's directory is removed"
        return answer

    return run_there


@pytest.mark.parametrize("free", ["30", "97"])
def test_a_configuration_is_proven_where_the_database_bears_its_pools(prove, free):
    assert prove(settings=f"echo {free}") == (0, "", "")


@pytest.mark.parametrize("free", ["29", "-3"])
def test_more_server_connections_than_the_database_has_left_are_refused(prove, free):
    assert prove(settings=f"echo {free}") == (
        1,
        "",
        "refused, the running configuration stays: the poolers may open more connections than the"
        f" {free} that max_connections of pem leaves to ordinary users: 2 poolers x (3 pools of 5)"
        " = 30 server connections\nHINT: max_connections=73 in PemServer(...) and a restart of"
        " Postgres, or a smaller pool_size\n",
    )


def test_a_standby_is_refused(prove):
    assert prove(recovery="echo t") == (
        1,
        "",
        "refused, the running configuration stays: pem leads to a standby, where no agent can write"
        " (t)\nHINT: endpoint= in PemServer(...) is the name that the cluster manager moves to the"
        " primary\n",
    )


@pytest.mark.parametrize("question", ["recovery", "settings"])
def test_a_database_that_goes_away_meanwhile_is_told_in_psqls_words(prove, question):
    code, said, error = prove(**{question: "echo 'psql: error: gone' >&2; exit 2"})
    assert (code, said) == (1, "")
    assert error.startswith("refused, the running configuration stays: pem does not say ")
    assert ": psql: error: gone\nHINT: run again" in error


def test_of_a_script_that_a_cut_connection_left_incomplete_nothing_runs(shell, tmp_path):
    whole = commands.shell(f"touch {tmp_path}/first\ntouch {tmp_path}/second")
    text = whole.connector_arguments["_stdin"]
    for end in range(0, len(text) - 2, 5):
        run(shell, text[:end])
    assert list(tmp_path.iterdir()) == []
    assert run(shell, text) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
