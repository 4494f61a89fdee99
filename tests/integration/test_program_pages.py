"""The man page as `man` shows it, and the pages for operators: their commands are run on a bundle that was built."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registries import RegistryProcess, run_registry

from airferry.bundle.verify import open_bundle
from airferry.host import process
from near_side import NearSide

ROOT = Path(__file__).parents[2]
PAGES = ("near-side", "far-side", "security-officer")
BLOCK = re.compile(r"^<!-- runs -->\n```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 300


def test_man_shows_the_page_without_a_warning(require_tool: Callable[[str], Path]) -> None:
    argv = [require_tool("groff"), "-man", "-Tutf8", "-ww", "-Kutf8", ROOT / "docs" / "airferry.1"]
    shown = process.run(argv, timeout_s=60)
    text = re.sub(r".\x08", "", shown.text)
    assert shown.tail == () and "airferry verify" in text and "--root" in text


@pytest.fixture
def registry(tmp_path: Path, require_tool: Callable[[str], Path]) -> Iterator[RegistryProcess]:
    require_tool("docker-registry")
    with run_registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def workplace(side: NearSide, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with a plan, its catalogue, and the bundle that was built of both, in `out`."""
    side.build()
    for name in side.environment:
        monkeypatch.delenv(name)
    side.write(loader={"pythons": ["3.11"]})
    side.build()
    return side.catalogue


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, side: NearSide, workplace: Path, registry: RegistryProcess) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = BLOCK.findall(text)
    assert blocks, "the page has no command that is marked to run"
    root = open_bundle(workplace / "out").root
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AIRFERRY_CACHE": os.environ["AIRFERRY_CACHE"],
    }
    for block in blocks:
        script = re.sub(r"sha256:[0-9a-f]{64}", root, block).replace("registry.example.com:5000", registry.address)
        script = script.replace("~/Nemotron", str(side.catalogue))
        script = re.sub(r"^git clone https://.*$", "", script, flags=re.MULTILINE)  # the catalogue is there already
        argv = ["bash", "-euo", "pipefail", "-c", script]
        process.run(argv, timeout_s=TIMEOUT_S, cwd=workplace, environment=environment)
