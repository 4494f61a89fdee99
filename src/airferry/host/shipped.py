"""Files that ship with airferry: containerfiles, the default plan, the built-in example."""

from __future__ import annotations

from pathlib import Path

from airferry.errors import HostError

PACKAGE = Path(__file__).parents[1]
SOURCE_TREE = Path(__file__).parents[3]


def shipped(name: str) -> Path:
    """Return the path of a shipped file or folder, from the installed wheel or from a source tree.

    Raises:
        HostError: the installation is incomplete.
    """
    for root in (PACKAGE, SOURCE_TREE):
        if (root / name).exists():
            return root / name
    raise HostError(f"`{name}` is missing from the installation of airferry", hint="reinstall airferry")
