"""YAML that programs write: bounded when read, deterministic when written. Knows none of its contents.

The only writer, and the reader of documents of ours. `config/document.py` reads what people wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from airferry.errors import IntegrityError
from airferry.wording import obeyed, printable

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_DOCUMENT_DEPTH = 40
MAX_ALIASED_VALUES = 200_000
MAX_SHOWN_PROBLEMS = 5
MAX_PROBLEM_CHARACTERS = 300
_NO_KEY = object()

M = TypeVar("M", bound=BaseModel)


class TooDeepError(Exception):
    """YAML nests deeper than is read; `line` is the line, from 1, where it does."""

    def __init__(self, line: int) -> None:
        """Keep the line."""
        super().__init__(line)
        self.line = line


# libyaml's emitter, not PyYAML's own: that one writes U+0085 and its kind into quoted texts as they are, and folds the
# line at them, so that another text is read back (seen with PyYAML 6.0.3 and `allow_unicode`).
class _PlainDumper(yaml.CSafeDumper):
    """A dumper that writes what occurs twice twice: readers here refuse aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render_yaml(value: Any, *, sort_keys: bool = False, width: int = 120, unicode: bool = False) -> str:
    """Return plain values as YAML, the same text for the same content, without anchors and tags.

    Characters beyond ASCII are escaped, unless `unicode` says to write them as they are.
    """
    text: str = yaml.dump(value, Dumper=_PlainDumper, sort_keys=sort_keys, width=width, allow_unicode=unicode)
    return text


def render_line(value: Any) -> str:
    """Return a value as YAML on one line, to be pasted after a key."""
    text: str = yaml.dump(value, Dumper=_PlainDumper, default_flow_style=True, sort_keys=True, width=1 << 20)
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
    waiting: list[tuple[tuple[int | str, ...], Any]] = [((), value)]
    while waiting:
        place, item = waiting.pop()
        if isinstance(item, dict):
            waiting += [(place, key) for key in item]
            waiting += [((*place, key), inner) for key, inner in item.items()]
        elif isinstance(item, list):
            waiting += [((*place, number), inner) for number, inner in enumerate(item)]
        elif isinstance(item, str) and (found := obeyed(item, lines=True)):
            raise IntegrityError(f"{what} is not valid: {_place(place)}: text with the control character {found}")


def _place(keys: tuple[int | str, ...]) -> str:
    # keys are text of others too, up to the size of the document
    return printable(".".join(str(key) for key in keys) or "document", most=MAX_PROBLEM_CHARACTERS)


def _reason(text: str) -> str:
    return printable(text.removeprefix("Value error, "), most=MAX_PROBLEM_CHARACTERS)


def load_yaml(data: bytes, what: str, *, limit_bytes: int = MAX_DOCUMENT_BYTES, aliases: bool = False) -> object:
    """Return what the one document in YAML bytes holds: lists, mappings with plain keys, and scalars.

    It is built from the events of the parser: a tree of nodes would be several times as large. Tags, deep nesting and
    large documents are refused; so are aliases, unless `aliases` allows a bounded number of values through them.

    Raises:
        IntegrityError: it is not such a document.
    """
    if len(data) > limit_bytes:
        raise IntegrityError(f"{what} has {len(data)} bytes, more than the limit of {limit_bytes}")
    try:
        return _build(data, what, aliases=aliases)
    except TooDeepError as error:
        raise IntegrityError(f"{what} nests deeper than {MAX_DOCUMENT_DEPTH} levels") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise IntegrityError(f"{what} is not valid YAML") from error


def bounded_events(text: str | bytes, *, max_depth: int) -> Iterator[yaml.Event]:
    """Yield the parser's events of YAML.

    The parser itself keeps its levels in a list. What composes nodes in C recurses once a level and overflows the
    stack, so look at the events of foreign text before you compose it.

    Raises:
        TooDeepError: lists and mappings nest deeper than `max_depth`.
        yaml.YAMLError: it is not YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > max_depth:
                raise TooDeepError(event.start_mark.line + 1 if event.start_mark else 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        yield event


def _build(data: bytes, what: str, *, aliases: bool) -> object:
    resolver = yaml.SafeLoader("")
    anchors = _Anchors(what, allowed=aliases)
    holders = [_Holder([])]
    for event in bounded_events(data, max_depth=MAX_DOCUMENT_DEPTH):
        if isinstance(event, yaml.AliasEvent):
            holders[-1].add(anchors.value(event.anchor), what)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag not in (None, "!"):
                raise IntegrityError(f"{what} has a YAML tag, which airferry never writes")
            anchors.count += 1
            if isinstance(event, yaml.ScalarEvent):
                value = _scalar(resolver, event)
                holders[-1].add(value, what)
                if event.anchor:
                    anchors.keep(event.anchor, value, anchors.count - 1)
                continue
            inner: dict[Any, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            holders[-1].add(inner, what)
            holders.append(_Holder(inner, event.anchor, anchors.count - 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = holders.pop()
            if done.anchor:
                anchors.keep(done.anchor, done.values, done.begun)
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
        else:
            self._key = sys.intern(value) if isinstance(value, str) else value


def _scalar(resolver: yaml.SafeLoader, event: yaml.ScalarEvent) -> Any:
    tag = resolver.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
    if tag == "tag:yaml.org,2002:str":
        return event.value
    construct = resolver.yaml_constructors.get(tag)
    if construct is None:
        return event.value
    return construct(resolver, yaml.ScalarNode(tag, event.value))
