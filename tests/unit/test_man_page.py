"""The man page and shell completion follow the program."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

import man_page
from airferry.host import process

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "airferry.1"


def test_the_man_page_is_the_generated_one() -> None:
    """Set AIRFERRY_REGENERATE=1 to write it again."""
    if os.environ.get("AIRFERRY_REGENERATE"):
        PAGE.write_text(man_page.render())
    assert PAGE.read_text() == man_page.render()


def test_the_man_page_ships_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["shared-data"] == {"docs/airferry.1": "share/man/man1/airferry.1"}


def complete(*words: str) -> list[str]:
    """Ask the program as bash does what the last word can become."""
    argv = [sys.executable, "-c", "import sys; sys.argv[0] = 'airferry'; from airferry.cli import main; main()"]
    environment = {
        "_AIRFERRY_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["airferry", *words]),
        "COMP_CWORD": str(len(words)),
        "PYTHONPATH": str(ROOT / "src"),
    }
    return process.run(argv, timeout_s=60, environment=environment).text.split()


def test_commands_complete() -> None:
    assert complete("re") == ["rehearse", "report", "registry"]


def test_the_shell_gets_a_script_that_it_understands() -> None:
    argv = [sys.executable, "-c", "import sys; sys.argv[0] = 'airferry'; from airferry.cli import main; main()"]
    script = process.run(argv, timeout_s=60, environment={"_AIRFERRY_COMPLETE": "source_bash"}).text
    assert "complete" in script and "airferry" in script
    assert process.run(["bash", "-n"], timeout_s=10, streams=process.Streams(stdin=script.encode())).returncode == 0
