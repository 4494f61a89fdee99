"""The report: complete, the same each time, harmless whatever others wrote into a bundle, and of a bounded size."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from airferry import api
from airferry.bundle.manifest import (
    Addition,
    AttemptEntry,
    BundleManifest,
    GroupEntry,
    ImageEntry,
    LayerEntry,
    OverlayEntry,
    PersistentAssets,
    PlatformEntry,
    RehearsalEntry,
    TargetEntry,
    ToolEntry,
)
from airferry.bundle.verify import Bundle, VerifyReport, open_bundle
from airferry.cli import app as program
from airferry.errors import HostError, IntegrityError, UsageError
from airferry.far.report.content import layers_text, make_report
from airferry.far.report.html import render_html
from airferry.far.report.text import render_text
from airferry.oci.digest import digest_of
from airferry.oci.documents import Index
from airferry.oci.validate import Defect
from oci_images import REFERENCE, make_bundle

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


def synthetic(bundle: Path, manifest: BundleManifest, findings: tuple[Defect, ...] = ()) -> tuple[str, str]:
    """Return page and text for a manifest that no layout backs."""
    opened = open_bundle(bundle)
    made = Bundle(
        opened.store,
        Index(schema_version=2, manifests=[]),
        opened.root,
        manifest,
        opened.manifest_descriptor,
        opened.documents,
    )
    verified = VerifyReport(bundle, opened.root, True, len(manifest.images), 1, 10, 10**9, findings)
    report = make_report(made, verified)
    return render_html(report), render_text(report)


def digest(text: str) -> str:
    return digest_of(text.encode())


def rehearsal(target: str, platform: str) -> RehearsalEntry:
    attempts = [
        AttemptEntry(host="hub.example", port=443, protocol="tcp", place="step.py:3", seen="python"),
        AttemptEntry(host="wandb.example", protocol="dns", process="curl", seen="network", allowed=True),
    ]
    return RehearsalEntry(
        target=target,
        group="image-0",
        platform=platform,
        image=digest(target),
        command=("python", "step.py"),
        reached="started",
        stopped_by="needs a GPU",
        modules=12,
        missing=("absent",),
        attempts=tuple(attempts),
    )


def make_manifest(images: int) -> BundleManifest:
    """Return a manifest of many images, of two platforms each, with shared bases, additions and overlays."""
    entries, groups, steps, targets = [], [], {}, []
    for number in range(images):
        name = f"image-{number}"
        platforms = {}
        for platform in ("linux/amd64", "linux/arm64"):
            layers = [
                LayerEntry(
                    digest=digest(f"{platform} {part}" if part < 5 else f"{platform} {number} {part}"),
                    size_bytes=10**6 * (part + 1),
                    media_type="application/vnd.oci.image.layer.v1.tar+zstd",
                    diff_id=digest(f"diff {part}"),
                    unpacked_bytes=10**7,
                    original_digest=digest(f"original {part}"),
                    from_base=part < 5,
                )
                for part in range(7)
            ]
            platforms[platform] = PlatformEntry(
                digest=digest(f"{name} {platform}"),
                size_bytes=sum(layer.size_bytes for layer in layers),
                unpacked_bytes=10**8,
                config_digest=digest("config"),
                base_digest=digest(f"base {platform}"),
                layers=tuple(layers),
                additions=tuple(
                    Addition(name=f"dist-{index}", version="1.0", file=f"dist_{index}-1.0.whl", sha256="a" * 64)
                    for index in range(12)
                ),
            )
        reference = f"registry.example/{name}:1"
        entries.append(
            ImageEntry(
                name=name,
                role="execution",
                image=reference,
                reference=reference,
                digest=digest(name),
                platforms=platforms,
            )
        )
        step = f"step/{number}"
        steps[step] = reference
        targets.append(TargetEntry(target=f"{step}:default", step_py="x", step_toml="y"))
        groups.append(
            GroupEntry(
                name=name,
                image_names=(name,),
                base_image="nvcr.io/base:1",
                platforms=("linux/amd64",),
                tag=reference,
                selected_image=reference,
                tar="x.tar",
                steps=(step,),
                repo_overlays=(
                    OverlayEntry(
                        repo="repo",
                        url="https://user:secret@git.example/",
                        ref="v1",
                        target="/opt/x",
                        commit="c" * 40,
                    ),
                ),
            )
        )
    return BundleManifest(
        workflow={"name": "ferry"},
        build_stages=(),
        targets=tuple(targets),
        execution_groups=tuple(groups),
        step_execution_images=steps,
        persistent_assets=PersistentAssets(mounts_from_configs=("/data:/data",)),
        images=tuple(entries),
        rehearsals=tuple(rehearsal(f"{step}:default", platform) for step in steps for platform in platforms),
        compression="zstd",
        tool=ToolEntry(airferry="0.1.0", versions={"engine": "1"}),
    )


def poisoned(value: Any, text: str) -> Any:
    """Return a manifest, unchecked, with a text at the end of each that it holds but digests, the keys included."""
    if isinstance(value, BaseModel):
        inner = {name: poisoned(getattr(value, name), text) for name in type(value).model_fields if name != "role"}
        return value.model_copy(update=inner)
    if isinstance(value, dict):
        return {poisoned(key, text): poisoned(item, text) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(poisoned(item, text) for item in value)
    return value + text if isinstance(value, str) and not value.startswith("sha256:") else value


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
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    ids = [str(attributes["id"]) for _name, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    (picture,) = page.all("svg")
    assert picture["role"] == "img" and set(str(picture["aria-labelledby"]).split()) <= set(ids)
    for link in page.all("a"):
        assert str(link["href"]).removeprefix("#") in ids


def luminance(color: str) -> float:
    """Return the relative luminance of `#rrggbb` or `#rgb`: WCAG 2.2, *relative luminance*."""
    digits = color.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    channels = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("text", "ground"),
    [("#1a1a1a", "#fff"), ("#0b4f8a", "#fff"), ("#1a1a1a", "#e7edf3"), ("#1a1a1a", "#f2f2f2"), ("#fff", "#1f4e79")],
)
def test_colours_have_enough_contrast(sealed: Path, text: str, ground: str) -> None:
    html = api.report(sealed).html
    assert text in html and ground in html
    lighter, darker = sorted((luminance(text), luminance(ground)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


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
    rows = re.findall(r"<tr><th scope=\"row\">shared \d+</th><td>[^<]*</td><td>(\d+)</td>", html)
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
