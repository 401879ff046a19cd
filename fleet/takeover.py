"""A PgBouncer configuration of somebody else: what it has that ours has not, in words.

Pure text. Passwords are in no word of it.
"""

import json
import re
from dataclasses import dataclass

from fleet.hosts import OWNED_SETTINGS, Fleet
from fleet.operations.files import BACKUP, SIGNATURE
from fleet.parts import ini_entries
from fleet.values import POOL_USER

# What of a database's entry may be shown; passwords and connect_query are not among it.
_SHOWN = (
    *("host", "port", "dbname", "user", "auth_user", "auth_dbname", "pool_size", "pool_mode"),
    *("min_pool_size", "reserve_pool_size", "max_db_connections"),
)
# Settings that may hold a secret.
_SECRET = re.compile(r"ldap|passw")
# Settings of the recipe that the inventory decides by one of its own.
_IN_INVENTORY = ("listen_port", "max_client_conn")
# PgBouncer's own.
_DEFAULT_PORT = "6432"


@dataclass(frozen=True)
class Configuration:
    """A pgbouncer.ini as it was found."""

    path: str
    text: str

    @property
    def is_ours(self) -> bool:
        """Whether a deploy wrote it."""
        return SIGNATURE in self.text.partition("\n")[0]

    @property
    def settings(self) -> dict[str, str]:
        """The section [pgbouncer]."""
        return self._section("pgbouncer")

    @property
    def databases(self) -> dict[str, str]:
        """The section [databases]: connection strings by name."""
        return self._section("databases")

    @property
    def port(self) -> int:
        """The port that it listens on."""
        value = self.settings.get("listen_port", _DEFAULT_PORT)
        return int(value) if value.isdigit() else 0

    @property
    def password_file(self) -> str:
        """The file of users and their passwords, or ''."""
        return self.settings.get("auth_file", "")

    @property
    def files(self) -> tuple[str, ...]:
        """Itself and what it reads beside it, without the file of passwords."""
        named = (self.path, self.settings.get("auth_hba_file", ""), *self.included)
        return tuple(path for path in named if path.startswith("/"))

    @property
    def included(self) -> tuple[str, ...]:
        """The files of its %include lines."""
        return tuple(re.findall(r"^\s*%include\s+(\S+)", self.text, re.MULTILINE))

    @property
    def is_pem(self) -> bool:
        """Whether it asks PEM's function who may log in, as every recipe of PEM does."""
        return "pem.get_agent_pool_auth" in self.settings.get("auth_query", "")

    @property
    def is_password_recipe(self) -> bool:
        """Whether it is PEM's recipe of 7.11 to early 9: passwords on the way to the database."""
        return self.is_pem and bool(self.password_file)

    def _section(self, wanted: str) -> dict[str, str]:
        entries = ini_entries(self.text)
        return {key: value for section, key, value in entries if section == wanted}


def report(
    found: Configuration, ours: str, fleet: Fleet, *, passwords_stay: bool = False
) -> list[str]:
    """What will no longer be there when our ini, `ours`, is in force instead of `found`.

    Nothing for one without databases, such as a package brings along: nobody can have used it.
    passwords_stay: whether its file of passwords is none that may be put aside.
    """
    if not found.databases:
        return []
    new = Configuration("", ours)
    lines = [f"{found.path} is not pem-fleet's, and makes place for ours. What changes:"]
    if found.is_password_recipe:
        lines.append(_recipe(found, fleet))
    lines += [*_databases(found, new, fleet), *_users_and_peers(found)]
    lines += [f"%include {path}: is no longer read" for path in found.included]
    if found.password_file and passwords_stay:
        directory = found.path.rpartition("/")[0]
        lines += [
            f"auth_file {found.password_file}: no longer read, and left as it is: it is no regular"
            f" file of root's or of the service's user below {directory}",
            f"HINT: ls -l {found.password_file}",
        ]
    elif found.password_file:
        lines.append(
            f"auth_file {found.password_file}: no longer read; its users come from the database,"
            f" and it is put aside as {found.password_file}{BACKUP}, for root and its owner alone"
        )
    return [*lines, *_settings(found, new), f"{found.path} as it was is kept: {found.path}{BACKUP}"]


def _recipe(found: Configuration, fleet: Fleet) -> str:
    server, way = fleet.pem_server, found.databases.get("pem", "")
    host = dict(_words(way)).get("host", "the local socket")
    text = (
        f"It is PEM's recipe of 7.11 to early 9: to the database by {host}, with md5 passwords"
        f" that lie in {found.password_file}. It becomes the recipe of PEM 10: to"
        f" {server.connect_name} by TLS and the certificate CN={POOL_USER}, no password on this"
        f" host, {server.admin_user} by SCRAM instead of md5, agents by certificate as before."
    )
    if "pool_size" in found.databases:
        text += (
            " Its entries of [databases] are cut over two lines, as in that guide: PgBouncer takes"
            " the second line for a database of its own, or does not start at all."
        )
    return text


def _databases(found: Configuration, new: Configuration, fleet: Fleet) -> list[str]:
    lines, lost = [], []
    for name, entry in found.databases.items():
        before = {key: value for key, value in _words(entry) if key in _SHOWN}
        if name not in new.databases:
            shown = " ".join(f"{key}={value}" for key, value in before.items())
            lines.append(f"[databases] {name} = {shown}: is gone")
            lost.append(name)
            continue
        ours = dict(_words(new.databases[name]))
        changed = [
            f"{key} {value} -> {ours.get(key, 'unset')}"
            for key, value in before.items()
            if ours.get(key) != value
        ]
        if changed:
            lines.append(f"[databases] {name}: {', '.join(changed)}")
        size = before.get("pool_size", "")
        if size.isdigit() and size != ours.get("pool_size"):
            lines.append(f"HINT: PgBouncer(pool_size={size}) keeps the size of the pool")
    names = [name for name in lost if re.fullmatch(r"[a-z_]\w*", name) and name != "pool_size"]
    if names:
        lines.append(
            f"HINT: on the PEM server, Fleet(access=Access(databases=(Database(name={names[0]!r},"
            " owner=…, pooled=True),))) keeps it; another server's database wants a PgBouncer of"
            f" its own, on another port than {fleet.pgbouncer.listen_port}"
        )
    return lines


def _users_and_peers(found: Configuration) -> list[str]:
    return [
        f"[{section}] {key} = {value}: is gone"
        for section, key, value in ini_entries(found.text)
        if section in ("users", "peers")
    ]


def _settings(found: Configuration, new: Configuration) -> list[str]:
    lines, extra = [], {}
    for key, value in found.settings.items():
        if new.settings.get(key) == value or _SECRET.search(key):
            continue
        if key in OWNED_SETTINGS:
            lines.append(f"{key} = {value}: becomes {new.settings.get(key, 'unset')}")
            if key in _IN_INVENTORY and value.isdigit():
                lines.append(f"HINT: PgBouncer({key}={value}) keeps it")
        else:
            lines.append(f"{key} = {value}: becomes {new.settings.get(key, 'the default')}")
            extra[key] = value
    if extra:
        inside = ", ".join(f'"{key}": {json.dumps(value)}' for key, value in extra.items())
        lines.append(f"HINT: PgBouncer(extra={{{inside}}}) keeps them")
    return lines


def _words(entry: str) -> list[tuple[str, str]]:
    """The keys and values of a connection string."""
    found = re.findall(r"(\w+)\s*=\s*('(?:[^']|'')*'|\S+)", entry)
    return [(key, value.strip("'")) for key, value in found]
