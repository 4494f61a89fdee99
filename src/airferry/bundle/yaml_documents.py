"""Our own YAML documents, bounded when read and deterministic when written. Knows none of their contents."""

from __future__ import annotations

from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from airferry.errors import IntegrityError

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 40
MAX_SHOWN_PROBLEMS = 5

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


def read_document(model: type[M], data: bytes, *, schema_version: int, what: str) -> M:
    """Return the document that YAML bytes hold.

    Aliases, deep nesting and large documents are refused before anything is built from them.

    Raises:
        IntegrityError: they are no such document, or one of a newer version.
    """
    value = _load(data, what)
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} is no mapping")
    version = value.get("schema_version")
    if isinstance(version, int) and version > schema_version:
        raise IntegrityError(
            f"{what} has schema_version {version}, this airferry knows {schema_version}",
            hint="use the newer airferry that wrote it",
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
    if len(data) > MAX_BYTES:
        raise IntegrityError(f"{what} has {len(data)} bytes, more than the limit of {MAX_BYTES}")
    try:
        depth = 0
        for event in yaml.parse(data, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise IntegrityError(f"{what} has a YAML alias, which airferry never writes")
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                depth += 1
                if depth > MAX_DEPTH:
                    raise IntegrityError(f"{what} nests deeper than {MAX_DEPTH} levels")
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                depth -= 1
        return yaml.load(data, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise IntegrityError(f"{what} is not valid YAML") from error
