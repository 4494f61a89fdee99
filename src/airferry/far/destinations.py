"""What this user keeps of each destination of loads: a lock, the uploads under way, and what tags stood for before.

It lies in the cache, under destination and root, and not next to the receipt: a rollback puts back what a tag stood
for, and write access to the folder of a receipt must not decide that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from airferry.errors import HostError
from airferry.host import files, locks
from airferry.host.parsing import Malformed, parse_json
from airferry.oci.digest import digest_hex, is_digest

MAX_TAGS_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DestinationRecords:
    """The records of one destination. Only the holder of its lock changes them."""

    destination: str
    folder: Path

    @property
    def uploads(self) -> Path:
        """Where the journal of uploads lies."""
        return self.folder / "uploads.json"

    def tags_before(self, root: str) -> dict[str, str | None]:
        """Return what tags stood for before loads of a bundle moved them, as far as that was done from here.

        A record that is damaged, or of something else, counts for nothing.
        """
        with suppress(Malformed, HostError):
            document = parse_json(files.read_bounded(self._tags(root), limit_bytes=MAX_TAGS_BYTES))
            if isinstance(document, dict) and (document.get("destination"), document.get("root")) == (
                self.destination,
                root,
            ):
                tags = document.get("tags")
                if isinstance(tags, dict) and all(map(_is_value, tags.values())):
                    return tags
        return {}

    def keep_tags(self, root: str, tags: Mapping[str, str | None]) -> None:
        """Note durably what tags stand for before a load of a bundle moves them; others stay noted."""
        self._write(root, {**self.tags_before(root), **tags})

    def forget_tags(self, root: str, references: Collection[str]) -> None:
        """Drop the notes on tags that are as they were before. Idempotent."""
        known = self.tags_before(root)
        kept = {reference: value for reference, value in known.items() if reference not in references}
        if kept != known:
            self._write(root, kept)

    def moved_from(self, reference: str, value: str, *, but: str) -> str | None:
        """Return the root of a load from here that found a value at a tag and moved it on; None where none did.

        The load of `but` does not count. Of several the latest to note anything is meant.
        """
        found: list[tuple[int, str]] = []
        for path in self.folder.glob("tags-*.json"):
            root = "sha256:" + path.stem.removeprefix("tags-")
            if is_digest(root) and root != but and self.tags_before(root).get(reference) == value:
                found.append((path.stat().st_mtime_ns, root))
        return max(found)[1] if found else None

    def _write(self, root: str, tags: Mapping[str, str | None]) -> None:
        path = self._tags(root)
        if not tags:
            path.unlink(missing_ok=True)
            return
        document = {"destination": self.destination, "root": root, "tags": tags}
        files.write_bytes(path, json.dumps(document, indent=1, sort_keys=True).encode(), mode=0o600)

    def _tags(self, root: str) -> Path:
        return self.folder / f"tags-{digest_hex(root)}.json"


@contextmanager
def hold_destination(destination: str, *, purpose: str) -> Iterator[DestinationRecords]:
    """Hold the lock on a destination, so that loads into it and rollbacks there do not cross, and give its records.

    Raises:
        HostError: another process of this user holds it.
    """
    folder = files.cache_directory() / "loads" / hashlib.sha256(destination.encode()).hexdigest()[:16]
    with locks.exclusive_lock(folder / "lock", purpose=purpose, elsewhere=False):
        yield DestinationRecords(destination, folder)


def _is_value(value: object) -> bool:
    return value is None or (isinstance(value, str) and is_digest(value))
