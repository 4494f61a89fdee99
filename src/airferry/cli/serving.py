"""Commands that show a bundle to others: report, serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from airferry import api
from airferry.cli.bundles import loading, parse_maps
from airferry.cli.options import (
    BundleArgument,
    FlattenOption,
    JsonOption,
    MapOption,
    RootOption,
    as_typed,
    command_line,
)
from airferry.cli.render import Reporter, data, data_items
from airferry.defaults import ARTIFACTS_REPOSITORY


def register(app: typer.Typer) -> None:
    """Add this module's commands in the order in which an operator needs them."""
    app.command(rich_help_panel="Far side")(report)
    app.command(rich_help_panel="Far side")(serve)


def report(
    context: typer.Context,
    bundle: BundleArgument,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one self-contained HTML file.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help="Write the report as plain text. Without --html or --text: to stdout."
        ),
    ] = None,
    root: RootOption = None,
) -> None:
    """Verify a bundle and report what it contains, why, and where it came from, for the approver."""
    reporter: Reporter = context.obj
    with reporter.display():
        outcome = api.report(bundle, html=html, text=text, root=root, emit=reporter)
    if not outcome.written:
        data(outcome.text)
    for path in outcome.written:
        reporter.say("wrote {}", path)
    verified = outcome.verified
    verified.raise_if_wrong()
    if not verified.root_verified:
        reporter.say("Checked integrity, not origin: pass the root digest from the separate channel with `--root`.")
    reporter.next(*loading(bundle, as_typed(context, "root"), root_verified=verified.root_verified))


def serve(
    context: typer.Context,
    bundle: BundleArgument,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Address to listen on; port 0 takes a free one.")
    ] = "127.0.0.1:5000",
    root: RootOption = None,
    verify_first: Annotated[
        bool,
        typer.Option("--verify-first", help="Verify all blobs before listening, instead of each before its first use."),
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="PEM certificate with its chain.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="PEM key of the certificate.")
    ] = None,
    htpasswd: Annotated[
        Path | None,
        typer.Option("--htpasswd", metavar="FILE", help="Users who may pull, in the format of `htpasswd -B`."),
    ] = None,
    maps: MapOption = None,
    flatten: FlattenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a bundle as a read-only registry, without copying it, until Ctrl-C.

    For sites that have no registry yet, and for nodes that pull directly. Repositories and tags are the same as after
    `load`. SIGHUP serves the bundle that is in the folder then.
    """
    reporter: Reporter = context.obj
    options = api.ServeOptions(
        maps=parse_maps(maps or []),
        flatten=flatten,
        tls_certificate=tls_cert,
        tls_key=tls_key,
        htpasswd=htpasswd,
        verify_first=verify_first,
    )
    with api.serve(bundle, listen=listen, root=root, options=options, emit=reporter) as serving:
        if as_json:
            images = [{"reference": reference, "digest": digest} for reference, digest in serving.images]
            data(json.dumps({"url": serving.url, "root": serving.root, "images": images}))
        else:
            for reference, digest in serving.images:
                data_items((reference, digest))
        reporter.say("serving root {}" + (" (as expected)" if serving.root_verified else ""), serving.root)
        reporter.say(
            "at {}, read-only; each blob is verified before it is first served; press Ctrl-C to stop", serving.url
        )
        if not as_json and serving.images:
            reporter.next(*_pulling(serving, password=htpasswd is not None), where="on a node")
        serving.run()


def _pulling(serving: api.Serving, *, password: bool) -> list[tuple[str, str]]:
    """Return what pulls an image of those that are served, by its digest, which no one on the way can change."""
    scheme, _, address = serving.url.partition("://")
    named = [(reference.removeprefix(f"{address}/"), digest) for reference, digest in serving.images]
    images = [one for one in named if not one[0].startswith(f"{ARTIFACTS_REPOSITORY}:")]
    reference, digest = (images or named)[0]
    repository = reference.rpartition(":")[0]
    plain = [] if scheme == "https" else ["--tls-verify=false"]
    login = [("log in", command_line("podman", "login", *plain, address))] if password else []
    return [*login, ("pull an image", command_line("podman", "pull", *plain, f"{address}/{repository}@{digest}"))]
