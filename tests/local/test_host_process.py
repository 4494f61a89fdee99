"""A child is waited for without looking again and again, and no longer than it may take."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from airferry.host import process


def no_pidfd(_pid: int) -> int:
    raise OSError("not in this sandbox")


def open_pidfds() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        # the listing's own descriptor has gone
        with suppress(FileNotFoundError):
            found += [str(path.readlink())]
    return [link for link in found if "pidfd" in link]


def no_sleep(seconds: float) -> None:
    raise AssertionError(f"waits for {seconds} s whatever the child does")


def test_the_end_of_a_child_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", no_sleep)
    assert process.run(["sh", "-c", "sleep 0.01; exit 3"], timeout_s=60, check=False).returncode == 3


def test_a_host_that_shows_no_end_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    assert process.run(["sh", "-c", "exit 3"], timeout_s=60, check=False).returncode == 3


@pytest.mark.parametrize("shown", [True, False])
def test_a_child_that_takes_too_long_is_ended(shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shown:
        monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    with pytest.raises(process.ProcessFailed, match=r"did not finish within 0\.05 s"):
        process.run(["sh", "-c", "echo $$; exec sleep 600"], timeout_s=0.05)
    assert open_pidfds() == []
