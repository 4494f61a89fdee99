"""Verification of an output folder: roots, twins, originals, archives beside the bundle, and what counts as which."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from test_bundle_verify import reseal, rewrite_index

from airferry.bundle.artifacts import MANIFEST_ARTIFACT
from airferry.bundle.beside import LEADS_OUT
from airferry.bundle.manifest import BundleManifest, Role, SavedImage, ToolEntry, describe_original
from airferry.bundle.seal import Sealed, seal
from airferry.bundle.twins import with_twins
from airferry.bundle.verify import NoBundleManifest, VerifyReport, find_layout, open_bundle, verify_bundle
from airferry.errors import HostError, IntegrityError
from airferry.events import Event, Progress
from airferry.far.verify import verify
from airferry.oci.digest import digest_of, parse_digest
from airferry.oci.documents import EMPTY_CONFIG_BYTES, LAYER_TAR, REF_NAME
from airferry.oci.layout import LayoutStore
from oci_images import REFERENCE, make_bundle, make_image, put_image, put_manifest

BASE = "quay.example/team/base:1"
WRONG = "sha256:" + "0" * 64
NOTE = "`notes.txt` is not part of the bundle"


def make_full_bundle(path: Path, *, role: Role = "base", archives: tuple[str, ...] = ()) -> Sealed:
    """Seal two images, the first with its twin, and one of mixed compressions in the given role."""
    store = LayoutStore.create(path)
    index, first = make_image(store)
    other, second = make_image(store, "zeta", name="zeta", reference="registry.example/team/zeta:1.0")
    images = {REFERENCE: index, second.reference: other}
    entries = with_twins(store, [first], images)
    _image, zstd = put_image(store, [{"a": b"1"}])
    _image, gzipped = put_image(store, [{"b": b"2"}], kind="gzip")
    images[BASE] = put_manifest(store, [*zstd, *gzipped])
    mixed = describe_original(store, images[BASE], reference=BASE).model_copy(update={"role": role})
    saved = [
        SavedImage(
            role="execution",
            name="trainer",
            image=REFERENCE,
            reference=REFERENCE,
            digest=index.digest,
            tar=tar,
            sha256="0" * 64,
        )
        for tar in archives
    ]
    manifest = BundleManifest(
        workflow={"name": "test"},
        build_stages=(),
        compression="zstd",
        tool=ToolEntry(airferry="0.1.0"),
        images=(*entries, second, mixed),
        saved_images=tuple(saved),
    )
    return seal(store, images, manifest=manifest)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with a small bundle, and a file that nothing has put there."""
    make_bundle(tmp_path / "out" / "bundle")
    (tmp_path / "out" / "notes.txt").write_text("x")
    return tmp_path / "out"


def texts(report: VerifyReport) -> list[str]:
    return [str(finding) for finding in report.findings]


# -- what is checked -----------------------------------------------------------------------------------------------


def test_the_root_of_a_bundle_is_compared(out: Path) -> None:
    root = open_bundle(out).root
    report = verify(out, root=root)
    assert report.ok and report.root_verified and report.root == root
    assert not verify(out).root_verified
    with pytest.raises(IntegrityError, match="has root") as caught:
        verify(out, root=WRONG)
    assert (caught.value.fields["root"], caught.value.fields["expected"]) == (root, WRONG)


def test_the_root_is_compared_with_the_very_index_that_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    store.write_index([make_image(store)[0].annotated(annotations={REF_NAME: "v1"})])
    root = store.root()

    def swapping(*arguments: Any, **options: Any) -> VerifyReport:
        try:
            return verify_bundle(*arguments, **options)
        except NoBundleManifest:
            store.write_index([make_image(store, "other")[0].annotated(annotations={REF_NAME: "v1"})])
            raise

    monkeypatch.setattr("airferry.far.verify.verify_bundle", swapping)
    with pytest.raises(IntegrityError, match="has root"):
        verify(store.path, root=root)


def test_images_behind_a_twin_are_checked_too(tmp_path: Path) -> None:
    make_full_bundle(tmp_path / "bundle")
    report = verify_bundle(tmp_path / "bundle")
    assert texts(report) == []
    assert (report.images, report.twins, report.originals, report.artifacts) == (2, 1, 1, 1)
    assert report.blobs == len(list((tmp_path / "bundle" / "blobs" / "sha256").iterdir()))


def test_an_image_that_was_built_may_not_be_what_an_original_may(tmp_path: Path) -> None:
    make_full_bundle(tmp_path / "bundle", role="execution")
    report = verify_bundle(tmp_path / "bundle")
    assert texts(report) == [f"image `{BASE}`: mixes compressions in its layers: gzip, zstd"]
    assert (report.images, report.originals) == (3, 0)


def test_a_lost_platform_hides_no_difference_behind_it(out: Path) -> None:
    def promise(manifest: BundleManifest) -> BundleManifest:
        (image,) = manifest.images
        arm64 = image.platforms["linux/arm64"].model_copy(update={"config_digest": WRONG})
        platforms = {"linux/386": arm64, **image.platforms, "linux/arm64": arm64}
        return manifest.model_copy(update={"images": (image.model_copy(update={"platforms": platforms}),)})

    reseal(out / "bundle", promise)
    assert texts(verify_bundle(out)) == [
        "image `trainer`, platform `linux/386`: is in the manifest, and missing or unreadable in the layout",
        "image `trainer`, platform `linux/arm64`: its config in the layout and in the manifest differ",
    ]


def test_the_type_that_an_artifact_states_itself_counts_too(out: Path) -> None:
    path, other = out / "bundle", "application/x-other"
    rewrite_index(
        path,
        lambda _bundle, entries: [
            entry if entry.artifact_type in (None, MANIFEST_ARTIFACT) else entry.annotated(artifact_type=other)
            for entry in entries
        ],
    )

    def retyped(manifest: BundleManifest) -> BundleManifest:
        (entry,) = manifest.artifacts
        return manifest.model_copy(update={"artifacts": (entry.model_copy(update={"artifact_type": other}),)})

    reseal(path, retyped)
    assert texts(verify_bundle(path)) == [
        "artifact `requirements-trainer.txt`: has different types in index.json and elsewhere"
    ]


def test_what_the_manifest_lacks_is_said_of_the_manifest(out: Path) -> None:
    empty = digest_of(EMPTY_CONFIG_BYTES)
    LayoutStore.open(out / "bundle").remove_blob(empty)
    report = verify_bundle(out)
    assert {finding.subject for finding in report.findings} == {"the manifest", "artifact `requirements-trainer.txt`"}
    assert {finding.digest for finding in report.findings} == {empty}


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_layout_is_found_by_either_of_its_files(out: Path, name: str) -> None:
    (out / "bundle" / name).unlink()
    assert find_layout(out) == find_layout(out / "bundle") == out / "bundle"
    with pytest.raises(IntegrityError, match=name):
        verify(out)


def test_a_second_layout_in_the_output_folder_is_never_chosen(out: Path, tmp_path: Path) -> None:
    root = open_bundle(out).root
    for name in ("oci-layout", "index.json"):
        (out / name).symlink_to(tmp_path / "nowhere")
        assert find_layout(out) == out / "bundle" and open_bundle(out, root=root).root == root
        (out / name).unlink()
    planted = tmp_path / "planted"
    make_full_bundle(planted)
    shutil.copytree(planted, out, dirs_exist_ok=True)
    assert open_bundle(out).root == root


def test_a_layout_with_a_bundle_in_it_is_refused_by_either_of_its_paths(out: Path) -> None:
    (out / "bundle" / "bundle").mkdir()
    for path in (out / "bundle", out / "bundle" / ".." / "bundle"):
        with pytest.raises(IntegrityError, match="one of the two was added"):
            find_layout(path)
    shutil.copytree(out / "bundle", out / "bundle" / "bundle", dirs_exist_ok=True)
    with pytest.raises(IntegrityError, match="one of the two was added"):
        open_bundle(out / "bundle")
    assert not verify(out).ok


def test_a_bundle_that_was_opened_is_not_written_to(out: Path) -> None:
    with pytest.raises(HostError, match="open for reading only"):
        open_bundle(out).store.put_bytes(b"x", LAYER_TAR)


def test_progress_is_said_of_bundles_and_of_layouts(out: Path, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    store.write_index([make_image(store)[0].annotated(annotations={REF_NAME: "v1"})])
    for path in (out, store.path):
        events: list[Event] = []
        assert verify(path, emit=events.append).ok
        progress = [event for event in events if isinstance(event, Progress)]
        assert progress and {event.task for event in progress} == {"verify"}
        assert progress[-1].done == progress[-1].total


# -- the folder around the bundle ----------------------------------------------------------------------------------


def test_the_folder_around_a_bundle_is_looked_at_where_that_is_asked_for(out: Path) -> None:
    assert verify(out).beside == (NOTE,)
    assert verify_bundle(out, beside=True).beside == (NOTE,)
    assert verify_bundle(out).beside == ()
    assert verify_bundle(out, beside=False).beside == ()
    # the layout alone has no folder around it
    assert verify(out / "bundle").beside == ()


def test_damaged_archives_are_told_from_damage_to_the_bundle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_full_bundle(out / "bundle", archives=("a.tar", "b.tar", "../c.tar"))
    for name in ("a.tar", "b.tar"):
        (out / name).write_bytes(b"x")
    report = verify(out)
    assert [finding.subject for finding in report.findings] == [
        "archive `a.tar`",
        "archive `b.tar`",
        "archive `../c.tar`",
    ]
    # the third is what the manifest in the bundle says, and no archive's fault
    assert report.findings[2].text == LEADS_OUT and report.beside_findings == 2
    assert verify_bundle(out).ok


# -- what verification rests on ------------------------------------------------------------------------------------


def test_all_that_was_pruned_is_counted(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "bundle")
    for size in (5, 7, 11):
        store.put_bytes(b"x" * size, LAYER_TAR)
    sealed = make_bundle(tmp_path / "bundle")
    assert (sealed.pruned_blobs, sealed.pruned_bytes) == (3, 23)


@pytest.mark.parametrize(("length", "shown"), [(1, "x"), (100, "x" * 100), (101, "x" * 100 + "…")])
def test_a_text_that_is_no_digest_is_shown_up_to_a_limit(length: int, shown: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_digest("x" * length)
    assert caught.value.message == f"`{shown}` is not a digest, expected `sha256:` and 64 lower-case hex digits"
