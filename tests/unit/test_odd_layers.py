"""Layers of Kaniko, Bazel and others: read as engines unpack them, and what is not read is left to an engine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from airferry.bundle.manifest import describe_original
from airferry.config import LayoutBase
from airferry.errors import IntegrityError
from airferry.events import silent
from airferry.host.canonical import canonical_json
from airferry.near.assemble.direct import NotKnown
from airferry.near.bases.fetch import BaseCache
from airferry.oci import tar
from airferry.oci.closure import read_closure
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, LAYER_GZIP, LAYER_TAR, MAX_NESTED
from airferry.oci.entries import named
from airferry.oci.layers import LayerResult
from airferry.oci.layout import LayoutStore
from airferry.oci.tar import DIRECTORY, END_OF_ARCHIVE, MAX_SPARSE_BYTES, MAX_TAIL_BYTES, SYMLINK
from airferry.oci.validate import Inspector
from airferry.rootfs.layers import LayerFacts, UnreadLayer, collect_facts
from airferry.rootfs.python import StaticallyUnknown
from airferry.rootfs.view import RootView
from debian_bases import AMD64
from layer_tars import Item, cut, tar_of
from oci_images import base_image, knowledge_of, put_image, put_index, put_manifest
from odd_tars import HARMLESS, REFUSED, REFUSED_SPARSE, SPARSE, SPARSE_DATA, TIME_S, UNREAD, first, sparse

BELOW = tar_of([Item("absolute/gone"), Item("absolute/hidden/old")])


def facts(data: bytes) -> LayerFacts:
    return collect_facts(cut(data), what="the layer")


def test_what_engines_take_is_read_as_they_unpack_it() -> None:
    """`test_merged_view.py` compares the same layers with what Buildah mounts."""
    view = RootView([facts(BELOW), *map(facts, HARMLESS.values())])
    found = {}
    for path, one in view.walk():
        if one.type != DIRECTORY:
            found[path] = (one.link_name if one.type == SYMLINK else one.size, one.mtime_s)
    assert found == {
        "absolute/etc/x": (6, TIME_S),
        "absolute/y": (5, TIME_S),
        "absolute/hard": (6, TIME_S),
        "absolute/hidden/new": (0, TIME_S),
        "dots/a": (1, TIME_S),
        "dots/b": (2, TIME_S),
        "dots/..c/d": (3, TIME_S),
        "dot/a": (0, TIME_S),
        "unmarked/a": (1, TIME_S),
        "unpadded/a": (2, TIME_S),
        "half/a": (1, TIME_S),
        "garbage/a": (1, TIME_S),
        "second/a": (1, TIME_S),
        "times/before": (0, 0),
        "times/last": (0, 9_223_372_036),
        "times/after": (0, 0),
        "times/far": (0, 0),
        "times/pax": (0, 0),
        "times/empty": (0, TIME_S),
        "numbers/mode": (0, TIME_S),
        "numbers/device": (0, TIME_S),
        "global/a": (1, TIME_S),
        **{f"owners/{name}": (1, TIME_S) for name in ("same", "pax")},
        "owners/large": (0, TIME_S),
        **{f"sparse/{version}.dist-info/METADATA": (len(SPARSE_DATA), TIME_S) for version in SPARSE},
        "sparse/empty": (70000, TIME_S),
        "sparse/full": (3, TIME_S),
        "sparse/newer": (515, TIME_S),
        "sparse/no-map": (3, TIME_S),
        "sparse/after": (1, TIME_S),
        "loops/a": ("a", TIME_S),
        "loops/b": ("c", TIME_S),
        "loops/c": ("/loops/b", TIME_S),
    }
    owners = {path: (one.uid, one.gid) for path, one in view.walk() if path.startswith("owners/")}
    assert owners.pop("owners/large") == (1000, 65534)
    assert set(owners.values()) == {(0, 0)}
    for version in SPARSE:
        kept = view.lookup(f"sparse/{version}.dist-info/METADATA")
        assert kept is not None and kept.facts is not None
        assert kept.facts.content == SPARSE_DATA
    assert view.is_dir("dots/f") and view.is_dir("folder")
    assert view.lookup("numbers/mode").mode == 0o7777  # type: ignore[union-attr]


@pytest.mark.parametrize(("says", "data"), REFUSED.items())
def test_what_engines_refuse_is_refused(says: str, data: bytes) -> None:
    with pytest.raises(IntegrityError, match=says) as caught:
        facts(data)
    assert not isinstance(caught.value, UnreadLayer)


@pytest.mark.parametrize("data", REFUSED_SPARSE.values(), ids=REFUSED_SPARSE)
def test_sparse_files_that_engines_refuse_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"sparse entry .* is malformed|malformed pax record") as caught:
        facts(data + END_OF_ARCHIVE)
    assert not isinstance(caught.value, UnreadLayer)


def test_sparse_files_are_bounded_together_and_their_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    half = sparse("a", first(0), ("major", "1"), ("minor", "0"), ("realsize", str(MAX_SPARSE_BYTES // 2)))
    facts(half * 2)
    with pytest.raises(IntegrityError, match=r"sparse files of more than .* the limit"):
        facts(half * 3)
    large = sparse("a", first(2, *range(4)), ("major", "1"), ("minor", "0"), ("realsize", "9"))
    monkeypatch.setattr(tar, "MAX_META_BYTES", 256)
    with pytest.raises(IntegrityError, match=r"is malformed|larger than 256"):
        facts(large)


def test_strict_readers_refuse_sparse_files_and_negative_owners() -> None:
    for data, says in ((HARMLESS["sparse files"], "is sparse"), (HARMLESS["owners"], "negative owner")):
        with pytest.raises(IntegrityError, match=says):
            list(tar.TarReader(io.BytesIO(data), what="it"))


def test_what_follows_the_end_is_bounded_all_the_same() -> None:
    with pytest.raises(IntegrityError, match="the limit there"):
        collect_facts(cut(HARMLESS["zeros"] + b"x" * (MAX_TAIL_BYTES + 1), 1 << 20), what="the layer")


@pytest.mark.parametrize(("says", "data"), UNREAD.items())
def test_what_is_not_read_is_left_to_an_engine(says: str, data: bytes, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    described = store.put_bytes(data, LAYER_TAR)
    base = base_image(store, put_manifest(store, [LayerResult(described, described.digest, len(data))]), AMD64)
    knowledge = knowledge_of(store, tmp_path / "cache")
    knowledge.read(base)
    with pytest.raises(StaticallyUnknown, match=f"{described.digest}.*{says}.*, so its files do not show"):
        knowledge.probe(base, AMD64, python=None)
    for needs_python in (True, False):
        with pytest.raises(NotKnown, match=says):
            knowledge.look(base, AMD64, None, needs_python)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (Item("a/../../b"), "leads upwards"),
        (Item("dev/sda", "block", "8:0"), "is a block device"),
        (Item("gone", "char", "0:0"), "is a whiteout of overlayfs"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_no_engine_gets_what_must_not_be_unpacked(item: Item, says: str, order: int, tmp_path: Path) -> None:
    """Neither behind what is not read in the same layer, nor in a layer beside it."""
    odd = next(iter(UNREAD.values()))
    with pytest.raises(IntegrityError, match=says):
        facts(odd[:1024] + tar_of([item]))
    store = LayoutStore.create(tmp_path / "layout")
    blobs = [store.put_bytes(data, LAYER_TAR) for data in (odd, tar_of([item]))[::order]]
    base = base_image(store, put_manifest(store, [LayerResult(one, one.digest, one.size) for one in blobs]), AMD64)
    with pytest.raises(IntegrityError, match=says):
        knowledge_of(store, tmp_path / "cache").look(base, AMD64, None, False)


def test_lists_that_go_wrote_as_null_are_empty(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": None}, "history": None}
    described = store.put_bytes(canonical_json(config), IMAGE_CONFIG)
    document = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "layers": None}
    manifest = store.put_bytes(
        canonical_json({**document, "config": described.model_dump(by_alias=True, exclude_none=True)}), IMAGE_MANIFEST
    )
    base = base_image(store, manifest, AMD64)
    assert base.layers == ()
    assert knowledge_of(store, tmp_path / "cache").view(base).listdir("") == []
    assert read_closure(store, manifest).blobs.keys() == {described.digest}


def test_a_base_may_be_in_a_nested_index_and_have_foreign_layers(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    image, results = put_image(store, [{"a": b"x"}], kind="gzip")
    manifest = store.read_manifest(image).manifest
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    foreign = results[0].descriptor.model_copy(update={"media_type": kind, "urls": ["https://go.example/layer"]})
    data = canonical_json(manifest.model_copy(update={"layers": [foreign]}))
    child = store.put_bytes(data, IMAGE_MANIFEST, platform=image.platform)
    top = put_index(store, [put_index(store, [child])])
    store.write_index([named(top, "base:1")])
    cache = BaseCache(tmp_path / "cache", open_registry=lambda reference: store, emit=silent)
    spec = LayoutBase(path=tmp_path / "layout", reference="base:1", written="oci:layout:base:1")
    found = cache.bring(spec, [AMD64], locked=None)
    assert found.locked.index == top.digest
    assert found.locked.platforms["linux/amd64"].manifest == child.digest
    held = cache.store.read_manifest(found.images[AMD64].manifest)
    assert [layer.media_type for layer in held.manifest.layers] == [LAYER_GZIP]
    assert b"urls" not in held.data
    entry = describe_original(store, top, reference="registry.example/base:1")
    assert entry.platforms["linux/amd64"].digest == child.digest
    [part] = Inspector(store).image(top, subject="it", original=True, nested=MAX_NESTED)
    assert part.manifest.digest == child.digest


@pytest.mark.parametrize("names", [("../../a", "a"), ("a", "../../a")])
def test_a_sparse_name_that_climbs_is_refused(names: tuple[str, str]) -> None:
    with pytest.raises(IntegrityError, match="leads upwards") as caught:
        facts(sparse(names[0], b"abc", ("size", "3"), ("numblocks", "1"), ("map", "0,3"), path=names[1]))
    assert not isinstance(caught.value, UnreadLayer)
