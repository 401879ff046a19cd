#!/usr/bin/python3 -B
"""Stand-in for PEM's pemworker: registers an agent, looks whether it is registered, removes it."""

# mypy: ignore-errors
# (Runs on the hosts with their psycopg2, which has no types here.)

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing

import psycopg2
from pem_agent_lib import CONFIG_FILE_NAME, AgentConfig, AgentError, connect, row
from pemworker_options import parse
from pemworker_registration import password, register_agent

NOT_CONNECTED = 2
NOT_ACTIVE = 3


def verify_registration(options: argparse.Namespace) -> None:
    """Whether the agent has an id, can connect, and is active: exit codes 1, 2, 3 if not."""
    config = AgentConfig.read(options.config_dir / CONFIG_FILE_NAME)
    agent_id = config.agent_id
    try:
        with closing(config.connect("pemworker")) as connection:
            agent = row(connection, "SELECT active FROM pem.agent WHERE id = %s", agent_id)
    except psycopg2.Error as error:
        raise AgentError(str(error).strip(), NOT_CONNECTED) from error
    if agent is None:
        raise AgentError(f"PEM has no agent with id {agent_id}", NOT_ACTIVE)
    if not agent[0]:
        raise AgentError(f"the agent with id {agent_id} is not active", NOT_ACTIVE)
    print("Verify registration done successfully.")


def unregister_agent(options: argparse.Namespace) -> None:
    """Make the agent inactive and remove its configuration; its certificate stays."""
    config_file = options.config_dir / CONFIG_FILE_NAME
    config = AgentConfig.read(config_file)
    parameters = {
        "host": config["pem_host"],
        "port": config["pem_port"],
        "user": options.pem_user,
        "sslmode": os.environ.get("PGSSLMODE") or config["pem_ssl_mode"].lower(),
    }
    with closing(connect(**parameters, **password())) as connection:
        statement = "UPDATE pem.agent SET active = false WHERE id = %s RETURNING id"
        if not row(connection, statement, config.agent_id):
            raise AgentError(f"PEM has no agent with id {config.agent_id}")
    config_file.unlink()
    print("Postgres Enterprise Manager Agent unregistered successfully!")


COMMANDS = {
    "--register-agent": register_agent,
    "--verify-registration": verify_registration,
    "--unregister-agent": unregister_agent,
}


def main() -> int:
    """Run one command; its exit code."""
    options = parse(sys.argv[1:])
    try:
        COMMANDS[options.command](options)
    except AgentError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.status
    except psycopg2.Error as error:
        print(f"ERROR: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
