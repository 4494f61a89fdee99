"""Bundles and images of which one file is another, sealed again over the change or not.

A case is the number of a file, flags, and the file's content. With the flag `RESEALED`, whatever names the file's
digest names the new one, up to the index: digests are right then, and the root is the attacker's own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

RESEALED, MOVED, GONE, LINKED = 1, 2, 4, 8
PREFIX = 2
MAX_SEED_BYTES = 32 * 1024


class Changed:
    """A folder with a bundle of which one file is another."""

    def __init__(self, original: Path) -> None:
        self.folder = Path.cwd() / "changed"
        self._files = {
            path.relative_to(original).as_posix(): path.read_bytes()
            for path in sorted(original.rglob("*"))
            if path.is_file()
        }
        self.names = sorted(self._files)
        self._write(self._files)

    def seeds(self, *flags: int) -> list[bytes]:
        """Return the small files as cases."""
        sizes = ((number, self._files[name]) for number, name in enumerate(self.names))
        return [bytes([number, flag]) + data for number, data in sizes if len(data) < MAX_SEED_BYTES for flag in flags]

    def write(self, case: bytes) -> str:
        """Write the bundle with the change of a case, and return its root."""
        name = self.names[case[0] % len(self.names)] if case else self.names[0]
        flags = case[1] if len(case) > 1 else 0
        changed = {**self._files, name: case[2:]}
        if flags & RESEALED and name.startswith("blobs/"):
            name = _reseal(changed, name)
        if flags & GONE and flags & MOVED:
            del changed[name]
        elif flags & MOVED:
            changed[f"{name}.x"] = changed.pop(name)
        self._write(changed)
        if flags & LINKED and name in changed:
            path = self.folder / "bundle" / name
            path.rename(self.folder / "elsewhere")
            path.symlink_to(self.folder / "elsewhere")
        return "sha256:" + hashlib.sha256(changed.get("index.json", b"")).hexdigest()

    def _write(self, content: dict[str, bytes]) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for place, data in content.items():
            path = self.folder / "bundle" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _reseal(files: dict[str, bytes], name: str) -> str:
    """Give a changed blob its digest, and whatever names it too, up to the index; return its name."""
    waiting, became = [name], {}
    for _ in range(40):
        if not waiting:
            break
        place = waiting.pop()
        if place not in files:
            continue
        data = files.pop(place)
        before, after = place.rpartition("/")[2], hashlib.sha256(data).hexdigest()
        became[place] = f"blobs/sha256/{after}"
        files[became[place]] = data
        if before == after:
            continue
        for other in [other for other, content in files.items() if before.encode() in content]:
            files[other] = _renamed(files[other], before, after, len(data))
            if other.startswith("blobs/"):
                waiting.append(other)
    while became.get(name, name) != name:
        name = became[name]
    return name


def _renamed(document: bytes, before: str, after: str, size: int) -> bytes:
    changed = document.replace(before.encode(), after.encode())
    try:
        value = json.loads(changed)
    except (ValueError, RecursionError):
        return changed
    stack = [value]
    while stack:
        item = stack.pop()
        stack += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if isinstance(item, dict) and item.get("digest") == f"sha256:{after}":
            item["size"] = size
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
