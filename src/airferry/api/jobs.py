"""A bundle into a registry and out to jobs in one go: what `load` does, and then what `overlays` does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.api.catalogue import Whereabouts
from airferry.api.far import LoadOutcome, load
from airferry.api.site import read_site, write_overlays
from airferry.bundle.receipt import RECEIPT_FILE, Receipt
from airferry.bundle.verify import open_bundle
from airferry.config import SiteProfile
from airferry.errors import AirferryError
from airferry.events import Emit, Warned, silent
from airferry.far import load as loading
from airferry.host import files
from airferry.jobs.configs import OverlaySet, image_of, make_overlays, targets_of
from airferry.jobs.images import ask_images, pull_warnings
from airferry.jobs.submission import reference_for
from airferry.registry.client import ClientOptions


@dataclass(frozen=True, slots=True)
class JobsOutcome:
    """What was loaded, and what was written to submit jobs with; None where it was only tried."""

    loaded: LoadOutcome
    overlays: OverlaySet | None

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        made = self.overlays
        return {
            **self.loaded.to_document(),
            "jobs": None if made is None else {"steps": [step.to_document() for step in made.steps]},
        }


def load_for_jobs(
    bundle: Path,
    *,
    to: str,
    jobs: Path,
    site: Path | None = None,
    source: Path | None = None,
    root: str | None = None,
    receipt: Path | None = None,
    maps: Mapping[str, str] | None = None,
    flatten: bool = False,
    dry_run: bool = False,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> JobsOutcome:
    """Load a bundle, and write into `jobs` the receipt, the catalogue, and what `overlays` writes.

    Everything that can fail without the registry is tried before anything is sent: the site's profile, the catalogue,
    the overlays for it, and the places to write to. The catalogue is `source`, else the bundle's own.

    Raises:
        UsageError: there is no catalogue, or `jobs` holds something else in its place; and as `load` raises.
        ConfigurationError: the site's profile is wrong, or does not fit catalogue and bundle.
        HostError: `jobs` or the receipt's folder is not writable.
        AirferryError: as `load` raises.
    """
    known = read_site(site)
    jobs = files.without_dots(jobs)
    opened = open_bundle(bundle, root=root)
    loading.expect_outside(jobs, opened.store.path)
    before = Whereabouts(source=source, bundle=opened, options=options, emit=emit)
    before.expect(jobs)
    receipt_path = receipt or jobs / RECEIPT_FILE
    if not dry_run:
        files.expect_writable(jobs)
        loading.expect_receipt_place(receipt_path)
    expected = loading.expected_receipt(opened, to=to, maps=maps, flatten=flatten)
    with before.open(beside=jobs) as catalogue:
        make_overlays(expected, catalogue, site=known, out=jobs.absolute())
    loaded = load(
        bundle,
        to=to,
        root=root,
        receipt=receipt_path,
        maps=maps,
        flatten=flatten,
        dry_run=dry_run,
        options=options,
        emit=emit,
    )
    if dry_run:
        return JobsOutcome(loaded, None)
    _warn_of_pulls(loaded.receipt, known, options=options, emit=emit)
    places = Whereabouts(source=source, bundle=opened, receipt=loaded.receipt, options=options, emit=emit)
    try:
        made = write_overlays(loaded.receipt, places, site=known, out=jobs)
    except AirferryError:
        # the error is about the folder alone: without this, an operator would load again
        words = ["airferry", "overlays", str(receipt_path), "--out", str(jobs)]
        for option, value in (("--source", source), ("--site", site)):
            words += [option, str(value)] if value is not None else []
        emit(
            Warned(
                f"the bundle is loaded (receipt `{receipt_path}`), but the files for jobs were not written",
                hint=f"fix the error, then run `{shlex.join(words)}`",
            )
        )
        raise
    return JobsOutcome(loaded, made)


def _warn_of_pulls(receipt: Receipt, site: SiteProfile, *, options: ClientOptions | None, emit: Emit) -> None:
    """Warn about images that the registry holds and does not give to an executor of the site.

    The load itself sees nothing of it: docker-registry 2.x shows OCI manifests to any client but enroot.
    """
    images = [image_of(receipt, target) for target in targets_of(receipt)]
    for executor in site.executors:
        names = {str(reference_for(executor, image)) for image in images}
        asked = ask_images(
            names, executor=executor, platform=site.platform, options=options or ClientOptions(), emit=emit
        )
        for warning in pull_warnings(executor, images, asked):
            emit(warning)
