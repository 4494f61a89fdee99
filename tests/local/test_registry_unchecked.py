"""Large blobs are not hashed twice where the registry checks digests, and still never arrive as something else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from airferry.errors import IntegrityError, RegistryError
from airferry.oci.copy import copy_image
from airferry.oci.documents import LAYER_TAR, Descriptor
from airferry.oci.layout import LayoutStore
from airferry.oci.streams import SizedReader, VerifyingReader
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.governor import Limits
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.registry.uploads import UNCHECKED_FROM_BYTES, Uploader
from oci_images import put_image
from scripted_registry import Exchange, ScriptedRegistry, error_document

OPTIONS = ClientOptions(
    plain_http=True, retry=RetryPolicy(attempts=3, sleep=lambda _: None), lookup=lambda registry, repository: None
)
CHUNKED = Limits(chunked_above_bytes=1 << 20, chunk_bytes=1 << 20)


class Watched(LayoutStore):
    """A layout that notes how its blobs were opened."""

    opened: list[str]

    @contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        self.opened.append("verified")
        with super().open_blob(descriptor) as stream:
            assert isinstance(stream, VerifyingReader)
            yield stream

    @contextmanager
    def open_blob_unchecked(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        self.opened.append("unchecked")
        with super().open_blob_unchecked(descriptor) as stream:
            assert type(stream) is SizedReader
            yield stream


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    LayoutStore.create(tmp_path / "layout")
    made = Watched(tmp_path / "layout", read_only=False)
    made.opened = []
    return made


def put_large(store: LayoutStore, size: int = UNCHECKED_FROM_BYTES) -> Descriptor:
    return store.put_bytes(os.urandom(size), LAYER_TAR)


def push(registry: ScriptedRegistry, store: Watched, layer: Descriptor, *, limits: Limits | None = None) -> None:
    with RegistryClient(registry.address, options=OPTIONS) as client:
        sink = RegistrySink(client, "r/x", uploader=Uploader(client, limits=limits))
        sink.put_blob_from(
            layer, lambda: store.open_blob(layer), open_unchecked=lambda: store.open_blob_unchecked(layer)
        )


def damage(store: LayoutStore, layer: Descriptor) -> None:
    path = store.blob_path(layer.digest)
    path.chmod(0o644)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("limits", [None, CHUNKED], ids=["whole", "chunks"])
def test_a_large_blob_is_hashed_by_the_registry_alone(
    limits: Limits | None, registry: ScriptedRegistry, store: Watched
) -> None:
    layer = put_large(store)
    push(registry, store, layer, limits=limits)
    assert store.opened == ["unchecked"]
    assert (set(registry.blobs), registry.sessions) == ({layer.digest}, {})


@pytest.mark.parametrize("limits", [None, CHUNKED], ids=["whole", "chunks"])
def test_a_damaged_large_blob_is_an_integrity_error_and_does_not_arrive(
    limits: Limits | None, registry: ScriptedRegistry, store: Watched
) -> None:
    layer = put_large(store)
    damage(store, layer)
    with pytest.raises(IntegrityError, match="has digest"):
        push(registry, store, layer, limits=limits)
    assert store.opened == ["unchecked", "verified"]
    assert (registry.blobs, registry.sessions) == ({}, {})


def test_a_blob_damaged_on_its_way_arrives_the_second_time(registry: ScriptedRegistry, store: Watched) -> None:
    layer = put_large(store)
    struck: list[int] = []

    def spoil(exchange: Exchange) -> bool:
        if exchange.call.method != "PUT" or int(exchange.headers["Content-Length"]) < layer.size or struck:
            return False
        struck.append(1)
        exchange.read_body()
        return exchange.answer(400, error_document("DIGEST_INVALID"))

    registry.faults.append(spoil)
    push(registry, store, layer)
    assert store.opened == ["unchecked", "verified"]
    assert set(registry.blobs) == {layer.digest}


@pytest.mark.parametrize("status", [201, 400, 404, 500])
def test_a_registry_that_is_not_seen_to_check_gets_what_was_checked_here(
    status: int, registry: ScriptedRegistry, store: Watched
) -> None:
    layer = put_large(store)

    def lax(exchange: Exchange) -> bool:
        if exchange.call.method != "PUT" or exchange.headers["Content-Length"] != "0":
            return False
        exchange.read_body()
        return exchange.answer(status, error_document("OTHER"))

    registry.faults.append(lax)
    push(registry, store, layer)
    assert store.opened == ["verified"]
    assert registry.sessions == {}
    assert (registry.count("DELETE", "/blobs/sha256:") == 1) is (status == 201), "what it took is removed again"
    damage(store, layer)
    registry.blobs.clear()
    with pytest.raises(IntegrityError):
        push(registry, store, layer)
    assert registry.blobs == {}


def test_it_is_tried_once_for_all_blobs_and_never_for_small_ones(registry: ScriptedRegistry, store: Watched) -> None:
    small = put_large(store, UNCHECKED_FROM_BYTES - 1)
    push(registry, store, small)
    assert (store.opened, registry.count("POST")) == (["verified"], 1)
    store.opened.clear()
    image, _ = put_image(store, [{"a": os.urandom(UNCHECKED_FROM_BYTES)}, {"b": os.urandom(UNCHECKED_FROM_BYTES)}])
    with RegistryClient(registry.address, options=OPTIONS) as client:
        copy_image(store, RegistrySink(client, "r/y"), image)
    assert sorted(store.opened).count("unchecked") == 2
    assert registry.count("POST", "r/y/") == 4, "two layers, a config, and the trial"


def test_a_large_blob_that_is_cut_short_while_it_is_read_is_an_integrity_error(
    registry: ScriptedRegistry, store: Watched
) -> None:
    layer = put_large(store)

    @contextmanager
    def shorter() -> Iterator[IO[bytes]]:
        with store.open_blob_unchecked(layer) as stream:
            os.truncate(store.blob_path(layer.digest), layer.size // 2)
            yield stream

    with RegistryClient(registry.address, options=OPTIONS) as client:
        sink = RegistrySink(client, "r/x")
        with pytest.raises((IntegrityError, RegistryError)) as caught:
            sink.put_blob_from(layer, lambda: store.open_blob(layer), open_unchecked=shorter)
    assert isinstance(caught.value, IntegrityError)
    assert registry.blobs == {}
