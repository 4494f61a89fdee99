"""Wheels from a real package index, by pip as this host is configured, and from Git."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from airferry.errors import BuildError
from airferry.events import Event
from airferry.near.wheels.pip import Pip, wheel_target
from airferry.near.wheels.store import Pin, WheelStore
from airferry.plan.locks.packages import GitSource
from wheel_factory import make_probe, project

ARM64 = wheel_target(make_probe(machine="aarch64").python)
ALPINE = wheel_target(make_probe(libc=("musl", "1.2.4"), version="3.12.1").python)


def test_wheels_for_another_cpu_and_another_libc(tmp_path: Path) -> None:
    calls: list[Event] = []
    store = WheelStore(tmp_path, Pip(emit=calls.append))
    found = store.fetch([Pin("MarkupSafe", "==2.1.5"), Pin("six", ">=1.16,<2"), Pin("iniconfig")], ARM64)
    assert len(calls) == 1
    assert found[0].filename == "MarkupSafe-2.1.5-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"
    assert found[0].sha256 == "6ec585f69cec0aa07d945b20805be741395e28ac1627333b1c5b0105962ffced"
    musl = store.fetch([Pin("markupsafe", "==2.1.5")], ALPINE)[0]
    assert musl.filename == "MarkupSafe-2.1.5-cp312-cp312-musllinux_1_1_x86_64.whl"
    locked = [Pin(wheel.name, f"=={wheel.version}", filename=wheel.filename, sha256=wheel.sha256) for wheel in found]
    calls.clear()
    assert store.fetch(locked, ARM64) == found
    assert calls == []


def test_what_the_index_does_not_have_for_a_platform(tmp_path: Path) -> None:
    strange = wheel_target(make_probe(machine="riscv64").python)
    with pytest.raises(BuildError, match=r"`markupsafe==2\.1\.5` has no wheel for .*riscv64.*manylinux_2_17_aarch64"):
        WheelStore(tmp_path).fetch([Pin("markupsafe", "==2.1.5", hashes=frozenset({"0" * 64}))], strange)


def test_an_old_python_gets_an_older_pip(tmp_path: Path) -> None:
    path = WheelStore(tmp_path).pip_wheel((3, 8, 10))
    assert path.name.startswith("pip-25.0")


def test_a_git_commit_builds_a_wheel(tmp_path: Path, require_tool: Callable[[str], Path]) -> None:
    require_tool("git")
    repository = tmp_path / "repository"
    (repository / "sub").mkdir(parents=True)
    for name, text in project("fromgit", "py3-none-any").items():
        (repository / "sub" / name).write_text(text)
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for argv in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *argv], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    pin = Pin("fromgit", "==1.0", git=GitSource(repository.as_uri(), commit, "sub"))
    wheel = WheelStore(tmp_path / "cache", Pip(("--no-index",))).fetch([pin], ARM64)[0]
    assert wheel.origin == f"git+{repository.as_uri()}@{commit}#subdirectory=sub"
    assert zipfile.ZipFile(wheel.path).read("fromgit.py") == b"EPOCH = 315532800"
    outside = Pin("fromgit", "==1.0", git=GitSource(repository.as_uri(), commit, "../.."))
    with pytest.raises(BuildError, match="has no folder"):
        WheelStore(tmp_path / "cache", Pip(("--no-index",))).fetch([outside], ARM64)
