"""airferry history: the loads that folders have receipts of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from airferry import api
from airferry.cli.options import JsonOption, command_line
from airferry.cli.render import Reporter, data, data_items, data_text
from airferry.wording import counted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Far side")(history)


def history(
    context: typer.Context,
    folder: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders with receipts; by default the current one.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the loads that a folder has receipts of, oldest first."""
    reporter: Reporter = context.obj
    found = api.history(folder or [Path()])
    if as_json:
        data(json.dumps(found.to_document(), indent=2))
    else:
        for one in found.loads:
            data_items((one.loaded_at, one.registry, one.root))
            data_text(f"  {', '.join(_facts(one))}; {one.path}")
        if found.below:
            reporter.say("no receipts here")
            reporter.next(("list those in sub-folders", command_line("airferry", "history", *found.below)))
        elif not found.loads and not found.unreadable:
            reporter.say("no receipts here: `airferry load` writes one to the current folder, or to `--jobs DIR`")
    found.raise_if_unreadable()


def _facts(one: api.PastLoad) -> list[str]:
    facts = [counted(one.images, "image")]
    facts += [f"{counted(one.new_tags, 'tag')} new"] if one.new_tags else []
    facts += [f"{counted(one.moved_tags, 'tag')} moved"] if one.moved_tags else []
    facts.append("root verified" if one.root_verified else "root not verified")
    facts += [] if one.tls is None else ["TLS" if one.tls else "plain HTTP"]
    since = [(one.rolled_back_at, "rolled back"), (one.loaded_again_at, "loaded again")]
    return facts + [f"{what} {when}" for when, what in sorted((when, what) for when, what in since if when)]
