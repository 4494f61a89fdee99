"""What several processes bring into the cache of bases at once: a layout that all write, and userlands just made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airferry.errors import IntegrityError
from airferry.events import Emit
from airferry.host import clock, files
from airferry.host.locks import Thing, making
from airferry.host.records import Records
from airferry.oci.digest import digest_hex
from airferry.oci.documents import Descriptor
from airferry.oci.entries import as_referrer
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Action, BlobOffer, Stored


class SharedLayout(LayoutStore):
    """A layout in the cache that processes write side by side: one fetches a blob, the others wait for it alone."""

    def __init__(self, path: Path, *, cache: Path, emit: Emit) -> None:
        """Make the layout, or open the one that is there.

        Raises:
            HostError: the folder is not writable.
            IntegrityError: the folder holds a layout of another version.
        """
        self._cache = cache
        self._emit = emit
        with making(cache, Thing.INDEX, path.name, doing="writing an index", emit=emit):
            LayoutStore.create(path, private=True)
        super().__init__(path, read_only=False)

    def take_blob(self, offer: BlobOffer, *, absent: bool = False) -> Action:
        """Store a blob unless it is there, or is once no other process brings it.

        Raises:
            IntegrityError: it is not what its descriptor says.
        """
        if not absent and self.has_blob(offer.descriptor):
            return "present"
        digest = offer.descriptor.digest
        with making(self._cache, Thing.BLOB, digest, doing=f"fetching `{digest}`", emit=self._emit):
            return super().take_blob(offer)

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        """Store a manifest's or index's bytes, and what names it, as a layout does.

        Raises:
            IntegrityError: the bytes are not what the descriptor says.
        """
        if reference is None and as_referrer(stored) is None:
            super().put_manifest(stored)
            return
        with making(self._cache, Thing.INDEX, self.path.name, doing="writing an index", emit=self._emit):
            super().put_manifest(stored, reference=reference)

    def remove_damaged(self, digest: str) -> None:
        """Remove a document that is not what its digest says, so that it is fetched again. Idempotent."""
        with making(self._cache, Thing.BLOB, digest, doing=f"fetching `{digest}`", emit=self._emit):
            path = self.blob_path(digest)
            # another process may have brought it in the meantime
            if not files.is_file(path) or files.file_sha256(path) != digest_hex(digest):
                self.remove_blob(digest)


# A lock that fails after the userland was made is run again within minutes; Debian's archive changes every six hours.
RECENT_S = 3600.0


class RecentUserland:
    """A userland that was made from the same inputs a short while ago, or that another process may be making now.

    What moves is asked for again by each run that was told to, and by each that comes later: a run that failed, or
    another project, takes what was made within `RECENT_S`.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Look at what was made before from the inputs that `key` names. Call it before the lock is taken."""
        self._records = Records(folder)
        self._key = key
        self._before = files.change_mark(self._records.path(key))

    def meanwhile(self, store: LayoutStore) -> tuple[Descriptor, dict[str, str]] | None:
        """Return the image's descriptor and its packages if they were made since, and are in the layout."""
        changed = files.change_mark(self._records.path(self._key)) != self._before
        return self._recall(store) if changed else None

    def recent(self, store: LayoutStore) -> tuple[Descriptor, dict[str, str]] | None:
        """Return the same if they were made a short while ago."""
        try:
            age_s = clock.now_s() - self._records.path(self._key).stat().st_mtime
        except OSError:
            return None
        return self._recall(store) if 0 <= age_s < RECENT_S else None

    def _recall(self, store: LayoutStore) -> tuple[Descriptor, dict[str, str]] | None:
        found = self._records.recall(self._key) or {}
        try:
            descriptor = Descriptor.model_validate(found.get("manifest"))
            manifest = store.read_manifest(descriptor).manifest
        except (IntegrityError, ValueError):
            return None
        whole = all(store.has_blob(part) for part in (manifest.config, *manifest.layers))
        packages = {str(name): str(version) for name, version in dict(found.get("packages") or {}).items()}
        return (descriptor, packages) if whole else None

    def note(self, descriptor: Descriptor, packages: Mapping[str, str]) -> None:
        """Keep what was made."""
        document = descriptor.model_dump(by_alias=True, exclude_none=True)
        self._records.remember(self._key, {"manifest": document, "packages": dict(packages)})
        os.utime(self._records.path(self._key))  # an equal record is left as it is
