"""Direct assembly: an image as its base's blobs plus one layer that is written here. Nothing is unpacked, nothing run.

What can be done this way is what only adds files: pinned wheels, Git checkouts, the launcher's repository. A recipe
lays them out in a tree over the base's merged view; the tree streams into the bundle as one deterministic layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from airferry.bundle.manifest import Addition
from airferry.config.environment import expanded
from airferry.errors import BuildError
from airferry.events import Emit
from airferry.host import clock, files
from airferry.host.parsing import parse_json
from airferry.near.assemble.tree import BaseTree, LayerTree
from airferry.near.assemble.writer import BuiltImage, ImageWriter, image_config
from airferry.near.bases.fetch import BaseImage
from airferry.near.probe.answers import PythonFacts
from airferry.oci.layers import compress_layer
from airferry.oci.platform import Platform

DIRECT_VERSION = 1  # part of every direct image's inputs: raise it when the same inputs give another image

# what Containerfile.execution sets, too
OFFLINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}


class NotKnown(Exception):
    """What a base is like cannot be told without running it; the message says what."""


@dataclass(frozen=True, slots=True)
class Known:
    """Facts about a base that is read, not run: its merged tree, and the interpreter that a recipe asks for."""

    tree: BaseTree
    python: PythonFacts | None = None


@dataclass(frozen=True, slots=True)
class RecipeScratch:
    """What a recipe may use until its layer is written: a scratch folder, and what is to be closed afterwards."""

    folder: Path
    stack: ExitStack


@dataclass(frozen=True, slots=True)
class DirectRecipe:
    """What an image adds to its base, without running anything.

    `python` is the interpreter that `look` has to describe, where `compose` needs one. `obstacle` says why a base
    cannot take it, if so; `compose` lays the additions out. `environment` and `settings` go into the config, over the
    base's own, and the image's `env:` over both; `says` is what the history says of the layer. `adds` tells whether
    there is a layer at all.
    """

    name: str
    platform: Platform
    labels: Mapping[str, str]
    says: str
    adds: bool
    python: str | None = None
    needs_python: bool = False
    additions: tuple[Addition, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    obstacle: Callable[[Known], str | None] = lambda known: None
    compose: Callable[[LayerTree, Known, RecipeScratch], None] = lambda tree, known, room: None


Look = Callable[[BaseImage, Platform, str | None, bool], Known]


class DirectAssembler:
    """Writes images into one bundle. Safe to use from threads."""

    def __init__(self, *, writer: ImageWriter, look: Look, scratch: Path, emit: Emit) -> None:
        """`look` returns the facts about a base: its tree, and an interpreter of it where that is asked for."""
        self._writer = writer
        self._look = look
        self._scratch = scratch
        self._emit = emit

    def obstacle(self, recipe: DirectRecipe, base: BaseImage) -> str | None:
        """Return why the recipe cannot be assembled directly on the base, or None.

        Raises:
            IntegrityError: a base layer is not what the base's manifest or config says.
        """
        if not recipe.adds:
            return None
        try:
            return recipe.obstacle(self._known(recipe, base))
        except NotKnown as reason:
            return str(reason)

    def build(self, recipe: DirectRecipe, base: BaseImage) -> BuiltImage:
        """Assemble the image in the bundle.

        Raises:
            BuildError: the base cannot take what the recipe adds, or that is not what it should be.
            IntegrityError: a base layer is not what the base's manifest or config says.
        """
        epoch_s = clock.source_date_epoch_s()
        known = self._known(recipe, base) if recipe.adds else None
        layers = self._writer.base_layers(base)
        if known is not None:
            with files.scratch_directory(self._scratch) as folder, ExitStack() as stack:
                tree = LayerTree(known.tree, epoch_s=epoch_s)
                recipe.compose(tree, known, RecipeScratch(folder, stack))
                if not tree.is_empty:
                    compression = self._writer.compression_over(base)
                    layers.append(compress_layer(tree.blocks(), compression=compression, into=self._writer.bundle))
        config = image_config(
            base,
            settings=self._settings(recipe, base),
            diff_ids=[layer.diff_id for layer in layers],
            created_by=recipe.says,
            epoch_s=epoch_s,
        )
        return self._writer.write(
            recipe.platform, base, layers, config, python=recipe.python, additions=recipe.additions
        )

    def _known(self, recipe: DirectRecipe, base: BaseImage) -> Known:
        return self._look(base, recipe.platform, recipe.python, recipe.needs_python)

    @staticmethod
    def _settings(recipe: DirectRecipe, base: BaseImage) -> dict[str, Any]:
        settings = dict(parse_json(base.config_bytes).get("config") or {})
        settings["Env"] = merged_environment(settings.get("Env") or [], recipe.environment)
        settings["Env"] = with_env(settings["Env"], recipe.env)
        settings["Labels"] = {**(settings.get("Labels") or {}), **recipe.labels}
        return {**settings, **recipe.settings}


def direct_inputs() -> dict[str, Any]:
    """Return what every direct image depends on, apart from what it is made of."""
    return {"builder": "direct", "version": DIRECT_VERSION, "installer": metadata.version("installer")}


def with_env(base: list[str], env: Mapping[str, str]) -> list[str]:
    """Return the variables of a config with those of an image's `env:`, each `${NAME}` replaced by what is there."""
    known = dict(line.partition("=")[::2] for line in base)
    return merged_environment(base, expanded(env, known)) if env else base


def merged_environment(base: list[str], new: Mapping[str, str]) -> list[str]:
    """Return the variables of a config with new ones: those that were there change in place, others go to the end."""
    rest = dict(new)
    merged = []
    for line in base:
        name = line.partition("=")[0]
        merged.append(f"{name}={rest.pop(name)}" if name in rest else line)
    return [*merged, *(f"{name}={value}" for name, value in rest.items())]


def refuse(title: str, reason: str) -> BuildError:
    """Return the error for an image that must be assembled directly and cannot be."""
    return BuildError(
        f"`{title}` cannot be assembled directly: {reason}",
        hint="set `builder: auto`, which falls back to a container engine if necessary",
    )
