"""Memory does not grow with what is carried: large layers pass a build, a verification, a load and a copy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from registries import run_registry

from airferry.engine.program import find_engine
from airferry.engine.storage import Storage
from airferry.events import silent
from airferry.oci.layout import LayoutStore
from debian_bases import AMD64, DebianBase
from near_side import REFERENCE, make_base, make_near_side
from oci_images import put_image
from static_bases import write_static_base

LAYER_BYTES = 240_000_000
LIMIT_BYTES = 220 * 1024 * 1024
TRANSPORT_LIMIT_BYTES = 80 * 1024 * 1024
TRANSPORT_BLOB_BYTES = 64 * 1024 * 1024
MEASURE = """
import re, sys
from airferry.cli.app import run
code = run(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def peak_bytes(*arguments: str, folder: Path) -> int:
    """Run the program in a child and return the most memory that it had, its own children left out."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "--quiet", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


@pytest.fixture
def large_base(tmp_path: Path) -> Path:
    """A base that only direct builds can use, with a layer of noise."""
    return write_static_base(tmp_path / "base", REFERENCE, filler_bytes=LAYER_BYTES)


@pytest.fixture
def large_debian(debian_base: DebianBase, tmp_path: Path) -> Path:
    """A base that containers start from, with a layer of noise."""
    return make_base(debian_base.only(AMD64), tmp_path / "base", filler_bytes=LAYER_BYTES)


@pytest.mark.parametrize(
    ("builder", "base"),
    [("direct", "large_base"), pytest.param("buildah", "large_debian", marks=pytest.mark.slow)],
)
def test_a_large_layer_is_never_held_in_memory(
    builder: str,
    base: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    require_tool: Callable[[str], Path],
) -> None:
    require_tool("docker-registry")
    side = make_near_side(tmp_path / "near", request.getfixturevalue(base), builder=builder)
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    for name, value in side.environment.items():
        monkeypatch.setenv(name, value)
    try:
        peaks = {"build": peak_bytes("build", folder=side.catalogue)}
    finally:
        Storage(find_engine("auto"), tmp_path / "cache" / "engine", emit=silent).remove_all()
    sizes = [path.stat().st_size for path in (side.out / "bundle" / "blobs" / "sha256").iterdir()]
    assert max(sizes) > LAYER_BYTES * 0.99, "noise does not compress"
    peaks["verify"] = peak_bytes("verify", "out", folder=side.catalogue)
    with run_registry(tmp_path / "registry") as registry:
        peaks["load"] = peak_bytes("load", "out", "--to", f"{registry.address}/x", folder=side.catalogue)
    assert {name: peak for name, peak in peaks.items() if peak > LIMIT_BYTES} == {}
    sys.stdout.write(f"peak memory: { {name: peak >> 20 for name, peak in peaks.items()} } MiB\n")


def test_four_large_blobs_at_once_need_little_memory_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    require_tool("docker-registry")
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    store = LayoutStore.create(tmp_path / "layout")
    image, _ = put_image(store, [{"big": os.urandom(TRANSPORT_BLOB_BYTES)} for _ in range(4)], kind="none")
    store.put_manifest(store.read_manifest(image.annotated(platform=None)), reference="x")
    with run_registry(tmp_path / "registry") as registry:
        there = f"docker://{registry.address}/a/b:1"
        peaks = {
            "push": peak_bytes("copy", "oci:layout:x", there, "--jobs", "4", folder=tmp_path),
            "pull": peak_bytes("copy", there, "oci:pulled:x", "--jobs", "4", folder=tmp_path),
        }
    sys.stdout.write(f"peak memory: { {name: peak >> 20 for name, peak in peaks.items()} } MiB\n")
    assert {name: peak for name, peak in peaks.items() if peak > TRANSPORT_LIMIT_BYTES} == {}
