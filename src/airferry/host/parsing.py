"""Text that others wrote, parsed: JSON, TOML, Python, URLs and numbers. The one owner of those parsers.

Each of them fails in several ways on text that was made for that: `json`, `tomllib` and `ast` with RecursionError on
deep nesting, `int` with a bare ValueError on more than 4,300 digits, `ast` with MemoryError, `urllib` on brackets that
are no IPv6 address. Here all of that is `Malformed`, which callers turn into an error that names the file or the host.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
import warnings
from itertools import islice
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

TOO_DEEP = "nested too deeply"
MAX_DIGITS = 18
# a value takes 60 to 70 bytes, whatever it takes in JSON: 12 MB of `{}` became 450 MiB
MAX_JSON_VALUES = 500_000
_NUMBER = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")
# `tomllib` compares each key with all that lead to it: a header of 20,000 parts over 20,000 keys, 200 KiB, took 165 s
MAX_TOML_KEY_PARTS = 32
# Nemotron's own uv.lock has 41,000 marks of values in 1.2 MB
MAX_TOML_VALUES = 4_000_000
_TOML_KEY = re.compile(
    # a key begins neither within a word, nor after a quote or a backslash: so none of a line's quotes is tried twice
    r"""(?<![\w.\-"'\\])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"""
    rf"{{{MAX_TOML_KEY_PARTS}}}"
)
# a name takes a kilobyte as a tree: 1 MB of `a,a,…` took 600 MiB. A test file of 282 KB, one of the largest, has 47,000
MAX_PYTHON_TOKENS = 200_000
# what is kept of trees that were parsed, for the next who asks
MAX_KEPT_PYTHON_BYTES = 4 * 1024 * 1024
_PYTHON_TOKEN = re.compile(rb"\w+|[^\w\s]")
_LONG_NUMBER = re.compile(r"0[xob][0-9A-Fa-f_]{16}|[0-9][0-9_]{18}")
# up to the next mark that is not in a text, or the end; possessive, so that nothing is kept to go back to
_JSON_MARK = re.compile(rb'[^",\[{]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?[^",\[{]*+)*+(?:[,\[{]|\Z)', re.DOTALL)
_AT_LINE = re.compile(r"at line (\d{1,9})")


class Malformed(ValueError):
    """Text is not in the language that it should be in. The message says why; `line`, from 1, where, if it is known."""

    def __init__(self, reason: str, *, line: int | None = None) -> None:
        """Say why, and on which line."""
        super().__init__(reason)
        self.line = line


# what Python warns of while it parses is about code of others, and would be printed in the middle of a command's output
_OTHERS = "<code of others>"
warnings.filterwarnings("ignore", module=re.escape(_OTHERS))
MAX_VERSION_DIGITS = 100
_LONG_VERSION_NUMBER = re.compile(rf"[0-9]{{{MAX_VERSION_DIGITS + 1}}}")


def parse_json(data: str | bytes | bytearray, *, max_values: int | None = MAX_JSON_VALUES) -> Any:
    """Return what a JSON document holds. `max_values` of None is for what this program wrote itself.

    Raises:
        Malformed: it is none, or has more values than `max_values`.
    """
    if max_values is not None:
        expect_few_values(data, max_values)
    return _loaded(data)


def parse_json_pairs(data: bytes) -> Any:
    """Return what a JSON document holds, each of its objects as the list of its pairs, in order and as they stand.

    Raises:
        Malformed: it is none, or has more values than MAX_JSON_VALUES.
    """
    expect_few_values(data, MAX_JSON_VALUES)
    return _loaded(data, object_pairs_hook=JsonPairs)


class JsonPairs(list[tuple[str, Any]]):
    """The pairs of a JSON object: a key that stands there twice is there twice."""


def expect_few_values(data: str | bytes | bytearray, most: int) -> None:
    """Check that a JSON document does not have too many values to be built in memory. Looks at its marks only.

    Raises:
        Malformed: it has more than `most`.
    """
    # cheap, and too high where texts have commas; only then are texts told from marks
    if len(data) <= most or _marks(data) < most:
        return
    plain = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if sum(1 for _ in islice(_JSON_MARK.finditer(plain), most)) == most:
        raise Malformed(f"more than {most} values, the limit for a JSON document")


def _marks(data: str | bytes | bytearray) -> int:
    if isinstance(data, str):
        return sum(map(data.count, ",[{"))
    return sum(map(data.count, (b",", b"[", b"{")))


def _loaded(data: str | bytes | bytearray, **hooks: Any) -> Any:
    try:
        return json.loads(data, **hooks)
    except RecursionError as error:
        raise Malformed(TOO_DEEP) from error
    except json.JSONDecodeError as error:
        raise Malformed(error.msg, line=error.lineno) from error
    except ValueError as error:
        # not UTF-8, or a number of thousands of digits
        raise Malformed(str(error)) from error


def parse_toml(data: str | bytes) -> dict[str, Any]:
    """Return what a TOML document holds.

    Raises:
        Malformed: it is none. The line is the last one where the parser names none.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8 text", line=error.object.count(b"\n", 0, error.start) + 1) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") >= MAX_TOML_KEY_PARTS and _TOML_KEY.search(line):
            raise Malformed(f"a key of more than {MAX_TOML_KEY_PARTS} parts, the limit", line=number)
    if sum(map(text.count, "=,[{")) > MAX_TOML_VALUES:
        raise Malformed(f"more than {MAX_TOML_VALUES} values, the limit", line=text.count("\n") + 1)
    document = _loaded_toml(text)
    if _LONG_NUMBER.search(text):
        _expect_int64(document, text)
    return document


def _expect_int64(document: dict[str, Any], text: str) -> None:
    """Refuse an integer that TOML does not have (v1.0.0, "Integer"): to write it out would take long, or fail."""
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            found = _LONG_NUMBER.search(text)
            line = text.count("\n", 0, found.start() if found else 0) + 1
            raise Malformed("an integer of more than 64 bits", line=line)


def _loaded_toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise Malformed(TOO_DEEP, line=text.count("\n") + 1) from error
    except ValueError as error:
        # `TOMLDecodeError.lineno` is there from Python 3.14 on
        found = _AT_LINE.search(str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise Malformed(str(error).partition(" (at ")[0], line=line) from error


def parse_python(source: str | bytes) -> ast.Module:
    """Return the tree of a Python file.

    Raises:
        Malformed: it is none, one that this Python cannot parse, or has more than MAX_PYTHON_TOKENS.
    """
    if len(source) > MAX_PYTHON_TOKENS:
        plain = source.encode("utf-8", "replace") if isinstance(source, str) else source
        tokens = sum(1 for _ in islice(_PYTHON_TOKEN.finditer(plain), MAX_PYTHON_TOKENS + 1))
        if tokens > MAX_PYTHON_TOKENS:
            raise Malformed(f"more than {MAX_PYTHON_TOKENS} names and signs, the limit for a Python file")
    try:
        return ast.parse(source, _OTHERS)
    except SyntaxError as error:
        raise Malformed(error.msg or "invalid syntax", line=error.lineno) from error
    except (RecursionError, MemoryError) as error:
        raise Malformed(TOO_DEEP) from error
    except ValueError as error:
        # null bytes, or surrogates
        raise Malformed(str(error)) from error


class PythonTrees:
    """Trees of Python sources, each parsed once. Whoever takes one must not change it."""

    def __init__(self) -> None:
        """Hold none yet."""
        self._trees: dict[bytes, ast.Module] = {}
        self._left_bytes = MAX_KEPT_PYTHON_BYTES

    def parse(self, source: bytes) -> ast.Module:
        """Return the tree of a source.

        Raises:
            Malformed: see `parse_python`.
        """
        # by its bytes and not by its path: what was changed since is parsed again
        tree = self._trees.get(source)
        if tree is None:
            tree = parse_python(source)
            if len(source) <= self._left_bytes:
                self._left_bytes -= len(source)
                self._trees[source] = tree
        return tree


def parse_literal(source: str | ast.AST) -> Any:
    """Return the value of a Python literal.

    Raises:
        Malformed: it is none.
    """
    try:
        return ast.literal_eval(
            source if isinstance(source, ast.AST) else ast.parse(source.lstrip(" \t"), _OTHERS, "eval")
        )
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Malformed(f"not a literal: {error}") from error


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL; its port, if any, is a number.

    Raises:
        Malformed: it is none.
    """
    try:
        parts = urlsplit(url)
        # read as it is asked for only, and refused only then
        _ = parts.port
    except ValueError as error:
        raise Malformed(str(error)) from error
    return parts


def join_url(base: str, url: str) -> str:
    """Return the URL that a reference in a document at `base` leads to.

    Raises:
        Malformed: it is not a URL.
    """
    try:
        joined = urljoin(base, url)
    except ValueError as error:
        raise Malformed(str(error)) from error
    split_url(joined)
    return joined


def url_host(url: str) -> str:
    """Return host and port of a URL, without user and password; empty where it has none, or is not a URL."""
    try:
        return split_url(url).netloc.rpartition("@")[2]
    except Malformed:
        return ""


def url_path(url: str) -> str:
    """Return the path of a URL; of text that is not a URL, what is before its query."""
    try:
        return split_url(url).path
    except Malformed:
        return re.split(r"[?#]", url, maxsplit=1)[0]


def parse_count(text: str) -> int | None:
    """Return a whole number, written in at most 18 digits, or None for any other text."""
    return int(text) if _NUMBER.fullmatch(text) else None


def short_numbers(text: str) -> str:
    """Return what is to become a version, a specifier or a requirement of packages, if its numbers are of a size.

    `packaging` takes it, and raises a bare ValueError later, where versions are compared, sorted or hashed: Python
    makes no integer of more than 4,300 digits.

    Raises:
        Malformed: a number has more digits.
    """
    if _LONG_VERSION_NUMBER.search(text):
        raise Malformed(f"a number has more than {MAX_VERSION_DIGITS} digits")
    return text
