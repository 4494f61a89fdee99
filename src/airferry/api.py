"""What airferry offers to programs and to its command line: one function a task, silent, with events.

A use case takes plain values and an `Emit`, returns a frozen result, raises from the catalogue of errors, and never
prints, prompts or exits.

Names are imported when they are first used, as most programs use one of them, and all of them need everything.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from airferry.host.installation import require_extra, require_utf8_names

if TYPE_CHECKING:
    from airferry.assets.carried import unpack_asset, verify_asset
    from airferry.assets.record import RecordOutcome, record_asset
    from airferry.assets.staged import AssetReport, Unpacked
    from airferry.bundle.verify import VerifyReport
    from airferry.config.site import SiteProfile
    from airferry.far.copy import CopyResult, copy
    from airferry.far.history import LoadHistory, PastLoad, history
    from airferry.far.load import LoadOutcome, load
    from airferry.far.registries import ProbeOutcome, login, logout, probe_registry, reach_registry, registry_host
    from airferry.far.relocate import Destination, parse_destination
    from airferry.far.report.report import ReportOutcome, report
    from airferry.far.rollback import RollbackResult, rollback
    from airferry.far.serve.serving import ServeOptions, Serving, serve
    from airferry.far.verify import verify
    from airferry.jobs.catalogue import CatalogueSource, extract_catalogue
    from airferry.jobs.check import JobSelection, check
    from airferry.jobs.configs import OverlaySet
    from airferry.jobs.extract import Extracted
    from airferry.jobs.findings import Finding
    from airferry.jobs.mirrors import MirrorFiles, NodeCa, mirrors
    from airferry.jobs.overlays import overlays
    from airferry.jobs.profile import FoundSite, init_site, known_site, site_trouble
    from airferry.jobs.report import CheckReport
    from airferry.load_for_jobs import JobFiles, JobsOutcome, load_for_jobs
    from airferry.near.build import BuildOutcome, ImageSummary, build
    from airferry.near.describe import describe_plan, describe_prediction
    from airferry.near.doctor import DoctorReport, doctor
    from airferry.near.lock.follow import LockOutcome, lock
    from airferry.near.planning import PlanOutcome, Selection, plan, schema
    from airferry.near.rehearse.targets import RehearsalOutcome, rehearse
    from airferry.near.session import BuildOptions
    from airferry.plan.models import PlanWarning
    from airferry.quickstart import quickstart
    from airferry.registry.client import ClientOptions
    from airferry.start.choices import ProjectChoices, ProjectOutcome
    from airferry.start.new_catalogue import PackageNameError
    from airferry.start.project import init_project

_HOMES = {
    "airferry.assets.carried": (
        "unpack_asset",
        "verify_asset",
    ),
    "airferry.assets.record": (
        "RecordOutcome",
        "record_asset",
    ),
    "airferry.assets.staged": (
        "AssetReport",
        "Unpacked",
    ),
    "airferry.bundle.verify": ("VerifyReport",),
    "airferry.far.copy": (
        "CopyResult",
        "copy",
    ),
    "airferry.far.history": ("LoadHistory", "PastLoad", "history"),
    "airferry.far.load": (
        "LoadOutcome",
        "load",
    ),
    "airferry.far.registries": (
        "ProbeOutcome",
        "login",
        "logout",
        "probe_registry",
        "reach_registry",
        "registry_host",
    ),
    "airferry.far.relocate": (
        "Destination",
        "parse_destination",
    ),
    "airferry.far.report.report": (
        "ReportOutcome",
        "report",
    ),
    "airferry.far.serve.serving": (
        "ServeOptions",
        "Serving",
        "serve",
    ),
    "airferry.far.rollback": (
        "RollbackResult",
        "rollback",
    ),
    "airferry.far.verify": ("verify",),
    "airferry.jobs.catalogue": (
        "CatalogueSource",
        "extract_catalogue",
    ),
    "airferry.config.site": ("SiteProfile",),
    "airferry.jobs.check": (
        "JobSelection",
        "check",
    ),
    "airferry.jobs.configs": ("OverlaySet",),
    "airferry.jobs.extract": ("Extracted",),
    "airferry.jobs.findings": ("Finding",),
    "airferry.jobs.mirrors": (
        "MirrorFiles",
        "NodeCa",
        "mirrors",
    ),
    "airferry.jobs.overlays": ("overlays",),
    "airferry.jobs.report": ("CheckReport",),
    "airferry.jobs.profile": (
        "FoundSite",
        "init_site",
        "known_site",
        "site_trouble",
    ),
    "airferry.load_for_jobs": (
        "JobFiles",
        "JobsOutcome",
        "load_for_jobs",
    ),
    "airferry.near.build": (
        "BuildOutcome",
        "ImageSummary",
        "build",
    ),
    "airferry.near.describe": (
        "describe_plan",
        "describe_prediction",
    ),
    "airferry.near.doctor": (
        "DoctorReport",
        "doctor",
    ),
    "airferry.near.lock.follow": (
        "LockOutcome",
        "lock",
    ),
    "airferry.near.planning": (
        "PlanOutcome",
        "Selection",
        "plan",
        "schema",
    ),
    "airferry.near.rehearse.targets": (
        "RehearsalOutcome",
        "rehearse",
    ),
    "airferry.near.session": ("BuildOptions",),
    "airferry.plan.models": ("PlanWarning",),
    "airferry.quickstart": ("quickstart",),
    "airferry.registry.client": ("ClientOptions",),
    "airferry.start.choices": ("ProjectChoices", "ProjectOutcome"),
    "airferry.start.new_catalogue": ("PackageNameError",),
    "airferry.start.project": ("init_project",),
}
# these need more than a far side is asked to take in
_EXTRAS = {"airferry.near.": "near", "airferry.quickstart": "near", "airferry.far.serve.": "serve"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AssetReport",
    "BuildOptions",
    "BuildOutcome",
    "CatalogueSource",
    "CheckReport",
    "ClientOptions",
    "CopyResult",
    "Destination",
    "DoctorReport",
    "Extracted",
    "Finding",
    "FoundSite",
    "ImageSummary",
    "JobFiles",
    "JobSelection",
    "JobsOutcome",
    "LoadHistory",
    "LoadOutcome",
    "LockOutcome",
    "MirrorFiles",
    "NodeCa",
    "OverlaySet",
    "PackageNameError",
    "PastLoad",
    "PlanOutcome",
    "PlanWarning",
    "ProbeOutcome",
    "ProjectChoices",
    "ProjectOutcome",
    "RecordOutcome",
    "RehearsalOutcome",
    "ReportOutcome",
    "RollbackResult",
    "Selection",
    "ServeOptions",
    "Serving",
    "SiteProfile",
    "Unpacked",
    "VerifyReport",
    "build",
    "check",
    "copy",
    "describe_plan",
    "describe_prediction",
    "doctor",
    "extract_catalogue",
    "history",
    "init_project",
    "init_site",
    "known_site",
    "load",
    "load_for_jobs",
    "lock",
    "login",
    "logout",
    "mirrors",
    "overlays",
    "parse_destination",
    "plan",
    "probe_registry",
    "quickstart",
    "reach_registry",
    "record_asset",
    "registry_host",
    "rehearse",
    "report",
    "rollback",
    "schema",
    "serve",
    "site_trouble",
    "unpack_asset",
    "verify",
    "verify_asset",
]

# not for type checkers, which would take any name for one of these
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
        require_utf8_names()
        home = _HOME_OF[name]
        for prefix, extra in _EXTRAS.items():
            if home.startswith(prefix):
                require_extra(extra, what=f"`{name}`")
        value = globals()[name] = getattr(import_module(home), name)
        return value
