"""The report in a real browser, with nothing to fetch and nothing to run."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from airferry import api
from airferry.host import process
from oci_images import make_bundle

TIMEOUT_S = 120
WIDTH, HEIGHT = 1200, 2400


@pytest.fixture
def browser(require_tool: Callable[[str], Path], tmp_path: Path) -> Callable[..., process.Completed]:
    program = require_tool("chromium")

    def run(*arguments: str) -> process.Completed:
        # its sandbox needs privileges that an ordinary user of a container lacks; the page is our own
        fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        return process.run(
            [program, *fixed, profile, *arguments], timeout_s=TIMEOUT_S, environment={"HOME": str(tmp_path)}
        )

    return run


@pytest.fixture
def page(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle")
    api.report(tmp_path / "bundle", html=tmp_path / "report.html")
    return tmp_path / "report.html"


def test_a_browser_shows_every_section(browser: Callable[..., process.Completed], page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "report.png"
    browser(f"--screenshot={picture}", f"--window-size={WIDTH},{HEIGHT}", page.as_uri())
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG") and struct.unpack(">II", data[16:24]) == (WIDTH, HEIGHT)
    assert len(data) > 50_000, "the page is nearly empty"
    dom = browser("--dump-dom", page.as_uri()).text
    for heading in ("Summary", "How to verify it by hand", "What was added to each base", "Signatures"):
        assert f">{heading}</h2>" in dom
    assert dom.count("<rect ") == page.read_text().count("<rect ")


def test_it_prints(browser: Callable[..., process.Completed], page: Path, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    browser(f"--print-to-pdf={paper}", "--no-pdf-header-footer", page.as_uri())
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 10_000
