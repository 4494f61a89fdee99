"""How much a registry takes: parallel uploads, by a limit that adapts; bytes a second; bytes in one request.

Shared by all connections of a client. Knows nothing of requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from airferry.host import clock

# one request is quickest, but loses everything when it breaks; from here on, losing it would hurt
CHUNKED_ABOVE_BYTES = 256 * 1024 * 1024
# what a broken connection costs at most, against one round trip and one fsync of the journal each
CHUNK_BYTES = 64 * 1024 * 1024
# below it the round trips cost more than the bytes
SMALLEST_CHUNK_BYTES = 256 * 1024

FIRST_PROBE_AFTER = 8
LONGEST_PROBE_AFTER = 16


class Governor:
    """A limit of parallel uploads that sinks by one with each refusal and is tried higher after successes.

    A registry or proxy that allows N at once refuses what is above N, and each refusal takes one away, so the limit
    settles at N. From there one more is tried now and then: after 8 successes at first, after 16 where the last try
    was refused. A try that went well is followed by a bolder one, after twice as many successes as are allowed at
    once: those that were under way before it prove nothing.
    """

    def __init__(self, jobs: int) -> None:
        """Begin with `jobs` at once, which is also the most."""
        self.most = max(1, jobs)
        self.limit = self.most
        self._changed = threading.Condition()
        self._active = 0
        self._successes = 0
        self._probe_after = FIRST_PROBE_AFTER
        self._step = 1
        self._probing = False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait until one more may be under way, and hold that place for the length of the block."""
        with self._changed:
            while self._active >= self.limit:
                self._changed.wait()
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def succeeded(self) -> None:
        """Note that an upload went well."""
        with self._changed:
            self._successes += 1
            if self.limit >= self.most or self._successes < self._probe_after:
                return
            self._step = self._step * 2 if self._probing else 1
            self._probing = True
            self._successes = 0
            self.limit = min(self.most, self.limit + self._step)
            self._probe_after = 2 * self.limit
            self._changed.notify_all()

    def overloaded(self) -> None:
        """Note that an upload was refused for load: 429, 5xx, a time-out or a lost session."""
        with self._changed:
            self.limit = max(1, self.limit - 1)
            self._probe_after = LONGEST_PROBE_AFTER if self._probing else FIRST_PROBE_AFTER
            self._probing = False
            self._step = 1
            self._successes = 0


class RateLimit:
    """A rate in bytes a second over all connections; None means no limit."""

    def __init__(
        self,
        bytes_per_second: float | None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        now_s: Callable[[], float] = clock.monotonic_s,
    ) -> None:
        """Allow `bytes_per_second` from now on."""
        self._rate = bytes_per_second
        self._sleep = sleep
        self._now_s = now_s
        self._lock = threading.Lock()
        self._free_at_s = now_s()

    def take(self, size_bytes: int) -> None:
        """Wait until this many bytes may pass."""
        if not self._rate:
            return
        with self._lock:
            begin_s = max(self._free_at_s, self._now_s())
            self._free_at_s = begin_s + size_bytes / self._rate
            wait_s = begin_s - self._now_s()
        if wait_s > 0:
            self._sleep(wait_s)


@dataclass(slots=True)
class Limits:
    """What one registry takes in one request, as far as it is known; it is learned from refusals."""

    chunked_above_bytes: int = CHUNKED_ABOVE_BYTES
    chunk_bytes: int = CHUNK_BYTES
    chunks: bool = True
    remembered: bool = False

    def reconsider(self) -> bool:
        """Try chunks again where only an earlier run saw them refused, as that made an upload fail; True once."""
        again, self.remembered = self.remembered and not self.chunks, False
        self.chunks = self.chunks or again
        return again

    def lower(self, refused_bytes: int) -> bool:
        """Note that one request of this size was refused; False if nothing smaller is worth a try."""
        self.reconsider()
        if not self.chunks or refused_bytes <= SMALLEST_CHUNK_BYTES:
            return False
        self.chunk_bytes = max(SMALLEST_CHUNK_BYTES, min(self.chunk_bytes, refused_bytes // 2))
        self.chunked_above_bytes = min(self.chunked_above_bytes, self.chunk_bytes)
        return True
