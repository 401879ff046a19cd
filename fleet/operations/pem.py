"""PEM's own programs: configure the server, register an agent, see that it beats."""

import shlex
import time
from collections.abc import Generator

import gevent
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.facts.files import FileBytes, FileStates
from fleet.facts.pem import AgentVerification
from fleet.hosts import Fleet, PemServer
from fleet.observe import heartbeat_of
from fleet.operations.commands import fail, shell
from fleet.operations.files import change
from fleet.parts import bytes_of, ini_value, text_of, with_ini_values
from fleet.platforms import (
    PEM_AGENT_CONFIG,
    PEM_CONFIGURE,
    PEM_INSTALL_RECORD,
    PEM_WORKER,
    SERVER_CA_FILE,
    Postgres,
)

SECTION = "PEM/agent"
HEARTBEAT_DEADLINE_SECONDS = 60


@operation()
def configured(server: PemServer, place: Postgres) -> Generator[PyinfraCommand, None, None]:
    """Run PEM's configuration script, once: its record of answers says that it has run.

    The superuser's password is the one option left out, so the script asks for it, and gets it on
    standard input: as an option it would be in the process list.
    """
    wanted = server.installation
    if wanted is None or host.get_fact(FileStates, paths=(PEM_INSTALL_RECORD,)):
        host.noop("PEM is configured")
        return
    arguments = [
        PEM_CONFIGURE,
        "--type", str(wanted.type),
        "--db-install-path", place.directory,
        "--host", "127.0.0.1",
        "--port", str(server.port),
        "--superuser", wanted.superuser,
        "--cidr-address", wanted.network,
        "--db-unitfile", place.unit,
        "--pemagent-certificate-path", "/root/.pem",
    ]  # fmt: skip
    yield StringCommand(
        shlex.join(arguments), _stdin=wanted.superuser_password.get_secret_value() + "\n"
    )


@operation()
def ours_to_register(server: PemServer) -> Generator[PyinfraCommand, None, None]:
    """Stop before anything is touched on a host whose agent is registered in another way."""
    text = text_of(host.get_fact(FileBytes, path=PEM_AGENT_CONFIG))
    agent_id, user = ini_value(text, SECTION, "agent_id"), ini_value(text, SECTION, "agent_user")
    if agent_id is None or user == server.agent_user:
        host.noop("not registered yet" if agent_id is None else f"registered as {user}")
        return
    yield fail(
        f"{PEM_AGENT_CONFIG}: agent {agent_id} is registered as {user or f'agent{agent_id}'},"
        f" the inventory wants {server.agent_user}; nothing on this host was changed"
        f"\nHINT: {PEM_WORKER} --unregister-agent, then run again"
    )


@operation()
def registered(
    fleet: Fleet, poolers: tuple[str, ...], certificate: str, key: str
) -> Generator[PyinfraCommand, None, None]:
    """Register this host's agent through the poolers, if it has no registration yet.

    An agent of this name that PEM knows already (its host was set up anew, or a registration was
    cut off) keeps its id. Call it with `_serial=True`: PEM refuses simultaneous registrations.
    """
    server = fleet.pem_server
    text = text_of(host.get_fact(FileBytes, path=PEM_AGENT_CONFIG))
    agent_id = ini_value(text, SECTION, "agent_id")
    if agent_id is not None:
        host.noop(f"registered as agent {agent_id}")
        return
    port = str(fleet.pgbouncer.listen_port)
    arguments = [
        PEM_WORKER,
        "--register-agent",
        "--pem-server", ",".join(poolers),
        "--pem-port", ",".join(port for _ in poolers),
        "--pem-user", server.admin_user,
        "--pem-agent-user", server.agent_user,
        "--pem-ssl-mode", "verify-full",
        "--display-name", host.name,
        "-o", f"agent_ssl_crt={certificate}",
        "-o", f"agent_ssl_key={key}",
    ]  # fmt: skip
    known = heartbeat_of(fleet, host.name)
    if not known.answered:
        # Without knowing its old id, it would get a second one.
        yield fail(
            f"PEM's database on {server.connect_name} does not answer"
            "\nHINT: pyinfra INVENTORY deploys/pem_server.py"
        )
        return
    if known.agent_id is not None:
        arguments += ["--force-registration", "-o", f"agent_id={known.agent_id}"]
    yield StringCommand(
        "IFS= read -r PEM_SERVER_PASSWORD; export PEM_SERVER_PASSWORD",
        f"PGSSLMODE=verify-full PGSSLROOTCERT={SERVER_CA_FILE};",
        "exec",
        shlex.join(arguments),
        _stdin=server.admin_password.get_secret_value() + "\n",
    )


@operation()
def agent_settings(values: dict[str, str]) -> Generator[PyinfraCommand, None, None]:
    """Set keys of agent.cfg; its order, comments and other keys stay."""
    text = host.get_fact(FileBytes, path=PEM_AGENT_CONFIG)
    if text is None:
        yield fail(f"{PEM_AGENT_CONFIG} is not there: the agent is not registered")
        return
    try:
        new = with_ini_values(text_of(text), SECTION, values)
    except ValueError as error:
        yield fail(f"{PEM_AGENT_CONFIG}: {error}\nHINT: move the file away and run again")
        return
    yield from change(PEM_AGENT_CONFIG, text, bytes_of(new))


@operation()
def verified() -> Generator[PyinfraCommand, None, None]:
    """See by PEM's own check that the agent is registered, active, and reaches the database."""
    environment = f"PGSSLROOTCERT={SERVER_CA_FILE}"
    if host.get_fact(AgentVerification, pemworker=PEM_WORKER, environment=environment) == 0:
        host.noop("registered, active and connected")
        return
    yield shell(f"""\
for try in 1 2 3 4 5; do
    said=$({environment} {PEM_WORKER} --verify-registration 2>&1) && exit 0
    code=$?
    sleep 1
done
case $code in
    1) why="agent.cfg has no valid id" ;;
    2) why="it cannot connect" ;;
    3) why="it is not active" ;;
    *) why="exit code $code" ;;
esac
echo "pemworker --verify-registration: $why: $said" >&2
exit 1
""")


@operation()
def beats(fleet: Fleet) -> Generator[PyinfraCommand, None, None]:
    """Wait until PEM has a fresh heartbeat of this agent that came through a pooler."""
    seen = heartbeat_of(fleet, host.name)
    if seen.fresh:
        host.noop(seen.sentence())
        return

    def wait(state: State, host: Host) -> bool:  # noqa: ARG001  pyinfra passes both
        deadline = time.monotonic() + HEARTBEAT_DEADLINE_SECONDS
        while True:
            seen = heartbeat_of(fleet, host.name)
            if seen.fresh:
                logger.info(f"{host.print_prefix}{seen.sentence()}")
                return True
            if time.monotonic() > deadline:
                break
            gevent.sleep(1)
        logger.error(
            f"{host.print_prefix}no heartbeat through a pooler within"
            f" {HEARTBEAT_DEADLINE_SECONDS} s: {seen.sentence()}"
        )
        logger.error(f"{host.print_prefix}HINT: tail /var/log/pem/worker.log on {host.name}")
        return False

    yield FunctionCommand(wait, (), {})
