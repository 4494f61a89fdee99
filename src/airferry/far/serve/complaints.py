"""What a server complains about, a line a second at most: no client can fill a disk or a terminal by it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airferry.events import Emit, Warned

INTERVAL_S = 1.0
# of uvicorn, and of the event loop, which complains of what it cannot accept or close; without a handler Python writes
# what a library logs to stderr as it is, whatever a client had in it
LOGGERS = ("uvicorn.error", "asyncio")


class Complaints(logging.Handler):
    """Passes complaints on as warnings; what is not shown is counted in the next one. Safe with threads."""

    def __init__(self, emit: Emit, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take where warnings go."""
        super().__init__(logging.WARNING)
        self._emit = emit
        self._clock = clock
        self._next_s = float("-inf")
        self._left_out = 0
        self._guard = threading.Lock()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take what the libraries log while the block runs."""
        before = {logger: logger.propagate for logger in map(logging.getLogger, LOGGERS)}
        for logger in before:
            logger.addHandler(self)
            logger.propagate = False
        try:
            yield
        finally:
            for logger, propagated in before.items():
                logger.removeHandler(self)
                logger.propagate = propagated

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on a record of a logger, its first line and the exception's."""
        text = record.getMessage().strip().partition("\n")[0]
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            # what is under way when the server ends is cancelled
            return
        if error is not None:
            text += f": {error}"
        self.complain(text)

    def complain(self, text: str) -> None:
        """Say a text, unless another one was said less than a second ago."""
        with self._guard:
            now_s = self._clock()
            if now_s < self._next_s:
                self._left_out += 1
                return
            self._next_s = now_s + INTERVAL_S
            more = f" ({self._left_out} more warnings not shown)" if self._left_out else ""
            self._left_out = 0
        self._emit(Warned(text + more))
