"""What the interpolations of a config may take to parse and to resolve.

OmegaConf resolves a reference again wherever it occurs: `a9: ${a8}${a8}`, `a8: ${a7}${a7}` and so on double with each
line. Counts only; knows no resolver.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any

from omegaconf.base import Container, Node

# of a config with all that it inherits: OmegaConf parses each several times, in milliseconds. Nemotron's own have 62
MAX_INTERPOLATIONS = 500
# names, signs and blanks in them: each takes OmegaConf's parser 75 us, and a key of 10,000 parts half a minute.
# Nemotron's own have up to 39, and 990 in a config
MAX_INTERPOLATION_PARTS = 200
MAX_PARTS = 5_000
# within each other, as in `${oc.env:NAME,${other}}`: each level takes OmegaConf's parser several times the one before
MAX_NESTED_INTERPOLATIONS = 8
# what is resolved in all, in steps of 0.2 to 0.5 ms: each reference, each 5 names and signs of one, each 1,000
# characters of a result. Nemotron's own take up to 330
MAX_STEPS = 2_000
_PARTS_OF_STEP = 5
_CHARACTERS_OF_STEP = 1_000
_BRACES = re.compile(r"\$\{|[{}\[\]]")
_PART = re.compile(r"\w+|\W")
# with these, a brace within an interpolation may be a text
_QUOTES = re.compile(r"[\"'\\]")

Key = tuple[str | int, ...]


class TooMuchExpandedError(Exception):
    """Interpolations expand to more than is resolved; the message names the limit, `key` is where it is reached."""

    def __init__(self, reason: str, key: Key = ()) -> None:
        """Keep the key. OmegaConf makes such an error again, of its text alone."""
        super().__init__(reason)
        self.key = key


class InterpolationBudget:
    """What the interpolations of one config may take to parse, told before OmegaConf parses any of them."""

    def __init__(self) -> None:
        self._left = MAX_INTERPOLATIONS
        self._parts_left = MAX_PARTS

    def spend(self, text: str, key: Key) -> None:
        """Count the interpolations in a text, and what they are made of.

        Raises:
            TooMuchExpandedError: they are too many, too long, or nest deeper than MAX_NESTED_INTERPOLATIONS.
        """
        if "${" not in text:
            return
        for begin, end in _spans(text, key):
            parts = sum(1 for _ in islice(_PART.finditer(text, begin, end), MAX_INTERPOLATION_PARTS + 1))
            if parts > MAX_INTERPOLATION_PARTS:
                raise TooMuchExpandedError(
                    f"an interpolation of more than {MAX_INTERPOLATION_PARTS} names and signs, the limit", key
                )
            self._parts_left -= parts
        self._left -= text.count("${")
        for left, most, what in (
            (self._left, MAX_INTERPOLATIONS, "interpolations"),
            (self._parts_left, MAX_PARTS, "names and signs in interpolations"),
        ):
            if left < 0:
                raise TooMuchExpandedError(
                    f"more than {most} {what} in the config and what it inherits, the limit", key
                )


def _spans(text: str, key: Key) -> Iterator[tuple[int, int]]:
    """Yield where the interpolations that lie in no other one begin and end, at the latest.

    Raises:
        TooMuchExpandedError: they nest deeper than MAX_NESTED_INTERPOLATIONS.
    """
    begin = 0
    opened: list[str] = []
    for brace in _BRACES.finditer(text):
        if brace[0] in "}]":
            if not opened or (brace[0] == "]") != (opened[-1] == "["):
                continue
            opened.pop()
            if not opened:
                if _QUOTES.search(text, begin, brace.end()):
                    yield begin, text.rfind("}") + 1
                    return
                yield begin, brace.end()
        elif opened or brace[0] == "${":
            if not opened:
                begin = brace.start()
            opened.append(brace[0])
            # lists and mappings in lists count as well: they too take the parser ever longer
            if len(opened) > MAX_NESTED_INTERPOLATIONS:
                raise TooMuchExpandedError(
                    f"its interpolations nest deeper than {MAX_NESTED_INTERPOLATIONS} levels, the limit", key
                )
    if opened:
        yield begin, len(text)


class ResolutionMeter:
    """Counts what OmegaConf resolves. It resolves a reference again wherever that occurs, and caches nothing.

    Not told beforehand: resolvers such as `oc.select` and `oc.decode` make references of texts, so that what refers to
    what shows only as it is resolved. `key` is the value that is being resolved.
    """

    def __init__(self) -> None:
        self.key: Key = ()
        self._left = MAX_STEPS

    def expect_left(self) -> None:
        """Check that no limit was reached, which OmegaConf may have taken for an error of a value.

        Raises:
            TooMuchExpandedError: one was.
        """
        if self._left < 0:
            raise TooMuchExpandedError(
                f"its interpolations take more than {MAX_STEPS} steps to resolve, the limit", self.key
            )

    def charge(self, steps: int) -> None:
        """Take steps.

        Raises:
            TooMuchExpandedError: there are none left.
        """
        self._left -= steps
        self.expect_left()


@contextmanager
def metered() -> Iterator[ResolutionMeter]:
    """Count what OmegaConf resolves in this context."""
    meter = ResolutionMeter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


_meter: ContextVar[ResolutionMeter | None] = ContextVar("meter", default=None)
_resolve_parse_tree = Container.resolve_parse_tree


def _counted(self: Container, parse_tree: Any, node: Node, *arguments: Any, **keywords: Any) -> Any:
    meter = _meter.get()
    if meter is None:
        return _resolve_parse_tree(self, parse_tree, node, *arguments, **keywords)
    text = node._value()
    parts = sum(len(_PART.findall(text, *span)) for span in _spans(text, meter.key)) if isinstance(text, str) else 0
    meter.charge(1 + parts // _PARTS_OF_STEP)
    result = _resolve_parse_tree(self, parse_tree, node, *arguments, **keywords)
    value = result._value() if isinstance(result, Node) else result
    if isinstance(value, str):
        meter.charge(len(value) // _CHARACTERS_OF_STEP)
    return result


# OmegaConf (2.3, 2.4) has no hook where all that is resolved passes, and no limit of its own: 24 lines of
# `a9: ${oc.select:a8}${oc.select:a8}` take it hours. Outside of `metered` nothing changes.
Container.resolve_parse_tree = _counted  # type: ignore[method-assign]
