"""The man pages and shell completion follow the program."""

from __future__ import annotations

import os
import shlex
import tomllib
from pathlib import Path

import pytest

import man_page
from airferry.cli.app import run
from airferry.cli.examples import EXAMPLES
from cli_reference import commands, is_group, program

ROOT = Path(__file__).parents[2]


PAGES = ROOT / "docs" / "man"


def test_the_man_page_is_the_generated_one() -> None:
    """Set AIRFERRY_REGENERATE=1 to write them again."""
    pages = man_page.render()
    if os.environ.get("AIRFERRY_REGENERATE"):
        for path in PAGES.iterdir():
            path.unlink()
        for name, text in pages.items():
            (PAGES / name).write_text(text)
    assert {path.name: path.read_text() for path in PAGES.iterdir()} == pages


def test_the_man_pages_ship_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["shared-data"] == {"docs/man": "share/man/man1"}


def test_every_command_has_two_examples_that_it_understands() -> None:
    every = {path: command for path, command in commands(program()) if not is_group(command)}
    assert EXAMPLES.keys() == every.keys()
    for path, examples in EXAMPLES.items():
        assert len(examples) == 2
        for line, _ in examples:
            words = shlex.split(line)
            marks = [index for index, word in enumerate(words) if word in ("<", ">", "|")]
            words = words[: min(marks, default=len(words))]
            assert tuple(words[: len(path) + 1]) == ("airferry", *path)
            every[path].make_context(" ".join(path), words[len(path) + 1 :])
            assert "sha256:" not in line, "a root that is written out fails where it is pasted"


@pytest.mark.parametrize("path", [("load",), ("site", "init")])
def test_help_ends_with_examples_that_can_be_copied(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert run([*path, "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.strip().splitlines()]
    assert all(line in lines for line, _ in EXAMPLES[path])
    assert lines[-1] == f"Manual: man airferry-{'-'.join(path)}"
