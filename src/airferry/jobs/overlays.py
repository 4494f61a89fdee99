"""Writing what submits jobs into a folder: overlays of configs, `env.toml` fragments, commands, and the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from airferry.config import SiteProfile
from airferry.config.site import EXECUTOR_KINDS
from airferry.events import Emit, silent
from airferry.host import files
from airferry.jobs.catalogue import CatalogueSource, Whereabouts
from airferry.jobs.configs import CONFIGS_MARK, OverlaySet, make_overlays
from airferry.jobs.profile import FoundSite, read_site
from airferry.registry.client import ClientOptions


def overlays(
    receipt: Path,
    *,
    out: Path,
    catalogue: CatalogueSource | None = None,
    site: Path | FoundSite | None = None,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> OverlaySet:
    """Write a config overlay for each step of a loaded bundle, `env.toml` fragments, and the commands that submit.

    A catalogue that comes from bundle or registry is extracted into `catalogue` below `out`, where the overlays find
    it. What an earlier run wrote into the folder and this one does not is removed.

    Raises:
        UsageError: there is no catalogue, or the folder for it holds something else.
        ConfigurationError: receipt, catalogue and site do not fit together.
        IntegrityError: it is not a receipt, or one of another bundle than the catalogue's `root` or `bundle`.
        RegistryError: the registry does not hand over the catalogue.
    """
    places = (catalogue or CatalogueSource()).find(receipt, options=options, emit=emit)
    known = read_site(site, receipt=places.receipt, emit=emit)
    return write_overlays(places, site=known, out=out)


def write_overlays(places: Whereabouts, *, site: SiteProfile, out: Path) -> OverlaySet:
    """Write what `overlays` writes, from a receipt and a catalogue that are at hand."""
    assert places.receipt is not None
    out = files.without_dots(out)
    made = make_overlays(places.receipt, places.kept_in(out), site=site, out=out.absolute())
    files.write_texts(out, made.files)
    _remove_stale(out, made.files)
    return made


def _remove_stale(out: Path, written: Mapping[str, str]) -> None:
    """Remove what an earlier run wrote for steps and executors that are no more; files of others stay.

    Nothing but the executors' own folders is looked at, as `out` may be a folder with much else in it.
    """
    mark = CONFIGS_MARK.encode()
    for path in sorted(path for kind in EXECUTOR_KINDS for path in (out / kind).rglob("*")):
        if path.is_symlink() or not path.is_file() or str(path.relative_to(out)) in written:
            continue
        with path.open("rb") as stream:
            stale = stream.read(len(mark)) == mark
        if stale:
            path.unlink()
