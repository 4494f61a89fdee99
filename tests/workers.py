"""What the workers of one test run share: things that are made once, and a lock that lets a test run alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all workers of this run see."""
    base = factory.getbasetemp()
    # pytest-xdist gives each worker a folder below that of the run
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Let the first worker that comes here make a folder; the others wait for it. Return the folder.

    What fails half way leaves no mark, so the next worker reports the same failure and not a broken folder.
    """
    done = path.with_name(f"{path.name}.done")
    with locked(path.with_name(f"{path.name}.lock"), fcntl.LOCK_EX):
        if not done.exists():
            path.mkdir()
            make(path)
            done.touch()
    return path


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold a place among the tests that run now, or wait until nobody else runs and keep others out.

    The gate keeps those who want to be alone from waiting forever: while one waits, no other test begins.
    """
    with open_lock(folder / "running.lock") as running:
        with locked(folder / "gate.lock", fcntl.LOCK_EX):
            fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    with open_lock(path) as file:
        fcntl.flock(file, how)
        yield


def open_lock(path: Path) -> IO[bytes]:
    return path.open("wb")
