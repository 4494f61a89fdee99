"""The one writer of YAML, and the reader of what it wrote."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from airferry.errors import IntegrityError
from airferry.host.yaml import load_yaml, render_line, render_yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans(), st.sampled_from([20, 80, 120, 1000]))
def test_what_is_written_is_read_back(value: Any, unicode: bool, width: int) -> None:
    text = render_yaml(value, width=width, unicode=unicode)
    assert load_yaml(text.encode(), "it") == value == yaml.safe_load(text)
    assert unicode or text.isascii()
    assert yaml.safe_load(f"key: {render_line(value)}") == {"key": value}
    assert len(render_line(value).splitlines()) == 1


@pytest.mark.parametrize("text", ["2]\x85*/\xe9]4", "a\u2028b", "\u2029", "tab\tand\r\n", "\ufeffx", "\U0001f600"])
@pytest.mark.parametrize("unicode", [True, False])
def test_line_breaks_of_yaml_stay_as_they_are(text: str, unicode: bool) -> None:
    written = render_yaml({text: [text]}, unicode=unicode)
    assert load_yaml(written.encode(), "it") == {text: [text]} == yaml.safe_load(written)


def test_the_text_is_that_of_the_formats() -> None:
    document = {"b": {"x": "\xe9", "long": "word " * 30}, "a": ["yes", "1", 1.5, None, True, "2026-01-01", {}, []]}
    written = render_yaml(document)
    assert written.startswith('b:\n  x: "\\xE9"\n  long: \'word word ')
    assert written.endswith("\na:\n- 'yes'\n- '1'\n- 1.5\n- null\n- true\n- '2026-01-01'\n- {}\n- []\n")
    assert written == yaml.safe_dump(document, sort_keys=False, width=120), "as PyYAML's own emitter writes it"
    assert render_yaml({"b": "\xe9", "a": 1}, sort_keys=True, unicode=True) == "a: 1\nb: \xe9\n"
    assert render_line({"b": ["\xe9"], "a": "x: y"}) == """{a: 'x: y', b: ["\\xE9"]}"""
    assert (render_line("x"), render_line(1)) == ("x", "1")


def test_aliases_are_read_only_where_they_are_allowed() -> None:
    text = b"a: &x [1, {b: &y 2}]\nc: *x\nd: [*y, *x]\n"
    with pytest.raises(IntegrityError, match="it has a YAML alias, which airferry never writes"):
        load_yaml(text, "it")
    assert load_yaml(text, "it", aliases=True) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [*x]", "alias `x` of nothing before it"),
        ("a: *x", "not valid YAML|alias `x` of nothing before it"),
        ("? &x [1]\n: 2", "a list as a key"),
        ("a: &x 1\n*x : &y [2]\n*y : 3", "a list as a key"),
        ("\n".join(["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]), "behind YAML"),
    ],
)
def test_aliases_are_bounded(text: str, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        load_yaml(text.encode(), "it", aliases=True)


def test_the_limit_of_bytes_is_the_callers() -> None:
    assert load_yaml(b"[1]", "it", limit_bytes=3) == [1]
    with pytest.raises(IntegrityError, match="it has 4 bytes, more than the limit of 3"):
        load_yaml(b"[10]", "it", limit_bytes=3)
