"""What desktops, file systems and other tools leave is named, and is no damage; links to themselves are links."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from airferry.assets.record import hash_asset
from airferry.assets.staged import compare_asset
from airferry.errors import BuildError, FindingsError
from airferry.far.verify import verify
from airferry.near.assemble.checkouts import add_checkout
from airferry.near.assemble.tree import LayerTree
from airferry.near.git import driver
from airferry.oci.layout import LayoutStore
from airferry.oci.litter import is_litter, litter_source
from airferry.rootfs.view import RootView
from oci_images import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_layout_of_another_tool_may_have_litter_too(tmp_path: Path) -> None:
    make_bundle(tmp_path / "made")
    (tmp_path / "made" / ".DS_Store").write_text("x")
    store = LayoutStore.open(tmp_path / "made")
    store.write_index([entry for entry in store.read_index().manifests if entry.artifact_type is None])
    report = verify(tmp_path / "made")
    assert not report.is_bundle and len(report.litter) == 1


def test_what_only_looks_like_litter_is_found(bundle: Path) -> None:
    (bundle / "blobs" / "store.json").write_text("hauler writes it at the top")
    (bundle / "Thumbs.db").symlink_to("index.json")
    (bundle / "desktop.ini").mkdir()
    os.mkfifo(bundle / ".DS_Store")
    (bundle / "._\x1b[2J").write_text("a terminal would obey it")
    report = verify(bundle)
    assert report.litter == () and len(report.findings) == 5


def test_litter_next_to_a_bundle_is_named_so(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("x")
    report = verify(tmp_path)
    assert report.ok and [line for line in report.beside if "left there by macOS" in line]


def test_an_asset_with_litter_is_told_to_remove_it(tmp_path: Path) -> None:
    folder = tmp_path / "asset"
    folder.mkdir()
    (folder / "data.parquet").write_text("x")
    manifest = hash_asset(folder, name="data")
    (folder / "._data.parquet").write_text("x")
    report = compare_asset(manifest, folder)
    assert [str(item) for item in report.findings] == ["extra: ._data.parquet (left by a desktop or file system)"]
    with pytest.raises(FindingsError) as caught:
        report.raise_if_wrong()
    assert caught.value.hint == "remove these files, then verify again"
    (folder / "data.parquet").write_text("y")
    with pytest.raises(FindingsError) as caught:
        compare_asset(manifest, folder).raise_if_wrong()
    assert "copy these files again" in str(caught.value.hint)


def test_litter_is_known_by_name_and_kind() -> None:
    assert litter_source("THUMBS.DB", is_folder=False) == "Windows"
    assert litter_source("lost+found", is_folder=False) is None
    assert litter_source("store.json", is_folder=False) is None
    assert is_litter(Path("a/@eaDir/x")) and not is_litter(Path("a/data"))


def loops(tree: Path) -> Path:
    (tree / "d" / "..data").mkdir(parents=True)
    (tree / "d" / "..data" / "x").write_text("x")
    (tree / "d" / "me").symlink_to("me")
    (tree / "one").symlink_to("d/two")
    (tree / "d" / "two").symlink_to("../one")
    (tree / "deep").symlink_to("deep/er")
    (tree / "d" / "now").symlink_to("..data")
    (tree / "file").write_text("x")
    return tree


def test_a_checkout_keeps_links_to_themselves(tmp_path: Path) -> None:
    driver._settle(loops(tmp_path / "tree"), what="it")
    layer = LayerTree(RootView(), epoch_s=0)
    add_checkout(layer, tmp_path / "tree", "/opt/it", epoch_s=0, owner="it")
    found = b"".join(layer.blocks())
    assert b"opt/it/d/me" in found and b"opt/it/deep" in found
    for target in ("../me", "/me", "d/../../x", "../../..data"):
        (tmp_path / "tree" / "bad").symlink_to(target)
        with pytest.raises(BuildError, match="points outside the tree"):
            driver._settle(tmp_path / "tree", what="it")
        (tmp_path / "tree" / "bad").unlink()


def test_an_asset_keeps_links_to_themselves(tmp_path: Path) -> None:
    folder = loops(tmp_path / "asset")
    (folder / "deep").unlink()
    manifest = hash_asset(folder, name="data")
    assert {link.path for link in manifest.links} >= {"d/me", "one", "d/two"}
    assert compare_asset(manifest, folder).ok
    (folder / "d" / "me").unlink()
    assert json.dumps([item.problem for item in compare_asset(manifest, folder).findings]) == '["missing"]'
