"""Stages that overlap and a map over threads: order, bounds, failure and the end of every thread."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from airferry.host.threads import Cancelled, Consumer, Pipeline, RoomBudget, parallel_map


def test_stages_keep_order_and_end() -> None:
    before = threading.active_count()
    with Pipeline() as pipeline:
        numbers = pipeline.stage(bytes([number]) for number in range(200))
        doubled = pipeline.stage(block * 2 for block in numbers)
        assert list(doubled) == [bytes([number, number]) for number in range(200)]
    assert threading.active_count() == before


def test_a_fast_stage_waits_for_a_slow_one() -> None:
    made: list[int] = []

    def source() -> Iterator[bytes]:
        for number in range(100):
            made.append(number)
            yield b"x"

    with Pipeline() as pipeline:
        blocks = pipeline.stage(source(), depth=3)
        next(blocks)
        threading.Event().wait(0.05)
        assert len(made) <= 5


def test_a_failure_surfaces_at_the_end_of_the_chain_and_closes_the_source() -> None:
    closed = threading.Event()
    before = threading.active_count()

    def source() -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    def failing(blocks: Iterator[bytes]) -> Iterator[bytes]:
        for number, block in enumerate(blocks):
            if number == 5:
                raise ValueError("five")
            yield block

    with pytest.raises(ValueError, match="five"), Pipeline() as pipeline:
        list(pipeline.stage(failing(pipeline.stage(source()))))
    assert closed.is_set()
    assert threading.active_count() == before


def test_leaving_early_joins_all() -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Pipeline() as pipeline:
        blocks = pipeline.stage(iter(lambda: b"x", b""))
        next(blocks)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_the_real_failure_is_raised_and_not_those_it_caused() -> None:
    stop = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert stop.wait(5)
            raise Cancelled
        raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        parallel_map(work, range(2), jobs=2, cancelled=stop)


def test_nothing_to_do_is_nothing_done() -> None:
    assert parallel_map(str, [], jobs=4) == []


class Interruption(BaseException):
    pass


@pytest.fixture
def interruptions() -> Iterator[None]:
    def interrupt(_signal: int, _frame: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("interruptions")
def test_a_map_that_is_interrupted_waits_for_what_is_under_way() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(_item: int) -> None:
        begun.set()
        time.sleep(0.3)
        ended.set()

    def interrupt() -> None:
        begun.wait()
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interruption):
        parallel_map(work, [1], jobs=1)
    assert ended.is_set()


@pytest.mark.usefixtures("interruptions")
def test_a_consumer_that_is_interrupted_waits_for_its_function() -> None:
    ended = threading.Event()

    def work(blocks: Iterator[bytes]) -> None:
        list(blocks)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(0.3)
        ended.set()

    with pytest.raises(Interruption), Consumer(work) as consumer:
        consumer.result()
    assert ended.is_set()


def test_work_waits_for_room_that_others_hold_and_alone_never() -> None:
    free, order, inside = [100], list[str](), threading.Event()
    budget = RoomBudget(lambda: free[0])

    def second() -> None:
        with budget.holding(60):
            order.append("second")

    with budget.holding(1000):
        thread = threading.Thread(target=second)
        thread.start()
        assert not inside.wait(0.1)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    with budget.holding(30), budget.holding(30):
        pass
