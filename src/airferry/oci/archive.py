"""OCI archives: an image layout in a tar, written for the loaders of others and read in place.

An archive that is written here also has the `manifest.json` of Docker's loader. Nothing is ever unpacked.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from airferry.errors import HostError, IntegrityError
from airferry.events import Emit, silent
from airferry.host import files
from airferry.host.canonical import canonical_json
from airferry.host.parsing import Malformed, parse_json
from airferry.oci.closure import Shipment
from airferry.oci.copy import CopyOptions, transfer
from airferry.oci.digest import digest_hex
from airferry.oci.documents import (
    IMAGE_INDEX,
    INDEX_TYPES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
)
from airferry.oci.entries import (
    Referrers,
    as_referrer,
    find_entry,
    find_referrers,
    find_signature,
    named,
    parse_listing,
    strange_entries,
)
from airferry.oci.layout import INDEX_FILE, LAYOUT_BYTES, LAYOUT_FILE, LAYOUT_VERSION, MAX_INDEX_BYTES
from airferry.oci.platform import Platform
from airferry.oci.ports import MissingContent, Sink, Source, Stored, blocks
from airferry.oci.streams import verifying
from airferry.oci.tar import DIRECTORY, END_OF_ARCHIVE, TarEntry, TarReader, entry_blocks
from airferry.wording import shell_word

DOCKER_FILE = "manifest.json"
MAX_ARCHIVE_ENTRIES = 50_000
UNPACKED_BY = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\xfd7zXZ\x00": "unxz",
    b"BZh": "bunzip2",
    b"\x04\x22\x4d\x18": "unlz4",
}
MAX_MAGIC_BYTES = max(map(len, UNPACKED_BY))
# skopeo as an ordinary user fails (1.9: chown) on folders that the archive only implies
BLOB_FOLDERS = ("blobs/", "blobs/sha256/")
PREFERRED_FOR_DOCKER = Platform("linux", "amd64")


@dataclass(frozen=True, slots=True)
class WrittenArchive:
    """An archive that was written: its path, size, and the digest of the whole file."""

    path: Path
    size_bytes: int
    digest: str


def write_oci_archive(
    source: Source,
    shipments: Sequence[Shipment],
    path: Path,
    *,
    docker_names: Sequence[str] | None = None,
    emit: Emit = silent,
) -> WrittenArchive:
    """Write an image or an image index as one tar that `podman load`, `docker load` and `ctr image import` read.

    The first shipment is the image, the others are what refers to it, as `image_shipments` lists them.

    The order suits readers of streams: `oci-layout`, `index.json`, Docker's `manifest.json`, manifests, configs,
    layers. Docker's file names one platform, linux/amd64 if there is one, under `docker_names` (by default the
    image's reference). The same image gives the same bytes. Atomic; every blob is verified.

    Raises:
        IntegrityError: a blob is not what its descriptor says.
    """
    if docker_names is None:
        docker_names = [item.reference for item in shipments[:1] if item.reference is not None]
    with files.atomic_file(path) as raw:
        sink = ArchiveSink(raw, shipments, docker_names=docker_names)
        # a tar is written by one hand, and its order is that of its readers
        options = CopyOptions(jobs=1, task=f"archive {path.name}", order=sink.configs_first, emit=emit)
        transfer(shipments, source, sink, options)
        size_bytes, digest = sink.finish()
    return WrittenArchive(path, size_bytes, digest)


class ArchiveSink(Sink):
    """A Sink that writes an OCI archive into a stream, for shipments that are known beforehand.

    Readers of streams want `index.json` and manifests first, so these are written at once; each blob is written when
    it comes. Nothing but the caller's renaming of the finished file lets the names stand for something.
    """

    def __init__(self, stream: IO[bytes], shipments: Sequence[Shipment], *, docker_names: Sequence[str]) -> None:
        """Write all documents. The first shipment is the image that Docker's file describes."""
        entries: list[Descriptor] = []
        self._manifests: dict[str, Stored] = {}
        self._missing: dict[str, Descriptor] = {}
        for item in shipments:
            top = item.closure.top
            entry = named(_bare(top.descriptor), item.reference) if item.reference is not None else as_referrer(top)
            entries += [entry] if entry is not None else []
            self._manifests |= {one.descriptor.digest: one for one in reversed(item.closure.manifests)}
            self._missing = {**item.closure.blobs, **self._missing}
        self._wanted = frozenset(self._missing)
        self._configs = {
            one.manifest.config.digest
            for one in self._manifests.values()
            if one.descriptor.media_type not in INDEX_TYPES
        }
        index = Index(schema_version=2, media_type=IMAGE_INDEX, manifests=entries)
        self._lock = threading.Lock()
        self._tar = _TarWriter(stream)
        self._tar.add_bytes(LAYOUT_FILE, LAYOUT_BYTES)
        self._tar.add_bytes(INDEX_FILE, canonical_json(index))
        self._tar.add_bytes(DOCKER_FILE, _docker_manifest(shipments[0].closure.top, self._manifests, docker_names))
        for folder in BLOB_FOLDERS:
            self._tar.add_folder(folder)
        for stored in self._manifests.values():
            self._tar.add_bytes(_blob_name(stored.descriptor), stored.data)

    def configs_first(self, blobs: Iterable[Descriptor]) -> Iterable[Descriptor]:
        """Return blobs in the order of the archive: what says how to read the others, then these, bottom first."""
        return sorted(blobs, key=lambda blob: blob.digest not in self._configs)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether the blob was written already."""
        return descriptor.digest in self._wanted and descriptor.digest not in self._missing

    def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        """Write a blob of one of the shipments, unless it was written. After an error the archive is worth nothing.

        Raises:
            IntegrityError: the stream is not the blob, or no shipment has it.
        """
        with self._lock:
            if self.has_blob(descriptor):
                return
            if descriptor.digest not in self._wanted:
                raise IntegrityError(f"blob `{descriptor.digest}` is not a part of what the archive is to hold")
            self._tar.add(_blob_name(descriptor), descriptor.size, verifying(stream, descriptor))
            del self._missing[descriptor.digest]

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        """Check that a manifest was written, as all of them are in the beginning.

        Raises:
            IntegrityError: it was not.
        """
        if lack := self.lacks_manifest(stored):
            raise IntegrityError(f"{lack} is not a part of what the archive is to hold")

    def lacks_manifest(self, stored: Stored) -> str:
        """Return what is missing of a manifest: all of it, or nothing.

        Raises:
            IntegrityError: other bytes were written under its digest.
        """
        held = self._manifests.get(stored.descriptor.digest)
        if held is not None and held.data != stored.data:
            raise IntegrityError(f"these bytes are not manifest `{stored.descriptor.digest}`")
        return "" if held is not None else f"manifest `{stored.descriptor.digest}`"

    def finish(self) -> tuple[int, str]:
        """End the archive, and return its size and the digest of all of it.

        Raises:
            IntegrityError: a blob did not come.
        """
        if self._missing:
            raise IntegrityError(f"blob `{next(iter(self._missing))}` did not come, and the archive needs it")
        self._tar.finish()
        return self._tar.size_bytes, self._tar.digest()


def _bare(descriptor: Descriptor) -> Descriptor:
    return Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        artifact_type=descriptor.artifact_type,
    )


def _docker_manifest(top: Stored, manifests: dict[str, Stored], names: Sequence[str]) -> bytes:
    chosen = top
    if top.descriptor.media_type in INDEX_TYPES:
        children = [child for child in top.index.manifests if child.platform is not None and child.digest in manifests]
        children = [child for child in children if child.media_type not in INDEX_TYPES]
        if not children:
            return b"[]"
        preferred = (child for child in children if _prefers(child))
        chosen = manifests[next(preferred, children[0]).digest]
    manifest = chosen.manifest
    entry = {
        "Config": _blob_name(manifest.config),
        "Layers": [_blob_name(layer) for layer in manifest.layers],
        "RepoTags": list(names),
    }
    return canonical_json([entry])


def _prefers(child: Descriptor) -> bool:
    platform = child.platform_value()
    return platform is not None and PREFERRED_FOR_DOCKER.accepts(platform)


def _blob_name(descriptor: Descriptor) -> str:
    return f"blobs/sha256/{digest_hex(descriptor.digest)}"


class _TarWriter:
    """A tar without pax records, times, owners and links, hashed as it is written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def add_folder(self, name: str) -> None:
        self._add(TarEntry(name, type=DIRECTORY, mode=0o755), ())

    def add_bytes(self, name: str, data: bytes) -> None:
        self.add(name, len(data), io.BytesIO(data))

    def add(self, name: str, size: int, stream: IO[bytes]) -> None:
        self._add(TarEntry(name, size=size), blocks(stream))

    def finish(self) -> None:
        self._write(END_OF_ARCHIVE)

    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    def _add(self, entry: TarEntry, content: Iterable[bytes]) -> None:
        for block in entry_blocks(entry, content, large="gnu"):
            self._write(block)

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._stream.write(data)
        self.size_bytes += len(data)


class ArchiveSource(Source):
    """A Source over an OCI archive, read in place.

    Only `oci-layout`, `index.json` and blobs matter. Links, devices, names that leave the archive and names that
    come twice are refused, whatever they are for.
    """

    reads_unchecked = True

    def __init__(self, path: Path) -> None:
        """Open an archive and read its headers.

        Raises:
            HostError: the file cannot be read.
            IntegrityError: it is not an OCI archive.
        """
        self.path = path
        self._referrers: Referrers | None = None
        self._strange: dict[str, str] = {}
        self._entries = self._read_headers()
        version = self._layout_version()
        if version != LAYOUT_VERSION:
            raise IntegrityError(f"`{path}` has imageLayoutVersion `{version}`, expected `{LAYOUT_VERSION}`")
        self.index = parse_listing(self._read_file(INDEX_FILE, MAX_INDEX_BYTES), what=f"`{INDEX_FILE}` in `{path}`")

    def resolve(self, reference: str) -> Descriptor:
        """Return the descriptor that a name or digest stands for; an empty name stands for an only image.

        Raises:
            ConfigurationError: nothing, or more than one thing, has that name.
        """
        return find_entry(self.index, reference, where=f"archive `{self.path}`")

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        """Return a manifest's or index's original bytes, verified.

        Raises:
            IntegrityError: it is missing, too large or not what the descriptor says.
        """
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise IntegrityError(
                f"manifest `{descriptor.digest}` has {descriptor.size} bytes, more than the limit of "
                f"{MAX_MANIFEST_BYTES}"
            )
        with self.open_blob(descriptor) as stream:
            return Stored(descriptor, stream.read())

    @contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        """Open a blob as a stream that raises `IntegrityError` at its end if it is not the blob.

        Raises:
            IntegrityError: it is missing or of another size.
        """
        with self.open_blob_unchecked(descriptor) as stream:
            yield verifying(stream, descriptor)

    @contextmanager
    def open_blob_unchecked(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        """Open a blob as a stream of the right size whose digest is not checked.

        Raises:
            IntegrityError: it is missing or of another size.
        """
        place = self._entries.get(_blob_name(descriptor))
        if place is None:
            raise MissingContent(f"blob `{descriptor.digest}` is missing in `{self.path}`", digest=descriptor.digest)
        if place[1] != descriptor.size:
            raise IntegrityError(
                f"blob `{descriptor.digest}` in `{self.path}` has {place[1]} bytes, expected {descriptor.size}",
                digest=descriptor.digest,
            )
        with self._open() as raw:
            yield cast(IO[bytes], _Slice(raw, *place))

    def find_name(self, name: str) -> Descriptor | None:
        """Return the entry that one of cosign's tags stands for; None if there is none."""
        return find_signature(self.index, name)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the top-level descriptors of artifacts whose subject is the digest, sorted by digest."""
        # two threads may both look the first time: that costs time, and they see the same
        if self._referrers is None:
            self._referrers = find_referrers(self, self.index, strange=self._strange)
        return list(self._referrers.get(digest, ()))

    def unknown_referrers(self) -> list[str]:
        """Return which top-level entries could not be read while referrers were looked for."""
        return strange_entries(self._strange, where=f"archive `{self.path}`")

    def _open(self) -> IO[bytes]:
        try:
            # a pipe would be waited for, and cannot be read from several places
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise HostError(
                    f"`{self.path}` is not a regular file, and an archive is read from several places at once",
                    hint="name a file (`cat > FILE`), or unpack the archive into a folder and name that: `oci:DIR`",
                )
            return self.path.open("rb")
        except OSError as error:
            raise files.translate_os_error(error, doing="read", path=self.path) from error

    def _read_headers(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        with self._open() as stream:
            head = stream.read(MAX_MAGIC_BYTES)
            for magic, program in UNPACKED_BY.items():
                if head.startswith(magic):
                    raise IntegrityError(
                        f"`{self.path}` is compressed, so it cannot be read in place",
                        hint=f"run `{program} {shell_word(self.path)}`, and give the file that it makes",
                    )
            stream.seek(0)
            reader = TarReader(stream, what=f"`{self.path}`", seeks=True)
            for number, entry in enumerate(reader):
                if number >= MAX_ARCHIVE_ENTRIES:
                    raise IntegrityError(f"`{self.path}` has more than {MAX_ARCHIVE_ENTRIES} entries")
                if entry.type == DIRECTORY:
                    continue
                name = entry.path
                if not entry.is_regular:
                    raise IntegrityError(f"`{self.path}` has `{name}`, which is neither a file nor a folder")
                if entry.name.startswith("/") or ".." in name.split("/") or name in found:
                    raise IntegrityError(f"`{self.path}` has the unsafe or repeated name `{entry.name}`")
                found[name] = (reader.offset_bytes, entry.size)
        return found

    def _layout_version(self) -> object:
        data = self._read_file(LAYOUT_FILE, 4096)
        try:
            document = parse_json(data)
        except Malformed as error:
            raise IntegrityError(f"`{LAYOUT_FILE}` in `{self.path}` is not valid JSON") from error
        return document.get("imageLayoutVersion") if isinstance(document, dict) else None

    def _read_file(self, name: str, limit_bytes: int) -> bytes:
        offset, size = self._entries.get(name, (0, -1))
        if size < 0:
            raise IntegrityError(f"`{self.path}` is not an OCI archive: it has no `{name}`")
        if size > limit_bytes:
            raise IntegrityError(f"`{name}` in `{self.path}` has {size} bytes, more than the limit of {limit_bytes}")
        with self._open() as raw:
            raw.seek(offset)
            return raw.read(size)


class _Slice(io.RawIOBase):
    """A part of a file as a stream."""

    def __init__(self, stream: IO[bytes], offset: int, size: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = size
        stream.seek(offset, os.SEEK_SET)

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        block = self._stream.read(wanted)
        self._left -= len(block)
        return block
