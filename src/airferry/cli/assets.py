"""The commands about assets, on both sides: `assets record`, `assets verify`, `assets unpack`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from airferry import api
from airferry.cli.far import JsonOption, RootOption
from airferry.cli.render import Reporter, data
from airferry.wording import counted, size_text

MAX_SHOWN_FINDINGS = 200
NameOption = Annotated[str | None, typer.Option("--name", help="Which asset of the bundle is meant, of several.")]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", envvar="AIRFERRY_JOBS", min=1, max=256, help="Files read at a time.")
]

assets = typer.Typer(
    no_args_is_help=True,
    help="Models, datasets, checkpoints and tokenizers that stay on storage: record here, verify there.",
)


def register(app: typer.Typer) -> None:
    """Add this module's commands as a group."""
    assets.command()(record)
    assets.command()(verify)
    assets.command()(unpack)
    app.add_typer(assets, name="assets", rich_help_panel="Both sides")


def record(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="The asset's folder, or the one file that it is.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the asset.", show_default="the folder's")] = None,
    kind: Annotated[str, typer.Option("--kind", help="model, dataset, checkpoint, tokenizer or other.")] = "other",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Manifest's file.", show_default="airgap-asset-NAME.jsonl")
    ] = None,
    jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write sizes and SHA-256 of all files of an asset, on all cores. Rerun it after any interruption: it goes on."""
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
    data(f"{outcome.path}  {manifest.digest}")
    reporter.say(f"{counted(len(manifest.files), 'file')}, {size_text(manifest.size_bytes)}")
    reporter.say(f"On the far side: [bold]airferry assets verify {outcome.path} PATH[/]")


def verify(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="What `assets record` wrote, or the bundle that carries it.")],
    path: Annotated[Path, typer.Argument(help="Where the asset is staged.")],
    name: NameOption = None,
    root: RootOption = None,
    jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that what is staged is complete and unaltered. Exits with 8 if anything is missing, extra or changed."""
    reporter: Reporter = context.obj
    with reporter.display():
        report = api.verify_asset(source, path, name=name, root=root, jobs=jobs, emit=reporter)
    if as_json:
        data(json.dumps(report.to_document(), indent=2))
    else:
        for finding in report.findings[:MAX_SHOWN_FINDINGS]:
            data(str(finding))
        if len(report.findings) > MAX_SHOWN_FINDINGS:
            reporter.say(f"and {len(report.findings) - MAX_SHOWN_FINDINGS} more; `--json` lists all")
    report.raise_if_wrong()
    amount = f"{counted(report.files, 'file')}, {size_text(report.size_bytes)}"
    reporter.say(f"asset {report.name} is complete: {amount}, {report.digest}")


def unpack(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A bundle, or HOST:PORT/REPOSITORY:TAG (or @DIGEST) of a registry.")],
    destination: Annotated[Path, typer.Argument(help="Folder to make; absent or empty.")],
    name: NameOption = None,
    root: RootOption = None,
    plain_http: Annotated[
        bool | None, typer.Option("--plain-http/--tls", help="Use plain HTTP; not needed for localhost.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option("--ca-file", help="Certificate of a private authority, PEM.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Unpack an asset that travelled as a ModelPack artifact. The folder appears whole or not at all."""
    reporter: Reporter = context.obj
    options = api.ClientOptions(plain_http=plain_http, ca_file=ca_file)
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
    data(str(done.path))
    reporter.say(f"{counted(done.files, 'file')}, {size_text(done.size_bytes)}")
