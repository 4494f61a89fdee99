"""What unit tests share; and each fails that opens a connection or starts a process."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from quick import no_pip, no_waiting, on_kubernetes, said, tmp_path_factory, unsettled
from recorded_disk import disk
from refusal import REFUSAL

__all__ = ["disk", "no_pip", "no_waiting", "on_kubernetes", "said", "tmp_path_factory", "unsettled"]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None]:
    REFUSAL.begin()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None]:
    # before fixtures are torn down: behind the last test of a run those of the whole run are, which may start processes
    fault = REFUSAL.end()
    try:
        return (yield)
    finally:
        if fault:
            pytest.fail(fault, pytrace=False)
