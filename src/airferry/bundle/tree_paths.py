"""Paths of trees that travel (assets, the catalogue): how documents write them, and which are safe to join.

Text only; nothing here looks at a disk.
"""

from __future__ import annotations

import posixpath
import re

from airferry.host.files import MAX_NAME_BYTES, MAX_PATH_BYTES

# models and datasets stay below 20; a path of 4,096 bytes can have 2,048 folders
MAX_PATH_FOLDERS = 128
_ESCAPED = re.compile("[%\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udcff]")
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")


def encode_path(raw: bytes) -> str:
    """Return a path's bytes as one line of UTF-8: control characters, stray bytes and `%` as `%` and two digits."""
    text = raw.decode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda match: "".join(f"%{byte:02X}" for byte in _raw(match[0])), text)


def decode_path(text: str) -> bytes:
    """Return the bytes of a path that `encode_path` wrote.

    Raises:
        ValueError: the text is not what `encode_path` writes for any path.
    """
    raw = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), _raw(text))
    if encode_path(raw) != text:
        raise ValueError(f"`{text}` is not a valid path")
    return raw


def linked_path(path: str, target: str) -> str | None:
    """Return the path in the tree that the link at `path` leads to, one hop far, or None if it leads out or nowhere.

    A target that goes up again after it went down counts as leading out: over another link it might.
    """
    to, own = decode_path(target), decode_path(path)
    if not 0 < len(to) < MAX_PATH_BYTES:
        return None
    parts = [part for part in to.split(b"/") if part not in (b"", b".")]
    if b".." in parts[next((number for number, part in enumerate(parts) if part != b".."), len(parts)) :]:
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(own), to))
    if to.startswith(b"/") or found == b".." or found.startswith((b"../", b"/")):
        return None
    return encode_path(found)


def safe_path(raw: bytes) -> bool:
    """Tell whether a path's bytes are relative, without `.`, `..`, empty parts and NUL, and of bounded length."""
    if not 0 < len(raw) <= MAX_PATH_BYTES or b"\0" in raw:
        return False
    return not any(part in (b"", b".", b"..") or len(part) > MAX_NAME_BYTES for part in raw.split(b"/"))


def too_deep(raw: bytes) -> str | None:
    """Return the words for a path that lies in more than MAX_PATH_FOLDERS folders, or None for any other."""
    if raw.count(b"/") <= MAX_PATH_FOLDERS:
        return None
    return f"lies in more than {MAX_PATH_FOLDERS} folders, the limit for trees that travel"


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
