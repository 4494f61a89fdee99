"""OCI documents: descriptor, manifest, index, image config and the layout's own file (image-spec v1.1).

The models are views: unknown fields are kept, and what is stored or sent on are always the original bytes. Documents
that airferry authors are serialised by `canonical_json`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from airferry.errors import IntegrityError
from airferry.host.parsing import MAX_JSON_VALUES, JsonPairs, Malformed, expect_few_values, parse_json_pairs
from airferry.oci.digest import Digest, digest_of
from airferry.oci.platform import Platform
from airferry.wording import printable

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

# layers that registries need not hold, as others give them out under `urls`: those of Windows, above all
FOREIGN_LAYERS = {
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.foreign.diff.tar": LAYER_TAR,
    "application/vnd.oci.image.layer.nondistributable.v1.tar": LAYER_TAR,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": LAYER_GZIP,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": LAYER_ZSTD,
}

INDEX_TYPES = (IMAGE_INDEX, DOCKER_MANIFEST_LIST)
MANIFEST_TYPES = (IMAGE_MANIFEST, DOCKER_MANIFEST)
CONFIG_TYPES = (IMAGE_CONFIG, DOCKER_CONFIG)

REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
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
# how many indexes may lie in each other below the first one
MAX_NESTED = 4


# RFC 6838 has fewer characters and parameters none; what matters is that a type is one header of HTTP, and shows
MediaType = Annotated[str, Field(pattern=r"^[ -~]{0,255}$")]

# Go's tools write a list without entries as `null`, and take it for one
NullForNone = BeforeValidator(lambda value: [] if value is None else value)
D = TypeVar("D", bound="OciDocument")


class UnreadableDocument(IntegrityError):
    """Bytes that have the right digest, and are still not a document of the kind that they are said to be."""


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

    media_type: MediaType
    digest: Digest
    size: int = Field(ge=0, lt=MAX_SIZE)
    annotations: dict[str, str] | None = None
    artifact_type: MediaType | None = None
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
    media_type: MediaType | None = None
    artifact_type: MediaType | None = None
    config: Descriptor
    layers: Annotated[list[Descriptor], NullForNone] = Field(max_length=MAX_LAYERS)
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(OciDocument):
    """An image index (image-spec, *image-index.md*)."""

    schema_version: int
    media_type: MediaType | None = None
    artifact_type: MediaType | None = None
    manifests: list[Descriptor] = Field(max_length=MAX_INDEX_ENTRIES)
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class RootFilesystem(OciDocument):
    """The digests of an image's uncompressed layers, bottom first."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, alias_generator=None)
    type: str
    diff_ids: Annotated[list[Digest], NullForNone] = Field(max_length=MAX_LAYERS)


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
        expect_few_values(data, MAX_JSON_VALUES)
        return model.model_validate_json(data)
    except Malformed as error:
        raise UnreadableDocument(f"{what} is not valid: it has {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise UnreadableDocument(f"{what} is not valid: {place}: {first['msg']}") from error


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


def foreign_hint(descriptor: Descriptor) -> str:
    """Return what to do about a foreign layer that is not to be had where its image is."""
    urls = (descriptor.model_extra or {}).get("urls")
    place = f", and {printable(str(urls[0]), most=200)} may have it" if isinstance(urls, list) and urls else ""
    return (
        f"`{descriptor.digest}` is a foreign layer, which registries need not hold{place}; airferry fetches no such "
        "addresses: push the image once more with `--allow-nondistributable-artifacts` of docker or crane"
    )


# --- one JSON, one meaning -------------------------------------------------------------------------------------------

MAX_SHOWN_AMBIGUITIES = 5
_PLATFORM = dict.fromkeys(("architecture", "os", "os.version", "os.features", "variant", "features"))
_DESCRIPTOR = {
    **dict.fromkeys(("mediaType", "digest", "size", "urls", "annotations", "data", "artifactType")),
    "platform": _PLATFORM,
}
_COMMON = {
    **dict.fromkeys(("schemaVersion", "mediaType", "artifactType", "annotations")),
    "subject": _DESCRIPTOR,
}
_MANIFEST = {**_COMMON, "config": _DESCRIPTOR, "layers": _DESCRIPTOR}
_INDEX = {**_COMMON, "manifests": _DESCRIPTOR}
_SETTINGS = {
    **dict.fromkeys(("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels")),
    **dict.fromkeys(("StopSignal", "ArgsEscaped", "Memory", "MemorySwap", "CpuShares", "OnBuild", "Shell")),
    "Healthcheck": dict.fromkeys(("Test", "Interval", "Timeout", "StartPeriod", "StartInterval", "Retries")),
}
_CONFIG = {
    **dict.fromkeys(("created", "author", "architecture", "os", "os.version", "os.features", "variant")),
    "config": _SETTINGS,
    "rootfs": dict.fromkeys(("type", "diff_ids")),
    "history": dict.fromkeys(("created", "author", "created_by", "comment", "empty_layer")),
}
# what would make a document one of another kind as well (CVE-2021-41190), `fsLayers` being Docker's schema 1
_NOT_IN_A_MANIFEST = ("manifests", "fsLayers")
_NOT_IN_AN_INDEX = ("config", "layers", "fsLayers")

_Shape = dict[str, Any]


def ambiguities(data: bytes, media_type: str) -> tuple[str, ...]:
    """Return why programs may read a manifest, index or image config differently; a few reasons at most, or none.

    Go, in which runtimes and registries are written, takes `Layers` for `layers` and the last of two equal keys; others
    take the exact key, or the first. Checked are the fields that image-spec names (and Docker's), keys that are there
    twice, at any depth, and whether the document is also of another kind or states another media type than
    `media_type`. Labels, annotations and unknown fields may differ by case. `media_type` decides what the document is;
    of one that is none of the three, nothing is known.
    """
    shape: _Shape
    others: tuple[str, ...] = ()
    if media_type in INDEX_TYPES:
        shape, others = _INDEX, _NOT_IN_AN_INDEX
    elif media_type in MANIFEST_TYPES:
        shape, others = _MANIFEST, _NOT_IN_A_MANIFEST
    elif media_type in CONFIG_TYPES:
        shape = _CONFIG
    else:
        return ()
    try:
        document = parse_json_pairs(data)
    except Malformed as error:
        return (f"is refused: {error}",)
    found = list(islice(_ambiguous(document, shape), MAX_SHOWN_AMBIGUITIES))
    if isinstance(document, JsonPairs) and media_type not in CONFIG_TYPES:
        found += _another_kind(document, others, media_type)
    return tuple(dict.fromkeys(found))[:MAX_SHOWN_AMBIGUITIES]


def expect_one_meaning(data: bytes, media_type: str, *, what: str, hint: str | None = None) -> None:
    """Refuse a document that programs may read differently, see `ambiguities`.

    Raises:
        IntegrityError: it is one; the message begins with `what`.
    """
    if found := ambiguities(data, media_type):
        raise IntegrityError(f"{what} {found[0]}", hint=hint)


def _ambiguous(document: Any, shape: _Shape) -> Iterator[str]:
    """Yield what is ambiguous in a document whose fields have the names of `shape`, and those below them."""
    # a stack of its own: foreign JSON may nest as deeply as Python's stack goes
    waiting: list[tuple[Any, _Shape | None, str]] = [(document, shape, "")]
    while waiting:
        value, names, place = waiting.pop()
        if isinstance(value, JsonPairs):
            folded = {name.casefold(): name for name in names or ()}
            seen: set[str] = set()
            for key, inner in value:
                named = folded.get(key.casefold())
                if key in seen:
                    yield f"has the key `{place}{key}` twice"
                elif named not in (None, key):
                    yield f"has the key `{place}{key}`, which some programs read as `{named}`"
                seen.add(key)
                if isinstance(inner, list):
                    below = (names or {}).get(key)
                    waiting.append((inner, below, f"{place}{key}." if below else place))
            if names is _DESCRIPTOR:
                yield from _wrong_data(dict(value), place)
        elif isinstance(value, list):
            waiting += [(inner, names, place) for inner in value if isinstance(inner, list)]


def _wrong_data(descriptor: dict[str, Any], place: str) -> Iterator[str]:
    """Yield whether a descriptor brings content (`data`) that is not the one that its digest names."""
    if (text := descriptor.get("data")) is None:
        return
    try:
        data = base64.b64decode(str(text).encode(), validate=True)
    except (binascii.Error, ValueError):
        data = None
    if data is None or (digest_of(data), len(data)) != (descriptor.get("digest"), descriptor.get("size")):
        yield f"has `{place}data` that is not the content of its digest"


def _another_kind(document: JsonPairs, others: tuple[str, ...], media_type: str) -> Iterator[str]:
    folded = {name.casefold(): name for name in others}
    kind = "an index" if media_type in INDEX_TYPES else "a manifest"
    for key, value in document:
        if key.casefold() in folded:
            yield f"is {kind} that has `{key}` as well"
        if key == "mediaType" and value not in (media_type, None, ""):
            yield f"says that its media type is `{str(value)[:100]}`, while it is referred to as `{media_type}`"
