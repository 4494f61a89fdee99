"""A bundle into a registry and out to jobs in one go: what `load` does, and then what `overlays` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.bundle.receipt import Receipt
from airferry.bundle.verify import expect_outside, open_bundle
from airferry.config import SiteProfile
from airferry.defaults import PLAN_CONFIG, SITE_FILE
from airferry.errors import AirferryError
from airferry.events import Emit, Warned, silent
from airferry.far.load import LoadOutcome, expect_receipt_place, load
from airferry.far.receipts import expected_receipt, receipt_name
from airferry.far.relocate import Destination, parse_destination
from airferry.host import files
from airferry.jobs.catalogue import Whereabouts
from airferry.jobs.configs import OverlaySet, image_of, make_overlays, targets_of
from airferry.jobs.images import ask_images, pull_warnings
from airferry.jobs.overlays import write_overlays
from airferry.jobs.profile import FoundSite, read_site
from airferry.jobs.submission import reference_for
from airferry.registry.client import ClientOptions
from airferry.wording import shell_line


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


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Where the files for jobs go, and what they are made of besides the bundle.

    `site` is the site profile or what `known_site` found, by default `site.yaml` or `airgap.yaml` here; `source` a copy
    of the catalogue, by default the bundle's own; `receipt` the receipt's place, by default in `out` under the name of
    destination and root.
    """

    out: Path
    site: Path | FoundSite | None = None
    source: Path | None = None
    receipt: Path | None = None


def load_for_jobs(
    bundle: Path,
    *,
    to: str | Destination,
    jobs: JobFiles,
    root: str | None = None,
    dry_run: bool = False,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> JobsOutcome:
    """Load a bundle, and write into the folder for jobs the receipt, the catalogue, and what `overlays` writes.

    Everything that can fail without the registry is tried before anything is sent: the site's profile, the catalogue,
    the overlays for it, and the places to write to.

    Raises:
        UsageError: there is no catalogue, or `jobs.out` holds something else in its place; and as `load` raises.
        ConfigurationError: the site's profile is wrong, or does not fit catalogue and bundle.
        HostError: `jobs.out` or the receipt's folder is not writable.
        AirferryError: as `load` raises.
    """
    destination = parse_destination(to) if isinstance(to, str) else to
    known = read_site(jobs.site)
    out = files.without_dots(jobs.out)
    opened = open_bundle(bundle, root=root)
    expect_outside(out, opened.store.path)
    before = Whereabouts(source=jobs.source, bundle=opened, options=options, emit=emit)
    before.expect(out)
    receipt_path = jobs.receipt or out / receipt_name(destination, opened.root)
    if not dry_run:
        files.expect_writable(out)
        expect_receipt_place(receipt_path)
    expected = expected_receipt(opened, destination)
    with before.open(beside=out) as catalogue:
        make_overlays(expected, catalogue, site=known, out=out.absolute())
    loaded = load(
        bundle,
        to=destination,
        root=root,
        receipt=receipt_path,
        dry_run=dry_run,
        options=options,
        emit=emit,
    )
    if dry_run:
        return JobsOutcome(loaded, None)
    _warn_of_pulls(loaded.receipt, known, options=options, emit=emit)
    places = Whereabouts(source=jobs.source, bundle=opened, receipt=loaded.receipt, options=options, emit=emit)
    try:
        made = write_overlays(places, site=known, out=out)
    except AirferryError:
        # the error is about the folder alone: without this, an operator would load again
        again = shell_line(["airferry", "overlays", receipt_path, "--out", out, *_as_typed(jobs, options)])
        emit(
            Warned(
                f"the bundle is loaded (receipt `{receipt_path}`), but the files for jobs were not written",
                hint=f"fix the error, then run `{again}`",
            )
        )
        raise
    return JobsOutcome(loaded, made)


def _as_typed(jobs: JobFiles, options: ClientOptions | None) -> list[str]:
    """Return the options that `overlays` needs to do its part with the same files, and to reach the same registry."""
    site = jobs.site.path if isinstance(jobs.site, FoundSite) else jobs.site
    ca_file = options.ca_file if options is not None else None
    if isinstance(jobs.site, FoundSite) and ca_file == jobs.site.ca_file:
        ca_file = None
    given = {
        "--source": jobs.source,
        "--site": site if site is not None and str(site) not in (SITE_FILE, PLAN_CONFIG) else None,
        "--ca-file": ca_file,
    }
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    return [*words, *(["--plain-http"] if options is not None and options.plain_http else [])]


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
