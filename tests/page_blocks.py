"""The shell commands of the documents, block by block, in the order in which a reader types them.

A comment above a block says what a test does with it: `<!-- not run: WHY -->` has it left out, and
`<!-- until interrupted -->` is a command that serves until then. All others are run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = {path.stem: path for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])}
SERVES = "until interrupted"
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^>]*) -->\n)?^```sh\n(?P<script>.*?)^```", re.MULTILINE | re.DOTALL)
_SET = re.compile(r"^(?:export )?([A-Z_]+)=|^read -r ([A-Z_]+)$", re.MULTILINE)
_USED = re.compile(r"\$\{?([A-Z_]+)")


@dataclass(frozen=True)
class Block:
    """A block of shell commands on a page, and what the comment above it says."""

    page: str
    line: int
    mark: str
    script: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def why_not_run(self) -> str | None:
        """Return the reason why no test runs it, or None where one does."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else None

    @property
    def sets(self) -> set[str]:
        """Return the variables that it gives the blocks after it: in a line for each."""
        return {first or second for first, second in _SET.findall(self.script)}

    @property
    def uses(self) -> set[str]:
        """Return the variables in capitals that it reads."""
        return set(_USED.findall(self.script))


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, such as `far-side`."""
    text = DOCUMENTS[page].read_text()
    return [
        Block(page, text.count("\n", 0, found.start("script")) + 1, found["mark"] or "", found["script"])
        for found in _BLOCK.finditer(text)
    ]


def pages_that_run() -> list[str]:
    """Return the pages of which at least one block is run."""
    return [page for page in DOCUMENTS if any(block.why_not_run is None for block in blocks(page))]
