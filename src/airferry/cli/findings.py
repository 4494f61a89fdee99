"""How the findings of `airferry check` are shown: a table where there is room, else one below the other."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable

from airferry import api
from airferry.cli.render import Reporter, data_commands, data_line, escape
from airferry.wording import comment_line

# below it the columns of a table fold what is to be typed over several lines, which then cannot be copied
TABLE_WIDTH = 140
_LEVEL_STYLES = {"block": "[red]block[/]", "warn": "[yellow]warn[/]", "note": "[dim]note[/]"}
_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/-]*=.*", re.DOTALL)


def show_findings(reporter: Reporter, report: api.CheckReport, *, notes: bool) -> None:
    """Show findings as a table on a wide terminal, below each other on others, as lines elsewhere."""
    shown = [finding for finding in report.findings if notes or finding.level != "note"]
    # findings are the result, which quiet leaves
    if reporter.quiet or not sys.stdout.isatty():
        for finding in shown:
            fix = f"  [{finding.fix}]" if finding.fix else ""
            also = f"  (also {', '.join(finding.also)})" if finding.also else ""
            data_line(f"{finding.level}  {finding.step}  {_place(finding)}: {finding.text}{fix}{also}")
    elif _fits_a_table(reporter.console.width, shown):
        _show_table(reporter, shown)
    else:
        _show_stacked(reporter, shown)


def show_fixes(report: api.CheckReport, *, notes: bool) -> None:
    """Write what takes the findings back: for each job one line of overrides, and what is to be done besides."""
    for step in report.steps:
        of_job = [finding for finding in report.findings if finding.step == step and finding.fix]
        fixes = dict.fromkeys(str(finding.fix) for finding in of_job if notes or finding.level != "note")
        if not fixes:
            continue
        data_line(comment_line(step))
        overrides = [fix for fix in fixes if _is_override(fix)]
        for fix in fixes:
            if fix not in overrides:
                data_commands(comment_line(f"- {fix}"))
        if overrides:
            data_line(" ".join(overrides))


def _is_override(fix: str) -> bool:
    """Tell whether a fix is one word of a command line, `KEY=VALUE`, and not a sentence."""
    try:
        # `$'…'` is one word as `'…'` is
        words = shlex.split(fix.removeprefix("$"))
    except ValueError:
        return False
    return len(words) == 1 and _OVERRIDE.fullmatch(words[0]) is not None


def _place(finding: api.Finding) -> str:
    return f"{finding.file}:{finding.line}: {finding.key}" + (f" = {finding.value}" if finding.value else "")


def _longest_override(shown: Iterable[api.Finding]) -> int:
    return max((len(finding.fix) for finding in shown if finding.fix and _is_override(finding.fix)), default=0)


def _fits_a_table(columns: int, shown: Iterable[api.Finding]) -> bool:
    """Tell whether a table leaves the other columns two thirds of the terminal with what is to be typed on one line."""
    return columns >= TABLE_WIDTH and _longest_override(shown) <= columns // 3


def _show_table(reporter: Reporter, shown: list[api.Finding]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("job", "", "where", "what"):
        table.add_column(title, overflow="fold")
    table.add_column("type", overflow="fold", min_width=_longest_override(shown))
    for finding in shown:
        also = "".join(f"\nalso {key}" for key in finding.also)
        value = f" = {finding.value}" if finding.value else ""
        table.add_row(
            escape(finding.step),
            _LEVEL_STYLES[finding.level],
            escape(f"{finding.file}:{finding.line} {finding.key}{value}{also}"),
            escape(finding.text),
            escape(finding.fix or ""),
        )
    reporter.console.print(table)


def _show_stacked(reporter: Reporter, shown: Iterable[api.Finding]) -> None:
    """Show findings below each other. What is to be typed is never wrapped here: a terminal that wraps it copies
    it as one line."""
    job = None
    for finding in shown:
        if finding.step != job:
            job = finding.step
            reporter.say("[bold]{}[/]", job)
        level = _LEVEL_STYLES[finding.level] + " " * (len("block") - len(finding.level))
        reporter.say("  " + level + "  {}", finding.text, hanging=len("block  "))
        reporter.say("    [dim]{}[/]", _place(finding))
        for key in finding.also:
            reporter.say("    [dim]also {}[/]", key)
        if finding.fix and _is_override(finding.fix):
            reporter.copyable(finding.fix, indent=4)
        elif finding.fix:
            reporter.say("    {}", finding.fix)
