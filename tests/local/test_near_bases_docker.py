"""Bases of Docker's media types: pulled as they are, given OCI's types for the build, recorded by their own digest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from airferry.config import RegistryBase
from airferry.errors import IntegrityError
from airferry.events import silent
from airferry.host.journal import Journal
from airferry.near.assemble.writer import ImageWriter
from airferry.near.bases.fetch import BaseCache, ResolvedBase
from airferry.near.bases.layers import BaseLayers
from airferry.oci.documents import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    IMAGE_CONFIG,
    IMAGE_MANIFEST,
    LAYER_GZIP,
    parse_manifest,
)
from airferry.oci.layers import Compression
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.source import RegistrySource
from oci_images import layer_tar
from scripted_registry import ScriptedRegistry, sha256

PLATFORMS = [parse_platform("linux/amd64"), parse_platform("linux/arm64")]


def push_docker_image(registry: ScriptedRegistry) -> tuple[str, dict[str, str]]:
    """Put a manifest list of Docker's types into the registry as `base:1`; return its digest and its children's."""
    children, entries = {}, []
    for platform in PLATFORMS:
        tar = layer_tar({"etc/base": str(platform).encode()})
        layer = gzip.compress(tar, mtime=0)
        config = json.dumps(
            {
                "architecture": platform.architecture,
                "os": platform.os,
                "config": {"User": "app"},
                "rootfs": {"type": "layers", "diff_ids": [sha256(tar)]},
            },
            indent=3,
        ).encode()
        for data in (layer, config):
            registry.blobs[sha256(data)] = data
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "size": len(config), "digest": sha256(config)},
            "layers": [{"mediaType": DOCKER_LAYER_GZIP, "size": len(layer), "digest": sha256(layer)}],
        }
        manifest = json.dumps(document, indent=3).encode()
        children[str(platform)] = sha256(manifest)
        registry.manifests[f"team/base@{sha256(manifest)}"] = (manifest, DOCKER_MANIFEST)
        entries.append(
            {
                "mediaType": DOCKER_MANIFEST,
                "size": len(manifest),
                "digest": sha256(manifest),
                "platform": {"os": platform.os, "architecture": platform.architecture},
            }
        )
    index = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST_LIST, "manifests": entries}, indent=3).encode()
    for reference in ("1", sha256(index)):
        registry.manifests[f"team/base@{reference}"] = (index, DOCKER_MANIFEST_LIST)
    return sha256(index), children


def bring(
    registry: ScriptedRegistry, cache: Path, locked: ResolvedBase | None = None
) -> tuple[BaseCache, ResolvedBase]:
    options = ClientOptions(plain_http=True, lookup=lambda registry, repository: None)
    with RegistryClient(registry.address, options=options) as client:
        bases = BaseCache(
            cache, open_registry=lambda reference: RegistrySource(client, reference.repository), emit=silent
        )
        base = RegistryBase(reference=f"{registry.address}/team/base:1")
        return bases, bases.bring(base, PLATFORMS, locked=locked.locked if locked else None)


def test_a_base_of_dockers_types_keeps_its_digest_in_the_record_and_its_layers_in_the_bundle(
    registry: ScriptedRegistry, tmp_path: Path
) -> None:
    index, children = push_docker_image(registry)
    bases, resolved = bring(registry, tmp_path / "cache")
    assert resolved.locked.index == index
    assert {name: entry.manifest for name, entry in resolved.locked.platforms.items()} == children
    bundle = LayoutStore.create(tmp_path / "bundle")
    layers = BaseLayers(
        bases.store, tmp_path / "cache", compression=Compression("preserve"), output=tmp_path, emit=silent
    )
    writer = ImageWriter(bundle, layers, Journal(tmp_path / "journal.yaml"))
    for platform in PLATFORMS:
        image = resolved.images[platform]
        assert image.digest == children[str(platform)]
        original = registry.manifests[f"team/base@{image.digest}"][0]
        assert bases.store.blob_path(image.digest).read_bytes() == original, "the base's own bytes stay in the cache"
        twin = parse_manifest(bases.store.read_manifest(image.manifest).data)
        assert image.manifest.media_type == twin.media_type == IMAGE_MANIFEST
        assert (twin.config.media_type, [layer.media_type for layer in twin.layers]) == (IMAGE_CONFIG, [LAYER_GZIP])
        assert twin.layers[0].digest == json.loads(original)["layers"][0]["digest"]
        assert image.user == "app"
        built = writer.write(platform, image, writer.base_layers(image), image.config_bytes, python=None, additions=())
        assert built.entry.base_digest == children[str(platform)]
        manifest = parse_manifest(bundle.read_manifest(built.manifest).data)
        assert manifest.layers[0].media_type == LAYER_GZIP
        assert manifest.layers[0].digest == twin.layers[0].digest
        assert (manifest.annotations or {})["org.opencontainers.image.base.digest"] == children[str(platform)]


def test_a_pinned_base_of_dockers_types_is_read_from_the_cache_alone(
    registry: ScriptedRegistry, tmp_path: Path
) -> None:
    push_docker_image(registry)
    _, first = bring(registry, tmp_path / "cache")
    registry.calls.clear()
    _, again = bring(registry, tmp_path / "cache", locked=first)
    assert registry.calls == []
    assert again.images == first.images


def test_a_base_of_dockers_types_that_arrives_damaged_is_refused(registry: ScriptedRegistry, tmp_path: Path) -> None:
    _, children = push_docker_image(registry)
    manifest = json.loads(registry.manifests[f"team/base@{children['linux/amd64']}"][0])
    layer = manifest["layers"][0]["digest"]
    registry.blobs[layer] = registry.blobs[layer][:-1] + b"!"
    with pytest.raises(IntegrityError):
        bring(registry, tmp_path / "cache")
