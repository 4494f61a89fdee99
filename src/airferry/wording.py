"""How numbers read: sizes, and counts of things. Pure text; knows nothing of the rest."""

from __future__ import annotations


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
