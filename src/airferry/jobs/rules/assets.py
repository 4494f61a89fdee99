"""Rules about assets: what a bundle says that steps need on storage is there, complete, and where containers look.

Looks at storage as far as this host sees it, at each asset once for all steps. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from airferry.assets.manifest import AssetManifest
from airferry.assets.staged import compare_asset
from airferry.bundle.manifest import AssetEntry
from airferry.errors import AirferryError
from airferry.events import Emit, silent
from airferry.jobs.context import StepContext
from airferry.jobs.findings import Finding
from airferry.wording import shell_line, some_of


@dataclass
class StagedAssets:
    """The assets of a bundle, to be compared with what is staged: by names and sizes, and by content if wanted."""

    entries: tuple[AssetEntry, ...] = ()
    manifests: Mapping[str, AssetManifest] = field(default_factory=dict, repr=False)
    content: bool = False
    emit: Emit = field(default=silent, repr=False)
    _seen: dict[tuple[str, Path], str | None] = field(default_factory=dict, repr=False)

    def trouble(self, name: str, path: Path) -> str | None:
        """Return what is wrong with an asset that is staged at a path, or None if nothing is."""
        key = (name, path)
        if key not in self._seen:
            self._seen[key] = self._look_at(name, path)
        return self._seen[key]

    def _look_at(self, name: str, path: Path) -> str | None:
        if not path.exists():
            return "is not there"
        if (manifest := self.manifests.get(name)) is None:
            return "has no file list in the bundle"
        try:
            report = compare_asset(manifest, path, content=self.content, emit=self.emit)
        except AirferryError as error:
            return f"cannot be read: {error.message}"
        if report.ok:
            return None
        shown = some_of([str(finding) for finding in report.findings], 2, separator="; ")
        return f"differs from what was recorded: {shown}"


def asset_findings(context: StepContext, assets: StagedAssets) -> Iterator[Finding]:
    """Yield what is to be said about the assets that a step reads."""
    for entry in assets.entries:
        if entry.target is not None and _reads(context, entry):
            yield from _asset(context, entry, entry.target, assets)


def _reads(context: StepContext, entry: AssetEntry) -> bool:
    return not entry.steps or bool({context.name, context.name.partition(":")[0]} & set(entry.steps))


def _asset(context: StepContext, entry: AssetEntry, target: str, assets: StagedAssets) -> Iterator[Finding]:
    key = f"assets.{entry.name}"
    what = f"the {entry.kind} `{entry.name}`" if entry.kind != "other" else f"the asset `{entry.name}`"
    _place, mount = context.place_of(target)
    if mount is None:
        text = f"{what} is expected at `{target}`, which is not on a mount"
        yield context.general("asset", "block", text, key=key, fix=f"mount storage that covers `{target}`")
        return
    here = context.on_this_host(target)
    if here is None or not Path(mount.host).exists():
        text = f"{what}: `{mount.host}` is not visible from this host; not checked"
        yield context.general("asset", "note", text, key=key, fix=f"there: {_verify(target)}")
    elif trouble := assets.trouble(entry.name, here):
        fix = f"stage it again, then: {_verify(str(here), '--name', entry.name)}"
        yield context.general("asset", "block", f"{what} {trouble} (`{here}` here)", key=key, fix=fix)


def _verify(place: str, *options: str) -> str:
    return shell_line(["airferry", "assets", "verify", "BUNDLE", place, *options])
