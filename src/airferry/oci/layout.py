"""An OCI image layout in a folder, as a Source and a Sink: image-spec, *image-layout.md*.

Blobs are written once, atomically, under their digest; index.json is replaced whole. Nothing is followed out of the
folder: blobs are regular files, never links. Reading needs no write access. Processes that write one layout exclude
each other by a lock; this module only orders the threads of one process.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from airferry.errors import AirferryError, HostError, IntegrityError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_json
from airferry.oci.digest import digest_hex, digest_of, is_digest
from airferry.oci.documents import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    descriptor_of,
    expect_one_meaning,
    parse_index,
)
from airferry.oci.entries import (
    IndexListing,
    Referrers,
    as_referrer,
    entered,
    find_entry,
    find_referrers,
    find_signature,
    index_bytes,
    named,
    parse_listing,
    strange_entries,
)
from airferry.oci.ports import Action, BlobOffer, MissingContent, Sink, Source, Stored, blocks
from airferry.oci.resume import RESUMABLE_FROM_BYTES, fetch_blob
from airferry.oci.streams import DamagedBlob, begin_writeback, sized, verifying

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT_VERSION = "1.0.0"
LAYOUT_BYTES = b'{"imageLayoutVersion":"1.0.0"}'
MAX_INDEX_BYTES = 16 * 1024 * 1024
MAX_LAYOUT_FILE_BYTES = 4096


class BlobWriter:
    """A blob in the making. `write` its bytes, then `commit`; without a commit nothing is left."""

    def __init__(self, folder: Path, *, digest: str | None = None) -> None:
        """Make a temporary file in the folder; use `LayoutStore.new_blob`.

        Without `digest` the bytes are hashed here. With it, what they are read from has to be a verified stream.
        """
        self._folder = folder
        self._digest = digest
        with self._translated():
            handle, name = tempfile.mkstemp(prefix=files.TEMPORARY_PREFIX, dir=folder)
        self.path = Path(name)
        self._stream = os.fdopen(handle, "wb")
        self._hash = hashlib.sha256()
        self._size = 0
        self._on_its_way = 0

    def write(self, data: bytes) -> int:
        """Append bytes and return how many."""
        if self._digest is None:
            self._hash.update(data)
        self._size += len(data)
        with self._translated():
            written = self._stream.write(data)
            self._on_its_way = begin_writeback(self._stream, self._on_its_way, self._size)
            return written

    def commit(self) -> tuple[str, int]:
        """Put the blob, durably, under its digest, and return digest and size. Idempotent for equal content."""
        digest = self._digest or "sha256:" + self._hash.hexdigest()
        with self._translated():
            self._stream.flush()
            files.set_mode(self._stream.fileno(), 0o644)
            os.fsync(self._stream.fileno())
            files.boundary(f"fsync {digest}")
            self._stream.close()
            files.publish(self.path, self._folder / digest_hex(digest))
        return digest, self._size

    def discard(self) -> None:
        """Remove what was not committed. Idempotent."""
        with suppress(OSError):
            self._stream.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise files.translate_os_error(error, doing="write a blob into", path=self._folder) from error


class LayoutStore(Source, Sink):
    """A Source and Sink over a layout folder."""

    reads_unchecked = True

    def __init__(self, path: Path, *, read_only: bool) -> None:
        """Take a folder as it is; use `create` or `open`."""
        self.path = path
        self.read_only = read_only
        self._blobs = path / "blobs" / "sha256"
        self._lock = threading.Lock()
        self._referrers: tuple[tuple[int, ...], Referrers] | None = None
        self._strange: dict[str, str] = {}

    @classmethod
    def create(cls, path: Path, *, private: bool = False) -> LayoutStore:
        """Make an empty layout, or open the one that is there. Idempotent; what it holds stays.

        Whatever the umask, other users can read its folders, unless it is `private`.

        Raises:
            HostError: the folder is not writable.
            IntegrityError: the folder holds a layout of another version.
        """
        store = cls(path, read_only=False)
        files.ensure_directory(store._blobs, shared=not private)
        if not (path / LAYOUT_FILE).exists():
            files.write_bytes(path / LAYOUT_FILE, LAYOUT_BYTES)
        if not (path / INDEX_FILE).exists():
            store.write_index([])
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> LayoutStore:
        """Open a layout that exists.

        Raises:
            IntegrityError: the folder is not a layout of version 1.0.0.
        """
        store = cls(path, read_only=read_only)
        data = store._read_file(path / LAYOUT_FILE, limit_bytes=MAX_LAYOUT_FILE_BYTES)
        try:
            version = parse_json(data).get("imageLayoutVersion")
        except (Malformed, AttributeError) as error:
            raise IntegrityError(f"`{path / LAYOUT_FILE}` is not valid JSON of a layout") from error
        if version != LAYOUT_VERSION:
            raise IntegrityError(f"`{path}` has imageLayoutVersion `{version}`, expected `{LAYOUT_VERSION}`")
        return store

    # -- reading ------------------------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        """Return the path where a blob is or would be."""
        return self._blobs / digest_hex(digest)

    def blob_file(self, descriptor: Descriptor) -> Path | None:
        """Return the file that holds a blob, if there is one of the right size."""
        return self.blob_path(descriptor.digest) if self.has_blob(descriptor) else None

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether a regular file of the right name and size is there. Its content is checked when read."""
        try:
            found = self.blob_path(descriptor.digest).lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == descriptor.size

    @contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        """Open a blob as a stream that raises `IntegrityError` at its end if it is not the blob.

        Raises:
            IntegrityError: it is missing, no regular file, or of another size.
        """
        with self._open_sized(descriptor) as stream:
            yield verifying(stream, descriptor)

    @contextmanager
    def open_blob_unchecked(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        """Open a blob as a stream of the right size whose digest is not checked.

        Raises:
            IntegrityError: it is missing, no regular file, or of another size.
        """
        with self._open_sized(descriptor) as stream:
            yield sized(stream, descriptor)

    def open_blob_file(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        """Open the file that holds a blob, for callers that need its descriptor. Its content is not checked.

        Raises:
            IntegrityError: it is missing, no regular file, or of another size.
        """
        return self._open_sized(descriptor)

    @contextmanager
    def _open_sized(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        path = self.blob_path(descriptor.digest)
        with open_regular(path, what=f"blob `{descriptor.digest}`") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != descriptor.size:
                raise DamagedBlob(
                    f"blob `{descriptor.digest}` has {size} bytes, expected {descriptor.size}",
                    digest=descriptor.digest,
                    path=str(path),
                )
            yield stream

    def read_bytes(self, descriptor: Descriptor, *, limit_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """Return a small blob whole, verified.

        Raises:
            IntegrityError: it is not the blob, or is declared larger than the limit.
        """
        if descriptor.size > limit_bytes:
            raise IntegrityError(
                f"blob `{descriptor.digest}` has {descriptor.size} bytes, more than the limit of {limit_bytes} for "
                "documents",
                digest=descriptor.digest,
            )
        with self.open_blob(descriptor) as stream:
            return stream.read()

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        """Return a manifest's or index's original bytes, verified."""
        return Stored(descriptor, self.read_bytes(descriptor))

    def find_manifest(self, digest: str) -> Stored | None:
        """Return a manifest or index that a layout holds though its index.json need not name it; None if it does not.

        Its media type is the one that it states. One that is damaged or too large counts as not there.
        """
        path = self.blob_path(digest)
        try:
            data = self._read_file(path, limit_bytes=MAX_MANIFEST_BYTES)
            document = parse_json(data)
        except (AirferryError, ValueError):
            return None
        if digest_of(data) != digest or not isinstance(document, dict):
            return None
        media_type = document.get("mediaType") or (IMAGE_INDEX if "manifests" in document else IMAGE_MANIFEST)
        if media_type not in (*INDEX_TYPES, *MANIFEST_TYPES):
            return None
        return Stored(Descriptor(media_type=media_type, digest=digest, size=len(data)), data)

    def read_index_bytes(self) -> bytes:
        """Return the bytes of index.json. Their digest is the root of a bundle."""
        return self._read_file(self.path / INDEX_FILE, limit_bytes=MAX_INDEX_BYTES)

    def read_index(self) -> Index:
        """Return the view of index.json.

        Raises:
            IntegrityError: it is missing, too large or no index.
        """
        return parse_index(self.read_index_bytes(), what=f"`{self.path / INDEX_FILE}`")

    def _listing(self) -> IndexListing:
        return parse_listing(self.read_index_bytes(), what=f"`{self.path / INDEX_FILE}`")

    def root(self) -> str:
        """Return the digest of index.json."""
        return digest_of(self.read_index_bytes())

    def resolve(self, reference: str) -> Descriptor:
        """Return the descriptor that a name or digest stands for; an empty name stands for an only image.

        Raises:
            ConfigurationError: nothing, or more than one thing, has that name.
        """
        return find_entry(self._listing(), reference, where=f"layout `{self.path}`")

    def find_name(self, name: str) -> Descriptor | None:
        """Return the entry that one of cosign's tags stands for; None if there is none."""
        return find_signature(self._listing(), name)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the top-level descriptors of artifacts whose subject is the digest, sorted by digest.

        Both marks are understood: the annotation `io.containerd.manifest.subject`, and the manifest's own field.
        """
        state = files.change_mark(self.path / INDEX_FILE)
        known = self._referrers
        if known is None or known[0] != state:
            found = find_referrers(self, self._listing(), strange=self._strange)
            known = self._referrers = (state, found)
        return list(known[1].get(digest, ()))

    def unknown_referrers(self) -> list[str]:
        """Return which top-level entries could not be read while referrers were looked for."""
        return strange_entries(self._strange, where=f"layout `{self.path}`")

    def stored_digests(self) -> set[str]:
        """Return the digests of all regular files in the blob folder whose names are digests."""
        with os.scandir(self._blobs) as entries:
            digests = {"sha256:" + entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        return {digest for digest in digests if is_digest(digest)}

    # -- writing ------------------------------------------------------------------------------------------------

    def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        """Store a blob from a stream, verified, atomically. A blob that is there is not read again."""
        if self.has_blob(descriptor):
            return
        reader = verifying(stream, descriptor)
        # hashed by the reader alone: the last block is not handed out before all of it is right
        with self._new_writer(descriptor.digest) as writer:
            for block in blocks(reader):
                writer.write(block)
            if descriptor.size == 0:
                reader.read(1)
            writer.commit()

    def take_blob(self, offer: BlobOffer, *, absent: bool = False) -> Action:
        """Store a blob unless it is there: as a link, by going on where an earlier process ended, or from its start.

        Raises:
            IntegrityError: it is not what its descriptor says.
        """
        if not absent and self.has_blob(offer.descriptor):
            return "present"
        if offer.file is not None:
            self.link_blob(offer.file, offer.descriptor, verified=offer.verified)
            return "link"
        # small blobs are quicker fetched again than kept and hashed again
        resumable = offer.source.reads_ranges and offer.descriptor.size >= RESUMABLE_FROM_BYTES
        if resumable and fetch_blob(offer.source, self, offer.descriptor, on_block=offer.counter()):
            return "send"
        return super().take_blob(offer, absent=True)

    def lacks_manifest(self, stored: Stored) -> str:
        """Return what is missing of a manifest: its bytes, or its entry as a referrer; empty if nothing is.

        Raises:
            IntegrityError: what is there is not the manifest.
        """
        digest = stored.descriptor.digest
        if not self.has_blob(stored.descriptor):
            return f"manifest `{digest}`"
        self.read_manifest(stored.descriptor)
        subject = stored.subject
        if subject is not None and all(entry.digest != digest for entry in self.referrers(subject)):
            return f"`{digest}` among the referrers of `{subject}`"
        return ""

    def put_bytes(self, data: bytes, media_type: str, **fields: Any) -> Descriptor:
        """Store a small blob that is at hand and return its descriptor with the given fields."""
        descriptor = descriptor_of(data, media_type, **fields)
        self.put_blob(descriptor, io.BytesIO(data))
        return descriptor

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        """Store a manifest's or index's bytes; with a reference, index.json names it, in place of an older one.

        A manifest with a subject is entered in index.json by its digest, so that it is found as a referrer.

        Raises:
            IntegrityError: the bytes are not what the descriptor says.
        """
        self.put_blob(stored.descriptor, io.BytesIO(stored.data))
        entry = as_referrer(stored)
        if reference is not None:
            entry = named(entry or stored.descriptor, reference)
        if entry is None:
            return
        with self._lock:
            old = self._listing()
            self.write_index(entered(old.manifests, entry), strange=old.kept)

    def new_blob(self) -> AbstractContextManager[BlobWriter]:
        """Give a writer for a blob whose digest is not known yet; it must `commit` within the block.

        Raises:
            HostError: the disk is full, or the folder not writable.
        """
        return self._new_writer(None)

    @contextmanager
    def _new_writer(self, digest: str | None) -> Iterator[BlobWriter]:
        self._ensure_writable()
        writer = BlobWriter(self._blobs, digest=digest)
        try:
            yield writer
        finally:
            writer.discard()

    def link_blob(self, source_path: Path, descriptor: Descriptor, *, verified: bool = False) -> None:
        """Store a blob that is a file on this machine, verified; as a hard link where the file systems allow it.

        `verified` says that this process has just read or written the very file and found it to be the blob.

        Raises:
            IntegrityError: the file is not the blob.
        """
        if self.has_blob(descriptor):
            return
        self._ensure_writable()
        if not verified:
            with open_regular(source_path, what=f"`{source_path}`") as raw:
                for _block in blocks(verifying(raw, descriptor, what=f"`{source_path}`")):
                    pass
        if source_path.lstat().st_size != descriptor.size:
            raise IntegrityError(f"`{source_path}` changed while it was read")
        with files.scratch_directory(self._blobs) as scratch:
            temporary = scratch / "blob"
            try:
                os.link(source_path, temporary, follow_symlinks=False)
            except OSError as error:
                if error.errno not in files.LINKS_REFUSED:
                    raise files.translate_os_error(error, doing="link", path=source_path) from error
                with source_path.open("rb") as stream:
                    self.put_blob(descriptor, stream)
                return
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            files.publish(temporary, self.blob_path(descriptor.digest))

    def write_index(self, entries: Iterable[Descriptor], *, strange: Sequence[Any] = ()) -> bytes:
        """Replace index.json, durably, with these descriptors, sorted, and return its bytes.

        `strange` are entries of others that are no descriptors: they stay as they were, behind the rest.
        """
        self._ensure_writable()
        data = index_bytes(entries, strange=strange)
        if len(data) > MAX_INDEX_BYTES:
            raise IntegrityError(f"index.json would have {len(data)} bytes, more than the limit of {MAX_INDEX_BYTES}")
        # entries of others come along as they are, with fields that are unknown here
        expect_one_meaning(data, IMAGE_INDEX, what=f"`{self.path / INDEX_FILE}`")
        files.write_bytes(self.path / INDEX_FILE, data)
        self._referrers = None
        return data

    def remove_blob(self, digest: str) -> None:
        """Remove a blob that nothing names any more. Idempotent."""
        self._ensure_writable()
        self.blob_path(digest).unlink(missing_ok=True)

    def remove_stale_temporaries(self) -> int:
        """Remove what killed writers left, under the lock that all writers of this layout hold; return the count."""
        return files.remove_stale_temporaries(self._blobs) + files.remove_stale_temporaries(self.path)

    def _ensure_writable(self) -> None:
        if self.read_only:
            raise HostError(f"layout `{self.path}` is open for reading only", path=str(self.path))

    @staticmethod
    def _read_file(path: Path, *, limit_bytes: int) -> bytes:
        with open_regular(path, what=f"`{path}`") as stream:
            data = stream.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise IntegrityError(f"`{path}` is larger than the limit of {limit_bytes} bytes", path=str(path))
        return data


class UnlistedLayout(LayoutStore):
    """A layout in which a copy only puts blobs and manifests, while index.json stays what it is until it is sealed."""

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        """Store a manifest's or index's bytes.

        Raises:
            IntegrityError: the bytes are not what the descriptor says.
        """
        self.put_blob(stored.descriptor, io.BytesIO(stored.data))


@contextmanager
def open_regular(path: Path, *, what: str) -> Iterator[IO[bytes]]:
    """Open a regular file for reading; a link, a FIFO or a device is refused without touching it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingContent(f"{what} is missing", path=str(path)) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EISDIR):
            raise IntegrityError(f"{what} is not a regular file", path=str(path)) from error
        raise files.translate_os_error(error, doing="read", path=path) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise IntegrityError(f"{what} is not a regular file", path=str(path))
    with os.fdopen(handle, "rb", buffering=0) as stream:
        yield stream
