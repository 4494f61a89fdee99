"""The report in a real browser: on screens of several widths, light and dark, and on paper."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path

import pytest

from airferry.host import process
from airferry.oci.validate import Defect
from oci_images import make_bundle
from reported_bundles import digest, make_manifest, poisoned, synthetic

TIMEOUT_S = 120
SCREENS = [(320, "light"), (500, "light"), (500, "dark"), (800, "light"), (1440, "dark")]
# in points: what no printer reaches, and less than the style sheet keeps free
MARGIN = 36
# Measures each frame: what is wider than its box, the contrast of each text, digests on more lines than one.
MEASURE = """
addEventListener("load", () => {
  const channels = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (color) => {
    const [r, g, b] = color.map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const measured = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, style = (e) => frame.contentWindow.getComputedStyle(e);
    const ground = (e) => {
      if (e.closest("svg")) return channels(style(e.previousElementSibling).fill);
      for (; e; e = e.parentElement) {
        const color = channels(style(e).backgroundColor);
        if (color.length && color[3] !== 0) return color;
      }
      return [255, 255, 255];
    };
    const result = { headings: [], cut: [], faint: [], broken: [], texts: 0 };
    result.bars = page.querySelectorAll("rect").length;
    result.dark = frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches;
    for (const e of page.body.querySelectorAll("*")) {
      const words = e.textContent.slice(0, 60), box = e.getBoundingClientRect();
      if (e.tagName == "H2") result.headings.push(words);
      if (e.scrollWidth > e.clientWidth && e.clientWidth && style(e).display != "inline") result.cut.push(words);
      if (box.width && box.right > frame.clientWidth) result.cut.push(words);
      if ([...e.childNodes].some((node) => node.nodeType == 3 && node.data.trim())) {
        const text = channels(e.closest("svg") ? style(e).fill : style(e).color);
        const [low, high] = [luminance(text), luminance(ground(e))].sort((one, other) => one - other);
        result.texts += 1;
        if ((high + 0.05) / (low + 0.05) < 4.5) result.faint.push(words);
      }
      if (e.matches(".whole>td>code") && e.getClientRects()[0].height > 2 * parseFloat(style(e).fontSize)) {
        result.broken.push(e.textContent);
      }
    }
    return result;
  });
  const shown = document.createElement("pre");
  shown.id = "measured";
  shown.textContent = JSON.stringify(measured);
  document.body.append(shown);
});
"""

Run = Callable[..., str]


@pytest.fixture
def browser(require_tool: Callable[[str], Path], tmp_path: Path) -> Run:
    program = require_tool("chromium")

    def run(*arguments: str) -> str:
        # its sandbox needs privileges that an ordinary user of a container lacks; the page is our own
        fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [program, *fixed, profile, *arguments]
        return process.run(command, timeout_s=TIMEOUT_S, environment={"HOME": str(tmp_path)}).text

    return run


@pytest.fixture
def printed(require_tool: Callable[[str], Path]) -> Callable[[Path], tuple[list[list[str]], list[float], float]]:
    """Return the lines of each page of a PDF, where its words end from left to right, and how wide a page is."""
    program = require_tool("pdftotext")

    def read(paper: Path) -> tuple[list[list[str]], list[float], float]:
        text = process.run([program, "-layout", paper, "-"], timeout_s=TIMEOUT_S).text
        pages = [[" ".join(line.split()) for line in page.splitlines() if line.strip()] for page in text.split("\f")]
        boxes = process.run([program, "-bbox", paper, "-"], timeout_s=TIMEOUT_S).text
        ends = [float(found) for found in re.findall(r' xMax="([\d.]+)"', boxes)]
        (width,) = set(re.findall(r'<page width="([\d.]+)"', boxes))
        return pages[:-1], ends, float(width)

    return read


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, str]:
    """Return a page with findings, and one on which every text of others is a word of more than 200 letters."""
    make_bundle(tmp_path / "bundle")
    findings = tuple(Defect(subject=f"blob {digest(str(no))}", text="is damaged", digest=None) for no in range(20))
    return {
        "findings": synthetic(tmp_path / "bundle", make_manifest(4), findings)[0],
        "long": synthetic(tmp_path / "bundle", poisoned(make_manifest(2), "a-long-name_" * 17))[0],
    }


def test_nothing_is_cut_or_faint_on_any_screen(browser: Run, pages: dict[str, str], tmp_path: Path) -> None:
    frames = [(name, width, scheme) for name in pages for width, scheme in SCREENS]
    # a frame takes its scheme from the element that holds it
    body = "".join(
        f'<iframe style="border:0;width:{width}px;color-scheme:{scheme}" srcdoc="{escape(pages[name])}"></iframe>'
        for name, width, scheme in frames
    )
    (tmp_path / "frames.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{body}<script>{MEASURE}</script>")
    dom = browser("--dump-dom", (tmp_path / "frames.html").as_uri())
    found = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    measured = json.loads(unescape(found[1]))
    assert len(measured) == len(frames)
    for (name, width, scheme), frame in zip(frames, measured, strict=True):
        where = f"{name} at {width} pixels, {scheme}"
        assert frame["dark"] == (scheme == "dark"), where
        assert {"Summary", "How to verify it by hand", "Signatures"} <= set(frame["headings"]), where
        assert frame["texts"] > 100 and frame["bars"] == pages[name].count("<rect "), where
        assert (frame["cut"], frame["faint"]) == ([], []), where
        digests = [text for text in frame["broken"] if re.fullmatch(r"sha256:[0-9a-f]{64}", text)]
        assert digests == [] or width < 500, where


@pytest.mark.parametrize("size", ["A4", "Letter"])
def test_it_prints(
    browser: Run,
    printed: Callable[[Path], tuple[list[list[str]], list[float], float]],
    pages: dict[str, str],
    tmp_path: Path,
    size: str,
) -> None:
    """Every page has its number and the root; none ends with a heading, and none begins within a row."""
    html = pages["findings"]
    (tmp_path / "page.html").write_text(html.replace("@page{", f"@page{{size:{size};"))
    paper = tmp_path / "report.pdf"
    # somebody who prefers the dark prints on white paper all the same
    dark = "--blink-settings=preferredColorScheme=0"
    browser(dark, f"--print-to-pdf={paper}", "--no-pdf-header-footer", (tmp_path / "page.html").as_uri())
    sheets, ends, width = printed(paper)
    assert len(sheets) > 8 and width == pytest.approx(595 if size == "A4" else 612, abs=1)
    assert max(ends) < width - MARGIN

    root = re.findall(r'@bottom-left\{content:"(Root sha256:[0-9a-f]{64})"', html)[0]
    heads = {" ".join(re.findall(r">([^<]+)</th>", head)) for head in re.findall(r"<thead>.*?</thead>", html)}
    titles = set(re.findall(r"(?:<caption>|<h2[^>]*>)([^<]+)<", html))
    below = tuple(set(re.findall(r'<tr class="whole"><td[^>]*><b>([^<]+)', html)))
    for number, (*lines, foot) in enumerate(sheets, start=1):
        assert foot == f"{root} Page {number} of {len(sheets)}"
        # a head may take two lines
        rows = [line for line in lines if not any(set(line.split()) <= set(head.split()) for head in heads)]
        assert lines[-1] not in titles and lines[-1] == rows[-1], f"page {number} ends with a heading"
        assert not rows[0].startswith(below), f"page {number} begins within a row"
    (head,) = (head for head in heads if head.startswith("Layer "))
    continued = [lines for lines in sheets if any(line.startswith(("own ", "shared ")) for line in lines)]
    assert len(continued) > 1 and all(head in lines for lines in continued), "the head is not repeated"

    words = {word for lines in sheets for line in lines for word in line.split()}
    whole = set(re.findall(r'<code class="whole">(?:sha256:)?([0-9a-f]{64})<', html))
    assert len(whole) > 30 and whole <= {word.removeprefix("sha256:") for word in words}
