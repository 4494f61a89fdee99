"""Locks of a cache: which are there, and a wait for what other threads and processes do with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from airferry.host import locks


def until(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def taken(cache: Path) -> list[Path]:
    return sorted((cache / locks.LOCKS).glob("*"))
