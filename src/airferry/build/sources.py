"""Looking at the Python sources of a layer, which takes longer than all else in it: another process looks at many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import IO

from airferry.build.file_facts import FileFacts, source_facts
from airferry.errors import IntegrityError
from airferry.host.offload import Offloaded

MAX_KEPT_BYTES = 256 << 20
LENGTH_BYTES = 4
# as long as there are no more, starting a process would take longer
INLINE_BYTES = 8 << 20
BATCH_BYTES = 256 << 10

Row = tuple[int, str | None, str, bool]


class SourceReader:
    """Takes the sources of a layer in their order, each with a number, and gives their facts once all were taken."""

    def __init__(self, *, what: str) -> None:
        """`what` is the layer, for errors."""
        self._what = what
        self._numbers: list[int] = []
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._process: Offloaded | None = None

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.__exit__(kind, error, trace)

    def take(self, number: int, source: bytes) -> None:
        """Take a source."""
        self._numbers.append(number)
        self._batch += (len(source).to_bytes(LENGTH_BYTES, "little"), source)
        self._batch_bytes += len(source)
        if self._batch_bytes < (INLINE_BYTES if self._process is None else BATCH_BYTES):
            return
        if self._process is None:
            self._process = Offloaded(f"{__name__}:{look.__name__}", {"what": self._what})
        self._hand_over(self._process)

    def results(self) -> Iterator[tuple[int, FileFacts]]:
        """Yield number and facts of each source of which there is something to know.

        Raises:
            IntegrityError: there is more to remember than can be kept.
        """
        if self._process is None:
            rows = look_at(iter(self._batch[1::2]), what=self._what)
        else:
            self._hand_over(self._process)
            rows = json.loads(self._process.result())
        for position, content, imports, is_dynamic in rows:
            text = None if content is None else content.encode("latin-1")
            yield self._numbers[position], FileFacts(text, imports.encode("latin-1"), is_dynamic)

    def _hand_over(self, process: Offloaded) -> None:
        process.write(b"".join(self._batch))
        self._batch.clear()
        self._batch_bytes = 0


def look(stream: IO[bytes], *, what: str) -> bytes:
    """Return the rows of sources that come one behind the other, each with its length before it, as JSON."""
    return json.dumps(look_at(_framed(stream), what=what), separators=(",", ":")).encode()


def look_at(sources: Iterator[bytes], *, what: str) -> list[Row]:
    """Return a row for each source with facts: its position, content if that is kept, statements, whether dynamic."""
    rows: list[Row] = []
    kept_bytes = 0
    for position, source in enumerate(sources):
        facts = source_facts(source)
        if facts is not None:
            content = None if facts.content is None else facts.content.decode("latin-1")
            rows.append((position, content, facts.imports.decode("latin-1"), facts.is_dynamic))
            kept_bytes += len(facts.imports) + len(content or "")
            if kept_bytes > MAX_KEPT_BYTES:
                raise IntegrityError(f"{what} has more than {MAX_KEPT_BYTES} bytes of imports in Python sources")
    return rows


def _framed(stream: IO[bytes]) -> Iterator[bytes]:
    while head := stream.read(LENGTH_BYTES):
        yield stream.read(int.from_bytes(head, "little"))
