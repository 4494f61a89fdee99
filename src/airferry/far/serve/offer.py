"""What a bundle offers when it is served as a registry: repositories, tags, manifests, referrers, blobs.

Read from the layout alone, which is never written to. A blob is read and checked once before its bytes are handed
out for the first time, and again if the file changes. Speaks no HTTP.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from airferry.bundle.verify import Bundle
from airferry.errors import IntegrityError
from airferry.events import Emit, Notice, Warned, silent
from airferry.far.relocate import Destination
from airferry.far.shipments import artifact_tag, place_images, plan_shipments
from airferry.host.threads import NamedLocks
from airferry.oci.documents import Descriptor, Manifest
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Stored, blocks

Identity = tuple[int, int, int]


@dataclass(slots=True)
class Repository:
    """What is offered under one name."""

    name: str
    manifests: dict[str, Stored] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    referrers: dict[str, list[Descriptor]] = field(default_factory=dict)

    def find(self, reference: str) -> Stored | None:
        """Return the manifest that a tag or digest stands for, if there is one."""
        return self.manifests.get(self.tags.get(reference, reference))


def read_repositories(bundle: Bundle, destination: Destination) -> dict[str, Repository]:
    """Return the repositories of a bundle by name, sorted: the names that `load` would use under the destination.

    Raises:
        UsageError: two images would take one name, or a map fits nothing.
        IntegrityError: a manifest is missing or not what its digest says.
    """
    places = place_images(bundle, destination)
    found: dict[str, Repository] = {}
    for item in plan_shipments(bundle, destination, places):
        repository = found.setdefault(item.repository, Repository(item.repository))
        repository.blobs.update(item.closure.blobs)
        for stored in item.closure.manifests:
            repository.manifests[stored.descriptor.digest] = stored
        place = places.get(item.name)
        tag = place.tag if place is not None else artifact_tag(bundle, item)
        if tag is not None:
            repository.tags[tag] = item.descriptor.digest
        if place is None:
            _enter_referrer(repository, item.closure.top)
    for repository in found.values():
        for referrers in repository.referrers.values():
            referrers.sort(key=lambda descriptor: descriptor.digest)
    return {name: found[name] for name in sorted(found)}


def _enter_referrer(repository: Repository, stored: Stored) -> None:
    if (subject := stored.subject) is None:
        return
    manifest = stored.manifest
    entry = Descriptor(
        media_type=stored.descriptor.media_type,
        digest=stored.descriptor.digest,
        size=stored.descriptor.size,
        artifact_type=_artifact_type(manifest),
        annotations=manifest.annotations,
    )
    repository.referrers.setdefault(subject, []).append(entry)


def _artifact_type(manifest: Manifest) -> str:
    return manifest.artifact_type or manifest.config.media_type


class CheckedBlobs:
    """The blobs of a layout as files, each checked before it is handed out for the first time. Safe with threads."""

    def __init__(self, store: LayoutStore, *, emit: Emit = silent) -> None:
        """Take a layout; nothing is read yet."""
        self._store = store
        self._emit = emit
        self._known: dict[str, Identity] = {}
        self._lock = NamedLocks()

    def present(self, descriptor: Descriptor) -> bool:
        """Tell whether a file of the right size is there; its content is not looked at."""
        return self._store.has_blob(descriptor)

    def path(self, descriptor: Descriptor) -> tuple[Path, os.stat_result]:
        """Return where a blob is, after it was read whole and found to be what its digest says.

        What was checked is remembered by inode, size and time of change. Those who ask at the same time wait for one
        check.

        Raises:
            IntegrityError: it is missing, no regular file, or something else.
        """
        with self._lock(descriptor.digest):
            path = self._store.blob_path(descriptor.digest)
            found = self._stat(path, descriptor)
            if self._known.get(descriptor.digest) != _identity(found):
                self._check(descriptor)
                if _identity(self._stat(path, descriptor)) != _identity(found):
                    raise IntegrityError(f"blob `{descriptor.digest}` changed while it was read", path=str(path))
                self._known[descriptor.digest] = _identity(found)
            return path, found

    def mark_checked(self, descriptor: Descriptor) -> None:
        """Remember a blob that something else has just read and found to be what its digest says."""
        self._known[descriptor.digest] = _identity(self._stat(self._store.blob_path(descriptor.digest), descriptor))

    def _check(self, descriptor: Descriptor) -> None:
        try:
            with self._store.open_blob(descriptor) as stream:
                for _block in blocks(stream):
                    pass
        except IntegrityError as error:
            self._emit(Warned(f"not served: {error.message}", hint="copy the bundle again from the source"))
            raise
        self._emit(Notice(f"verified {descriptor.digest} ({descriptor.size} bytes) before it is served"))

    def _stat(self, path: Path, descriptor: Descriptor) -> os.stat_result:
        if not self._store.has_blob(descriptor):
            raise IntegrityError(
                f"blob `{descriptor.digest}` is missing or not {descriptor.size} bytes long", path=str(path)
            )
        return path.lstat()


def _identity(found: os.stat_result) -> Identity:
    return (found.st_ino, found.st_size, found.st_mtime_ns)
