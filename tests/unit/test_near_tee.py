"""Bases are looked at and recompressed while they are fetched, and fetched whatever comes of that."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pytest

from airferry.config import RegistryBase
from airferry.errors import IntegrityError
from airferry.events import silent
from airferry.host import files
from airferry.near.bases import reading
from airferry.near.bases.fetch import BaseCache, BaseImage
from airferry.near.bases.layers import BaseLayers
from airferry.near.probe.knowledge import Knowledge
from airferry.oci import layout
from airferry.oci.digest import digest_hex
from airferry.oci.documents import Descriptor, parse_manifest
from airferry.oci.layers import Compression, LayerResult
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import BLOCK_BYTES, Source, Stored
from debian_bases import AMD64
from oci_images import put_image, put_manifest

REGISTRY = RegistryBase(reference="registry.example/team/base:1")
LARGE_BYTES = 2 * BLOCK_BYTES + 5000
FILES = [
    {"usr/large": random.Random(1).randbytes(LARGE_BYTES)},
    {"usr/second": random.Random(2).randbytes(300_000)},
    {"etc/third": b"third"},
]


class Ranged(Source):
    """A registry's repository: blobs come from an offset on. It counts what it gave, and can spoil it."""

    reads_ranges = True

    def __init__(self, store: LayoutStore, top: Descriptor) -> None:
        self.store = store
        self.top = top
        self.given: dict[str, int] = {}
        self.spoilt: set[str] = set()

    def resolve(self, reference: str) -> Descriptor:
        return self.top

    def referrers(self, digest: str) -> list[Descriptor]:
        return []

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        return self.store.read_manifest(descriptor)

    @contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        self.given[descriptor.digest] = self.given.get(descriptor.digest, 0) + 1
        with self.store.open_blob(descriptor) as stream:
            yield stream

    @contextmanager
    def open_blob_at(self, descriptor: Descriptor, offset: int) -> Iterator[IO[bytes]]:
        self.given[descriptor.digest] = self.given.get(descriptor.digest, 0) + 1
        with self.store.blob_path(descriptor.digest).open("rb") as stream:
            stream.seek(offset)
            if descriptor.digest in self.spoilt:
                self.spoilt.remove(descriptor.digest)
                yield cast(IO[bytes], _Spoilt(stream))
            else:
                yield stream


class _Spoilt:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return bytes(len(self._stream.read(size)))


class Near:
    """A cache, and what works on it."""

    def __init__(self, cache: Path, source: Ranged, kind: str = "zstd") -> None:
        self.bases = BaseCache(cache, open_registry=lambda reference: source, emit=silent)
        self.layers = BaseLayers(
            self.bases.store,
            cache,
            compression=Compression(kind),  # type: ignore[arg-type]
            output=cache.parent,
        )
        self.knowledge = Knowledge(self.layers, cache)

    def bring(self) -> BaseImage:
        return self.bases.bring(REGISTRY, [AMD64], locked=None, learn=self.knowledge).images[AMD64]


@pytest.fixture(autouse=True)
def large_is_resumable() -> Iterator[None]:
    """Let the large layer be one whose transfer is resumed, as one of 16 MiB is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "RESUMABLE_FROM_BYTES", LARGE_BYTES)
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("AIRFERRY_CACHE", str(path))
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Descriptor, list[LayerResult]]:
    """A layout, the image in it and its layers: made once, so copy what is to be changed."""
    store = LayoutStore.create(tmp_path_factory.mktemp("image") / "source")
    return store.path, *put_image(store, FILES, kind="gzip")


@pytest.fixture
def source(image: tuple[Path, Descriptor, list[LayerResult]]) -> Ranged:
    path, top, _layers = image
    return Ranged(LayoutStore.open(path, read_only=True), top)


def layers_of(source: Ranged) -> list[Descriptor]:
    return list(parse_manifest(source.store.read_bytes(source.top)).layers)


def forbid_reading(near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("a layer is read again")

    monkeypatch.setattr(near.bases.store, "open_blob", refuse)
    monkeypatch.setattr(reading, "read_layer", refuse)


def carried(near: Near, base: BaseImage, into: Path) -> list[LayerResult]:
    bundle = LayoutStore.create(into)
    pairs = zip(base.layers, base.config.rootfs.diff_ids, strict=True)
    return [near.layers.carry(layer, diff_id, into=bundle) for layer, diff_id in pairs]


@pytest.mark.parametrize("kind", ["zstd", "gzip", "preserve"])
def test_a_layer_that_was_fetched_is_not_read_again(
    kind: str, source: Ranged, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = Near(cache, source, kind)
    base = near.bring()
    assert all(source.given[layer.digest] == 1 for layer in layers_of(source))
    forbid_reading(near, monkeypatch)
    view = near.knowledge.view(base)
    assert (view.listdir("usr"), view.listdir("etc")) == (["large", "second"], ["third"])
    made = carried(near, base, tmp_path / "bundle")
    assert [layer.diff_id for layer in made] == list(base.config.rootfs.diff_ids)
    monkeypatch.undo()
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "other"))
    plain = Near(tmp_path / "other", source, kind)
    same = plain.bases.bring(REGISTRY, [AMD64], locked=None).images[AMD64]
    assert carried(plain, same, tmp_path / "bundle-2") == made


def test_what_was_fetched_in_part_is_read_from_the_cache(source: Ranged, cache: Path) -> None:
    large = layers_of(source)[0]
    files.ensure_directory(cache / "partial")
    begun = source.store.blob_path(large.digest).read_bytes()[: large.size // 2]
    (cache / "partial" / digest_hex(large.digest)).write_bytes(begun)
    near = Near(cache, source)
    base = near.bring()
    assert near.layers._known(large, base.config.rootfs.diff_ids[0]) is None
    assert near.knowledge.view(base).listdir("usr") == ["large", "second"]


def test_a_transfer_that_brings_something_else_is_a_wrong_digest_and_nothing_is_kept(
    source: Ranged, cache: Path
) -> None:
    large = layers_of(source)[0]
    source.spoilt.add(large.digest)
    near = Near(cache, source)
    with pytest.raises(IntegrityError, match="has digest"):
        near.bring()
    assert not near.bases.store.has_blob(large)
    base = near.bring()
    assert near.knowledge.view(base).listdir("usr") == ["large", "second"]


def test_a_layer_that_is_not_what_the_config_says_is_fetched_and_then_named(
    image: tuple[Path, Descriptor, list[LayerResult]], tmp_path: Path, cache: Path
) -> None:
    path, _top, layers = image
    shutil.copytree(path, tmp_path / "source", copy_function=os.link)
    store = LayoutStore.open(tmp_path / "source")
    wrong = put_manifest(store, layers, diff_ids=["sha256:" + "0" * 64, *(layer.diff_id for layer in layers[1:])])
    near = Near(cache, Ranged(store, wrong))
    base = near.bring()
    with pytest.raises(IntegrityError, match="has diff_id"):
        near.knowledge.view(base)
    assert near.knowledge._facts.find("sha256:" + "0" * 64) is None
