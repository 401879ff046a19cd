"""The options of configure-pem-server.sh, and the record of the answers it was given."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import NoReturn

# Its presence means: configured, only upgrades from now on.
ANSWERS_FILE = Path("/usr/edb/pem/share/.install-config")

# Documented, but this program would not do what they ask for: refused rather than ignored.
NOT_IMITATED = (
    ("-scs", "--server-certificate-subject"),
    ("--replication-solution",),
    ("--replication-role",),
    ("-un", "--uninstall"),
)


class StrictParser(argparse.ArgumentParser):
    """A parser that says in one line what it does not like."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 1."""
        print(f"ERROR: {message}", file=sys.stderr)
        print("HINT: configure-pem-server.sh -h", file=sys.stderr)
        sys.exit(1)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; what an earlier run recorded need not be given again."""
    parser = StrictParser(prog="configure-pem-server.sh", allow_abbrev=False)
    add_connection_options(parser, read_answers())
    add_certificate_options(parser)
    add_registration_options(parser)
    for names in NOT_IMITATED:
        parser.add_argument(*names, type=refuse, nargs="?", const="", help="refused")
    options = parser.parse_args(join_values(arguments))
    if options.type not in ("1", "3"):
        parser.error("--type must be 1 or 3; 2 is PEM's web server, which this stand-in has not")
    if bool(options.use_agent_sslcert) != bool(options.use_agent_sslkey):
        parser.error("--use-agent-sslcert and --use-agent-sslkey must be given together")
    if options.use_trusted_ssl_db_certificates:
        options.skip_db_certificate = options.no_hba_change = True
    return options


def add_connection_options(parser: StrictParser, known: dict[str, str]) -> None:
    """Which Postgres, and how to reach it."""

    def add(*names: str, answer: str, default: str | None = None, note: str = "") -> None:
        value = known.get(answer, default)
        parser.add_argument(*names, default=value, required=value is None, help=note)

    add("-t", "--type", answer="PEM_INSTALLATION_TYPE", note="1 web and database, 3 database")
    add("-dbi", "--db-install-path", answer="PG_INSTALL_PATH", note="the folder above bin/")
    add("-ho", "--host", answer="HOST")
    add("-p", "--port", answer="PORT")
    add("-su", "--superuser", answer="SUPERUSER")
    add("-ci", "--cidr-address", answer="CIDR_ADDR", default="0.0.0.0/0")
    add("-ds", "--db-unitfile", answer="DB_UNIT_FILE", note="Postgres's systemd unit")
    add(
        "-acp", "--pemagent-certificate-path", answer="AGENT_CERTIFICATE_PATH", default="/root/.pem"
    )
    note = "if omitted, the first line of standard input"
    parser.add_argument("-sp", "--superpassword", help=note)


def add_certificate_options(parser: StrictParser) -> None:
    """What to leave alone."""
    note = "no certificates, no SSL settings"
    parser.add_argument("-kdc", "--skip-db-certificate", action="store_true", help=note)
    parser.add_argument("-nhc", "--no-hba-change", action="store_true")
    trusted = "--use-trusted-ssl-db-certificates"
    parser.add_argument("-utd", trusted, action="store_true", help="-kdc and -nhc")
    parser.add_argument("-ues", "--use-existing-sslutils", action="store_true")
    note = "without effect: there is no web server"
    parser.add_argument("-kwc", "--skip-web-certificate", action="store_true", help=note)


def add_registration_options(parser: StrictParser) -> None:
    """How the local agent and PEM's own database server are registered."""

    def several(*names: str, note: str) -> None:
        parser.add_argument(*names, action="append", default=[], help=note)

    parser.add_argument("-ps", "--pemagent-servicename", default="pemagent")
    parser.add_argument("-au", "--use-agent-user")
    parser.add_argument("-uac", "--use-agent-sslcert")
    parser.add_argument("-uak", "--use-agent-sslkey")
    parser.add_argument("-bhn", "--asb-host-name")
    several("-arp", "--agent-register-param", note="an option for pemworker --register-agent")
    several("-aro", "--agent-register-overrider", note="key=value for agent.cfg")
    several("-srp", "--server-register-param", note="without effect")


def refuse(_: str) -> NoReturn:
    """The type of an option that is known and not imitated."""
    raise argparse.ArgumentTypeError("this stand-in for tests cannot do that")


def join_values(arguments: list[str]) -> list[str]:
    """Let `-arp --option=value` through, whose value looks like an option of this program."""
    names = {"-arp", "--agent-register-param", "-srp", "--server-register-param"}
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in names:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def read_answers() -> dict[str, str]:
    """What the first run recorded; empty before it."""
    if not ANSWERS_FILE.exists():
        return {}
    return dict(line.split("=", 1) for line in ANSWERS_FILE.read_text().splitlines())


def answers(options: argparse.Namespace) -> str:
    """The record of this run; no password is in it."""
    record = {
        "PEM_INSTALLATION_TYPE": options.type,
        "PG_INSTALL_PATH": options.db_install_path,
        "SUPERUSER": options.superuser,
        "HOST": options.host,
        "PORT": options.port,
        "AGENT_CERTIFICATE_PATH": options.pemagent_certificate_path,
        "CIDR_ADDR": options.cidr_address,
        "DB_UNIT_FILE": options.db_unitfile,
    }
    return "".join(f"{name}={value}\n" for name, value in record.items())


def read_password(superuser: str) -> str:
    """The superuser's password, from the terminal or the first line of standard input."""
    if sys.stdin.isatty():
        return getpass.getpass(f"Password of {superuser}: ")
    return sys.stdin.readline().rstrip("\n")
