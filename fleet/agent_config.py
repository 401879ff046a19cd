"""What an agent.cfg says: who the agent is, where it connects, and whether it may be pooled.

Pure text. Keys and their defaults are those of EDB's "Agent configuration parameters".
"""

from dataclasses import dataclass

from fleet.hosts import Fleet
from fleet.parts import bytes_of, ini_value, text_of, with_ini_values

SECTION = "PEM/agent"
# Each has a spooler that waits by LISTEN, which a transaction pool cannot carry (EDB's documents
# name smtp, snmp and webhook; the Nagios spooler works the same way).
SPOOLERS = ("enable_smtp", "enable_snmp", "enable_webhook", "enable_nagios")
# A connection string leads around pem_host and pem_port; EDB's documents spell it both ways.
CONNECTION_STRINGS = ("agent_conn_string", "agent_connection_string")
# What a registration decides; the other keys have the same defaults everywhere.
_WRITTEN = (
    *("pem_host", "pem_port", "agent_user"),
    *("agent_ssl_key", "agent_ssl_crt", "pem_ssl_mode"),
)
_TRUE = frozenset(("true", "yes", "on", "1", "t", "y"))


@dataclass(frozen=True)
class AgentConfig:
    """An agent.cfg. content: the file's bytes, whatever their encoding."""

    content: bytes

    @property
    def agent_id(self) -> int | None:
        """The agent's number in PEM; None when there is no valid one."""
        text = self.value("agent_id") or ""
        return int(text) if text.isascii() and text.isdecimal() and int(text) else None

    @property
    def user(self) -> str:
        """The role that it logs in as; PEM's default is a role of its own."""
        return self.value("agent_user") or f"agent{self.agent_id}"

    @property
    def spoolers(self) -> tuple[str, ...]:
        """The keys that are on and keep the agent direct."""
        return tuple(key for key in SPOOLERS if (self.value(key) or "").lower() in _TRUE)

    @property
    def connection_string(self) -> str | None:
        """The key of a connection string, when there is one."""
        return next((key for key in CONNECTION_STRINGS if self.value(key)), None)

    def value(self, key: str) -> str | None:
        """The value of a key, or None."""
        return ini_value(text_of(self.content), SECTION, key)

    def goes_through(self, fleet: Fleet) -> bool:
        """Whether it logs in as the pooled role, at one of the fleet's poolers at least."""
        hosts = _items(self.value("pem_host") or "127.0.0.1")
        ports = _items(self.value("pem_port") or "5432")
        # As in libpq, one port is for all hosts.
        ports = ports * len(hosts) if len(ports) == 1 else ports
        pooler = fleet.pgbouncer
        poolers = {name for host in pooler.hosts for name in (*host.all_names, host.address)}
        return self.user == fleet.pem_server.agent_user and any(
            host in poolers and port == str(pooler.listen_port)
            for host, port in zip(hosts, ports, strict=False)
        )

    def but(self, values: dict[str, str]) -> "AgentConfig":
        """The same file with some keys set; order, comments and other keys stay.

        Raises ValueError when it has no section of the agent's.
        """
        return AgentConfig(bytes_of(with_ini_values(text_of(self.content), SECTION, values)))

    def merged_into(self, former: "AgentConfig | None", agent_id: int) -> "AgentConfig":
        """What a registration wrote, in the file that was there before it, with this id.

        A former file that could not be pooled, or is none of an agent's, is left out.
        """
        ours = {"agent_id": str(agent_id)}
        if former is None or former.spoolers or former.connection_string:
            return self.but(ours)
        written = {key: self.value(key) for key in _WRITTEN}
        try:
            return former.but({key: text for key, text in written.items() if text} | ours)
        except ValueError:
            return self.but(ours)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]
