"""The command `rehearse`."""

from __future__ import annotations

import json

import typer

from airferry import api
from airferry.cli.options import (
    DEFAULT_PLAN_FILE,
    BuildJobsOption,
    ConfigOption,
    EngineOption,
    JsonOption,
    LockedOption,
    PlatformOption,
    SharedProcessesOption,
    SourceOption,
    TargetOption,
    as_typed,
    command_line,
)
from airferry.cli.render import Reporter, data, data_items, seconds


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(rich_help_panel="Near side")(rehearse)


def rehearse(
    context: typer.Context,
    config: ConfigOption = DEFAULT_PLAN_FILE,
    source: SourceOption = None,
    target: TargetOption = None,
    platform: PlatformOption = None,
    locked: LockedOption = False,
    engine: EngineOption = "auto",
    jobs: BuildJobsOption = None,
    shared_processes: SharedProcessesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run every step in an isolated network and report outbound connection attempts. Exits with 8 if it finds any."""
    reporter: Reporter = context.obj
    selection = api.Selection(
        config=config, source=source, targets=tuple(target or ()), platforms=tuple(platform or ())
    )
    with reporter.display():
        options = api.BuildOptions(engine=engine, jobs=jobs, may_share_processes=shared_processes)
        outcome = api.rehearse(selection, locked=locked, options=options, emit=reporter)
    report = outcome.report
    if as_json:
        data(json.dumps(report.to_document(), indent=2))
    else:
        for result in report.results:
            entry = result.entry
            how = "reused" if result.reused else seconds(result.elapsed_s)
            data_items((entry.target, entry.platform, entry.reached, entry.stopped_by, entry.text, f"({how})"))
            for attempt in entry.attempts:
                mark = "declared" if attempt.allowed else "undeclared"
                place = attempt.place or attempt.library
                data_items((f"  {mark}", attempt.where, attempt.protocol, attempt.process, place))
    reporter.say("wrote {}", outcome.path)
    report.raise_if_wrong()
    reporter.say("No step tries to reach outside.")
    if not as_json:
        names = ("config", "source", "target", "platform", "locked", "engine", "jobs", "shared_processes")
        words = command_line("airferry", "build", "--rehearse", *as_typed(context, *names))
        reporter.next(("build the bundle, with this on record in it", words))
