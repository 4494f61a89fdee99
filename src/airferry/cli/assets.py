"""The commands about assets, on both sides: `assets record`, `assets verify`, `assets unpack`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from airferry import api
from airferry.cli import completion
from airferry.cli.bundles import find_site, make_options, say_taken
from airferry.cli.options import (
    AssetNameOption,
    CaFileOption,
    JsonOption,
    PlainHttpOption,
    ReadersOption,
    RootOption,
    command_line,
)
from airferry.cli.render import Reporter, data, data_items, data_line, data_text
from airferry.host import files
from airferry.wording import counted, size_text

MAX_SHOWN_FINDINGS = 200
assets = typer.Typer(
    no_args_is_help=True,
    help="Models, datasets, checkpoints and tokenizers on storage: record them here, verify them there.",
)


def register(app: typer.Typer) -> None:
    """Add this module's commands as a group."""
    assets.command()(record)
    assets.command()(verify)
    assets.command()(unpack)
    app.add_typer(assets, name="assets", rich_help_panel="Both sides")


def record(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the asset, or its single file.")],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the asset.", show_default="name of the folder"),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="model, dataset, checkpoint, tokenizer or other.",
            autocompletion=completion.asset_kinds,
        ),
    ] = "other",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Manifest to write.", show_default="airgap-asset-NAME.jsonl"),
    ] = None,
    jobs: ReadersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record size and SHA-256 of all files of an asset, on all cores. Rerun after an interruption: it resumes."""
    reporter: Reporter = context.obj
    with reporter.display():
        outcome = api.record_asset(path, name=name, kind=kind, output=out, jobs=jobs, emit=reporter)
    manifest = outcome.manifest
    if as_json:
        document = {
            "name": manifest.name,
            "kind": manifest.kind,
            "manifest": str(outcome.path),
            "digest": manifest.digest,
            "files": len(manifest.files),
            "links": len(manifest.links),
            "size_bytes": manifest.size_bytes,
        }
        data(json.dumps(document, indent=2))
        return
    data_items((str(outcome.path), manifest.digest))
    reporter.say("{}, {}", counted(len(manifest.files), "file"), size_text(manifest.size_bytes))
    words = command_line("airferry", "assets", "verify", outcome.path.name, "PATH")
    reporter.next(("check what was staged at PATH", words), where=f"on the far side, next to `{outcome.path.name}`")


def verify(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Manifest from `assets record`, or a bundle that contains it.")
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Staged asset.")],
    name: AssetNameOption = None,
    root: RootOption = None,
    jobs: ReadersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a staged asset is complete and unchanged. Exits with 8 if a file is missing, extra or changed."""
    reporter: Reporter = context.obj
    with reporter.display():
        report = api.verify_asset(source, path, name=name, root=root, jobs=jobs, emit=reporter)
    if as_json:
        data(json.dumps(report.to_document(), indent=2))
    else:
        for finding in report.findings[:MAX_SHOWN_FINDINGS]:
            data_text(str(finding))
        if len(report.findings) > MAX_SHOWN_FINDINGS:
            reporter.say("and {} more; `--json` lists all", len(report.findings) - MAX_SHOWN_FINDINGS)
    report.raise_if_wrong()
    amount = f"{counted(report.files, 'file')}, {size_text(report.size_bytes)}"
    reporter.say("asset {} is complete: {}, {}", report.name, amount, report.digest)


def unpack(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A bundle, or HOST:PORT/REPOSITORY:TAG (or @DIGEST) in a registry.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="Folder to create; may exist if empty.")],
    name: AssetNameOption = None,
    root: RootOption = None,
    plain_http: PlainHttpOption = None,
    ca_file: CaFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unpack an asset that was carried as a ModelPack artifact, atomically."""
    reporter: Reporter = context.obj
    of_registry = not files.exists(Path(source)) and ca_file is None and plain_http is not True
    known = find_site(None, reporter) if of_registry else None
    options = make_options(plain_http=plain_http, ca_file=ca_file, site=known)
    say_taken(reporter, known, ca_file=options.ca_file)
    with reporter.display():
        done = api.unpack_asset(source, destination, name=name, root=root, options=options, emit=reporter)
    if as_json:
        document = {
            "path": str(done.path),
            "files": done.files,
            "links": done.links,
            "size_bytes": done.size_bytes,
        }
        data(json.dumps(document, indent=2))
        return
    data_line(str(done.path))
    reporter.say("{}, {}", counted(done.files, "file"), size_text(done.size_bytes))
