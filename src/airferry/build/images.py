"""Turning a base and a build context into an image of the bundle, for one platform.

Buildah runs the Containerfile; the image itself is authored here: the base's layers in the bundle's compression, one
new layer made deterministic, a config and a manifest. Layers of a base are never read back out of Buildah's storage.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airferry.build.bases import BaseImage
from airferry.buildah.engine import Engine, ExportedImage, base_tag
from airferry.bundle.manifest import Addition, PlatformEntry, describe_platform
from airferry.errors import BuildError, IntegrityError
from airferry.events import Emit, Event, Progress
from airferry.host import clock, files
from airferry.host.journal import Journal
from airferry.oci.codecs import inflate
from airferry.oci.copy import read_closure
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, Descriptor, Manifest, canonical_json
from airferry.oci.layers import Compression, LayerResult, compress_layer, layer_kind, recompress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.normalise import RUN_LAYER_LEFTOVERS, normalise_layer
from airferry.oci.platform import Platform, parse_platform
from airferry.oci.ports import BLOCK_BYTES, blocks
from airferry.oci.streams import BlockReader, verifying
from airferry.oci.tar import END_OF_ARCHIVE

ASSEMBLY_VERSION = 1  # part of every image's inputs: raise it when the same inputs give another image
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


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """What an image is built from, apart from its base. `arguments` are the Containerfile's build arguments.

    `name` is the action's name in the journal, `labels` go into the config. `network` says whether RUN instructions
    may use the host's network.
    """

    name: str
    platform: Platform
    containerfile: Path
    context: Path
    arguments: Mapping[str, str]
    labels: Mapping[str, str]
    python: str | None = None
    additions: tuple[Addition, ...] = ()
    network: bool = False


def base_annotations(base: BaseImage) -> dict[str, str]:
    """Return what an image says of its base, by the image-spec's own keys (*annotations.md*)."""
    named = {BASE_NAME: base.reference} if base.reference else {}
    return {**named, BASE_DIGEST: base.digest}


class Assembler:
    """Builds images into one bundle. Safe to use from threads."""

    def __init__(
        self,
        *,
        engine: Engine,
        bundle: LayoutStore,
        cache: LayoutStore,
        journal: Journal,
        compression: Compression,
        scratch: Path,
        emit: Emit,
    ) -> None:
        """Take what all images share: where bases are cached, where the bundle is, how layers are compressed."""
        self._engine = engine
        self._bundle = bundle
        self._cache = cache
        self._journal = journal
        self._compression = compression
        self._scratch = scratch
        self._emit = emit
        self._layer_locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def build(self, recipe: ImageRecipe, base: BaseImage) -> BuiltImage:
        """Run the recipe's Containerfile on the base and put the image into the bundle.

        Raises:
            BuildError: an instruction failed, or what came out is not an image on that base.
            IntegrityError: a base layer is not what the base's manifest or config says.
        """
        epoch_s = clock.source_date_epoch_s()
        self._engine.import_base(self._cache.path, base.manifest.digest, platform=recipe.platform)
        tag = f"localhost/airferry/{recipe.platform.slug}:{recipe.name.replace('/', '-')}"[:200]
        image = self._engine.build(
            containerfile=recipe.containerfile,
            context=recipe.context,
            platform=recipe.platform,
            tag=tag,
            epoch_s=epoch_s,
            build_args={"BASE_IMAGE": base_tag(base.manifest.digest), **recipe.arguments},
            network=recipe.network,
            emit=self._as_part_of(recipe),
        )
        try:
            with files.scratch_directory(self._scratch) as folder:
                exported = self._engine.export(image, base_diff_ids=base.config.rootfs.diff_ids, into=folder / "export")
                return self._assemble(recipe, base, exported, epoch_s=epoch_s)
        finally:
            self._engine.remove_image(tag)

    def _as_part_of(self, recipe: ImageRecipe) -> Emit:
        """Return a sink for events that gives the progress of a build the name of its stage."""

        def emit(event: Event) -> None:
            if isinstance(event, Progress):
                event = replace(event, task=f"{recipe.name} {recipe.platform}")
            self._emit(event)

        return emit

    def _assemble(self, recipe: ImageRecipe, base: BaseImage, exported: ExportedImage, *, epoch_s: int) -> BuiltImage:
        compression = self._compression.matching(layer.media_type for layer in base.layers)
        layers = [
            self._base_layer(descriptor, diff_id)
            for descriptor, diff_id in zip(base.layers, base.config.rootfs.diff_ids, strict=True)
        ]
        for exported_layer in exported.layers:
            with exported_layer.path.open("rb") as stream:
                packed = blocks(verifying(stream, exported_layer.descriptor))
                kind = layer_kind(exported_layer.descriptor.media_type)
                raw = BlockReader(inflate(packed, kind, what=f"the new layer of `{recipe.name}`"))
                with io.BufferedReader(raw, BLOCK_BYTES) as unpacked:
                    normal = normalise_layer(unpacked, epoch_s=epoch_s, drop=RUN_LAYER_LEFTOVERS)
                    result = compress_layer(normal, compression=compression, into=self._bundle)
            if result.unpacked_bytes > len(END_OF_ARCHIVE):
                layers.append(result)
        config = self._bundle.put_bytes(
            _config_bytes(recipe, base, exported, [layer.diff_id for layer in layers], epoch_s=epoch_s), IMAGE_CONFIG
        )
        manifest = Manifest(
            schema_version=2,
            media_type=IMAGE_MANIFEST,
            config=config,
            layers=[layer.descriptor for layer in layers],
            annotations=base_annotations(base),
        )
        descriptor = self._bundle.put_bytes(canonical_json(manifest), IMAGE_MANIFEST)
        entry = describe_platform(
            self._bundle,
            descriptor,
            layers=layers,
            base_layers=len(base.layers),
            base_digest=base.digest,
            python=recipe.python,
            additions=recipe.additions,
        )
        return BuiltImage(recipe.platform, descriptor, entry)

    def _base_layer(self, descriptor: Descriptor, diff_id: str) -> LayerResult:
        """Bring a base's layer into the bundle once, whoever asks first, and note it in the journal."""
        with self._guard:
            lock = self._layer_locks.setdefault(descriptor.digest, threading.Lock())
        action = f"layer {descriptor.digest}"
        inputs = {"diff_id": diff_id, "kind": self._compression.kind, "level": self._compression.level}
        with lock:
            if (known := self._journal.result(action, inputs)) is not None:
                done = Descriptor.model_validate(known["descriptor"])
                if self._bundle.has_blob(done):
                    return LayerResult(done, diff_id, known["unpacked_bytes"], descriptor)
            with self._cache.open_blob(descriptor) as stream:
                made = recompress_layer(
                    stream,
                    descriptor,
                    diff_id=diff_id,
                    compression=self._compression,
                    into=self._bundle,
                    emit=self._emit,
                )
            result = {
                "descriptor": made.descriptor.model_dump(by_alias=True, exclude_none=True),
                "unpacked_bytes": made.unpacked_bytes,
            }
            self._journal.record(action, inputs, result)
            return made


def _config_bytes(
    recipe: ImageRecipe, base: BaseImage, exported: ExportedImage, diff_ids: list[str], *, epoch_s: int
) -> bytes:
    """Return the image's config: what Buildah made of it, on the base's own history, without a trace of the host."""
    built = json.loads(exported.config_bytes)
    original = json.loads(base.config_bytes)
    settings = dict(built.get("config") or {})
    settings["Labels"] = {**(settings.get("Labels") or {}), **recipe.labels}
    user = (original.get("config") or {}).get("User")
    if user:
        settings["User"] = user
    else:
        settings.pop("User", None)
    created = clock.rfc3339(epoch_s)
    history = list(original.get("history") or [])
    known = len(base.config.rootfs.diff_ids)
    if len(diff_ids) < known or diff_ids[:known] != base.config.rootfs.diff_ids:
        raise BuildError(f"`{recipe.name}` for `{recipe.platform}` does not begin with its base's layers")
    entry: dict[str, Any] = {"created": created, "created_by": f"airferry build {recipe.name}", "comment": "airferry"}
    if len(diff_ids) == known:
        entry["empty_layer"] = True
    config = {
        **{key: original[key] for key in ("architecture", "os", "variant", "os.version") if key in original},
        "created": created,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [*history, entry],
    }
    return canonical_json(config)
