"""Digests: OCI image-spec, *descriptor.md*, section "Digests". Only `sha256` is accepted."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from pydantic import AfterValidator

from airferry.errors import IntegrityError

_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


def parse_digest(text: str) -> str:
    """Return `text` if it is `sha256:` and 64 lower-case hex digits.

    Raises:
        IntegrityError: it is anything else.
    """
    if not _PATTERN.fullmatch(text):
        shown = text if len(text) <= 100 else text[:100] + "…"
        raise IntegrityError(
            f"`{shown}` is not a digest, expected `sha256:` and 64 lower-case hex digits",
            hint="only sha256 is supported",
        )
    return text


def is_digest(text: str) -> bool:
    """Tell whether `text` is a digest that `parse_digest` accepts."""
    return _PATTERN.fullmatch(text) is not None


def digest_of(data: bytes) -> str:
    """Return the digest of bytes that are small enough to be held."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_hex(digest: str) -> str:
    """Return the 64 hex digits of a valid digest."""
    return digest.partition(":")[2]


def _validate(text: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise ValueError("expected `sha256:` and 64 lower-case hex digits")
    return text


Digest = Annotated[str, AfterValidator(_validate)]
