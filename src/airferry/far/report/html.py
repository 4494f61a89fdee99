"""A report as one HTML file: no script, no network, every text escaped, tables with captions, fit for print."""

from __future__ import annotations

from html import escape

from airferry.far.report.document import NO_ENTRY, Bar, Block, Cell, Paragraph, Picture, Report, Section, Table
from airferry.far.report.style import style_sheet
from airferry.wording import counted, size_text

# of the width that the longest bar has, in per cent: a layer narrower than the first is not seen, and a number does not
# fit into one narrower than the second, on a screen of 320 pixels
LEAST_WIDTH, LEAST_NUMBERED_WIDTH = 0.2, 6.0
# letters of a word that is kept whole; columns get as wide as those
LONGEST_WORD = 12
# a table of so many rows stays on one page
SHORT_TABLE = 3
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_html(report: Report) -> str:
    """Return the report as HTML; the same text for the same report."""
    contents = "".join(f'<li><a href="#{item.anchor}">{escape(item.title)}</a></li>' for item in report.sections)
    sections = "".join(_section(section) for section in report.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(report.title)}: contents and origin</title>\n"
        f"<style>{style_sheet(report.root)}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(report.title)}</h1>\n"
        f'<p class="root"><strong>Root</strong> <code>{escape(report.root)}</code></p>\n'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n</header>\n'
        f"<main>\n{sections}</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    heading = f"heading-{section.anchor}"
    blocks = "".join(_block(block) for block in section.blocks)
    return (
        f'<section id="{section.anchor}" aria-labelledby="{heading}">\n'
        f'<h2 id="{heading}">{escape(section.title)}</h2>\n{blocks}</section>\n'
    )


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return _figure(block)
    return _paragraph(block)


def _paragraph(block: Paragraph) -> str:
    text = escape(block.text)
    return f"<pre><code>{text}</code></pre>\n" if block.code else f"<p>{text}</p>\n"


def _table(table: Table) -> str:
    below = table.whole_columns
    beside = [number for number in range(len(table.columns)) if number not in below]
    head = "".join(f'<th scope="col">{escape(table.columns[number])}</th>' for number in beside)
    rows = "".join(_row(table, row, beside) for row in table.rows)
    body = rows if below else f"<tbody>\n{rows}</tbody>\n"
    caption = escape(table.caption)
    kind = ' class="short"' if len(table.rows) <= SHORT_TABLE else ""
    return f"<table{kind}>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n{body}</table>\n"


def _row(table: Table, row: tuple[Cell, ...], beside: list[int]) -> str:
    """Return a row, and a line as wide as the table for each cell that is shown whole: together they are one body."""
    first, *rest = (_text(row[number]) for number in beside)
    cells = "".join(f"<td>{text}</td>" for text in rest)
    if not table.whole_columns:
        return f'<tr><th scope="row">{first}</th>{cells}</tr>\n'
    lines = "".join(
        f'<tr class="whole"><td colspan="{len(beside)}"><b>{escape(table.columns[number])}</b> '
        f'<code class="whole">{escape(row[number].text)}</code></td></tr>\n'
        for number in table.whole_columns
        if row[number].text != NO_ENTRY
    )
    return f'<tbody><tr><th scope="rowgroup">{first}</th>{cells}</tr>\n{lines}</tbody>\n'


def _text(cell: Cell) -> str:
    if cell.whole and cell.code:
        return f'<code class="whole">{escape(cell.text)}</code>'
    text = " ".join(map(_word, cell.text.split(" ")))
    return f"<code>{text}</code>" if cell.code else text


def _word(word: str) -> str:
    """Return a word that a narrow column may break anywhere if it is long, and nowhere if it is short."""
    if len(word) > LONGEST_WORD:
        return f"<span>{escape(word)}</span>"
    return f"<i>{escape(word)}</i>" if any(mark in word for mark in "-/") else escape(word)


def _figure(picture: Picture) -> str:
    largest = max(1, *(bar.size_bytes for bar in picture.bars))
    widths = [[max(LEAST_WIDTH, 100 * size / largest) for _digest, size, _shared in bar.layers] for bar in picture.bars]
    # layers that were made wide enough to be seen may take a bar past the end
    scale = 100 / max(100, *map(sum, widths))
    bars = "".join(_bar(bar, [width * scale for width in full]) for bar, full in zip(picture.bars, widths, strict=True))
    title, description = escape(picture.title), escape(picture.description)
    return (
        f"<figure>\n<figcaption><strong>{title}.</strong> {description}</figcaption>\n"
        f'<ul class="bars">\n{bars}</ul>\n</figure>\n'
    )


def _bar(bar: Bar, widths: list[float]) -> str:
    """Return a bar with its name and size as text next to it, which wraps; a page may end between two bars."""
    parts = []
    left = 0.0
    for (_digest, _size, shared), width in zip(bar.layers, widths, strict=True):
        kind = "s" if shared else "o"
        parts.append(f'<rect class="{kind}" x="{left:.2f}%" y="1" width="{width:.2f}%" height="14"/>')
        if shared and width >= LEAST_NUMBERED_WIDTH:
            parts.append(f'<text x="{left + width / 2:.2f}%" y="12">{shared}</text>')
        left += width
    numbers = [str(shared) for _digest, _size, shared in bar.layers if shared]
    said = counted(len(bar.layers), "layer") + (f", shared: {', '.join(numbers)}" if numbers else ", none shared")
    return (
        f'<li><bdi>{escape(bar.name)}</bdi><svg role="img" aria-label="{said}">{"".join(parts)}</svg>'
        f"<span>{size_text(bar.size_bytes)}</span></li>\n"
    )
