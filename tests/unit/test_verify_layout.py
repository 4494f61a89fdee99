"""`verify` on image layouts that airferry did not make: what is checked, what is not, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from airferry.bundle.artifacts import LOCK_ARTIFACT, LOCK_CONTENT, MANIFEST_ARTIFACT, ArtifactFile, put_artifact
from airferry.bundle.beside import LOCK_COPY
from airferry.bundle.verify import verify_bundle
from airferry.cli.app import run
from airferry.errors import IntegrityError
from airferry.far.verify import verify
from airferry.host.canonical import canonical_json
from airferry.oci.digest import digest_of
from airferry.oci.documents import IMAGE_INDEX, REF_NAME, Descriptor, parse_index, parse_manifest
from airferry.oci.layout import LayoutStore
from oci_images import REFERENCE, make_bundle, make_image, manifest_over, put_index


def write_index(store: LayoutStore, *entries: Descriptor) -> str:
    store.write_index(entries)
    return digest_of(store.read_index_bytes())


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    """A layout of another tool: one image under a plain tag."""
    store = LayoutStore.create(tmp_path / "layout")
    write_index(store, make_image(store)[0].annotated(annotations={REF_NAME: "v1"}))
    return store


def blob(store: LayoutStore, digest: str) -> Path:
    return store.path / "blobs" / "sha256" / digest.removeprefix("sha256:")


def test_a_sound_layout_is_checked_by_its_own_index(store: LayoutStore) -> None:
    report = verify(store.path)
    assert (report.ok, report.is_bundle, report.images, report.artifacts) == (True, False, 1, 0)
    stored = list((store.path / "blobs" / "sha256").iterdir())
    assert report.blobs == len(stored)
    assert report.size_bytes == sum(path.stat().st_size for path in stored)
    assert any("who made it" in line for line in report.not_checked)


def test_the_digest_of_the_index_is_compared(store: LayoutStore) -> None:
    digest = digest_of(store.read_index_bytes())
    report = verify(store.path, root=digest)
    assert report.root_verified and report.root == digest
    assert not any("who made it" in line for line in report.not_checked)
    with pytest.raises(IntegrityError, match="has root"):
        verify(store.path, root="sha256:" + "0" * 64)


def test_what_is_wrong_is_found_and_named(store: LayoutStore) -> None:
    layer = max((store.path / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = layer.read_bytes()
    layer.write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))
    (store.path / "notes.txt").write_text("x")
    blob(store, "sha256:" + "a" * 64).write_bytes(b"stray")
    report = verify(store.path)
    texts = [str(finding) for finding in report.findings]
    assert any(text.startswith("image `v1`") for text in texts)
    assert any("notes.txt" in text for text in texts)
    assert any("a" * 64 in text and "nothing refers to it" in text for text in texts)
    with pytest.raises(IntegrityError, match=r"image layout .* is damaged") as caught:
        report.raise_if_wrong()
    assert "copy it again" in (caught.value.hint or "")


def test_a_name_that_stands_for_two_images_is_found(store: LayoutStore) -> None:
    (entry,) = store.read_index().manifests
    other = make_image(store, "other")[0].annotated(annotations={REF_NAME: "v1"})
    write_index(store, entry, other)
    assert [str(finding) for finding in verify(store.path).findings] == ["image `v1`: is listed twice in index.json"]


def test_indexes_in_indexes_charts_and_nameless_images_are_whole(store: LayoutStore) -> None:
    image, _entry = make_image(store)
    index = put_index(store, [image])
    outer = put_index(store, [index.model_copy(update={"platform": None})])
    child = parse_index(store.read_manifest(image).data).manifests[0]
    layer, data = parse_manifest(store.read_manifest(child).data).layers[0], b"{}"
    blobs: dict[str, bytes] = {}
    chart = manifest_over(blobs, layer)
    changed = json.loads(chart.data)
    changed["config"] = {
        "mediaType": "application/vnd.cncf.helm.config.v1+json",
        "digest": digest_of(data),
        "size": len(data),
    }
    changed["layers"] = []
    store.put_bytes(data, changed["config"]["mediaType"])
    put = store.put_bytes(canonical_json(changed), chart.descriptor.media_type)
    write_index(store, outer, put)
    report = verify(store.path)
    assert outer.media_type == IMAGE_INDEX
    assert ([str(finding) for finding in report.findings], report.images, report.artifacts) == ([], 1, 1)


def test_a_bundle_without_its_manifest_is_damaged_and_not_a_layout_of_another_tool(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_bundle(out / "bundle")
    shutil.copytree(out / "bundle", tmp_path / "alone")
    for path in (out / "bundle", tmp_path / "alone"):
        layout = LayoutStore.open(path)
        kept = [entry for entry in layout.read_index().manifests if entry.artifact_type != MANIFEST_ARTIFACT]
        lock = put_artifact(layout, LOCK_ARTIFACT, contents=[ArtifactFile(LOCK_COPY, LOCK_CONTENT, b"locked")])
        write_index(layout, *kept, lock)
    # other artifacts of a bundle tell what it was
    with pytest.raises(IntegrityError, match="contains 0 airferry manifests"):
        verify(tmp_path / "alone")
    # as does the output folder, whatever the layout in it holds
    images = [entry for entry in LayoutStore.open(out / "bundle").read_index().manifests if not entry.artifact_type]
    write_index(LayoutStore.open(out / "bundle"), *images)
    with pytest.raises(IntegrityError, match="contains 0 airferry manifests"):
        verify(out)
    (out / "airgap-manifest.yaml").write_text("{}")
    with pytest.raises(IntegrityError, match="contains 0 airferry manifests"):
        verify(out / "bundle")


def test_what_copy_wrote_is_a_layout_though_artifacts_of_airferry_came_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "out" / "bundle")
    assert run(["copy", f"oci:{tmp_path}/out/bundle:{REFERENCE}", f"oci:{tmp_path}/copied:one"]) == 0
    capsys.readouterr()
    report = verify(tmp_path / "copied")
    assert (report.ok, report.is_bundle, report.images, report.artifacts) == (True, False, 1, 1)
    # an operator's folder, where a load was started; it makes a bundle of nothing but `bundle`
    (tmp_path / "airgap-receipt-one.yaml").write_text("x")
    assert not verify(tmp_path / "copied").is_bundle
    (tmp_path / "copied").rename(tmp_path / "bundle")
    with pytest.raises(IntegrityError, match="contains 0 airferry manifests"):
        verify(tmp_path / "bundle")
    (tmp_path / "bundle").rename(tmp_path / "copied")
    assert run(["load", str(tmp_path / "copied"), "--to", "127.0.0.1:1/x"]) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "it is another image layout than a bundle" in said and "brought to a registry by `airferry copy`" in said


def test_a_layout_that_holds_nothing_is_not_sound(store: LayoutStore) -> None:
    write_index(store)
    with pytest.raises(IntegrityError, match="contains 0 airferry manifests"):
        verify(store.path)


def test_nothing_but_verify_takes_a_layout_of_another_tool(store: LayoutStore) -> None:
    with pytest.raises(IntegrityError, match="contains 0 airferry manifests"):
        verify_bundle(store.path)


def test_the_command_says_what_was_not_checked(store: LayoutStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(store.path)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "This is not a bundle of airferry. If it was sent to you as one, it was stripped or replaced" in said
    assert "image layout of another tool" in said and "not checked" in said and "no manifest of airferry" in said
    assert run(["verify", str(store.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["ok"], document["images"]) == ("layout", True, 1)
    assert document["not_checked"] and "was a bundle once" in document["not_checked"][0]
    next((store.path / "blobs" / "sha256").iterdir()).unlink()
    assert run(["verify", str(store.path)]) == 6
    assert "is damaged" in capsys.readouterr().err
