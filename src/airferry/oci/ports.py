"""What everything is a copy between: a Source and a Sink of blobs and manifests.

A layout folder, an archive, a set of volumes and a registry's repository each are one or both. A new one writes the
abstract methods; the others have defaults, and are overridden where a medium can do better. `oci.copy` is the only code
that copies from one to the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from airferry.errors import AirferryError, ConfigurationError, IntegrityError
from airferry.oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    Manifest,
    ambiguities,
    parse_index,
    parse_manifest,
)
from airferry.oci.streams import sized, verifying

BLOCK_BYTES = 1024 * 1024

OpenStream = Callable[[], AbstractContextManager[IO[bytes]]]
# what became of a blob: it was there, its bytes were sent, another repository handed it over, a file was linked
Action = Literal["present", "send", "mount", "link"]
D = TypeVar("D")


@dataclass(frozen=True)
class Stored:
    """A manifest or index: its descriptor, its original bytes, which match it, and their view, parsed once.

    The bytes are what is stored and sent on. Code that holds a `Stored` reads and parses nothing again.
    """

    descriptor: Descriptor
    data: bytes = field(repr=False)
    _views: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def manifest(self) -> Manifest:
        """The view of a manifest.

        Raises:
            IntegrityError: the bytes are no manifest.
        """
        return self._view("manifest", parse_manifest)

    @property
    def index(self) -> Index:
        """The view of an index.

        Raises:
            IntegrityError: the bytes are no index.
        """
        return self._view("index", parse_index)

    @property
    def subject(self) -> str | None:
        """The digest of what this refers to, be it a manifest or an index; None where it refers to nothing.

        Raises:
            IntegrityError: the bytes are neither.
        """
        subject = None
        if self.descriptor.media_type in INDEX_TYPES:
            subject = self.index.subject
        elif self.descriptor.media_type in MANIFEST_TYPES:
            subject = self.manifest.subject
        return None if subject is None else subject.digest

    @property
    def ambiguities(self) -> tuple[str, ...]:
        """Why programs may read the bytes differently, as what the descriptor says they are; see `ambiguities`."""
        kind = f"ambiguities as {self.descriptor.media_type}"
        found: tuple[str, ...] | None = self._views.get(kind)
        if found is None:
            found = self._views[kind] = ambiguities(self.data, self.descriptor.media_type)
        return found

    def described_as(self, descriptor: Descriptor) -> Stored:
        """Return the same bytes and view under another descriptor of them, say one that has a name."""
        return self if descriptor == self.descriptor else Stored(descriptor, self.data, self._views)

    def _view(self, kind: str, parse: Callable[..., D]) -> D:
        # two threads may both parse it the first time: that costs time, and the views are equal
        if kind not in self._views:
            self._views[kind] = parse(self.data, what=f"{kind} `{self.descriptor.digest}`")
        view: D = self._views[kind]
        return view


class MissingContent(IntegrityError):
    """What a layout or an archive names is not in it. It holds nothing wrong in its place."""


class Source(ABC):
    """Where blobs and manifests come from. Everything that is returned has been verified or verifies itself."""

    # a blob can be read from the middle, so that it is worth keeping what came before a connection broke
    reads_ranges = False
    # blobs can be read without being hashed, for sinks that hash what arrives
    reads_unchecked = False

    @abstractmethod
    def resolve(self, reference: str) -> Descriptor:
        """Return the descriptor that a tag, name or digest stands for."""

    @abstractmethod
    def read_manifest(self, descriptor: Descriptor) -> Stored:
        """Return a manifest's or index's bytes after checking size and digest."""

    @abstractmethod
    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        """Open a blob for reading as a stream that raises `IntegrityError` at its end if it is not the blob."""

    @abstractmethod
    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the descriptors of the artifacts whose subject is the digest, sorted by digest."""

    def find_name(self, name: str) -> Descriptor | None:
        """Return the descriptor that a tag or name stands for; None if there is none, or if that cannot be known."""
        try:
            return self.resolve(name)
        except ConfigurationError:
            return None

    def unknown_referrers(self) -> list[str]:
        """Return what kept `referrers` and `find_name` from seeing all there may be, in words and once each."""
        return []

    def lacks(self, error: AirferryError) -> bool:
        """Tell whether an error means that this source does not have, or does not give, what it was asked for."""
        return isinstance(error, MissingContent)

    def open_blob_at(self, descriptor: Descriptor, offset: int) -> AbstractContextManager[IO[bytes]]:
        """Open a blob from an offset on; the reader checks the whole. Slow unless `reads_ranges`."""
        return _opened_behind(self, descriptor, offset)

    def open_blob_unchecked(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        """Open a blob of the right size for reading; where `reads_unchecked`, its digest is not checked."""
        return self.open_blob(descriptor)

    def blob_file(self, descriptor: Descriptor) -> Path | None:
        """Return the file on this machine that holds a blob and nothing else, if there is one. It may be damaged."""
        return None


class WrappedSource(Source):
    """A Source that forwards to another one; subclasses override what they add."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner
        self.reads_ranges = inner.reads_ranges
        self.reads_unchecked = inner.reads_unchecked

    def resolve(self, reference: str) -> Descriptor:
        """Return the descriptor that a tag, name or digest stands for."""
        return self.inner.resolve(reference)

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        """Return a manifest's or index's bytes after checking size and digest."""
        return self.inner.read_manifest(descriptor)

    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        """Open a blob for reading as a stream that raises `IntegrityError` at its end if it is not the blob."""
        return self.inner.open_blob(descriptor)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the descriptors of the artifacts whose subject is the digest, sorted by digest."""
        return self.inner.referrers(digest)

    def find_name(self, name: str) -> Descriptor | None:
        """Return the descriptor that a tag or name stands for; None if there is none."""
        return self.inner.find_name(name)

    def unknown_referrers(self) -> list[str]:
        """Return what kept `referrers` from seeing all there may be."""
        return self.inner.unknown_referrers()

    def lacks(self, error: AirferryError) -> bool:
        """Tell whether an error means that the source does not have, or does not give, what it was asked for."""
        return self.inner.lacks(error)

    def open_blob_at(self, descriptor: Descriptor, offset: int) -> AbstractContextManager[IO[bytes]]:
        """Open a blob from an offset on; the reader checks the whole."""
        return self.inner.open_blob_at(descriptor, offset)

    def open_blob_unchecked(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        """Open a blob of the right size for reading."""
        return self.inner.open_blob_unchecked(descriptor)

    def blob_file(self, descriptor: Descriptor) -> Path | None:
        """Return the file on this machine that holds a blob and nothing else, if there is one."""
        return self.inner.blob_file(descriptor)


class BlobOffer:
    """A blob that a source offers to a sink: each way to read it, counted as progress, no byte twice."""

    def __init__(
        self,
        descriptor: Descriptor,
        source: Source,
        *,
        advance: Callable[[int], None] | None = None,
        link: bool = False,
        verified: bool = False,
    ) -> None:
        """Nothing is opened yet. With `link` a sink may take the very file, which `verified` says was just checked."""
        self.descriptor = descriptor
        self.source = source
        self.file = source.blob_file(descriptor) if link else None
        self.verified = verified
        self._advance = advance
        self._counted = 0

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the blob from its start, verified. May be called again."""
        with self.source.open_blob(self.descriptor) as stream:
            yield verifying(stream, self.descriptor, on_block=self.counter())

    @property
    def unchecked(self) -> OpenStream | None:
        """What opens the blob from its start without hashing it, if the source offers that."""
        return self._open_unchecked if self.source.reads_unchecked else None

    def counter(self) -> Callable[[int], None]:
        """Return what counts the blocks of one passage from the start; what an earlier one counted counts once."""
        position = 0

        def passed(size: int) -> None:
            nonlocal position
            position += size
            self._count(position)

        return passed

    def settle(self) -> None:
        """Count what did not have to be read."""
        self._count(self.descriptor.size)

    @contextmanager
    def _open_unchecked(self) -> Iterator[IO[bytes]]:
        with self.source.open_blob_unchecked(self.descriptor) as stream:
            yield sized(stream, self.descriptor, on_block=self.counter())

    def _count(self, position: int) -> None:
        # also where nothing is new, as this is where a failure elsewhere ends the copy
        if self._advance is not None:
            self._advance(max(0, position - self._counted))
        self._counted = max(self._counted, position)


class Sink(ABC):
    """Where blobs and manifests go. Puts are idempotent, verified, and never leave something half written."""

    # what another sink of the same kind calls this one when it takes a blob over from here
    repository = ""

    @property
    def mounts(self) -> bool:
        """Whether `mount_blob` is worth a try."""
        return False

    @abstractmethod
    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether the sink holds the blob already."""

    @abstractmethod
    def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        """Store a blob from a stream, checked against digest and size."""

    @abstractmethod
    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        """Store a manifest's or index's bytes, and let `reference`, if given, stand for it."""

    @abstractmethod
    def lacks_manifest(self, stored: Stored) -> str:
        """Read a manifest or index back, and return what is missing, in words; empty if nothing is.

        A manifest that refers to another one is also missing where it is not found as a referrer.

        Raises:
            IntegrityError: the sink holds something else under its digest.
        """

    def take_blob(self, offer: BlobOffer, *, absent: bool = False) -> Action:
        """Store a blob in the best way that the offer allows, unless it is there; return what was done.

        `absent` says that the sink was just asked, and does not hold it.
        """
        if not absent and self.has_blob(offer.descriptor):
            return "present"
        with offer.open() as stream:
            self.put_blob(offer.descriptor, stream)
        return "send"

    def mount_blob(self, descriptor: Descriptor, repository: str) -> bool:
        """Take a blob over from another repository next to this one, no byte sent; False if that is not done here."""
        return False

    def reads_back(self, descriptor: Descriptor, on_block: Callable[[int], None]) -> bool:
        """Read a blob back, all of it, and check its digest; False where it is not there. Says how far it has come.

        Raises:
            IntegrityError: the sink holds something else under the digest.
        """
        return self.has_blob(descriptor)

    def gives_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob that the sink says it holds can be read from it."""
        return True

    def refuses(self, error: AirferryError, manifests: Sequence[Stored] = ()) -> bool:
        """Tell whether an error means that this sink refuses the thing itself, and would refuse it again.

        `manifests` are those of the thing, its top last, where all that it consists of is known to have been sent.
        """
        return False


@contextmanager
def _opened_behind(source: Source, descriptor: Descriptor, offset: int) -> Iterator[IO[bytes]]:
    with source.open_blob(descriptor) as stream:
        skip(stream, offset)
        yield stream


def blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield a stream's content in blocks of 1 MiB."""
    while block := stream.read(BLOCK_BYTES):
        yield block


def skip(stream: IO[bytes], count: int) -> None:
    """Read past the first bytes of a blob; a stream that verifies itself hashes them, as it hashes the whole.

    Raises:
        IntegrityError: there are fewer.
    """
    while count:
        block = stream.read(min(BLOCK_BYTES, count))
        if not block:
            raise IntegrityError("a blob ended before its declared size")
        count -= len(block)
