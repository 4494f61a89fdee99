"""Names of files are bytes and texts are UTF-8, whatever the locale and Python's settings for it are."""

from __future__ import annotations

import ast
import os
import sys
import tarfile
from pathlib import Path

import pytest
from test_near_userland import EPOCH_S, deb

from airferry import api, cli
from airferry.errors import HostError
from airferry.host import process
from airferry.near.bases.userland import compose
from source_trees import nodes

NAMES = ("sm\u00f8r.txt", os.fsdecode(b"na\xffme"))


def test_a_bootstrapped_base_has_one_digest_in_every_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deb(tmp_path, "one", {"usr": None, f"usr/{NAMES[0]}": b"1", "usr/link": NAMES[0]})
    expected = b"".join(compose([path], epoch_s=EPOCH_S))
    # `tarfile` takes the encoding of the locale
    monkeypatch.setattr(tarfile.TarFile, "encoding", "iso8859-9")
    assert b"".join(compose([path], epoch_s=EPOCH_S)) == expected


def test_a_restart_that_does_not_help_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def restart(_program: str, words: list[bytes]) -> None:
        seen.append(words[:3])

    seen: list[list[bytes]] = []
    monkeypatch.setattr(os, "execv", restart)
    for options, program, restarts in (
        (["-X", "utf8"], "airferry", 0),
        (["-X", "utf8=0"], "airferry", 1),
        (["-"], "-", 0),
    ):
        seen.clear()
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, *options])
        monkeypatch.setattr(sys, "argv", [program])
        cli._restart_in_utf8_mode()
        assert seen == [[os.fsencode(sys.executable), b"-X", b"utf8"]] * restarts


def test_a_program_that_uses_the_api_in_another_encoding_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(api), "plan", raising=False)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-9")
    with pytest.raises(HostError, match="`iso8859-9`") as caught:
        _ = api.plan
    assert caught.value.hint == "set `PYTHONUTF8=1`, or start Python with `-X utf8`"


def test_children_have_one_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG", "LANGUAGE", "LOCPATH", "PYTHONUTF8", "PYTHONIOENCODING"):
        monkeypatch.setenv(name, "tr_TR.ISO-8859-9")
    monkeypatch.setenv("PATH", "/bin")
    environment = process.child_environment()
    assert {name for name in environment if "tr_TR" in environment[name]} == set()
    assert environment["LC_ALL"] == "C.UTF-8"


def is_text(mode: ast.expr | None) -> bool:
    return mode is None or (isinstance(mode, ast.Constant) and "b" not in str(mode.value))


def takes_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text, or names in a tar, without naming the encoding."""
    words = {word.arg: word.value for word in call.keywords}
    first, second = [*call.args, None, None][:2]
    if "encoding" in words:
        return False
    match call.func:
        case ast.Attribute(attr="read_text"):
            # the view of an image's files takes a path, and reads UTF-8
            return first is None
        case ast.Attribute(value=owner, attr="write_text"):
            return ast.unparse(owner) != "files"
        case ast.Name(id="open") | ast.Attribute(attr="fdopen"):
            return is_text(second or words.get("mode"))
        case ast.Attribute(value=ast.Name(id="tarfile"), attr="open"):
            return True
        case ast.Attribute(value=owner, attr="open") if not words.keys() - {"mode", "errors", "buffering", "newline"}:
            # a blob that a source offers is no file
            return ast.unparse(owner) != "offer" and isinstance(first, ast.Constant | None) and is_text(first)
    return False


def test_whatever_reads_or_writes_text_names_its_encoding() -> None:
    assert [f"{place}:{call.lineno}" for place, call in nodes(ast.Call) if takes_the_locale(call)] == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open(path)", True),
        ("open(path, 'a')", True),
        ("open(path, 'rb')", False),
        ("open(path, 'a', encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('w')", True),
        ("path.open('rb')", False),
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.write_text(text)", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("files.write_text(path, text)", False),
        ("os.fdopen(0)", True),
        ("os.fdopen(0, 'rb')", False),
        ("tarfile.open(path)", True),
    ],
)
def test_calls_that_take_the_locale_are_found(code: str, expected: bool) -> None:
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call) and takes_the_locale(call) is expected
