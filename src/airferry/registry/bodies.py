"""Blobs, and parts of them, as bodies of requests: at the rate that is allowed, never in memory as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from airferry.errors import IntegrityError
from airferry.host.parsing import parse_count
from airferry.oci.ports import BLOCK_BYTES, OpenStream
from airferry.oci.streams import FileSlice, SizedReader
from airferry.registry.connections import Answer
from airferry.registry.failures import SESSION_HINT, LostSession
from airferry.registry.governor import RateLimit

_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")


class WholeBody:
    """A whole blob; each iteration reopens the source."""

    def __init__(self, source: OpenStream, size: int, rate: RateLimit) -> None:
        """Send what `source` opens."""
        self._source = source
        self._size = size
        self._rate = rate

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        with self._source() as stream:
            yield from _blocks(stream, self._size, self._rate)

    def slices(self) -> Iterator[bytes | FileSlice]:
        """Yield the blob, in slices of its file where nothing looks at it."""
        with self._source() as stream:
            yield from _slices(stream, self._size, self._rate)


class PartBody:
    """The next bytes of an open stream. They can be sent once."""

    def __init__(self, stream: IO[bytes], size: int, rate: RateLimit) -> None:
        """Send the next `size` bytes."""
        self._stream = stream
        self._size = size
        self._rate = rate
        self._used = False

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        self._use()
        yield from _blocks(self._stream, self._size, self._rate)

    def slices(self) -> Iterator[bytes | FileSlice]:
        """Yield the part, in slices of its file where nothing looks at it."""
        self._use()
        yield from _slices(self._stream, self._size, self._rate)

    def _use(self) -> None:
        if self._used:
            raise LostSession("a chunk was asked for twice", hint=SESSION_HINT, status=401)
        self._used = True


def _blocks(stream: IO[bytes], size: int, rate: RateLimit) -> Iterator[bytes]:
    while size:
        block = stream.read(min(BLOCK_BYTES, size))
        if not block:
            raise IntegrityError(
                "a blob ended before its declared size",
                hint="the source is damaged, or changed while it was read: verify it, then run the command again",
            )
        size -= len(block)
        rate.take(len(block))
        yield block


def _slices(stream: IO[bytes], size: int, rate: RateLimit) -> Iterator[bytes | FileSlice]:
    given: object = stream
    if not isinstance(given, SizedReader):
        yield from _blocks(stream, size, rate)
        return
    for block in given.slices(size):
        rate.take(len(block))
        yield block


def acknowledged_bytes(response: Answer) -> int | None:
    """Return how many bytes a session holds by its `Range` header, or None if it does not say."""
    found = _RANGE.fullmatch(response.headers.get("Range", "").strip())
    if found is None:
        return None
    last = parse_count(found.group(1))
    if last is None:
        return None
    # `0-0` says one byte by the letter, and "nothing yet" by the habit of distribution; no chunk of ours has one byte
    return last + 1 if last else 0
