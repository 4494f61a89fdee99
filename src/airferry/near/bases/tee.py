"""A source of bases whose layers are examined while they are fetched.

Bytes are written, checked, inflated, examined and recompressed in one pass.

Learning never gets in the way of fetching. Where it fails, or cannot see a layer from its first byte on, the layer is
read again from the cache, and what is wrong with it is said then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import IO, cast

from airferry.errors import AirferryError
from airferry.host.threads import Cancelled, Consumer
from airferry.oci.documents import Descriptor
from airferry.oci.ports import Source, Stored
from airferry.oci.resume import RangedSource
from airferry.oci.streams import BlockStream

Learn = Callable[[Descriptor, str, IO[bytes]], object]


def learning(inner: Source, diff_ids: Mapping[str, str], learn: Learn) -> Source:
    """Return a source that lets `learn` read each layer while another reads it.

    `diff_ids` are those of the layers, by digest. `learn` checks for itself that it was given the whole layer.
    """
    if isinstance(inner, RangedSource):
        return _LearntRangedSource(inner, diff_ids, learn)
    return _LearntSource(inner, diff_ids, learn)


class _LearntSource:
    def __init__(self, inner: Source, diff_ids: Mapping[str, str], learn: Learn) -> None:
        self._inner = inner
        self._diff_ids = diff_ids
        self._learn = learn

    def resolve(self, reference: str) -> Descriptor:
        return self._inner.resolve(reference)

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        return self._inner.read_manifest(descriptor)

    def referrers(self, digest: str) -> list[Descriptor]:
        return self._inner.referrers(digest)

    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        return self._learnt(descriptor, self._inner.open_blob(descriptor))

    def _learnt(
        self, descriptor: Descriptor, opened: AbstractContextManager[IO[bytes]]
    ) -> AbstractContextManager[IO[bytes]]:
        diff_id = self._diff_ids.get(descriptor.digest)
        return opened if diff_id is None else self._shared(descriptor, diff_id, opened)

    @contextmanager
    def _shared(
        self, descriptor: Descriptor, diff_id: str, opened: AbstractContextManager[IO[bytes]]
    ) -> Iterator[IO[bytes]]:
        with opened as stream, Consumer(partial(self._take_in, descriptor, diff_id)) as consumer:
            shared = _SharedStream(stream, consumer)
            yield cast(IO[bytes], shared)
            if shared.passed == descriptor.size and not shared.alone:
                with suppress(AirferryError):
                    consumer.result()

    def _take_in(self, descriptor: Descriptor, diff_id: str, blocks: Iterator[bytes]) -> None:
        self._learn(descriptor, diff_id, cast(IO[bytes], BlockStream(blocks)))


class _LearntRangedSource(_LearntSource):
    def open_blob_at(self, descriptor: Descriptor, offset: int) -> AbstractContextManager[IO[bytes]]:
        assert isinstance(self._inner, RangedSource)
        opened = self._inner.open_blob_at(descriptor, offset)
        return self._learnt(descriptor, opened) if offset == 0 else opened


class _SharedStream:
    """A stream whose blocks another gets as well, as long as it takes them."""

    def __init__(self, stream: IO[bytes], feed: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._feed = feed
        self.passed = 0
        self.alone = False

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self.passed += len(block)
        if block and not self.alone:
            try:
                self._feed(block)
            except (AirferryError, Cancelled):
                self.alone = True
        return block
