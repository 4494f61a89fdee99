"""A disk whose fsyncs and renames are recorded, for tests of what makes a write durable."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Disk:
    """Fsyncs and renames in the order in which they came; files and folders by their inode."""

    synced: list[int] = field(default_factory=list)
    renamed: list[tuple[int, int, Path, int]] = field(default_factory=list)

    def doubts(self) -> list[str]:
        """Return the renames that a power cut could undo, or that could leave a name without its data."""
        found = []
        for inode, folder, path, moment in self.renamed:
            if inode not in self.synced[:moment]:
                found.append(f"{path}: renamed before its data was written")
            if folder not in self.synced[moment:]:
                found.append(f"{path}: its folder was not written after the rename")
        return found

    def names(self) -> set[str]:
        """Return the names that files were given."""
        return {path.name for _inode, _folder, path, _moment in self.renamed}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Record what a test writes, and hold it to an order that no power cut can undo."""
    seen = Disk()

    def sync(real: Callable[[int], None]) -> Callable[[int], None]:
        def call(handle: Any) -> None:
            real(handle)
            seen.synced.append(os.fstat(handle).st_ino)

        return call

    def rename(real: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any, **more: Any) -> None:
            inode, folder = Path(source).lstat(), Path(target).parent.stat()
            real(source, target, **more)
            if stat.S_ISREG(inode.st_mode):
                seen.renamed.append((inode.st_ino, folder.st_ino, Path(target), len(seen.synced)))

        return call

    for name, wrap in (("fsync", sync), ("fdatasync", sync), ("replace", rename), ("rename", rename)):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    yield seen
    assert seen.renamed, "nothing was written at all"
    assert seen.doubts() == []
