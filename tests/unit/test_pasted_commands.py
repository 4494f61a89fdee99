"""Command lines that people paste: right for a shell, and shown as they are."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.cli.findings import _is_override
from airferry.wording import obeyed, shell_line, shell_word, visible
from source_trees import nodes

# these quote for what runs the line itself, for an option of another program, or read lines
QUOTE_FOR_PROGRAMS = {
    "wording.py",
    "cli/completion.py",
    "cli/findings.py",
    "config/submit.py",
    "host/process.py",
    "jobs/placing.py",
    "near/assemble/launcher.py",
    "near/bases/debian.py",
    "plan/code/commands.py",
    "plan/code/fetch_commands.py",
    "plan/code/values.py",
}


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("usb stick", "'usb stick'"),
        ("x; touch pwned #", "'x; touch pwned #'"),
        ("a\nb\tc", r"$'a\nb\tc'"),
        ("it's\x1b[2J \\", r"$'it\'s\x1b[2J \\'"),
        ("x\u202ey", r"$'x\xe2\x80\xaey'"),
        ("x\udcffy", r"$'x\xffy'"),
        ("x\ud800y", r"$'x\xed\xa0\x80y'"),
        ("", "''"),
        ("-x", "-x"),
        (Path("-x"), "./-x"),
        (Path("/-x"), "/-x"),
    ],
)
def test_a_word_is_written_for_a_shell(word: object, line: str) -> None:
    assert shell_word(word) == line


@given(st.lists(st.text(st.characters(codec=None), max_size=8), min_size=1, max_size=3))
def test_a_command_line_is_shown_as_it_is(words: list[str]) -> None:
    line = shell_line(words)
    assert visible(line) == line and obeyed(line) is None
    if all(obeyed(word) is None for word in words):
        assert shlex.split(line) == words


def test_an_override_stays_one_whatever_its_value_is() -> None:
    assert _is_override(shell_word("run.startup=a\u202eb c"))
    assert not _is_override("set `a=b` and c")


def test_one_function_quotes_what_people_paste() -> None:
    """`shlex.quote` makes words that are shown as others where a terminal would obey a part of them."""
    quoting = {
        place
        for place, node in nodes(ast.Attribute)
        if node.attr in ("quote", "join") and isinstance(node.value, ast.Name) and node.value.id == "shlex"
    }
    assert quoting <= QUOTE_FOR_PROGRAMS
