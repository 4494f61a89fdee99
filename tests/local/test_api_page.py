"""docs/api.md: each block of Python runs, one after the other, from a plan to jobs that are ready to be submitted.

The base is a layout with the files of a Python that is never run, the registry a scripted one.
"""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import pytest

from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from catalogues import airgap, write_airgap, write_step
from layer_tars import tar_of
from oci_images import put_index, put_manifest
from scripted_registry import run_scripted
from static_bases import python_of

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
REFERENCE_NAME = "org.opencontainers.image.ref.name"
BASE = "oci:base:base:1"
IDENTITY = ["-c", "user.name=a", "-c", "user.email=a@example.com"]


def write_base(path: Path) -> None:
    store = LayoutStore.create(path)
    layer = compress_layer(io.BytesIO(tar_of(python_of())), compression=Compression("gzip", 1), into=store)
    index = put_index(store, [put_manifest(store, [layer])])
    store.write_index([index.model_copy(update={"annotations": {REFERENCE_NAME: "base:1"}})])


def test_the_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("AIRFERRY_SITE", "AIRFERRY_SOURCE", "AIRFERRY_ROOT", "AIRFERRY_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "work"
    write_step(home, "sft/one", configs={"tiny": "a: 1\n"}, source="import json\n")
    more = {
        "launcher_image": {"base_image": BASE, "packages": []},
        "builder": "direct",
        "loader": False,
        "bases": "omit",
    }
    write_airgap(home, airgap({"trainer": BASE}, {"sft/one": "trainer"}, **more))
    write_base(home / "base")
    (home / ".gitignore").write_text("base\nout\n")
    subprocess.run(["git", "init", "--quiet", str(home)], check=True)
    subprocess.run(["git", "-C", str(home), "add", "--all"], check=True)
    subprocess.run(["git", "-C", str(home), *IDENTITY, "commit", "--quiet", "-m", "x"], check=True)
    monkeypatch.chdir(home)
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    names: dict[str, object] = {}
    with run_scripted() as registry:
        for block in blocks:
            text = block.replace("registry.example.com:5000", registry.address)
            text = text.replace('ca_file=Path("/etc/ssl/site-ca.pem"), ', "")
            exec(compile(text, str(PAGE), "exec"), names)
    assert (home / "jobs" / "kubernetes" / "submit.txt").is_file()
    assert names["checked"].steps == ("sft/one:tiny",)  # type: ignore[attr-defined]
