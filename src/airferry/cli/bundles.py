"""Commands on a bundle that arrived: verify, load."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from airferry import api
from airferry.cli.options import (
    ArtifactsOption,
    AuditOption,
    CaFileOption,
    FlattenOption,
    JsonOption,
    LayoutArgument,
    MapOption,
    ParallelOption,
    PlainHttpOption,
    RateOption,
    RootOption,
    VerifyFirstOption,
    as_typed,
    command_line,
    expect_filled,
)
from airferry.cli.render import Reporter, data, data_commands, data_items, data_line, data_text
from airferry.defaults import CATALOGUE_FOLDER, JOBS_FOLDER, PLAN_CONFIG, SITE_FILE
from airferry.errors import AirferryError, UsageError
from airferry.wording import counted, size_text

SHOWN_BESIDE = 20


def register(app: typer.Typer) -> None:
    """Add this module's commands in the order in which an operator needs them."""
    app.command(rich_help_panel="Far side")(verify)
    app.command(rich_help_panel="Far side")(load)


def verify(
    context: typer.Context,
    bundle: LayoutArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a bundle or image layout, and that each image is complete for all its platforms."""
    reporter: Reporter = context.obj
    with reporter.display():
        report = api.verify(bundle, root=root, emit=reporter)
    if as_json:
        data(json.dumps(report.to_document(), indent=2))
    else:
        _show_report(report, reporter)
    report.raise_if_wrong(listed=not as_json)
    if not report.is_bundle:
        return
    if report.root_verified:
        reporter.say("[green]Verified:[/] every byte is what the root names, and the root is the one that you gave.")
    else:
        reporter.say("Checked integrity, not origin: pass the root digest from the separate channel with `--root`.")
    if not as_json:
        reporter.next(*loading(bundle, as_typed(context, "root"), root_verified=report.root_verified))


def _show_report(report: api.VerifyReport, reporter: Reporter) -> None:
    for finding in report.findings:
        data_text(str(finding))
    for line in report.beside[:SHOWN_BESIDE]:
        reporter.say("[yellow]note:[/] {}", line)
    if (more := len(report.beside) - SHOWN_BESIDE) > 0:
        reporter.say("[yellow]note:[/] {} more notes about the folder; `--json` lists all", more)
    for line in report.litter[:SHOWN_BESIDE]:
        reporter.say("[yellow]litter:[/] {}", line)
    if (more := len(report.litter) - SHOWN_BESIDE) > 0:
        reporter.say("[yellow]litter:[/] {} more of it; `--json` lists all", more)
    for defect in report.exempt[:SHOWN_BESIDE]:
        reporter.say("[yellow]note:[/] carried as it came, programs may read it differently: {}", str(defect))
    if (more := len(report.exempt) - SHOWN_BESIDE) > 0:
        reporter.say("[yellow]note:[/] {} more of that kind; `--json` lists all", more)
    amount = f"{report.blobs} blobs, {size_text(report.size_bytes)}"
    if not report.is_bundle:
        reporter.say(
            "[yellow]This is not a bundle of airferry.[/] If it was sent to you as one, it was stripped or "
            "replaced: do not use it."
        )
        reporter.say("checked as an image layout of another tool, by its own index; [yellow]not checked:[/]")
        for line in report.not_checked:
            reporter.say("  {}", line)
    reporter.say("{}; {}; {}", report.images_text, counted(report.artifacts, "artifact"), amount)
    reporter.say("root {}" + (" (as expected)" if report.root_verified else ""), report.root)
    if report.origin is not None:
        if not report.root_verified:
            reporter.say("[yellow]As the bundle claims:[/]")
        for line in report.origin.lines():
            reporter.say("{}", line)


def loading(bundle: Path, root: list[str], *, root_verified: bool) -> list[tuple[str, str]]:
    """Return what brings a bundle into a registry and its jobs to the nodes, as far as the site is described."""
    known = site_for_hints()
    if known is None:
        steps = [("describe the site once: registry, CA, what runs the jobs", command_line("airferry", "site", "init"))]
        steps.append(("log in, where the registry asks for a password", command_line("airferry", "login")))
        to = []
    else:
        steps = []
        to = [] if known.profile.registry or os.environ.get("AIRFERRY_TO") else ["--to", "HOST:PORT/PREFIX"]
    jobs = ["--jobs", JOBS_FOLDER] if known is None or known.profile.executors else []
    purpose = "load it, and write what submits the jobs" if jobs else "load it"
    # as a variable, for the shell to fill in: `load` refuses an empty root
    asked = "" if root_verified else ' --root "$ROOT"'
    where = "" if root_verified else "; ROOT is the digest from the separate channel"
    return [*steps, (purpose + where, command_line("airferry", "load", bundle, *root, *to, *jobs) + asked)]


def load(
    context: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Output folder of a build, or its bundle.", show_default=False),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="HOST:PORT/PREFIX", envvar="AIRFERRY_TO", help="Private registry to load into."),
    ] = None,
    root: RootOption = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            "--receipt", metavar="FILE", help="Receipt to write.", show_default="named by destination and root"
        ),
    ] = None,
    maps: MapOption = None,
    flatten: FlattenOption = False,
    artifacts: ArtifactsOption = "try",
    audit: AuditOption = "head",
    verify_first: VerifyFirstOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what a load would send and tag, or a rollback put back.")
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="With --dry-run: first test the registry, as `registry probe` does, below PREFIX.",
        ),
    ] = False,
    rollback: Annotated[
        Path | None,
        typer.Option(
            "--rollback",
            metavar="RECEIPT",
            help="Put back the tags that this load moved; load nothing. In a folder with several, "
            "--to and --root choose one.",
        ),
    ] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            "--jobs",
            metavar="DIR",
            help="Folder for receipt, catalogue, config overlays, env.toml profiles and submit commands.",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            "--site",
            metavar="FILE",
            envvar="AIRFERRY_SITE",
            help="Site profile, as for `overlays`; its `registry` and `ca_file` need not be typed.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", metavar="DIR", help="With --jobs: root of the catalogue, instead of the one in the bundle."
        ),
    ] = None,
    plain_http: PlainHttpOption = None,
    ca_file: CaFileOption = None,
    parallel: ParallelOption = 4,
    limit_rate: RateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle, load it into a private registry, read it back, and print the submit commands."""
    reporter: Reporter = context.obj
    _check_jobs(jobs, source=source)
    expect_filled(to, "--to")
    # a profile is read only where it may say something: one that is wrong, or of something else, stops no other load
    asks = jobs is not None or (to is None and rollback is None) or (ca_file is None and plain_http is not True)
    known = find_site(site, reporter) if asks else None
    options = make_options(plain_http=plain_http, ca_file=ca_file, jobs=parallel, limit_rate=limit_rate, site=known)
    if rollback is not None:
        if bundle is not None or probe or jobs is not None:
            raise UsageError(
                "`--rollback` takes a receipt and excludes a bundle, `--probe` and `--jobs`",
                hint="run the rollback by itself: `airferry load --rollback RECEIPT`",
            )
        result = api.rollback(rollback, to=to, root=root, dry_run=dry_run, options=options, emit=reporter)
        _show_rollback(result, as_json=as_json, reporter=reporter)
        return
    typed = to is not None
    to = to if typed or known is None else known.profile.registry
    if bundle is None or to is None:
        raise UsageError(
            "`load` requires a bundle and `--to HOST:PORT/PREFIX`, or `registry:` in the site profile",
            hint="or `--rollback RECEIPT`",
        )
    if probe and not dry_run:
        raise UsageError("`--probe` requires `--dry-run`", hint="or test the registry with `airferry registry probe`")
    destination = api.parse_destination(
        to, maps=parse_maps(maps or []), flatten=flatten, artifacts=artifacts, audit=audit, verify_first=verify_first
    )
    say_taken(reporter, known, registry=not typed, ca_file=options.ca_file)
    common: dict[str, Any] = {
        "to": destination,
        "root": root,
        "dry_run": dry_run,
        "options": options,
        "emit": reporter,
    }
    outcome: api.LoadOutcome | api.JobsOutcome
    with reporter.display():
        if probe:
            api.probe_registry(destination, options=options, emit=reporter)
        if jobs is None:
            outcome = loaded = api.load(bundle, receipt=receipt, **common)
        else:
            files = api.JobFiles(jobs, site=known or site, source=source, receipt=receipt)
            outcome = api.load_for_jobs(bundle, jobs=files, **common)
            loaded = outcome.loaded
    if as_json:
        data(json.dumps(outcome.to_document(), indent=2))
        return
    if dry_run:
        _show_plan(loaded)
        names = [
            "to",
            "root",
            "receipt",
            "maps",
            "flatten",
            "artifacts",
            "audit",
            "verify_first",
            "jobs",
            "site",
            "source",
        ]
        options_typed = as_typed(context, *names, "plain_http", "ca_file", "parallel", "limit_rate")
        reporter.next(("load it", command_line("airferry", "load", bundle, *options_typed)))
        return
    reporter.say("{}", loaded.summary)
    reporter.say("wrote {}", loaded.receipt_path)
    if isinstance(outcome, api.LoadOutcome):
        _show_commands(outcome, reporter, known)
    elif outcome.overlays is not None:
        show_overlays(outcome.overlays, jobs or Path(), reporter)
    _say_origin(outcome, known, reporter)
    reporter.next(*_after_load(context, outcome, jobs, known))


def _say_origin(outcome: api.LoadOutcome | api.JobsOutcome, known: api.FoundSite | None, reporter: Reporter) -> None:
    """Say where nothing, or only an earlier load, compared the root with one from a separate channel."""
    loaded = outcome if isinstance(outcome, api.LoadOutcome) else outcome.loaded
    if loaded.report.root_verified:
        return
    if loaded.receipt.root_verified:
        reporter.say("No `--root` was given; an earlier load compared this root, as its receipt says.")
        return
    reporter.say("Checked integrity, not origin: no `--root` was given.")
    own = known is not None and known.profile.submit is not None
    if loaded.receipt.submit and not own and isinstance(outcome, api.LoadOutcome):
        reporter.say("The submit commands are the bundle's own: read them before you run them.")


def _check_jobs(jobs: Path | None, *, source: Path | None) -> None:
    if jobs is not None and str(jobs).isdigit():
        raise UsageError(f"`--jobs {jobs}`: expected a folder", hint=f"for parallel transfers use `-j {jobs}`")
    if jobs is None and source is not None:
        raise UsageError("`--source` requires `--jobs DIR`", hint="or pass it to `airferry overlays` after the load")


def _show_commands(outcome: api.LoadOutcome, reporter: Reporter, known: api.FoundSite | None) -> None:
    """Print what submits each step, as far as it is known before overlays are written."""
    own = known.profile.submit if known is not None else None
    commands = outcome.submit_commands(template=own)
    if not commands:
        return
    if own is None and outcome.receipt.submit == "":
        reporter.say(
            "No command that submits is known for this catalogue; write your site's as `submit:` into the site "
            "profile. What it needs of each step:"
        )
    else:
        reporter.say("Submit each step with:")
    for command in commands:
        data_commands(command)
    if any(image.docker_twin for image in outcome.receipt.images):
        reporter.say("On Slurm, use the Docker twins of these images for enroot; the overlays name them.")
    if outcome.receipt.catalogue is None:
        reporter.say(
            "The {} no catalogue: `airferry overlays` takes a copy of the one that it was built from; the launcher "
            "image has it in its working directory.",
            "bundle contains" if outcome.manifest.catalogue is None else "registry holds",
        )


def _after_load(
    context: typer.Context, outcome: api.LoadOutcome | api.JobsOutcome, jobs: Path | None, known: api.FoundSite | None
) -> list[tuple[str, str]]:
    """Return what comes after a load: overlays, or the check of those that it wrote; and mirrors, if it holds bases."""
    loaded = outcome if isinstance(outcome, api.LoadOutcome) else outcome.loaded
    receipt, ca_file = loaded.receipt_path, as_typed(context, "ca_file")
    reach = [*as_typed(context, "site", "plain_http"), *ca_file]
    steps: list[tuple[str, str]] = []
    if jobs is not None:
        source = as_typed(context, "source")
        if not source and loaded.receipt.catalogue is None:
            # the registry has none for the check to take: the one that was written with the jobs is the bundle's
            source = ["--source", str(jobs / CATALOGUE_FOLDER)]
        steps.append(checking(receipt, jobs, [*reach, *source]))
    elif loaded.receipt.targets or loaded.receipt.steps:
        if known is None and site_for_hints() is None:
            # with the CA on record, what comes after it need not name it
            words = command_line("airferry", "site", "init", "--registry", loaded.receipt.registry, *ca_file)
            steps.append(("describe the site once: what runs the jobs", words))
            reach = as_typed(context, "plain_http")
        what = "these configs and the complete commands" if loaded.baked else "configs and complete commands"
        source = [] if loaded.receipt.catalogue is not None else ["--source", "CATALOGUE"]
        words = command_line("airferry", "overlays", receipt, *source, *reach)
        steps.append((f"write {what} for your site (so does a load with --jobs DIR)", words))
    if any(image.role == "base" for image in loaded.receipt.images):
        words = command_line("airferry", "mirrors", receipt, *as_typed(context, "site"))
        steps.append(("let nodes pull the base images by their original names", words))
    return steps


def checking(receipt: Path, folder: Path, options: list[str]) -> tuple[str, str]:
    """Return what checks the overlays in a folder, the options being those that reach the same things again."""
    words = command_line("airferry", "check", receipt, "--overlays", folder, *options)
    return "check the jobs before you submit them", words


def show_overlays(made: api.OverlaySet, folder: Path, reporter: Reporter) -> None:
    """Print the commands of written overlays, and say how many files there are."""
    for step in made.steps:
        data_commands(step.command)
    for note in made.notes:
        reporter.say("[yellow]note:[/] {}", note)
    reporter.say("wrote {} below {}", counted(len(made.files), "file"), folder)


def _show_rollback(result: api.RollbackResult, *, as_json: bool, reporter: Reporter) -> None:
    if as_json:
        data(json.dumps(result.to_document(), indent=2))
        return
    for verb, references in (("restore", result.restored), ("remove", result.removed)):
        for reference in references:
            data_line(f"would {verb}  {reference}" if result.dry_run else f"{verb}d  {reference}")
    would = "would be" if result.dry_run else "are"
    if not result.kept:
        said = f"all tags {would} back to their state before the load"
    elif result.restored or result.removed or result.unchanged:
        said = f"all other tags {would} back to their state before the load"
    else:
        said = "no tag was there before the load, so none has to go back"
    reporter.say(said + "; nothing was changed" * result.dry_run)


def _show_plan(outcome: api.LoadOutcome) -> None:
    for step in outcome.pushed.steps:
        data_items((step.action, f"{step.repository}@{step.digest}", size_text(step.size_bytes)))
    for sent in outcome.pushed.manifest_steps:
        data_items(("manifest", f"{sent.repository}@{sent.digest}", size_text(sent.size_bytes)))
    for move in outcome.moved_tags:
        was = [f"(was {move.previous})"] if move.previous else []
        data_items(("tag", move.reference, move.digest, *was))
    pushed = outcome.pushed
    data_line(f"would send {size_text(pushed.sent_bytes + pushed.manifest_bytes)}")


def find_site(path: Path | None, reporter: Reporter) -> api.FoundSite | None:
    """Return the site profile that an option names or that lies here, None where there is none.

    Raises:
        ConfigurationError: it is wrong.
    """
    # what is not there is not looked at with all that reads profiles, which takes a while to load
    if path is None and not any(Path(name).is_file() for name in (SITE_FILE, PLAN_CONFIG)):
        return None
    return api.known_site(path, emit=reporter)


def site_for_hints() -> api.FoundSite | None:
    """Return the site profile that the next command will find, for what is said of that; None where it is wrong."""
    named = os.environ.get("AIRFERRY_SITE")
    try:
        return find_site(Path(named) if named else None, Reporter(quiet=True))
    except AirferryError:
        return None


def say_taken(
    reporter: Reporter, known: api.FoundSite | None, *, registry: bool = False, ca_file: Path | None = None
) -> None:
    """Say which values come from the site profile and not from the command line."""
    if known is None:
        return
    taken = [f"registry {known.profile.registry}"] if registry and known.profile.registry else []
    taken += [f"CA {ca_file}"] if ca_file is not None and ca_file == known.ca_file else []
    if taken:
        reporter.say("{}: from {}", ", ".join(taken), known.path)


def make_options(
    *,
    plain_http: bool | None,
    ca_file: Path | None,
    jobs: int = 4,
    limit_rate: str | None = None,
    site: api.FoundSite | None = None,
) -> api.ClientOptions:
    """Return how registries are reached, from the options of a command, and else as the site profile says.

    Raises:
        UsageError: the rate is malformed.
    """
    rate = parse_size(limit_rate, option="--limit-rate", what="bytes per second") if limit_rate else None
    if ca_file is None and plain_http is not True and site is not None:
        ca_file = site.ca_file
    return api.ClientOptions(plain_http=plain_http, ca_file=ca_file, jobs=jobs, limit_rate=rate)


def parse_maps(values: list[str]) -> dict[str, str]:
    """Return `FROM=TO` options as a mapping.

    Raises:
        UsageError: one has another form.
    """
    maps = {}
    for value in values:
        source, equals, target = value.partition("=")
        if not equals or not source or not target:
            raise UsageError(f"`--map {value}`: expected `FROM=TO`", hint="for example `--map nvidia/nemo=mirror/nemo`")
        maps[source] = target
    return maps


def parse_size(text: str, *, option: str, what: str = "bytes") -> float:
    """Return a number with an optional K, M or G (powers of 1024).

    Raises:
        UsageError: it is not a positive number.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UsageError(
            f"`{option} {text}`: expected {what}, for example `20M`", hint="a number above 0, alone or with K, M or G"
        )
    return float(match[1]) * float(1024 ** " KMG".index(match[2].upper() or " "))
