"""The commands about registries and single images: login, logout, registry probe, copy."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from airferry import api
from airferry.cli import completion
from airferry.cli.bundles import find_site, make_options, parse_size, say_taken
from airferry.cli.options import (
    CaFileOption,
    JsonOption,
    PlainHttpOption,
    RateOption,
    TransfersOption,
    as_typed,
    command_line,
    expect_filled,
)
from airferry.cli.render import Reporter, ask_line, data, data_items, data_rows
from airferry.defaults import PROBE_REPOSITORY
from airferry.errors import UsageError

_IN_REGISTRY = "docker://"
MAX_PASSWORD_CHARACTERS = 64 * 1024
_PANEL = "Registries"

RegistryArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="HOST[:PORT][/PREFIX]",
        help="Registry, for all of which the login is; by default that of the site profile.",
        show_default=False,
    ),
]

registry_commands = typer.Typer(no_args_is_help=True, help="Test a registry.")


def register(app: typer.Typer) -> None:
    """Add this module's commands in the order in which an operator needs them."""
    app.command(rich_help_panel=_PANEL)(login)
    app.command(rich_help_panel=_PANEL)(logout)
    app.command(rich_help_panel=_PANEL)(copy)
    registry_commands.command()(probe)
    app.add_typer(registry_commands, name="registry", rich_help_panel=_PANEL)


def login(
    context: typer.Context,
    registry: RegistryArgument = None,
    username: Annotated[
        str | None, typer.Option("--username", "-u", metavar="NAME", help="User name; prompted for if missing.")
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from stdin instead of a prompt.")
    ] = False,
    plain_http: PlainHttpOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Log in to a registry and store the password where Podman stores it."""
    reporter: Reporter = context.obj
    asks = registry is None or (ca_file is None and plain_http is not True)
    known = find_site(None, reporter) if asks else None
    host = _registry_of(registry, known)
    options = make_options(plain_http=plain_http, ca_file=ca_file, site=known)
    say_taken(reporter, known, registry=registry is None, ca_file=options.ca_file)
    if not reporter.may_ask and (username is None or not password_stdin):
        reason = "`--quiet` never prompts" if reporter.quiet else "no terminal to prompt on"
        raise UsageError(reason, hint="use `--username NAME --password-stdin`")
    if username is None or not password_stdin:
        api.reach_registry(host, options=options)  # nobody types a password for a registry that cannot be reached
    name = username or ask_line("Username", needed=True)
    secret = (
        sys.stdin.read(MAX_PASSWORD_CHARACTERS).rstrip("\r\n")
        if password_stdin
        else ask_line("Password", needed=True, hidden=True)
    )
    if not secret:
        raise UsageError(
            "the password is empty",
            hint='pipe it in: `echo "$PASSWORD" | airferry login HOST:PORT -u NAME --password-stdin`',
        )
    path = api.login(host, name, secret, options=options)
    reporter.say("logged in to {} as {}; stored in {}", host, name, path)


def _registry_of(typed: str | None, known: api.FoundSite | None, *, whole: bool = False) -> str:
    """Return the registry that was typed, or else the host of the site profile's; `whole` asks for its prefix too.

    Raises:
        UsageError: neither names one.
    """
    if typed is not None:
        expect_filled(typed, "REGISTRY")
        return api.registry_host(typed)
    if known is None or known.profile.registry is None:
        raise UsageError(
            "which registry? The command names none, and no site profile here has `registry:`",
            hint="give `HOST:PORT`, or describe the site with `airferry site init`",
        )
    return known.profile.registry if whole else api.registry_host(known.profile.registry)


def logout(context: typer.Context, registry: RegistryArgument = None) -> None:
    """Remove the stored credentials of a registry from the files of Podman and Docker."""
    reporter: Reporter = context.obj
    host = _registry_of(registry, find_site(None, reporter) if registry is None else None)
    changed = api.logout(host)
    for path in changed:
        reporter.say("removed from {}", path)
    if not changed:
        reporter.say("no credentials stored for {}", host)


def probe(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST[:PORT][/REPO]",
            help="Registry, and the repository to test in; by default below the prefix of the site profile. With "
            "--bundle: the registry and prefix of the load.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="BUNDLE", help="Say what each fact means for a load of this bundle."),
    ] = None,
    plain_http: PlainHttpOption = None,
    ca_file: CaFileOption = None,
    limit_rate: RateOption = None,
    largest: Annotated[
        str, typer.Option("--largest", metavar="SIZE", help="Largest request to try, up to 1G.")
    ] = "64M",
    as_json: JsonOption = False,
) -> None:
    """Test what a registry supports and store the result for the next load.

    Tries media types, artifact types, sizes of requests, depths of names, a mount and deletions in a separate
    repository (`airferry-probe`), then cleans up and names what stays there. Requires push permission there.
    """
    reporter: Reporter = context.obj
    expect_filled(target, "HOST[:PORT][/REPO]")
    asks = target is None or (ca_file is None and plain_http is not True)
    known = find_site(None, reporter) if asks else None
    options = make_options(plain_http=plain_http, ca_file=ca_file, limit_rate=limit_rate, site=known)
    say_taken(reporter, known, registry=target is None, ca_file=options.ca_file)
    place: str | api.Destination | None = target
    if bundle is not None or target is None:
        place = api.parse_destination(
            target.removesuffix(f"/{PROBE_REPOSITORY}") if target else _registry_of(None, known, whole=True)
        )
    outcome = api.probe_registry(
        place or "",
        largest_bytes=int(parse_size(largest, option="--largest")),
        bundle=bundle,
        options=options,
        emit=reporter,
    )
    if as_json:
        data(json.dumps(outcome.to_document(), indent=2))
        return
    rows = []
    for fact in outcome.explained():
        mine = outcome.of_bundle.get(fact.name)
        meaning = "; ".join(text for text in (fact.meaning, f"here: {mine}" if mine else "") if text)
        rows.append((fact.name, fact.value, meaning))
    data_rows(rows)
    for warning in outcome.foreseen or ():
        reporter(warning)
    # a site that says what runs its jobs, and has no Slurm, has no enroot
    kinds = {executor.kind for executor in known.profile.executors} if known is not None else set()
    if (advice := outcome.advice_for_enroot) is not None and (not kinds or "slurm-pyxis" in kinds):
        reporter.say("{}", advice)
    if outcome.verdict:
        reporter.say("{}", outcome.verdict)
    reporter.say("stored in {}", outcome.path)
    if bundle is not None:
        to = ["--to", str(place)] if target is not None else []
        words = [*to, *as_typed(context, "plain_http", "ca_file", "limit_rate")]
        root = "" if os.environ.get("AIRFERRY_ROOT") else ' --root "$ROOT"'
        purpose = "load it; ROOT is the digest from the separate channel" if root else "load it"
        reporter.next((purpose, command_line("airferry", "load", bundle, *words) + root))


def copy(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="oci:DIR[:REF], oci-archive:FILE[:REF] or docker://HOST/REPO[:TAG].")
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="The same forms; without a name, the image keeps its own.")
    ],
    platform: Annotated[
        list[str] | None,
        typer.Option(
            "--platform",
            metavar="OS/ARCH",
            help="Copy only this platform of an index. Repeatable.",
            autocompletion=completion.platforms,
        ),
    ] = None,
    referrers: Annotated[
        bool, typer.Option("--referrers/--no-referrers", help="Copy the artifacts that refer to the image too.")
    ] = True,
    plain_http: PlainHttpOption = None,
    ca_file: CaFileOption = None,
    jobs: TransfersOption = 4,
    limit_rate: RateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy an image, index or artifact between layouts, archives and registries. Its digest stays the same."""
    reporter: Reporter = context.obj
    of_registry = any(place.startswith(_IN_REGISTRY) for place in (source, destination))
    asks = of_registry and ca_file is None and plain_http is not True
    known = find_site(None, reporter) if asks else None
    options = make_options(plain_http=plain_http, ca_file=ca_file, jobs=jobs, limit_rate=limit_rate, site=known)
    say_taken(reporter, known, ca_file=options.ca_file)
    with reporter.display():
        result = api.copy(
            source, destination, platforms=platform or (), referrers=referrers, options=options, emit=reporter
        )
    digest = result.descriptor.digest
    if as_json:
        document = {
            "destination": result.destination,
            "digest": digest,
            "media_type": result.descriptor.media_type,
            "left_out": [{"name": one.name, "reason": one.reason} for one in result.left_out],
            "unknown": list(result.unknown),
        }
        data(json.dumps(document, indent=2))
        return
    data_items((result.destination, digest))
    reporter.next(*_after_copy(context, result))


def _after_copy(context: typer.Context, result: api.CopyResult) -> list[tuple[str, str]]:
    """Return what looks at a copy: a check of a layout, a load of an archive, a pull from a registry by digest."""
    kind, _, rest = result.destination.partition(":")
    if kind == "oci":
        folder = rest.partition("@")[0].partition(":")[0]
        return [("check all that the layout holds", command_line("airferry", "verify", folder))]
    if kind == "oci-archive":
        return [("load it into Podman", command_line("podman", "load", "-i", rest.partition(":")[0]))]
    place = rest.removeprefix("//").partition("@")[0]
    host, _, path = place.partition("/")
    pinned = f"{_IN_REGISTRY}{host}/{path.partition(':')[0]}@{result.descriptor.digest}"
    words = [*as_typed(context, "plain_http", "ca_file"), pinned, "oci:copied-back:image"]
    return [("read it back by its digest, into a layout here", command_line("airferry", "copy", *words))]
