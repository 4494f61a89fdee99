"""How things read in messages: sizes, counts, lists, text of others. Pure text; knows nothing of the rest."""

from __future__ import annotations

import difflib
import heapq
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePath

MAX_NEAR_CHARACTERS = 64
MAX_NEAR_NAMES = 500

# What a terminal obeys, or what makes a text read as another one: controls, separators of lines and paragraphs, marks
# of direction and their overrides, characters that do not show, halves of surrogates. Not `str.isprintable`, which asks
# the Unicode tables of this Python: each version of it would take other texts. Line feed and tab are left to callers;
# the joiners U+200C and U+200D, which Persian and emoji need, are harmless.
_OBEYED = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    r"\ufff9-\ufffb\U000e0000-\U000e007f"
)
_IN_TEXT = re.compile(f"[{_OBEYED}]")
_IN_LINE = re.compile(f"[\t\n{_OBEYED}]")
# below this, what is left of a reference or a URL says nothing
SHORTEST_WORD = 20
_LONG_DIGEST = re.compile(r"(sha(?:256|384|512):[0-9a-f]{6})[0-9a-f]{20,}([0-9a-f]{6})")


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


def near_names(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to `most` of the known names that look like a name, the nearest first; none for a very long one.

    Others may have chosen the names, and may know a million: no more are compared than take half a second.
    """
    if len(name) > MAX_NEAR_CHARACTERS:
        return []
    short = (other for other in known if len(other) <= MAX_NEAR_CHARACTERS)
    # difflib cannot be stopped, and takes a millisecond for two names made for it
    likely = heapq.nsmallest(
        MAX_NEAR_NAMES, short, key=lambda other: (other[:1] != name[:1], abs(len(other) - len(name)))
    )
    return difflib.get_close_matches(name, likely, n=most, cutoff=cutoff)


def printable(text: str, *, most: int) -> str:
    """Return text of others as one bounded line: a replacement mark for each character that a terminal obeys."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return _IN_LINE.sub("\ufffd", cut)


def obeyed(text: str, *, lines: bool = False) -> str | None:
    """Return the first character of a text that a terminal obeys, as in `U+001B`, or None if there is none.

    With `lines`, the text may have several lines, and tabs.
    """
    found = (_IN_TEXT if lines else _IN_LINE).search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def visible(text: str) -> str:
    """Return text with each character that a terminal obeys, but for line feed and tab, escaped as JSON escapes it.

    What JSON writes stays JSON, and means the same.
    """
    return _IN_TEXT.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """Return text as `visible` does, on one line."""
    return _IN_LINE.sub(_escaped, text)


def comment_line(text: str) -> str:
    """Return a text as a comment of YAML, TOML, a shell or a `.conf`, which ends with its line: `# …`."""
    return f"# {on_one_line(text)}"


def shell_word(word: object) -> str:
    """Return a word of a command line that people paste: on one line, and the same word once a shell has read it.

    What a terminal obeys, and bytes that are not UTF-8, are written as bash, zsh and POSIX.1-2024 read them in `$'…'`:
    in `'…'` they would be escaped as text when they are shown, and then name another file. A path is never an option.
    """
    text = str(word)
    if isinstance(word, PurePath) and text.startswith("-"):
        text = f"./{text}"
    if _IN_LINE.search(text) is None:
        return shlex.quote(text)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_IN_LINE.sub(_as_bytes, quoted)}'"


def shell_line(words: Iterable[object]) -> str:
    """Return a command line that people paste, see `shell_word`."""
    return " ".join(map(shell_word, words))


def _as_bytes(found: re.Match[str]) -> str:
    if (short := {"\n": "\\n", "\t": "\\t"}.get(found[0])) is not None:
        return short
    # a byte of a file's name that is not UTF-8, else half of a surrogate
    errors = "surrogateescape" if "\udc80" <= found[0] <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode("utf-8", errors))


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))


def shortened(text: str, columns: int) -> str:
    """Return text of at most `columns` if cutting digests, then the longest words, in their middle achieves that."""
    if len(text) <= columns:
        return text
    words = _LONG_DIGEST.sub(r"\1…\2", text).split(" ")
    while (over := len(" ".join(words)) - columns) > 0:
        longest = max(range(len(words)), key=lambda index: len(words[index]))
        keep = max(SHORTEST_WORD, len(words[longest]) - over)
        if keep >= len(words[longest]):
            break
        words[longest] = cut_middle(words[longest], keep)
    return " ".join(words)


def cut_middle(text: str, columns: int) -> str:
    """Return text without its middle: its end tells images of one repository apart, its start says whose they are."""
    if len(text) <= columns:
        return text
    head = columns // 2
    tail = columns - head - 1
    return f"{text[:head]}…{text[-tail:] if tail > 0 else ''}"
