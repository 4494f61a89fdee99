"""A source of bases whose layers are learned while they are fetched: written, checked, inflated, inspected and
recompressed in one pass.

Learning never gets in the way of fetching. Where it fails, or cannot see a layer from its first byte on, the layer is
read again from the cache, and its faults are reported then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol, cast

from airferry.errors import AirferryError
from airferry.host.threads import Cancelled
from airferry.oci.documents import Descriptor
from airferry.oci.ports import Source, WrappedSource
from airferry.oci.streams import VerifyingReader


class Learning(Protocol):
    """A layer that is read while it is fetched. `feed`, if it is there, takes its bytes, which are hashed already."""

    feed: Callable[[bytes], None] | None

    def result(self) -> object:
        """Wait until all of it is read, once it was fetched whole.

        Raises:
            AirferryError: something is wrong with it.
        """


class Learner(Protocol):
    """What reads layers while they pass."""

    @property
    def at_once(self) -> int:
        """How many layers are worth being read at a time."""

    def learning(
        self, descriptor: Descriptor, diff_id: str, file: Path | None
    ) -> AbstractContextManager[Learning | None]:
        """Begin to read a layer, from the file that it comes from if there is one; None where all of it is known."""


def learning(inner: Source, diff_ids: Mapping[str, str], learn: Learner) -> Source:
    """Return a source that lets `learn` read each layer while another reads it.

    `diff_ids` are those of the layers, by digest. What `learn` gets is hashed already, and once: it ends only where the
    layer was right to its last byte.
    """
    return _LearningSource(inner, diff_ids, learn)


class _LearningSource(WrappedSource):
    def __init__(self, inner: Source, diff_ids: Mapping[str, str], learn: Learner) -> None:
        super().__init__(inner)
        # every layer is to come by here, and hashed
        self.reads_unchecked = False
        self._diff_ids = diff_ids
        self._learn = learn

    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        diff_id = self._diff_ids.get(descriptor.digest)
        if diff_id is None:
            return self.inner.open_blob(descriptor)
        ranged = self.inner.reads_ranges
        # not hashed there, as it is hashed here
        raw = self.inner.open_blob_at(descriptor, 0) if ranged else self.inner.open_blob_unchecked(descriptor)
        return self._shared(descriptor, diff_id, raw)

    def open_blob_at(self, descriptor: Descriptor, offset: int) -> AbstractContextManager[IO[bytes]]:
        # a reader that asks for the rest has the beginning already, and `learn` cannot do without it
        return self.inner.open_blob_at(descriptor, offset) if offset else self.open_blob(descriptor)

    def open_blob_unchecked(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        return self.open_blob(descriptor)

    def blob_file(self, descriptor: Descriptor) -> Path | None:
        return None

    @contextmanager
    def _shared(
        self, descriptor: Descriptor, diff_id: str, opened: AbstractContextManager[IO[bytes]]
    ) -> Iterator[IO[bytes]]:
        with opened as stream, ExitStack() as stack:
            reading: Learning | None = None
            # a fault of the layer is reported when it is read again; the copy itself goes well
            with suppress(AirferryError):
                file = self.inner.blob_file(descriptor)
                reading = stack.enter_context(self._learn.learning(descriptor, diff_id, file))
            shared = SharedReader(stream, descriptor, None if reading is None else reading.feed)
            yield cast(IO[bytes], shared)
            if reading is not None and shared.whole:
                with suppress(AirferryError):
                    reading.result()


class SharedReader(VerifyingReader):
    """A verified stream whose blocks another gets as well, as long as it takes them."""

    def __init__(self, stream: IO[bytes], descriptor: Descriptor, feed: Callable[[bytes], None] | None) -> None:
        super().__init__(stream, descriptor)
        self._feed = feed
        self._passed = 0
        self._gave_up = False

    @property
    def whole(self) -> bool:
        """Whether every byte passed, and the other did not fail before."""
        return self._passed == self.descriptor.size and not self._gave_up

    def _hand_on(self, block: bytes) -> None:
        self._passed += len(block)
        if self._feed is not None:
            # waits while the other is behind, so that no more than a few blocks are ever in memory
            try:
                self._feed(block)
            except (AirferryError, Cancelled):
                self._feed = None
                self._gave_up = True
