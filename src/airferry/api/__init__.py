"""What airferry offers to programs and to its command line: one function a task, silent, with events.

A use case takes plain values and an `Emit`, returns a frozen result, raises from the catalogue of errors, and never
prints, prompts or exits.

Names are imported when they are first used, as most programs use one of them, and all of them need everything.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from airferry.host.extras import require_extra

if TYPE_CHECKING:
    from airferry.api.assets import RecordOutcome, record_asset, unpack_asset, verify_asset
    from airferry.api.catalogue import extract_catalogue
    from airferry.api.copying import CopyResult, copy
    from airferry.api.describe import describe_plan, describe_prediction
    from airferry.api.example import quickstart
    from airferry.api.far import LoadOutcome, RollbackResult, load, rollback, verify
    from airferry.api.host import DoctorReport
    from airferry.api.jobs import JobsOutcome, load_for_jobs
    from airferry.api.near import (
        BuildOutcome,
        LockOutcome,
        PlanOutcome,
        Selection,
        build,
        doctor,
        lock,
        plan,
        schema,
    )
    from airferry.api.registries import ProbeOutcome, login, logout, probe_registry
    from airferry.api.rehearsal import RehearsalOutcome, rehearse
    from airferry.api.reporting import ReportOutcome, report
    from airferry.api.serving import Serving, serve
    from airferry.api.site import check, init_site, mirrors, overlays, site_trouble
    from airferry.registry.client import ClientOptions

_HOMES = {
    "airferry.registry.client": ("ClientOptions",),
    "airferry.api.assets": ("RecordOutcome", "record_asset", "unpack_asset", "verify_asset"),
    "airferry.api.catalogue": ("extract_catalogue",),
    "airferry.api.copying": ("CopyResult", "copy"),
    "airferry.api.describe": ("describe_plan", "describe_prediction"),
    "airferry.api.example": ("quickstart",),
    "airferry.api.far": ("LoadOutcome", "RollbackResult", "load", "rollback", "verify"),
    "airferry.api.host": ("DoctorReport",),
    "airferry.api.jobs": ("JobsOutcome", "load_for_jobs"),
    "airferry.api.near": (
        *("BuildOutcome", "LockOutcome", "PlanOutcome", "Selection"),
        *("build", "doctor", "lock", "plan", "schema"),
    ),
    "airferry.api.registries": ("ProbeOutcome", "login", "logout", "probe_registry"),
    "airferry.api.rehearsal": ("RehearsalOutcome", "rehearse"),
    "airferry.api.reporting": ("ReportOutcome", "report"),
    "airferry.api.serving": ("Serving", "serve"),
    "airferry.api.site": ("check", "init_site", "mirrors", "overlays", "site_trouble"),
}
# these need more than a far side is asked to take in
_EXTRA_OF = {
    "airferry.api.describe": "near",
    "airferry.api.example": "near",
    "airferry.api.host": "near",
    "airferry.api.near": "near",
    "airferry.api.rehearsal": "near",
    "airferry.api.serving": "serve",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BuildOutcome",
    "ClientOptions",
    "CopyResult",
    "DoctorReport",
    "JobsOutcome",
    "LoadOutcome",
    "LockOutcome",
    "PlanOutcome",
    "ProbeOutcome",
    "RecordOutcome",
    "RehearsalOutcome",
    "ReportOutcome",
    "RollbackResult",
    "Selection",
    "Serving",
    "build",
    "check",
    "copy",
    "describe_plan",
    "describe_prediction",
    "doctor",
    "extract_catalogue",
    "init_site",
    "load",
    "load_for_jobs",
    "lock",
    "login",
    "logout",
    "mirrors",
    "overlays",
    "plan",
    "probe_registry",
    "quickstart",
    "record_asset",
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
        home = _HOME_OF[name]
        if (extra := _EXTRA_OF.get(home)) is not None:
            require_extra(extra, what=f"`{name}`")
        value = globals()[name] = getattr(import_module(home), name)
        return value
