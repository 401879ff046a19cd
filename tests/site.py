"""A deployed fleet, as tests see it: hosts over the inventory's own ssh, poolers by libpq.

Everything here only reads. What it opens at a pooler is a login, or the try of one.
"""

import socket
import subprocess
import tempfile

import psycopg
import testinfra
from testinfra.host import Host as Remote

from fleet.agent_config import AgentConfig
from fleet.facts.poolers import PgBouncerUnits
from fleet.hosts import Fleet
from fleet.leaves import agent_leaf
from fleet.pki import authority_file, certificate_file, key_file
from fleet.places import installed_place
from fleet.platforms import FAMILIES, PEM_AGENT_CONFIG, Pooler, postgres
from fleet.pooler import consoles
from fleet.processes import processes

REACH_SECONDS = 3
ALIVE_SECONDS = 15  # three such without an answer end a connection


class Site:
    """The hosts of a fleet. Each is logged in to once, and all commands share that connection."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.machines = {host.name: host for host in fleet.machines()}
        self._sockets = tempfile.TemporaryDirectory(prefix="pem-fleet-")
        self._remotes: dict[str, Remote] = {}
        self._programs: dict[tuple[str, str], bool] = {}
        self._poolers: dict[str, Pooler] = {}

    def on(self, name: str) -> Remote:
        """A host, by the inventory's own ssh settings, as root."""
        if name not in self._remotes:
            ssh = self.machines[name].ssh
            options = [
                "ConnectTimeout=5",
                "StrictHostKeyChecking=yes",
                f"ServerAliveInterval={ALIVE_SECONDS}",
            ]
            if known_hosts := ssh.get("ssh_known_hosts_file"):
                options.append(f"UserKnownHostsFile={known_hosts}")
            user = f"{ssh['ssh_user']}@" if "ssh_user" in ssh else ""
            self._remotes[name] = testinfra.get_host(
                f"ssh://{user}{ssh.get('ssh_hostname', name)}:{ssh.get('ssh_port', 22)}",
                ssh_identity_file=ssh.get("ssh_key"),
                ssh_extra_args=" ".join(f"-o {option}" for option in options),
                controlpath=self._socket(name),
                sudo=True,
            )
        return self._remotes[name]

    def _socket(self, name: str) -> str:
        """Where ssh keeps the connection to a host; by number, as such a path must be short."""
        return f"{self._sockets.name}/{list(self.machines).index(name)}"

    def hang_up(self, name: str) -> None:
        """End the connection to a host, if there is one; the next command makes another."""
        subprocess.run(
            ["ssh", "-S", self._socket(name), "-O", "exit", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    def close(self) -> None:
        """End all connections."""
        for name in self._remotes:
            self.hang_up(name)
        self._sockets.cleanup()

    def run(self, name: str, command: str) -> str:
        """What a command printed on a host; it must succeed."""
        return self.on(name).check_output(command)

    def has(self, name: str, program: str) -> bool:
        """Whether a program is installed on a host."""
        if (name, program) not in self._programs:
            self._programs[name, program] = self.on(name).exists(program)
        return self._programs[name, program]

    def family(self, name: str) -> str:
        """The OS family of a host."""
        return FAMILIES[self.on(name).system_info.distribution]

    def place_of_postgres(self, name: str):
        """Where Postgres is on a host."""
        server = self.fleet.pem_server
        return postgres(self.family(name), server.vendor, server.postgres_version)

    def place_of_pgbouncer(self, name: str):
        """Where PgBouncer is on a host."""
        if name not in self._poolers:
            settings, units = self.fleet.pgbouncer, PgBouncerUnits()
            said = self.run(name, units.command(settings.listen_port).get_raw_value())
            found = units.process(said.splitlines())
            self._poolers[name] = installed_place(settings, self.family(name), found)
        return self._poolers[name]

    def sql(self, statement: str, database: str = "pem", server: str = "") -> str:
        """What a server's own psql answers to its superuser; the first server if none is named."""
        name = server or self.fleet.pem_server.hosts[0].name
        return self.run(name, self.psql(name, statement, database))

    def psql(self, name: str, statement: str, database: str = "pem") -> str:
        """The command that asks a server on its own host."""
        quoted = statement.replace("'", "'\\''")
        return (
            f"cd / && sudo -u {self.place_of_postgres(name).user} psql -XAtq -v ON_ERROR_STOP=1"
            f" -p {self.fleet.pem_server.port} -d {database} -c '{quoted}'"
        )

    def sockets(self, name: str) -> tuple[str, ...]:
        """The directories of a pooler's sockets, one for each of its processes."""
        return consoles(self.fleet, self.place_of_pgbouncer(name))

    def units(self, name: str) -> tuple[str, ...]:
        """The units of a pooler's processes, in the same order."""
        return tuple(one.unit for one in processes(self.fleet, self.place_of_pgbouncer(name)))

    def config(self, agent: str) -> AgentConfig:
        """The agent.cfg of an agent."""
        return AgentConfig(self.on(agent).file(PEM_AGENT_CONFIG).content)

    def show(self, name: str, what: str, socket_directory: str) -> list[dict[str, str]]:
        """A SHOW of a pooler's console, by the service's own OS user on the pooler's host."""
        place = self.place_of_pgbouncer(name)
        lines = self.run(
            name,
            f"cd / && sudo -u {place.user} psql -XAq -P footer=off -U pgbouncer -d pgbouncer"
            f" -h {socket_directory} -p {self.fleet.pgbouncer.listen_port} -c 'SHOW {what}'",
        ).splitlines()
        return [dict(zip(lines[0].split("|"), line.split("|"), strict=True)) for line in lines[1:]]

    def connect(self, name: str, **parameters: str) -> psycopg.Connection:
        """A connection to a pooler as libpq makes it, its certificate and name checked."""
        host = self.machines[name]
        settings = {
            "host": host.name,
            "hostaddr": host.address,
            "port": str(self.fleet.pgbouncer.listen_port),
            "dbname": "pem",
            "sslmode": "verify-full",
            "sslrootcert": str(authority_file(self.fleet.certificate_authority, "server")),
            "connect_timeout": "10",
            **parameters,
        }
        # Its own auto-prepared statements would be the pooler's business, not the tests'.
        return psycopg.connect(**settings, autocommit=True, prepare_threshold=None)

    def reachable(self, name: str) -> bool:
        """Whether this machine comes to a pooler's port; a firewall may well be in between."""
        address = (self.machines[name].address, self.fleet.pgbouncer.listen_port)
        try:
            socket.create_connection(address, timeout=REACH_SECONDS).close()
        except OSError:
            return False
        return True

    def as_agent(self, pooler: str, **parameters: str) -> psycopg.Connection:
        """A connection to a pooler with the papers of the first agent."""
        return self.connect(pooler, **{**self.agent_papers(), **parameters})

    def agent_papers(self) -> dict[str, str]:
        """The first agent's user, certificate and key.

        The user alone where PEM's CA issues: the keys are on the agents' hosts and nowhere else.
        """
        authority = self.fleet.certificate_authority
        user = self.fleet.pem_server.agent_user
        if authority.client_issuer == "pem":
            return {"user": user}
        leaf = agent_leaf(self.fleet, self.fleet.agent.hosts[0])
        return {
            "user": user,
            "sslcert": str(certificate_file(authority, leaf)),
            "sslkey": str(key_file(authority, leaf)),
        }
