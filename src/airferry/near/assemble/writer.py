"""Images of a bundle: a base's layers, layers of ours on top, a config, a manifest.

Every image build, with an engine or without, ends here. This module runs nothing and makes no layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airferry.bundle.manifest import Addition, PlatformEntry, describe_platform
from airferry.errors import BuildError, IntegrityError
from airferry.host import clock
from airferry.host.canonical import canonical_json
from airferry.host.journal import Journal
from airferry.host.parsing import parse_json
from airferry.host.records import as_noted
from airferry.host.threads import parallel_map
from airferry.near.bases.fetch import BaseImage
from airferry.near.bases.layers import BaseLayers, noted_layer
from airferry.oci.closure import read_closure
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, Descriptor, Manifest
from airferry.oci.layers import Compression, LayerResult
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform, parse_platform

BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image of the bundle for one platform: its manifest, and what the bundle's manifest says of it."""

    platform: Platform
    manifest: Descriptor
    entry: PlatformEntry

    def to_json(self) -> dict[str, Any]:
        """Return the image as plain data, for the journal."""
        return {
            "platform": str(self.platform),
            "manifest": self.manifest.model_dump(by_alias=True, exclude_none=True),
            "entry": self.entry.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuiltImage:
        """Return the image that `to_json` described."""
        return cls(
            parse_platform(data["platform"]),
            Descriptor.model_validate(data["manifest"]),
            PlatformEntry.model_validate(data["entry"]),
        )

    def is_whole(self, store: LayoutStore) -> bool:
        """Tell whether a store holds the manifest and all that it names, by name and size."""
        try:
            closure = read_closure(store, self.manifest)
        except IntegrityError:
            return False
        return all(store.has_blob(blob) for blob in closure.blobs.values())


def base_annotations(base: BaseImage) -> dict[str, str]:
    """Return what an image says of its base, by the image-spec's own keys (*annotations.md*)."""
    named = {BASE_NAME: base.reference} if base.reference else {}
    return {**named, BASE_DIGEST: base.digest}


class ImageWriter:
    """Writes images into one bundle. Safe to use from threads."""

    def __init__(self, bundle: LayoutStore, layers: BaseLayers, journal: Journal) -> None:
        """Take the bundle, what carries the layers of bases into it, and the journal of the output folder."""
        self.bundle = bundle
        self._layers = layers
        self._journal = journal

    def compression_over(self, base: BaseImage) -> Compression:
        """Return what new layers on a base get, so that all layers of an image have one compression.

        Raises:
            IntegrityError: `preserve` was asked for and the base's layers have several.
        """
        return self._layers.compression.matching(layer.media_type for layer in base.layers)

    def base_layers(self, base: BaseImage) -> list[LayerResult]:
        """Bring a base's layers into the bundle, each once, on the first request, and note them in the journal.

        Raises:
            IntegrityError: a layer is not what the base's manifest or config says.
        """
        layers = zip(base.layers, base.config.rootfs.diff_ids, strict=True)
        return parallel_map(lambda layer: self._base_layer(*layer), layers, jobs=self._layers.at_once)

    def write(
        self,
        platform: Platform,
        base: BaseImage,
        layers: Sequence[LayerResult],
        config: bytes,
        *,
        python: str | None,
        additions: Sequence[Addition],
    ) -> BuiltImage:
        """Write config and manifest over layers that the bundle has, the base's first, and describe the image."""
        manifest = Manifest(
            schema_version=2,
            media_type=IMAGE_MANIFEST,
            config=self.bundle.put_bytes(config, IMAGE_CONFIG),
            layers=[layer.descriptor for layer in layers],
            annotations=base_annotations(base),
        )
        descriptor = self.bundle.put_bytes(canonical_json(manifest), IMAGE_MANIFEST)
        entry = describe_platform(
            self.bundle,
            descriptor,
            layers=layers,
            base_layers=len(base.layers),
            base_digest=base.digest,
            python=python,
            additions=additions,
        )
        return BuiltImage(platform, descriptor, entry)

    def _base_layer(self, descriptor: Descriptor, diff_id: str) -> LayerResult:
        action = f"layer {descriptor.digest}"
        inputs = {"diff_id": diff_id, **self._layers.compression.to_key()}
        known = as_noted(self._journal.result(action, inputs), noted_layer)
        if known is not None and self.bundle.has_blob(known[0]):
            return LayerResult(known[0], diff_id, known[1], descriptor)
        made = self._layers.carry(descriptor, diff_id, into=self.bundle)
        result = {
            "descriptor": made.descriptor.model_dump(by_alias=True, exclude_none=True),
            "unpacked_bytes": made.unpacked_bytes,
        }
        self._journal.record(action, inputs, result)
        return made


def image_config(
    base: BaseImage, *, settings: Mapping[str, Any], diff_ids: list[str], created_by: str, epoch_s: int
) -> bytes:
    """Return the config of an image on a base: the base's platform, layers and history, and one more entry.

    Raises:
        BuildError: the layers do not begin with the base's.
    """
    original = parse_json(base.config_bytes)
    known = len(base.config.rootfs.diff_ids)
    if diff_ids[:known] != base.config.rootfs.diff_ids:
        raise BuildError(
            f"an image for `{base.platform}` does not begin with the layers of its base `{base.name}`",
            hint="remove the output folder's `airgap-build-state.yaml` and run the build again",
        )
    created = clock.rfc3339(epoch_s)
    entry: dict[str, Any] = {"created": created, "created_by": created_by, "comment": "airferry"}
    if len(diff_ids) == known:
        entry["empty_layer"] = True
    return canonical_json(
        {
            **{key: original[key] for key in ("architecture", "os", "variant", "os.version") if key in original},
            "created": created,
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [*(original.get("history") or []), entry],
        }
    )
