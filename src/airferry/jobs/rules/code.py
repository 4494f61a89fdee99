"""Rules about a step's own code: what it clones, installs or downloads when it starts, as findings of a check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from airferry.host import files
from airferry.host.parsing import url_host
from airferry.jobs.context import StepContext
from airferry.jobs.findings import Finding, FindingKind, Level
from airferry.jobs.rules.config import known_hosts
from airferry.plan.code.fetches import StartFetch, StartFetches
from airferry.plan.code.warnings import fetch_fix, plain_url

_KINDS: dict[str, FindingKind] = {"git": "git", "install": "startup", "hub": "huggingface", "download": "url"}


def code_findings(context: StepContext, fetches: StartFetches) -> Iterator[Finding]:
    """Yield what the step's code fetches by itself and neither its image holds nor the site has a mirror of.

    What its config decides is one note of each kind, at the first place: other rules look at the config's values.
    """
    baked = {plain_url(overlay.url) for overlay in context.image.overlays} if context.image is not None else set()
    hosts = known_hosts(context)
    undecided: dict[str, list[StartFetch]] = {}
    for fetch in fetches.of(context.files):
        held = fetch.kind == "git" and plain_url(fetch.what) in baked
        inside = "://" in fetch.what and url_host(fetch.what) in hosts
        if held or inside:
            continue
        if fetch.certain:
            yield _finding(context, fetch)
        else:
            undecided.setdefault(fetch.kind, []).append(fetch)
    for first, *others in undecided.values():
        also = dict.fromkeys(f"{context.shown_path(files.resolved(item.file))}:{item.line}" for item in others)
        yield replace(_finding(context, first), also=tuple(also))


def _finding(context: StepContext, fetch: StartFetch) -> Finding:
    mirrors = context.site.mirrors
    mirrored = {"hub": mirrors.huggingface, "install": mirrors.packages}.get(fetch.kind)
    level: Level = "warn" if fetch.certain and not mirrored else "note"
    return Finding(
        step=context.name,
        kind=_KINDS[fetch.kind],
        level=level,
        file=context.shown_path(files.resolved(fetch.file)),
        line=fetch.line,
        key=fetch.file.name,
        value=fetch.what,
        text=f"the step's code {fetch.text}" + ("; the site's mirror must have it" if mirrored else ""),
        fix=None if mirrored else f"on the near side, {fetch_fix(fetch, image='its image')}",
    )
