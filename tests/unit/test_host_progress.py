"""Progress is counted from several threads, said in steps, never beyond the total, and ends a copy that has failed."""

from __future__ import annotations

import threading

import pytest

from airferry.events import Event, Progress
from airferry.host.progress import Meter
from airferry.host.threads import Cancelled, parallel_map


def said(events: list[Event]) -> list[int]:
    return [event.done for event in events if isinstance(event, Progress)]


def test_it_is_said_after_every_step_and_once_at_the_end() -> None:
    events: list[Event] = []
    meter = Meter("copy", 100, events.append, every_bytes=30, now=lambda: 0.0)
    for _ in range(10):
        meter.advance(10)
    assert said(events) == [30, 60, 90, 100]
    meter.finish()
    assert events[-1] == Progress("copy", 100, 100)
    assert len(events) == 4


def test_a_slow_line_is_said_to_move_every_second() -> None:
    events: list[Event] = []
    seconds = iter([0.0, 0.5, 1.2, 1.2, 1.9, 2.4, 2.4])
    meter = Meter("copy", 100, events.append, now=lambda: next(seconds))
    for _ in range(4):
        meter.advance(10)
    assert said(events) == [20, 40]


def test_bytes_that_come_twice_never_make_more_than_the_total() -> None:
    events: list[Event] = []
    meter = Meter("copy", 50, events.append, every_bytes=1)
    meter.advance(50)
    meter.advance(50)
    assert said(events) == [50]


def test_a_task_without_bytes_is_said_to_be_done_when_it_is_finished() -> None:
    events: list[Event] = []
    meter = Meter("copy", 0, events.append)
    meter.advance(0)
    assert events == []
    meter.finish()
    assert events == [Progress("copy", 0, 0)]


def test_no_smaller_number_follows_a_larger_one_whatever_thread_counts() -> None:
    events: list[Event] = []
    meter = Meter("copy", 4000, events.append, every_bytes=1)
    assert list(meter.watch([b"", b"x"])) == [b"", b"x"]
    parallel_map(lambda _: [meter.advance(1) for _ in range(1000)], range(4), jobs=4)
    assert said(events) == sorted(set(said(events)))
    assert said(events)[-1] == 4000


def test_counting_ends_work_of_which_another_part_has_failed() -> None:
    failed = threading.Event()
    meter = Meter("copy", 10, lambda event: None, cancelled=failed)
    meter.advance(1)
    failed.set()
    with pytest.raises(Cancelled):
        meter.advance(1)
