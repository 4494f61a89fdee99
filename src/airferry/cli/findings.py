"""How the findings of `airferry check` are shown: a table where there is room, else one below the other."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable

from airferry import api
from airferry.cli.render import Reporter, data_commands, data_line, escape
from airferry.wording import comment_line, counted

# below it the columns of a table fold what is to be typed over several lines, which then cannot be copied
TABLE_WIDTH = 140
ALL_JOBS = "all jobs"
_LEVEL_STYLES = {"block": "[red]block[/]", "warn": "[yellow]warn[/]", "note": "[dim]note[/]"}
_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/-]*=.*", re.DOTALL)


def show_findings(reporter: Reporter, report: api.CheckReport, *, notes: bool) -> None:
    """Show findings as a table on a wide terminal, below each other on others, as lines elsewhere."""
    shown = [finding for finding in report.findings if notes or finding.level != "note"]
    several = len(report.executors) > 1
    # findings are the result, which quiet leaves
    if reporter.quiet or not sys.stdout.isatty():
        for finding in shown:
            fix = f"  [{finding.fix}]" if finding.fix else ""
            also = f"  (also {', '.join(finding.also)})" if finding.also else ""
            on = f"  (on {', '.join(finding.executors)})" if several else ""
            data_line(f"{finding.level}  {_job(finding)}  {_place(finding)}: {finding.text}{fix}{also}{on}")
    elif _fits_a_table(reporter.console.width, shown):
        _show_table(reporter, shown, several=several)
    else:
        _show_stacked(reporter, shown, several=several)


def show_extent(reporter: Reporter, report: api.CheckReport, *, registry: bool) -> None:
    """Say on which executors nothing blocks a job, and what was not looked at: silence would pass for a check.

    `registry` False says that it was not to be asked.
    """
    if report.unblocked or not report.executors:
        on = f" on {' and '.join(report.unblocked)}" if len(report.executors) > 1 or report.left_out else ""
        reporter.say("Nothing blocks {}{}.", counted(len(report.steps), "job"), on)
    for kind, reason in report.left_out.items():
        reporter.say("[yellow]Not checked[/] for {}: {}. `--executor {}` checks for it.", kind, reason, kind)
    if not report.images_asked:
        why = "no receipt names them" if registry else "`--no-registry`"
        reporter.say("[yellow]Not checked:[/] whether the registry holds the images ({}).", why)


def show_fixes(report: api.CheckReport, *, notes: bool) -> None:
    """Write what takes the findings back: for each job one line of overrides, and what is to be done besides; for each
    executor where they differ."""
    for step in ("", *report.steps):
        of_job = [finding for finding in report.findings if finding.step == step and finding.fix]
        shown = [finding for finding in of_job if notes or finding.level != "note"]
        by_executor = {
            kind: list(dict.fromkeys(str(finding.fix) for finding in shown if kind in finding.executors))
            for kind in report.executors
        }
        first = next(iter(by_executor.values()), list(dict.fromkeys(str(finding.fix) for finding in shown)))
        if all(fixes == first for fixes in by_executor.values()):
            _show_fixes_of(step or ALL_JOBS, first)
            continue
        for kind, fixes in by_executor.items():
            _show_fixes_of(f"{step or ALL_JOBS} on {kind}", fixes)


def _show_fixes_of(job: str, fixes: list[str]) -> None:
    if not fixes:
        return
    data_line(comment_line(job))
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


def _job(finding: api.Finding) -> str:
    return finding.step or ALL_JOBS


def _place(finding: api.Finding) -> str:
    file = f"{finding.file}:{finding.line}: " if finding.file else ""
    return f"{file}{finding.key}" + (f" = {finding.value}" if finding.value else "")


def _longest_override(shown: Iterable[api.Finding]) -> int:
    return max((len(finding.fix) for finding in shown if finding.fix and _is_override(finding.fix)), default=0)


def _fits_a_table(columns: int, shown: Iterable[api.Finding]) -> bool:
    """Tell whether a table leaves the other columns two thirds of the terminal with what is to be typed on one line."""
    return columns >= TABLE_WIDTH and _longest_override(shown) <= columns // 3


def _show_table(reporter: Reporter, shown: list[api.Finding], *, several: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("job", "", "where", "what"):
        table.add_column(title, overflow="fold")
    table.add_column("type", overflow="fold", min_width=_longest_override(shown))
    for finding in shown:
        also = "".join(f"\nalso {key}" for key in finding.also)
        also += f"\non {', '.join(finding.executors)}" if several else ""
        value = f" = {finding.value}" if finding.value else ""
        table.add_row(
            escape(_job(finding)),
            _LEVEL_STYLES[finding.level],
            escape(f"{finding.file}:{finding.line} {finding.key}{value}{also}"),
            escape(finding.text),
            escape(finding.fix or ""),
        )
    reporter.console.print(table)


def _show_stacked(reporter: Reporter, shown: Iterable[api.Finding], *, several: bool) -> None:
    """Show findings below each other. What is to be typed is never wrapped here: a terminal that wraps it copies
    it as one line."""
    job = None
    for finding in shown:
        if finding.step != job:
            job = finding.step
            reporter.say("[bold]{}[/]", _job(finding))
        level = _LEVEL_STYLES[finding.level] + " " * (len("block") - len(finding.level))
        reporter.say("  " + level + "  {}", finding.text, hanging=len("block  "))
        reporter.say("    [dim]{}[/]", _place(finding))
        for key in finding.also:
            reporter.say("    [dim]also {}[/]", key)
        if several:
            reporter.say("    [dim]on {}[/]", ", ".join(finding.executors))
        if finding.fix and _is_override(finding.fix):
            reporter.copyable(finding.fix, indent=4)
        elif finding.fix:
            reporter.say("    {}", finding.fix)
