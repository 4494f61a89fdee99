"""YAML: bounded when read, deterministic when written. The one owner of its parser; knows no contents.

The only writer, and the reader of documents of ours. `config/document.py` reads what people wrote, with the loader,
the bounds and the rules for plain scalars that are here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from airferry.errors import IntegrityError
from airferry.wording import obeyed, printable

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_DOCUMENT_DEPTH = 40
# keys count as well. A layer takes 15, an added distribution 9, so 100 images of two platforms, with 50 layers and 20
# distributions each, stay below it; whatever stays below it is read within a second
MAX_DOCUMENT_VALUES = 200_000
MAX_ALIASED_VALUES = 200_000
# far more than any number has: PyYAML reads `1:1:1:…`, its base 60, in quadratic time, as Python does long decimals
MAX_NUMBER_CHARACTERS = 100
# libyaml compares each `%TAG` with all before it: 60,000 of them, 1 MB, took half a minute
MAX_DIRECTIVES = 100
MAX_SHOWN_PROBLEMS = 5
MAX_PROBLEM_CHARACTERS = 300
_NO_KEY = object()
_COUNTED = (yaml.NodeEvent, yaml.DocumentStartEvent)
_INT_TAG, _FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\Z")

M = TypeVar("M", bound=BaseModel)


class YamlLimitError(Exception):
    """YAML exceeds a limit, which the message names, on a `line`, from 1; `hint` says what a person can do."""

    def __init__(self, reason: str, line: int, *, hint: str = "keep data in separate files") -> None:
        """Keep line and hint."""
        super().__init__(reason)
        self.line = line
        self.hint = hint


# --- plain scalars ---------------------------------------------------------------------------------------------------

_INT = r"[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+"
_INT_BASE_60 = r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+"
_NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
# PyYAML's own, without base 60: what our writer leaves unquoted are the texts that are none of these
_FLOAT = rf"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|{_NOT_FINITE}"
# OmegaConf's, by which steps read their configs (seen with 2.4): `1e-5` is a number there, and a text for PyYAML
_STEP_FLOAT = (
    r"[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+"
    r"|\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?"
    rf"|[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*|{_NOT_FINITE}"
)
_NUMBER_TAGS = (_INT_TAG, _FLOAT_TAG, "tag:yaml.org,2002:timestamp")
_OTHER_RULES = {
    first: [(tag, rule) for tag, rule in rules if tag not in _NUMBER_TAGS]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _rules(integer: str, floating: str) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return PyYAML's table of implicit types by first character, with these numbers, and without dates."""
    table = {first: list(rules) for first, rules in _OTHER_RULES.items()}
    for tag, pattern, begins in ((_FLOAT_TAG, floating, "-+0123456789."), (_INT_TAG, integer, "-+0123456789")):
        for first in begins:
            table.setdefault(first, []).append((tag, re.compile(rf"(?:{pattern})\Z")))
    return table


class PlainLoader(yaml.CSafeLoader):
    """Composes and constructs documents of ours: `12:00` and `2026-01-01` are texts, as in YAML 1.2."""

    yaml_implicit_resolvers = _rules(_INT, _FLOAT)
    # texts, numbers, truth values and null: neither dates nor bytes, which no reader here expects
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.CSafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] not in ("timestamp", "binary", "omap", "pairs", "set")
    }

    def number_of(self, node: yaml.ScalarNode) -> Any:
        """Return the number that a scalar writes.

        Raises:
            YamlLimitError: it is longer than numbers are.
            ValueError: it is none, say `0b_`.
        """
        if len(node.value) > MAX_NUMBER_CHARACTERS:
            line = node.start_mark.line + 1 if node.start_mark else 1
            raise YamlLimitError(
                f"a number of more than {MAX_NUMBER_CHARACTERS} characters", line, hint="quote it if it is a text"
            )
        construct: Callable[[Any, yaml.ScalarNode], Any] = yaml.CSafeLoader.yaml_constructors[node.tag]
        return construct(self, node)


for _tag in (_INT_TAG, _FLOAT_TAG):
    PlainLoader.add_constructor(_tag, PlainLoader.number_of)


class StepLoader(PlainLoader):
    """Reads plain scalars as the steps themselves do, by OmegaConf: `12:00:00` is 43200 there, and `1e-5` a number."""

    yaml_implicit_resolvers = _rules(f"{_INT}|{_INT_BASE_60}", _STEP_FLOAT)


# --- writing ---------------------------------------------------------------------------------------------------------


# libyaml's emitter, not PyYAML's own: that one writes U+0085 and its kind into quoted texts as they are, and folds the
# line at them, so that another text is read back (seen with PyYAML 6.0.3 and `allow_unicode`).
class _PlainDumper(yaml.CSafeDumper):
    """A dumper that writes what occurs twice twice: readers here refuse aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# what OmegaConf takes for a number is quoted too: files written here are read by steps
_PlainDumper.add_implicit_resolver(_FLOAT_TAG, re.compile(rf"(?:{_STEP_FLOAT})\Z"), list("-+0123456789."))


class _LineDumper(_PlainDumper):
    """A dumper that escapes line breaks: other styles than double quotes write them as they are."""


def _represent_text(dumper: _LineDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_LineDumper.add_representer(str, _represent_text)


def render_yaml(value: Any, *, sort_keys: bool = False, width: int = 120, unicode: bool = False) -> str:
    """Return plain values as YAML, the same text for the same content, without anchors and tags.

    Characters beyond ASCII are escaped, unless `unicode` says to write them as they are.
    """
    text: str = yaml.dump(value, Dumper=_PlainDumper, sort_keys=sort_keys, width=width, allow_unicode=unicode)
    return text


def render_line(value: Any) -> str:
    """Return a value as YAML on one line, to be pasted after a key."""
    text: str = yaml.dump(value, Dumper=_LineDumper, default_flow_style=True, sort_keys=True, width=1 << 20)
    return text.removesuffix("\n").removesuffix("\n...")


def to_yaml(document: BaseModel) -> bytes:
    """Return a document as YAML: fields in the order of the model, those without a value left out."""
    return render_yaml(document.model_dump(mode="json", exclude_none=True), unicode=True).encode()


def from_yaml(model: type[M], data: bytes, *, schema_version: int, what: str) -> M:
    """Return the document that YAML bytes hold.

    Aliases, deep nesting and large documents are refused before anything is built from them; so is text that a terminal
    would obey, wherever it stands, keys included. What else a text may hold is up to the model.

    Raises:
        IntegrityError: they are no such document, or one of a newer version.
    """
    value = load_yaml(data, what)
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} is not a mapping")
    version = value.get("schema_version")
    if isinstance(version, int) and version > schema_version:
        raise IntegrityError(
            f"{what} has schema_version {version}, this version of airferry supports {schema_version}",
            hint="use the newer version of airferry that wrote it",
        )
    _expect_harmless(value, what)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [
            f"{_place(problem['loc'])}: {_reason(problem['msg'])}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise IntegrityError(f"{what} is not valid: {'; '.join(problems[:MAX_SHOWN_PROBLEMS])}") from error


def _expect_harmless(value: Any, what: str) -> None:
    """Check all text of a document, that of free values too; line feeds and tabs may stand there."""
    path: list[Any] = []
    # an iterator a level: a list of what is left to look at would be as large as the document
    levels: list[Iterator[tuple[Any, Any]]] = [iter([("", value)])]
    while levels:
        key, item = next(levels[-1], (None, _NO_KEY))
        if item is _NO_KEY:
            levels.pop()
            del path[-1:]
            continue
        for text in (key, item):
            if isinstance(text, str) and (found := obeyed(text, lines=True)):
                where = _place((*path[1:], key))
                raise IntegrityError(f"{what} is not valid: {where}: text with the control character {found}")
        if isinstance(item, dict | list):
            path.append(key)
            levels.append(iter(item.items() if isinstance(item, dict) else enumerate(item)))


def _place(keys: Sequence[object]) -> str:
    # keys are text of others too, up to the size of the document
    return printable(".".join(str(key) for key in keys) or "document", most=MAX_PROBLEM_CHARACTERS)


def _reason(text: str) -> str:
    return printable(text.removeprefix("Value error, "), most=MAX_PROBLEM_CHARACTERS)


def load_yaml(
    data: bytes,
    what: str,
    *,
    limit_bytes: int = MAX_DOCUMENT_BYTES,
    limit_values: int = MAX_DOCUMENT_VALUES,
    aliases: bool = False,
) -> object:
    """Return what the one document in YAML bytes holds: lists, mappings with plain keys, and scalars.

    It is built from the events of the parser: a tree of nodes would be several times as large. Tags, deep nesting and
    large documents are refused; so are aliases, unless `aliases` allows a bounded number of values through them.

    Raises:
        IntegrityError: it is not such a document.
    """
    if len(data) > limit_bytes:
        raise IntegrityError(f"{what} has {len(data)} bytes, more than the limit of {limit_bytes}")
    try:
        text = data.decode("utf-8")
        return _build(text, what, limit_values=limit_values, aliases=aliases)
    except YamlLimitError as error:
        raise IntegrityError(f"{what}, line {error.line}, exceeds a limit of YAML: {error}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise IntegrityError(f"{what} is not valid YAML") from error


def count_values(value: Any) -> int:
    """Return how many keys and values the YAML of plain values has, as they are counted when it is read."""
    count, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        count += 1
        if isinstance(item, Mapping):
            count += len(item)
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
    return count


def bounded_events(text: str, *, max_depth: int, max_values: int) -> Iterator[yaml.Event]:
    """Yield the parser's events of YAML.

    The parser itself keeps its levels in a list. What composes nodes in C recurses once a level and overflows the
    stack, and a node takes many times the memory of its text, so look at the events of foreign text before you
    compose it.

    Raises:
        YamlLimitError: lists and mappings nest deeper than `max_depth`, there are more than `max_values` keys and
            values, or more than MAX_DIRECTIVES directives.
        yaml.YAMLError: it is not YAML.
    """
    expect_few_directives(text)
    depth = values = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, _COUNTED):
            values += 1
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > max_depth:
                    raise YamlLimitError(f"nested deeper than {max_depth} levels", _line(event))
            if values > max_values:
                raise YamlLimitError(f"more than {max_values} keys and values", _line(event))
        yield event


def expect_few_directives(text: str) -> None:
    """Check that no more than MAX_DIRECTIVES lines begin as directives do.

    Raises:
        YamlLimitError: there are more.
    """
    for number, found in enumerate(_DIRECTIVE.finditer(text)):
        if number >= MAX_DIRECTIVES:
            raise YamlLimitError(
                f"more than {MAX_DIRECTIVES} lines that begin with `%`", text.count("\n", 0, found.start()) + 1
            )


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _build(text: str, what: str, *, limit_values: int, aliases: bool) -> object:
    loader = PlainLoader("")
    anchors = _Anchors(what, allowed=aliases)
    holder = _Holder([])
    holders = [holder]
    for event in bounded_events(text, max_depth=MAX_DOCUMENT_DEPTH, max_values=limit_values):
        if isinstance(event, yaml.ScalarEvent):
            if event.tag not in (None, "!"):
                raise IntegrityError(f"{what} has a YAML tag, which airferry never writes")
            anchors.count += 1
            # quoted, or nothing that begins as anything but a text does: by far the most
            value: Any = event.value
            if event.implicit[0] and value[:1] in PlainLoader.yaml_implicit_resolvers:
                value = int(value) if _DECIMAL.match(value) else _scalar(loader, event)
            holder.add(value, what)
            if event.anchor:
                anchors.keep(event.anchor, value, anchors.count - 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            if holder.anchor:
                anchors.keep(holder.anchor, holder.values, holder.begun)
            holders.pop()
            holder = holders[-1]
        elif isinstance(event, yaml.AliasEvent):
            holder.add(anchors.value(event.anchor), what)
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.tag not in (None, "!"):
                raise IntegrityError(f"{what} has a YAML tag, which airferry never writes")
            anchors.count += 1
            inner: dict[Any, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            holder.add(inner, what)
            holder = _Holder(inner, event.anchor, anchors.count - 1)
            holders.append(holder)
    values = holders[0].values
    if len(values) > 1:
        raise IntegrityError(f"{what} holds {len(values)} documents")
    return values[0] if values else None


class _Anchors:
    """Values that aliases may stand for. The values behind aliases are counted, so that writing them out is bounded."""

    def __init__(self, what: str, *, allowed: bool) -> None:
        self.count = 0
        self._what = what
        self._allowed = allowed
        self._aliased = 0
        self._known: dict[str, tuple[Any, int]] = {}

    def keep(self, anchor: str, value: Any, begun: int) -> None:
        """Remember a finished value, which began at a count."""
        if self._allowed:
            self._known[anchor] = (value, self.count - begun)

    def value(self, anchor: str | None) -> Any:
        """Return what an alias stands for."""
        if not self._allowed:
            raise IntegrityError(f"{self._what} has a YAML alias, which airferry never writes")
        value, size = self._known.get(anchor or "", (None, 0))
        if not size:
            # what is not finished is an alias inside of what it stands for
            raise IntegrityError(f"{self._what} has a YAML alias `{anchor}` of nothing before it")
        self.count += size
        self._aliased += size
        if self._aliased > MAX_ALIASED_VALUES:
            raise IntegrityError(f"{self._what} has more than {MAX_ALIASED_VALUES} values behind YAML aliases")
        return value


class _Holder:
    """A mapping or list in the making."""

    __slots__ = ("_key", "anchor", "begun", "values")

    def __init__(self, values: dict[Any, Any] | list[Any], anchor: str | None = None, begun: int = 0) -> None:
        self.values = values
        self.anchor = anchor
        self.begun = begun
        self._key: Any = _NO_KEY

    def add(self, value: Any, what: str) -> None:
        """Take the next item, or the next key or value."""
        if isinstance(self.values, list):
            self.values.append(value)
        elif self._key is not _NO_KEY:
            self.values[self._key] = value
            self._key = _NO_KEY
        elif isinstance(value, dict | list):
            raise IntegrityError(f"{what} has a mapping or a list as a key")
        elif value in self.values:
            raise IntegrityError(f"{what} has the key `{str(value)[:MAX_NUMBER_CHARACTERS]}` twice in one mapping")
        else:
            self._key = sys.intern(value) if isinstance(value, str) else value


def _scalar(loader: PlainLoader, event: yaml.ScalarEvent) -> Any:
    tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
    if tag == "tag:yaml.org,2002:str":
        return event.value
    construct = loader.yaml_constructors.get(tag)
    if construct is None:
        return event.value
    return construct(loader, yaml.ScalarNode(tag, event.value, event.start_mark))  # type: ignore[arg-type]
