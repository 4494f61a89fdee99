"""Plain data of values and canonical JSON: documents that airferry authors, and digests of values by way of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel


def plain_data(value: Any, *names: str) -> Any:
    """Return a value as JSON can hold it; of an object, all its fields, or the attributes that `names` say, in order.

    Dataclasses become mappings, fields without a value included, as do models; tuples become lists, paths texts.
    """
    if names:
        return {name: plain_data(getattr(value, name)) for name in names}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_data(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def canonical_json(value: Any) -> bytes:
    """Return a document as JSON: sorted keys, no blanks, UTF-8; what a model has no value for is left out."""
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True, exclude_none=True)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def inputs_digest(inputs: Mapping[str, Any]) -> str:
    """Return `sha256:…` of an action's inputs as canonical JSON: the key of the action in journals and records."""
    return "sha256:" + hashlib.sha256(canonical_json(inputs)).hexdigest()
