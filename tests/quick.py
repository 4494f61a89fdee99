"""Fixtures that tests/unit and tests/local share, and what keeps both quick: no pip, no waiting for disks."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airferry.near.wheels.pip import Pip
from airferry.registry.retry import RetryPolicy
from scripted_registry import ScriptedRegistry, run_scripted

Said = Callable[[], tuple[str, str]]
MEMORY = Path("/dev/shm")
NEEDED_BYTES = 2 << 30
NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def tmp_path_factory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pytest.TempPathFactory]:
    """Make folders in memory where there is room for them: ext4 takes 2 ms to remove one, and a run makes 20,000.

    Those of failed tests stay until the next run.
    """
    runs = MEMORY / f"airferry-tests-{os.geteuid()}"
    try:
        facts = os.statvfs(MEMORY)
        runs.mkdir(mode=0o700, exist_ok=True)
        usable = runs.lstat().st_uid == os.geteuid() and not facts.f_flag & os.ST_NOEXEC
    except OSError:
        usable = False
    if not usable or facts.f_bavail * facts.f_frsize < NEEDED_BYTES:
        yield tmp_path_factory
        return
    for run in runs.iterdir():
        if not Path("/proc", run.name.partition("-")[0]).exists():
            shutil.rmtree(run, ignore_errors=True)
    base = runs / f"{os.getpid()}-{next(NUMBERS)}"
    yield pytest.TempPathFactory(base, 3, "failed", request.config.trace.get("tmpdir"), _ispytest=True)
    if not request.session.testsfailed:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start pip: `folder_pip.FolderPip` answers in-process, and tests/integration has the real one."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this test starts pip: take `folder_pip.FolderPip`, or move it to tests/integration")

    monkeypatch.setattr(Pip, "_run", refuse)
    monkeypatch.setattr(Pip, "_run_all", refuse)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a registry again at once, but for tests that bring a clock of their own; and let no disk be waited for.

    `test_durable_writes` records the calls that make a write durable; that the disk heeds them is no test's claim.
    """
    pause = RetryPolicy.pause

    def at_once(self: RetryPolicy, attempt: int, *, asked_s: float | None = None) -> None:
        waits = self.sleep is time.sleep
        pause(replace(self, sleep=lambda _seconds: None) if waits else self, attempt, asked_s=asked_s)

    monkeypatch.setattr(RetryPolicy, "pause", at_once)
    # a descriptor that is not open is still an error
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    """An empty registry in this process; modules that need it otherwise have their own."""
    with run_scripted() as running:
        yield running


@pytest.fixture
def unsettled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take options from the command line alone, and write what has no other place into the test's folder."""
    for name in ("AIRFERRY_ROOT", "AIRFERRY_TO", "AIRFERRY_SITE", "AIRFERRY_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def on_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe a site that runs jobs on Kubernetes in the current folder, where commands look for it."""
    monkeypatch.delenv("AIRFERRY_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text("executors: [kubernetes]\n")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Return what gives stdout as it is, and stderr with its line breaks taken out."""

    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, " ".join(captured.err.split())

    return read
