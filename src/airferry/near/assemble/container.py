"""Turning a base and a build context into an image of the bundle, for one platform.

Buildah runs the Containerfile; the image itself is authored here: the base's layers in the bundle's compression, one
new layer made deterministic, a config and a manifest. Layers of a base are never read back out of Buildah's storage.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airferry.bundle.manifest import Addition
from airferry.engine.driver import ContainerBuild, Engine, ExportedImage, base_tag
from airferry.engine.transient import BUILT
from airferry.events import Emit, Event, Progress
from airferry.host import clock, files
from airferry.host.parsing import parse_json
from airferry.near.assemble.direct import with_env
from airferry.near.assemble.writer import BuiltImage, ImageWriter, image_config
from airferry.near.bases.fetch import BaseImage
from airferry.oci.codecs import inflate
from airferry.oci.layers import compress_layer, layer_kind
from airferry.oci.layout import LayoutStore
from airferry.oci.normalise import RUN_LAYER_LEFTOVERS, normalise_layer
from airferry.oci.platform import Platform
from airferry.oci.ports import BLOCK_BYTES, blocks
from airferry.oci.streams import BlockReader, verifying
from airferry.oci.tar import END_OF_ARCHIVE

ASSEMBLY_VERSION = 1  # part of every image's inputs: raise it when the same inputs give another image


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """What an image is built from, apart from its base. `arguments` are the Containerfile's build arguments.

    `name` is the action's name in the journal, `labels` go into the config. `network` says whether RUN instructions
    may use the host's network. `env` goes into the config, over what the Containerfile sets.
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
    env: Mapping[str, str] = field(default_factory=dict)


class Assembler:
    """Builds images into one bundle. Safe to use from threads."""

    def __init__(self, *, engine: Engine, writer: ImageWriter, cache: LayoutStore, scratch: Path, emit: Emit) -> None:
        """Take what all images share: the engine, where bases are cached, and what writes into the bundle."""
        self._engine = engine
        self._writer = writer
        self._cache = cache
        self._scratch = scratch
        self._emit = emit

    def build(self, recipe: ImageRecipe, base: BaseImage) -> BuiltImage:
        """Run the recipe's Containerfile on the base and put the image into the bundle.

        Raises:
            BuildError: an instruction failed, or what came out is not an image on that base.
            IntegrityError: a base layer is not what the base's manifest or config says.
        """
        epoch_s = clock.source_date_epoch_s()
        self._engine.import_base(self._cache.path, base.manifest.digest, platform=recipe.platform)
        with files.scratch_directory(self._scratch) as folder:
            with self._engine.transient.kept():
                image = self._engine.build(
                    ContainerBuild(
                        recipe.containerfile,
                        recipe.context,
                        arguments={"BASE_IMAGE": base_tag(base.manifest.digest), **recipe.arguments},
                        network=recipe.network,
                    ),
                    platform=recipe.platform,
                    tag=local_tag(recipe, self._writer.bundle.path),
                    epoch_s=epoch_s,
                    emit=self._as_part_of(recipe),
                )
                exported = self._engine.export(image, base_diff_ids=base.config.rootfs.diff_ids, into=folder / "export")
            return self._assemble(recipe, base, exported, epoch_s=epoch_s)

    def _as_part_of(self, recipe: ImageRecipe) -> Emit:
        """Return a sink for events that gives the progress of a build the name of its stage."""

        def emit(event: Event) -> None:
            if isinstance(event, Progress):
                event = replace(event, task=f"{recipe.name} {recipe.platform}")
            self._emit(event)

        return emit

    def _assemble(self, recipe: ImageRecipe, base: BaseImage, exported: ExportedImage, *, epoch_s: int) -> BuiltImage:
        compression = self._writer.compression_over(base)
        layers = self._writer.base_layers(base)
        for exported_layer in exported.layers:
            with exported_layer.path.open("rb") as stream:
                packed = blocks(verifying(stream, exported_layer.descriptor))
                kind = layer_kind(exported_layer.descriptor.media_type)
                raw = BlockReader(inflate(packed, kind, what=f"the new layer of `{recipe.name}`"))
                with io.BufferedReader(raw, BLOCK_BYTES) as unpacked:
                    normal = normalise_layer(unpacked, epoch_s=epoch_s, drop=RUN_LAYER_LEFTOVERS)
                    result = compress_layer(normal, compression=compression, into=self._writer.bundle)
            if result.unpacked_bytes > len(END_OF_ARCHIVE):
                layers.append(result)
        config = image_config(
            base,
            settings=_settings(recipe, base, exported),
            diff_ids=[layer.diff_id for layer in layers],
            created_by=f"airferry build {recipe.name}",
            epoch_s=epoch_s,
        )
        return self._writer.write(
            recipe.platform, base, layers, config, python=recipe.python, additions=recipe.additions
        )


def _settings(recipe: ImageRecipe, base: BaseImage, exported: ExportedImage) -> dict[str, Any]:
    """Return the config's settings: what the engine made of them, with our labels, for the base's own user."""
    settings = dict(parse_json(exported.config_bytes).get("config") or {})
    if recipe.env:
        settings["Env"] = with_env(settings.get("Env") or [], recipe.env)
    settings["Labels"] = {**(settings.get("Labels") or {}), **recipe.labels}
    user = (parse_json(base.config_bytes).get("config") or {}).get("User")
    if user:
        settings["User"] = user
    else:
        settings.pop("User", None)
    return settings


def local_tag(recipe: ImageRecipe, bundle: Path) -> str:
    """Return a name in the engine's storage that no other image has, of this plan or of another user of the storage.

    It is the same for each run of a plan, so that the next one overwrites what a killed one left. A tag has 128
    characters at most.
    """
    mark = hashlib.sha256(f"{recipe.name}\0{files.resolved(bundle)}".encode("utf-8", "surrogateescape")).hexdigest()[
        :12
    ]
    return f"localhost/{BUILT}/{recipe.platform.slug}:{recipe.name.replace('/', '-')[:100]}-{mark}"
