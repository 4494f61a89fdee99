"""What tests with real tools share: an ordinary user, container storage of their own, and a small Debian base."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airferry.engine.program import find_engine
from airferry.engine.storage import Storage
from airferry.events import silent
from debian_bases import DebianBase, read_debian, write_debian
from near_side import NearSide, make_base, make_near_side
from workers import once, shared_folder


@pytest.fixture(scope="session")
def ordinary_user() -> None:
    """Refuse to run rootless tests as root: they would prove nothing."""
    if os.geteuid() == 0:
        message = "rootless work is tested as an ordinary user (scripts/test does that)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def engine_state(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], Path], ordinary_user: None
) -> Iterator[Path]:
    """A state folder that engines of the whole session share, one after the other."""
    require_tool("buildah")
    state = tmp_path_factory.mktemp("engine")
    yield state
    for kind in ("buildah", "podman"):
        if (state / f"{kind}-storage").is_dir():
            Storage(find_engine(kind), state, emit=silent).remove_all()  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def debian_base(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], Path], ordinary_user: None
) -> DebianBase:
    """A small Debian with Python for linux/amd64 and linux/arm64, bootstrapped once a run for all workers."""
    require_tool("mmdebstrap")
    return read_debian(once(shared_folder(tmp_path_factory) / "debian", write_debian))


@pytest.fixture(scope="session")
def near_base(debian_base: DebianBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout whose image `base:1` is what near sides under test build on. Made once a run: copy it to change it."""
    folder = shared_folder(tmp_path_factory) / "near-base"
    return once(folder, lambda path: make_base(debian_base, path / "base")) / "base"


@pytest.fixture(scope="session")
def near_cache(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], Path], ordinary_user: None
) -> Iterator[Path]:
    """A cache that near sides of the whole session share, so that a base is unpacked once."""
    require_tool("buildah")
    cache = tmp_path_factory.mktemp("near-cache")
    yield cache
    for kind in ("buildah", "podman"):
        if (cache / "engine" / f"{kind}-storage").is_dir():
            Storage(find_engine(kind), cache / "engine", emit=silent).remove_all()  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def build_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of real build back ends and of all that they require, downloaded once a run."""
    names = ("setuptools", "wheel", "setuptools-scm", "hatchling", "hatch-vcs", "versioningit")

    def download(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
        subprocess.run([*pip, *names], check=True)

    return once(shared_folder(tmp_path_factory) / "build-tools", download)


@pytest.fixture
def side(tmp_path: Path, near_base: Path, near_cache: Path, monkeypatch: pytest.MonkeyPatch) -> NearSide:
    """A near side of its own, with what it needs in the environment."""
    made = make_near_side(tmp_path / "near", near_base)
    monkeypatch.setenv("AIRFERRY_CACHE", str(near_cache))
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made
