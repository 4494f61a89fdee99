"""Verification: whatever is wrong with a bundle is found, and said of the right image."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from airferry.bundle.artifacts import MANIFEST_ARTIFACT, MANIFEST_CONTENT, ArtifactFile, put_artifact
from airferry.bundle.manifest import BundleManifest
from airferry.bundle.receipt import Receipt, read_receipt
from airferry.bundle.seal import seal
from airferry.bundle.verify import Bundle, VerifyReport, open_bundle, verify_bundle
from airferry.errors import IntegrityError, UsageError
from airferry.events import Event, Progress
from airferry.host.canonical import canonical_json
from airferry.oci.documents import IMAGE_MANIFEST, LAYER_TAR, Descriptor
from airferry.oci.entries import named
from airferry.oci.layout import LayoutStore
from airferry.oci.streams import verifying
from oci_images import REFERENCE, make_bundle, make_image, put_image

RECEIPT = Receipt(
    bundle_root="sha256:" + "0" * 64, root_verified=True, registry="x:5000", loaded_at="", airferry="0.1.0", images=()
)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "out" / "bundle"
    make_bundle(path)
    return path


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    shutil.copytree(sealed, tmp_path / "out" / "bundle")
    return tmp_path / "out" / "bundle"


def texts(report: VerifyReport) -> list[str]:
    return [str(finding) for finding in report.findings]


def reseal(path: Path, change: Callable[[BundleManifest], BundleManifest]) -> None:
    """Seal again with another manifest over the same images."""
    bundle = open_bundle(path)
    others = [entry for entry in bundle.artifacts if entry.artifact_type != MANIFEST_ARTIFACT]
    seal(LayoutStore.open(path), bundle.images, artifacts=others, manifest=change(bundle.manifest))


def rewrite_index(path: Path, change: Callable[[Bundle, list[Descriptor]], list[Descriptor]]) -> None:
    bundle = open_bundle(path)
    LayoutStore.open(path).write_index(change(bundle, list(bundle.index.manifests)))


def test_a_sound_bundle_is_ok(bundle: Path) -> None:
    root = open_bundle(bundle).root
    events: list[Event] = []
    for path in (bundle, bundle.parent):
        report = verify_bundle(path, root=root, emit=events.append)
        report.raise_if_wrong()
        assert report.ok
        assert (report.images, report.artifacts, report.root, report.root_verified) == (1, 2, root, True)
        assert report.blobs == len(list((bundle / "blobs" / "sha256").iterdir()))
        assert report.size_bytes == sum(path.stat().st_size for path in (bundle / "blobs" / "sha256").iterdir())
    assert isinstance(events[-1], Progress)
    assert not verify_bundle(bundle).root_verified


def test_a_bundle_on_read_only_media_is_verified(bundle: Path) -> None:
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(bundle.rglob("*"))
    assert verify_bundle(bundle).ok
    assert sorted(bundle.rglob("*")) == before
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_another_root_is_refused_before_anything_is_parsed(bundle: Path) -> None:
    (bundle / "index.json").write_bytes(b"{ no json")
    with pytest.raises(IntegrityError, match="has root") as caught:
        open_bundle(bundle, root="sha256:" + "0" * 64)
    assert "do not load" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sha256:123", "it has 3 digits"),
        ("sha256:" + "0" * 65, "it has 65 digits"),
        ("0" * 64, "it does not begin with `sha256:`"),
        ("sha512:" + "0" * 64, "it does not begin with `sha256:`"),
        ("sha256:" + "0" * 63 + "O", "`o` is not a hex digit"),
        ("sha256:" + "0" * 63 + "\x1b", "\ufffd` is not a hex digit"),
        ("", "it is empty"),
        (" ", "it is empty"),
    ],
)
def test_a_root_that_is_none_is_a_usage_error_that_does_not_lead_to_the_medium(
    bundle: Path, text: str, fault: str, tmp_path: Path
) -> None:
    receipt = tmp_path / "receipt.yaml"
    receipt.write_bytes(RECEIPT.to_yaml())
    for given in (lambda: open_bundle(bundle, root=text), lambda: read_receipt(receipt, root=text)):
        with pytest.raises(UsageError, match="is not a root digest, expected `sha256:` and 64 hex digits") as caught:
            given()
        hint = caught.value.hint or ""
        assert fault in caught.value.message and caught.value.message.isprintable()
        assert "`sha256:8adad7aa…`" in hint and "over a channel other than the medium" in hint
        assert "airgap-manifest.yaml" not in hint and "next to the bundle" not in hint


def test_a_root_that_was_taken_down_by_hand_counts_in_any_case(bundle: Path) -> None:
    root = open_bundle(bundle).root
    assert open_bundle(bundle, root=f" {root.upper()}\n").root == root


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize("keep", [0, 20])
def test_what_a_broken_copy_lacks_is_named_with_what_to_do(bundle: Path, name: str, keep: int) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match=re.escape(name)) as caught:
        verify_bundle(bundle)
    assert "copy the bundle again" in (caught.value.hint or "")


def test_no_bundle_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contains no bundle"):
        verify_bundle(tmp_path)


def test_every_blob_is_missed_and_every_bit_counts(bundle: Path) -> None:
    for path in sorted((bundle / "blobs" / "sha256").iterdir()):
        good = path.read_bytes()
        for bad in (None, good[:-1], good + b"x", good[:-1] + bytes([good[-1] ^ 1])):
            path.unlink(missing_ok=True)
            if bad is not None:
                path.write_bytes(bad)
            try:
                found = texts(verify_bundle(bundle))
            except IntegrityError as error:
                found = [error.message]
            assert any(path.name in text for text in found), (path.name, found)
        path.write_bytes(good)
    assert verify_bundle(bundle).ok


def test_a_finding_names_image_and_platform(bundle: Path) -> None:
    layer = open_bundle(bundle).manifest.images[0].platforms["linux/arm64"].layers[1]
    (bundle / "blobs" / "sha256" / layer.digest[7:]).unlink()
    report = verify_bundle(bundle)
    assert texts(report) == [f"image `trainer`, platform `linux/arm64`: layer: blob `{layer.digest}` is missing"]
    with pytest.raises(IntegrityError, match="platform `linux/arm64`") as caught:
        report.raise_if_wrong()
    assert caught.value.fields["report"] is report
    assert caught.value.exit_code == 6


def test_a_bad_sector_is_a_finding_and_the_rest_is_still_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    platforms = open_bundle(bundle).manifest.images[0].platforms
    bad, gone = platforms["linux/arm64"].layers[1].digest, platforms["linux/amd64"].layers[1].digest
    (bundle / "blobs" / "sha256" / gone[7:]).unlink()
    opened = LayoutStore.open_blob

    class Failing:
        def read(self, _size: int) -> bytes:
            raise OSError(5, "Input/output error")

    @contextmanager
    def open_blob(store: LayoutStore, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        with opened(store, descriptor) as stream:
            yield verifying(Failing(), descriptor) if descriptor.digest == bad else stream  # type: ignore[arg-type]

    monkeypatch.setattr(LayoutStore, "open_blob", open_blob)
    found = texts(verify_bundle(bundle))
    assert any("linux/arm64" in text and "Input/output error" in text for text in found), found
    assert any("linux/amd64" in text and "is missing" in text for text in found), found


def test_a_truncated_index_is_refused(bundle: Path) -> None:
    data = (bundle / "index.json").read_bytes()
    for size in (0, 1, len(data) // 2, len(data) - 1):
        (bundle / "index.json").write_bytes(data[:size])
        with pytest.raises(IntegrityError, match=r"index\.json"):
            verify_bundle(bundle)


def test_a_huge_or_deep_index_is_refused(bundle: Path) -> None:
    for data, reason in (
        (b" " * (17 << 20), "larger than the limit"),
        (b'{"schemaVersion":2,"manifests":' + b"[" * 100_000, "nested too deeply"),
    ):
        (bundle / "index.json").write_bytes(data)
        with pytest.raises(IntegrityError, match=reason):
            verify_bundle(bundle)
    entry = {"mediaType": IMAGE_MANIFEST, "digest": "sha256:" + "0" * 64, "size": 1}
    (bundle / "index.json").write_bytes(canonical_json({"schemaVersion": 2, "manifests": [entry] * 20_001}))
    with pytest.raises(IntegrityError, match="manifests"):
        verify_bundle(bundle)


def stray_blob(path: Path) -> None:
    LayoutStore.open(path).put_bytes(b"stray", LAYER_TAR)


def stray_file(path: Path) -> None:
    (path / "notes.txt").write_text("x")


def stray_in_blobs(path: Path) -> None:
    (path / "blobs" / "sha512").mkdir()


def stray_name(path: Path) -> None:
    (path / "blobs" / "sha256" / "evil.sh").write_text("x")


def link_in_blobs(path: Path) -> None:
    (path / "blobs" / "sha256" / ("0" * 64)).symlink_to("/etc/passwd")


def fifo_in_blobs(path: Path) -> None:
    os.mkfifo(path / "blobs" / "sha256" / ("0" * 64))


def linked_layer(path: Path) -> None:
    layer = open_bundle(path).manifest.images[0].platforms["linux/amd64"].layers[0]
    blob = path / "blobs" / "sha256" / layer.digest[7:]
    blob.rename(path.parent / "outside")
    blob.symlink_to(path.parent / "outside")


def unnamed_image(path: Path) -> None:
    child, _layers = put_image(LayoutStore.open(path), [{"x": b"1"}])
    rewrite_index(path, lambda _bundle, entries: [*entries, child.annotated(platform=None)])


def extra_image(path: Path) -> None:
    index, _entry = make_image(LayoutStore.open(path), "extra")
    rewrite_index(path, lambda _bundle, entries: [*entries, named(index, "registry.example/extra:1")])


def other_image_of_that_name(path: Path) -> None:
    index, _entry = make_image(LayoutStore.open(path), "swapped")

    def swap(bundle: Bundle, entries: list[Descriptor]) -> list[Descriptor]:
        return [named(index, REFERENCE), *bundle.artifacts]

    rewrite_index(path, swap)


def image_gone(path: Path) -> None:
    rewrite_index(path, lambda bundle, _entries: list(bundle.artifacts))


def image_twice(path: Path) -> None:
    index, _entry = make_image(LayoutStore.open(path), "twice")
    rewrite_index(path, lambda _bundle, entries: [*entries, named(index, REFERENCE)])


def bad_name(path: Path) -> None:
    index, _entry = make_image(LayoutStore.open(path), "bad")
    rewrite_index(path, lambda _bundle, entries: [*entries, named(index, "../../UPPER")])


def extra_artifact(path: Path) -> None:
    extra = put_artifact(LayoutStore.open(path), "application/x", contents=[ArtifactFile("x", "text/plain", b"x")])
    rewrite_index(path, lambda _bundle, entries: [*entries, extra])


def artifact_gone(path: Path) -> None:
    def drop(_bundle: Bundle, entries: list[Descriptor]) -> list[Descriptor]:
        return [entry for entry in entries if entry.artifact_type in (None, MANIFEST_ARTIFACT)]

    rewrite_index(path, drop)


def artifact_of_another_type(path: Path) -> None:
    def retype(_bundle: Bundle, entries: list[Descriptor]) -> list[Descriptor]:
        kinds = (None, MANIFEST_ARTIFACT)
        return [e if e.artifact_type in kinds else e.annotated(artifact_type="application/x") for e in entries]

    rewrite_index(path, retype)


def manifest_promises_a_platform(path: Path) -> None:
    def promise(manifest: BundleManifest) -> BundleManifest:
        image = manifest.images[0]
        platforms = {**image.platforms, "linux/s390x": image.platforms["linux/amd64"]}
        return manifest.model_copy(update={"images": (image.model_copy(update={"platforms": platforms}),)})

    reseal(path, promise)


def manifest_hides_a_platform(path: Path) -> None:
    def hide(manifest: BundleManifest) -> BundleManifest:
        image = manifest.images[0]
        platforms = {"linux/amd64": image.platforms["linux/amd64"]}
        return manifest.model_copy(update={"images": (image.model_copy(update={"platforms": platforms}),)})

    reseal(path, hide)


def manifest_lies_about_a_layer(path: Path) -> None:
    def lie(manifest: BundleManifest) -> BundleManifest:
        document: dict[str, Any] = json.loads(manifest.model_dump_json())
        document["images"][0]["platforms"]["linux/amd64"]["layers"][0]["size_bytes"] += 1
        return BundleManifest.model_validate(document)

    reseal(path, lie)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (stray_blob, "nothing refers to it"),
        (stray_file, "file `notes.txt`: nothing refers to it"),
        (stray_in_blobs, "file `blobs/sha512`: nothing refers to it"),
        (stray_name, "file `blobs/sha256/evil.sh`: nothing refers to it"),
        (link_in_blobs, "is not a regular file"),
        (fifo_in_blobs, "is not a regular file"),
        (linked_layer, "image `trainer`, platform `linux/amd64`: layer: blob"),
        (unnamed_image, "has 0 names in index.json"),
        (extra_image, "image `registry.example/extra:1`: is in the layout, not in the manifest"),
        (other_image_of_that_name, "image `trainer`: has digest"),
        (other_image_of_that_name, "image `trainer`, platform `linux/amd64`: its manifest in the layout"),
        (image_gone, f"image `trainer`: `{REFERENCE}` is in the manifest, not in the layout"),
        (image_twice, "is listed twice in index.json"),
        (bad_name, "has a name that is not a valid reference"),
        (extra_artifact, "is in the layout, not in the manifest"),
        (artifact_gone, "artifact `requirements-trainer.txt`: is in the manifest, not in the layout"),
        (artifact_of_another_type, "has different types"),
        (manifest_promises_a_platform, "platform `linux/s390x`: is in the manifest, and missing"),
        (manifest_hides_a_platform, "platform `linux/arm64`: is in the layout, not in the manifest"),
        (manifest_lies_about_a_layer, "its layers in the layout and in the manifest differ"),
    ],
)
def test_damage_is_found(bundle: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(bundle)
    found = texts(verify_bundle(bundle))
    assert any(message in text for text in found), found


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
def test_a_linked_folder_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle.parent / "elsewhere")
    (bundle / name).symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(IntegrityError, match="links are not followed"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_linked_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle.parent / "elsewhere")
    (bundle / name).symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(IntegrityError, match="is not a regular file"):
        verify_bundle(bundle)


def test_a_bundle_has_one_manifest(bundle: Path) -> None:
    store = LayoutStore.open(bundle)
    second = put_artifact(store, MANIFEST_ARTIFACT, contents=[ArtifactFile("m", MANIFEST_CONTENT, b"a: 1\n")])
    rewrite_index(bundle, lambda _bundle, entries: [*entries, second])
    with pytest.raises(IntegrityError, match="contains 2 airferry manifests"):
        open_bundle(bundle)
    store.write_index([])
    with pytest.raises(IntegrityError, match="contains 0 airferry manifests"):
        open_bundle(bundle)


def test_what_others_wrote_is_shown_without_control_characters(bundle: Path) -> None:
    index, _entry = make_image(LayoutStore.open(bundle), "x")
    rewrite_index(bundle, lambda _bundle, entries: [*entries, named(index, "evil\x1b[2J" + "x" * 9000)])
    for text in texts(verify_bundle(bundle)):
        assert text.isprintable()
        assert len(text) < 2000
