"""What a verification says of a damaged bundle, word by word: which image, which blob, and nothing besides."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_bundle_verify import reseal, rewrite_index

from airferry import api
from airferry.bundle.manifest import BundleManifest
from airferry.bundle.verify import COPY_AGAIN, COPY_BESIDE, expect_outside, open_bundle, verify_bundle
from airferry.errors import IntegrityError, UsageError
from airferry.events import Event, Progress
from airferry.oci.documents import Descriptor, parse_index, parse_manifest
from airferry.oci.entries import named
from airferry.oci.layout import LayoutStore
from oci_images import REFERENCE, make_bundle, put_image, put_index, put_manifest

Findings = list[tuple[str, str | None]]
IMAGE = "image `trainer`"
TWIN = "Docker twin of image `trainer`"
AMD64 = f"{IMAGE}, platform `linux/amd64`"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "bundle"
    make_bundle(path, twins=True)
    return path


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "bundle"))


def found(path: Path) -> Findings:
    return sorted((str(finding), finding.digest) for finding in verify_bundle(path, jobs=2).findings)


def top(path: Path) -> Descriptor:
    return open_bundle(path).images[REFERENCE]


def twin_name(path: Path) -> str:
    (name,) = open_bundle(path).twins
    return name


def amd64(path: Path) -> Descriptor:
    return parse_index(open_bundle(path).store.read_bytes(top(path))).manifests[0]


def remove(path: Path, digest: str) -> None:
    LayoutStore.open(path).remove_blob(digest)


def changed(path: Path, **changes: object) -> None:
    """Seal again with an entry of the only image that says something else."""

    def change(manifest: BundleManifest) -> BundleManifest:
        return manifest.model_copy(update={"images": (manifest.images[0].model_copy(update=changes),)})

    reseal(path, change)


def changed_platform(path: Path, **changes: object) -> None:
    (image,) = open_bundle(path).manifest.images
    platform = image.platforms["linux/amd64"].model_copy(update=changes)
    changed(path, platforms={**image.platforms, "linux/amd64": platform})


def test_all_that_a_bundle_holds_is_counted_and_read_once(bundle: Path) -> None:
    events: list[Event] = []
    report = verify_bundle(bundle, emit=events.append)
    stored = list((bundle / "blobs" / "sha256").iterdir())
    assert report.ok and report.findings == () and report.is_bundle and report.beside == ()
    assert (report.images, report.twins, report.originals, report.artifacts) == (1, 1, 0, 2)
    assert report.blobs == len(stored) and report.size_bytes == sum(path.stat().st_size for path in stored)
    documents = {entry.digest for entry in open_bundle(bundle).index.manifests}
    progress = [event for event in events if isinstance(event, Progress)]
    assert {event.total for event in progress} == {progress[-1].done} and 0 < progress[-1].done < report.size_bytes
    assert documents <= {f"sha256:{path.name}" for path in stored}
    document = report.to_document()
    assert (document["ok"], document["kind"], document["docker_twins"], document["original_images"]) == (
        (True, "bundle", 1, 0)
    )
    report.raise_if_wrong()


def no_blob(digest: str) -> str:
    return f"blob `{digest}` is missing"


def lost_layer(path: Path) -> Findings:
    layer = parse_manifest(open_bundle(path).store.read_bytes(amd64(path))).layers[1].digest
    remove(path, layer)
    return [(f"{AMD64}: layer: {no_blob(layer)}", layer)]


def lost_shared_layer(path: Path) -> Findings:
    layer = parse_manifest(open_bundle(path).store.read_bytes(amd64(path))).layers[0].digest
    remove(path, layer)
    arm64 = AMD64.replace("amd64", "arm64")
    return [(f"{platform}: layer: {no_blob(layer)}", layer) for platform in (AMD64, arm64)]


def lost_config(path: Path) -> Findings:
    config = parse_manifest(open_bundle(path).store.read_bytes(amd64(path))).config.digest
    lost = amd64(path).digest
    remove(path, config)
    return [
        (f"{AMD64}: config: {no_blob(config)}", config),
        (f"{AMD64}: is in the manifest, and missing or unreadable in the layout", lost),
    ]


def lost_twin(path: Path) -> Findings:
    twin = open_bundle(path).images[twin_name(path)].digest
    remove(path, twin)
    return [(f"{TWIN}: {no_blob(twin)}", twin), (f"{TWIN}: lists different manifests than the image", twin)]


def unlisted_twin(path: Path) -> Findings:
    name = twin_name(path)
    digest = open_bundle(path).images[name].digest
    rewrite_index(path, lambda bundle, entries: [entry for entry in entries if entry.digest != digest])
    return [
        (f"{TWIN}: `{name}` is in the manifest, not in the layout", None),
        (f"blob `{digest}`: nothing refers to it", digest),
    ]


def another_twin(path: Path) -> Findings:
    (image,) = open_bundle(path).manifest.images
    assert image.docker_twin is not None
    digest, wrong = image.docker_twin.digest, "sha256:" + "0" * 64
    changed(path, docker_twin=image.docker_twin.model_copy(update={"digest": wrong}))
    return [(f"{TWIN}: has digest `{digest}`, the manifest says `{wrong}`", None)]


def image_as_twin(path: Path) -> Findings:
    """Give the twin's name to an image of one platform."""
    store = LayoutStore.open(path)
    other, _results = put_image(store, [{"a": b"1"}])
    name, old = twin_name(path), open_bundle(path).images[twin_name(path)].digest
    index = store.put_bytes(store.read_bytes(top(path)).replace(b"arm64", b"s390x"), top(path).media_type)
    rewrite_index(
        path,
        lambda bundle, entries: [
            named(Descriptor(media_type=index.media_type, digest=index.digest, size=index.size), name)
            if entry.digest == old
            else entry
            for entry in entries
        ],
    )
    gone = {other.digest, old, *others_of(store, other)}
    return [
        (f"{TWIN}: has digest `{index.digest}`, the manifest says `{old}`", None),
        (f"{TWIN}: lists different manifests than the image", index.digest),
        *((f"blob `{digest}`: nothing refers to it", digest) for digest in gone),
    ]


def others_of(store: LayoutStore, image: Descriptor) -> set[str]:
    manifest = parse_manifest(store.read_bytes(image))
    return {manifest.config.digest, *(layer.digest for layer in manifest.layers)}


def another_image(path: Path) -> Findings:
    wrong, digest = "sha256:" + "0" * 64, top(path).digest
    changed(path, digest=wrong)
    return [(f"{IMAGE}: has digest `{digest}`, the manifest says `{wrong}`", None)]


def another_config(path: Path) -> Findings:
    changed_platform(path, config_digest="sha256:" + "0" * 64)
    return [(f"{AMD64}: its config in the layout and in the manifest differ", amd64(path).digest)]


def other_layers(path: Path) -> Findings:
    (image,) = open_bundle(path).manifest.images
    layers = image.platforms["linux/amd64"].layers
    changed_platform(path, layers=tuple(reversed(layers)))
    return [
        (f"{AMD64}: its diff_ids in the layout and in the manifest differ", amd64(path).digest),
        (f"{AMD64}: its layers in the layout and in the manifest differ", amd64(path).digest),
    ]


def another_diff_id(path: Path) -> Findings:
    (image,) = open_bundle(path).manifest.images
    first, *rest = image.platforms["linux/amd64"].layers
    changed_platform(path, layers=(first.model_copy(update={"diff_id": "sha256:" + "0" * 64}), *rest))
    return [(f"{AMD64}: its diff_ids in the layout and in the manifest differ", amd64(path).digest)]


def unstated_platform(path: Path) -> Findings:
    (image,) = open_bundle(path).manifest.images
    twin = open_bundle(path).images[twin_name(path)].digest
    changed(path, platforms={"linux/amd64": image.platforms["linux/amd64"]})
    return [
        (f"{TWIN}: lists different manifests than the image", twin),
        (f"{IMAGE}, platform `linux/arm64`: is in the layout, not in the manifest", None),
    ]


def unlisted_image(path: Path) -> Findings:
    reseal(path, lambda manifest: manifest.model_copy(update={"images": ()}))
    index, name = top(path), twin_name_of(path)
    twin = open_bundle(path).images[name].digest
    return [
        (f"image `{REFERENCE}`: is in the layout, not in the manifest", index.digest),
        (f"image `{name}`: is in the layout, not in the manifest", twin),
    ]


def twin_name_of(path: Path) -> str:
    (name,) = [name for name in open_bundle(path).images if name != REFERENCE]
    return name


def unlisted_artifact(path: Path) -> Findings:
    (entry,) = open_bundle(path).manifest.artifacts
    reseal(path, lambda manifest: manifest.model_copy(update={"artifacts": ()}))
    return [(f"artifact `{entry.digest}`: is in the layout, not in the manifest", entry.digest)]


def lost_artifact(path: Path) -> Findings:
    (entry,) = open_bundle(path).manifest.artifacts
    content = parse_manifest((path / "blobs" / "sha256" / entry.digest[7:]).read_bytes()).layers[0].digest
    remove(path, content)
    return [(f"artifact `{entry.title}`: content: {no_blob(content)}", content)]


def mistyped_artifact(path: Path) -> Findings:
    (entry,) = open_bundle(path).manifest.artifacts
    other = entry.model_copy(update={"artifact_type": "application/x-other"})
    reseal(path, lambda manifest: manifest.model_copy(update={"artifacts": (other,)}))
    return [(f"artifact `{entry.title}`: has different types in index.json and elsewhere", entry.digest)]


def missing_artifact(path: Path) -> Findings:
    (entry,) = open_bundle(path).manifest.artifacts
    rewrite_index(path, lambda bundle, entries: [item for item in entries if item.digest != entry.digest])
    manifest = parse_manifest((path / "blobs" / "sha256" / entry.digest[7:]).read_bytes())
    unnamed = {entry.digest, *(layer.digest for layer in manifest.layers)}
    return [
        (f"artifact `{entry.title}`: is in the manifest, not in the layout", entry.digest),
        *((f"blob `{digest}`: nothing refers to it", digest) for digest in unnamed),
    ]


def two_names(path: Path) -> Findings:
    digest = top(path).digest
    rewrite_index(path, lambda bundle, entries: [*entries, bundle.images[REFERENCE]])
    return [(f"image `{REFERENCE}`: is listed twice in index.json", digest)]


def strange_name(path: Path) -> Findings:
    index = top(path)
    bare = Descriptor(media_type=index.media_type, digest=index.digest, size=index.size)
    rewrite_index(path, lambda bundle, entries: [*entries, named(bare, "UPPER CASE")])
    return [
        ("image `UPPER CASE`: is in the layout, not in the manifest", index.digest),
        ("image `UPPER CASE`: has a name that is not a valid reference", index.digest),
    ]


def no_name(path: Path) -> Findings:
    index = top(path)
    bare = Descriptor(media_type=index.media_type, digest=index.digest, size=index.size)
    rewrite_index(path, lambda bundle, entries: [*entries, bare])
    return [(f"image `{index.digest}`: has 0 names in index.json, expected one", None)]


def strays(path: Path) -> Findings:
    (path / "readme").write_text("x")
    (path / "blobs" / "md5").mkdir()
    (path / "blobs" / "sha256" / "short").write_text("x")
    (path / "blobs" / "sha256" / ("g" * 64)).write_text("x")
    (path / "blobs" / "sha256" / ("a" * 64)).mkdir()
    (path / "blobs" / "sha256" / ("b" * 64)).write_text("x")
    return [
        ("file `readme`: nothing refers to it", None),
        ("file `blobs/md5`: nothing refers to it", None),
        ("file `blobs/sha256/short`: nothing refers to it", None),
        (f"file `blobs/sha256/{'g' * 64}`: nothing refers to it", None),
        (f"file `blobs/sha256/{'a' * 64}`: is not a regular file", None),
        (f"blob `sha256:{'b' * 64}`: nothing refers to it", f"sha256:{'b' * 64}"),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        *(lost_layer, lost_shared_layer, lost_config, lost_twin, unlisted_twin, another_twin, image_as_twin),
        *(another_image, another_config, other_layers, another_diff_id, unstated_platform, unlisted_image),
        *(unlisted_artifact, lost_artifact, mistyped_artifact, missing_artifact),
        *(two_names, strange_name, no_name, strays),
    ],
)
def test_exactly_what_is_wrong_is_said_of_what_it_is_wrong_with(
    bundle: Path, damage: Callable[[Path], Findings]
) -> None:
    expected = sorted(damage(bundle))
    observed = found(bundle)
    assert [digest for _text, digest in observed] == [digest for _text, digest in expected]
    for (text, _digest), (begins, _same) in zip(observed, expected, strict=True):
        assert text.startswith(begins), (text, begins)


@pytest.mark.parametrize("listed", [True, False])
def test_the_error_counts_all_findings_and_shows_the_first(bundle: Path, listed: bool) -> None:
    for number in range(30):
        (bundle / f"stray{number:02}").write_text("x")
    report = verify_bundle(bundle)
    assert not report.ok and len(report.findings) == 30
    with pytest.raises(IntegrityError) as caught:
        report.raise_if_wrong(listed=listed)
    first, *rest = caught.value.message.splitlines()
    assert first == f"bundle `{bundle}` is damaged: 30 findings"
    assert bool(rest) is not listed
    if not listed:
        assert rest[0] == "  | file `stray00`: nothing refers to it"
        assert len([line for line in rest if "stray" in line]) == 5
        assert "25 more" in rest[-1]
    assert "copy" in (caught.value.hint or "")


def test_the_report_of_a_bundle_as_data_is_all_of_it(bundle: Path) -> None:
    report = verify_bundle(bundle)
    assert report.to_document() == {
        "path": str(bundle),
        "kind": "bundle",
        "ok": True,
        "root": report.root,
        "root_verified": False,
        "images": 1,
        "docker_twins": 1,
        "original_images": 0,
        "artifacts": 2,
        "blobs": report.blobs,
        "size_bytes": report.size_bytes,
        "findings": [],
        "beside": [],
        "not_checked": [],
        "litter": [],
        "exempt": [],
        "origin": {
            **{"airferry": "0.1.0", "workflow": "test", "targets": [], "platforms": ["linux/amd64", "linux/arm64"]},
            **dict.fromkeys(("lock", "catalogue", "steps", "files", "tracked")),
        },
    }
    (bundle / "stray").write_text("x")
    damaged = replace(verify_bundle(bundle), is_bundle=False, beside=("a note",), not_checked=("its origin",))
    document = damaged.to_document()
    assert (document["kind"], document["ok"]) == ("layout", False)
    assert (document["findings"], document["beside"]) == (["file `stray`: nothing refers to it"], ["a note"])
    assert document["not_checked"] == ["its origin"]


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({}, "bundle `PATH` is damaged: 1 finding", COPY_AGAIN),
        (
            {"beside_findings": 1},
            "bundle `PATH` is complete, but files next to it are not what its root covers: 1 finding",
            COPY_BESIDE,
        ),
        ({"is_bundle": False}, "image layout `PATH` is damaged: 1 finding", "copy it again from where it came"),
    ],
)
def test_the_error_says_what_is_damaged_and_what_to_copy_again(
    bundle: Path, changes: dict[str, Any], message: str, hint: str
) -> None:
    (bundle / "stray").write_text("x")
    report = replace(verify_bundle(bundle), **changes)
    with pytest.raises(IntegrityError) as caught:
        report.raise_if_wrong(listed=True)
    assert caught.value.message == message.replace("PATH", str(bundle)) and caught.value.hint == hint


def test_nothing_is_written_into_a_bundle(bundle: Path, tmp_path: Path) -> None:
    for path in (bundle / "receipt.yaml", bundle, bundle / "blobs" / ".." / "x"):
        with pytest.raises(UsageError, match="added files damage a bundle") as caught:
            expect_outside(path, bundle)
        assert caught.value.hint == "choose a path outside the bundle"
    expect_outside(tmp_path / "receipt.yaml", bundle)


def test_the_root_is_never_in_the_bundle_that_it_is_of(bundle: Path) -> None:
    root = open_bundle(bundle).root
    reseal(bundle, lambda manifest: manifest.model_copy(update={"root": root}))
    assert open_bundle(bundle).manifest.root is None and open_bundle(bundle).root == root


def layout_of_another_tool(path: Path) -> tuple[LayoutStore, Descriptor, Descriptor]:
    """Store an image of mixed compressions, in an index that an index lists, as other tools may do."""
    store = LayoutStore.create(path)
    _image, first = put_image(store, [{"a": b"1"}], kind="gzip")
    _image, second = put_image(store, [{"b": b"2"}])
    mixed = put_manifest(store, [*first, *second])
    return store, put_index(store, [put_index(store, [mixed])]), mixed


@pytest.mark.parametrize("name", ["x:1", None])
def test_a_layout_of_another_tool_is_told_what_is_wrong_with_it_alone(tmp_path: Path, name: str | None) -> None:
    store, outer, mixed = layout_of_another_tool(tmp_path / "layout")
    used = {blob.digest for blob in parse_manifest(store.read_bytes(mixed)).layers}
    used |= {outer.digest, mixed.digest, parse_manifest(store.read_bytes(mixed)).config.digest}
    used |= {child.digest for child in parse_index(store.read_bytes(outer)).manifests}
    for digest in store.stored_digests() - used:
        store.remove_blob(digest)
    entry = named(outer, name) if name else outer
    store.write_index([entry])
    report = api.verify(tmp_path / "layout")
    assert report.findings == () and not report.is_bundle
    assert (report.images, report.artifacts, report.blobs) == (1, 0, len(used))

    layer = parse_manifest(store.read_bytes(mixed)).layers[0].digest
    store.remove_blob(layer)
    (finding,) = api.verify(tmp_path / "layout").findings
    assert str(finding).startswith(f"image `{name or outer.digest}`") and finding.digest == layer


def test_a_name_in_a_layout_stands_for_one_thing(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    one, _results = put_image(store, [{"a": b"1"}])
    other, _results = put_image(store, [{"a": b"2"}])
    bare = [Descriptor(media_type=item.media_type, digest=item.digest, size=item.size) for item in (one, other)]
    store.write_index([named(bare[0], "x:1"), named(bare[1], "x:1")])
    (finding,) = api.verify(tmp_path / "layout").findings
    assert str(finding) == "image `x:1`: is listed twice in index.json"
    assert finding.digest in (one.digest, other.digest)
