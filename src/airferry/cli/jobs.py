"""Commands for jobs, once a bundle is loaded: site init, overlays, mirrors, check."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from airferry import api
from airferry.cli import completion
from airferry.cli.bundles import checking, find_site, make_options, show_overlays
from airferry.cli.findings import show_extent, show_findings, show_fixes
from airferry.cli.options import (
    CaFileOption,
    JsonOption,
    PlainHttpOption,
    ReceiptArgument,
    ReceiptRootOption,
    SiteOption,
    SiteSourceOption,
    StepsOption,
    TargetOption,
    as_typed,
    command_line,
    expect_filled,
)
from airferry.cli.render import Reporter, ask_line, data, data_items
from airferry.defaults import COMMANDS_FILE, NODES_FILE, OVERLAYS_FOLDER, PROFILE_FILE, RECEIPT_STEM, SITE_FILE
from airferry.errors import UsageError
from airferry.host import files
from airferry.wording import counted

_PANEL = "Far side"
EXECUTORS_QUESTION = "Executors, separated by commas (slurm-pyxis:VERSION, kubernetes, …)"
EXECUTOR_NEEDED = "name at least one: what runs the jobs decides how images are named"
_MAX_COMMANDS_BYTES = 16 * 1024 * 1024
_SITE_OPTIONS: dict[tuple[str | int, ...], str] = {
    ("executors",): "--executor",
    ("registry",): "--registry",
    ("ca_file",): "--ca-file",
    ("node_ca_file",): "--node-ca-file",
    ("platform",): "--platform",
    ("gpu", "driver"): "--gpu-driver",
    ("gpu", "compute_capabilities"): "--compute-capability",
    ("mounts",): "--mount",
    ("mirrors", "huggingface"): "--hf-mirror",
    ("mirrors", "packages"): "--package-index",
    ("mirrors", "wandb"): "--wandb",
    ("endpoints",): "--endpoint",
    ("submit",): "--submit",
}

site_app = typer.Typer(help="Describe the far side in a site profile.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this module's commands in the order in which an operator needs them."""
    site_app.command("init")(init)
    app.add_typer(site_app, name="site", rich_help_panel=_PANEL)
    app.command(rich_help_panel=_PANEL)(overlays)
    app.command(rich_help_panel=_PANEL)(mirrors)
    app.command(rich_help_panel=_PANEL)(check)


def init(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Profile to write.")] = Path(SITE_FILE),
    executor: Annotated[
        list[str] | None,
        typer.Option(
            "--executor",
            metavar="KIND[:VERSION]",
            help="For example slurm-pyxis:4.0 or kubernetes. Repeatable; accepts commas.",
            autocompletion=completion.executor_kinds,
        ),
    ] = None,
    registry: Annotated[
        str | None, typer.Option("--registry", metavar="HOST:PORT/PREFIX", help="Private registry of the site.")
    ] = None,
    ca_file: Annotated[
        str | None,
        typer.Option("--ca-file", metavar="FILE", help="PEM certificate of the registry's private CA, on this host."),
    ] = None,
    node_ca_file: Annotated[
        str | None, typer.Option("--node-ca-file", metavar="PATH", help="Path of that certificate on the nodes.")
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            "--platform",
            metavar="OS/ARCH",
            help="Platform of the nodes.",
            autocompletion=completion.platforms,
        ),
    ] = None,
    gpu_driver: Annotated[
        str | None, typer.Option("--gpu-driver", metavar="VERSION", help="Version of the NVIDIA driver.")
    ] = None,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="N.N",
            help="Compute capability of the GPUs, for example 9.0. Repeatable; accepts commas.",
        ),
    ] = None,
    mount: Annotated[
        list[str] | None,
        typer.Option(
            "--mount",
            metavar="PATH[:TARGET][:ro|rw]",
            help="Persistent storage on the nodes. Repeatable; accepts commas.",
        ),
    ] = None,
    huggingface: Annotated[
        str | None, typer.Option("--hf-mirror", metavar="URL", help="Mirror of the Hugging Face Hub.")
    ] = None,
    packages: Annotated[
        str | None, typer.Option("--package-index", metavar="URL", help="Python package index.")
    ] = None,
    wandb: Annotated[str | None, typer.Option("--wandb", metavar="URL", help="W&B server.")] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option("--endpoint", metavar="PROVIDER=URL", help="Model provider inside the site. Repeatable."),
    ] = None,
    submit: Annotated[
        str | None,
        typer.Option(
            "--submit",
            metavar="COMMAND",
            help="Command that submits a step, with {step}, {config}, {profile} and {overrides}.",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", metavar="EXECUTOR=NAME", help="Profile in env.toml for an executor. Repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a site profile from options; on a terminal, prompt for the missing ones."""
    reporter: Reporter = context.obj
    expect_filled(registry, "--registry")
    document: dict[str, Any] = {
        "executors": _each(executor),
        "registry": registry,
        "ca_file": ca_file,
        "node_ca_file": node_ca_file,
        "platform": platform,
        "gpu": {"driver": gpu_driver, "compute_capabilities": _each(capability)},
        "mounts": _each(mount),
        "mirrors": {"huggingface": huggingface, "packages": packages, "wandb": wandb},
        "endpoints": parse_pairs(endpoint or [], "--endpoint", "PROVIDER=URL"),
        "submit": submit,
    }
    profiles = parse_pairs(profile or [], "--profile", "EXECUTOR=NAME")
    if reporter.may_ask:
        # what is wrong already is not found out after twelve answers
        _from_profile(document["ca_file"], out)
        named = _with_profiles(document["executors"], profiles) if document["executors"] else []
        typed = {**_without_empty(document), "executors": named}
        api.init_site(out, typed, force=force, only_check=True, options=_SITE_OPTIONS)
        _ask(reporter, document, profiles)
    document["executors"] = _with_profiles(document["executors"], profiles)
    document["ca_file"] = _from_profile(document["ca_file"], out)
    document = _without_empty(document)
    written = api.init_site(out, document, force=force, options=_SITE_OPTIONS)
    for unable in written.without_zstd:
        reporter.say("{} cannot read zstd: the near side's plan selects gzip for this site.", unable)
    reporter.say("wrote {}", out)
    if written.registry:
        elsewhere = out != Path(SITE_FILE)
        host = [written.registry.partition("/")[0]] if elsewhere else []
        reach = ["--ca-file", written.ca_file] if elsewhere and written.ca_file else []
        words = command_line("airferry", "login", *host, *reach)
        reporter.next(("log in, where the registry asks for a password", words))


def _without_empty(document: Mapping[str, Any]) -> dict[str, Any]:
    below = {key: {name: value for name, value in document[key].items() if value} for key in ("gpu", "mirrors")}
    return {**document, **below}


def _from_profile(ca_file: str | None, out: Path) -> str | None:
    """Return the path of a CA that was typed here as a profile elsewhere has to name it: its paths start there.

    Raises:
        UsageError: there is no such file.
    """
    if not ca_file:
        return ca_file
    path = files.expand_home(Path(ca_file))
    if not files.is_file(path):
        raise UsageError(f"`--ca-file {ca_file}`: there is no such file", hint="nothing was written")
    return ca_file if files.resolved(out.parent) == files.resolved(Path()) else str(path.absolute())


def _with_profiles(executors: list[str], profiles: Mapping[str, str]) -> list[Any]:
    made: list[Any] = []
    unused = dict(profiles)
    for text in executors:
        kind, _, version = text.partition(":")
        name = unused.pop(kind, None)
        made.append({"kind": kind, **({"version": version} if version else {}), "profile": name} if name else text)
    if unused:
        raise UsageError(
            f"`--profile {next(iter(unused))}=…` names an executor that the site does not have",
            hint=f"add `--executor {next(iter(unused))}`, or leave the profile out",
        )
    return made


def _ask(reporter: Reporter, document: dict[str, Any], profiles: dict[str, str]) -> None:
    """Ask on the terminal for what no option says.

    An empty answer leaves out what a profile may lack; a wrong one is said at once, and asked for again.
    """

    def trouble_of(key: str, value: Any, below: str | None) -> str | None:
        if key == "ca_file" and value and not files.is_file(files.expand_home(Path(value))):
            return f"`{value}`: there is no such file; Enter leaves it out"
        if value:
            return api.site_trouble(key, {below: value} if below else value)
        return EXECUTOR_NEEDED if key == "executors" else None

    def ask(question: str, key: str, make: Callable[[str], Any], *, below: str | None = None) -> Any:
        while True:
            answer = ask_line(question)
            value = make(answer)
            trouble = trouble_of(key, value, below)
            if trouble is None:
                return value
            reporter.say("[red]{}[/]", " ".join(trouble.split()))

    document["executors"] = document["executors"] or ask(EXECUTORS_QUESTION, "executors", _listed)
    document["registry"] = document["registry"] or ask("Registry and prefix (HOST:PORT/PREFIX)", "registry", str)
    if document["registry"]:
        document["ca_file"] = document["ca_file"] or ask(
            "PEM certificate of its private CA, on this host (FILE)", "ca_file", str
        )
    if document["ca_file"]:
        document["node_ca_file"] = document["node_ca_file"] or ask(
            "Path of that certificate on the nodes (PATH)", "node_ca_file", str
        )
    document["platform"] = document["platform"] or ask("CPU platform of the nodes (linux/amd64)", "platform", str)
    gpu = document["gpu"]
    gpu["driver"] = gpu["driver"] or ask("NVIDIA driver version", "gpu", str, below="driver")
    gpu["compute_capabilities"] = gpu["compute_capabilities"] or ask(
        "Compute capabilities (9.0, …)", "gpu", _listed, below="compute_capabilities"
    )
    document["mounts"] = document["mounts"] or ask(
        "Storage, separated by commas (PATH[:TARGET][:ro|rw])", "mounts", _listed
    )
    mirrors = document["mirrors"]
    for name, what in (("huggingface", "Hugging Face mirror"), ("packages", "Package index"), ("wandb", "W&B server")):
        mirrors[name] = mirrors[name] or ask(f"{what} (URL)", "mirrors", str, below=name)
    document["endpoints"] = document["endpoints"] or ask(
        "Model providers inside, separated by commas (PROVIDER=URL)", "endpoints", _paired
    )
    for text in document["executors"]:
        kind = text.partition(":")[0]
        if kind not in profiles and (
            name := ask(f"Profile of env.toml for {kind}", "profiles", lambda answer: {answer: {}} if answer else {})
        ):
            profiles[kind] = next(iter(name))


def _each(values: list[str] | None) -> list[str]:
    """Return the values of an option that is repeatable and accepts commas."""
    return [part for value in values or () for part in _listed(value)]


def _listed(answer: str) -> list[str]:
    return [part.strip() for part in answer.split(",") if part.strip()]


def _paired(answer: str) -> dict[str, str]:
    """Return `NAME=VALUE, …` as a mapping; what has no `=` becomes a name with an empty value, which no key takes."""
    return {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in _listed(answer))}


def overlays(
    context: typer.Context,
    receipt: ReceiptArgument = Path(),
    source: SiteSourceOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the overlays.")] = Path(OVERLAYS_FOLDER),
    site: SiteOption = None,
    steps: StepsOption = None,
    root: ReceiptRootOption = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="BUNDLE", help="Take the catalogue from this bundle, not from the registry."),
    ] = None,
    plain_http: PlainHttpOption = None,
    ca_file: CaFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a config overlay for each step that pins the loaded image, and the command that submits it."""
    reporter: Reporter = context.obj
    known = find_site(site, reporter)
    options = make_options(plain_http=plain_http, ca_file=ca_file, site=known)
    with reporter.display():
        made = api.overlays(
            receipt,
            out=out,
            catalogue=api.CatalogueSource(source=source, bundle=bundle, steps=steps, root=root),
            site=known or site,
            options=options,
            emit=reporter,
        )
    if as_json:
        data(json.dumps({"out": str(out), "steps": [step.to_document() for step in made.steps]}, indent=2))
        return
    show_overlays(made, out, reporter)
    words = as_typed(context, "site", "source", "steps", "root", "bundle", "plain_http", "ca_file")
    if made.private_ca and options.ca_file is None:
        words += ["--ca-file", "CA.pem"]
    reporter.next(checking(receipt, out, words))


def mirrors(
    context: typer.Context,
    receipt: ReceiptArgument = Path(),
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")] = Path("airgap-mirrors"),
    plain_http: PlainHttpOption = None,
    ca_file: Annotated[
        str | None,
        typer.Option("--ca-file", metavar="PATH", help="PEM certificate of a private CA: its path on the nodes."),
    ] = None,
    site: SiteOption = None,
    root: ReceiptRootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write mirror configurations that redirect the original names of base images to the private registry."""
    reporter: Reporter = context.obj
    known = find_site(site, reporter)
    ca = api.NodeCa(ca_file)
    if plain_http is not True and known is not None:
        path, certificate = ca_file or known.profile.node_ca_file, known.ca_file
        # where the path on the nodes is known, one that is not on this host is not needed here
        there = certificate is not None and (path is None or files.is_file(certificate))
        ca = api.NodeCa(path, certificate if there else None)
    made = api.mirrors(receipt, out=out, plain_http=plain_http, ca=ca, site=known, root=root, emit=reporter)
    if as_json:
        images = [
            {"original": str(image.original), "mirror": str(image.place), "digest": image.digest}
            for image in made.images
        ]
        data(json.dumps({"out": str(out), "images": images, "files": list(made.files)}, indent=2))
        return
    for image in made.images:
        data_items((str(image.original), str(image.place), image.digest))
    reporter.say("wrote {} below {}", counted(len(made.files), "file"), out)
    kinds = {executor.kind for executor in known.profile.executors} if known is not None else set()
    steps = [(step.purpose, step.command) for step in made.steps(kinds)]
    inside = ("the commands that follow, for every runtime, are in INSTALL.txt there", command_line("cd", out))
    reporter.next(inside, *steps, where=f"where `{out.name}` was copied to or is shared")


def check(
    context: typer.Context,
    source: SiteSourceOption = None,
    receipt: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECEIPT",
            help="Receipt that `airferry load` wrote, or its folder; by default the current one, unless --source or "
            "--bundle is given. Without a receipt, images are not checked.",
            show_default=False,
        ),
    ] = None,
    site: SiteOption = None,
    target: TargetOption = None,
    overlays_folder: Annotated[
        Path | None,
        typer.Option("--overlays", metavar="DIR", help="Folder that `airferry overlays` wrote, to check as well."),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option("--executor", metavar="EXECUTOR", help="Executor of the site; by default each one."),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option("--env-file", metavar="FILE", envvar="NEMOTRON_ENV_FILE", help="env.toml that jobs use."),
    ] = None,
    profile: Annotated[str | None, typer.Option("--profile", metavar="NAME", help="Profile in that file.")] = None,
    steps: StepsOption = None,
    root: ReceiptRootOption = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="BUNDLE", help="Bundle to take the catalogue and the recorded assets from."),
    ] = None,
    hash_assets: Annotated[
        bool, typer.Option("--hash-assets", help="Hash every byte of the assets instead of comparing names and sizes.")
    ] = False,
    registry: Annotated[
        bool, typer.Option("--registry/--no-registry", help="Query the registry for the images and what they need.")
    ] = True,
    plain_http: PlainHttpOption = None,
    ca_file: CaFileOption = None,
    notes: Annotated[bool, typer.Option("--notes", help="Show notes as well.")] = False,
    fixes: Annotated[
        bool, typer.Option("--fixes", help="End with all overrides to type: for each job, one line to copy.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check each step: needs nothing from outside, and finds what it reads. Exits with 8 if something blocks a job."""
    reporter: Reporter = context.obj
    if receipt is None and source is None and bundle is None:
        # `load --jobs` puts the receipt and what it wrote with it into one folder
        places = [Path(), *([overlays_folder] if overlays_folder is not None else [])]
        receipt = next((place for place in places if any(place.glob(f"{RECEIPT_STEM}*.yaml"))), None)
    known = find_site(site, reporter)
    with reporter.display():
        report = api.check(
            api.JobSelection(
                site=known or site,
                targets=tuple(target or ()),
                executor=executor,
                profile=profile,
                env_file=env_file,
                overlays=overlays_folder,
            ),
            receipt=receipt,
            catalogue=api.CatalogueSource(source=source, bundle=bundle, steps=steps, root=root),
            hash_assets=hash_assets,
            ask_registry=registry,
            options=replace(
                make_options(plain_http=plain_http, ca_file=ca_file, site=known),
                connect_timeout_s=10.0,
                read_timeout_s=20.0,
            ),
            emit=reporter,
        )
    if as_json:
        data(json.dumps(report.to_document(), indent=2))
    else:
        show_findings(reporter, report, notes=notes)
        if fixes:
            show_fixes(report, notes=notes)
        show_extent(reporter, report, registry=registry)
    report.raise_if_blocked()
    if as_json:
        return
    if overlays_folder is not None:
        reporter.next(*_submitting(overlays_folder, report.executors))
    elif receipt is not None:
        words = as_typed(context, "site", "source", "steps", "root", "bundle", "plain_http", "ca_file")
        reporter.next(("write what submits them", command_line("airferry", "overlays", receipt, *words)))


def _submitting(folder: Path, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Return what shows how jobs are submitted on each executor, of the files that `overlays` wrote into a folder."""
    shown: list[tuple[str, str]] = []
    for kind in kinds:
        on = f"{kind}: " if len(kinds) > 1 else ""
        # without a known command, the file has only comments
        commands = folder / kind / COMMANDS_FILE
        lines = files.read_bounded(commands, limit_bytes=_MAX_COMMANDS_BYTES).splitlines() if commands.is_file() else []
        runs = any(line.strip() and not line.startswith(b"#") for line in lines)
        purposes = {
            NODES_FILE: "once: what lets the nodes pull, with the registry's CA and password",
            PROFILE_FILE: "add this profile to those that the commands read (Nemotron: env.toml)",
            COMMANDS_FILE: "then run the jobs' commands" if runs else "then submit the jobs: what each needs, and how",
        }
        shown += [
            (f"{on}{purpose}", command_line("cat", folder / kind / name))
            for name, purpose in purposes.items()
            if (folder / kind / name).is_file()
        ]
    return shown


def parse_pairs(values: list[str], option: str, form: str) -> dict[str, str]:
    """Return `NAME=VALUE` options as a mapping.

    Raises:
        UsageError: one has another form.
    """
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise UsageError(
                f"`{option} {value}`: expected `{form}`", hint=f"write `{option} NAME=VALUE`, once for each"
            )
        pairs[name] = rest
    return pairs
