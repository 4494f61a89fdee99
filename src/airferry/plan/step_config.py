"""A step's config as it will count: with what it inherits through `defaults:`, and without resolving anything.

Finds the Git overlays in its values (never in comments) and its mounts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from airferry.config.document import KeyPath, YamlDocument, read_yaml
from airferry.config.fields import parse_overlay
from airferry.errors import ConfigurationError
from airferry.host import files
from airferry.plan.catalogue import real_path
from airferry.plan.interpolations import InterpolationBudget, TooMuchExpandedError, metered
from airferry.plan.models import ConfigText, Overlay
from airferry.wording import near_names

MISSING = "???"
MAX_CHAIN = 200
# of a config with all that it inherits; OmegaConf takes a tenth of a millisecond for each. Nemotron's largest has 554
MAX_STEP_VALUES = 5_000
IMAGE_KEY: KeyPath = ("run", "env", "container_image")
CLASH_HINT = "give them different targets, or remove one"
_PLAIN = re.compile(r"[^$]*(\$\{[^{}$]*\}[^$]*)+")
_MARK = re.compile(r"\$\{\s*auto_mount\s*:")
_WHOLE = re.compile(r"\$\{\s*auto_mount\s*:([^{}]*)\}")


@dataclass(frozen=True)
class StepConfig:
    """The mounts of a config (`run.env.mounts`, as written), its overlays, in the order found, and its image."""

    mounts: tuple[Any, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    container_image: ConfigText | None = None


@dataclass(frozen=True)
class ConfigBase:
    """A file that a config inherits from: the key that says so, the path as written, and where that leads."""

    key: KeyPath
    written: str
    path: Path


class StepConfigReader:
    """Reads configs, each file once."""

    def __init__(self) -> None:
        self._documents: dict[Path, YamlDocument] = {}

    def read(self, path: Path) -> StepConfig:
        """Read a config and what it inherits.

        Raises:
            ConfigurationError: a file is missing, no YAML or inherits itself; an overlay lacks its ref or target; two
                overlays want one target.
        """
        chain = self.documents(path)
        value = chain[-1].value
        if len(chain) > 1 and (keys := {key for document in chain for key in _telling_keys(document.value)}):
            value = _merge(chain, keys)
        overlays = merge_overlays((), _overlays(value, chain))
        run = value.get("run") if isinstance(value, dict) else None
        environment = run.get("env") if isinstance(run, dict) else None
        mounts = environment.get("mounts") if isinstance(environment, dict) else None
        if clash := find_clash(overlays):
            raise ConfigurationError(
                f"{_place(clash[1], chain)}: two overlays use the target `{clash[1].target}`: `{clash[0].key}` and "
                f"`{clash[1].key}`",
                hint=CLASH_HINT,
            )
        return StepConfig(tuple(mounts) if isinstance(mounts, list) else (), overlays, _container_image(chain))

    def documents(self, path: Path) -> list[YamlDocument]:
        """Return the documents that a config consists of, the weakest first.

        Raises:
            ConfigurationError: a file is missing, no YAML or inherits itself.
        """
        chain = self._chain(real_path(path), (), [0])
        if sum(len(document.lines) for document in chain) > MAX_STEP_VALUES:
            raise chain[-1].error(
                (),
                f"the config has more than {MAX_STEP_VALUES} keys and values, with what it inherits, the limit",
                hint="keep data in separate files, and refer to them by path",
            )
        budget = InterpolationBudget()
        for document in chain:
            for key, text in strings(document.value):
                try:
                    budget.spend(text, key)
                except TooMuchExpandedError as error:
                    raise document.error(error.key, str(error), hint="write out what it refers to") from error
        return chain

    def bases(self, path: Path) -> list[ConfigBase]:
        """Return what a config inherits from directly, in its order.

        A path in `defaults:` starts at the folder of the file that it stands in; without an ending it gets `.yaml`.

        Raises:
            ConfigurationError: a file is missing.
        """
        document = self._document(path)
        found = []
        for key, name in _entries(document.value):
            base = path.parent / (name if Path(name).suffix else f"{name}.yaml")
            if not files.is_file(base):
                near = near_names(base.name, _neighbours(base))
                raise document.error(
                    key,
                    f"the config inherits from `{name}`, and `{base}` is missing",
                    hint="paths in `defaults:` are relative to the file that contains them"
                    + (f"; did you mean `{Path(name).parent / near[0]}`?" if near else "; correct it"),
                )
            found.append(ConfigBase(key, name, real_path(base)))
        return found

    def _chain(self, path: Path, above: tuple[Path, ...], count: list[int]) -> list[YamlDocument]:
        """Return the documents that a config consists of, the weakest first."""
        real = files.resolved(path)
        if real in above:
            raise self._document(path).error(
                ("defaults",),
                "circular inheritance between configs: " + " → ".join(f"`{item}`" for item in (*above, real)),
                hint="remove one of the `defaults:`",
            )
        count[0] += 1
        if count[0] > MAX_CHAIN:
            raise self._document(path).error(
                (),
                f"this config inherits from more than {MAX_CHAIN} files",
                hint="inherit from fewer files: `defaults:` may lead in a circle",
            )
        chain: list[YamlDocument] = []
        for base in self.bases(path):
            chain += self._chain(base.path, (*above, real), count)
        return [*chain, self._document(path)]

    def _document(self, path: Path) -> YamlDocument:
        document = self._documents.get(path)
        if document is None:
            document = read_yaml(path, as_steps_do=True)
            if document.value is not None and not isinstance(document.value, dict):
                raise document.error(
                    (), "expected a mapping of keys at the top level", hint="begin with a key, as `run:`"
                )
            self._documents[path] = document
        return document


def merge_overlays(first: Iterable[Overlay], second: Iterable[Overlay]) -> tuple[Overlay, ...]:
    """Return the overlays of both, each once, in the order found."""
    return tuple(dict.fromkeys((*first, *second)))


def find_clash(overlays: Iterable[Overlay]) -> tuple[Overlay, Overlay] | None:
    """Return the first two overlays that want the same target, or None."""
    taken: dict[str, Overlay] = {}
    for overlay in overlays:
        other = taken.setdefault(overlay.target.rstrip("/"), overlay)
        if other != overlay:
            return other, overlay
    return None


def split_mounts(mounts: Iterable[Any]) -> tuple[tuple[Overlay, ...], tuple[Any, ...]]:
    """Return the Git overlays among the mounts of a config, and the other mounts as written.

    Raises:
        ValueError: an overlay has another form.
    """
    overlays: list[Overlay] = []
    others: list[Any] = []
    for mount in mounts:
        if not isinstance(mount, str) or not _MARK.search(mount):
            others.append(mount)
            continue
        found = _WHOLE.findall(mount)
        if len(found) != len(_MARK.findall(mount)):
            raise ValueError(f"`{mount}` is not an overlay, expected `${{auto_mount:git+URL@REF,TARGET}}`")
        overlays += [make_overlay(*parse_overlay(spec)) for spec in found]
    return tuple(overlays), tuple(others)


def make_overlay(url: str, ref: str, target: str) -> Overlay:
    """Return the overlay, its `repo` being the last part of the URL without `.git`."""
    return Overlay(url.rstrip("/").split("/")[-1].removesuffix(".git"), url, ref, target)


def _container_image(chain: list[YamlDocument]) -> ConfigText | None:
    """Return `run.env.container_image` of the strongest document that has it."""
    for document in reversed(chain):
        value = document.value
        for part in IMAGE_KEY:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str):
            return ConfigText(value, document.path, document.line(IMAGE_KEY))
    return None


def _neighbours(path: Path) -> list[str]:
    try:
        return sorted(item.name for item in path.parent.iterdir() if item.suffix in (".yaml", ".yml"))
    except OSError:
        return []


def _entries(value: Any) -> Iterator[tuple[KeyPath, str]]:
    defaults = value.get("defaults") if isinstance(value, dict) else None
    if isinstance(defaults, str):
        yield ("defaults",), defaults
    elif isinstance(defaults, list) and all(isinstance(item, str) for item in defaults):
        for index, item in enumerate(defaults):
            if item != "_self_":
                yield ("defaults", index), item


def _telling_keys(value: Any) -> Iterator[str]:
    """Return the top-level keys that say something about overlays or mounts; most do not, and merging is slow."""
    for key, item in value.items() if isinstance(value, dict) else ():
        environment = item.get("env") if key == "run" and isinstance(item, dict) else None
        if (isinstance(environment, dict) and "mounts" in environment) or any(
            _MARK.search(text) for _, text in strings(item)
        ):
            yield key


def merge_plain(parts: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Merge configs, the weakest first, as OmegaConf does, in a tenth of the time; None where that is for it to judge.

    That is where a text may be an interpolation that it cannot parse, and where keys are a mapping in one config alone.
    """
    given = list(parts)
    if len(given) == 1:
        return given[0]
    if all(_PLAIN.fullmatch(text) for part in given for _, text in strings(part) if "$" in text or text == MISSING):
        with suppress(_NotPlainError):
            merged: dict[str, Any] = reduce(_lay_over, given)
            return merged
    return None


def _merge(chain: list[YamlDocument], keys: set[str]) -> Any:
    parts = [{key: item for key, item in (document.value or {}).items() if key in keys} for document in chain]
    if (merged := merge_plain(parts)) is not None:
        return merged
    try:
        with metered():
            return OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.create, parts)), resolve=False)
    except (OmegaConfBaseException, TooMuchExpandedError, TypeError, RecursionError) as error:
        # TypeError: a list in one file, a mapping in another; RecursionError: lists in lists within an interpolation
        raise ConfigurationError(
            f"{chain[-1].path}: cannot be merged with what it inherits: {error}",
            hint="give the key the same form, a list or a mapping, in both files",
        ) from error


class _NotPlainError(Exception):
    """What is merged is for OmegaConf to judge: a mapping and something else under one key."""


def _lay_over(below: Any, above: Any) -> Any:
    """Merge as OmegaConf does where that is plain, mappings key by key and all else replaced, in far less time."""
    if isinstance(below, dict) and isinstance(above, dict):
        both = {key: _lay_over(below[key], above[key]) for key in below if key in above}
        return {**below, **above, **both}
    if isinstance(below, dict) or isinstance(above, dict):
        raise _NotPlainError
    return above


def strings(value: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield all texts of a tree of values, with their keys."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from strings(item, (*key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, (*key, index))


def _overlays(value: Any, chain: list[YamlDocument]) -> Iterator[Overlay]:
    for _, text in strings(value):
        found = _WHOLE.findall(text)
        if len(found) != len(_MARK.findall(text)):
            raise _error(text, chain, f"`{text}` is not an overlay, expected `${{auto_mount:git+URL@REF,TARGET}}`")
        for spec in found:
            try:
                yield make_overlay(*parse_overlay(spec))
            except ValueError as error:
                raise _error(text, chain, str(error)) from error


def _place(overlay: Overlay, chain: list[YamlDocument]) -> str:
    """Return `file:line` of the value that asks for an overlay, in the strongest document that does."""
    for document in reversed(chain):
        for key, text in strings(document.value):
            if overlay.key in text and overlay.target in text:
                return f"{document.path}:{document.line(key)}"
    return str(chain[-1].path)


def _error(text: str, chain: list[YamlDocument], reason: str) -> ConfigurationError:
    """Return the error for a value, at the place in the strongest document that says it."""
    hint = "an overlay is `${auto_mount:git+URL@REF,TARGET}`, for example with `@main,/opt/name`"
    for document in reversed(chain):
        for key, item in strings(document.value):
            if item == text:
                return document.error(key, reason, hint=hint)
    return chain[-1].error((), reason, hint=hint)
