"""Commands that make a bundle: init, doctor, plan, lock, build, schema, quickstart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from airferry import api
from airferry.cli import completion
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
    as_typed,
    command_line,
)
from airferry.cli.render import WIDEST_COLUMN, Reporter, ask_line, data, data_items, data_line, data_text
from airferry.errors import ConfigurationError, HostError, UsageError
from airferry.wording import counted, size_text


def register(app: typer.Typer) -> None:
    """Add this module's commands in the order in which an operator needs them."""
    app.command("init", rich_help_panel="Near side")(init_project)
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


def init_project(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the project, which is made if it is missing.")
    ] = Path(),
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="DIR", help="Root of a catalogue that lies elsewhere.", show_default=False),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="DIR", help="Folder of the steps in the catalogue, if there are several."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            metavar="TARGET",
            help="STEP:CONFIG or STEP of the catalogue to carry. Repeatable; accepts commas.",
            autocompletion=completion.project_targets,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="IMAGE",
            help="Base image of steps that name none; by default, a Debian userland made of packages.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Python package of a new catalogue; by default, as the folder."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not prompt: take the defaults.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write airgap.yaml for the steps in a folder; where there are none, write two steps that build, too."""
    reporter: Reporter = context.obj
    choices = api.ProjectChoices(source=source, steps=steps, package=name, targets=tuple(target or ()), base=base)
    asked = reporter.may_ask and not (yes or as_json)
    if asked:
        choices = _ask_project(reporter, folder, choices)
    made = api.init_project(folder, choices=choices, dry_run=dry_run)
    if as_json:
        data(json.dumps({**made.to_document(), "dry_run": dry_run}, indent=2))
        return
    if not (made.is_new or asked):
        _show_steps(reporter, made)
    reporter.say("Would write:" if dry_run else "Wrote:")
    data_line(*(str(folder / file) for file in made.files))
    for note in made.notes:
        reporter.say("[yellow]note:[/] {}", note)
    if not dry_run:
        reporter.next(*((purpose, command) for command, purpose in made.commands.items()))
        reporter.say("docs/your-own-catalogue.md explains the steps, docs/configuration.md the plan.")


def _show_steps(reporter: Reporter, made: api.ProjectOutcome) -> None:
    """List the steps that were found, with their images; those that are carried have a `+`."""
    reporter.say("Found {} in {}; the plan carries those with a `+`:", counted(len(made.images), "step"), made.steps)
    width = max(map(len, made.images))
    for spec, (image, _base) in made.images.items():
        reporter.say("  {} {}  {}", "+" if spec in made.carried else " ", f"{spec:<{width}}", image)
    for step, reason in made.unready.items():
        reporter.say("  [yellow]![/] {}  {}", step, " ".join(reason.split()))


def _ask_project(reporter: Reporter, folder: Path, choices: api.ProjectChoices) -> api.ProjectChoices:
    """Ask on the terminal for what no option says; an empty answer takes the default, a wrong one is asked again."""

    def ask(question: str, key: str, make: Callable[[str], Any] = str) -> api.ProjectChoices:
        while True:
            answer = ask_line(question)
            changed = replace(choices, **{key: make(answer)}) if answer else choices
            try:
                api.init_project(folder, choices=changed, dry_run=True)
                return changed
            except (UsageError, ConfigurationError) as error:
                reporter.say("[red]{}[/]", " ".join(error.message.split()))

    try:
        seen = api.init_project(folder, choices=choices, dry_run=True)
    except api.PackageNameError:
        choices = ask("Python package of the steps (for example acme)", "package")
        seen = api.init_project(folder, choices=choices, dry_run=True)
    if seen.is_new and choices.package is None:
        choices = ask(f"Python package of the steps ({seen.package.partition('.')[0]})", "package")
    if not seen.is_new:
        _show_steps(reporter, seen)
    if not seen.is_new and not choices.targets:
        choices = ask("Steps to carry, separated by commas (those with a +)", "targets", lambda answer: (answer,))
    if choices.base is None and seen.unnamed:
        choices = ask("Base image of steps that name none (a Debian userland made of packages)", "base")
    return choices


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
        width = max((len(check.name) for check in report.checks if len(check.name) <= WIDEST_COLUMN), default=0)
        below = " " * (width + len("✓   "))
        for check in report.checks:
            # what fails is a part of the error below, which names it alone
            tell = reporter.complain if check.status == "fail" else reporter.say
            if len(check.name) <= width:
                tell(marks[check.status] + " {}  {}", f"{check.name:<{width}}", check.detail, hanging=len(below))
            else:
                tell(marks[check.status] + " {}", check.name)
                tell("{}{}", below, check.detail, hanging=0)
            if check.hint and check.status != "ok":
                tell("{}[bold]→[/] {}", below, check.hint)
    failed = [check for check in report.checks if check.status == "fail"]
    if failed:
        raise HostError(
            f"{len(failed)} of {counted(len(report.checks), 'check')} failed: "
            + ", ".join(check.name for check in failed),
            hint="run the commands after the arrows, then `airferry doctor` again",
        )
    unknown = ", as far as known" if any(check.status == "unknown" for check in report.checks) else ""
    reporter.say("This host can build {}{}.", "the plan" if report.planned else "images", unknown)
    if report.planned and not as_json:
        typed = as_typed(context, "config", "source", "target", "platform")
        reporter.next(("see what a build would make", command_line("airferry", "plan", *typed)))


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
    data_text(*api.describe_plan(result.plan, verbose=reporter.verbose))
    data_text("", *api.describe_prediction(result.prediction, verbose=reporter.verbose))
    reporter.say("wrote {}", result.path)
    typed = as_typed(context, "config", "source", "target", "platform")
    if result.locked:
        reporter.next(_build_next([*typed, *as_typed(context, "stage")], rehearse=result.runs_here and not stage))
    else:
        reporter.next(("pin bases, commits and versions", command_line("airferry", "lock", *typed)))


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
    data_text(*result.changes or ["nothing changed"])
    done = "wrote" if result.changes else "kept"
    reporter.say("{} {}", done, result.path)
    typed = ("config", "source", "target", "platform", "engine", "probe", "shared_processes")
    reporter.next(_build_next(as_typed(context, *typed), rehearse=result.runs_here))


def _build_next(typed: list[str], *, rehearse: bool) -> tuple[str, str]:
    """Return what follows a lock, as `init` lists it; steps that this host only emulates are not rehearsed unasked."""
    if rehearse:
        purpose = "run each step without network, and build the bundle"
        return purpose, command_line("airferry", "build", "--rehearse", *typed)
    return "build the bundle", command_line("airferry", "build", *typed)


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
        again = ("config", "source", "target", "platform", "locked", "engine", "probe", "jobs", "shared_processes")
        words = command_line("airferry", "build", "--stage", "save-images", *as_typed(context, *again))
        reporter.say("not sealed yet")
        reporter.next(("seal the bundle", words))
        return
    for image in result.images:
        size = size_text(image.size_bytes)
        data_items((image.reference, image.digest, ", ".join(image.platforms), size))
    if result.recompressed is not None:
        reporter.say("{}", result.recompressed.text)
    data_line(f"bundle {result.bundle}  {size_text(result.bundle_bytes)}")
    data_line(f"root   {result.root}")
    reporter.say("Carry [bold]{}[/] over, and send the root over a separate channel.", result.output)
    words = command_line("airferry", "verify", result.output.name, "--root", result.root)
    reporter.next(("check that all of it arrived", words), where=f"on the far side, next to `{result.output.name}`")


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
    data_text(*report)
    # next to a plan, as in the clone, there is no place for another one
    place = "../acme" if DEFAULT_PLAN_FILE.exists() else "acme"
    steps = "your own steps, as docs/your-own-catalogue.md explains them"
    reporter.next((steps, command_line("airferry", "init", place)))
