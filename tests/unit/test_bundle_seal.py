"""Sealing: the same root for the same inputs, and the old bundle or the new one wherever it is killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from airferry.bundle.artifacts import (
    MANIFEST_CONTENT,
    REQUIREMENTS_ARTIFACT,
    ArtifactFile,
    put_artifact,
    read_artifact_file,
)
from airferry.bundle.manifest import BundleManifest, ToolEntry, describe_platform, read_manifest
from airferry.bundle.receipt import Receipt, ReceiptImage, read_receipt, write_receipt
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle, verify_bundle
from airferry.errors import HostError, IntegrityError
from airferry.host import files
from airferry.host import yaml as yaml_documents
from airferry.host.yaml import load_yaml
from airferry.oci.documents import LAYER_TAR
from airferry.oci.layout import LayoutStore
from oci_images import REFERENCE, make_bundle, make_image, put_image

EMPTY = BundleManifest(workflow={}, build_stages=(), compression="zstd", tool=ToolEntry(airferry="0.1.0"))


class Killed(BaseException):
    """Stands for the end of the process: nothing that cleans up catches it."""


def kill_after(boundaries: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def boundary(what: str) -> None:
        seen.append(what)
        if len(seen) == boundaries:
            raise Killed

    monkeypatch.setattr(files, "boundary", boundary)
    return seen


def test_the_same_inputs_give_the_same_root(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    assert first.root == second.root == open_bundle(tmp_path / "a").root
    assert make_bundle(tmp_path / "a", "other").root != first.root
    assert make_bundle(tmp_path / "a").root == first.root
    held = sum(path.stat().st_size for path in (tmp_path / "b" / "blobs" / "sha256").iterdir())
    assert second.size_bytes == held


def test_sealing_prunes_what_nothing_names(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path)
    stray = store.put_bytes(b"stray", LAYER_TAR)
    (tmp_path / "blobs" / "sha256" / f"{files.TEMPORARY_PREFIX}dead").write_bytes(b"x")
    sealed = make_bundle(tmp_path)
    assert (sealed.pruned_blobs, sealed.pruned_bytes) == (1, 5)
    assert not store.has_blob(stray)
    assert verify_bundle(tmp_path, root=sealed.root).ok


def test_killed_at_any_boundary_the_old_bundle_or_the_new_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_bundle(tmp_path / "old").root
    expected = make_bundle(tmp_path / "new", "changed").root
    roots = []
    for number in range(1, 200):
        path = tmp_path / "work"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "old", path)
        with monkeypatch.context() as patch:
            seen = kill_after(number, patch)
            try:
                make_bundle(path, "changed")
            except Killed:
                pass
            else:
                assert len(seen) < number
                break
        report = verify_bundle(path)
        assert {finding.text for finding in report.findings} <= {"nothing refers to it"}
        roots.append(report.root)
        assert make_bundle(path, "changed").root == expected
        assert verify_bundle(path, root=expected).ok
    assert roots[0] == old
    assert roots[-1] == expected
    assert roots == sorted(roots, key=[old, expected].index)
    assert len(roots) > 20


def test_an_incomplete_image_is_not_sealed(tmp_path: Path) -> None:
    root = make_bundle(tmp_path).root
    store = LayoutStore.open(tmp_path)
    index, entry = make_image(store, "new")
    store.remove_blob(entry.platforms["linux/arm64"].layers[1].digest)
    with pytest.raises(IntegrityError, match="cannot seal"):
        seal(store, {"registry.example/other:1": index}, manifest=EMPTY)
    assert store.root() == root


def test_a_manifest_that_the_far_side_would_refuse_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_bundle(tmp_path).root
    monkeypatch.setattr(yaml_documents, "MAX_DOCUMENT_DEPTH", 3)
    with pytest.raises(IntegrityError, match=r"cannot seal: .*nested deeper than 3 levels") as caught:
        make_bundle(tmp_path, "other")
    assert "several bundles" in (caught.value.hint or "")
    assert LayoutStore.open(tmp_path).root() == root


def test_artifacts_carry_files_titles_and_subjects(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    index, _entry = make_image(store)
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"wheel")
    contents = [ArtifactFile("r.txt", "text/plain", b"a==1\n"), ArtifactFile("a.whl", "application/zip", wheel)]
    artifact = put_artifact(store, REQUIREMENTS_ARTIFACT, contents=contents, subject=index)
    assert artifact.artifact_type == REQUIREMENTS_ARTIFACT
    assert artifact.annotations == {
        "org.opencontainers.image.title": "r.txt",
        "io.containerd.manifest.subject": index.digest,
    }
    assert read_artifact_file(store, artifact, media_type="text/plain") == b"a==1\n"
    assert read_artifact_file(store, artifact, media_type="application/zip") == b"wheel"
    assert put_artifact(store, REQUIREMENTS_ARTIFACT, contents=contents, subject=index) == artifact
    with pytest.raises(IntegrityError, match="has 0 files"):
        read_artifact_file(store, artifact, media_type="text/html")
    with pytest.raises(IntegrityError, match="limit of 2"):
        read_artifact_file(store, artifact, media_type="text/plain", limit_bytes=2)


# -- the manifest and the receipt ---------------------------------------------------------------------------------


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    manifest = open_bundle(tmp_path).manifest
    assert read_manifest(manifest.to_yaml()) == manifest
    assert manifest.root is None
    copy = read_manifest(manifest.with_root("sha256:" + "0" * 64).to_yaml())
    assert copy.root == "sha256:" + "0" * 64
    assert copy.model_copy(update={"root": None}) == manifest
    platform = manifest.images[0].platforms["linux/arm64"]
    assert [layer.from_base for layer in platform.layers] == [True, False]
    assert platform.unpacked_bytes == sum(layer.unpacked_bytes for layer in platform.layers)


def test_a_layer_that_the_pipeline_did_not_see_is_refused(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path)
    child, results = put_image(store, [{"a": b"1"}, {"b": b"2"}])
    assert describe_platform(store, child, layers=results).layers[1].digest == results[1].descriptor.digest
    with pytest.raises(IntegrityError, match="missing record of layer"):
        describe_platform(store, child, layers=results[:1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"schema_version: 3\nbrand_new: 1\n", "schema_version 3, this version of airferry supports 2"),
        (b"schema_version: 1\n", "workflow: Field required"),
        (b"- a\n", "is not a mapping"),
        (b"", "is not a mapping"),
        (b"a: [", "is not valid YAML"),
        (b"a: &x [1]\nb: *x\n", "alias"),
        (b"a: !!python/object/apply:os.system [ls]\n", "YAML tag"),
        (b"a: !!int 5\n", "YAML tag"),
        (b"? [a]\n: 1\n", "as a key"),
        (b"a: 1\n---\na: 2\n", "2 documents"),
        (b"a: " + b"[" * 50 + b"]" * 50, "line 1, .*nested deeper than 40 levels"),
        (b"a: \xff\xfe\n", "is not valid YAML"),
        (b"schema_version: 2026-99-99\n", "not valid"),
        (b"schema_version: 1\nschema_version: 2\n", "has the key `schema_version` twice"),
        (b"schema_version: 0x" + b"f" * 200, "line 1, .*a number of more than 100 characters"),
        (b"#" * (17 << 20), "limit"),
    ],
)
def test_a_bad_manifest_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        read_manifest(text)


def test_an_unknown_key_of_ours_is_refused_and_one_of_nemotrons_is_kept() -> None:
    good = EMPTY.to_yaml()
    with pytest.raises(IntegrityError, match="surprise"):
        read_manifest(good + b"surprise: 1\n")
    launcher = b"launcher_image: {base_image: a, platforms: [linux/amd64], tag: t, tar: t.tar, extra: 1}\n"
    assert b"extra: 1" in read_manifest(good + launcher).to_yaml()


def test_what_occurs_twice_is_written_twice() -> None:
    shared = {"a": [1, 2]}
    manifest = EMPTY.model_copy(update={"workflow": {"x": shared, "y": shared}})
    assert b"&" not in manifest.to_yaml()
    assert read_manifest(manifest.to_yaml()).workflow == {"x": shared, "y": shared}


def test_a_receipt_survives_writing_and_reading(tmp_path: Path) -> None:
    digest = "sha256:" + "1" * 64
    pinned = f"localhost:5000/x/trainer@{digest}"
    receipt = Receipt(
        bundle_root=digest,
        root_verified=True,
        registry="localhost:5000/x",
        loaded_at="2026-01-01T00:00:00Z",
        airferry="0.1.0",
        images=(
            ReceiptImage(
                name="trainer",
                role="execution",
                image=REFERENCE,
                reference="localhost:5000/x/trainer:1.0",
                pinned=pinned,
                digest=digest,
                platforms=("linux/amd64",),
            ),
        ),
        steps={"sft/tiny": pinned},
    )
    path = tmp_path / "airgap-receipt.yaml"
    write_receipt(receipt, path)
    assert read_receipt(path) == receipt
    path.write_bytes(path.read_bytes().replace(b"schema_version: 2", b"schema_version: 9"))
    with pytest.raises(IntegrityError, match="schema_version 9") as caught:
        read_receipt(path)
    assert "newer version of airferry" in (caught.value.hint or "")
    with pytest.raises(HostError):
        read_receipt(tmp_path / "missing")


def test_the_manifest_in_the_bundle_is_an_artifact_by_name(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    bundle = open_bundle(tmp_path)
    assert (bundle.manifest_descriptor.annotations or {})["org.opencontainers.image.title"] == "airgap-manifest.yaml"
    data = read_artifact_file(bundle.store, bundle.manifest_descriptor, media_type=MANIFEST_CONTENT)
    assert data == bundle.manifest.to_yaml()


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: -2.5\nc: true\nd: null\ne: ~\nf: ''\ng: '1'\nh: \"x\\ny\"\ni: [1, two, [3]]\nj: {k: {l: []}}\n",
        "text: |\n  two\n  lines\nfolded: >-\n  one\n  line\n0: number\nsame: a\n",
        "[]",
        "plain",
        "",
        "# nothing\n",
    ],
)
def test_documents_are_built_as_the_yaml_library_builds_them(text: str) -> None:
    assert load_yaml(text.encode(), "it") == yaml.safe_load(text)
