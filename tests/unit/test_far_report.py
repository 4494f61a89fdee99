"""The report: complete, the same each time, harmless whatever others wrote into a bundle, and of a bounded size."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from airferry import api
from airferry.bundle.manifest import BundleManifest, ToolEntry
from airferry.bundle.verify import open_bundle
from airferry.cli import app as program
from airferry.errors import HostError, IntegrityError, UsageError
from airferry.far.report.content import layers_text
from airferry.far.report.style import COLOURS, style_sheet
from airferry.oci.validate import Defect
from oci_images import REFERENCE, make_bundle
from reported_bundles import digest, make_manifest, poisoned, synthetic

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\n\x1b[31m\u202emoc"
VOID = {"meta", "img", "br", "link", "input"}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reported") / "bundle"
    make_bundle(path)
    return path


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order; collects elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_report_tells_of_everything_in_a_bundle(sealed: Path, tmp_path: Path) -> None:
    bundle = open_bundle(sealed)
    outcome = api.report(sealed, html=tmp_path / "r.html", text=tmp_path / "r.txt", root=bundle.root)
    image = bundle.manifest.images[0]
    page = Page(outcome.html)
    for text in (page.text, outcome.text):
        assert {bundle.root, image.digest, REFERENCE, bundle.manifest.artifacts[0].digest} <= set(text.split())
        for entry in image.platforms.values():
            assert {layer.digest for layer in entry.layers} <= set(text.split())
        assert "Nothing is wrong" in text and "is the same" in text
        assert f"root={bundle.root}" in text and "sha256sum" in text
    assert (tmp_path / "r.html").read_text() == outcome.html
    assert (tmp_path / "r.txt").read_text() == outcome.text


def test_a_report_tells_how_far_steps_came_and_what_they_reached_for(sealed: Path) -> None:
    for text in synthetic(sealed, make_manifest(2)):
        assert "that the plan does not declare: 4." in " ".join(text.split())
        for word in ("step/1:default", "started", "needs a GPU", "absent", "hub.example:443", "step.py:3", "curl"):
            assert word in text
        assert text.count("not declared") == text.count("step.py:3") == 4
    assert "No step was rehearsed." in api.report(sealed).text


def test_the_same_bundle_gives_the_same_report(sealed: Path) -> None:
    one, other = api.report(sealed), api.report(sealed)
    assert (one.html, one.text) == (other.html, other.text)


def test_a_page_needs_nothing_from_outside_and_runs_nothing(sealed: Path) -> None:
    page = Page(api.report(sealed).html)
    names = {name for name, _attributes in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    for _name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "action", "style")]
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in str(page.all("meta"))
    assert "url(" not in api.report(sealed).html and "@import" not in api.report(sealed).html


def test_a_page_is_accessible(sealed: Path) -> None:
    page = Page(api.report(sealed).html)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1 and len(page.all("h2")) == len(page.all("section"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))
    ids = [str(attributes["id"]) for _name, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [picture["role"] for picture in page.all("svg")] == ["img", "img"]
    assert [picture["aria-label"] for picture in page.all("svg")] == ["2 layers, shared: 1", "2 layers, shared: 1"]
    for link in page.all("a"):
        assert str(link["href"]).removeprefix("#") in ids


def luminance(color: str) -> float:
    """Return the relative luminance of `#rrggbb` or `#rgb`: WCAG 2.2, *relative luminance*."""
    digits = color.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    channels = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# what is drawn on what, and WCAG's least contrast: 4.5 for text, 3 for what is not (1.4.3 and 1.4.11)
DRAWN = [
    *((text, ground, 4.5) for text in ("ink", "link") for ground in ("ground", "head", "code")),
    ("number", "shared", 4.5),
    *((line, "ground", 3.0) for line in ("accent", "rule", "shared")),
]


@pytest.mark.parametrize(("scheme", "number"), [("light", 0), ("dark", 1)])
@pytest.mark.parametrize(("text", "ground", "least"), DRAWN)
def test_colours_have_enough_contrast(scheme: str, number: int, text: str, ground: str, least: float) -> None:
    lighter, darker = sorted((luminance(COLOURS[name][number]) for name in (text, ground)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= least, scheme


def test_a_layer_of_one_image_stands_out_by_its_fill_or_its_edge() -> None:
    for number in (0, 1):
        ground = luminance(COLOURS["ground"][number])
        contrasts = [
            (max(value, ground) + 0.05) / (min(value, ground) + 0.05)
            for value in (luminance(COLOURS[name][number]) for name in ("own", "edge"))
        ]
        assert max(contrasts) >= 3


def test_no_colour_is_outside_the_two_schemes_and_paper_is_light() -> None:
    light, dark, rules = re.split(
        r"@media screen and \(prefers-color-scheme:dark\)\{|\n(?=\*\{box)", style_sheet("sha256:0")
    )
    for scheme, block in (("light", light), ("dark", dark)):
        assert f"color-scheme:{scheme}" in block and block.count("--") == len(COLOURS)
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", rules)) == {COLOURS["ink"][0]}, "but for the foot of a page"
    assert set(re.findall(r"var\(--(\w+)\)", rules)) == COLOURS.keys()


def test_each_page_has_its_number_and_the_root() -> None:
    foot = style_sheet("sha256:12ab").partition("@page{")[2]
    assert 'content:"Page " counter(page) " of " counter(pages)' in foot
    assert 'content:"Root sha256:12ab"' in foot
    assert style_sheet('sha256:1"}</style>').count("</style>") == 0


def test_digests_have_the_full_width_and_are_broken_nowhere(sealed: Path) -> None:
    html, text = synthetic(sealed, make_manifest(3))
    held = {digest("image-0"), digest("linux/amd64 0"), digest("original 3"), digest("base linux/arm64"), "a" * 64}
    assert held <= set(re.findall(r'<code class="whole">([^<]*)</code>', html))
    assert not re.search(r"<code>(sha256:)?[0-9a-f]{64}</code>", html.partition("<main>")[2])
    for columns, line in re.findall(r'<tr class="whole"><td colspan="(\d+)">(.*?)</td></tr>', html):
        assert int(columns) >= 1 and line.startswith("<b>") and line.count("<code") == 1
    for body in re.findall(r"<tbody><tr>.*?</tbody>", html, re.DOTALL):
        first, *lines = body.split("</tr>\n")[:-1]
        assert 'scope="rowgroup"' in first and all(f'colspan="{first.count("</t")}"' in line for line in lines)
    assert held <= set(text.split())


def test_a_name_that_is_long_may_be_broken_and_a_short_one_may_not(sealed: Path) -> None:
    html, _text = synthetic(sealed, poisoned(make_manifest(1), "x" * 200))
    assert f"<span>image-0{'x' * 200}</span>" in html
    assert "<i>linux/amd64</i>" in synthetic(sealed, make_manifest(1))[0]
    rules = style_sheet("sha256:0")
    assert (
        "th span,td span,td code{overflow-wrap:anywhere}" in rules
        and "i{font-style:normal;white-space:nowrap}" in rules
    )


def test_the_text_fits_into_80_columns_words_whole(sealed: Path) -> None:
    _html, text = synthetic(sealed, make_manifest(3))
    for line in text.splitlines():
        assert len(line) < 80 or line.startswith("    "), "only commands, and what has no space, are wider"
    _html, text = synthetic(sealed, poisoned(make_manifest(1), "x" * 200))
    assert f"image-0{'x' * 200}" in text.split()
    _html, text = synthetic(sealed, poisoned(make_manifest(1), "\u8a13\u7df4"))
    steps = [line for line in text.splitlines() if line.startswith(("  Step ", "  step/0\u8a13"))]
    assert steps[0].index("Targets") - steps[1].index("\u2013") == 2, "a letter of East Asia is two columns wide"


def test_hostile_names_are_shown_and_do_nothing(sealed: Path) -> None:
    finding = Defect(subject=f"image {HOSTILE}", text="is wrong", digest=None)
    html, text = synthetic(sealed, poisoned(make_manifest(2), HOSTILE), (finding,))
    page = Page(html)
    assert not page.all("script") and not page.all("img")
    assert "<script>alert(1)</script>" in page.text
    for shown in (html, text):
        assert "\x1b" not in shown and "\u202e" not in shown
        assert "secret" not in shown
    lines = [line for line in text.splitlines() if "<script>" in line]
    assert lines and not any(line.startswith("\x1b") or line.startswith("[31m") for line in lines)


def test_two_hundred_images_fit_into_two_megabytes(sealed: Path) -> None:
    html, text = synthetic(sealed, make_manifest(200))
    assert len(html.encode()) < 2_000_000 and len(text.encode()) < 2_000_000
    page = Page(html)
    assert len(page.all("rect")) == 200 * 2 * 7
    assert "step/199:default" in page.text


def test_shared_layers_are_counted_once(sealed: Path) -> None:
    html, text = synthetic(sealed, make_manifest(3))
    for shown in (html, text):
        words = " ".join(shown.split())
        assert "10 layers are shared" in words and "12 layers belong to one bar alone" in words
        assert shown.count(digest("linux/amd64 0")) == 1
    rows = re.findall(r"<tr><th scope=\"rowgroup\">shared \d+</th><td>[^<]*</td><td>(\d+)</td>", html)
    assert rows == ["3"] * 10


def test_a_manifest_that_holds_nothing_has_a_report(sealed: Path) -> None:
    empty = BundleManifest(workflow={}, build_stages=(), compression="zstd", tool=ToolEntry(airferry="0"))
    html, text = synthetic(sealed, empty)
    assert "Images and the steps that need them: none." in text and not Page(html).all("svg")
    assert text.splitlines()[0].strip() == "Bundle" and "unnamed" not in text


def test_a_damaged_bundle_is_reported_and_the_code_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    layer = bundle.manifest.images[0].platforms["linux/amd64"].layers[1]
    path = bundle.store.blob_path(layer.digest)
    path.write_bytes(bytes(layer.size_bytes))
    page = tmp_path / "r.html"
    assert program.run(["report", str(tmp_path / "bundle"), "--html", str(page)]) == IntegrityError.exit_code
    assert layer.digest in page.read_text() and "Do not load this bundle" in page.read_text()
    summary = page.read_text().partition('<section id="by-hand"')[0]
    assert "1 finding: do not load this bundle" in " ".join(Page(summary + "</main></body></html>").text.split())
    assert "is damaged" in capsys.readouterr().err


def test_bundles_that_cannot_be_read_and_places_that_cannot_be_written(sealed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contains no bundle"):
        api.report(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError):
        api.report(sealed, html=tmp_path / "file" / "r.html")


def test_without_a_file_the_text_goes_to_stdout(sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["--quiet", "report", str(sealed)]) == 0
    assert capsys.readouterr().out == api.report(sealed).text


@pytest.mark.parametrize(
    ("shared", "alone", "expected"),
    [
        (0, 2, "No layer is shared by several bars. 2 layers belong to one bar alone"),
        (
            1,
            1,
            "1 layer is shared by several bars: dark, numbered; it is stored once (8 B), which saves 16 B. 1 layer",
        ),
        (3, 0, "3 layers are shared by several bars: dark, with the same number in each; they are stored once (8 B)"),
    ],
)
def test_numbers_of_layers_are_worded(shared: int, alone: int, expected: str) -> None:
    said = layers_text(shared, alone, size="8 B", saved="16 B")
    assert said.startswith(expected) and ("alone" in said) == (alone > 0)
