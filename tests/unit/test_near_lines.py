"""What pip, apt and Python read line by line: no text of a catalogue, a lock or a base brings a line of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from airferry.errors import BuildError, ConfigurationError
from airferry.near.seal import _unsayable
from airferry.near.wheels.pip import _hashed
from airferry.near.wheels.project import project_wheel
from airferry.near.wheels.store import WheelStore
from airferry.plan.lockfile import LockedAddition, LockedBasePlatform
from loaded_receipts import DIGEST

SHA256 = "a" * 64


@pytest.mark.parametrize(
    "requirement",
    [
        "x==1\n--index-url=https://evil.example",
        "x==1 --index-url=https://evil.example",
        "-r /etc/passwd",
        "x @ https://evil.example/${PIP_INDEX_URL}/x.whl",
        "x @ https://evil.example/x.whl --config-settings=a=b",
        "x @ https://evil.example/x.whl\n-e .",
        "x\r--pre",
        "x\u2028--pre",
        "",
    ],
)
def test_no_lock_says_where_pip_looks(requirement: str) -> None:
    with pytest.raises(BuildError, match="is not one distribution"):
        _hashed(requirement, [SHA256])


def test_no_hash_of_a_lock_is_an_option() -> None:
    with pytest.raises(BuildError, match="is not one distribution"):
        _hashed("x==1", [f"{SHA256}\n--index-url=https://evil.example"])


@pytest.mark.parametrize(
    "requirement",
    [
        "x==1.0",
        "nemo-run==0.10.0+a8425c9",
        "x==1!2.0",
        "x[a,b]>=1,<2",
        "x @ https://files.example/a%20b/x-1.0.whl#sha256=0",
    ],
)
def test_what_locks_say_is_a_line_of_pip(requirement: str) -> None:
    assert _hashed(requirement, [SHA256]) == f"{requirement} --hash=sha256:{SHA256}\n"


@pytest.mark.parametrize("text", ["1\nPin-Priority: 1", "1 2", "", "1\x1b"])
def test_no_version_of_our_lock_is_more_than_one(text: str) -> None:
    LockedBasePlatform(manifest=DIGEST, packages={"libc6": "1"})
    LockedAddition(name="x", version="1", file="x.whl", sha256=SHA256)
    with pytest.raises(ValidationError):
        LockedBasePlatform(manifest=DIGEST, packages={"libc6": text})
    with pytest.raises(ValidationError):
        LockedBasePlatform(manifest=DIGEST, packages={f"libc6{text[1:] or ' '}": "1"})
    with pytest.raises(ValidationError):
        LockedAddition(name="x", version=text, file="x.whl", sha256=SHA256)


@pytest.mark.parametrize(
    "name", ["../../../home/x.whl", "/home/x.whl", "..", ".", "", "a/b.whl", "a\nb.whl", "a\0.whl"]
)
def test_no_wheel_of_a_lock_leads_out_of_the_cache(tmp_path: Path, name: str) -> None:
    """One whose digest was another was removed with its folder, wherever that was."""
    with pytest.raises(ValidationError):
        LockedAddition(name="x", version="1", file=name, sha256=SHA256)
    store = WheelStore(tmp_path / "cache")
    (store.folder / SHA256).mkdir(parents=True)
    depth = len((store.folder / SHA256).relative_to(tmp_path).parts)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x.whl").write_text("precious")
    for found in (name, "/".join([".."] * depth + ["home/x.whl"]), str(tmp_path / "home/x.whl")):
        assert store.find(found, SHA256) is None and store.size_bytes(found, SHA256) == 0
    assert store.find("x.whl", "../home") is None
    assert (tmp_path / "home" / "x.whl").read_text() == "precious"


def test_versions_of_debian_and_of_python_are_versions() -> None:
    assert LockedBasePlatform(manifest=DIGEST, packages={"libc6:amd64": "2:1.0~rc1+dfsg-1.2+deb12u3"})
    for version in ("1!2.0.post1+local.1", "2024.01.31-1"):
        assert LockedAddition(name="ruamel.yaml", version=version, file="x.whl", sha256=SHA256)


@pytest.mark.parametrize(
    "project",
    [
        {"name": "x\nRequires-Dist: evil", "version": "1"},
        {"name": "x", "version": "1\nRequires-Dist: evil"},
        {"name": "x", "version": "../../../../tmp/x"},
        {"name": "x", "requires-python": ">=3\nRequires-Dist: evil"},
        {"name": "x", "dependencies": ["a\nRequires-Dist: evil"]},
        {"name": "x", "scripts": {"a": "b:c\n[other]\nx = y:z"}},
        {"name": "x", "entry-points": {"a]\n[console_scripts": {"a": "b:c"}}},
        {"name": "x" * 300},
        {"name": "x", "version": "1" * 300},
        {"name": "x", "dependencies": 5},
        {"name": "x", "dependencies": {"a": "1"}},
        {"name": "x", "dependencies": "abc"},
        {"name": "x", "dependencies": ["a", 5]},
        {"name": "x", "scripts": ["a:b"]},
        {"name": "x", "gui-scripts": {"a": 5}},
        {"name": "x", "entry-points": ["a"]},
        {"name": "x", "entry-points": {"a": ["b"]}},
    ],
)
def test_no_project_brings_a_line_of_metadata(tmp_path: Path, project: dict[str, object]) -> None:
    lines = [f"{key} = {_toml(value)}" for key, value in project.items()]
    (tmp_path / "pyproject.toml").write_text("[project]\n" + "\n".join(lines) + "\n")
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml: `project"):
        project_wheel(tmp_path / "pyproject.toml", source_path="/workspace/src", version=None, into=tmp_path)
    assert not list(tmp_path.glob("*.whl"))


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def test_what_a_manifest_cannot_hold_is_an_error_of_the_build() -> None:
    with pytest.raises(ValidationError) as caught:
        LockedAddition(name="x y", version="1", file="x.whl", sha256=SHA256)
    error = _unsayable(caught.value)
    assert error.exit_code == 5 and "`name`" in error.message and error.hint
