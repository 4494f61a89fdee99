"""Threads, bounded: stages that overlap, and a map whose first failure cancels the rest.

What is worth a thread here (hashing, compression, sockets, files) releases the interpreter's lock. Nothing else in
the project starts threads for bulk data.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, TypeVar

from airferry.errors import HostError

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_DEPTH = 4


class Cancelled(Exception):
    """Another part of the same work failed; this one gave up. Never leaves this module's callers."""


_OWN = threading.local()


def _thread_cancelled() -> Callable[[], bool]:
    found: Callable[[], bool] = getattr(_OWN, "cancelled", bool)
    return found


def raise_if_cancelled() -> None:
    """Give up a wait in a thread of this module whose work is no longer wanted. Does nothing in other threads.

    Raises:
        Cancelled: another part of the same work failed, or the program was interrupted.
    """
    if _thread_cancelled()():
        raise Cancelled


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))


class _Worker(threading.Thread):
    """A thread whose end can be awaited again after a signal's handler broke into the waiting by raising.

    `Thread.join` can not: broken into, it takes the thread for ended, though it runs on (python/cpython#90882, a
    relative of #89437). python/cpython#114839 replaced the lock behind it in 3.13, which may not need this class.
    """

    def __init__(self, target: Callable[[], object], *, cancelled: Callable[[], bool]) -> None:
        """`cancelled` tells whether the work was given up; what its thread starts is given up with it."""
        # a daemon, as an interrupted program must end even if a thread is stuck in a system call on a dead mount
        super().__init__(daemon=True)
        self._work = target
        self._done = threading.Event()
        above = _thread_cancelled()
        self._cancelled = lambda: cancelled() or above()

    def run(self) -> None:
        _OWN.cancelled = self._cancelled
        try:
            self._work()
        finally:
            self._done.set()

    def start(self) -> None:
        """Start the thread.

        Raises:
            HostError: the host allows no more.
        """
        try:
            super().start()
        except RuntimeError as error:
            raise HostError(
                "the host does not allow as many threads and processes as the work needs",
                hint="raise the limit (`ulimit -u`), or rerun with fewer `--jobs`",
            ) from error

    def await_end(self) -> None:
        """Wait until the work has ended; a thread that was never started has none."""
        if self.ident is not None:
            self._done.wait()
            self.join()


class _Channel(Generic[T]):
    """A bounded queue between two threads that carries items, then an end or a failure."""

    def __init__(self, depth: int) -> None:
        self._items: deque[T] = deque()
        self._depth = depth
        self._ended = False
        self._cancelled = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def put(self, item: T) -> None:
        with self._changed:
            while len(self._items) >= self._depth and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def end(self, failure: BaseException | None) -> None:
        with self._changed:
            self._ended = True
            self._failure = failure
            self._changed.notify_all()

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._items and not self._ended and not self._cancelled:
                    self._changed.wait()
                if self._cancelled:
                    raise Cancelled
                if not self._items:
                    if self._failure is not None:
                        raise self._failure
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


class Pipeline:
    """Stages of work on one stream, each in its own thread with a bounded queue behind it.

    A failure in a stage is raised where the stage's output is read, so the first one surfaces at the end of the
    chain. Leaving the block cancels what still runs and joins every thread.
    """

    def __init__(self) -> None:
        self._channels: list[_Channel[bytes]] = []
        self._threads: list[_Worker] = []

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # all are cancelled before any is awaited: a stage may wait for room in a queue that a later one empties
        for channel in self._channels:
            channel.cancel()
        for thread in self._threads:
            thread.await_end()

    def stage(self, items: Iterable[bytes], *, depth: int = DEFAULT_DEPTH) -> Iterator[bytes]:
        """Run an iterable of blocks in a separate thread, and return an iterator over what it yields."""
        channel: _Channel[bytes] = _Channel(depth)

        def work() -> None:
            failure: BaseException | None = None
            try:
                for item in items:
                    channel.put(item)
            except BaseException as error:
                failure = error
            finally:
                # a generator's files must be closed by the thread that reads them, not whenever it is collected
                if isinstance(items, Generator):
                    items.close()
                channel.end(failure)

        thread = _Worker(work, cancelled=lambda: channel.cancelled)
        self._channels.append(channel)
        self._threads.append(thread)
        thread.start()
        return iter(channel)


class Consumer(Generic[R]):
    """A function over a stream of blocks, in a separate thread, fed block by block.

    Feeding waits while the function is behind, and raises what the function raised. Leaving the block without
    `result` gives the work up; either way the thread is joined.
    """

    def __init__(self, function: Callable[[Iterator[bytes]], R], *, depth: int = DEFAULT_DEPTH) -> None:
        self._function = function
        self._channel: _Channel[bytes] = _Channel(depth)
        self._results: list[R] = []
        self._failure: BaseException | None = None
        self._thread = _Worker(self._work, cancelled=lambda: self._channel.cancelled)

    def __enter__(self) -> Consumer[R]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.cancel()
        self._thread.await_end()

    def __call__(self, block: bytes) -> None:
        """Hand over a block."""
        try:
            self._channel.put(block)
        except Cancelled:
            # the channel is also cancelled when the function fails: its error is the cause, `Cancelled` the symptom
            if self._failure is not None:
                raise self._failure from None
            raise

    def result(self) -> R:
        """Say that all blocks were handed over, and return what the function made of them."""
        self._channel.end(None)
        self._thread.await_end()
        if self._failure is not None:
            raise self._failure
        return self._results[0]

    def _work(self) -> None:
        try:
            self._results.append(self._function(iter(self._channel)))
        except BaseException as error:
            self._failure = error
        finally:
            self._channel.cancel()


class RoomBudget:
    """Room on a disk that work under way has asked for, so that things done at a time do not fill it together."""

    def __init__(self, free_bytes: Callable[[], int]) -> None:
        """`free_bytes` tells how much room there is now."""
        self._free_bytes = free_bytes
        self._held: list[int] = []
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Wait until there is room next to that of running work, and hold it while the block runs.

        Work that is alone never waits: whether it fits at all is not decided here.
        """
        with self._changed:
            while self._held and self._free_bytes() < sum(self._held) + size_bytes:
                self._changed.wait()
            self._held.append(size_bytes)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(size_bytes)
                self._changed.notify_all()


def parallel_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    jobs: int,
    cancelled: threading.Event | None = None,
) -> list[R]:
    """Call a function for each item on at most `jobs` threads and return the results in the order of the items.

    The first failure is raised after all threads have ended; no item is begun after it. `cancelled`, if given, is
    set at that moment, so that calls under way can give up by raising `Cancelled`.
    """
    todo = deque(enumerate(items))
    results: dict[int, R] = {}
    failures: list[BaseException] = []
    stop = cancelled or threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                number, item = todo.popleft()
            except IndexError:
                return
            try:
                results[number] = function(item)
            except BaseException as error:
                failures.append(error)
                stop.set()

    threads = [_Worker(work, cancelled=stop.is_set) for _ in range(min(max(1, jobs), len(todo)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.await_end()
    except BaseException:
        stop.set()
        for thread in threads:
            thread.await_end()
        raise
    for failure in failures:
        if not isinstance(failure, Cancelled):
            raise failure
    if stop.is_set():
        raise Cancelled
    return [results[number] for number in sorted(results)]


class NamedLocks:
    """A lock for each name, made when it is first asked for: work on one thing happens once, on others meanwhile."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def __call__(self, name: str) -> threading.Lock:
        """Return the lock of a name."""
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())
