"""What the deploys share: typed inventories, platform facts, certificates, operations."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def is_entrypoint(module_name: str) -> bool:
    """True when pyinfra is executing this deploy file, False when it is imported.

    pyinfra executes a deploy file without a ``__name__``, so Python looks the name up among the
    builtins; ``__main__`` covers a pyinfra that one day sets it.
    """
    return module_name in ("builtins", "__main__")
