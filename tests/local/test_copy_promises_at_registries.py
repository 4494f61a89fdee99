"""Promises of a copy that hold at a registry only."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.host import files
from airferry.oci.copy import copy_image
from airferry.oci.digest import digest_hex
from airferry.oci.documents import IMAGE_MANIFEST, LAYER_TAR, Descriptor, descriptor_of
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.retry import MAX_RETRY_AFTER_S, RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.uploads import Uploader
from oci_images import manifest_over, put_image
from scripted_registry import Call, Exchange, error_document, run_scripted


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "source")


def test_a_tag_at_a_registry_comes_after_the_referrers(store: LayoutStore) -> None:
    index, _results = put_image(store, [{"a": b"1"}])
    note = add_artifact(store, index)
    with run_scripted() as registry:
        options = ClientOptions(plain_http=True, lookup=lambda _registry, _repository: None)
        with RegistryClient(registry.address, options=options) as client:
            sink = RegistrySink(client, "r/x", uploader=Uploader(client))
            copy_image(store, sink, index, reference="1.0", referrers=True)
        puts = [call.path.rpartition("/")[2] for call in registry.calls if call.method == "PUT"]
    assert puts.index("1.0") > puts.index(note.digest)
    assert puts.count("1.0") == 1


def add_artifact(store: LayoutStore, subject: Descriptor) -> Descriptor:
    """Store an artifact that refers to something, listed in the layout's index, so that it is found from there."""
    contents = [ArtifactFile("note.txt", "text/plain", subject.digest.encode())]
    artifact = put_artifact(store, "application/x-note", contents=contents, subject=subject)
    store.put_manifest(store.read_manifest(artifact))
    return artifact


BLOB = bytes(range(256)) * 4096 * 17
LAYER = descriptor_of(BLOB, LAYER_TAR)


def after_the_lock(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let another process act between the opening of a file and the lock on it, once."""
    real, done = fcntl.flock, [False]

    def flock(handle: Any, operation: int) -> None:
        if not done[0] and operation & fcntl.LOCK_EX:
            done[0] = True
            act()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_lock_on_a_file_that_another_process_moved_away_counts_for_nothing(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    partial = files.ensure_directory(files.cache_directory() / "partial") / digest_hex(LAYER.digest)
    target = LayoutStore.create(tmp_path / "layout")
    with run_scripted() as registry:
        registry.blobs[LAYER.digest] = BLOB
        manifest = manifest_over(registry.blobs, LAYER)
        registry.manifests[f"r/x@{manifest.descriptor.digest}"] = (manifest.data, IMAGE_MANIFEST)
        options = ClientOptions(plain_http=True, lookup=lambda _registry, _repository: None)

        def finish_and_begin_again() -> None:
            partial.rename(tmp_path / "adopted")
            if replaced:
                partial.write_bytes(b"what a third process has of it so far")

        after_the_lock(monkeypatch, finish_and_begin_again)
        with RegistryClient(registry.address, options=options) as client:
            copy_image(RegistrySource(client, "r/x"), target, manifest.descriptor)
    with target.open_blob(LAYER) as stream:
        assert stream.read() == BLOB
    assert (tmp_path / "adopted").read_bytes() == b"", "nothing is written to a file that is another's now"
    assert partial.exists() is replaced
    if replaced:
        assert partial.read_bytes() == b"what a third process has of it so far"


def is_upload(call: Call) -> bool:
    return call.method in ("PUT", "PATCH") and "/uploads/" in call.path


def is_manifest(call: Call) -> bool:
    return call.method in ("GET", "HEAD") and "/manifests/" in call.path


@pytest.mark.parametrize("asked", ["999999999", "Fri, 31 Dec 2599 23:59:59 GMT"])
@pytest.mark.parametrize("matches", [is_upload, is_manifest])
def test_no_registry_can_make_a_client_wait_for_days(
    asked: str, matches: Callable[[Call], bool], store: LayoutStore
) -> None:
    image, _results = put_image(store, [{"a": b"1"}])
    pauses: list[float] = []
    struck: list[str] = []

    def overloaded(exchange: Exchange) -> bool:
        if struck or not matches(exchange.call):
            return False
        struck.append(exchange.call.path)
        exchange.read_body()
        return exchange.answer(429, error_document("TOOMANYREQUESTS"), Retry_After=asked)

    retry = RetryPolicy(attempts=3, sleep=pauses.append, jitter=lambda: 1.0)
    options = ClientOptions(plain_http=True, retry=retry, lookup=lambda _registry, _repository: None)
    with run_scripted([overloaded]) as registry, RegistryClient(registry.address, options=options) as client:
        copy_image(store, RegistrySink(client, "r/x", uploader=Uploader(client)), image, reference="1")
        RegistrySource(client, "r/x").resolve("1")
    assert struck and max(pauses) == MAX_RETRY_AFTER_S == 120.0
