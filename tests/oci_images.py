"""Small real images and bundles for tests, made with the code under test's own store and layer pipeline."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airferry.assets.manifest import MODELPACK_ARTIFACT
from airferry.bundle.artifacts import REQUIREMENTS_ARTIFACT, ArtifactFile, put_artifact
from airferry.bundle.manifest import (
    ArtifactEntry,
    BundleManifest,
    ImageEntry,
    PlatformEntry,
    ToolEntry,
    describe_image,
    describe_platform,
)
from airferry.bundle.seal import Sealed, seal
from airferry.bundle.twins import with_twins
from airferry.host import files
from airferry.host.canonical import canonical_json
from airferry.near.bases.fetch import BaseImage
from airferry.near.bases.layers import BaseLayers
from airferry.near.probe.knowledge import Knowledge
from airferry.oci.documents import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    PlatformDocument,
    descriptor_of,
    parse_image_config,
    parse_manifest,
)
from airferry.oci.layers import Compression, LayerResult, compress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform, parse_platform
from airferry.oci.ports import Source, Stored
from airferry.oci.validate import Defect, Inspector, validate_layout

REFERENCE = "registry.example/team/trainer:1.0"


def layer_tar(content: Mapping[str, bytes], *, mtime_s: float = 0) -> bytes:
    """Return a tar of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), mtime_s
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def put_image(
    store: LayoutStore,
    layers: Sequence[Mapping[str, bytes]],
    *,
    platform: str = "linux/amd64",
    kind: Any = "zstd",
) -> tuple[Descriptor, list[LayerResult]]:
    """Store an image of one platform; the descriptor states the platform."""
    compression = Compression(kind, threads=1)
    results = [compress_layer(io.BytesIO(layer_tar(layer)), compression=compression, into=store) for layer in layers]
    return put_manifest(store, results, platform=platform), results


def put_manifest(
    store: LayoutStore,
    results: Sequence[LayerResult],
    *,
    platform: str = "linux/amd64",
    config_platform: str | None = None,
    diff_ids: Sequence[str] | None = None,
) -> Descriptor:
    """Store config and manifest over stored layers."""
    stated, own = parse_platform(platform), parse_platform(config_platform or platform)
    config = {
        "architecture": own.architecture,
        "os": own.os,
        "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or [result.diff_id for result in results])},
    }
    manifest = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        config=store.put_bytes(canonical_json(config), IMAGE_CONFIG),
        layers=[result.descriptor for result in results],
    )
    return store.put_bytes(
        canonical_json(manifest),
        IMAGE_MANIFEST,
        platform=PlatformDocument(os=stated.os, architecture=stated.architecture),
    )


def manifest_over(blobs: dict[str, bytes], layer: Descriptor) -> Stored:
    """Return the manifest of an image of one uncompressed layer; its config goes to the blobs."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }
    data = canonical_json(config)
    described = descriptor_of(data, IMAGE_CONFIG)
    blobs[described.digest] = data
    manifest = Manifest(schema_version=2, media_type=IMAGE_MANIFEST, config=described, layers=[layer])
    document = canonical_json(manifest)
    return Stored(descriptor_of(document, IMAGE_MANIFEST), document)


def put_model_pack(store: LayoutStore, layers: list[Descriptor]) -> Descriptor:
    """Store the manifest of a ModelPack with these layers, whatever they hold."""
    config = store.put_bytes(b"{}", "application/vnd.cncf.model.config.v1+json")
    document = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        artifact_type=MODELPACK_ARTIFACT,
        config=config,
        layers=layers,
    )
    return store.put_bytes(canonical_json(document), IMAGE_MANIFEST)


def put_index(store: LayoutStore, children: Sequence[Descriptor]) -> Descriptor:
    """Store an image index over manifests."""
    index = Index(schema_version=2, media_type=IMAGE_INDEX, manifests=list(children))
    return store.put_bytes(canonical_json(index), IMAGE_INDEX)


def make_image(
    store: LayoutStore, salt: str = "", *, name: str = "trainer", reference: str = REFERENCE
) -> tuple[Descriptor, ImageEntry]:
    """Store an image of two platforms that share a layer, and return its index and its entry in a manifest."""
    children: list[Descriptor] = []
    platforms: dict[str, PlatformEntry] = {}
    for platform in ("linux/amd64", "linux/arm64"):
        shared = {"shared": b"the same on both" * 1000}
        child, results = put_image(store, [shared, {"own": (platform + salt).encode()}], platform=platform)
        platforms[platform] = describe_platform(store, child, layers=results, base_layers=1)
        children.append(child)
    index = put_index(store, children)
    entry = describe_image(
        index, name=name, role="execution", image=reference, reference=reference, platforms=platforms
    )
    return index, entry


def make_bundle(path: Path, salt: str = "", *, twins: bool = False) -> Sealed:
    """Seal a bundle of one image and one artifact into a folder, over what may be there; perhaps with its twin."""
    store = LayoutStore.create(path)
    index, image = make_image(store, salt)
    text = f"tiny=={salt or '1'}\n".encode()
    artifact = put_artifact(
        store,
        REQUIREMENTS_ARTIFACT,
        contents=[ArtifactFile("requirements-trainer.txt", "text/plain", text)],
        subject=index,
    )
    entry = ArtifactEntry(
        title="requirements-trainer.txt",
        artifact_type=REQUIREMENTS_ARTIFACT,
        digest=artifact.digest,
        size_bytes=artifact.size,
        subject=index.digest,
    )
    images = {REFERENCE: index}
    manifest = BundleManifest(
        workflow={"name": "test", "stages": ["sft/tiny:default"]},
        build_stages=("validate", "build-execution-images"),
        images=tuple(with_twins(store, [image], images) if twins else [image]),
        artifacts=(entry,),
        compression="zstd",
        tool=ToolEntry(airferry="0.1.0"),
    )
    return seal(store, images, artifacts=[artifact], manifest=manifest)


def base_image(store: LayoutStore, descriptor: Descriptor, platform: Platform) -> BaseImage:
    """Return an image of a layout as a base."""
    manifest = parse_manifest(store.read_bytes(descriptor))
    config = store.read_bytes(manifest.config)
    return BaseImage(
        name="base",
        reference=None,
        platform=platform,
        digest=descriptor.digest,
        manifest=descriptor,
        config=parse_image_config(config),
        config_bytes=config,
        layers=tuple(manifest.layers),
    )


def knowledge_of(store: LayoutStore, cache: Path, **limits: int) -> Knowledge:
    """Return what looks at bases that lie in a layout, and keeps what it learns in a folder."""
    output = files.ensure_directory(cache)
    return Knowledge(BaseLayers(store, cache, compression=Compression("preserve"), output=output, **limits), cache)


def image_defects(source: Source, descriptor: Descriptor, *, subject: str) -> list[Defect]:
    """Check one image of any source, every byte of it, and return what is wrong with it."""
    inspector = Inspector(source)
    inspector.image(descriptor, subject=subject)
    inspector.check_blobs()
    return inspector.findings


def layout_defects(store: LayoutStore) -> list[Defect]:
    """Check a whole layout and return what is wrong with it."""
    return list(validate_layout(store, store.read_index()).findings)
