"""The mistakes of an inventory: collected while it is read, told all at once, before any host.

A wrong role does not stop the inventory. It is noted here, and `Fleet(...)`, which every inventory
ends with, raises one `InventoryError` that names each mistake with its line and what to type.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

from pyinfra.api.exceptions import InventoryError

_noted: list["Mistake"] = []


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in an inventory: where, in what, what is wrong, and what to type."""

    where: str
    subject: str
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.subject}: {self.problem}"
        return f"{text}\n    HINT: {self.hint}" if self.hint else text


def note(mistake: Mistake) -> None:
    """Remember a mistake until `raise_noted()`."""
    _noted.append(mistake)


def any_noted() -> bool:
    """True when a mistake waits to be told."""
    return bool(_noted)


def raise_noted() -> None:
    """Raise an `InventoryError` with every mistake noted so far, and forget them.

    Nothing is raised when there are none.
    """
    if not _noted:
        return
    mistakes = list(dict.fromkeys(_noted))
    _noted.clear()
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    raise InventoryError(
        f"{count} in the inventory; no host was touched\n\n" + "\n".join(map(str, mistakes))
    )


def inventory_line() -> str:
    """Where the value was written: the first frame that is neither ours nor a library's."""
    ours = Path(__file__).parent
    for frame in inspect.stack(context=0):
        path = Path(frame.filename)
        if ours in path.parents or "pydantic" in path.parts or frame.filename.startswith("<"):
            continue
        return f"{_short(path)} line {frame.lineno}"
    return "inventory"


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
