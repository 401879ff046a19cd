"""The options of pemworker. What is not documented is refused, as the real one does since 10.5."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from pem_agent_lib import CONFIG_DIRECTORY, is_true, show_version  # type: ignore[import-not-found]

# Not one of the exit codes by which --verify-registration answers.
USAGE_ERROR = 64
SSL_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
COMMANDS = ("--register-agent", "--verify-registration", "--unregister-agent")

# Documented, but without an effect here: refused rather than ignored.
OTHER_COMMANDS = (
    "--register-server",
    "--unregister-server",
    "--register-barman",
    "--unregister-barman",
    "--enable-probe",
)
OTHER_OPTIONS = ("--cluster-name", "--profile-id", "--profile-name")


class StrictParser(argparse.ArgumentParser):
    """A parser that says in one line what it does not like."""

    def error(self, message: str) -> NoReturn:
        """Leave with USAGE_ERROR."""
        print(f"ERROR: {message}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command, as `command`, and its options."""
    parser = StrictParser(prog="pemworker", allow_abbrev=False)
    show_version(parser)
    for command in OTHER_COMMANDS:
        if command in arguments:
            parser.error(f"this stand-in for tests has no {command}")
    commands = parser.add_mutually_exclusive_group(required=True)
    for command in COMMANDS:
        commands.add_argument(command, dest="command", action="store_const", const=command)
    parser.add_argument("--config-dir", type=Path, default=CONFIG_DIRECTORY)
    if "--register-agent" in arguments:
        add_registration_options(parser)
    if "--unregister-agent" in arguments:
        parser.add_argument("--pem-user", required=True)
    return parser.parse_args(arguments)


def add_registration_options(parser: StrictParser) -> None:
    """What --register-agent takes."""

    def switch(name: str, default: str = "false") -> None:
        parser.add_argument(name, type=boolean, nargs="?", const="true", default=default)

    conn_string = os.environ.get("PEM_REGISTRATION_CONN_STRING")
    parser.add_argument("--pem-registration-conn-string", default=conn_string)
    parser.add_argument("--pem-server")
    parser.add_argument("--pem-port", type=ports, default="5432")
    parser.add_argument("--pem-user")
    parser.add_argument("--pem-agent-user")
    parser.add_argument("--pem-ssl-mode", type=str.lower, choices=SSL_MODES)
    parser.add_argument("--cert-path", type=Path, default=Path.home() / ".pem")
    parser.add_argument("--display-name", default=socket.getfqdn())
    parser.add_argument("--group")
    parser.add_argument("--team")
    parser.add_argument("--owner")
    parser.add_argument("--batch-script-user")
    parser.add_argument("--max-webhook-retries", type=int)
    parser.add_argument("-o", dest="settings", action="append", type=setting, default=[])
    parser.add_argument("-l", dest="log_level")
    switch("--force-registration")
    switch("--allow_server_restart", default="true")
    switch("--allow-batch-probes")
    switch("--enable-heartbeat-connection")
    switch("--enable-smtp")
    switch("--enable-snmp")
    switch("--enable-webhook")
    for name in OTHER_OPTIONS:
        parser.add_argument(name, type=refuse)


def boolean(text: str) -> str:
    """A switch's value as agent.cfg spells it."""
    if text.lower() not in ("true", "false", "yes", "no"):
        raise argparse.ArgumentTypeError(f'"{text}" is neither true nor false')
    return "true" if is_true(text) else "false"


def ports(text: str) -> str:
    """A port, or a list of ports, one for each host."""
    if not all(part.isdecimal() and 0 < int(part) < 2**16 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f'"{text}" is not a port or a comma list of ports')
    return text


def setting(text: str) -> tuple[str, str]:
    """A key and a value for agent.cfg."""
    key, equals, value = text.partition("=")
    if not (key and equals) or "\n" in text:
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form key=value')
    if key == "agent_conn_string":
        raise argparse.ArgumentTypeError(f"this stand-in for tests does not act on {key}")
    return key, value


def refuse(text: str) -> NoReturn:
    """The type of an option that is known and not imitated."""
    raise argparse.ArgumentTypeError(f'this stand-in for tests cannot act on "{text}"')
