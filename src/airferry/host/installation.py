"""The installation of airferry: files that ship with it, and the extras that a near side and `serve` need.

A far side takes in as little as it can; `pyproject.toml` names the distributions, this module what is imported of them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from airferry.errors import HostError

PACKAGE = Path(__file__).parents[1]
SOURCE_TREE = Path(__file__).parents[3]

EXTRAS: dict[str, tuple[str, ...]] = {
    "near": ("installer", "isal", "pip"),
    "serve": ("anyio", "bcrypt", "h11", "starlette", "uvicorn"),
}


def shipped(name: str) -> Path:
    """Return the path of a shipped file or folder, from the installed wheel or from a source tree.

    Raises:
        HostError: the installation is incomplete.
    """
    for root in (PACKAGE, SOURCE_TREE):
        if (root / name).exists():
            return root / name
    raise HostError(f"`{name}` is missing from the installation of airferry", hint="reinstall airferry")


def require_utf8_names() -> None:
    """Check that Python reads names of files as UTF-8, as images and bundles hold them.

    Under another encoding a name would be looked up as other bytes: files would be missed, and digests would change.

    Raises:
        HostError: it reads them in the encoding of the locale.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise HostError(
            f"Python reads names of files as `{encoding}` here, but airferry needs UTF-8",
            hint="set `PYTHONUTF8=1`, or start Python with `-X utf8`",
        )


def require_extra(extra: str, *, what: str) -> None:
    """Check that an extra is installed, without loading it, so that nothing stops half-way for want of it.

    Raises:
        HostError: a part of it is missing.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise HostError(
            f"{what} needs {', '.join(f'`{name}`' for name in missing)}, which this installation lacks",
            hint=f"`pip install 'airferry[{extra}]'`",
            extra=extra,
        )
