"""Progress of long work: its stages, and what is counted from several threads and said in steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from airferry.events import Emit, Progress, StageFinished, StageStarted
from airferry.host import clock
from airferry.host.threads import Cancelled

MIB = 1 << 20
EVERY_S = 1.0
T = TypeVar("T")


def stage(name: str, emit: Emit, work: Callable[[], T]) -> T:
    """Do the work of a stage and return what comes of it. A stage that fails is not said to have finished."""
    begun_s = clock.monotonic_s()
    emit(StageStarted(name))
    result = work()
    emit(StageFinished(name, clock.monotonic_s() - begun_s))
    return result


class Meter:
    """Bytes of one task that are done. Safe to use from threads.

    An event is emitted after every `every_bytes`, and at the latest a second after the one before: a slow line shows
    that it moves. One is emitted when all is done. None says more than the total: bytes that are sent a second time
    count once.
    """

    def __init__(
        self,
        task: str,
        total_bytes: int,
        emit: Emit,
        *,
        every_bytes: int = 16 * MIB,
        cancelled: threading.Event | None = None,
        now: Callable[[], float] = clock.monotonic_s,
    ) -> None:
        """Nothing is emitted yet. Once `cancelled` is set, counting raises `Cancelled`, which ends a copy under way."""
        self._task = task
        self._total = total_bytes
        self._emit = emit
        self._every = every_bytes
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._done = 0
        self._said = 0
        self._now = now
        self._said_at_s = now()

    def advance(self, size_bytes: int) -> None:
        """Count bytes.

        Raises:
            Cancelled: another part of the same work failed.
        """
        if self._cancelled is not None and self._cancelled.is_set():
            raise Cancelled
        # emitted under the lock, so that no smaller number follows a larger one
        with self._lock:
            self._done = min(self._total, self._done + size_bytes)
            if self._done > self._said and (
                self._done - self._said >= self._every
                or self._done == self._total
                or self._now() - self._said_at_s >= EVERY_S
            ):
                self._say()

    def watch(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield blocks and count them."""
        for block in blocks:
            self.advance(len(block))
            yield block

    def finish(self) -> None:
        """Say that all is done, unless that was said. Idempotent."""
        with self._lock:
            if self._said < self._total or self._total == 0:
                self._done = self._total
                self._say()

    def _say(self) -> None:
        self._said = self._done
        self._said_at_s = self._now()
        self._emit(Progress(self._task, self._done, self._total))
