"""A blob from a registry is durable once it is there."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from airferry.errors import HostError
from airferry.oci.copy import copy_image
from airferry.oci.documents import IMAGE_MANIFEST, LAYER_TAR, descriptor_of
from airferry.oci.layout import LayoutStore
from airferry.registry import sink
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.source import RegistrySource
from oci_images import manifest_over
from recorded_disk import Disk
from scripted_registry import ScriptedRegistry, run_scripted


def test_a_blob_that_comes_from_a_registry_in_pieces(disk: Disk, tmp_path: Path) -> None:
    blob = bytes(range(256)) * 4096 * 17
    layer = descriptor_of(blob, LAYER_TAR)
    store = LayoutStore.create(tmp_path / "layout")
    with run_scripted() as registry:
        registry.blobs[layer.digest] = blob
        manifest = manifest_over(registry.blobs, layer)
        registry.manifests[f"r/x@{manifest.descriptor.digest}"] = (manifest.data, IMAGE_MANIFEST)
        options = ClientOptions(plain_http=True, lookup=lambda _registry, _repository: None)
        with RegistryClient(registry.address, options=options) as client:
            copy_image(RegistrySource(client, "r/x"), store, manifest.descriptor)
    assert layer.digest[7:] in disk.names()


def test_a_blob_that_is_kept_for_a_registry_finds_temporary_folders_full(
    registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "SPOOL_IN_MEMORY_BYTES", 1)

    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sink, "SpooledTemporaryFile", lambda max_size: Full())
    with RegistryClient(registry.address) as client, pytest.raises(HostError) as caught:
        sink.RegistrySink(client, "x").put_blob(descriptor_of(b"blob", "text/plain"), io.BytesIO(b"blob"))
    assert "`TMPDIR`" in str(caught.value.hint)
