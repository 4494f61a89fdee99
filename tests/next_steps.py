"""The command lines that a command ends with, below `Next:`, as an operator would paste them."""

from __future__ import annotations

import shlex


def next_commands(stderr: str) -> list[list[str]]:
    """Return the words of each command line in the block, without `airferry`; none where there is no block."""
    lines = iter(stderr.splitlines())
    for line in lines:
        if line.startswith("Next") and line.endswith(":"):
            break
    block = []
    for line in lines:
        if not line.startswith("  "):
            break
        block.append(shlex.split(line, comments=True))
    return [words[1:] if words[0] == "airferry" else words for words in block if words]
