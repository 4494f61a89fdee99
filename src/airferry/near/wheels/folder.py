"""A folder of wheels that an image installs from without network, and the list that goes with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from airferry.host import files
from airferry.near.wheels.pack import Wheel


def wheelhouse(wheels: Iterable[Wheel], into: Path, *, pip: Path | None = None) -> Path:
    """Fill a folder of a build context with wheels, `requirements.txt` with hashes, and pip. Replaces what is there.

    The list is closed: it is meant for `pip install --no-index --no-deps --require-hashes --find-links`.
    Returns the path of `requirements.txt`.
    """
    files.remove_tree(into)
    files.ensure_directory(into)
    ordered = sorted(wheels, key=lambda wheel: wheel.name)
    for source in [wheel.path for wheel in ordered] + ([pip] if pip else []):
        if not (into / source.name).exists():
            _link(source, into / source.name)
    listing = into / "requirements.txt"
    files.write_text(listing, requirements_text(ordered))
    return listing


def requirements_text(wheels: Iterable[Wheel]) -> str:
    """Return the wheels as a requirements file with hashes, sorted by name."""
    return "".join(
        f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        for wheel in sorted(wheels, key=lambda wheel: wheel.name)
    )


def _link(source: Path, path: Path) -> None:
    with suppress(OSError):
        os.link(source, path)
        return
    shutil.copyfile(source, path)
