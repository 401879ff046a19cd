"""PEM's own CA, and certificates beside their keys, as they are on hosts.

These facts never fail a host, and no key is in their answers.
"""

import re
from typing import TypedDict

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override

from fleet.facts.postgres import psql


class PemAuthority(FactBase[str | None]):
    """PEM's CA certificate, from the data directory of its database; None when it is not there.

    Asked on the database's host as the server's OS user, to whom the directory is open.
    """

    @override
    def requires_command(self, port: int = 5432) -> str:
        return "psql"

    @override
    def command(self, port: int = 5432) -> StringCommand:
        return StringCommand(
            "directory=$(",
            *psql(port, "postgres"),
            "-c 'SHOW data_directory' 2>/dev/null)",
            '&& cat "$directory/ca_certificate.crt" 2>/dev/null; true',
        )

    @override
    def process(self, output: list[str]) -> str | None:
        return "\n".join([*output, ""]) if output else None


class Pair(TypedDict):
    """A certificate (PEM text), and whether the key beside it is its own."""

    certificate: str
    key_matches: bool


class KeyPairs(FactBase[dict[str, Pair]]):
    """The certificate of each (certificate, key) pair of paths, by the certificate's path.

    Pairs whose certificate is not there are left out. Without openssl on the host no key matches.
    """

    default = dict

    @override
    def command(self, pairs: tuple[tuple[str, str], ...]) -> StringCommand:
        see = (
            'see() { [ -f "$1" ] || return 0; verdict=differs;'
            ' of_key=$(openssl pkey -pubout -passin pass: -in "$2" </dev/null 2>/dev/null);'
            ' of_certificate=$(openssl x509 -noout -pubkey -in "$1" 2>/dev/null);'
            ' [ -n "$of_key" ] && [ "$of_key" = "$of_certificate" ] && verdict=matches;'
            ' echo "pair $verdict $1"; cat "$1"; echo; };'
        )
        calls: list[object] = []
        for certificate, key in pairs:
            calls += ["see", QuoteString(certificate), QuoteString(key), ";"]
        return StringCommand(see, *calls, "true")

    @override
    def process(self, output: list[str]) -> dict[str, Pair]:
        pairs: dict[str, Pair] = {}
        path = ""
        for line in output:
            header = re.fullmatch(r"pair (matches|differs) (/.*)", line)
            if header:
                path = header[2]
                pairs[path] = {"certificate": "", "key_matches": header[1] == "matches"}
            elif path:
                pairs[path]["certificate"] += f"{line}\n"
        return pairs
