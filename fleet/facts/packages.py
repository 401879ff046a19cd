"""Which packages a host has. This fact never fails a host."""

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override


class MissingPackages(FactBase[list[str]]):
    """Those of the named packages that are not installed, by dpkg or rpm."""

    default = list

    @override
    def command(self, names: tuple[str, ...]) -> StringCommand:
        return StringCommand(
            "for p in",
            *(QuoteString(name) for name in names),
            "; do if command -v dpkg-query >/dev/null;"
            """ then dpkg-query -W -f '${db:Status-Status}\\n' "$p" 2>/dev/null"""
            ' | grep -qx installed || echo "$p";'
            ' else rpm -q "$p" >/dev/null 2>&1 || echo "$p"; fi; done; true',
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        return output
