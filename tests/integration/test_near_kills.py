"""Whatever line a fetch is killed at, the cache holds whole things only, and a rerun ends in the same bytes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from airferry.host import files
from airferry.near.git import driver
from airferry.near.wheels.pip import Pip, wheel_target
from airferry.near.wheels.store import Pin, WheelStore
from wheel_factory import make_probe, make_wheel


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that dies without a word at its n-th boundary; return whether it got that far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def boundary(_what: str) -> None:
            nonlocal seen
            seen += 1
            if seen > number:
                os._exit(9)

        files.boundary = boundary
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_kills_while_wheels_are_fetched(tmp_path: Path) -> None:
    target = wheel_target(make_probe().python)
    for name in ("one", "two"):
        make_wheel(tmp_path / "index", name, "1.0")
    store = WheelStore(tmp_path / "cache", Pip(("--no-index", f"--find-links={tmp_path / 'index'}")))
    pins = [Pin("one"), Pin("two")]
    wheels = "[0-9a-f]*/*.whl"
    kills = 0
    while killed_at(kills, lambda: store.fetch(pins, target)):
        kills += 1
        for path in store.folder.glob(wheels):
            assert store.find(path.name, path.parent.name) is not None
    assert kills >= 2, "the work passes boundaries"
    assert len(list(store.folder.glob(wheels))) == 2
    assert [wheel.filename for wheel in store.fetch(pins, target)] == [
        "one-1.0-py3-none-any.whl",
        "two-1.0-py3-none-any.whl",
    ]
    assert [path.name for path in store.folder.iterdir() if path.name.startswith(files.TEMPORARY_PREFIX)] == []


def test_kills_while_an_overlay_is_fetched_and_exported(
    tmp_path: Path, require_tool: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    git = [str(require_tool("git")), "-C", str(tmp_path / "repository")]
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "file").write_text("content")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for argv in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run([*git, *argv], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    url, cache, into = (tmp_path / "repository").as_uri(), tmp_path / "cache", tmp_path / "context" / "0"

    def bring() -> driver.OverlayTree:
        driver.fetch_overlay(url, commit, cache=cache)
        return driver.export_overlay(url, commit, cache=cache, into=into)

    kills = 0
    while killed_at(kills, bring):
        kills += 1
        assert not into.exists() or (into / "file").read_text() == "content"
    assert kills >= 3, "the work passes boundaries"
    clean = driver.export_overlay(url, commit, cache=cache, into=tmp_path / "elsewhere" / "0")
    assert driver.tree_digest(bring().path) == driver.tree_digest(clean.path)
    assert sorted(path.suffix for path in (cache / "git").iterdir()) == [".git"]
