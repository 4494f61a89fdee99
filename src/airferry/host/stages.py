"""Stages of a run, said when they begin and when they have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from airferry.events import Emit, StageFinished, StageStarted
from airferry.host import clock

T = TypeVar("T")


def stage(name: str, emit: Emit, work: Callable[[], T]) -> T:
    """Do the work of a stage and return what comes of it. A stage that fails is not said to have finished."""
    begun_s = clock.monotonic_s()
    emit(StageStarted(name))
    result = work()
    emit(StageFinished(name, clock.monotonic_s() - begun_s))
    return result
