"""Postgres through psql, SQL by standard input. Called as the server's OS user (`_sudo_user`)."""

import base64
import shlex
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.files import FileBytes
from fleet.facts.postgres import (
    PostgresHolds,
    PostgresPasswordSalt,
    PostgresServer,
    Server,
    literal,
    psql,
)
from fleet.operations.files import change
from fleet.operations.messages import fail
from fleet.parts import with_block
from fleet.scram import verifier

# A reload is a signal to the server; this long it may take to act on it.
RELOAD_DEADLINE_SECONDS = 10


@dataclass(frozen=True)
class Wish:
    """Something that should be so in a database.

    what: for people. holds: an SQL condition, false or NULL when it is not so. sql: makes it so,
    and may be run again.
    """

    what: str
    holds: str
    sql: str


@operation()
def wishes(
    wishes: tuple[Wish, ...], database: str = "postgres", port: int = 5432
) -> Generator[PyinfraCommand, None, None]:
    """Run the SQL of those wishes that do not hold, in order and in one transaction."""
    holds = host.get_fact(
        PostgresHolds, conditions=tuple(wish.holds for wish in wishes), database=database, port=port
    )
    missing = [
        wish for wish, held in zip(wishes, holds or [False] * len(wishes), strict=True) if not held
    ]
    if not missing:
        host.noop("; ".join(wish.what for wish in wishes))
        return
    sql = "".join(f"-- {wish.what}\n{wish.sql.strip().rstrip(';')};\n" for wish in missing)
    yield StringCommand(*psql(port, database), "--single-transaction -f - >/dev/null", _stdin=sql)


@operation()
def password(
    role: str, password: SecretStr, port: int = 5432
) -> Generator[PyinfraCommand, None, None]:
    """Give a role its password, as a verifier that is computed here.

    The server is asked whether it has it by a statement on standard input; neither the password
    nor the verifier is in an argument list, in pyinfra's output or in sudo's log.
    """
    salt = host.get_fact(PostgresPasswordSalt, role=role, port=port)
    try:
        if salt is not None and _has_password(role, password, salt, port):
            host.noop(f"{role} has its password")
            return
        wanted = verifier(password.get_secret_value())
    except ValueError as error:
        yield fail(f"password of {role}: {error}\nHINT: openssl rand -hex 24")
        return
    yield StringCommand(
        *psql(port, "postgres"), "-f -", _stdin=f'ALTER ROLE "{role}" PASSWORD {literal(wanted)};'
    )


def _has_password(role: str, password: SecretStr, public: str, port: int) -> bool:
    iterations, _, salt = public.partition(":")
    same = verifier(password.get_secret_value(), base64.b64decode(salt), int(iterations))
    arguments = {
        key: value
        for key, value in (host.current_op_global_arguments or {}).items()
        if key in ("_sudo", "_sudo_user", "_sudo_password", "_use_sudo_login", "_su_user")
    }
    answered, output = host.run_shell_command(
        StringCommand(*psql(port, "postgres"), "-f -"),
        print_output=False,
        print_input=False,
        _stdin=f"SELECT rolpassword = {literal(same)} FROM pg_authid"
        f" WHERE rolname = {literal(role)};",
        **arguments,
    )
    return answered and output.stdout_lines == ["t"]


@operation()
def setting(setting: str, value: str, port: int = 5432) -> Generator[PyinfraCommand, None, None]:
    """Set a server setting by ALTER SYSTEM; the next reload reads it."""
    holds = host.get_fact(
        PostgresHolds,
        conditions=(
            "SELECT setting = "
            + literal(value)
            + " FROM pg_file_settings WHERE name = "
            + literal(setting)
            + " AND error IS NULL ORDER BY seqno DESC LIMIT 1",
        ),
        port=port,
    )
    if holds == [True]:
        host.noop(f"{setting} = {value}")
        return
    yield StringCommand(
        *psql(port, "postgres"), "-f -", _stdin=f"ALTER SYSTEM SET {setting} = {literal(value)};"
    )


@operation()
def hba_block(lines: tuple[str, ...], port: int = 5432) -> Generator[PyinfraCommand, None, None]:
    """Our lines at the very top of pg_hba.conf, where no other line can answer before them."""
    yield from _checked_block("hba_file", "pg_hba_file_rules", lines, first=True, port=port)


@operation()
def ident_block(lines: tuple[str, ...], port: int = 5432) -> Generator[PyinfraCommand, None, None]:
    """Our user name maps in pg_ident.conf."""
    yield from _checked_block("ident_file", "pg_ident_file_mappings", lines, first=False, port=port)


@operation()
def bundle_block(
    setting: str, certificates: Path, port: int = 5432
) -> Generator[PyinfraCommand, None, None]:
    """Our certificate or revocation list in a bundle of the server's, PEM's own beside it.

    setting: ssl_ca_file or ssl_crl_file. A server that has none of the kind needs none of ours.
    certificates: a file on the operator's machine.
    """
    if not certificates.exists():
        yield fail(f"{certificates} does not exist\nHINT: pyinfra INVENTORY deploys/ca.py")
        return
    lines = tuple(certificates.read_text().splitlines())
    server = host.get_fact(PostgresServer, port=port)
    if server is None:
        yield _answer(port)
        return
    path = _path(server, setting)
    if not path:
        host.noop(f"{setting} is not set")
        return
    text = host.get_fact(FileBytes, path=path)
    if text is None:
        yield fail(f"{path}, the server's {setting}, is not there\nHINT: ls -l {path}")
        return
    kind = "crl" if setting == "ssl_crl_file" else "x509"
    check = f"openssl {kind} -noout -in {shlex.quote(path)}.pem-fleet-new"
    yield from change(path, text, with_block(text, lines, first=False), check=check)


@operation()
def reload(port: int = 5432) -> Generator[PyinfraCommand, None, None]:
    """Have the server read its files, if one of them changed after it last did. Never a restart.

    Refused while pg_hba.conf or pg_ident.conf has an error; the server then keeps what it has.
    """
    server = host.get_fact(PostgresServer, port=port)
    if server is None:
        yield _answer(port)
        return
    if not server["unread"]:
        host.noop("the server has read all its files")
        return
    ask = "psql -XAtq -v ON_ERROR_STOP=1 -p " + str(port) + " -d postgres -c "
    script = f"""\
set -eu
wrong=$({ask} "{_file_errors("pg_hba_file_rules", server)}")
[ -z "$wrong" ] || {{ echo "{server["hba_file"]}: $wrong" >&2; exit 1; }}
wrong=$({ask} "{_file_errors("pg_ident_file_mappings", server)}")
[ -z "$wrong" ] || {{ echo "{server["ident_file"]}: $wrong" >&2; exit 1; }}
since=$({ask} "SELECT clock_timestamp()")
{ask} "SELECT pg_reload_conf()" >/dev/null
for try in $(seq {RELOAD_DEADLINE_SECONDS * 10}); do
    [ "$({ask} "SELECT pg_conf_load_time() >= '$since'")" = t ] && exit 0
    sleep 0.1
done
echo "Postgres did not read its files within {RELOAD_DEADLINE_SECONDS} s of the reload" >&2
exit 1
"""
    yield StringCommand("sh -s", _stdin=script)


def _checked_block(
    setting: str, view: str, lines: tuple[str, ...], *, first: bool, port: int
) -> Generator[PyinfraCommand, None, None]:
    server = host.get_fact(PostgresServer, port=port)
    if server is None:
        yield _answer(port)
        return
    path = _path(server, setting)
    text = host.get_fact(FileBytes, path=path)
    if text is None:
        yield fail(f"{path}, the server's {setting}, cannot be read")
        return
    errors = _file_errors(view, server)
    check = f'psql -XAtq -v ON_ERROR_STOP=1 -p {port} -d postgres -c "{errors}" 2>&1'
    yield from change(path, text, with_block(text, lines, first=first), undo_check=check)


def _file_errors(view: str, server: Server) -> str:
    """SQL for the errors that the server would find in a file as it is on disk."""
    if view == "pg_ident_file_mappings" and server["version_number"] < 150000:
        return "SELECT WHERE false"  # the view came with Postgres 15
    return f"SELECT 'line ' || line_number || ': ' || error FROM {view} WHERE error IS NOT NULL"


def _path(server: Server, setting: str) -> str:
    return str(dict(server)[setting])


def _answer(port: int) -> StringCommand:
    """Ask again without hiding the answer: it fails with psql's own words if nobody is there."""
    return StringCommand(*psql(port, "postgres"), "-c", QuoteString("SELECT 'Postgres answers'"))
