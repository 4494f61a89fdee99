"""A unit of work as plain data, the protocol of what runs it, and running it in place.

Nothing here knows what is run. Nothing that is run knows where: in this thread, in a process of this host, or on
another machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from airferry.events import Emit, silent
from airferry.host.threads import Consumer, parallel_map, usable_cores

MOST_IN_PLACE = 4


@dataclass(frozen=True, slots=True)
class Work:
    """A call of a function of plain data.

    `function` is `module:name` of one that takes a `WorkContext`, and `arguments` by name; arguments and result are
    data for JSON. `what` says what the work is on, for errors. `size_bytes` is how much there is to read, None where
    that is not known: the largest begins first, and a little is not worth a process. `fed` work gets blocks of bytes,
    which its caller hands over. `memory_bytes` is what it takes besides what reading any layer does.
    """

    function: str
    arguments: Mapping[str, Any]
    what: str
    size_bytes: int | None = None
    fed: bool = False
    memory_bytes: int = 0


class Running(Protocol):
    """Work that has begun. Feed it from one thread."""

    def write(self, data: bytes) -> None:
        """Hand bytes to fed work, all of them. Waits while the work is behind, and raises what it raised."""

    def result(self) -> Any:
        """Say that all was handed over, and return what the function returned.

        Raises:
            AirferryError: what the function raised, with its class, attributes and cause.
            OSError: likewise.
            HostError: the work could not be done: a process was killed or hangs, or there is too little memory.
            RuntimeError: the function failed by a mistake in it; the text is its traceback.
        """


class Workers(Protocol):
    """What runs work."""

    def at_once(self, cores_each: int = 1) -> int:
        """Return how much work is worth being begun at a time if each unit keeps that many cores busy."""

    @property
    def are_apart(self) -> bool:
        """Whether work goes on by itself once it has begun; else it takes a caller that asks for its result."""

    @property
    def threads(self) -> int | None:
        """How many threads one unit of work should take for what can use many; None where it has all cores."""

    def begin(self, work: Work, *, emit: Emit = silent) -> AbstractContextManager[Running]:
        """Begin work, waiting for a place where it can be done. `emit` gets what it says.

        Leaving the block gives up what is unfinished; nothing of it runs any more then.
        """


@dataclass(frozen=True, slots=True)
class WorkContext:
    """What a unit of work gets besides its arguments.

    `blocks` are those that fed work gets. `workers` runs what work wants to leave to others.
    """

    blocks: Iterator[bytes] | None = None
    emit: Emit = silent
    workers: Workers = field(default_factory=lambda: IN_PLACE)


def run_work(work: Work, context: WorkContext) -> Any:
    """Call the function of a unit of work, here and now."""
    module, _, name = work.function.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function(context, **work.arguments)


def run_all(workers: Workers, works: Sequence[Work], *, emit: Emit = silent) -> list[Any]:
    """Run units of work, as many at a time as the workers take, the largest first; return results in the given order.

    The first failure is raised once the rest was given up; what was finished is kept where the work keeps it.
    """
    order = sorted(range(len(works)), key=lambda number: -(works[number].size_bytes or 0))

    def run(number: int) -> Any:
        with workers.begin(works[number], emit=emit) as running:
            return running.result()

    done = dict(zip(order, parallel_map(run, order, jobs=workers.at_once()), strict=True))
    return [done[number] for number in range(len(works))]


class InPlace:
    """Runs work in this process: in the thread that asks for its result, or next to the one that feeds it."""

    def __init__(self, *, nested: Workers | None = None, limit: int = MOST_IN_PLACE) -> None:
        """`nested` runs what the work leaves to others; without it that is done in place as well."""
        self._nested = nested or self
        self._limit = limit

    def at_once(self, cores_each: int = 1) -> int:
        """Return how much is worth it, in threads that share the interpreter's lock."""
        return max(1, min(usable_cores() // 2, MOST_IN_PLACE, self._limit))

    @property
    def are_apart(self) -> bool:
        """It does not go on by itself."""
        return False

    @property
    def threads(self) -> int | None:
        """All cores: there is no other process to share them with."""
        return None

    @contextmanager
    def begin(self, work: Work, *, emit: Emit = silent) -> Iterator[Running]:
        """Begin fed work in a thread; other work waits until its result is asked for."""
        if not work.fed:
            yield _Later(work, WorkContext(None, emit, self._nested))
            return

        def read(blocks: Iterator[bytes]) -> Any:
            return run_work(work, WorkContext(blocks, emit, self._nested))

        with Consumer(read) as consumer:
            yield _Fed(consumer)


class _Later:
    def __init__(self, work: Work, context: WorkContext) -> None:
        self._work = work
        self._context = context

    def write(self, data: bytes) -> None:
        raise ValueError("this work takes no stream")

    def result(self) -> Any:
        return run_work(self._work, self._context)


class _Fed:
    def __init__(self, consumer: Consumer[Any]) -> None:
        self._consumer = consumer

    def write(self, data: bytes) -> None:
        self._consumer(data)

    def result(self) -> Any:
        return self._consumer.result()


IN_PLACE: Workers = InPlace()
