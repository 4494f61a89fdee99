"""A report as plain text: the same content as the HTML, for printers, terminals and `diff`."""

from __future__ import annotations

import textwrap
import unicodedata

from airferry.far.report.document import NO_ENTRY, Bar, Block, Paragraph, Picture, Report, Table
from airferry.wording import size_text

# a terminal of 80 columns shows it, and a sheet of A4 in 10 points takes it
LINE_WIDTH = 79
BAR_CHARACTERS = 40
# where a person writes
BLANK = "_" * 16


def render_text(report: Report) -> str:
    """Return the report as text; the same for the same report."""
    lines = [report.title, "=" * len(report.title), "", f"Root  {report.root}"]
    for section in report.sections:
        lines += ["", "", section.title, "-" * len(section.title)]
        for block in section.blocks:
            lines += ["", *_block(block)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return _picture(block)
    return _paragraph(block)


def _paragraph(block: Paragraph) -> list[str]:
    if block.code:
        return [f"    {line}" for line in block.text.splitlines()]
    return _wrapped(block.text, LINE_WIDTH)


def _wrapped(text: str, columns: int) -> list[str]:
    """Return text in lines, words whole: a name, a path or a URL that is cut is not found again."""
    return textwrap.wrap(text, max(columns, 1), break_long_words=False, break_on_hyphens=False) or [""]


def _columns(text: str) -> int:
    """Return how many columns a text takes on a terminal: two for letters of East Asia, none for marks on others."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))


def _table(table: Table) -> list[str]:
    """Return a table in columns where these fit, else a stanza a row."""
    rows = [table.columns, *(tuple(cell.text if cell.text.strip() else BLANK for cell in row) for row in table.rows)]
    widths = [max(_columns(row[number]) for row in rows) for number in range(len(table.columns))]
    lines = [f"{table.caption}:"]
    if sum(widths) + 2 * len(widths) <= LINE_WIDTH:
        return lines + ["  " + "  ".join(map(_padded, row, widths)) for row in rows]
    if len(widths) == 2 and widths[0] <= LINE_WIDTH // 2:
        for name, text in rows:
            lines += _entry(name, text, widths[0])
        return lines
    longest = max(map(_columns, table.columns))
    for cells in table.rows:
        lines.append("")
        for column, cell in zip(table.columns, cells, strict=True):
            if not (cell.whole and cell.text == NO_ENTRY):
                lines += _entry(column, cell.text, longest)
    return lines


def _entry(name: str, text: str, columns: int) -> list[str]:
    """Return a name and a text next to it, wrapped there; below it, where a word of it is too long for that."""
    beside, below = " " * (columns + 4), " " * 6
    taken = _wrapped(text, LINE_WIDTH - len(beside))
    if max(map(_columns, taken)) > LINE_WIDTH - len(beside):
        return [f"  {name}", *(below + line for line in _wrapped(text, LINE_WIDTH - len(below)))]
    first, *rest = taken
    return [f"  {_padded(name, columns)}  {first}", *(beside + line for line in rest)]


def _picture(picture: Picture) -> list[str]:
    largest = max(1, *(bar.size_bytes for bar in picture.bars))
    name = max(_columns(bar.name) for bar in picture.bars)
    lines = [*_wrapped(f"{picture.title}. {picture.description}", LINE_WIDTH), "  # shared, + own", ""]
    for bar in picture.bars:
        drawn = f"{_bar(bar, largest)} {size_text(bar.size_bytes)}"
        if name + BAR_CHARACTERS + 12 <= LINE_WIDTH:
            lines.append(f"  {_padded(bar.name, name)}  {drawn}")
        else:
            lines += [f"  {bar.name}", f"    {drawn}"]
    return lines


def _bar(bar: Bar, largest: int) -> str:
    marks = ""
    for _digest, size, shared in bar.layers:
        marks += ("#" if shared else "+") * max(1, round(size * BAR_CHARACTERS / largest))
    return marks
