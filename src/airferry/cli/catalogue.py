"""The command about the catalogue that travels: `catalogue extract`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from airferry import api
from airferry.cli.bundles import find_site, make_options, say_taken
from airferry.cli.options import CaFileOption, JsonOption, PlainHttpOption, RootOption, as_typed, command_line
from airferry.cli.render import Reporter, data, data_line
from airferry.defaults import BUNDLE_FOLDER, RECEIPT_STEM
from airferry.wording import counted

catalogue = typer.Typer(no_args_is_help=True, help="The step catalogue in a bundle.")


def register(app: typer.Typer) -> None:
    """Add this module's command as a group."""
    catalogue.command()(extract)
    app.add_typer(catalogue, name="catalogue", rich_help_panel="Far side")


def extract(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A bundle; or the receipt of its load, or its folder, to pull from the registry."
        ),
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
    # as the use case decides; of a folder with both, the bundle counts
    receipts = source.is_dir() and any(source.glob(f"{RECEIPT_STEM}*.yaml")) and not (source / BUNDLE_FOLDER).exists()
    by_receipt = source.is_file() or receipts
    of_registry = by_receipt and ca_file is None and plain_http is not True
    known = find_site(None, reporter) if of_registry else None
    options = make_options(plain_http=plain_http, ca_file=ca_file, site=known)
    say_taken(reporter, known, ca_file=options.ca_file)
    with reporter.display():
        done = api.extract_catalogue(source, destination, root=root, site=known, options=options, emit=reporter)
    if as_json:
        document = {"path": str(done.path), "digest": done.digest, "files": done.files, "reused": done.reused}
        data(json.dumps(document, indent=2))
        return
    data_line(str(done.path))
    there = "already there and unchanged" if done.reused else "extracted"
    reporter.say("{} {}", counted(done.files, "file"), there)
    receipt = [source] if by_receipt else []
    words = [*receipt, "--source", done.path, *as_typed(context, "plain_http", "ca_file")]
    reporter.next(("look at what it needs on the site", command_line("airferry", "check", *words)))
