"""OCI documents: descriptor, manifest, index, image config and the layout's own file (image-spec v1.1).

The models are views: unknown fields are kept, and what is stored or sent on are always the original bytes. Documents
that airferry authors are serialised by `canonical_json`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from airferry.errors import IntegrityError
from airferry.oci.digest import Digest, digest_of
from airferry.oci.platform import Platform

IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
EMPTY_CONFIG_BYTES = b"{}"

DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_TAR = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES = (IMAGE_INDEX, DOCKER_MANIFEST_LIST)
MANIFEST_TYPES = (IMAGE_MANIFEST, DOCKER_MANIFEST)

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
CONTAINERD_SUBJECT = "io.containerd.manifest.subject"

# of int64, which the specification has for sizes; larger ones would be no float either
MAX_SIZE = 1 << 63
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
# what engines set where a config has no PATH
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_IMAGE_CONFIG_BYTES = 16 * 1024 * 1024
MAX_LAYERS = 1000
MAX_INDEX_ENTRIES = 20_000


D = TypeVar("D", bound="OciDocument")


class OciDocument(BaseModel):
    """A frozen view of a document that others may have written: unknown fields are tolerated and kept."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)


class PlatformDocument(OciDocument):
    """The platform of a descriptor: image-spec, *image-index.md*."""

    architecture: str
    os: str
    variant: str | None = None


class Descriptor(OciDocument):
    """What names a blob: media type, digest, size in bytes (image-spec, *descriptor.md*)."""

    media_type: str
    digest: Digest
    size: int = Field(ge=0, lt=MAX_SIZE)
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    platform: PlatformDocument | None = None

    def platform_value(self) -> Platform | None:
        """Return the platform that the descriptor states, if any."""
        if self.platform is None:
            return None
        return Platform(self.platform.os, self.platform.architecture, self.platform.variant or "")

    @property
    def is_runnable(self) -> bool:
        """Whether an entry of an index is an image, and not an attestation about one (BuildKit's mark)."""
        return self.platform is None or self.platform.os != "unknown"

    def annotated(self, **changes: Any) -> Descriptor:
        """Return a copy with other fields, for example `annotations=…`."""
        return self.model_copy(update=changes)


class Manifest(OciDocument):
    """An image manifest or an artifact (image-spec, *manifest.md*)."""

    schema_version: int
    media_type: str | None = None
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor] = Field(max_length=MAX_LAYERS)
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(OciDocument):
    """An image index (image-spec, *image-index.md*)."""

    schema_version: int
    media_type: str | None = None
    artifact_type: str | None = None
    manifests: list[Descriptor] = Field(max_length=MAX_INDEX_ENTRIES)
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class RootFilesystem(OciDocument):
    """The digests of an image's uncompressed layers, bottom first."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, alias_generator=None)
    type: str
    diff_ids: list[Digest] = Field(max_length=MAX_LAYERS)


class ImageConfig(OciDocument):
    """An image config (image-spec, *config.md*)."""

    architecture: str
    os: str
    variant: str | None = None
    rootfs: RootFilesystem
    config: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None

    def platform_value(self) -> Platform:
        """Return the platform that the config states."""
        return Platform(self.os, self.architecture, self.variant or "")


def descriptor_of(data: bytes, media_type: str, **fields: Any) -> Descriptor:
    """Return the descriptor of a document's bytes."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data), **fields)


def _parse(model: type[D], data: bytes, what: str) -> D:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise IntegrityError(f"{what} is not valid: {place}: {first['msg']}") from error


def parse_manifest(data: bytes, *, what: str = "the manifest") -> Manifest:
    """Return the view of a manifest's bytes.

    Raises:
        IntegrityError: they are no manifest.
    """
    return _parse(Manifest, data, what)


def parse_index(data: bytes, *, what: str = "the index") -> Index:
    """Return the view of an index's bytes.

    Raises:
        IntegrityError: they are no index.
    """
    return _parse(Index, data, what)


def parse_image_config(data: bytes, *, what: str = "the image config") -> ImageConfig:
    """Return the view of an image config's bytes.

    Raises:
        IntegrityError: they are no image config.
    """
    return _parse(ImageConfig, data, what)
