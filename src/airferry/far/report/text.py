"""A report as plain text: the same content as the HTML, for printers, terminals and `diff`."""

from __future__ import annotations

import textwrap

from airferry.far.report.content import Bar, Block, Paragraph, Picture, Report, Table
from airferry.wording import size_text

LINE_WIDTH = 100
BAR_CHARACTERS = 50


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
    return textwrap.wrap(block.text, LINE_WIDTH)


def _table(table: Table) -> list[str]:
    """Return a table in columns where it is narrow enough or has two, else a stanza a row."""
    widths = [
        max(len(column), *(len(row[number].text) for row in table.rows)) for number, column in enumerate(table.columns)
    ]
    lines = [f"{table.caption}:"]
    if len(widths) <= 2 or sum(widths) + 2 * len(widths) <= LINE_WIDTH:
        rows = [list(table.columns), *([cell.text for cell in row] for row in table.rows)]
        return lines + [
            "  " + "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)) for row in rows
        ]
    name = max(len(column) for column in table.columns)
    for row in table.rows:
        lines.append("")
        lines += [f"  {column:<{name}}  {cell.text}" for column, cell in zip(table.columns, row, strict=True)]
    return lines


def _picture(picture: Picture) -> list[str]:
    largest = max(1, *(bar.size_bytes for bar in picture.bars))
    name = max(len(bar.name) for bar in picture.bars)
    lines = [*textwrap.wrap(f"{picture.title}. {picture.description}", LINE_WIDTH), "  # shared, + own", ""]
    return lines + [f"  {bar.name:<{name}}  {_bar(bar, largest)} {size_text(bar.size_bytes)}" for bar in picture.bars]


def _bar(bar: Bar, largest: int) -> str:
    marks = ""
    for _digest, size, shared in bar.layers:
        marks += ("#" if shared else "+") * max(1, round(size * BAR_CHARACTERS / largest))
    return marks
