"""How much may be under way at once: a limit of parallel uploads that adapts, and a rate in bytes a second.

Shared by all connections of a client. Knows nothing of requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airferry.host import clock

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
