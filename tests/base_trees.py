"""Merged trees of bases, by hand, for tests of what is laid over them."""

from __future__ import annotations

from dataclasses import dataclass

from airferry.oci.tar import DIRECTORY, SYMLINK

EPOCH_S = 1_700_000_000


@dataclass(frozen=True)
class Entry:
    type: bytes = DIRECTORY
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_s: int = 1_000
    link_name: str = ""
    has_xattrs: bool = False


class Base:
    """A base by its entries; folders above them are there."""

    def __init__(self, entries: dict[str, Entry] | None = None) -> None:
        self.entries = {"": Entry()}
        for path, entry in (entries or {}).items():
            parts = path.split("/")
            for count in range(1, len(parts)):
                self.entries.setdefault("/".join(parts[:count]), Entry())
            self.entries[path] = entry

    def lookup(self, path: str) -> Entry | None:
        return self.entries.get(path)


def link(target: str) -> Entry:
    return Entry(SYMLINK, 0o777, link_name=target)
