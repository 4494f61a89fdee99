"""The one writer of YAML, and the reader of what it wrote."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from airferry.config.document import parse_document
from airferry.errors import AirferryError, ConfigurationError, IntegrityError
from airferry.host.yaml import MAX_DOCUMENT_VALUES, load_yaml, render_line, render_yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans(), st.sampled_from([20, 80, 120, 1000]))
@example({"\n": ["\r\n", {"a\nb": None}]}, False, 20)
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


def of_people(text: str) -> Any:
    return parse_document(text.encode(), Path("airgap.yaml")).value


def of_steps(text: str) -> Any:
    return parse_document(text.encode(), Path("default.yaml"), as_steps_do=True).value


def of_ours(text: str) -> Any:
    return load_yaml(text.encode(), "it", limit_values=50_000)


# fmt: off
SCALARS = [
    "12:00:00", "1:30.5", "190:20:30", "0:0", "1:99", "1e-5", "1e5", "-1e5", "12e03",
    "1.e3", "1.5E+3", ".5", "-.5", "._1", ".e5", "-1_0.5_0", "1__2", "1_000",
    "_1", "0x1F", "017", "09", "0o17", "0b11", "+12", "0", "0_",
    ".inf", "-.INF", ".NaN", "yes", "off", "~", "null", "2026-01-01", "2001-99-99",
    "2001-12-14t21:59:43.10-05:00", "1e5_0", "a", "1:a",
]
# fmt: on


@pytest.mark.parametrize("text", SCALARS)
def test_plain_scalars_in_step_configs_are_what_the_steps_read(text: str) -> None:
    expected = OmegaConf.to_container(OmegaConf.create(f"a: {text}"))
    assert repr(of_steps(f"a: {text}")) == repr(expected)


@pytest.mark.parametrize("read", [of_people, of_ours])
@pytest.mark.parametrize("text", ["12:00:00", "1:30.5", "2026-01-01", "2001-99-99", "1:" * 100_000 + "1", "1e-5"])
def test_neither_base_60_nor_dates_are_known_where_airferry_alone_reads(text: str, read: Callable[[str], Any]) -> None:
    assert read(f"a: {text}") == {"a": text}


@pytest.mark.parametrize("text", [text for text in SCALARS if text != "~"])
def test_a_text_that_any_reader_takes_for_something_else_is_written_quoted(text: str) -> None:
    written = render_yaml({"a": text})
    assert of_steps(written) == of_people(written) == of_ours(written) == {"a": text}


SUPERLINEAR = {
    "base 60": "a: !!int " + "1:" * 50_000 + "1",
    "directives": "".join(f"%TAG !a{number}! x\n" for number in range(60_000)) + "---\na: 1\n",
    "merge keys": "a: &a {"
    + ",".join(f"k{number}: 1" for number in range(1_000))
    + "}\nb:\n  <<: ["
    + ",".join(["*a"] * 20_000)
    + "]\n",
    "digits": "a: " + "9" * 400_000,
    "hexadecimal": "a: 0x" + "f" * 400_000,
    "documents": "---\n" * 110_000,
    "empty mappings": "a: [" + "{}," * 210_000 + "]",
    "items": "a: [" + "a," * 210_000 + "]",
}


@pytest.mark.parametrize("read", [of_people, of_steps, of_ours])
@pytest.mark.parametrize("name", SUPERLINEAR)
def test_what_would_take_long_is_refused_by_a_limit_that_is_named(name: str, read: Callable[[str], Any]) -> None:
    began = time.process_time()
    with pytest.raises(AirferryError, match=r"\d{3} |YAML tag|alias") as caught:
        read(SUPERLINEAR[name])
    assert isinstance(caught.value, ConfigurationError | IntegrityError)
    # seconds of this process alone, far above what is needed and far below what it took: up to half a minute
    assert time.process_time() - began < 3


def test_a_document_of_as_many_values_as_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_DOCUMENT_VALUES >= 200_000
    # the document itself counts once, the list once
    assert len(load_yaml(b"[1,1,1]", "it", limit_values=5)) == 3  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="more than 4 keys and values"):
        load_yaml(b"[1,1,1]", "it", limit_values=4)
