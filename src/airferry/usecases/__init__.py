"""What airferry offers to programs and to its command line: one function a task, silent, with events.

A use case takes plain values and an `Emit`, returns a frozen result, raises from the catalogue of errors, and never
prints, prompts or exits.

Names are imported when they are first used, as most programs use one of them, and all of them need everything.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airferry.registry.client import ClientOptions
    from airferry.usecases.assets import RecordOutcome, record_asset, unpack_asset, verify_asset
    from airferry.usecases.catalogue import extract_catalogue
    from airferry.usecases.copying import CopyResult, copy
    from airferry.usecases.describe import describe_plan, describe_prediction
    from airferry.usecases.example import quickstart
    from airferry.usecases.far import LoadOutcome, RollbackResult, load, rollback, verify
    from airferry.usecases.host import DoctorReport
    from airferry.usecases.jobs import JobsOutcome, load_for_jobs
    from airferry.usecases.near import (
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
    from airferry.usecases.registries import ProbeOutcome, login, logout, probe_registry
    from airferry.usecases.rehearsal import RehearsalOutcome, rehearse
    from airferry.usecases.reporting import ReportOutcome, report
    from airferry.usecases.serving import Serving, serve
    from airferry.usecases.site import check, init_site, mirrors, overlays, site_trouble

_HOMES = {
    "airferry.registry.client": ("ClientOptions",),
    "airferry.usecases.assets": ("RecordOutcome", "record_asset", "unpack_asset", "verify_asset"),
    "airferry.usecases.catalogue": ("extract_catalogue",),
    "airferry.usecases.copying": ("CopyResult", "copy"),
    "airferry.usecases.describe": ("describe_plan", "describe_prediction"),
    "airferry.usecases.example": ("quickstart",),
    "airferry.usecases.far": ("LoadOutcome", "RollbackResult", "load", "rollback", "verify"),
    "airferry.usecases.host": ("DoctorReport",),
    "airferry.usecases.jobs": ("JobsOutcome", "load_for_jobs"),
    "airferry.usecases.near": (
        *("BuildOutcome", "LockOutcome", "PlanOutcome", "Selection"),
        *("build", "doctor", "lock", "plan", "schema"),
    ),
    "airferry.usecases.registries": ("ProbeOutcome", "login", "logout", "probe_registry"),
    "airferry.usecases.rehearsal": ("RehearsalOutcome", "rehearse"),
    "airferry.usecases.reporting": ("ReportOutcome", "report"),
    "airferry.usecases.serving": ("Serving", "serve"),
    "airferry.usecases.site": ("check", "init_site", "mirrors", "overlays", "site_trouble"),
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
        value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return value
