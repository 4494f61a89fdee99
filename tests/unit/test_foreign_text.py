"""Text of others has one owner for each language; what no parser takes is `Malformed`, whatever the parser raises."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airferry.errors import ConfigurationError, UsageError
from airferry.host import clock
from airferry.host.parsing import (
    Malformed,
    join_url,
    parse_count,
    parse_json,
    parse_literal,
    parse_python,
    parse_toml,
    split_url,
    url_host,
    url_path,
)
from airferry.oci.reference import parse_reference
from source_trees import nodes

# these run where airferry is not: in images, in confined processes, and as the boot of a process
ALONE = {"near/probe/script.py", "near/rehearse/hook.py", "host/confined.py", "engine/inside.py"}
OWNERS = {
    "json.loads": {"host/parsing.py"},
    "json.load": set(),
    "tomllib.loads": {"host/parsing.py"},
    "tomllib.load": set(),
    "ast.parse": {"host/parsing.py"},
    "ast.literal_eval": {"host/parsing.py"},
    "urlsplit": {"host/parsing.py"},
    "urlparse": set(),
    "urljoin": {"host/parsing.py"},
    "Path.home": set(),
    "*.expanduser": {"host/files.py"},
    "configparser.ConfigParser": set(),
    "zipfile.ZipFile": {
        "near/wheels/pack.py",
        "near/wheels/compile.py",
        "near/assemble/wheels.py",
        # these write only
        "near/wheels/project.py",
        "near/wheels/store.py",
        "near/carry/loader.py",
    },
    "tarfile.open": {"near/wheels/compile.py", "near/bases/userland.py"},
    "lzma.open": {"near/bases/userland.py"},
    "gzip.open": {"near/bases/userland.py"},
}
LAST_WORDS = {name.rpartition(".")[2] for name in [*OWNERS, "*.resolve"]}
NASTY = [
    "",
    "\0",
    "\ud800",
    "[" * 100_000,
    "(" * 100_000,
    '{"a":' * 50_000,
    "-" * 100_000 + "1",
    "1" * 5_000,
    "a = " + "1" * 5_000,
    "a = " + "[" * 50_000,
    "a = 2024-99-99",
    "[" + "a." * 20_000 + "a]",
    "http://" + "a" * 70_000,
]
NASTY_URLS = ["http://[::1", "http://[::]]:80/", "http://h:port/", "http://h:99999/", "//\u2100.example/"]
# of what some of them are a text that is right
RIGHT = {parse_toml: [""], parse_python: ["", "a = 2024-99-99"]}


@pytest.mark.parametrize("parse", [parse_json, parse_toml, parse_python, parse_literal])
@pytest.mark.parametrize("text", [*NASTY, *NASTY_URLS], ids=range(len(NASTY) + len(NASTY_URLS)))
def test_text_that_was_made_to_fail_is_malformed(parse: Callable[[str], Any], text: str) -> None:
    if text in RIGHT.get(parse, []):
        parse(text)
        return
    with pytest.raises(Malformed) as caught:
        parse(text)
    assert 0 < len(str(caught.value)) < 1_000


@pytest.mark.parametrize("parse", [split_url, lambda url: join_url("http://h/v2/", url)])
def test_a_url_that_was_made_to_fail_is_malformed(parse: Callable[[str], Any]) -> None:
    for url in NASTY:
        parse(url)
    for url in NASTY_URLS:
        with pytest.raises(Malformed) as caught:
            parse(url)
        assert 0 < len(str(caught.value)) < 1_000


@given(st.text() | st.binary())
def test_no_text_makes_a_parser_raise_anything_else(data: str | bytes) -> None:
    for parse in (parse_json, parse_toml, parse_python):
        try:
            parse(data)
        except Malformed:
            continue


@given(st.text(alphabet=st.sampled_from("htps:/[]@%?#.0aZ\u2100\\ ")), st.text(alphabet="./[]:@?#a0"))
@example("http://[", "//[")
def test_no_url_raises_anything_else(base: str, url: str) -> None:
    assert isinstance(url_host(url), str) and isinstance(url_path(url), str)
    try:
        join_url(base, url)
    except Malformed:
        return


def test_a_malformed_text_names_its_line() -> None:
    for parse, text in (
        (parse_json, b'{\n"a": ?}'),
        (parse_toml, b"a = 1\nb = ?"),
        (parse_toml, b"a = 1\nb = '\xff'"),
        (parse_python, b"a = 1\nb ="),
    ):
        with pytest.raises(Malformed) as caught:
            parse(text)  # type: ignore[operator]
        assert caught.value.line == 2


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("18", 18), ("9" * 18, 10**18 - 1), ("9" * 19, None), ("9" * 9_999, None)]
)
def test_a_number_has_a_bound(text: str, number: int | None) -> None:
    assert parse_count(text) == number
    for other in ("", " 1", "-1", "+1", "1_0", "١", "²", "1.0"):
        assert parse_count(other) is None


@pytest.mark.parametrize("name", ["[::::]/a", "[1.2.3.4]/a", "[1:2]/a", "localhost:65536/a", "localhost:99999/a"])
def test_a_host_that_no_url_can_hold_is_no_registry(name: str) -> None:
    with pytest.raises(UsageError, match="is not a registry host") as caught:
        parse_reference(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["-1", "soon", "1" * 5_000, "253402300800", "²", "1.5"])
def test_an_epoch_that_no_date_can_show_is_an_error_of_the_configuration(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(ConfigurationError, match="SOURCE_DATE_EPOCH"):
        clock.source_date_epoch_s()


def test_the_last_epoch_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(clock.LAST_EPOCH_S))
    assert clock.rfc3339(clock.source_date_epoch_s()) == "9999-12-31T23:59:59Z"


def test_each_parser_of_foreign_text_has_its_owner() -> None:
    """Who needs one takes it from `host.parsing`, `host.files` or, for archives, wraps it in `archive_faults`."""
    found = []
    for place, node in nodes(ast.Call):
        if place in ALONE or place.startswith("example/"):
            continue
        match node.func:
            case ast.Attribute(attr=attribute):
                called, short = ast.unparse(node.func) if attribute in LAST_WORDS else "", f"*.{attribute}"
            case ast.Name(id=called):
                short = called
            case _:
                continue
        for name in (called, short):
            if name in OWNERS and place not in OWNERS[name]:
                found.append(f"{place}:{node.lineno}: {called}")
        # without arguments it is that of a path: ours take what they resolve
        if short == "*.resolve" and not node.args and place not in ("host/files.py", "host/confinement.py"):
            found.append(f"{place}:{node.lineno}: {called}")
    assert found == []
