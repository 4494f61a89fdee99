"""YAML that people wrote, as plain values with the line of each.

Only plain scalars, lists and mappings are made. Duplicate keys are errors; size, depth and what aliases expand to are
bounded. Knows nothing of any key. OmegaConf gets these values, never a file: its own YAML loader knows
neither lines nor bounds.
"""

# Not `host/yaml`, which reads documents of ours event by event: people use anchors, merge keys and keys twice, and each
# problem needs its line. Nodes hold all that, the C loader makes them, and a catalogue has hundreds of small configs.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from airferry.errors import ConfigurationError, HostError
from airferry.host import files
from airferry.host.yaml import PlainLoader, StepLoader, YamlLimitError, bounded_events, expect_few_directives

MAX_CONFIG_BYTES = 4 * 1024 * 1024
# below it, indentation alone nests, which a file of the size that is read cannot do deeply enough
FEW_OPENERS = 1_000
# read within a second; the largest of Nemotron's configs has 508
MAX_CONFIG_VALUES = 100_000
MAX_CONFIG_DEPTH = 60

KeyPath = tuple[str | int, ...]
_Pairs = dict[str, tuple[yaml.Node, yaml.Node]]

_LESS = "reduce the number of values and the depth of lists and mappings"


@dataclass(frozen=True)
class YamlDocument:
    """The values of one YAML document and, for each path of keys in it, the line (from 1) it begins on."""

    path: Path
    value: Any
    lines: Mapping[KeyPath, int]

    def line(self, key: KeyPath) -> int:
        """Return the line of a path of keys, or of the nearest parent that is there."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def error(self, key: KeyPath, reason: str, *, hint: str | None = None) -> ConfigurationError:
        """Return the error for one key, as `file:line: key: reason`."""
        return ConfigurationError(self.problem(key, reason), hint=hint, path=str(self.path), line=self.line(key))

    def problem(self, key: KeyPath, reason: str) -> str:
        """Return `file:line: key: reason`."""
        shown = format_key(key)
        return f"{self.path}:{self.line(key)}: " + (f"`{shown}`: {reason}" if shown else reason)


@dataclass(frozen=True)
class Answers(YamlDocument):
    """Values that came from options, and stand in no file. `options` says which, by the first keys of a path."""

    options: Mapping[KeyPath, str] = field(default_factory=dict)

    def problem(self, key: KeyPath, reason: str) -> str:
        """Return `option: reason`."""
        known = next((self.options[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self.options), None)
        return f"`{known or format_key(key)}`: {reason}"


def format_key(key: KeyPath) -> str:
    """Return a path of keys as people write it: `a.b[0].c`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(path: Path, *, as_steps_do: bool = False) -> YamlDocument:
    """Read a YAML file of one document. An empty one has the value None.

    With `as_steps_do`, plain scalars are what the steps themselves read: `12:00:00` is 43200 and `1e-5` a number. In
    files that only airferry reads, both are texts.

    Raises:
        ConfigurationError: it cannot be read, is too large, is not YAML, or says one key twice.
    """
    try:
        if _is_large(path):
            raise ConfigurationError(
                f"{path}:1: larger than {MAX_CONFIG_BYTES >> 20} MiB, the limit for configuration",
                hint="keep data in separate files, and refer to them by path",
                path=str(path),
                line=1,
            )
        data = files.read_bounded(path, limit_bytes=MAX_CONFIG_BYTES)
    except HostError as error:
        raise ConfigurationError(error.message, hint=error.hint, path=str(path)) from error
    return parse_document(data, path, as_steps_do=as_steps_do)


def _is_large(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > MAX_CONFIG_BYTES
    except (OSError, ValueError):
        # a name that is too long, or has null bytes: reading it says so
        return False


def parse_document(data: bytes, path: Path, *, as_steps_do: bool = False) -> YamlDocument:
    """Parse the YAML of a file that was read already; `as_steps_do` as for `read_yaml`.

    Raises:
        ConfigurationError: it is not YAML, says one key twice, or exceeds a limit.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}:{line}: not UTF-8 text",
            path=str(path),
            line=line,
            hint=f"save it as UTF-8: `iconv -f LATIN1 -t UTF-8 {path.name}` converts older files",
        ) from error
    loader = (StepLoader if as_steps_do else PlainLoader)(text)
    try:
        _expect_bounded(text)
        node = loader.get_single_node()
        builder = _Builder(path, loader)
        value = None if node is None else builder.build(node, ())
        return YamlDocument(path, value, builder.lines)
    except YamlLimitError as error:
        raise ConfigurationError(
            f"{path}:{error.line}: exceeds a limit of YAML: {error}",
            hint=error.hint,
            path=str(path),
            line=error.line,
        ) from error
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from error
    except RecursionError as error:
        raise ConfigurationError(f"{path}: nested too deeply", path=str(path), hint=_LESS) from error
    finally:
        loader.dispose()


def text_spans(text: str, keys: Iterable[KeyPath]) -> dict[KeyPath, tuple[int, int]]:
    """Return where, from which character to which, the scalars at some keys stand in YAML that was parsed before.

    Keys of other values, and of values that an alias or a merge key brings in, may be missing.
    """
    loader = yaml.CSafeLoader(text)
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    # libyaml does not count a byte order mark
    shift = 1 if text.startswith("\ufeff") else 0
    found = ((key, _node_at(root, key)) for key in keys)
    return {
        key: (node.start_mark.index + shift, node.end_mark.index + shift)
        for key, node in found
        if isinstance(node, yaml.ScalarNode)
    }


def _node_at(node: Any, key: KeyPath) -> Any:
    for part in key:
        if isinstance(node, yaml.MappingNode):
            node = next((value for name, value in node.value if name.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            return None
    return node


def _expect_bounded(text: str) -> None:
    """Refuse deep nesting and too many values before anything is composed.

    PyYAML's C loader recurses without a bound, and overflows the stack; a node takes a hundred times its text. Text
    that can be neither deep nor rich, for it has few of the marks that part values, is not looked at.
    """
    if sum(map(text.count, "[{-?")) <= FEW_OPENERS and sum(map(text.count, "[{-?,:")) <= MAX_CONFIG_VALUES // 2:
        expect_few_directives(text)
        return
    for _ in bounded_events(text, max_depth=MAX_CONFIG_DEPTH, max_values=MAX_CONFIG_VALUES):
        pass


def _yaml_error(path: Path, error: yaml.YAMLError) -> ConfigurationError:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else 1
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return ConfigurationError(
        f"{path}:{line}: not valid YAML: {reason}",
        hint="check the indentation, quotes and brackets of this line and the one before",
        path=str(path),
        line=line,
    )


class _Builder:
    """Makes plain values of nodes and remembers their lines."""

    def __init__(self, path: Path, loader: PlainLoader) -> None:
        self.path = path
        self.loader = loader
        self.lines: dict[KeyPath, int] = {}
        self._nodes = 0
        self._merged = 0
        self._pairs: dict[int, _Pairs] = {}

    def build(self, node: yaml.Node, key: KeyPath) -> Any:
        self._nodes += 1
        if self._nodes > MAX_CONFIG_VALUES or len(key) > MAX_CONFIG_DEPTH:
            raise self._error(
                node, f"more than {MAX_CONFIG_VALUES} values or {MAX_CONFIG_DEPTH} levels, aliases expanded", hint=_LESS
            )
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*key, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for name, (key_node, value_node) in self._mapping(node, 0).items():
                self.lines[(*key, name)] = key_node.start_mark.line + 1
                result[name] = self.build(value_node, (*key, name))
            return result
        try:
            return self.loader.construct_object(node)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            # `2001-99-99` looks like a date, `0b_` like a number, and a tag may be on any text
            raise self._error(
                node,
                f"`{str(node.value)[:80]}` cannot be read as what it looks like: {error}",
                hint="put it in quotes if it is text",
            ) from error

    def _mapping(self, node: yaml.MappingNode, depth: int) -> _Pairs:
        """Return the pairs of a mapping, those that merge keys (`<<`) bring in first."""
        if (known := self._pairs.get(id(node))) is not None:
            return known
        if depth > MAX_CONFIG_DEPTH:
            raise self._error(node, "merge keys are nested too deeply", hint=_LESS)
        merged: _Pairs = {}
        own: _Pairs = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in reversed(sources):
                    if not isinstance(source, yaml.MappingNode):
                        raise self._error(
                            key_node, "`<<` takes a mapping or a list of mappings", hint="write `<<: *NAME`"
                        )
                    brought = self._mapping(source, depth + 1)
                    self._merged += 1 + len(brought)
                    if self._merged > MAX_CONFIG_VALUES:
                        raise self._error(
                            key_node, f"merge keys bring in more than {MAX_CONFIG_VALUES} keys", hint=_LESS
                        )
                    merged.update(brought)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be plain text", hint="write it as `NAME: value`")
            name = str(key_node.value)
            if name in own:
                first = own[name][0].start_mark.line + 1
                raise self._error(
                    key_node, f"`{name}`: duplicate key, first on line {first}", hint="remove one of the two"
                )
            own[name] = (key_node, value_node)
        merged.update(own)
        self._pairs[id(node)] = merged
        return merged

    def _error(self, node: yaml.Node, reason: str, *, hint: str) -> ConfigurationError:
        line = node.start_mark.line + 1
        return ConfigurationError(f"{self.path}:{line}: {reason}", path=str(self.path), line=line, hint=hint)
