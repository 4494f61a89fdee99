"""How things read in messages: sizes, counts, lists, text of others. Pure text; knows nothing of the rest."""

from __future__ import annotations

from collections.abc import Sequence


def size_text(size_bytes: float) -> str:
    """Return a number of bytes as a person reads it: powers of 1024, one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an `s` unless there is one of it."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some_of(items: Sequence[str], most: int, *, separator: str = ", ") -> str:
    """Return the first `most` items in one text, and how many more there are, as in `a, b and 3 more`."""
    shown = separator.join(items[:most])
    if len(items) <= most:
        return shown
    return f"{shown}{' ' if separator == ', ' else separator}and {len(items) - most} more"


def printable(text: str, *, most: int) -> str:
    """Return text of others as one bounded line: a replacement mark for each character that a terminal obeys."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(character if character.isprintable() else "\ufffd" for character in cut)
