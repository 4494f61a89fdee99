"""Layers of bases on their way into a bundle: read once, one after the other or several at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from airferry.errors import IntegrityError
from airferry.host.journal import Journal
from airferry.near.assemble import writer
from airferry.near.assemble.writer import ImageWriter
from airferry.near.bases import layers as base_layers
from airferry.near.bases.fetch import BaseImage
from airferry.near.bases.layers import BaseLayers
from airferry.near.probe import knowledge
from airferry.near.probe.knowledge import Knowledge
from airferry.oci.documents import Descriptor
from airferry.oci.layers import Compression
from airferry.oci.layout import LayoutStore
from debian_bases import AMD64
from oci_images import base_image, put_image

LAYERS = [{f"usr/file{number}": random.Random(number).randbytes(300_000 + number)} for number in range(5)]


def make_base(cache: Path) -> BaseImage:
    """Put a base into a cache; one of its layers is there twice, as an empty one often is."""
    store = LayoutStore.create(cache / "bases")
    descriptor, _layers = put_image(store, [*LAYERS, LAYERS[0]], kind="gzip")
    return base_image(store, descriptor, AMD64)


def carry(folder: Path, kind: str) -> tuple[list[Descriptor], list[str], BaseLayers]:
    """Look at a base and bring its layers into a bundle; return these, what is in the root, and what carried them."""
    cache = folder / "cache"
    base = make_base(cache)
    layers = BaseLayers(
        LayoutStore.open(cache / "bases"),
        cache,
        compression=Compression(kind),
        output=folder,  # type: ignore[arg-type]
    )
    view = Knowledge(layers, cache).view(base)
    bundle = LayoutStore.create(folder / "bundle")
    made = ImageWriter(bundle, layers, Journal(folder / "journal.yaml")).base_layers(base)
    assert all(bundle.has_blob(layer.descriptor) for layer in made)
    return [layer.descriptor for layer in made], view.listdir("usr"), layers


@pytest.mark.parametrize("kind", ["zstd", "preserve"])
def test_several_at_a_time_give_the_same_in_the_same_order(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (knowledge, writer):
        monkeypatch.setattr(module, "layers_at_once", lambda: 1)
    one_by_one = carry(tmp_path / "one", kind)
    for module in (knowledge, writer):
        monkeypatch.setattr(module, "layers_at_once", lambda: 4)
    at_a_time = carry(tmp_path / "four", kind)
    assert at_a_time[0] == one_by_one[0]
    assert at_a_time[0][0] == at_a_time[0][-1] and len(set(map(str, at_a_time[0]))) == len(LAYERS)
    assert at_a_time[1] == one_by_one[1] == [f"file{number}" for number in range(len(LAYERS))]


@pytest.mark.parametrize(("cores", "layers"), [(1, 1), (2, 1), (6, 3), (64, 4)])
def test_layers_at_a_time(cores: int, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_layers, "usable_cores", lambda: cores)
    assert base_layers.layers_at_once() == layers


def test_a_layer_that_is_not_what_the_config_says_fails_whatever_is_read_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knowledge, "layers_at_once", lambda: 4)
    cache = tmp_path / "cache"
    base = make_base(cache)
    base.config.rootfs.diff_ids[2] = "sha256:" + "0" * 64
    layers = BaseLayers(LayoutStore.open(cache / "bases"), cache, compression=Compression("zstd"), output=tmp_path)
    with pytest.raises(IntegrityError, match="diff_id"):
        Knowledge(layers, cache).view(base)


def test_what_a_layer_will_take_in_a_bundle_is_known_once_it_was_recompressed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    base = make_base(cache)
    fresh = BaseLayers(LayoutStore.open(cache / "bases"), cache, compression=Compression("zstd"), output=tmp_path)
    diff_id = base.config.rootfs.diff_ids[0]
    assert fresh.expected(base.layers[0], diff_id) == (base.layers[0], False)
    packed, _names, layers = carry(tmp_path, "zstd")
    assert layers.expected(base.layers[0], diff_id) == (packed[0], True)
