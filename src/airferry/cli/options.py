"""The options and arguments that several commands share, each defined once. Options of one command stay with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from airferry.cli import completion
from airferry.defaults import PLAN_CONFIG
from airferry.errors import UsageError
from airferry.wording import shell_line

DEFAULT_PLAN_FILE = Path(PLAN_CONFIG)
MAX_PARALLEL = 64
MAX_READERS = 256


def command_line(*words: object) -> str:
    """Return a command line for a shell."""
    return shell_line(words)


def expect_filled(value: str | None, name: str) -> None:
    """Check that an option or argument which may be left out is not given without a value, as an unset variable gives.

    Raises:
        UsageError: it is empty: it would count as left out, and something else than was meant be taken.
    """
    if value is not None and not value.strip():
        raise UsageError(
            f"`{name}` is empty", hint="set the variable that it was given, or leave it out, quotes included"
        )


def as_typed(context: typer.Context, *names: str) -> list[str]:
    """Return some of a command's options as they were typed, for a command line that goes on from it.

    What the environment or a profile says is left out, as the next command finds it there too.
    """
    parameters = {parameter.name: parameter for parameter in context.command.params}
    words: list[str] = []
    for name in names:
        value, parameter = context.params.get(name), parameters[name]
        source = context.get_parameter_source(name)
        if value is None or source is None or source.name != "COMMANDLINE":
            continue
        options = parameter.secondary_opts if value is False else parameter.opts
        option = next((option for option in options if option.startswith("--")), None)
        if option is not None:
            values = value if isinstance(value, list | tuple) else [value]
            words += [
                word for one in values for word in ([option] if one is True or one is False else [option, str(one)])
            ]
    return words


def _jobs(help_text: str, *, flag: str = "--jobs", limit: int = MAX_PARALLEL) -> Any:
    """Return the option that says how much is done in parallel; all of its kind heed `AIRFERRY_JOBS`."""
    return typer.Option(flag, "-j", metavar="N", envvar="AIRFERRY_JOBS", min=1, max=limit, help=help_text)


# --- near side: what to build, and with what -------------------------------------------------------------------------

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        envvar="AIRFERRY_CONFIG",
        help="Configuration file.",
        show_default=str(DEFAULT_PLAN_FILE),
    ),
]
SourceOption = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="DIR",
        envvar="AIRFERRY_SOURCE",
        help="Root of the catalogue; overrides `source.root` in the configuration file.",
    ),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TARGET",
        help="STEP:CONFIG or STEP:PATH to use instead of those in the plan. Repeatable; accepts commas.",
        autocompletion=completion.targets,
    ),
]
PlatformOption = Annotated[
    list[str] | None,
    typer.Option(
        "--platform",
        "-p",
        metavar="OS/ARCH",
        help="Platform to build for instead of those in the plan. Repeatable; accepts commas.",
        autocompletion=completion.platforms,
    ),
]
StageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stage",
        "-s",
        metavar="STAGE",
        help="Stage to run, with its prerequisites. Repeatable; accepts commas.",
        autocompletion=completion.stages,
    ),
]
SharedProcessesOption = Annotated[
    bool,
    typer.Option(
        "--allow-shared-processes",
        help="Let code in containers see and signal your processes, on a host where they cannot be separated.",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        envvar="AIRFERRY_ENGINE",
        help="Container engine: auto, buildah or podman.",
        show_default=True,
        autocompletion=completion.engines,
    ),
]
ProbeOption = Annotated[
    str,
    typer.Option(
        "--probe",
        metavar="MODE",
        envvar="AIRFERRY_PROBE",
        help="How to find the Python modules of a base: static (read its files), run (start a container) or auto.",
        show_default=True,
        autocompletion=completion.probes,
    ),
]
LockedOption = Annotated[bool, typer.Option("--locked", help="Fail instead of changing airgap.lock.yaml.")]
BuildJobsOption = Annotated[
    int | None,
    _jobs("Images to build, and layers to read, in parallel."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="Limit for the processes that read layers, for example 4G; 2G by default."
    ),
]

# --- a bundle, its root digest, and what a load of it left -----------------------------------------------------------

LayoutArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Output folder of a build, its bundle, or any OCI image layout.")
]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Output folder of a build, or its bundle.")]
RootOption = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="DIGEST",
        envvar="AIRFERRY_ROOT",
        help="Root digest of the bundle, received over a separate channel.",
    ),
]
ReceiptArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECEIPT",
        help="Receipt that `airferry load` wrote, or its folder; by default the current one.",
        show_default=False,
    ),
]
ReceiptRootOption = Annotated[
    str | None,
    typer.Option(
        "--root", metavar="DIGEST", envvar="AIRFERRY_ROOT", help="Root digest of the bundle; the receipt must match it."
    ),
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FROM=TO", help="Replace the prefix FROM of an image's repository by TO. Repeatable."
    ),
]
ArtifactsOption = Annotated[
    str,
    typer.Option(
        "--artifacts",
        metavar="CHOICE",
        help="Artifacts in the registry: require, try (load without those that it refuses), or skip.",
        show_default=True,
        autocompletion=completion.artifact_choices,
    ),
]
AuditOption = Annotated[
    str,
    typer.Option(
        "--audit",
        metavar="CHOICE",
        help="What is read back before tags move: head (manifests; of blobs that were sent the size), or read (every "
        "byte).",
        show_default=True,
        autocompletion=completion.audit_choices,
    ),
]
VerifyFirstOption = Annotated[
    bool,
    typer.Option(
        "--verify-first",
        help="Read and hash all of the bundle before anything is sent; else each blob is hashed as it is sent.",
    ),
]
FlattenOption = Annotated[bool, typer.Option("--flatten", help="Keep only the last part of each repository's path.")]

# --- the site --------------------------------------------------------------------------------------------------------

SiteSourceOption = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="DIR",
        envvar="AIRFERRY_SOURCE",
        help="Root of the catalogue, instead of the one in the bundle.",
    ),
]
SiteOption = Annotated[
    Path | None,
    typer.Option(
        "--site",
        metavar="FILE",
        envvar="AIRFERRY_SITE",
        help="Site profile; by default `site.yaml` or `airgap.yaml` in the current folder.",
    ),
]
StepsOption = Annotated[
    str | None,
    typer.Option("--steps", metavar="DIR", help="Folder of the steps in the catalogue, where several may be meant."),
]

# --- registries ------------------------------------------------------------------------------------------------------

PlainHttpOption = Annotated[
    bool | None, typer.Option("--plain-http/--tls", help="Use plain HTTP; not needed for localhost.")
]
CaFileOption = Annotated[
    Path | None, typer.Option("--ca-file", metavar="FILE", help="PEM certificate of a private CA.")
]
RateOption = Annotated[
    str | None,
    typer.Option(
        "--limit-rate", metavar="RATE", help="Limit in bytes per second over all connections, for example 20M."
    ),
]
TransfersOption = Annotated[
    int,
    _jobs("Maximum number of parallel transfers."),
]
ParallelOption = Annotated[
    int,
    _jobs("Maximum number of parallel transfers.", flag="--parallel"),
]

# --- assets ----------------------------------------------------------------------------------------------------------

AssetNameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Asset to take, if the bundle holds several.")
]
ReadersOption = Annotated[
    int | None,
    _jobs("Files to read in parallel.", limit=MAX_READERS),
]

# --- output ----------------------------------------------------------------------------------------------------------

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout and nothing else.")]
