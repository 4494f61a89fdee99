"""Canonical JSON: the bytes of documents that airferry authors, and digests of values by way of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def canonical_json(value: Any) -> bytes:
    """Return a document as JSON: sorted keys, no blanks, UTF-8; what a model has no value for is left out."""
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True, exclude_none=True)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def inputs_digest(inputs: Mapping[str, Any]) -> str:
    """Return `sha256:…` of an action's inputs as canonical JSON: the key of the action in journals and records."""
    return "sha256:" + hashlib.sha256(canonical_json(inputs)).hexdigest()
