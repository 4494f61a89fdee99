"""The report's style sheet: for screens of any width, light and dark, and for paper of any size.

Colours are variables, so that one block makes the dark ones: only on screens, as paper is white. Every pair of text and
ground has WCAG's 4.5 to 1 in both.
"""

from __future__ import annotations

import re

# name -> light, dark
COLOURS = {
    "ink": ("#1a1a1a", "#e6e6e6"),
    "ground": ("#ffffff", "#14171a"),
    "accent": ("#1f4e79", "#7fb2e5"),
    "link": ("#0b4f8a", "#8ec5ff"),
    "head": ("#e7edf3", "#27313b"),
    "code": ("#f2f2f2", "#1f2429"),
    "rule": ("#767676", "#848d97"),
    "shared": ("#1f4e79", "#3a6ea5"),
    "number": ("#ffffff", "#ffffff"),
    "own": ("#f2c14e", "#f2c14e"),
    "edge": ("#6b5300", "#14171a"),
}
# Browsers with boxes in the margins (Chromium from 131) number the pages by this rule. Others have a setting for it.
_PAGE = """
@page{margin:14mm 14mm 17mm;
@bottom-left{content:"Root ROOT";font:7.5pt "DejaVu Sans Mono",Consolas,monospace;color:#1a1a1a;white-space:nowrap}
@bottom-right{content:"Page " counter(page) " of " counter(pages);font:8pt "DejaVu Sans",Arial,sans-serif;
color:#1a1a1a;white-space:nowrap}}
"""
_RULES = """
*{box-sizing:border-box}
html{overflow-wrap:anywhere}
body{font:15px/1.5 system-ui,"DejaVu Sans",Arial,sans-serif;color:var(--ink);background:var(--ground);margin:0 auto;
max-width:1100px;padding:1.5rem}
h1{font-size:1.7rem;margin:0 0 .3rem;unicode-bidi:plaintext;text-align:left}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;border-bottom:2px solid var(--accent)}
nav ul{columns:2;padding-left:1.2rem;margin:.5rem 0}
a{color:var(--link)}a:focus-visible{outline:3px solid var(--link);outline-offset:2px}
table{border-collapse:collapse;width:100%;margin:.8rem 0 1.4rem;font-size:.87rem}
caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{border:1px solid var(--rule);padding:.25rem .45rem;text-align:left;vertical-align:top}
thead th{background:var(--head)}
th,td{overflow-wrap:break-word}th span,td span,td code{overflow-wrap:anywhere}
i{font-style:normal;white-space:nowrap}
tbody th{font-weight:600}
tbody th,tbody td{unicode-bidi:plaintext}
tr.whole td{border-top:0;padding-top:0;padding-left:1.2rem}
tr:has(+.whole) th,tr:has(+.whole) td,tr.whole:has(+.whole) td{border-bottom:0}
tr.whole b{font-weight:400;margin-right:.4em}
code{font-family:"DejaVu Sans Mono",Consolas,monospace;font-size:.92em;unicode-bidi:isolate;direction:ltr}
code.whole{display:inline-block;max-width:100%}
pre{background:var(--code);border:1px solid var(--rule);padding:.5rem .7rem;white-space:pre-wrap}
.root{font-size:1.02rem;border:2px solid var(--accent);padding:.5rem .7rem}
#signatures td{height:2.6rem}
figure{margin:0 0 1.4rem}figcaption{margin:.4rem 0 .6rem}
.bars{list-style:none;margin:0;padding:0;font-size:.8rem}
.bars li{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,6fr) 5.2rem;gap:0 .6rem;align-items:center;
padding:.15rem 0}
.bars bdi{unicode-bidi:plaintext}
.bars svg{display:block;width:100%;height:16px;font:11px "DejaVu Sans",Arial,sans-serif}
.bars .s{fill:var(--shared);stroke:var(--ground)}.bars .o{fill:var(--own);stroke:var(--edge)}
.bars text{fill:var(--number);text-anchor:middle}
@media print,(min-width:641px){tr:not(.whole) code.whole{white-space:nowrap}}
@media (max-width:640px){
body{padding:.75rem}nav ul{columns:1}table{font-size:.8rem}th,td{padding:.2rem .3rem}
tr.whole td{padding-left:.3rem}tr.whole b{display:block}code.whole{font-size:10.5px}
.root code{font-size:10.5px}pre{font-size:.8rem}
.bars li{grid-template-columns:minmax(0,1fr) max-content}.bars svg{grid-row:2;grid-column:1/-1}
}
@media (max-width:420px){th,td{overflow-wrap:anywhere}i{white-space:normal}}
@media print{
body{font-size:10pt;max-width:none;padding:0 1px}nav{display:none}
pre{font-size:8pt}code.whole{font-size:8pt}.root code{font-size:9.5pt}
pre{orphans:3;widows:3}
h2,figcaption,caption,thead,p:has(+table),p:has(+pre){break-after:avoid}
tbody:has(.whole),table.short,tr,li,p,#signatures{break-inside:avoid}
thead{display:table-header-group;break-inside:avoid}
thead+tbody,thead+tbody tr:first-child,tr.whole{break-before:avoid}
*{print-color-adjust:exact}
}
"""


def style_sheet(root: str) -> str:
    """Return the style sheet, with the root for the foot of each page; the same for the same root."""
    light, dark = ("".join(f"--{name}:{pair[number]};" for name, pair in COLOURS.items()) for number in (0, 1))
    return (
        f"\n:root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}"
        + _RULES
        + _PAGE.replace("ROOT", re.sub(r"[^0-9A-Za-z:]", "", root)).lstrip("\n")
    )
