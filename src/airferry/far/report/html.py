"""A report as one HTML file: no script, no network, every text escaped, tables with captions, fit for print."""

from __future__ import annotations

from html import escape

from airferry.far.report.content import Bar, Block, Cell, Paragraph, Picture, Report, Section, Table
from airferry.wording import size_text

LABEL_WIDTH, BAR_WIDTH, ROW_HEIGHT, BAR_HEIGHT = 300, 620, 24, 16
LEAST_NUMBERED_WIDTH = 18
LABEL_CHARACTERS = 44
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,"DejaVu Sans",Arial,sans-serif;color:#1a1a1a;background:#fff;margin:0 auto;
max-width:1100px;padding:1.5rem}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.2rem 0 .6rem;border-bottom:2px solid #1f4e79}
nav ul{columns:2;padding-left:1.2rem;margin:.5rem 0}a{color:#0b4f8a}
table{border-collapse:collapse;width:100%;margin:.8rem 0 1.4rem;font-size:.87rem}
caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{border:1px solid #767676;padding:.25rem .45rem;text-align:left;vertical-align:top;overflow-wrap:break-word}
thead th{background:#e7edf3}tbody th{font-weight:600}
code{font-family:"DejaVu Sans Mono",Consolas,monospace;font-size:.92em;overflow-wrap:anywhere}
pre{background:#f2f2f2;border:1px solid #767676;padding:.5rem .7rem;white-space:pre-wrap;overflow-wrap:anywhere}
.root{font-size:1.02rem;border:2px solid #1f4e79;padding:.5rem .7rem;overflow-wrap:anywhere}
#signatures td{height:2.6rem;min-width:8rem}figure{margin:0}figcaption{margin:.4rem 0 1rem}
svg{max-width:100%;height:auto;font:11px "DejaVu Sans",Arial,sans-serif}
@page{margin:14mm}
@media print{body{font-size:10pt;max-width:none;padding:0}nav{display:none}h2{break-after:avoid}
tr,figure{break-inside:avoid}thead{display:table-header-group}*{print-color-adjust:exact}}
"""


def render_html(report: Report) -> str:
    """Return the report as HTML; the same text for the same report."""
    contents = "".join(f'<li><a href="#{item.anchor}">{escape(item.title)}</a></li>' for item in report.sections)
    sections = "".join(_section(section) for section in report.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(report.title)}: contents and origin</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
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
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{_text(first)}</th>' + "".join(f"<td>{_text(cell)}</td>" for cell in rest) + "</tr>\n"
        for first, *rest in table.rows
    )
    caption = escape(table.caption)
    return f"<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"


def _text(cell: Cell) -> str:
    return f"<code>{escape(cell.text)}</code>" if cell.code else escape(cell.text)


def _figure(picture: Picture) -> str:
    height = ROW_HEIGHT * len(picture.bars) + 8
    width = LABEL_WIDTH + BAR_WIDTH + 90
    scale = BAR_WIDTH / max(1, *(bar.size_bytes for bar in picture.bars))
    bars = "".join(_bar(bar, 4 + number * ROW_HEIGHT, scale) for number, bar in enumerate(picture.bars))
    title, description = escape(picture.title), escape(picture.description)
    return (
        f'<figure>\n<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-labelledby="picture-title picture-description">\n<title id="picture-title">{title}</title>\n'
        f'<desc id="picture-description">{description}</desc>\n{bars}</svg>\n'
        f"<figcaption><strong>{title}.</strong> {description}</figcaption>\n</figure>\n"
    )


def _bar(bar: Bar, top: int, scale: float) -> str:
    name = bar.name if len(bar.name) <= LABEL_CHARACTERS else bar.name[: LABEL_CHARACTERS - 1] + "…"
    middle = top + BAR_HEIGHT - 4
    parts = [f'<text x="0" y="{middle}">{escape(name)}</text>']
    left = float(LABEL_WIDTH)
    for _digest, size, shared in bar.layers:
        width = max(1.0, size * scale)
        fill = "#1f4e79" if shared else "#f2c14e"
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{fill}" stroke="#fff"/>'
        )
        if shared and width >= LEAST_NUMBERED_WIDTH:
            parts.append(
                f'<text x="{left + width / 2:.1f}" y="{middle}" fill="#fff" text-anchor="middle">{shared}</text>'
            )
        left += width
    parts.append(f'<text x="{left + 6:.1f}" y="{middle}">{size_text(bar.size_bytes)}</text>')
    return "".join(parts) + "\n"
