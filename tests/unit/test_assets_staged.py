"""Assets on the far side: what differs is said, what a bundle carries is found, and packs are unpacked whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from airferry.assets import staged
from airferry.assets.manifest import (
    ASSET_ARTIFACT,
    ASSET_CONTENT,
    MODELPACK_ARTIFACT,
    MODELPACK_FILEPATH,
    AssetFile,
    AssetManifest,
)
from airferry.assets.record import hash_asset
from airferry.assets.staged import AssetFinding, bundle_assets, bundle_packs, compare_asset, unpack_pack
from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.manifest import ArtifactEntry, BundleManifest, ToolEntry
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle
from airferry.errors import HostError, IntegrityError
from airferry.events import Event, Progress
from airferry.host import files
from airferry.oci.documents import Descriptor
from airferry.oci.layout import LayoutStore
from oci_images import put_model_pack

RAW = "application/vnd.cncf.model.weight.v1.raw"


# --- comparing -------------------------------------------------------------------------------------------------------


def test_a_finding_says_what_and_where_and_more_where_there_is_more() -> None:
    assert str(AssetFinding("a/b", "extra", "")) == "extra: a/b"
    assert str(AssetFinding("a/b", "changed", "2 bytes, expected 1")) == "changed: a/b (2 bytes, expected 1)"


def test_only_an_asset_that_is_one_file_may_have_another_name(tmp_path: Path) -> None:
    folder = tmp_path / "asset"
    folder.mkdir()
    (folder / "a").write_text("x")
    one = hash_asset(folder, name="n", kind="dataset")
    (folder / "a").rename(folder / "b")
    assert compare_asset(one, folder).findings == (AssetFinding("a", "missing", ""), AssetFinding("b", "extra", ""))
    (folder / "c").write_text("y")
    two = hash_asset(folder, name="n", kind="dataset")
    (tmp_path / "renamed").write_text("x")
    assert compare_asset(two, tmp_path / "renamed").findings == (
        AssetFinding("b", "missing", ""),
        AssetFinding("c", "missing", ""),
        AssetFinding("renamed", "extra", ""),
    )


# --- finding ---------------------------------------------------------------------------------------------------------


def test_a_bundle_says_which_assets_and_packs_it_carries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LayoutStore.create(tmp_path / "bundle")
    listed = {name: AssetManifest(name, "dataset", (AssetFile(name, 1, "a" * 64),)) for name in ("b", "a")}
    artifacts = [
        put_artifact(store, ASSET_ARTIFACT, contents=[ArtifactFile(name, ASSET_CONTENT, manifest.to_bytes())])
        for name, manifest in listed.items()
    ]
    titled, untitled = (
        put_artifact(store, MODELPACK_ARTIFACT, contents=[ArtifactFile("w", RAW, data)]) for data in (b"1", b"2")
    )
    entry = ArtifactEntry(title="nano", artifact_type=MODELPACK_ARTIFACT, digest=titled.digest, size_bytes=titled.size)
    manifest = BundleManifest(
        workflow={"name": "test", "stages": []},
        build_stages=(),
        artifacts=(entry,),
        compression="zstd",
        tool=ToolEntry(airferry="0.1.0"),
    )
    seal(store, {}, artifacts=[*artifacts, titled, untitled], manifest=manifest)
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle_assets(bundle) == listed and list(bundle_assets(bundle)) == ["a", "b"]
    packs = {name: pack.digest for name, pack in bundle_packs(bundle).items()}
    assert packs == {"nano": titled.digest, untitled.digest: untitled.digest}
    monkeypatch.setattr(staged, "MAX_ASSET_MANIFEST_BYTES", 10)
    with pytest.raises(IntegrityError, match="more than the limit of 10"):
        bundle_assets(bundle)


# --- unpacking -------------------------------------------------------------------------------------------------------


def put_pack(store: LayoutStore, content: Mapping[str | None, bytes]) -> Descriptor:
    """Store a ModelPack of raw layers, by the paths that their annotations name."""
    layers = [
        store.put_bytes(data, RAW, annotations=None if path is None else {MODELPACK_FILEPATH: path})
        for path, data in content.items()
    ]
    return put_model_pack(store, layers)


def test_a_pack_that_just_fits_is_unpacked_and_one_byte_less_is_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    pack = put_pack(store, {"a": b"x", "d/b": b"yz"})
    monkeypatch.setattr(files, "free_bytes", lambda _path: 2)
    with pytest.raises(HostError, match="needs 3 bytes, 2 are free"):
        unpack_pack(store, pack, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    monkeypatch.setattr(files, "free_bytes", lambda _path: 3)
    unpack_pack(store, pack, tmp_path / "there")
    assert (tmp_path / "there" / "a").read_bytes() == b"x" and (tmp_path / "there" / "d" / "b").read_bytes() == b"yz"


def test_each_layer_that_is_unpacked_is_progress(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    events: list[Event] = []
    unpack_pack(store, put_pack(store, {"a": b"x", "d/b": b"yz"}), tmp_path / "there", emit=events.append)
    assert events == [Progress("unpack there", 1, 3), Progress("unpack there", 3, 3)]


def test_a_raw_layer_without_a_path_is_no_file_of_any_name(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    with pytest.raises(IntegrityError, match="points outside the asset"):
        unpack_pack(store, put_pack(store, {None: b"x"}), tmp_path / "there")
    assert not (tmp_path / "there").exists()
