"""Commands in documents and in help can be pasted: what differs from site to site is a variable that is set first.

tests/integration/test_program_pages.py runs the blocks of every page.
"""

from __future__ import annotations

import re

import pytest

from airferry.cli.examples import EXAMPLE_VARIABLES, EXAMPLES, explain_variables
from page_blocks import DOCUMENTS, SERVES, Block, blocks, pages_that_run

EVERY_BLOCK = [block for page in DOCUMENTS for block in blocks(page)]
# what the reader's own site, bundle or CA is
THEIRS = re.compile(r"sha256:[0-9a-f]{8,}|registry\.example\.com|/etc/ssl/|HOST:PORT|\bDIGEST\b")
ASKS = re.compile(r"^read -r |airferry (?:login|site init|init)\b")
SETS = re.compile(r"^(?:export )?[A-Z_]+=.*\n", re.MULTILINE)


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=str)
def test_a_block_holds_nothing_that_is_the_readers(block: Block) -> None:
    assert THEIRS.findall(SETS.sub("", block.script)) == []


@pytest.mark.parametrize("page", DOCUMENTS)
def test_a_variable_is_set_before_it_is_used_and_only_once(page: str) -> None:
    known: set[str] = {"HOME", "USER"}
    for block in blocks(page):
        assert not block.sets & known, block
        known |= block.sets
        assert block.uses <= known, block


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=str)
def test_a_command_that_asks_is_the_last_of_its_block(block: Block) -> None:
    """In a line before that, it would take the next line that is pasted for an answer."""
    lines = block.script.replace("\\\n", " ").splitlines()
    assert not [line for line in lines[:-1] if ASKS.search(line) and "--password-stdin" not in line]


@pytest.mark.parametrize("block", [block for block in EVERY_BLOCK if block.mark], ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert block.mark == SERVES or block.why_not_run


def test_pages_for_operators_run() -> None:
    assert {"README", "far-side", "near-side", "security", "site", "troubleshooting"} <= set(pages_that_run())


def test_examples_say_what_their_variables_stand_for() -> None:
    for examples in EXAMPLES.values():
        lines = [line for line, _ in examples]
        used = {name for line in lines for name in re.findall(r"\$(\w+)", line)}
        assert used <= EXAMPLE_VARIABLES.keys() and len(explain_variables(lines)) == len(used)
        assert all(not re.search(r"registry\.example|sha256:", line) for line in lines)
    assert all(len(f"   ${name} is {meaning}.") <= 80 for name, meaning in EXAMPLE_VARIABLES.items())
