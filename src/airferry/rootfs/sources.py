"""Looking at the Python sources of a layer, which takes longer than all else in it: another process looks at many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from airferry.errors import IntegrityError
from airferry.host.workers.work import Running, Work, WorkContext, Workers
from airferry.oci.streams import BlockStream
from airferry.rootfs.files import MAX_KEPT_BYTES, FileFacts, source_facts

LENGTH_BYTES = 4
# as long as there are no more, starting a process would take longer
INLINE_BYTES = 8 << 20
SOURCE_BATCH_BYTES = 256 << 10


class SourceReader:
    """Takes the sources of a layer in their order, each with a number, and gives their facts once all were taken."""

    def __init__(self, workers: Workers, *, what: str) -> None:
        """`workers` look at many, `what` is the layer, for errors."""
        self._workers = workers
        self._what = what
        self._numbers: list[int] = []
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._running: Running | None = None
        self._open = ExitStack()

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def take(self, number: int, source: bytes) -> None:
        """Take a source."""
        self._numbers.append(number)
        self._batch += (len(source).to_bytes(LENGTH_BYTES, "little"), source)
        self._batch_bytes += len(source)
        if self._batch_bytes < (INLINE_BYTES if self._running is None else SOURCE_BATCH_BYTES):
            return
        if self._running is None:
            work = Work(f"{__name__}:{look.__name__}", {"what": self._what}, what=self._what, fed=True)
            self._running = self._open.enter_context(self._workers.begin(work))
        self._hand_over(self._running)

    def results(self) -> Iterator[tuple[int, FileFacts]]:
        """Yield number and facts of each source of which there is something to know.

        Raises:
            IntegrityError: there is more to remember than can be kept.
        """
        if self._running is None:
            found = scan_sources(self._batch[1::2], what=self._what)
        else:
            self._hand_over(self._running)
            found = ((position, FileFacts.from_row(row)) for position, row in self._running.result())
        for position, facts in found:
            yield self._numbers[position], facts

    def _hand_over(self, running: Running) -> None:
        running.write(b"".join(self._batch))
        self._batch.clear()
        self._batch_bytes = 0


def look(context: WorkContext, *, what: str) -> list[tuple[int, list[Any]]]:
    """Return positions and facts of sources that come one behind the other, each with its length before it."""
    assert context.blocks is not None
    stream = BlockStream(context.blocks)
    return [(position, facts.to_row()) for position, facts in scan_sources(_framed(stream), what=what)]


def scan_sources(sources: Iterable[bytes], *, what: str) -> Iterator[tuple[int, FileFacts]]:
    """Yield position and facts of each source of which there is something to know.

    Raises:
        IntegrityError: there is more to remember than can be kept.
    """
    kept_bytes = 0
    for position, source in enumerate(sources):
        facts = source_facts(source)
        if facts is not None:
            kept_bytes += len(facts.imports) + len(facts.content or b"")
            if kept_bytes > MAX_KEPT_BYTES:
                raise IntegrityError(f"{what} has more than {MAX_KEPT_BYTES} bytes of imports in Python sources")
            yield position, facts


def _framed(stream: BlockStream) -> Iterator[bytes]:
    # sources are handed over whole, but in frames that the way may cut
    while head := _exactly(stream, LENGTH_BYTES):
        yield _exactly(stream, int.from_bytes(head, "little"))


def _exactly(stream: BlockStream, size: int) -> bytes:
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
