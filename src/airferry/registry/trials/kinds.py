"""Which kinds of manifests a registry takes: media types of images and lists, compressions of layers, artifact types.

Sends one small manifest of each kind, as allow-lists of registries go by the types of manifest, config and layers.
"""

from __future__ import annotations

import gzip
import io
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

import zstandard

from airferry.errors import RegistryError
from airferry.host.canonical import canonical_json
from airferry.oci.digest import digest_of
from airferry.oci.documents import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    EMPTY_CONFIG,
    EMPTY_CONFIG_BYTES,
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_GZIP,
    LAYER_ZSTD,
    Descriptor,
    Index,
    Manifest,
    PlatformDocument,
    descriptor_of,
)
from airferry.oci.ports import Stored
from airferry.oci.tar import END_OF_ARCHIVE, TarEntry, entry_blocks
from airferry.registry.auth import repository_scope
from airferry.registry.connections import Request
from airferry.registry.sink import REFUSALS, RegistrySink
from airferry.registry.trials.leavings import Leavings

# airferry's alone, so it tells what becomes of types that a registry cannot know
PROBE_ARTIFACT = "application/vnd.airferry.probe.v1"
_PROBE_CONTENT = "text/plain"
# a type that makes a registry fail would otherwise take minutes of retries
TRIAL_ATTEMPTS = 2
_PLATFORM = PlatformDocument(os="linux", architecture="amd64")


@dataclass(frozen=True, slots=True)
class ArtifactKind:
    """A type of artifacts, with the media types of their content and config."""

    artifact_type: str
    content: str
    config: str = EMPTY_CONFIG


@dataclass(slots=True)
class TakenKinds:
    """By type, whether the registry takes it, None where it gave no answer; and the manifests that it took."""

    media_types: dict[str, bool | None] = field(default_factory=dict)
    artifact_types: dict[str, bool | None] = field(default_factory=dict)
    manifests: list[Stored] = field(default_factory=list)


def try_kinds(sink: RegistrySink, artifacts: Iterable[ArtifactKind], left: Leavings) -> TakenKinds:
    """Return which kinds of images, lists and artifacts a repository takes; of artifacts, also an unknown one.

    What is stored is noted in `left`, for the caller to remove.

    Raises:
        RegistryError: the registry does not answer, or takes no blobs.
    """
    trial = _Kinds(sink, left)
    trial.images()
    for kind in (ArtifactKind(PROBE_ARTIFACT, _PROBE_CONTENT), *artifacts):
        trial.artifact(kind)
    return trial.found


class _Kinds:
    """Puts one manifest after the other, and notes what is answered."""

    def __init__(self, sink: RegistrySink, left: Leavings) -> None:
        self._sink = sink
        self._left = left
        self.found = TakenKinds()
        tar = _small_tar()
        self._gzip = self._put(gzip.compress(tar, mtime=0), LAYER_GZIP)
        self._zstd = self._put(zstandard.ZstdCompressor().compress(tar), LAYER_ZSTD)
        config = {
            "architecture": _PLATFORM.architecture,
            "os": _PLATFORM.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]},
        }
        self._config = self._put(canonical_json(config), IMAGE_CONFIG)
        self._text = self._put(secrets.token_hex(16).encode(), _PROBE_CONTENT)
        # every registry may hold it already, and others there may need it: it is never removed
        self._empty = descriptor_of(EMPTY_CONFIG_BYTES, EMPTY_CONFIG)
        if not sink.has_blob(self._empty):
            sink.put_blob(self._empty, io.BytesIO(EMPTY_CONFIG_BYTES))

    def images(self) -> None:
        """Try images with each compression, and lists of them, of OCI and of Docker."""
        types = self.found.media_types
        with_gzip = self._image(IMAGE_MANIFEST, self._config, self._gzip)
        with_zstd = self._image(IMAGE_MANIFEST, self._config, self._zstd)
        takes_gzip, takes_zstd = self._takes(with_gzip), self._takes(with_zstd)
        any_image = takes_gzip or takes_zstd
        # both refused: whether for their manifest or their layers cannot be told, and needs not
        types[IMAGE_MANIFEST] = any_image if any_image is not None else takes_gzip
        types[LAYER_GZIP], types[LAYER_ZSTD] = takes_gzip, takes_zstd
        listed = with_gzip if takes_gzip else with_zstd
        types[IMAGE_INDEX] = self._takes(_list_of(listed.descriptor, IMAGE_INDEX)) if any_image else None
        docker = self._image(
            DOCKER_MANIFEST,
            self._config.annotated(media_type=DOCKER_CONFIG),
            self._gzip.annotated(media_type=DOCKER_LAYER_GZIP),
        )
        types[DOCKER_MANIFEST] = self._takes(docker)
        # lists of Docker are also made of OCI images; what of them is taken apart from that is of no use
        listed = docker if types[DOCKER_MANIFEST] else listed
        types[DOCKER_MANIFEST_LIST] = self._takes(_list_of(listed.descriptor, DOCKER_MANIFEST_LIST))

    def artifact(self, kind: ArtifactKind) -> None:
        """Try an artifact of a kind."""
        manifest = Manifest(
            schema_version=2,
            media_type=IMAGE_MANIFEST,
            artifact_type=kind.artifact_type,
            config=self._empty.annotated(media_type=kind.config),
            layers=[self._text.annotated(media_type=kind.content)],
        )
        taken = self._takes(_stored(manifest, IMAGE_MANIFEST))
        self.found.artifact_types[kind.artifact_type] = taken
        if kind.config == EMPTY_CONFIG and (taken or self.found.media_types.get(EMPTY_CONFIG) is None):
            self.found.media_types[EMPTY_CONFIG] = taken

    def _image(self, media_type: str, config: Descriptor, layer: Descriptor) -> Stored:
        return _stored(Manifest(schema_version=2, media_type=media_type, config=config, layers=[layer]), media_type)

    def _takes(self, stored: Stored) -> bool | None:
        descriptor = stored.descriptor
        request = Request(
            "PUT",
            f"{self._sink.repository}/manifests/{descriptor.digest}",
            what=f"store a `{descriptor.media_type}` in `{self._sink}`",
            scopes=(repository_scope(self._sink.repository, "pull", "push"),),
            headers={"Content-Type": descriptor.media_type},
            body=stored.data,
            attempts=TRIAL_ATTEMPTS,
        )
        # also without an answer, as it may have been stored
        self._left.manifests.append(descriptor.digest)
        try:
            status = self._sink.client.request(request, expected=None).status_code
        except RegistryError as error:
            if error.status is None:
                raise
            return None
        if status < 300:
            self.found.manifests.append(stored)
            return True
        self._left.manifests.remove(descriptor.digest)
        return False if status in REFUSALS else None

    def _put(self, data: bytes, media_type: str) -> Descriptor:
        descriptor = descriptor_of(data, media_type)
        self._left.blobs.append((self._sink.repository, descriptor.digest))
        self._sink.put_blob(descriptor, io.BytesIO(data))
        return descriptor


def _stored(document: Manifest | Index, media_type: str) -> Stored:
    data = canonical_json(document)
    return Stored(descriptor_of(data, media_type), data)


def _list_of(image: Descriptor, media_type: str) -> Stored:
    child = image.annotated(platform=_PLATFORM)
    return _stored(Index(schema_version=2, media_type=media_type, manifests=[child]), media_type)


def _small_tar() -> bytes:
    """Return a layer with one small file that no registry has seen before."""
    content = secrets.token_hex(16).encode()
    entry = TarEntry("airferry-probe", size=len(content))
    return b"".join(entry_blocks(entry, [content])) + END_OF_ARCHIVE
