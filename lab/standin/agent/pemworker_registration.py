"""`pemworker --register-agent`: an id, a certificate and an agent.cfg for this host.

All that happens in the database is one transaction, so it works through a transaction pool, and a
registration that fails leaves nothing behind.
"""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import os
from contextlib import closing
from pathlib import Path

import psycopg2
from pem_agent_lib import (
    CONFIG_DIRECTORY,
    CONFIG_FILE_NAME,
    DEFAULTS,
    AgentConfig,
    AgentError,
    Connection,
    connect,
    is_true,
    row,
    valid_agent_id,
    write_file,
)

KEY_BITS = 4096
CERTIFICATE_DAYS = 3650
SUBJECT = ("US", "MA", "Bedford", "EDB Postgres Enterprise Manager", "support@enterprisedb.com")


def register_agent(options: argparse.Namespace) -> None:
    """Register this host's agent. Raises AgentError or psycopg2.Error."""
    config_file = options.config_dir / CONFIG_FILE_NAME
    check_before(options, config_file)
    settings = dict(options.settings)
    given_files = given_certificate(settings)
    parameters = registration_parameters(options)
    with closing(connect(**parameters)) as connection:
        connection.autocommit = False
        wanted_id = valid_agent_id(settings["agent_id"]) if "agent_id" in settings else -1
        existed = row(connection, "SELECT 1 FROM pem.agent WHERE id = %s", wanted_id) is not None
        agent_id = create_agent(connection, options, wanted_id)
        config = AgentConfig(pem_host=parameters["host"], pem_port=parameters["port"])
        config["agent_id"] = str(agent_id)
        if options.pem_agent_user:
            config["agent_user"] = options.pem_agent_user
        user = config.agent_user
        config |= given_files or make_certificate(connection, user, options.cert_path)
        config |= DEFAULTS | wishes(options) | settings
        if given_files:
            commit_if_it_logs_in(connection, config, existed=existed)
        else:
            connection.commit()
    config.write(config_file)
    print("Postgres Enterprise Manager Agent registered successfully!")


def check_before(options: argparse.Namespace, config_file: Path) -> None:
    """Refuse what would fail after the agent has its row. Raises AgentError."""
    if os.geteuid() != 0 and options.config_dir == CONFIG_DIRECTORY:
        raise AgentError("only root may register an agent, unless --config-dir is given")
    if not os.access(options.config_dir, os.W_OK):
        raise AgentError(f"{options.config_dir} is not a directory that can be written to")
    if config_file.exists() and not is_true(options.force_registration):
        raise AgentError(
            f"{config_file} exists: this host's agent is registered already."
            " Use --force-registration to register it again."
        )


def given_certificate(settings: dict[str, str]) -> dict[str, str]:
    """The certificate brought along by -o, or nothing. Raises AgentError."""
    names = ("agent_ssl_key", "agent_ssl_crt")
    given = {name: settings.pop(name) for name in names if name in settings}
    if given and len(given) != len(names):
        raise AgentError(f"-o {' and -o '.join(names)} must be given together")
    for path in map(Path, given.values()):
        if not path.is_file():
            raise AgentError(f"{path} does not exist")
    return {name: str(Path(path).absolute()) for name, path in given.items()}


def registration_parameters(options: argparse.Namespace) -> dict[str, str]:
    """Where and as whom to register: the connection string, or the single options."""
    if options.pem_registration_conn_string:
        try:
            parameters = psycopg2.extensions.parse_dsn(options.pem_registration_conn_string)
        except psycopg2.ProgrammingError as error:
            raise AgentError(f"connection string: {str(error).strip()}") from error
    else:
        parameters = {"host": options.pem_server, "port": options.pem_port}
        parameters["user"] = options.pem_user
    if not (parameters.get("host") and parameters.get("user")):
        raise AgentError("--pem-server and --pem-user must be given")
    parameters.setdefault("port", "5432")
    ssl_modes = (options.pem_ssl_mode, parameters.get("sslmode"), os.environ.get("PGSSLMODE"))
    parameters["sslmode"] = next(filter(None, ssl_modes), "require")
    return parameters | password()


def password() -> dict[str, str]:
    """The registering role's password; without the variable libpq looks in its own places."""
    text = os.environ.get("PEM_SERVER_PASSWORD")
    return {"password": text} if text else {}


def create_agent(connection: Connection, options: argparse.Namespace, wanted_id: int) -> int:
    """The agent's row in PEM, with group, team and owner; gives its id."""
    user = options.pem_agent_user
    if user and row(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", user) is None:
        raise AgentError(f'role "{user}" does not exist')
    (agent_id,) = row(
        connection,
        "SELECT pem.create_agent(%s, %s, %s, %s)",
        options.display_name,
        wanted_id,
        not is_true(options.force_registration),
        bool(user),
    )
    if options.group:
        group = "INSERT INTO pem.server_group (name) VALUES (%s) ON CONFLICT DO NOTHING"
        row(connection, group, options.group)
    row(
        connection,
        """
        UPDATE pem.agent SET
            group_id = coalesce((SELECT id FROM pem.server_group WHERE name = %s), group_id),
            team = coalesce(%s, team),
            owner = coalesce(quote_ident(%s)::regrole, owner)
        WHERE id = %s""",
        options.group,
        options.team,
        options.owner,
        agent_id,
    )
    return agent_id


def make_certificate(connection: Connection, user: str, directory: Path) -> dict[str, str]:
    """A key and a certificate for the role, made and signed by the database."""
    directory = directory.absolute()
    (data_directory,) = row(connection, "SELECT pem.get_data_directory()")
    (key,) = row(connection, "SELECT public.openssl_rsa_generate_key(%s)", KEY_BITS)
    request = "SELECT public.openssl_rsa_key_to_csr(%s, %s, %s, %s, %s, %s, %s)"
    (csr,) = row(connection, request, key, user, *SUBJECT)
    (certificate,) = row(
        connection,
        "SELECT public.openssl_csr_to_crt(%s, %s, %s, %s)",
        csr,
        f"{data_directory}/ca_certificate.crt",
        f"{data_directory}/ca_key.key",
        CERTIFICATE_DAYS,
    )
    files = {"agent_ssl_key": directory / f"{user}.key", "agent_ssl_crt": directory / f"{user}.crt"}
    write_file(files["agent_ssl_key"], key, mode=0o600)
    write_file(files["agent_ssl_crt"], certificate, mode=0o600)
    return {name: str(path) for name, path in files.items()}


def wishes(options: argparse.Namespace) -> dict[str, str]:
    """The keys of agent.cfg that have options of their own."""
    keys = {
        "pem_ssl_mode": options.pem_ssl_mode or DEFAULTS["pem_ssl_mode"],
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


def commit_if_it_logs_in(connection: Connection, config: AgentConfig, *, existed: bool) -> None:
    """Commit only if the certificate brought along is valid for the agent's role.

    A common agent user is there already, so it is tried before the commit. The role of a single
    agent has just been made: it can log in only after the commit, which is then taken back.
    """
    if "agent_user" in config:
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
            row(connection, f"DROP ROLE {config.agent_user}")
        connection.commit()
        raise


def try_certificate(config: AgentConfig) -> None:
    """Raise AgentError, with libpq's words, if the agent cannot log in."""
    try:
        config.connect("pemworker").close()
    except psycopg2.OperationalError as error:
        raise AgentError(
            f"certificate {config['agent_ssl_crt']} is not valid for user {config.agent_user}:"
            f" {str(error).strip()}"
        ) from error
