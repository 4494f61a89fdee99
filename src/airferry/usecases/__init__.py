"""What airferry offers to programs and to its command line: one function a task, silent, with events.

A use case takes plain values and an `Emit`, returns a frozen result, raises from the catalogue of errors, and never
prints, prompts or exits.
"""

from airferry.registry.client import ClientOptions
from airferry.usecases.assets import RecordOutcome, record_asset, unpack_asset, verify_asset
from airferry.usecases.describe import describe_plan
from airferry.usecases.example import quickstart
from airferry.usecases.far import LoadOutcome, load, verify
from airferry.usecases.host import DoctorReport
from airferry.usecases.near import BuildOutcome, LockOutcome, PlanOutcome, Selection, build, doctor, lock, plan, schema
from airferry.usecases.rehearsal import RehearsalOutcome, rehearse
from airferry.usecases.report import ReportOutcome, report
from airferry.usecases.serve import Serving, serve
from airferry.usecases.transport import (
    ProbeOutcome,
    RollbackResult,
    copy,
    login,
    logout,
    probe_registry,
    rollback,
)

__all__ = [
    "BuildOutcome",
    "ClientOptions",
    "DoctorReport",
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
    "copy",
    "describe_plan",
    "doctor",
    "load",
    "lock",
    "login",
    "logout",
    "plan",
    "probe_registry",
    "quickstart",
    "record_asset",
    "rehearse",
    "report",
    "rollback",
    "schema",
    "serve",
    "unpack_asset",
    "verify",
    "verify_asset",
]
