"""Reading an inventory without pyinfra: for the commands around it."""

import runpy
import sys

from pyinfra.api.exceptions import InventoryError

from fleet import ROOT
from fleet.hosts import Fleet


def fleet_of(path: str) -> Fleet:
    """The one Fleet of an inventory file, its path as typed or relative to the repository's root.

    Raises InventoryError: no such file, no Fleet in it, or mistakes.
    """
    file = ROOT / path
    if not file.is_file():
        there = ", ".join(
            f"inventories/{one.name}" for one in sorted((ROOT / "inventories").glob("*.py"))
        )
        raise InventoryError(f"inventory {path} does not exist\nHINT: there are {there}")
    # What a file of inventories/ imports is found from the root, as pyinfra finds it.
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    found = [value for value in runpy.run_path(str(file)).values() if isinstance(value, Fleet)]
    if len(found) != 1:
        raise InventoryError(
            f"{path} makes {len(found)} Fleet(…), one is wanted"
            "\nHINT: see the end of inventories/example.py"
        )
    return found[0]
