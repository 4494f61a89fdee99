"""What all tests share: tools that must be there, a cache of its own for every test, and a turn among the workers."""

from __future__ import annotations

import functools
import gc
import itertools
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import typer.main

# it keeps what the environment says of colours when it is loaded, which some tests change
import typer.rich_utils
from hypothesis import HealthCheck, settings

from airferry.host.process import find_program
from examples import how_many
from workers import shared_folder, turn

# CI tries the same examples each time, and a busy machine fails no test for being slow.
settings.register_profile(
    "airferry",
    max_examples=how_many(100),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("airferry")

NUMBERS = itertools.count()

# A program makes its commands once, in 30 ms; here one process runs hundreds of command lines.
typer.main.get_command = functools.cache(typer.main.get_command)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the collector of garbage leave alone what the run is made of, 600,000 objects, and look less often."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(5_000, 20, 50)
        gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test marked `alone` while no other worker runs one. Waiting is not a part of the test's time."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    factory: pytest.TempPathFactory = item.config._tmp_path_factory  # type: ignore[attr-defined]
    with turn(shared_folder(factory), alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], Path]:
    """Return a function that finds a program; a missing one skips on a laptop and fails in CI."""

    def require(name: str) -> Path:
        path = find_program(name)
        if path is None:
            message = f"`{name}` is not installed (scripts/setup installs it)"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        return path

    return require


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own cache, and no time of its own."""
    if "AIRFERRY_CACHE" not in os.environ:
        # made by those who use it: most tests do not, and a numbered folder costs a look at all others
        monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
