"""The two narrow protocols that everything is a copy between: a Source and a Sink of blobs and manifests.

A layout folder, an archive, a set of volumes and a registry repository each are one or both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Protocol, runtime_checkable

from airferry.oci.documents import Descriptor

BLOCK_BYTES = 1024 * 1024

OpenStream = Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest or index: its descriptor and its original bytes, which match it."""

    descriptor: Descriptor
    data: bytes


class Source(Protocol):
    """Where blobs and manifests come from. Everything that is returned has been verified or verifies itself."""

    def resolve(self, reference: str) -> Descriptor:
        """Return the descriptor that a tag, name or digest stands for."""
        ...

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        """Return a manifest's or index's bytes after checking size and digest."""
        ...

    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        """Open a blob for reading as a stream that raises `IntegrityError` at its end if it is not the blob."""
        ...

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the descriptors of the artifacts whose subject is the digest, sorted by digest."""
        ...


class Sink(Protocol):
    """Where blobs and manifests go. Puts are idempotent, verified, and never leave something half written."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether the sink holds the blob already."""
        ...

    def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        """Store a blob from a stream, checked against digest and size."""
        ...

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        """Store a manifest's or index's bytes, and let `reference`, if given, stand for it."""
        ...


@runtime_checkable
class ReopeningSink(Protocol):
    """A sink over a connection that may break: it opens a blob again, rather than spool it, to send it again."""

    def bring_blob(
        self, descriptor: Descriptor, open_stream: OpenStream, *, open_unchecked: OpenStream | None = None
    ) -> bool:
        """Store a blob unless the sink holds it, and tell whether it was sent.

        The source can be opened again; unchecked only if the sink hashes what arrives.
        """
        ...


@runtime_checkable
class UncheckedSource(Protocol):
    """A source on this machine whose blobs can be read without being hashed, for a sink that hashes them itself."""

    def open_blob_unchecked(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        """Open a blob of the right size for reading."""
        ...


def blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield a stream's content in blocks of 1 MiB."""
    while block := stream.read(BLOCK_BYTES):
        yield block
