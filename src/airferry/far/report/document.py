"""The parts that a report is made of: sections, tables, paragraphs and pictures. No layout, and nothing of a bundle.

What others wrote becomes a cell through `cell`, `code` or `whole`, which bound it and replace unprintable characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from airferry.wording import printable

MAX_CELL_CHARACTERS = 600
NO_ENTRY = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell.

    `code` marks what is copied letter by letter: references, commands. `whole` marks what is compared letter by letter
    as well, digests above all: a column of such cells becomes lines below the rows, as wide as the table.
    """

    text: str
    code: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table; each row has as many cells as there are columns, and its first cell names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def whole_columns(self) -> tuple[int, ...]:
        """The numbers of the columns whose cells get a line below their row."""
        return tuple(number for number in range(1, len(self.columns)) if all(row[number].whole for row in self.rows))


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A few sentences, or a command to type (`code`)."""

    text: str
    code: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """The layers of one image and platform, bottom first: label, bytes, and the number that a shared layer has."""

    name: str
    layers: tuple[tuple[str, int, int | None], ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all its layers."""
        return sum(size for _digest, size, _shared in self.layers)


@dataclass(frozen=True, slots=True)
class Picture:
    """Layers to scale. `description` says in words what is to be seen."""

    title: str
    description: str
    bars: tuple[Bar, ...]


Block = Table | Paragraph | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The whole document."""

    title: str
    root: str
    sections: tuple[Section, ...] = field(default_factory=tuple)


def shown(text: str) -> str:
    """Return text that others wrote so that it shows as one line and hides nothing: no controls, a bounded length."""
    return printable(text, most=MAX_CELL_CHARACTERS)


def cell(value: object) -> Cell:
    """Return a value as a cell of words and numbers."""
    return Cell(shown(str(value)) if value not in (None, "") else NO_ENTRY)


def code(value: object) -> Cell:
    """Return a value as a cell that is copied letter by letter."""
    return Cell(shown(str(value)), code=True) if value not in (None, "") else Cell(NO_ENTRY)


def whole(value: object) -> Cell:
    """Return a value as a cell that is compared letter by letter, and so gets the full width."""
    return Cell(shown(str(value)), code=True, whole=True) if value not in (None, "") else Cell(NO_ENTRY, whole=True)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[Block]:
    """Return a table, or a sentence that says that it would be empty."""
    found = tuple(tuple(row) for row in rows)
    return [Table(caption, tuple(columns), found)] if found else [Paragraph(f"{caption}: none.")]
