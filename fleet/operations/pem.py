"""PEM's own programs: configure the server, register an agent, see that it beats."""

import base64
import shlex
import time
from collections.abc import Generator

from paramiko import SSHException
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.agent_config import AgentConfig
from fleet.asking import family_on
from fleet.facts.files import FileBytes, FileStates
from fleet.facts.pem import AgentVerification
from fleet.facts.postgres import psql
from fleet.hosts import Fleet, PemServer
from fleet.observe import awaited, heartbeat_of
from fleet.operations.commands import fail, shell
from fleet.operations.files import BACKUP, change
from fleet.platforms import (
    AGENT_DIRECTORY,
    PEM_AGENT_CONFIG,
    PEM_CERTIFICATES,
    PEM_CONFIGURE,
    PEM_INSTALL_RECORD,
    PEM_WORKER,
    SERVER_CA_FILE,
    Postgres,
    postgres,
)

HEARTBEAT_DEADLINE_SECONDS = 60
# The id that the registration under way is to keep.
PROMISED_ID = f"{AGENT_DIRECTORY}/agent_id"
_TRUST = f"PGSSLROOTCERT={SERVER_CA_FILE}"


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


def agent_config() -> AgentConfig | None:
    """The host's agent.cfg as it is now, or None."""
    content = host.get_fact(FileBytes, path=PEM_AGENT_CONFIG, _sudo=True)
    return None if content is None else AgentConfig(content)


@operation()
def registered(
    fleet: Fleet, poolers: tuple[str, ...], certificate: str, key: str
) -> Generator[PyinfraCommand, None, None]:
    """Register this host's agent through the poolers, unless it is, and PEM has it active.

    An agent that PEM knows already, by the id in agent.cfg or by its name, keeps its id: its host
    was set up anew, or somebody made it inactive, or a registration was cut off.
    Call it with `_serial=True`: PEM refuses simultaneous registrations.
    certificate, key: files that are there; where PEM's CA issues, those that PEM will make.
    """
    config, promised = agent_config(), _promised_id()
    agent_id = config.agent_id if config else None
    known = heartbeat_of(fleet, host.name, config)
    if agent_id and promised in (None, agent_id) and (known.active or not known.answered):
        host.noop(f"registered as agent {agent_id}")
        return
    if not known.answered:
        # Without knowing its old id, it would get a second one.
        yield fail(
            f"PEM's database on {fleet.pem_server.connect_name} does not answer"
            "\nHINT: make deploy INVENTORY=… DEPLOY=deploys/pem_server.py"
        )
        return
    wanted = promised or agent_id or known.agent_id
    if known.agent_id and wanted == known.agent_id:
        promised = wanted
        yield shell(_promise(wanted))
    # An id other than the promised one is what a run left that was cut off after this command.
    if not (promised and agent_id and agent_id != promised):
        name = known.display_name or host.name
        papers = ["-o", f"agent_ssl_crt={certificate}", "-o", f"agent_ssl_key={key}"]
        if fleet.certificate_authority.client_issuer == "pem":
            papers = ["--cert-path", PEM_CERTIFICATES]
        words = registration(fleet, poolers, name, wanted, *papers)
        yield with_password(fleet, f"exec {shlex.join(words)}")
    yield from _settle(fleet, config, promised)


def registration(
    fleet: Fleet, poolers: tuple[str, ...], display_name: str, wanted_id: int | None, *more: str
) -> list[str]:
    """The words of a registration by pemworker. more: those that tell of a certificate."""
    server, port = fleet.pem_server, str(fleet.pgbouncer.listen_port)
    arguments = [
        PEM_WORKER,
        "--register-agent",
        "--pem-server", ",".join(poolers),
        "--pem-port", ",".join(port for _ in poolers),
        "--pem-user", server.admin_user,
        "--pem-agent-user", server.agent_user,
        "--pem-ssl-mode", "verify-full",
        "--display-name", display_name,
        *more,
    ]  # fmt: skip
    if wanted_id is not None:
        arguments += ["--force-registration", "-o", f"agent_id={wanted_id}"]
    return arguments


def with_password(fleet: Fleet, command: str) -> StringCommand:
    """A shell command that registers; the administrator's password comes by standard input."""
    return StringCommand(
        "IFS= read -r PEM_SERVER_PASSWORD; export PEM_SERVER_PASSWORD",
        f"PGSSLMODE=verify-full PGSSLROOTCERT={SERVER_CA_FILE};",
        command,
        _stdin=fleet.pem_server.admin_password.get_secret_value() + "\n",
    )


def _promised_id() -> int | None:
    """The id that a registration was to keep, when it was cut off."""
    text = (host.get_fact(FileBytes, path=PROMISED_ID, _sudo=True) or b"").decode().strip()
    return int(text) if text.isdecimal() else None


def _promise(agent_id: int) -> str:
    """Shell that notes the id to keep, for a run that is cut off, and keeps agent.cfg as it is."""
    config = PEM_AGENT_CONFIG
    return f"""\
umask 077
echo {agent_id} >{PROMISED_ID}
[ ! -e {config} ] || cp -p --backup=numbered {config} {config}{BACKUP}
"""


def _settle(
    fleet: Fleet, old: AgentConfig | None, promised: int | None
) -> Generator[PyinfraCommand, None, None]:
    """After a registration: the id that was promised, and what the former agent.cfg held."""
    new = agent_config()
    if new is not None and new.agent_id is not None:
        if promised not in (None, new.agent_id):
            # pemworker made a new row all the same, as old ones do.
            yield FunctionCommand(_swap_rows, (fleet, new.agent_id, promised), {})
        settled = new.merged_into(old, promised or new.agent_id)
        if settled != new:
            yield from change(PEM_AGENT_CONFIG, new.content, settled.content)
    if promised:
        yield shell(f"rm -f {PROMISED_ID}")


def _swap_rows(state: State, host: Host, fleet: Fleet, new: int, old: int) -> bool:
    """Make the agent's old row the active one, on whichever database host is the primary."""
    server, said = fleet.pem_server, []
    sql = f"UPDATE pem.agent SET active = (id = {old}) WHERE id IN ({old}, {new});"
    for one in server.hosts:
        family = family_on(one.name)
        if family is None:
            said.append(f"{one.name} cannot be reached")
            continue
        try:
            done, output = state.inventory.get_host(one.name).run_shell_command(
                StringCommand(*psql(server.port, "pem"), "-f -"),
                _sudo=True,
                _sudo_user=postgres(family, server.vendor, server.postgres_version).user,
                _stdin=sql,
            )
        except (SSHException, OSError) as lost:
            said.append(f"{one.name} does not answer: {lost}")
            continue
        if done:
            logger.info(f"{host.print_prefix}keeps id {old}; the new row {new} is inactive")
            return True
        said.append(f"{one.name}: {output.stderr.strip()}")
    logger.error(f"{host.print_prefix}agent {new} cannot become {old} again: {'; '.join(said)}")
    logger.error(f"{host.print_prefix}HINT: run again when PEM's database accepts writes")
    return False


@operation()
def agent_settings(values: dict[str, str]) -> Generator[PyinfraCommand, None, None]:
    """Set keys of agent.cfg; its order, comments and other keys stay.

    Another certificate is tried by PEM's own check before: an agent that the poolers would not let
    in keeps the one it has, and its host fails.
    """
    config = agent_config()
    if config is None:
        yield fail(
            f"{PEM_AGENT_CONFIG} is not there: the agent is not registered"
            "\nHINT: make deploy INVENTORY=… DEPLOY=deploys/agent.py"
        )
        return
    try:
        changed = config.but(values)
    except ValueError as error:
        yield fail(f"{PEM_AGENT_CONFIG}: {error}\nHINT: move the file away and run again")
        return
    papers = ("agent_ssl_key", "agent_ssl_crt")
    if config.agent_id and any(config.value(key) != changed.value(key) for key in papers):
        yield shell(_let_in(changed))
    yield from change(PEM_AGENT_CONFIG, config.content, changed.content)


def _let_in(config: AgentConfig) -> str:
    """Shell that has PEM's check try an agent.cfg where the agent does not look."""
    check = verification(
        '--config-dir "$new"', "not let in by the poolers, agent.cfg stays as it is"
    )
    return f"""\
set -eu
umask 077
new=$(mktemp -d {AGENT_DIRECTORY}/check.XXXXXX)
trap 'rm -rf "$new"' EXIT
printf %s {base64.b64encode(config.content).decode()} | base64 -d >"$new/agent.cfg"
(
{check}
) || {{ echo 'HINT: poolers first: pyinfra INVENTORY deploys/pgbouncer.py' >&2; exit 1; }}
"""


@operation()
def verified() -> Generator[PyinfraCommand, None, None]:
    """See by PEM's own check that the agent is registered, active, and reaches the database."""
    if host.get_fact(AgentVerification, pemworker=PEM_WORKER, environment=_TRUST) == 0:
        host.noop("registered, active and connected")
        return
    yield shell(verification())


def verification(options: str = "", refusal: str = "pemworker --verify-registration") -> str:
    """Shell that has PEM check a registration, and fails with the reason when it is not good."""
    return f"""\
for try in 1 2 3 4 5; do
    code=0
    said=$({_TRUST} timeout 60 {PEM_WORKER} --verify-registration {options} 2>&1) || code=$?
    [ $code -ne 0 ] || break
    sleep 1
done
case $code in
    0) why= ;;
    1) why="agent.cfg has no valid id" hint="psql -d pem -c 'TABLE pem.agent'" ;;
    2) why="it cannot connect" hint="tail /var/log/pem/worker.log, and the poolers' logs" ;;
    3) why="it is not active" hint="psql -d pem -c 'SELECT id, active FROM pem.agent'" ;;
    *) why="exit code $code" hint="tail /var/log/pem/worker.log" ;;
esac
if [ -n "$why" ]; then
    printf '%s\\nHINT: %s\\n' {shlex.quote(refusal)}": $why: $said" "$hint" >&2
    exit 1
fi
"""


@operation()
def beats(fleet: Fleet) -> Generator[PyinfraCommand, None, None]:
    """Wait until PEM has a fresh heartbeat of this agent that came through a pooler."""
    config = agent_config()
    seen = heartbeat_of(fleet, host.name, config)
    if seen.fresh:
        host.noop(seen.sentence())
        return

    def wait(state: State, host: Host) -> bool:  # noqa: ARG001  pyinfra passes both
        deadline = time.monotonic() + HEARTBEAT_DEADLINE_SECONDS
        seen = awaited(fleet, host.name, config, lambda seen: seen.fresh, deadline)
        if seen.fresh:
            logger.info(f"{host.print_prefix}{seen.sentence()}")
            return True
        logger.error(
            f"{host.print_prefix}no heartbeat through a pooler within"
            f" {HEARTBEAT_DEADLINE_SECONDS} s: {seen.sentence()}"
        )
        logger.error(f"{host.print_prefix}HINT: tail /var/log/pem/worker.log on {host.name}")
        return False

    yield FunctionCommand(wait, (), {})
