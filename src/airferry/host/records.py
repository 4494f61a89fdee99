"""What the cache remembers of work by what went into it: one small file each, named by the digest of that.

Nothing depends on a record: one that is missing or damaged only costs the work again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from airferry.errors import AirferryError, HostError
from airferry.events import Emit, Warned
from airferry.host import files
from airferry.host.canonical import canonical_json, inputs_digest
from airferry.host.parsing import parse_json

MAX_RECORD_BYTES = 64 * 1024


def expect_cache(emit: Emit) -> None:
    """Check, before work begins, that the cache can be written to; say where it is if that is not in the home.

    Raises:
        HostError: it cannot.
    """
    folder = files.cache_directory()
    files.expect_writable(folder)
    if not os.environ.get("AIRFERRY_CACHE") and not os.environ.get("XDG_CACHE_HOME") and folder.name != "airferry":
        emit(
            Warned(
                f"no home folder can be written to, so `{folder}` is the cache",
                hint="set `AIRFERRY_CACHE` to a folder that stays: it also keeps what tags stood for before a load",
            )
        )


Known = TypeVar("Known")


def as_noted(note: Mapping[str, Any] | None, read: Callable[[Mapping[str, Any]], Known]) -> Known | None:
    """Return what `read` makes of a note of an earlier run, or None where there is none or it does not fit.

    Notes spare work, and are on a disk on which anybody may have changed them: one that is not as it was written means
    that the work is done again.
    """
    if note is None:
        return None
    try:
        return read(note)
    except (ValueError, KeyError, TypeError, AttributeError, AirferryError):
        return None


class Records:
    """Records in a folder. Safe to use from threads and processes."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made when something is remembered."""
        self._folder = folder

    def recall(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what was remembered under a key, or None."""
        with suppress(HostError, ValueError):
            found = parse_json(files.read_bounded(self.path(key), limit_bytes=MAX_RECORD_BYTES))
            if isinstance(found, dict):
                return found
        return None

    def remember(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Keep a value under a key, atomically, in place of an older one."""
        files.write_bytes(self.path(key), canonical_json(value))

    def path(self, key: Mapping[str, Any]) -> Path:
        """Return the file of what is remembered under a key."""
        return self._folder / f"{inputs_digest(key).removeprefix('sha256:')}.json"
