"""What the page for security officers has people type where there is no airferry, with a root of the test's own."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "security-officer.md"


def block_of_page(heading: str, root: str) -> str:
    """Return the first block of commands below a heading."""
    section = PAGE.read_text().partition(f"## {heading}\n")[2]
    found = re.search(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    script, times = re.subn(r"^root=\$ROOT$", f"root={root}", found[1], flags=re.MULTILINE)
    assert times == 1 and script.count("$BUNDLE") == 1, script
    return script.replace("$BUNDLE", "out")


def unpack_loader(root: str) -> str:
    """Return the commands that take the loader out of `out/bundle` and install it as `./airferry`."""
    return block_of_page("A machine that has nothing", root)


def check_folder(root: str) -> str:
    """Return the commands that check all of `out`."""
    return block_of_page("Verify it by hand", root)
