"""Projects in Git whose version real tools compute from history and tags: setuptools-scm, hatch-vcs, versioningit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from airferry.host import process
from airferry.near.wheels.pip import Pip, wheel_target
from airferry.near.wheels.store import Pin, WheelStore
from airferry.plan.locks.packages import GitSource
from wheel_factory import make_probe

TARGET = wheel_target(make_probe().python)
PROJECT = '[project]\nname = "fromgit"\ndynamic = ["version"]\n'
TOOLS = {
    "setuptools-scm": '[build-system]\nrequires = ["setuptools>=64", "setuptools-scm>=8"]\n'
    f'build-backend = "setuptools.build_meta"\n{PROJECT}[tool.setuptools]\npy-modules = ["fromgit"]\n'
    "[tool.setuptools_scm]\n",
    "hatch-vcs": '[build-system]\nrequires = ["hatchling", "hatch-vcs"]\nbuild-backend = "hatchling.build"\n'
    f'{PROJECT}[tool.hatch.version]\nsource = "vcs"\n[tool.hatch.build.targets.wheel]\ninclude = ["fromgit.py"]\n',
    "versioningit": '[build-system]\nrequires = ["setuptools", "versioningit"]\n'
    f'build-backend = "setuptools.build_meta"\n{PROJECT}[tool.setuptools]\npy-modules = ["fromgit"]\n'
    "[tool.versioningit]\n",
}


def repository(folder: Path, pyproject: str) -> tuple[str, str]:
    """Make a repository with a tag and two commits after it, and return its address and its last commit."""
    folder.mkdir()
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t.example"]
    (folder / "pyproject.toml").write_text(pyproject)
    process.run([*git, "init", "-q"], timeout_s=60)
    for number in range(3):
        (folder / "fromgit.py").write_text(f"NUMBER = {number}\n")
        process.run([*git, "add", "."], timeout_s=60)
        process.run([*git, "commit", "-qm", str(number)], timeout_s=60)
        if number == 0:
            process.run([*git, "tag", "v1.0"], timeout_s=60)
    return folder.as_uri(), process.run([*git, "rev-parse", "HEAD"], timeout_s=60).text.strip()


@pytest.mark.parametrize(("tool", "pinned"), [("setuptools-scm", False), *((tool, True) for tool in TOOLS)])
def test_the_version_is_that_of_a_full_clone(
    tmp_path: Path, require_tool: Callable[[str], Path], build_tools: Path, tool: str, pinned: bool
) -> None:
    require_tool("git")
    url, commit = repository(tmp_path / "repository", TOOLS[tool])
    store = WheelStore(tmp_path / "cache", Pip(("--no-index", f"--find-links={build_tools}")))
    expected = {"versioningit": "1.0.post2"}.get(tool, "1.1.dev2")
    wanted = f"{expected}+g{commit[:10]}"
    pin = Pin("fromgit", f"=={wanted}" if pinned else "", git=GitSource(url, commit))
    found = store.fetch([pin], TARGET)[0]
    # versions of some tools have ids of one length alone
    assert not pinned or found.version == wanted or "of another length" in found.note
    public, _, local = found.version.partition("+")
    assert public == expected, "two commits after the tag, nothing changed"
    assert local.startswith("g") and commit.startswith(local[1:])
