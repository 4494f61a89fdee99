"""The files that a build writes next to the bundle: noted in the journal, removed once nothing in the plan has them.

A file goes only if it still is what a build wrote; one that was edited is named and kept. Files that no build wrote are
never looked at.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from airferry.events import Emit, Notice, Warned
from airferry.host import files
from airferry.host.journal import Journal
from airferry.host.records import as_noted

_PREFIX = "file "


class OutputFolder:
    """The folder of one build. What is written or noted in this run belongs to it; the rest may go when it settles."""

    def __init__(self, path: Path, journal: Journal, *, emit: Emit) -> None:
        """Nothing is read or written yet."""
        self.path = path
        self._journal = journal
        self._emit = emit
        self._current: set[str] = set()
        self._dropped: set[str] = set()

    def write(self, name: str, data: bytes, *, images: Iterable[str] = ()) -> Path:
        """Write a file, atomically, and note it. With `images` it is about these digests, and stays while they do."""
        files.write_bytes(self.path / name, data)
        self.note(name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), images=images)
        return self.path / name

    def note(self, name: str, *, sha256: str, size_bytes: int, images: Iterable[str] = ()) -> None:
        """Note a file that something else wrote for this build."""
        self._current.add(name)
        result: dict[str, Any] = {"sha256": sha256, "size_bytes": size_bytes, "images": sorted(set(images))}
        inputs = {"name": name}
        if self._journal.result(_PREFIX + name, inputs) != result:
            self._journal.record(_PREFIX + name, inputs, result)

    def drop(self, name: str) -> None:
        """Take a file as out of date, even if its images stay: it goes when the folder settles."""
        self._dropped.add(name)

    def settle(self, held: Collection[str]) -> set[str]:
        """Remove what earlier builds wrote and this one has no use for; return the journal's actions that stay.

        `held` are the digests of the images in the bundle.
        """
        kept: set[str] = set()
        for action, result in self._journal.results(_PREFIX).items():
            name = action.removeprefix(_PREFIX)
            about = as_noted(result, lambda note: frozenset(note["images"]))
            if (
                name in self._current
                or (about and about <= set(held) and name not in self._dropped)
                or self._left(name, result)
            ):
                kept.add(action)
        return kept

    def _left(self, name: str, result: Mapping[str, Any]) -> bool:
        """Remove a file that is as it was written; return whether it is still there."""
        parts = PurePosixPath(name).parts
        path = self.path / name
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
            return False
        try:
            found = path.lstat()
        except (OSError, ValueError):
            return False
        inside = files.lies_within(path.parent, self.path)
        same_size = stat.S_ISREG(found.st_mode) and found.st_size == result.get("size_bytes")
        try:
            if not (inside and same_size and files.file_sha256(path) == result.get("sha256")):
                self._emit(
                    Warned(
                        f"`{path}` is not part of the bundle, but was changed since a build wrote it, so it stays",
                        hint="remove or rename it",
                    )
                )
                return True
            path.unlink()
        except OSError as error:
            raise files.translate_os_error(error, doing="remove", path=path) from error
        for folder in path.parents[: len(parts) - 1]:
            with suppress(OSError):
                folder.rmdir()
        self._emit(Notice(f"removed `{path}`, which is no longer part of the bundle"))
        return False
