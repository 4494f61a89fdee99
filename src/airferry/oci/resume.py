"""Blobs on their way from a source that can be read from an offset into a layout, kept over the end of the process.

What arrived lies in the cache under the blob's digest, and is hashed again before more is appended. Nothing enters the
layout before its size and digest are right.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from airferry.errors import IntegrityError
from airferry.host import files
from airferry.host.locks import lock_if_free
from airferry.oci.digest import digest_hex
from airferry.oci.documents import Descriptor
from airferry.oci.ports import BLOCK_BYTES, Source, blocks
from airferry.oci.streams import begin_writeback

# below it, fetching a blob again is quicker than keeping a file for it and hashing that file
RESUMABLE_FROM_BYTES = 16 * BLOCK_BYTES


class BlobFolder(Protocol):
    """A store that keeps each blob as a file."""

    def blob_path(self, digest: str) -> Path:
        """Return the path where a blob is or would be."""
        ...

    def link_blob(self, source_path: Path, descriptor: Descriptor) -> None:
        """Store a blob that is a file on this machine, verified."""
        ...


def fetch_blob(source: Source, store: BlobFolder, descriptor: Descriptor, *, on_block: Callable[[int], None]) -> bool:
    """Bring a blob into a layout, going on where an earlier process ended; False if another process is at it now.

    `on_block` gets the length of what was there before and of each block that arrives.

    Raises:
        HostError: the disk is full, or cache or layout are not writable.
        IntegrityError: the source gives something else than the blob.
    """
    folder = files.ensure_directory(files.cache_directory() / "partial")
    path = folder / digest_hex(descriptor.digest)
    with _opened_alone(path) as stream:
        if stream is None:
            return False
        try:
            try:
                if not _fill(stream, source, descriptor, on_block):
                    # a power cut may have left blocks that were never written: what was kept proves nothing
                    stream.truncate(0)
                    _fill(stream, source, descriptor, _ignore)
            except IntegrityError:
                path.unlink(missing_ok=True)
                raise
            _adopt(stream, path, store, descriptor)
        except OSError as error:
            raise files.translate_os_error(error, doing="write", path=path) from error
    return True


def _fill(stream: IO[bytes], source: Source, descriptor: Descriptor, on_block: Callable[[int], None]) -> bool:
    """Hash what is there and append what is missing; False if all of it is not the blob although some was there.

    Raises:
        IntegrityError: nothing was there, and the source gives something else than the blob.
    """
    seen = hashlib.sha256()
    # longer than the blob: it was kept for another run's mistake, and no part of it is worth a look
    if os.fstat(stream.fileno()).st_size > descriptor.size:
        stream.truncate(0)
    stream.seek(0)
    offset = 0
    for block in blocks(stream):
        seen.update(block)
        offset += len(block)
        on_block(len(block))
    resumed, on_its_way = offset > 0, offset
    if offset < descriptor.size or not resumed:
        # from its first byte on, the source's own reader hashes the blob; only what was kept has to be hashed here
        opened = source.open_blob_at(descriptor, offset) if resumed else source.open_blob(descriptor)
        with opened as rest:
            for block in blocks(rest):
                offset += len(block)
                if offset > descriptor.size:
                    return False
                if resumed:
                    seen.update(block)
                stream.write(block)
                on_block(len(block))
                # the disk works while the network does, so that the fsync at the end has little left to wait for
                on_its_way = begin_writeback(stream, on_its_way, offset)
    stream.flush()
    return not resumed or "sha256:" + seen.hexdigest() == descriptor.digest


def _adopt(stream: IO[bytes], path: Path, store: BlobFolder, descriptor: Descriptor) -> None:
    """Move the verified file into the layout, or copy it where that is another file system."""
    target = store.blob_path(descriptor.digest)
    files.set_mode(stream.fileno(), 0o644)
    # before it is renamed: a name that outlives a power cut must not stand for blocks that did not
    os.fsync(stream.fileno())
    if path.stat().st_dev == target.parent.stat().st_dev:
        files.publish(path, target)
        return
    store.link_blob(path, descriptor)
    path.unlink(missing_ok=True)


def _ignore(size: int) -> None:
    """Drop the length of a block that was counted before."""


@contextmanager
def _opened_alone(path: Path) -> Iterator[IO[bytes] | None]:
    """Open a file for reading and appending that no other process has open here; give None if one has."""
    # appending, as another process may open the file at the same time, and "w" would cut off what that one has
    with path.open("a+b") as stream:
        try:
            # the process that held the lock may have moved the file into a layout: the name is another file's by now,
            # or nobody's, and the file that is open here is a blob that must not change any more
            alone = lock_if_free(stream, path) and path.stat().st_ino == os.fstat(stream.fileno()).st_ino
        except FileNotFoundError:
            alone = False
        yield stream if alone else None
