"""Commands that make a bundle: doctor, plan, lock, build, schema, quickstart."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airferry import api
from airferry.cli.bundles import parse_size
from airferry.cli.options import (
    DEFAULT_PLAN_FILE,
    BuildJobsOption,
    ConfigOption,
    EngineOption,
    JsonOption,
    LockedOption,
    MemoryOption,
    PlatformOption,
    ProbeOption,
    SharedProcessesOption,
    SourceOption,
    StageOption,
    TargetOption,
)
from airferry.cli.render import Reporter, data, data_line
from airferry.errors import HostError
from airferry.wording import counted, size_text

if TYPE_CHECKING:
    pass


def register(app: typer.Typer) -> None:
    """Add this module's commands in the order in which an operator needs them."""
    app.command(rich_help_panel="Near side")(doctor)
    app.command(rich_help_panel="Near side")(plan)
    app.command(rich_help_panel="Near side")(lock)
    app.command(rich_help_panel="Near side")(build)
    app.command(rich_help_panel="Near side")(schema)
    app.command(rich_help_panel="Try it")(quickstart)


def _selection(
    config: Path,
    source: Path | None,
    target: list[str] | None,
    platform: list[str] | None,
    stage: list[str] | None = None,
) -> api.Selection:
    return api.Selection(
        config=config,
        source=source,
        targets=tuple(target or ()),
        platforms=tuple(platform or ()),
        stages=tuple(stage or ()),
    )


def doctor(
    context: typer.Context,
    config: ConfigOption = DEFAULT_PLAN_FILE,
    source: SourceOption = None,
    target: TargetOption = None,
    platform: PlatformOption = None,
    engine: EngineOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check that this host can build the plan, and print the commands that fix what is missing."""
    reporter: Reporter = context.obj
    report = api.doctor(_selection(config, source, target, platform), engine=engine, emit=reporter)
    if as_json:
        from airferry.host.canonical import plain_data

        data(json.dumps(plain_data(report.checks), indent=2))
    else:
        marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]", "unknown": "[yellow]?[/]"}
        width = max(len(check.name) for check in report.checks)
        for check in report.checks:
            reporter.say(marks[check.status] + " {}  {}", f"{check.name:<{width}}", check.detail)
            if check.hint and check.status != "ok":
                reporter.say("  {}  [bold]→[/] {}", " " * width, check.hint)
    failed = [check for check in report.checks if check.status == "fail"]
    if failed:
        raise HostError(
            f"{len(failed)} of {counted(len(report.checks), 'check')} failed: "
            + ", ".join(check.name for check in failed),
            hint="run the commands after the arrows, then `airferry doctor` again",
        )
    unknown = ", as far as known" if any(check.status == "unknown" for check in report.checks) else ""
    reporter.say("This host can build {}{}.", "the plan" if report.planned else "images", unknown)


def plan(
    context: typer.Context,
    config: ConfigOption = DEFAULT_PLAN_FILE,
    source: SourceOption = None,
    target: TargetOption = None,
    platform: PlatformOption = None,
    stage: StageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a build would make, for which steps and platforms. Needs no network and no Buildah."""
    reporter: Reporter = context.obj
    result = api.plan(_selection(config, source, target, platform, stage))
    if as_json:
        from airferry.host.canonical import plain_data

        found = {"predicted": result.prediction.to_document(), "warnings": plain_data(result.plan.warnings)}
        data(json.dumps({**result.document, **found}, indent=2))
        return
    data_line(*api.describe_plan(result.plan, verbose=reporter.verbose))
    data_line("", *api.describe_prediction(result.prediction, verbose=reporter.verbose))
    following = "build" if result.locked else "lock"
    more = {"--stage": stage} if result.locked else {}
    command = _next(following, config, {"--source": source, "--target": target, "--platform": platform, **more})
    reporter.say("wrote {}; next: [bold]{}[/]", result.path, command)


def _next(command: str, config: Path, options: Mapping[str, object]) -> str:
    """Return the command that goes on with the same plan, for a shell: the options as they were given."""
    words = ["airferry", command]
    given = {"--config": config if config != DEFAULT_PLAN_FILE else None, **options}
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value] if value else []:
            words += [name, str(one)]
    return shlex.join(words)


def lock(
    context: typer.Context,
    config: ConfigOption = DEFAULT_PLAN_FILE,
    source: SourceOption = None,
    target: TargetOption = None,
    platform: PlatformOption = None,
    update: Annotated[bool, typer.Option("--update", help="Resolve again: everything, or only each NAME.")] = False,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="With --update: bases, overlays (URL@REF) or groups to resolve again."),
    ] = None,
    engine: EngineOption = "auto",
    probe: ProbeOption = "auto",
    shared_processes: SharedProcessesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pin base images, Git refs and package versions in airgap.lock.yaml, and show what changed."""
    reporter: Reporter = context.obj
    with reporter.display():
        result = api.lock(
            _selection(config, source, target, platform),
            update=update,
            names=tuple(names or ()),
            options=api.BuildOptions(engine=engine, probe=probe, may_share_processes=shared_processes),
            emit=reporter,
        )
    if as_json:
        data(json.dumps(result.to_document(), indent=2))
        return
    data_line(*result.changes or ["nothing changed"])
    done = "wrote" if result.changes else "kept"
    given: dict[str, object] = {"--source": source, "--target": target, "--platform": platform}
    given |= {"--engine": engine if engine != "auto" else None, "--probe": probe if probe != "auto" else None}
    command = _next("build", config, given) + (" --allow-shared-processes" if shared_processes else "")
    reporter.say("{} {}; next: [bold]{}[/]", done, result.path, command)


def build(
    context: typer.Context,
    config: ConfigOption = DEFAULT_PLAN_FILE,
    source: SourceOption = None,
    target: TargetOption = None,
    platform: PlatformOption = None,
    stage: StageOption = None,
    locked: LockedOption = False,
    update: Annotated[
        list[str] | None,
        typer.Option(
            "--update", metavar="NAME", help="Resolve NAME again first, as `airferry lock --update NAME`. Repeatable."
        ),
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Rehearse every step before sealing, as `airferry rehearse`.")
    ] = False,
    engine: EngineOption = "auto",
    probe: ProbeOption = "auto",
    jobs: BuildJobsOption = None,
    memory: MemoryOption = None,
    shared_processes: SharedProcessesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build the images of the plan into one bundle. Rerun after an interruption: finished work is reused."""
    reporter: Reporter = context.obj
    with reporter.display():
        result = api.build(
            _selection(config, source, target, platform, stage),
            locked=locked,
            update=tuple(update or ()),
            rehearse=rehearse,
            options=api.BuildOptions(
                engine=engine,
                probe=probe,
                jobs=jobs,
                memory_bytes=int(parse_size(memory, option="--memory")) if memory else None,
                may_share_processes=shared_processes,
            ),
            emit=reporter,
        )
    if as_json:
        data(json.dumps(result.to_document(), indent=2))
        return
    if result.root is None:
        reporter.say("not sealed yet; next: [bold]airferry build --stage save-images[/]")
        return
    for image in result.images:
        data_line(f"{image.reference}  {image.digest}  {', '.join(image.platforms)}  {size_text(image.size_bytes)}")
    data_line(f"bundle {result.bundle}  {size_text(result.bundle_bytes)}")
    data_line(f"root   {result.root}")
    reporter.say(
        "Carry [bold]{}[/] over, and send the root over a separate channel. There: "
        "[bold]airferry verify OUT --root {}[/], then [bold]airferry load OUT --root {} --to HOST:PORT/PREFIX[/]",
        result.output,
        result.root,
        result.root,
    )


def schema() -> None:
    """Print the JSON Schema of airgap.yaml for editors."""
    data(json.dumps(api.schema(), indent=2))


def quickstart(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Folder to write and build the example in.")
    ] = Path("airferry-quickstart"),
    platform: PlatformOption = None,
    engine: EngineOption = "auto",
    shared_processes: SharedProcessesOption = False,
) -> None:
    """Run the whole job on a built-in example: plan, build, verify, load into a registry, run without network."""
    reporter: Reporter = context.obj
    with reporter.display():
        report = api.quickstart(
            folder,
            platforms=tuple(platform or ()),
            engine=engine,
            may_share_processes=shared_processes,
            emit=reporter,
        )
    data_line(*report)
