"""The command about the catalogue that travels: `catalogue extract`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from airferry import api
from airferry.cli.options import CaFileOption, JsonOption, PlainHttpOption, RootOption
from airferry.cli.render import Reporter, data, data_line
from airferry.wording import counted

catalogue = typer.Typer(no_args_is_help=True, help="The step catalogue in a bundle.")


def register(app: typer.Typer) -> None:
    """Add this module's command as a group."""
    catalogue.command()(extract)
    app.add_typer(catalogue, name="catalogue", rich_help_panel="Far side")


def extract(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A bundle, or the receipt of its load to pull from the registry.")
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="Folder to create; may exist if empty or extracted before.")
    ],
    root: RootOption = None,
    plain_http: PlainHttpOption = None,
    ca_file: CaFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Extract the step catalogue. Verifies all of it before writing, and writes to the given folder only."""
    reporter: Reporter = context.obj
    options = api.ClientOptions(plain_http=plain_http, ca_file=ca_file)
    with reporter.display():
        done = api.extract_catalogue(source, destination, root=root, options=options, emit=reporter)
    if as_json:
        document = {"path": str(done.path), "digest": done.digest, "files": done.files, "reused": done.reused}
        data(json.dumps(document, indent=2))
        return
    data_line(str(done.path))
    there = "already there and unchanged" if done.reused else "extracted"
    reporter.say("{} {}; next: [bold]--source {}[/]", counted(done.files, "file"), there, shlex.quote(str(done.path)))
