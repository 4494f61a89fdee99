"""What the interpolations of a config expand to, told before any of them is resolved.

OmegaConf resolves a reference again wherever it occurs: `a9: ${a8}${a8}`, `a8: ${a7}${a7}` and so on double with each
line. Counts only; knows no resolver.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# of a config with all that it inherits: OmegaConf parses each several times, in milliseconds
MAX_INTERPOLATIONS = 2_000
# within each other, as in `${oc.env:NAME,${other}}`: each level takes OmegaConf's parser several times the one before
MAX_NESTED_INTERPOLATIONS = 8
MAX_EXPANDED_REFERENCES = 10_000
MAX_EXPANDED_CHARACTERS = 16 * 1024 * 1024
# what a reference in a circle, or one whose key is itself an interpolation, may take: as deep as Python's stack goes
UNKNOWN_REFERENCES = 500
_REFERENCE = re.compile(r"\$\{\s*(\.*)([\w.\[\]-]+)\s*\}")
_BRACES = re.compile(r"\$\{|\}")
_DYNAMIC = re.compile(r"\$\{[^${}:]*\$\{")

Key = tuple[str | int, ...]


class TooMuchExpandedError(Exception):
    """Interpolations expand to more than is resolved; the message names the limit, `key` is where it is reached."""

    def __init__(self, reason: str, key: Key) -> None:
        """Keep the key."""
        super().__init__(reason)
        self.key = key


def count_interpolations(text: str, key: Key) -> int:
    """Return how many interpolations stand in a text.

    Raises:
        TooMuchExpandedError: they nest deeper than MAX_NESTED_INTERPOLATIONS.
    """
    count = depth = 0
    if "${" not in text:
        return 0
    for brace in _BRACES.findall(text):
        if brace == "}":
            depth = max(0, depth - 1)
            continue
        count += 1
        depth += 1
        if depth > MAX_NESTED_INTERPOLATIONS:
            raise TooMuchExpandedError(
                f"its interpolations nest deeper than {MAX_NESTED_INTERPOLATIONS} levels, the limit", key
            )
    return count


def expect_bounded(tree: Mapping[str, Any]) -> None:
    """Check what all interpolations in a tree of values expand to.

    Raises:
        TooMuchExpandedError: more than MAX_EXPANDED_REFERENCES, or MAX_EXPANDED_CHARACTERS.
    """
    counted = _Expansion(tree)
    references = characters = 0
    waiting: list[tuple[Key, Any]] = [((), tree)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            if "${" in value:
                more = counted.of(key, value)
                references += more[0]
                characters += more[1]
        else:
            waiting += _children(key, value)
        if references > MAX_EXPANDED_REFERENCES:
            raise TooMuchExpandedError(
                f"its interpolations expand to more than {MAX_EXPANDED_REFERENCES} references, the limit", key
            )
        if characters > MAX_EXPANDED_CHARACTERS:
            raise TooMuchExpandedError(
                f"its interpolations expand to more than {MAX_EXPANDED_CHARACTERS} characters, the limit", key
            )


def _children(key: Key, value: Any) -> list[tuple[Key, Any]]:
    if isinstance(value, dict):
        return [((*key, str(name)), item) for name, item in value.items()]
    if isinstance(value, list):
        return [((*key, number), item) for number, item in enumerate(value)]
    return []


class _Expansion:
    """References and characters of each value, counted once."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree
        self._known: dict[Key, tuple[int, int]] = {}

    def of(self, key: Key, text: str) -> tuple[int, int]:
        """Return how many references a text expands to, and how many characters."""
        # a stack of its own: a chain of references may be as long as the config
        waiting: list[tuple[Key, str]] = [(key, text)]
        while waiting:
            place, value = waiting[-1]
            if place in self._known and self._known[place][0] != UNKNOWN_REFERENCES:
                waiting.pop()
                continue
            targets = [self._find(place, *found) for found in _REFERENCE.findall(value)]
            texts = [(name, item) for name, item in targets if isinstance(item, str)]
            if place not in self._known:
                # what refers to itself meets this, and is as deep as can be
                self._known[place] = (UNKNOWN_REFERENCES, len(value))
                if missing := [one for one in texts if one[0] not in self._known]:
                    waiting += missing
                    continue
            references = value.count("${") + UNKNOWN_REFERENCES * len(_DYNAMIC.findall(value))
            references += sum(self._known[name][0] for name, _item in texts)
            references += sum(_size(item) for _name, item in targets if isinstance(item, dict | list))
            characters = len(value) + sum(self._known[name][1] for name, _item in texts)
            # beyond the limits the numbers tell no more, and would grow without a bound
            self._known[place] = (
                min(references, MAX_EXPANDED_REFERENCES + 1),
                min(characters, MAX_EXPANDED_CHARACTERS + 1),
            )
            waiting.pop()
        return self._known[key]

    def _find(self, key: Key, dots: str, path: str) -> tuple[Key, Any]:
        """Return the key that a reference leads to, and what is there; relative ones begin at their own mapping."""
        found: Key = key[: max(0, len(key) - len(dots))] if dots else ()
        value: Any = self._tree
        parts = [*found, *(part for part in re.split(r"[.\[\]]+", path) if part)]
        here: list[str | int] = []
        for part in parts:
            if isinstance(value, dict) and part in value:
                here.append(part)
                value = value[part]
            elif isinstance(value, list) and str(part).isdecimal() and len(str(part)) < 10 and int(part) < len(value):
                here.append(int(part))
                value = value[int(part)]
            else:
                return (), None
        return tuple(here), value


def _size(value: Any) -> int:
    """Return how many values there are in a tree, up to the limit."""
    count = 0
    waiting = [value]
    while waiting and count <= MAX_EXPANDED_REFERENCES:
        item = waiting.pop()
        count += 1
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    # a tree is looked up, not resolved: a tenth of what a reference takes
    return count // 10
