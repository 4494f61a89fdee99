"""Many blobs that a repository lacks: whether one is there is asked by the request that begins its upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airferry.host.canonical import canonical_json
from airferry.oci.copy import CopyOptions, copy_image
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, LAYER_TAR, Descriptor, Manifest
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import ABSENT_IN_A_ROW, RegistrySink
from airferry.registry.uploads import Uploader
from scripted_registry import Call, Exchange, ScriptedRegistry, error_document, run_scripted, times

LAYERS = 20


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with run_scripted() as running:
        running.mounts = True
        yield running


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "layout")


@pytest.fixture
def image(store: LayoutStore) -> Descriptor:
    """An image of many layers."""
    layers = [store.put_bytes(b"layer %d" % number, LAYER_TAR) for number in range(LAYERS)]
    config = store.put_bytes(canonical_json({"architecture": "amd64", "os": "linux"}), IMAGE_CONFIG)
    manifest = Manifest(schema_version=2, media_type=IMAGE_MANIFEST, config=config, layers=layers)
    descriptor = store.put_bytes(canonical_json(manifest), IMAGE_MANIFEST)
    store.put_manifest(store.read_manifest(descriptor))
    return descriptor


def push(registry: ScriptedRegistry, store: LayoutStore, image: Descriptor, *, mounts: bool = True) -> None:
    options = ClientOptions(
        plain_http=True, retry=RetryPolicy(attempts=3, sleep=lambda _: None), lookup=lambda registry, repository: None
    )
    with RegistryClient(registry.address, options=options) as client:
        sink = RegistrySink(client, "r/x", uploader=Uploader(client, mounts=mounts))
        copy_image(store, sink, image, options=CopyOptions(jobs=1))


def asked(registry: ScriptedRegistry) -> int:
    return registry.count("HEAD", "/blobs/")


def by_mount(registry: ScriptedRegistry) -> list[Call]:
    return [call for call in registry.calls if call.method == "POST" and "mount" in call.query]


def test_after_a_few_absent_blobs_a_mount_asks_and_begins(
    registry: ScriptedRegistry, store: LayoutStore, image: Descriptor
) -> None:
    push(registry, store, image)
    assert len(registry.blobs) == LAYERS + 1
    assert registry.sessions == {}
    assert asked(registry) == ABSENT_IN_A_ROW
    trial, *rest = by_mount(registry)
    assert trial.query["from"] == ["r/x"]
    assert len(rest) == LAYERS + 1 - ABSENT_IN_A_ROW
    assert registry.count("POST") == LAYERS + 2
    assert registry.count("PUT", "/uploads/") == LAYERS + 1


def test_a_blob_that_is_there_after_all_is_checked_and_not_sent(
    registry: ScriptedRegistry, store: LayoutStore, image: Descriptor
) -> None:
    push(registry, store, image)
    order = [call.query["digest"][0] for call in registry.calls if call.method == "PUT" and "digest" in call.query]
    for digest in order[:10]:
        del registry.blobs[digest]
    registry.calls.clear()
    push(registry, store, image)
    assert len(registry.blobs) == LAYERS + 1
    assert registry.sessions == {}
    assert registry.count("PUT", "/uploads/") == 10
    # the first that was found is looked at as well, and those behind it are asked for as usual
    assert asked(registry) == ABSENT_IN_A_ROW + LAYERS + 1 - 10


def test_a_registry_that_ignores_mounts_is_asked_as_usual(
    registry: ScriptedRegistry, store: LayoutStore, image: Descriptor
) -> None:
    registry.mounts = False
    push(registry, store, image)
    assert len(registry.blobs) == LAYERS + 1
    assert registry.sessions == {}, "the trial left its session behind"
    assert asked(registry) == LAYERS + 1
    assert len(by_mount(registry)) == 1


def test_a_registry_that_is_known_not_to_mount_is_not_tried(
    registry: ScriptedRegistry, store: LayoutStore, image: Descriptor
) -> None:
    push(registry, store, image, mounts=False)
    assert by_mount(registry) == []


def test_a_registry_that_says_created_to_everything_gets_every_blob(
    registry: ScriptedRegistry, store: LayoutStore, image: Descriptor
) -> None:
    def lie(exchange: Exchange) -> bool:
        return exchange.call.method == "POST" and "mount" in exchange.call.query and exchange.answer(201)

    registry.faults.append(lie)
    push(registry, store, image)
    assert len(registry.blobs) == LAYERS + 1
    assert len(by_mount(registry)) == 2, "the trial, and the first blob, which was not there"


def test_a_registry_that_refuses_such_mounts_is_asked_as_usual(
    registry: ScriptedRegistry, store: LayoutStore, image: Descriptor
) -> None:
    def refuse(exchange: Exchange) -> bool:
        refused = exchange.call.method == "POST" and "mount" in exchange.call.query
        return refused and exchange.answer(400, error_document("UNSUPPORTED"))

    registry.faults.append(refuse)
    push(registry, store, image)
    assert len(registry.blobs) == LAYERS + 1
    assert len(by_mount(registry)) == 1


def test_a_mount_that_fails_for_a_moment_is_tried_again(
    registry: ScriptedRegistry, store: LayoutStore, image: Descriptor
) -> None:
    later = lambda call: call.method == "POST" and "mount" in call.query and len(registry.blobs) > 8  # noqa: E731
    registry.faults.append(times(2, later, lambda exchange: exchange.answer(503)))
    push(registry, store, image)
    assert len(registry.blobs) == LAYERS + 1
    assert registry.sessions == {}
    assert asked(registry) == ABSENT_IN_A_ROW
