"""Every value of a step's config, as written and as it will be in the job, with the file and line that says it.

Interpolations are resolved against an environment that the caller gives, never against this process's own. Text of
several lines is prose, and stays as it is. Only reads.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from airferry.config.document import KeyPath, YamlDocument, format_key
from airferry.errors import ConfigurationError
from airferry.plan.interpolations import InterpolationBudget, ResolutionMeter, TooMuchExpandedError, metered
from airferry.plan.step_config import MISSING, StepConfigReader, merge_plain, strings

_CUSTOM = {"oc.env": "airferry.env", "auto_mount": "airferry.mount", "art": "airferry.artifact"}
_RESOLVER = re.compile(r"\$\{\s*(oc\.env|auto_mount|art)\s*:")
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_][A-Za-z0-9_]*)\s*([,}])")
_ARTIFACT = re.compile(r"\$\{\s*art\s*:")
_UNRESOLVED_ARTIFACT = "<artifact>"
_environment: ContextVar[Mapping[str, str]] = ContextVar("environment", default={})  # noqa: B039 (never changed)


@dataclass(frozen=True, slots=True)
class StepValue:
    """A leaf of a config. `value` is what it resolves to, None where it cannot be; `problem` then says why."""

    key: KeyPath
    raw: Any
    value: Any
    problem: str | None
    file: Path
    line: int

    @property
    def name(self) -> str:
        """The key as people write it, and as overrides name it."""
        return format_key(self.key)

    @property
    def last(self) -> str:
        """The last named part of the key; numbers of lists are passed over."""
        return next((part for part in reversed(self.key) if isinstance(part, str)), "")

    @property
    def text(self) -> str:
        """The resolved value if it is text, else nothing."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def variables(self) -> tuple[tuple[str, bool], ...]:
        """The environment variables that it reads, each with whether a default stands for it."""
        return variables_of(self.raw) if isinstance(self.raw, str) and "\n" not in self.raw else ()

    @property
    def is_artifact(self) -> bool:
        """Whether it is to be looked up in an artifact registry when the step runs."""
        return isinstance(self.raw, str) and bool(_ARTIFACT.search(self.raw))


@dataclass(frozen=True)
class StepValues:
    """All leaves of a config, in the order of the file, and the merged tree that they are the leaves of."""

    path: Path
    values: tuple[StepValue, ...]
    tree: Mapping[str, Any] = field(repr=False)
    documents: tuple[YamlDocument, ...] = field(default=(), repr=False)

    def get(self, *key: str | int) -> StepValue | None:
        """Return the leaf of a key."""
        return next((value for value in self.values if value.key == key), None)

    def below(self, *key: str | int) -> Iterator[StepValue]:
        """Return the leaves below a key."""
        return (value for value in self.values if value.key[: len(key)] == key)


class StepDocuments:
    """A step's config whose values are resolved when they are first asked for: most plans need none, and it is slow."""

    def __init__(self, reader: StepConfigReader, path: Path, *, environment: Mapping[str, str]) -> None:
        self._read = partial(read_step_values, reader, path, environment=environment)
        self._documents = reader.documents(path)

    def mentions(self, names: AbstractSet[str]) -> bool:
        """Tell whether any of the config's documents has a key of such a name, at any depth."""
        return any(_has_key(document.value, names) for document in self._documents)

    @cached_property
    def values(self) -> StepValues:
        """The values, see `read_step_values`."""
        return self._read()


def _has_key(value: Any, names: AbstractSet[str]) -> bool:
    if isinstance(value, dict):
        return not names.isdisjoint(value) or any(_has_key(item, names) for item in value.values())
    return isinstance(value, list) and any(_has_key(item, names) for item in value)


def read_step_values(reader: StepConfigReader, path: Path, *, environment: Mapping[str, str]) -> StepValues:
    """Read a config with what it inherits, and resolve each value on its own: one that fails fails alone.

    Raises:
        ConfigurationError: a file is missing or no YAML, inherits itself, or cannot be merged.
    """
    documents = reader.documents(path)
    token = _environment.set(environment)
    try:
        with warnings.catch_warnings(), metered() as meter:
            warnings.simplefilter("ignore")
            _register()
            parts = [_without_defaults(document.value) for document in documents]
            raw: Any = merge_plain(parts)
            if raw is None:
                raw = OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.create, parts)), resolve=False)
            else:
                parts = [raw]
            # OmegaConf takes most of the time, and without interpolations it has nothing to say
            readable = None
            if any("${" in text for _, text in strings(raw)):
                readable = OmegaConf.merge(*[OmegaConf.create(_redirected(part)) for part in parts])
            values = tuple(_leaf(key, text, readable, documents, meter) for key, text in _leaves(raw, ()))
    except TooMuchExpandedError as error:
        raise documents[-1].error(error.key, str(error), hint="write out what it refers to") from error
    except RecursionError as error:
        raise ConfigurationError(
            f"{path}: an interpolation, or what it leads to, is nested too deeply",
            hint="write out what it refers to",
            path=str(path),
        ) from error
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigurationError(
            f"{path}: OmegaConf cannot read it: {_first_line(error)}",
            hint="check for `${` that does not start an interpolation, and for keys that are a "
            "list in one file and a mapping in another",
            path=str(path),
        ) from error
    finally:
        _environment.reset(token)
    return StepValues(path, values, raw, tuple(documents))


def resolve_texts(texts: Mapping[str, Any], *, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of a flat mapping resolved, each on its own; one that cannot be is left as it is written."""
    result: dict[str, str] = {}
    token = _environment.set(environment)
    try:
        with warnings.catch_warnings(), metered():
            warnings.simplefilter("ignore")
            _register()
            budget = InterpolationBudget()
            for name, text in texts.items():
                result[str(name)] = str(text)
                with suppress(OmegaConfBaseException, TooMuchExpandedError, RecursionError):
                    budget.spend(str(text), ())
                    result[str(name)] = str(OmegaConf.create({"value": _redirected(text)})["value"])
    finally:
        _environment.reset(token)
    return result


def variables_of(text: str) -> tuple[tuple[str, bool], ...]:
    """Return the environment variables that a text reads, each with whether a default stands for it."""
    return tuple((name, end == ",") for name, end in _VARIABLE.findall(text))


def _without_defaults(value: Any) -> dict[str, Any]:
    return {key: item for key, item in (value or {}).items() if key != "defaults"}


def _redirected(value: Any) -> Any:
    """Return a tree whose resolvers are ours, so that reading it neither clones, nor looks anything up."""
    if isinstance(value, dict):
        return {key: _redirected(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redirected(item) for item in value]
    if isinstance(value, str):
        return _RESOLVER.sub(lambda match: f"${{{_CUSTOM[match[1]]}:", value)
    return value


def _register() -> None:
    def environment(name: str, default: Any = MISSING) -> Any:
        known = _environment.get()
        if name in known:
            return known[name]
        if default == MISSING:
            raise LookupError(f"the environment variable `{name}` is not set")
        return None if default is None else str(default)

    OmegaConf.register_new_resolver("airferry.env", environment, replace=True)
    OmegaConf.register_new_resolver("airferry.mount", lambda spec, target="": f"<{spec},{target}>", replace=True)
    OmegaConf.register_new_resolver("airferry.artifact", lambda *_: _UNRESOLVED_ARTIFACT, replace=True)


def _leaves(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, (*key, name))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, (*key, index))
    elif key:
        yield key, value


def _leaf(key: KeyPath, raw: Any, tree: Any, documents: list[YamlDocument], meter: ResolutionMeter) -> StepValue:
    file, line = _place(key, documents)
    if not isinstance(raw, str) or "\n" in raw or ("${" not in raw and raw != MISSING):
        return StepValue(key, raw, raw, None, file, line)
    if raw == MISSING:
        return StepValue(key, raw, None, "has no value and no default", file, line)
    meter.key = key
    try:
        node = tree
        for part in key:
            node = node[part]
    except (OmegaConfBaseException, TooMuchExpandedError) as error:
        meter.expect_left()
        return StepValue(key, raw, None, _first_line(error), file, line)
    if isinstance(node, DictConfig | ListConfig):
        return StepValue(key, raw, None, None, file, line)
    return StepValue(key, raw, node, None, file, line)


def _place(key: KeyPath, documents: list[YamlDocument]) -> tuple[Path, int]:
    for document in reversed(documents):
        if key in document.lines:
            return document.path, document.lines[key]
    return documents[-1].path, documents[-1].line(key)


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0].rpartition("while resolving interpolation: ")[2]
    return text.strip("'\"") or type(error).__name__
