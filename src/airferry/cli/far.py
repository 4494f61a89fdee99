"""The far side's commands: verify, load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from airferry import usecases
from airferry.cli.render import Reporter, data, sizes
from airferry.errors import IntegrityError

BundleArgument = Annotated[Path, typer.Argument(help="The output folder of a build, or the bundle in it.")]
RootOption = Annotated[
    str | None,
    typer.Option("--root", envvar="AIRFERRY_ROOT", help="Digest of the bundle, as it came by another way."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands in the order in which an operator needs them."""
    app.command(rich_help_panel="Far side")(verify)


def verify(
    context: typer.Context,
    bundle: BundleArgument,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a bundle, and that every image in it is whole for each of its platforms."""
    reporter: Reporter = context.obj
    with reporter.display():
        report = usecases.verify(bundle, root=root, emit=reporter)
    if as_json:
        data(json.dumps(report.to_document(), indent=2))
    else:
        for line in report.lines():
            data(line)
    if not report.ok:
        raise IntegrityError(
            f"the bundle `{bundle}` is not what it should be: {len(report.findings)} findings",
            hint="carry it over again; nothing of it has been used",
        )
    if root is None:
        reporter.console.print(
            "Integrity was checked, not origin: compare the root with the one that came by another way (`--root`)."
        )
