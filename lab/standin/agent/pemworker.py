#!/usr/bin/python3 -B
"""Stand-in for PEM's pemworker: registers an agent, looks whether it is registered, removes it."""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path

import psycopg2
from pem_agent_lib import (
    CONFIG_DIRECTORY,
    CONFIG_FILE_NAME,
    DEFAULTS,
    SCHEMA_SUPPORTED,
    VERSION,
    AgentConfig,
    AgentError,
    connect,
    host_name,
    is_true,
    row,
    write_file,
)

USAGE_ERROR = 64
CONNECTION_FAILED = 2
AGENT_INACTIVE = 3
KEY_BITS = 4096
CERTIFICATE_DAYS = 3650
SSL_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")

# Documented, but without an effect here: refused rather than ignored.
NOT_IMITATED = ("--cluster-name", "--profile-id", "--profile-name")
OTHER_COMMANDS = (
    "--register-server",
    "--unregister-server",
    "--register-barman",
    "--unregister-barman",
    "--enable-probe",
)


class StrictParser(argparse.ArgumentParser):
    """Refuses what it does not know, with an exit code that --verify-registration does not use."""

    def error(self, message: str) -> None:
        """One line instead of the usage text."""
        print(f"ERROR: {message}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def main() -> int:
    """Run one command; its exit code."""
    options = parse(sys.argv[1:])
    try:
        options.command(options)
    except AgentError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.status
    except psycopg2.Error as error:
        print(f"ERROR: {str(error).strip()}", file=sys.stderr)
        return CONNECTION_FAILED if options.command is verify_registration else 1
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the one command that was asked for."""
    commands = {
        "--register-agent": (register_agent, add_registration_options),
        "--verify-registration": (verify_registration, lambda parser: None),
        "--unregister-agent": (unregister_agent, add_unregistration_options),
    }
    parser = StrictParser(prog="pemworker", allow_abbrev=False)
    parser.formatter_class = argparse.RawTextHelpFormatter
    version = f"Version: {VERSION}\nSchema Supported: {SCHEMA_SUPPORTED}"
    parser.add_argument("--version", action="version", version=version)
    wanted = [command for command in commands if command in arguments]
    for command in OTHER_COMMANDS:
        if command in arguments:
            parser.error(f"this stand-in for tests has no {command}")
    if len(wanted) > 1:
        parser.error(f"{' and '.join(wanted)} cannot be used together")
    for command in wanted or commands:
        parser.add_argument(command, action="store_true", required=bool(wanted))
    parser.add_argument("--config-dir", type=Path, default=CONFIG_DIRECTORY)
    if not wanted:
        parser.parse_args(arguments)
        parser.error(f"one of {', '.join(commands)} is required")
    function, add_options = commands[wanted[0]]
    add_options(parser)
    return parser.parse_args(arguments, argparse.Namespace(command=function))


def add_registration_options(parser: StrictParser) -> None:
    """The documented options of --register-agent."""

    def switch(name: str, default: str = "false") -> None:
        parser.add_argument(name, type=boolean, nargs="?", const="true", default=default)

    parser.add_argument("--pem-server")
    parser.add_argument("--pem-port", type=ports, default="5432")
    parser.add_argument("--pem-user")
    parser.add_argument("--pem-agent-user")
    parser.add_argument("--pem-ssl-mode", type=str.lower, choices=SSL_MODES)
    parser.add_argument("--pem-registration-conn-string")
    parser.add_argument("--cert-path", type=Path, default=Path("~/.pem").expanduser())
    parser.add_argument("--display-name", default=host_name())
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
    for name in NOT_IMITATED:
        parser.add_argument(name, type=not_imitated(name))


def add_unregistration_options(parser: StrictParser) -> None:
    """The documented options of --unregister-agent."""
    parser.add_argument("--pem-user", required=True)


def boolean(text: str) -> str:
    """A switch's value as agent.cfg spells it."""
    if text.lower() not in ("true", "false", "yes", "no"):
        raise argparse.ArgumentTypeError(f'"{text}" is neither true nor false')
    return "true" if is_true(text) else "false"


def ports(text: str) -> str:
    """A port, or a list of ports, one for each host."""
    if not all(part.isdecimal() and 0 < int(part) < 65536 for part in text.split(",")):
        raise argparse.ArgumentTypeError(
            f'"{text}" is not a port or a comma-separated list of ports'
        )
    return text


def setting(text: str) -> tuple[str, str]:
    """A key and value for agent.cfg."""
    key, equals, value = text.partition("=")
    if not (key and equals) or "\n" in text:
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form key=value')
    if key == "agent_conn_string":
        raise argparse.ArgumentTypeError("this stand-in for tests has no agent_conn_string")
    return key, value


def not_imitated(name: str) -> object:
    """A type that refuses the option's value."""

    def refuse(_: str) -> None:
        raise argparse.ArgumentTypeError(f"this stand-in for tests does not act on {name}")

    return refuse


# --register-agent ------------------------------------------------------------------------------


def register_agent(options: argparse.Namespace) -> None:
    """Give this host an agent id, a certificate and an agent.cfg."""
    config_file = options.config_dir / CONFIG_FILE_NAME
    check_before_registration(options, config_file)
    settings = dict(options.settings)
    given_certificate = settings.get("agent_ssl_crt"), settings.get("agent_ssl_key")
    if bool(given_certificate[0]) != bool(given_certificate[1]):
        raise AgentError("-o agent_ssl_crt and -o agent_ssl_key must be given together")

    parameters = registration_parameters(options)
    config = AgentConfig({"pem_host": parameters["host"], "pem_port": parameters["port"]})
    with closing(connect(**parameters)) as connection:
        connection.autocommit = False
        existed = agent_exists(connection, settings)
        config |= {"agent_id": str(create_agent(connection, options, settings))}
        if options.pem_agent_user:
            config["agent_user"] = options.pem_agent_user
        if all(given_certificate):
            config |= certificate_files(*map(Path, given_certificate))
        else:
            config |= make_certificate(connection, config.agent_user, options.cert_path)
        config |= {"pem_ssl_mode": options.pem_ssl_mode or "require"} | DEFAULTS
        config |= wishes(options) | settings
        if all(given_certificate):
            register_with_given_certificate(connection, config, existed=existed)
        else:
            connection.commit()
    config.write(config_file)
    print("Postgres Enterprise Manager Agent registered successfully!")


def check_before_registration(options: argparse.Namespace, config_file: Path) -> None:
    """Refuse what would fail after the agent has its row."""
    if os.geteuid() != 0 and options.config_dir == CONFIG_DIRECTORY:
        raise AgentError("only root may register an agent, unless --config-dir is given")
    if not is_true(options.force_registration) and config_file.exists():
        raise AgentError(
            f"{config_file} exists: this host's agent is registered already. "
            "Use --force-registration to register it again."
        )
    if not os.access(options.config_dir, os.W_OK):
        raise AgentError(f"{options.config_dir} is not a directory that can be written to")


def registration_parameters(options: argparse.Namespace) -> dict[str, str]:
    """Where and as whom to register: connection string, its variable, single options."""
    conn_string = options.pem_registration_conn_string or os.environ.get(
        "PEM_REGISTRATION_CONN_STRING"
    )
    if conn_string:
        parameters = psycopg2.extensions.parse_dsn(conn_string)
    else:
        parameters = {
            "host": options.pem_server,
            "port": options.pem_port,
            "user": options.pem_user,
        }
    missing = [name for name in ("host", "user") if not parameters.get(name)]
    if missing:
        names = {"host": "--pem-server", "user": "--pem-user"}
        raise AgentError(f"{' and '.join(names[name] for name in missing)} must be given")
    parameters.setdefault("port", "5432")
    ssl_mode = options.pem_ssl_mode or parameters.get("sslmode") or os.environ.get("PGSSLMODE")
    return parameters | {"sslmode": ssl_mode or "require"} | password()


def password() -> dict[str, str]:
    """The registering role's password; without the variable libpq looks in its own places."""
    text = os.environ.get("PEM_SERVER_PASSWORD")
    return {"password": text} if text else {}


def agent_exists(connection: psycopg2.extensions.connection, settings: dict[str, str]) -> bool:
    """Whether the id asked for has a row."""
    return bool(row(connection, "SELECT 1 FROM pem.agent WHERE id = %s", wanted_id(settings)))


def wanted_id(settings: dict[str, str]) -> int:
    """The id asked for by -o agent_id, or -1."""
    text = settings.get("agent_id", "-1")
    if text != "-1" and (not text.isdecimal() or int(text) == 0):
        raise AgentError(f'agent_id "{text}" is not a valid agent id')
    return int(text)


def create_agent(
    connection: psycopg2.extensions.connection,
    options: argparse.Namespace,
    settings: dict[str, str],
) -> int:
    """The agent's row in PEM, with group, team and owner; gives its id."""
    user = options.pem_agent_user
    if user and not row(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", user):
        raise AgentError(f'role "{user}" does not exist')
    (agent_id,) = row(
        connection,
        "SELECT pem.create_agent(%s, %s, %s, %s)",
        options.display_name,
        wanted_id(settings),
        not is_true(options.force_registration),
        bool(user),
    )
    if options.team:
        row(connection, "UPDATE pem.agent SET team = %s WHERE id = %s", options.team, agent_id)
    if options.owner:
        row(
            connection,
            "UPDATE pem.agent SET owner = quote_ident(%s)::regrole WHERE id = %s",
            options.owner,
            agent_id,
        )
    if options.group:
        row(
            connection,
            "INSERT INTO pem.server_group (name) VALUES (%s) ON CONFLICT DO NOTHING",
            options.group,
        )
        row(
            connection,
            "UPDATE pem.agent SET group_id = (SELECT id FROM pem.server_group WHERE name = %s)"
            " WHERE id = %s",
            options.group,
            agent_id,
        )
    return agent_id


def make_certificate(
    connection: psycopg2.extensions.connection, user: str, directory: Path
) -> dict[str, str]:
    """A key and a certificate for the role, made and signed by the database."""
    (data_directory,) = row(connection, "SELECT pem.get_data_directory()")
    (key,) = row(connection, "SELECT public.openssl_rsa_generate_key(%s)", KEY_BITS)
    (csr,) = row(
        connection,
        "SELECT public.openssl_rsa_key_to_csr(%s, %s, 'US', 'MA', 'Bedford',"
        " 'EDB Postgres Enterprise Manager', 'support@enterprisedb.com')",
        key,
        user,
    )
    (certificate,) = row(
        connection,
        "SELECT public.openssl_csr_to_crt(%s, %s, %s, %s)",
        csr,
        f"{data_directory}/ca_certificate.crt",
        f"{data_directory}/ca_key.key",
        CERTIFICATE_DAYS,
    )
    directory = directory.absolute()
    write_file(directory / f"{user}.key", key, mode=0o600)
    write_file(directory / f"{user}.crt", certificate, mode=0o600)
    return certificate_files(directory / f"{user}.crt", directory / f"{user}.key")


def certificate_files(certificate: Path, key: Path) -> dict[str, str]:
    """The two keys of agent.cfg that name the certificate."""
    for file in (certificate, key):
        if not file.is_file():
            raise AgentError(f"{file} does not exist")
    return {"agent_ssl_key": str(key.absolute()), "agent_ssl_crt": str(certificate.absolute())}


def wishes(options: argparse.Namespace) -> dict[str, str]:
    """The keys of agent.cfg that have options of their own."""
    keys = {
        "allow_server_restart": options.allow_server_restart,
        "allow_batch_probes": options.allow_batch_probes,
        "heartbeat_connection": options.enable_heartbeat_connection,
        "enable_smtp": options.enable_smtp,
        "enable_snmp": options.enable_snmp,
        "enable_webhook": options.enable_webhook,
    }
    if options.batch_script_user:
        keys["batch_script_user"] = options.batch_script_user
    if options.max_webhook_retries is not None:
        keys["max_webhook_retries"] = str(options.max_webhook_retries)
    return keys


def register_with_given_certificate(
    connection: psycopg2.extensions.connection, config: AgentConfig, *, existed: bool
) -> None:
    """Commit only if the certificate logs in as the agent's role.

    A common agent user exists already, so it is tried before the commit; a role that
    create_agent has just made can only be tried after it, and is taken back.
    """
    if config.get("agent_user"):
        try_certificate(config)
        connection.commit()
        return
    connection.commit()
    try:
        try_certificate(config)
    except AgentError:
        if existed:
            row(connection, "UPDATE pem.agent SET active = false WHERE id = %s", config.agent_id)
        else:
            row(connection, "DELETE FROM pem.agent WHERE id = %s", config.agent_id)
            row(connection, f"DROP ROLE agent{config.agent_id}")
        connection.commit()
        raise


def try_certificate(config: AgentConfig) -> None:
    """Raise AgentError if the agent cannot log in."""
    try:
        config.connect("pemworker").close()
    except psycopg2.OperationalError as error:
        raise AgentError(
            f'certificate "{config["agent_ssl_crt"]}" is not valid for user'
            f' "{config.agent_user}": {str(error).strip()}'
        ) from error


# --verify-registration, --unregister-agent -------------------------------------------------------


def verify_registration(options: argparse.Namespace) -> None:
    """Whether the agent is registered, can connect, and is active."""
    config = AgentConfig.read(options.config_dir / CONFIG_FILE_NAME)
    agent_id = config.agent_id
    with closing(config.connect("pemworker")) as connection:
        agent = row(connection, "SELECT active FROM pem.agent WHERE id = %s", agent_id)
    if agent is None:
        raise AgentError(f"there is no agent with id {agent_id} in PEM", AGENT_INACTIVE)
    if not agent[0]:
        raise AgentError(f"the agent with id {agent_id} is not active", AGENT_INACTIVE)
    print("Verify registration done successfully.")


def unregister_agent(options: argparse.Namespace) -> None:
    """Make the agent inactive and remove its configuration; its certificate stays."""
    config_file = options.config_dir / CONFIG_FILE_NAME
    config = AgentConfig.read(config_file)
    ssl_mode = os.environ.get("PGSSLMODE") or config.get("pem_ssl_mode", "require").lower()
    parameters = {"host": config["pem_host"], "port": config["pem_port"], "user": options.pem_user}
    with closing(connect(**parameters, sslmode=ssl_mode, **password())) as connection:
        changed = row(
            connection,
            "UPDATE pem.agent SET active = false WHERE id = %s RETURNING id",
            config.agent_id,
        )
    if not changed:
        raise AgentError(f"there is no agent with id {config.agent_id} in PEM")
    config_file.unlink()
    print("Postgres Enterprise Manager Agent unregistered successfully!")


if __name__ == "__main__":
    sys.exit(main())
