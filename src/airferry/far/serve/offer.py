"""What a bundle offers when it is served as a registry: repositories, tags, manifests, referrers, blobs.

Read from the layout alone, which is never written to. A blob is read and checked once before its bytes are handed
out for the first time, and again if the file changes. Speaks no HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO

from airferry.bundle.artifacts import COPY_AGAIN
from airferry.bundle.verify import Bundle
from airferry.errors import IntegrityError
from airferry.events import Emit, Notice, Warned, silent
from airferry.far.relocate import Destination
from airferry.far.shipments import artifact_tags, place_images, plan_shipments
from airferry.host.threads import NamedLocks
from airferry.oci.documents import Descriptor
from airferry.oci.entries import listed_referrer
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Stored, blocks
from airferry.oci.streams import verifying

Identity = tuple[int, int, int, int, int]
# times of files advance with the kernel's tick: 10 ms at most on Linux (CONFIG_HZ=100)
SETTLE_S = 0.02


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
    shipments = plan_shipments(bundle, destination, places)
    tags = artifact_tags(bundle, shipments)
    for item in shipments:
        repository = found.setdefault(item.repository, Repository(item.repository))
        repository.blobs.update(item.closure.blobs)
        for stored in item.closure.manifests:
            repository.manifests[stored.descriptor.digest] = stored
        place = places.get(item.name)
        for tag in tags.get(item.descriptor.digest, ()) if place is None else [place.tag]:
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
    repository.referrers.setdefault(subject, []).append(listed_referrer(stored))


@dataclass(frozen=True, slots=True)
class CheckedBlob:
    """The open file of a blob that was found to be what its digest says. The caller closes it."""

    descriptor: Descriptor
    stream: IO[bytes]
    identity: Identity
    held: ExitStack

    def ensure_unchanged(self) -> None:
        """Check that nothing has written to the file, linked or unlinked it since it was checked.

        Raises:
            IntegrityError: its times or its size are others.
        """
        if identify(os.fstat(self.stream.fileno())) != self.identity:
            raise IntegrityError(
                f"blob `{self.descriptor.digest}` changed while it was served",
                hint="do not write into a bundle that is served; send SIGHUP to serve another one",
            )

    def close(self) -> None:
        """Close the file. Idempotent."""
        self.held.close()


class CheckedBlobs:
    """The blobs of a layout as open files, each checked before it is first handed out. Safe with threads.

    What was checked is remembered by device, inode, size, time of change and time of the inode's change, which no
    program can set back. A blob that was found damaged is not read again before its file changes.
    """

    def __init__(self, store: LayoutStore, *, emit: Emit = silent, settle_s: float = SETTLE_S) -> None:
        """Take a layout; nothing is read yet."""
        self._store = store
        self._emit = emit
        self._settle_s = settle_s
        self._known: dict[str, Identity] = {}
        self._damaged: dict[str, tuple[Identity, str]] = {}
        self._lock = NamedLocks()

    def open_known(self, descriptor: Descriptor) -> CheckedBlob | None:
        """Open a blob that was checked before and has not changed since; None where it has to be read first.

        Raises:
            IntegrityError: it is missing, no regular file, of another size, or known to be damaged.
        """
        with ExitStack() as held:
            stream = held.enter_context(self._store.open_blob_file(descriptor))
            identity = identify(os.fstat(stream.fileno()))
            damaged, why = self._damaged.get(descriptor.digest, (None, ""))
            if damaged == identity:
                raise IntegrityError(why, hint=COPY_AGAIN)
            if self._known.get(descriptor.digest) != identity:
                return None
            return CheckedBlob(descriptor, stream, identity, held.pop_all())

    def open(self, descriptor: Descriptor) -> CheckedBlob:
        """Open a blob, after it was read whole and found to be what its digest says.

        The file that is handed out is the one that was read. Those who ask at the same time wait for one check.

        Raises:
            IntegrityError: it is missing, no regular file, or something else.
        """
        with self._lock(descriptor.digest):
            if (known := self.open_known(descriptor)) is not None:
                return known
            with ExitStack() as held:
                stream = held.enter_context(self._store.open_blob_file(descriptor))
                identity = identify(os.fstat(stream.fileno()))
                # a write within the clock's tick of the one before it leaves no trace in the times
                time.sleep(self._settle_s)
                self._check(stream, descriptor, identity)
                if identify(os.fstat(stream.fileno())) != identity:
                    raise IntegrityError(
                        f"blob `{descriptor.digest}` changed while it was read",
                        hint="do not write into a bundle that is served; send SIGHUP to serve another one",
                    )
                self._known[descriptor.digest] = identity
                return CheckedBlob(descriptor, stream, identity, held.pop_all())

    def identities(self) -> dict[str, Identity]:
        """Return what tells each stored file from a changed one, for `mark_checked`."""
        found = {digest: identify(self._store.blob_path(digest).lstat()) for digest in self._store.stored_digests()}
        time.sleep(self._settle_s)
        return found

    def mark_checked(self, identities: Mapping[str, Identity]) -> None:
        """Remember blobs that something else has read and found right, by what they were before that reading."""
        self._known.update(identities)

    def read_from(self, store: LayoutStore) -> None:
        """Take blobs from another layout from now on; what was checked is known by its file."""
        self._store = store

    def _check(self, stream: IO[bytes], descriptor: Descriptor, identity: Identity) -> None:
        try:
            for _block in blocks(verifying(stream, descriptor)):
                pass
        except IntegrityError as error:
            self._damaged[descriptor.digest] = (identity, error.message)
            self._emit(Warned(f"not served: {error.message}", hint="copy the bundle again from the source"))
            raise
        self._emit(Notice(f"verified {descriptor.digest} ({descriptor.size} bytes) before it is served"))


def identify(found: os.stat_result) -> Identity:
    """Return what tells a file from another one, and from itself with other content."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
