"""Postgres through psql, SQL by standard input. Called as the server's OS user (`_sudo_user`)."""

import base64
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from pyinfra import host, logger
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.files import FileBytes
from fleet.facts.postgres import (
    PostgresHolds,
    PostgresNames,
    PostgresPasswordSalt,
    PostgresServer,
    PostgresStandby,
    Server,
    literal,
    psql,
)
from fleet.keystore import PkiError
from fleet.operations.commands import fail, shell
from fleet.operations.files import CUT_OFF, UNDO, change
from fleet.parts import with_block, without_lines
from fleet.pki import bundle_lines
from fleet.render import script
from fleet.scram import verifier

# A reload is a signal to the server; this long it may take to act on it.
RELOAD_DEADLINE_SECONDS = 10
_ON_STANDBY = "this is a standby, it comes by replication"
LEFT_BEHIND_HINT = (
    "nothing is dropped here; lock a user out with ALTER ROLE … NOLOGIN, drop with DROP ROLE or"
    " DROP DATABASE"
)


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
    """Run the SQL of those wishes that do not hold, in order and in one transaction.

    Not on a standby, which has them from its primary.
    """
    if host.get_fact(PostgresStandby, port=port):
        host.noop(f"{_ON_STANDBY}: {'; '.join(wish.what for wish in wishes)}")
        return
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
    nor the verifier is in an argument list, in pyinfra's output or in sudo's log. On a standby it
    is left alone.
    """
    if host.get_fact(PostgresStandby, port=port):
        host.noop(f"{_ON_STANDBY}: password of {role}")
        return
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
        *psql(port, "postgres"),
        "-f - >/dev/null",
        _stdin=f'{_UNLOGGED}ALTER ROLE "{role}" PASSWORD {literal(wanted)};',
    )


# The verifier is not for the server's log either, whatever that records, nor for the statistics
# of statements, which every member of pg_monitor reads.
_UNLOGGED = (
    "SET log_statement = 'none'; SET log_min_duration_statement = -1;"
    " SET log_min_error_statement = 'panic'; SET pg_stat_statements.track = 'none';\n"
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
        _stdin=f"{_UNLOGGED}SELECT rolpassword = {literal(same)} FROM pg_authid"
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
            # What waits for a restart counts as an error of the file, and is none.
            f"SELECT setting = {literal(value)} FROM pg_file_settings"
            f" WHERE name = {literal(setting)} AND (error IS NULL OR {literal(setting)} IN"
            " (SELECT name FROM pg_settings WHERE pending_restart)) ORDER BY seqno DESC LIMIT 1",
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
def database(database: str, owner: str, port: int = 5432) -> Generator[PyinfraCommand, None, None]:
    """Make a database where it is not there; one that is there is left to wishes().

    Not on a standby.
    """
    if host.get_fact(PostgresStandby, port=port):
        host.noop(f"{_ON_STANDBY}: database {database}")
        return
    condition = f"SELECT true FROM pg_database WHERE datname = {literal(database)}"
    if host.get_fact(PostgresHolds, conditions=(condition,), port=port) == [True]:
        host.noop(f"database {database} is there")
        return
    yield StringCommand(
        *psql(port, "postgres"),
        "-f - >/dev/null",
        _stdin=f'CREATE DATABASE "{database}" OWNER "{owner}";',
    )


@operation()
def left_behind(queries: dict[str, str], port: int = 5432) -> Generator[PyinfraCommand, None, None]:
    """Warn of what left the inventory and is on the server still. Never drops anything.

    queries: SQL for names, by what they are, such as {"user": "SELECT …"}.
    """
    said = []
    for what, query in queries.items():
        names = host.get_fact(PostgresNames, query=query, port=port)
        said += [
            f"{what} {name} is not in the inventory any more, and still there" for name in names
        ]
    for text in said:
        logger.warning(f"{host.print_prefix}{text}")
    if said:
        logger.warning(f"{host.print_prefix}HINT: {LEFT_BEHIND_HINT}")
    host.noop("; ".join(said) or "nothing is left of what the inventory had")
    yield from ()


@operation()
def hba_block(
    lines: tuple[str, ...],
    port: int = 5432,
    obsolete: tuple[str, ...] = (),
    in_use_by: tuple[str, ...] = (),
) -> Generator[PyinfraCommand, None, None]:
    """Our lines at the very top of pg_hba.conf, where no other line can answer before them.

    obsolete: lines of an old recipe, taken out, unless services of this host, `in_use_by`, still
    come in by them.
    """
    if in_use_by:
        obsolete = ()
    yield from _checked_block(
        "hba_file", "pg_hba_file_rules", lines, first=True, port=port, unwanted=obsolete
    )


@operation()
def ident_block(lines: tuple[str, ...], port: int = 5432) -> Generator[PyinfraCommand, None, None]:
    """Our user name maps in pg_ident.conf."""
    yield from _checked_block("ident_file", "pg_ident_file_mappings", lines, first=False, port=port)


@operation()
def bundle_block(
    setting: str, certificates: Path | None, port: int = 5432
) -> Generator[PyinfraCommand, None, None]:
    """Our certificate or revocation list in a bundle of the server's, PEM's own beside it.

    setting: ssl_ca_file or ssl_crl_file. A server without a revocation list needs none of ours;
    with one, it refuses clients of every CA that has none in it.
    certificates: a file on the operator's machine; None: ours is taken out.
    """
    try:
        lines = bundle_lines(certificates) if certificates else ()
    except PkiError as error:
        yield fail(str(error))
        return
    server = host.get_fact(PostgresServer, port=port)
    if server is None:
        yield _answer(port)
        return
    path = _path(server, setting)
    if not path and setting == "ssl_crl_file":
        host.noop("the server keeps no revocation list, so it wants none")
        return
    text = host.get_fact(FileBytes, path=path) if path else None
    if text is None:
        yield fail(
            f"{setting} of the server is {path or 'not set'}, and no such file is there:"
            " no client certificate can be trusted"
            "\nHINT: configure PEM first, /usr/edb/pem/bin/configure-pem-server.sh"
        )
        return
    try:
        new = with_block(text, lines, first=False)
    except ValueError as error:
        yield fail(f"{path}: {error}")
        return
    yield from change(path, text, new)


@operation()
def reload(port: int = 5432) -> Generator[PyinfraCommand, None, None]:
    """Have the server read its files, if one of them changed after it last did. Never a restart.

    Refused while pg_hba.conf or pg_ident.conf has an error; the server then keeps what it has.
    """
    server = host.get_fact(PostgresServer, port=port)
    if server is None:
        yield _answer(port)
        return
    _tell_what_waits(server["pending_restart"])
    if not server["unread"]:
        host.noop("the server has read all its files")
        return
    values = {
        "port": str(port),
        "deadline_seconds": str(RELOAD_DEADLINE_SECONDS),
        "hba_file": server["hba_file"],
        "hba_errors": _file_errors("pg_hba_file_rules", server),
        "ident_file": server["ident_file"],
        "ident_errors": _file_errors("pg_ident_file_mappings", server),
    }
    yield shell(script("reload-postgres.sh", values))
    # Only now that it has read them, it knows which new ones wait.
    after = host.get_fact(PostgresServer, port=port)
    if after is not None:
        _tell_what_waits(sorted(set(after["pending_restart"]) - set(server["pending_restart"])))


def _tell_what_waits(settings: list[str]) -> None:
    if settings:
        logger.warning(
            f"{host.print_prefix}waits for a restart of Postgres, which is yours to choose:"
            f" {', '.join(settings)}"
        )


def _checked_block(
    setting: str,
    view: str,
    lines: tuple[str, ...],
    *,
    first: bool,
    port: int,
    unwanted: tuple[str, ...] = (),
) -> Generator[PyinfraCommand, None, None]:
    server = host.get_fact(PostgresServer, port=port)
    if server is None:
        yield _answer(port)
        return
    path = _path(server, setting)
    text = host.get_fact(FileBytes, path=path)
    on_trial = host.get_fact(FileBytes, path=path + UNDO)
    if on_trial is not None:
        # A run was cut off while the replaced file was on trial: begin again with the old one. The
        # other is kept, as somebody may have worked on it since.
        yield StringCommand(
            "real=$(readlink -f", QuoteString(path), ') && cp -p "$real"',
            QuoteString(path + CUT_OFF), "&& mv -f", QuoteString(path + UNDO), '"$real"',
        )  # fmt: skip
        text = on_trial
    if text is None:
        yield fail(
            f"{path}, the server's {setting}, cannot be read"
            f"\nHINT: ssh {host.name}, sudo ls -l {path}; SHOW {setting} tells where it should be"
        )
        return
    try:
        new = with_block(without_lines(text, unwanted), lines, first=first)
    except ValueError as error:
        yield fail(f"{path}: {error}")
        return
    errors = _file_errors(view, server)
    check = f'psql -XAtq -v ON_ERROR_STOP=1 -p {port} -d postgres -c "{errors}"'
    yield from change(path, text, new, undo_check=check)


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
