"""What a look at the fleet finds: plain data, the same for people, monitoring and the verdict.

`fleet.status --json` prints these classes as they are, field by field: a field is not renamed and
keeps its unit. Ages and waits are in seconds, lifetimes in days, both as numbers.
"""

from dataclasses import dataclass
from typing import Literal

OPERATOR = "operator"
Way = Literal["pooled", "direct", "none"]


@dataclass(frozen=True)
class Machine:
    """A host. services: its units by name, and whether each runs; empty when it did not answer."""

    name: str
    address: str
    roles: tuple[str, ...]
    answers: bool
    services: dict[str, bool]


@dataclass(frozen=True)
class Certificate:
    """A certificate, and every file that holds it.

    name: its file below the authorities' directory, without the ending.
    places: "host:path", and "operator:path" for this machine.
    of_operator: whether the operator's file of that name holds this very certificate; true as
        well where there is none to hold it, as PEM's CA issued it.
    days_left: below zero when it has expired; None when the file is missing or holds none.
    renew_days: it is to be renewed when no more than these are left.
    """

    name: str
    authority: bool
    subject: str
    places: tuple[str, ...]
    of_operator: bool
    days_left: float | None
    renew_days: int


@dataclass(frozen=True)
class Pooler:
    """One process of PgBouncer, by the directory of its socket; numbers are 0 without an answer.

    clients: logged in; waiting: those of them without a server connection, the first for
    waiting_seconds. paused: databases that let no query through. advice: why a newer version is
    advised, else ""; no problem, as the package may be mended under an older number.
    """

    host: str
    socket_directory: str
    answers: bool
    version: str = ""
    clients: int = 0
    max_client_conn: int = 0
    server_connections: int = 0
    pool_size: int = 0
    waiting: int = 0
    waiting_seconds: float = 0.0
    paused: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Agent:
    """An agent of the inventory.

    id: None when PEM does not know it. way: how it comes to the database, and the pooler by name.
    well: alive by PEM's own measure, on the way that it should take; words: the same for people.
    blackout: "manual" or "automatic" while PEM raises no alerts for it, else "".
    """

    name: str
    id: int | None
    way: Way
    pooler: str
    heartbeat_age_seconds: float | None
    active: bool
    blackout: str
    well: bool
    words: str


@dataclass(frozen=True)
class Server:
    """A Postgres server of PEM.

    connections: number of client connections by what they are; see fleet/facts/database.py.
    unread: files that changed since the server read its configuration.
    pending_restart: settings that wait for a restart.
    """

    host: str
    answers: bool
    version: str = ""
    standby: bool = False
    connections: dict[str, int] | None = None
    max_connections: int = 0
    hba_errors: tuple[str, ...] = ()
    ident_errors: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drift:
    """A step of a deploy that would change a host, and the files that it would write.

    files is empty for what is no file: a role, a service, a reload.
    """

    host: str
    deploy: str
    step: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """Something to see to. level: "error" for what is broken, "warning" for what will be."""

    level: Literal["error", "warning"]
    where: str
    what: str


@dataclass(frozen=True)
class Findings:
    """Everything that one look found. drift: None when it was not asked for.

    unanswered: hosts of which something could not be asked, and why.
    """

    machines: tuple[Machine, ...]
    certificates: tuple[Certificate, ...]
    poolers: tuple[Pooler, ...]
    agents: tuple[Agent, ...]
    servers: tuple[Server, ...]
    drift: tuple[Drift, ...] | None
    unanswered: dict[str, str]
