"""The command `rehearse`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from airferry import usecases
from airferry.cli.near import (
    DEFAULT_CONFIG,
    ConfigOption,
    EngineOption,
    JobsOption,
    JsonOption,
    PlatformOption,
    SourceOption,
)
from airferry.cli.render import Reporter, data, seconds

StepOption = Annotated[
    list[str] | None,
    typer.Option("--step", help="Step or STEP:CONFIG to try, instead of all. Repeatable, takes commas."),
]


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(rich_help_panel="Near side")(rehearse)


def rehearse(
    context: typer.Context,
    config: ConfigOption = DEFAULT_CONFIG,
    source: SourceOption = None,
    platform: PlatformOption = None,
    step: StepOption = None,
    locked: Annotated[bool, typer.Option("--locked", help="Refuse to write airgap.lock.yaml.")] = False,
    engine: EngineOption = "auto",
    jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start every step in its image where no network leads out, and tell who tries to get out. Exits with 8 if any."""
    reporter: Reporter = context.obj
    selection = usecases.Selection(config=config, source=source, platforms=tuple(platform or ()))
    steps = [part.strip() for value in step or () for part in value.split(",") if part.strip()]
    with reporter.display():
        outcome = usecases.rehearse(selection, steps=steps, locked=locked, engine=engine, jobs=jobs, emit=reporter)
    report = outcome.report
    if as_json:
        data(json.dumps(report.to_document(), indent=2))
    else:
        for result in report.results:
            entry = result.entry
            how = "reused" if result.reused else seconds(result.elapsed_s)
            data(f"{entry.target}  {entry.platform}  {entry.reached}  {entry.stopped_by}  {entry.text}  ({how})")
            for attempt in entry.attempts:
                mark = "declared" if attempt.allowed else "undeclared"
                place = attempt.place or attempt.library
                data(f"  {mark}  {attempt.where}  {attempt.protocol}  {attempt.process}  {place}")
    reporter.say(f"wrote {outcome.path}")
    report.raise_if_wrong()
    reporter.say("No step reaches outside; `airferry build --rehearse` carries this over into the bundle.")
