"""Inspection of images and artifacts: every finding says what, of whom and of which digest, and none hides others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from airferry.errors import IntegrityError
from airferry.events import Event, Progress
from airferry.host.canonical import canonical_json
from airferry.oci import validate
from airferry.oci.documents import (
    EMPTY_CONFIG,
    IMAGE_CONFIG,
    IMAGE_MANIFEST,
    LAYER_TAR,
    REF_NAME,
    Descriptor,
    Manifest,
    PlatformDocument,
    parse_manifest,
)
from airferry.oci.layout import LayoutStore
from airferry.oci.validate import MAX_FINDINGS, Defect, ImagePart, Inspector, report_strays, validate_layout
from oci_images import put_image, put_index, put_manifest

X = "image `x`"
AMD64 = f"{X}, platform `linux/amd64`"


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "layout")


def image(store: LayoutStore, text: str = "1", **options: Any) -> Descriptor:
    return put_image(store, [{"a": text.encode()}], **options)[0]


def inspect(store: LayoutStore, descriptor: Descriptor, **options: Any) -> tuple[list[Defect], tuple[ImagePart, ...]]:
    inspector = Inspector(store)
    parts = inspector.image(descriptor, subject=X, **options)
    return inspector.findings, parts


def rewritten(store: LayoutStore, manifest: Descriptor, change: Callable[[dict[str, Any]], None]) -> Descriptor:
    """Store a manifest again, changed; the descriptor states the same platform."""
    document = json.loads(store.read_bytes(manifest))
    change(document)
    return store.put_bytes(canonical_json(document), IMAGE_MANIFEST, platform=manifest.platform)


def index_over(store: LayoutStore, child: Descriptor, depth: int) -> list[Descriptor]:
    """Store indexes, each over the one before it, and return them, the outermost first."""
    indexes = [put_index(store, [child])]
    while len(indexes) < depth:
        indexes.insert(0, put_index(store, [indexes[0]]))
    return indexes


def test_findings_end_at_their_limit(store: LayoutStore) -> None:
    inspector = Inspector(store)
    for number in range(MAX_FINDINGS + 2):
        inspector.report(X, f"finding {number}")
    assert len(inspector.findings) == MAX_FINDINGS


# -- what an index or a descriptor says of a manifest --------------------------------------------------------------


@pytest.mark.parametrize(("stated", "own"), [("linux/amd64", "linux/arm64"), ("linux/arm64", "linux/amd64")])
def test_the_platform_that_is_stated_of_a_lone_manifest_is_compared(store: LayoutStore, stated: str, own: str) -> None:
    _child, results = put_image(store, [{"a": b"1"}])
    manifest = put_manifest(store, results, platform=stated, config_platform=own)
    findings, parts = inspect(store, manifest)
    assert findings == [Defect(X, f"its config says platform `{own}`, the index `{stated}`", manifest.digest)]
    assert [str(part.platform) for part in parts] == [stated]


def test_a_variant_on_one_side_alone_is_a_difference(store: LayoutStore) -> None:
    child = image(store)
    third = PlatformDocument(os="linux", architecture="amd64", variant="v3")
    findings, _parts = inspect(store, child.annotated(platform=third))
    assert [finding.text for finding in findings] == [
        "its config says platform `linux/amd64`, the index `linux/amd64/v3`"
    ]
    document = json.loads(store.read_bytes(parse_manifest(store.read_bytes(child)).config))
    config = store.put_bytes(canonical_json({**document, "variant": "v3"}), IMAGE_CONFIG)
    other = rewritten(store, child, lambda manifest: manifest["config"].update(digest=config.digest, size=config.size))
    findings, _parts = inspect(store, other)
    assert [finding.text for finding in findings] == [
        "its config says platform `linux/amd64/v3`, the index `linux/amd64`"
    ]


def test_a_manifest_without_a_platform_is_said_of_the_image(store: LayoutStore) -> None:
    child = image(store)
    findings, parts = inspect(store, put_index(store, [child.annotated(platform=None)]))
    assert findings == [Defect(X, f"manifest `{child.digest}` is listed without a platform", child.digest)]
    assert len(parts) == 1


def test_a_platform_that_is_listed_twice_counts_first_in_an_original_and_is_a_finding_else(store: LayoutStore) -> None:
    first, second = image(store), image(store, "2")
    index = put_index(store, [first, second])
    findings, parts = inspect(store, index)
    assert findings == [Defect(AMD64, "is listed twice", second.digest)]
    assert [part.manifest.digest for part in parts] == [first.digest, second.digest]
    findings, parts = inspect(store, index, original=True)
    assert findings == []
    assert [part.manifest.digest for part in parts] == [first.digest]


def test_attestations_of_an_original_are_no_platform_and_hide_none(store: LayoutStore) -> None:
    child = image(store)

    def attest(document: dict[str, Any]) -> None:
        document["layers"][0]["mediaType"] = "application/vnd.in-toto+json"

    unknown = PlatformDocument(os="unknown", architecture="unknown")
    attestation = rewritten(store, image(store, "2"), attest).annotated(platform=unknown)
    inspector = Inspector(store)
    index = put_index(store, [attestation, child])
    parts = inspector.image(index, subject=X, original=True)
    assert [part.manifest.digest for part in parts] == [child.digest]
    assert inspector.findings == [] and inspector.artifacts == {attestation.digest}
    assert parse_manifest(store.read_bytes(attestation)).layers[0].digest in inspector.wanted


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_indexes_nest_as_deep_as_is_allowed_and_no_deeper(store: LayoutStore, allowed: int) -> None:
    child = image(store)
    outer, *_others = index_over(store, child, allowed + 1)
    findings, parts = inspect(store, outer, nested=allowed)
    assert findings == [] and [part.manifest.digest for part in parts] == [child.digest]
    outer, *_others, innermost = index_over(store, child, allowed + 2)
    findings, parts = inspect(store, outer, nested=allowed)
    assert findings == [Defect(X, f"index `{innermost.digest}` is nested in an index", innermost.digest)]
    assert parts == ()


@pytest.mark.parametrize("nested", [0, 1])
def test_what_stands_behind_an_index_in_an_index_is_looked_at(store: LayoutStore, nested: int) -> None:
    inner, behind = put_index(store, [image(store)]), image(store, "2", platform="linux/arm64")
    _findings, parts = inspect(store, put_index(store, [inner, behind]), nested=nested)
    assert [str(part.platform) for part in parts] == ["linux/amd64", "linux/arm64"][1 - nested :]


# -- what a manifest says ------------------------------------------------------------------------------------------


def test_a_layer_of_an_unknown_type_is_said_of_its_manifest(store: LayoutStore) -> None:
    manifest = rewritten(store, image(store), lambda document: document["layers"][0].update(mediaType="x/strange"))
    findings, _parts = inspect(store, manifest)
    assert findings == [Defect(X, "has layers of unknown type `x/strange`", manifest.digest)]


def test_mixed_compressions_are_said_of_their_manifest_unless_others_made_it(store: LayoutStore) -> None:
    _one, zstd = put_image(store, [{"a": b"1"}])
    _two, gzipped = put_image(store, [{"b": b"2"}], kind="gzip")
    manifest = put_manifest(store, [*zstd, *gzipped])
    findings, _parts = inspect(store, manifest)
    assert findings == [Defect(X, "mixes compressions in its layers: gzip, zstd", manifest.digest)]
    findings, parts = inspect(store, manifest, original=True)
    assert findings == [] and len(parts) == 1


def test_other_layers_than_the_config_lists_are_said_of_the_manifest(store: LayoutStore) -> None:
    _child, results = put_image(store, [{"a": b"1"}, {"b": b"2"}])
    manifest = put_manifest(store, results, diff_ids=[results[0].diff_id])
    findings, _parts = inspect(store, manifest)
    assert findings == [Defect(X, "has 2 layers, its config lists 1 diff_ids", manifest.digest)]


def test_an_unknown_kind_of_manifest_is_said_of_its_digest(store: LayoutStore) -> None:
    blob = store.put_bytes(b"x", LAYER_TAR)
    findings, parts = inspect(store, blob)
    assert findings == [Defect(X, f"`{blob.digest}` has the unknown media type `{LAYER_TAR}`", blob.digest)]
    assert parts == ()


def test_a_config_of_just_the_largest_size_is_read(store: LayoutStore, monkeypatch: pytest.MonkeyPatch) -> None:
    child = image(store)
    config = parse_manifest(store.read_bytes(child)).config
    monkeypatch.setattr(validate, "MAX_IMAGE_CONFIG_BYTES", config.size)
    assert inspect(store, child)[0] == []
    monkeypatch.setattr(validate, "MAX_IMAGE_CONFIG_BYTES", config.size - 1)
    (finding,) = inspect(store, child)[0]
    assert "is larger than" in finding.text and finding.digest == config.digest


@pytest.mark.parametrize("role", ["index", "manifest", "config", "layer"])
def test_a_blob_that_is_declared_with_two_sizes_is_named_by_its_role(store: LayoutStore, role: str) -> None:
    child = image(store)
    manifest = parse_manifest(store.read_bytes(child))
    index = put_index(store, [child])

    def lie(document: dict[str, Any]) -> None:
        (document["config"] if role == "config" else document["layers"][0])["size"] += 1

    blob = {"index": index, "manifest": child, "config": manifest.config, "layer": manifest.layers[0]}[role]
    other = blob.annotated(size=blob.size + 1) if role in ("index", "manifest") else rewritten(store, child, lie)
    inspector = Inspector(store)
    for descriptor in (index, other):
        inspector.image(descriptor, subject=X)
    text = f"{role} `{blob.digest}` is declared with {blob.size + 1} bytes, elsewhere with {blob.size}"
    assert Defect(X, text, blob.digest) in inspector.findings


# -- artifacts -----------------------------------------------------------------------------------------------------


def artifact(store: LayoutStore, config_type: str = EMPTY_CONFIG, artifact_type: str | None = None) -> Descriptor:
    manifest = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        artifact_type=artifact_type,
        config=store.put_bytes(b"{}", config_type),
        layers=[store.put_bytes(b"content", "text/plain")],
    )
    return store.put_bytes(canonical_json(manifest), IMAGE_MANIFEST)


@pytest.mark.parametrize(
    ("config_type", "artifact_type", "sound"),
    [
        (EMPTY_CONFIG, None, False),
        (EMPTY_CONFIG, "application/x", True),
        ("application/vnd.cncf.helm.config.v1+json", None, True),
    ],
)
def test_an_artifact_says_what_it_is(
    store: LayoutStore, config_type: str, artifact_type: str | None, sound: bool
) -> None:
    descriptor = artifact(store, config_type, artifact_type)
    inspector = Inspector(store)
    assert inspector.artifact(descriptor, subject="artifact `x`") is not None
    untold = Defect("artifact `x`", "has an empty config and no artifactType", descriptor.digest)
    assert inspector.findings == ([] if sound else [untold])


def test_a_lost_config_of_an_artifact_is_called_one(store: LayoutStore) -> None:
    descriptor = artifact(store, artifact_type="application/x")
    config = parse_manifest(store.read_bytes(descriptor)).config.digest
    store.remove_blob(config)
    inspector = Inspector(store)
    inspector.artifact(descriptor, subject="artifact `x`")
    inspector.check_blobs()
    (finding,) = inspector.findings
    assert str(finding).startswith(f"artifact `x`: config: blob `{config}` is missing") and finding.digest == config


# -- whole layouts -------------------------------------------------------------------------------------------------


def test_blobs_are_read_largest_first_and_progress_is_said_in_steps(
    store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    opened = LayoutStore.open_blob

    @contextmanager
    def open_blob(self: LayoutStore, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        sizes.append(descriptor.size)
        with opened(self, descriptor) as stream:
            yield stream

    _child, results = put_image(store, [{"a": b"1"}, {"b": bytes(range(256)) * 9}, {"c": bytes(range(200))}])
    inspector = Inspector(store)
    inspector.image(put_manifest(store, results), subject=X)
    monkeypatch.setattr(LayoutStore, "open_blob", open_blob)
    monkeypatch.setattr(validate, "CHECKED_EVERY_BYTES", 1)
    events: list[Event] = []
    inspector.check_blobs(jobs=1, emit=events.append)
    assert sizes == sorted((result.descriptor.size for result in results), reverse=True) and len(set(sizes)) == 3
    progress = [event for event in events if isinstance(event, Progress)]
    assert {(event.task, event.total) for event in progress} == {("verify", sum(sizes))}
    assert len(progress) >= 3 and progress[-1].done == sum(sizes)


@pytest.mark.parametrize("name", ["x:1", None])
def test_an_artifact_of_a_layout_is_called_by_its_name_or_its_digest(store: LayoutStore, name: str | None) -> None:
    descriptor = artifact(store, artifact_type="application/x")
    store.remove_blob(parse_manifest(store.read_bytes(descriptor)).layers[0].digest)
    entry = descriptor.annotated(artifact_type="application/x", annotations={REF_NAME: name} if name else None)
    store.write_index([entry])
    (finding,) = validate_layout(store, store.read_index()).findings
    assert finding.subject == f"artifact `{name or descriptor.digest}`"


@pytest.mark.parametrize("name", ["X" * 64, "A" * 64, "a" * 63, "a" * 65])
def test_a_file_whose_name_is_no_digest_is_a_stray(store: LayoutStore, name: str) -> None:
    (store.path / "blobs" / "sha256" / name).write_bytes(b"")
    said: list[tuple[str, str, str | None]] = []
    report_strays(store.path, lambda subject, text, digest: said.append((subject, text, digest)))
    assert said == [(f"file `blobs/sha256/{name}`", "nothing refers to it", None)]


# --- work is bounded -------------------------------------------------------------------------------------------------


def test_names_times_children_are_bounded_by_a_limit_that_is_named(store: LayoutStore) -> None:
    index = put_index(store, [image(store)] * 1_000)
    inspector = Inspector(store)
    began = time.process_time()
    with pytest.raises(IntegrityError, match="more than 200000 references, the limit for a bundle or layout"):
        for number in range(1_000):
            inspector.image(index, subject=f"image `{number}`", original=True)
    assert number < 100
    assert time.process_time() - began < 3


def test_a_document_that_many_name_is_walked_and_its_config_read_once(
    store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_sized = LayoutStore._open_sized

    def counted(self: LayoutStore, descriptor: Descriptor) -> Any:
        opened.append(descriptor.digest)
        return open_sized(self, descriptor)

    monkeypatch.setattr(LayoutStore, "_open_sized", counted)
    manifest = image(store)
    inspector = Inspector(store)
    parts = [inspector.image(manifest, subject=f"image `{number}`") for number in range(500)]
    assert {len(found) for found in parts} == {1}
    config = parts[0][0].config.digest
    assert sorted(opened) == sorted([manifest.digest, config])


def test_what_is_wrong_with_a_shared_blob_or_manifest_is_said_of_each_that_shares_it(store: LayoutStore) -> None:
    whole = image(store)
    twisted = rewritten(store, whole, lambda document: document["layers"][0].update(mediaType="text/plain"))
    layer = parse_manifest(store.read_bytes(whole)).layers[0]
    store.blob_path(layer.digest).write_bytes(b"x" * layer.size)
    inspector = Inspector(store)
    for manifest in (whole, twisted):
        for name in ("a", "b"):
            inspector.image(manifest, subject=name)
    assert [(found.subject, found.text) for found in inspector.findings] == [
        ("a", "has layers of unknown type `text/plain`"),
        ("b", "has layers of unknown type `text/plain`"),
    ]
    inspector.check_blobs()
    assert sorted(found.subject for found in inspector.findings if found.digest == layer.digest) == ["a", "b"]


def test_a_blob_of_twenty_thousand_names_is_noted_in_linear_time(
    store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "MAX_REFERENCES", 10_000_000)
    manifest = image(store)
    inspector = Inspector(store)
    began = time.process_time()
    for number in range(20_000):
        inspector.image(manifest, subject=f"image `{number}`")
    # it took twenty seconds
    assert time.process_time() - began < 3
