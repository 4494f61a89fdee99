"""Our own YAML documents, bounded when read and deterministic when written. Knows none of their contents."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from airferry.errors import IntegrityError

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_DOCUMENT_DEPTH = 40
MAX_SHOWN_PROBLEMS = 5
_NO_KEY = object()

M = TypeVar("M", bound=BaseModel)


class _PlainDumper(yaml.CSafeDumper):
    """A dumper that writes what occurs twice twice: readers here refuse aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(document: BaseModel) -> bytes:
    """Return a document as YAML: fields in the order of the model, those without a value left out."""
    value = document.model_dump(mode="json", exclude_none=True)
    text = yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)
    return text.encode()


def from_yaml(model: type[M], data: bytes, *, schema_version: int, what: str) -> M:
    """Return the document that YAML bytes hold.

    Aliases, deep nesting and large documents are refused before anything is built from them.

    Raises:
        IntegrityError: they are no such document, or one of a newer version.
    """
    value = _load(data, what)
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} is not a mapping")
    version = value.get("schema_version")
    if isinstance(version, int) and version > schema_version:
        raise IntegrityError(
            f"{what} has schema_version {version}, this version of airferry supports {schema_version}",
            hint="use the newer version of airferry that wrote it",
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'document'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise IntegrityError(f"{what} is not valid: {'; '.join(problems[:MAX_SHOWN_PROBLEMS])}") from error


def _load(data: bytes, what: str) -> object:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise IntegrityError(f"{what} has {len(data)} bytes, more than the limit of {MAX_DOCUMENT_BYTES}")
    try:
        return _build(data, what)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise IntegrityError(f"{what} is not valid YAML") from error


def _build(data: bytes, what: str) -> object:
    """Return what the first document holds, built as it is parsed: a tree of nodes would be several times as large."""
    resolver = yaml.SafeLoader("")
    holders: list[_Holder] = []
    top = _Holder([])
    for event in yaml.parse(data, Loader=yaml.CSafeLoader):
        holder = holders[-1] if holders else top
        if isinstance(event, yaml.AliasEvent):
            raise IntegrityError(f"{what} has a YAML alias, which airferry never writes")
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) not in (None, "!"):
            raise IntegrityError(f"{what} has a YAML tag, which airferry never writes")
        if isinstance(event, yaml.ScalarEvent):
            holder.add(_scalar(resolver, event), what)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            inner: dict[Any, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            holder.add(inner, what)
            holders.append(_Holder(inner))
            if len(holders) > MAX_DOCUMENT_DEPTH:
                raise IntegrityError(f"{what} nests deeper than {MAX_DOCUMENT_DEPTH} levels")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            holders.pop()
    values = top.values
    if len(values) > 1:
        raise IntegrityError(f"{what} holds {len(values)} documents")
    return values[0] if values else None


class _Holder:
    """A mapping or list in the making."""

    __slots__ = ("_key", "values")

    def __init__(self, values: dict[Any, Any] | list[Any]) -> None:
        self.values = values
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
