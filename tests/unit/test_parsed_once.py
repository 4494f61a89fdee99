"""Documents are parsed once, and layers of bases hashed once, however many hands they pass through."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest

from airferry.bundle.verify import open_bundle
from airferry.config import ArchiveBase, LayoutBase, RegistryBase
from airferry.errors import IntegrityError
from airferry.events import silent
from airferry.near.bases.fetch import BaseCache
from airferry.near.bases.layers import BaseLayers
from airferry.near.probe.knowledge import Knowledge
from airferry.oci import documents, layout, reference, resume, streams
from airferry.oci.archive import write_oci_archive
from airferry.oci.closure import RememberingSource
from airferry.oci.copy import image_shipments
from airferry.oci.documents import Descriptor, parse_manifest
from airferry.oci.layers import Compression
from airferry.oci.layout import LayoutStore
from airferry.oci.resume import RESUMABLE_FROM_BYTES
from counted_parses import count_parses
from debian_bases import AMD64
from oci_images import make_bundle, put_image

NAME = "registry.example/team/base:1"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return count_parses(monkeypatch)


class Hashed:
    """How many bytes went through SHA-256 where blobs are read and written."""

    def __init__(self) -> None:
        self.total = 0

    def sha256(self, data: bytes = b"") -> Any:
        return _Counting(self, data)


class _Counting:
    def __init__(self, hashed: Hashed, data: bytes) -> None:
        self._hashed, self._inner = hashed, hashlib.sha256()
        self.update(data)

    def update(self, data: bytes) -> None:
        self._hashed.total += len(data)
        self._inner.update(data)

    def hexdigest(self) -> str:
        return self._inner.hexdigest()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Hashed:
    seen = Hashed()
    for module in (layout, resume, streams):
        monkeypatch.setattr(module, "hashlib", seen)
    return seen


def test_a_load_sends_the_documents_that_were_verified_whatever_happens_to_the_medium_then(
    tmp_path: Path,
) -> None:
    make_bundle(tmp_path / "bundle")
    opened = open_bundle(tmp_path / "bundle")
    (image,) = opened.images.values()
    before = opened.documents.read_manifest(image)
    opened.store.blob_path(image.digest).unlink()
    assert opened.documents.read_manifest(image) == before
    with pytest.raises(IntegrityError):
        open_bundle(tmp_path / "bundle").documents.read_manifest(image)


def test_what_is_remembered_has_a_limit(tmp_path: Path, parsed: Counter[str]) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    image, _layers = put_image(store, [{"a": b"1"}])
    for limit, count in ((image.size, 1), (image.size - 1, 3)):
        source = RememberingSource(store, limit_bytes=limit)
        parsed.clear()
        for _ in range(3):
            assert source.read_manifest(image).manifest.layers
        assert parsed[image.digest] == count


class ReadLayout(LayoutStore):
    """A layout that counts how often each blob is opened."""

    opened: ClassVar[Counter[str]] = Counter()

    def _open_sized(self, descriptor: Descriptor) -> Any:
        self.opened[descriptor.digest] += 1
        return super()._open_sized(descriptor)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("kind", ["layout", "archive"])
def test_a_base_from_a_disk_is_hashed_once_and_its_manifest_read_and_parsed_once(
    kind: str,
    learns: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parsed: Counter[str],
    hashed: Hashed,
) -> None:
    store = LayoutStore.create(tmp_path / "base")
    top, _results = put_image(store, [{"large": bytes(range(256)) * 9000}, {"small": b"1"}], kind="gzip")
    store.put_manifest(store.read_manifest(top), reference=NAME)
    write_oci_archive(store, image_shipments(store, top, reference=NAME), tmp_path / "base.tar")
    manifest = parse_manifest(store.read_bytes(top))
    base: Any = LayoutBase(path=tmp_path / "base", reference=NAME, written="oci:base")
    if kind == "archive":
        base = ArchiveBase(path=tmp_path / "base.tar", reference=NAME, written="oci-archive:base.tar")
    ReadLayout.opened.clear()
    bases = BaseCache(tmp_path / "cache", open_registry=_no_registry, emit=silent)
    layers = BaseLayers(bases.store, tmp_path / "cache", compression=Compression("zstd"), output=tmp_path)
    knowledge = Knowledge(layers, tmp_path / "cache")
    monkeypatch.setattr(
        "airferry.near.bases.fetch.LayoutStore.open",
        lambda path, *, read_only=False: ReadLayout(path, read_only=read_only),
    )
    parsed.clear()
    hashed.total = 0
    found = bases.bring(base, [AMD64], locked=None, learn=knowledge if learns else None).images[AMD64]
    assert found.layers == tuple(manifest.layers)
    assert (parsed[top.digest], parsed[manifest.config.digest]) == (1, 1)
    if kind == "layout":
        assert ReadLayout.opened[top.digest] == 1
        assert {ReadLayout.opened[layer.digest] for layer in manifest.layers} == {1}
    packed = sum(layer.size for layer in manifest.layers)
    recompressed = sum(_size(path) for path in (tmp_path / "cache" / "layers" / "blobs").rglob("*")) if learns else 0
    # besides the layers themselves: what comes out of them, and a few documents
    assert packed <= hashed.total - recompressed < packed + 10_000


def test_a_large_layer_from_a_registry_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: Hashed
) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    data = hashlib.shake_256(b"layer").digest(RESUMABLE_FROM_BYTES)
    descriptor = documents.descriptor_of(data, documents.LAYER_TAR)
    source = LayoutStore.create(tmp_path / "source")
    source.put_bytes(data, documents.LAYER_TAR)
    source.reads_ranges = True
    target = LayoutStore.create(tmp_path / "target")
    hashed.total = 0
    assert resume.fetch_blob(source, target, descriptor, on_block=lambda _: None)
    assert hashed.total == descriptor.size


def test_the_reference_of_a_base_is_parsed_where_the_plan_is_read_and_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    parse = reference.parse_reference

    def counted(text: str, **more: Any) -> Any:
        seen[text] += 1
        return parse(text, **more)

    monkeypatch.setattr("airferry.config.bases.parse_reference", counted)
    base = RegistryBase(reference=NAME)
    for _ in range(4):
        assert str(base.parsed) == NAME
    assert seen[NAME] == 1
    assert base == RegistryBase(reference=NAME), "what was parsed does not enter comparisons"
    assert hash(base) == hash(RegistryBase(reference=NAME))
    assert base.model_dump() == {"reference": NAME}


def _no_registry(_reference: object) -> Any:
    raise AssertionError("a registry is asked")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
