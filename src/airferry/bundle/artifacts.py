"""Artifacts in a layout: manifests with an artifactType and an empty config (image-spec, *manifest.md*, "Guidelines
for Artifact Usage"). Stores and reads them; index.json is written by sealing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from airferry.errors import IntegrityError
from airferry.host.canonical import canonical_json
from airferry.oci.closure import read_closure
from airferry.oci.documents import (
    EMPTY_CONFIG,
    EMPTY_CONFIG_BYTES,
    IMAGE_MANIFEST,
    TITLE,
    Descriptor,
    Manifest,
    descriptor_of,
)
from airferry.oci.entries import as_referrer
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Source, Stored, blocks

COPY_AGAIN = "copy the bundle again from the source, and verify it before you load it"
OWN_ARTIFACTS = "application/vnd.airferry."
MANIFEST_ARTIFACT = "application/vnd.airferry.manifest.v1"
MANIFEST_CONTENT = "application/vnd.airferry.manifest.v1+yaml"
REQUIREMENTS_ARTIFACT = "application/vnd.airferry.requirements.v1"
REQUIREMENTS_CONTENT = "text/x-requirements.txt"
OVERLAYS_ARTIFACT = "application/vnd.airferry.overlays.v1"
OVERLAYS_CONTENT = "application/json"
TOOL_ARTIFACT = "application/vnd.airferry.tool.v1"
TOOL_CONTENT = "application/vnd.airferry.tool.v1.tar"
LOCK_ARTIFACT = "application/vnd.airferry.lock.v1"
LOCK_CONTENT = "application/vnd.airferry.lock.v1+yaml"
REHEARSAL_ARTIFACT = "application/vnd.airferry.rehearsal.v1"
REHEARSAL_CONTENT = "application/vnd.airferry.rehearsal.v1+json"


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of an artifact: its name, its media type, and its bytes or where they are."""

    title: str
    media_type: str
    content: bytes | Path


def put_artifact(
    store: LayoutStore,
    artifact_type: str,
    *,
    contents: Sequence[ArtifactFile],
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Descriptor:
    """Store an artifact and return the descriptor that index.json is to have. Idempotent; files in the given order.

    Raises:
        IntegrityError: a file changed while it was read.
    """
    config = store.put_bytes(EMPTY_CONFIG_BYTES, EMPTY_CONFIG)
    manifest = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        artifact_type=artifact_type,
        config=config,
        layers=[_put_file(store, item) for item in contents],
        subject=None
        if subject is None
        else Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations=dict(annotations) if annotations else None,
    )
    data = canonical_json(manifest)
    titles = {TITLE: contents[0].title} if contents else None
    descriptor = descriptor_of(data, IMAGE_MANIFEST, artifact_type=artifact_type, annotations=titles)
    store.put_bytes(data, IMAGE_MANIFEST)
    return as_referrer(Stored(descriptor, data)) or descriptor


def read_artifact_file(
    source: Source, descriptor: Descriptor, *, media_type: str, limit_bytes: int = 16 * 1024 * 1024
) -> bytes:
    """Return the content of an artifact's only file of a media type, verified.

    Raises:
        IntegrityError: the artifact has no such file, or several, or it is larger than the limit.
    """
    manifest = source.read_manifest(descriptor).manifest
    found = [layer for layer in manifest.layers if layer.media_type == media_type]
    if len(found) != 1:
        raise IntegrityError(
            f"artifact `{descriptor.digest}` has {len(found)} files of type `{media_type}`, expected one",
            hint=COPY_AGAIN,
        )
    if found[0].size > limit_bytes:
        raise IntegrityError(
            f"artifact `{descriptor.digest}` has a file of {found[0].size} bytes, more than the limit of {limit_bytes}",
            hint=COPY_AGAIN,
        )
    with source.open_blob(found[0]) as stream:
        return b"".join(blocks(stream))


def artifact_is_whole(store: LayoutStore, descriptor: Descriptor) -> bool:
    """Tell whether a layout has an artifact's manifest and every blob of it, by name and size."""
    try:
        closure = read_closure(store, descriptor)
    except IntegrityError:
        return False
    return all(store.has_blob(blob) for blob in closure.blobs.values())


def _put_file(store: LayoutStore, item: ArtifactFile) -> Descriptor:
    annotations = {TITLE: item.title}
    if isinstance(item.content, bytes):
        return store.put_bytes(item.content, item.media_type, annotations=annotations)
    with store.new_blob() as writer, item.content.open("rb") as stream:
        for block in blocks(stream):
            writer.write(block)
        digest, size = writer.commit()
    return Descriptor(media_type=item.media_type, digest=digest, size=size, annotations=annotations)
