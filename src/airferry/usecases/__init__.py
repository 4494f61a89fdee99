"""What airferry offers to programs and to its command line: one function a task, silent, with events.

A use case takes plain values and an `Emit`, returns a frozen result, raises from the catalogue of errors, and never
prints, prompts or exits.
"""

from airferry.usecases.describe import describe_plan
from airferry.usecases.host import DoctorReport
from airferry.usecases.near import BuildOutcome, LockOutcome, PlanOutcome, Selection, build, doctor, lock, plan, schema

__all__ = [
    "BuildOutcome",
    "DoctorReport",
    "LockOutcome",
    "PlanOutcome",
    "Selection",
    "build",
    "describe_plan",
    "doctor",
    "lock",
    "plan",
    "schema",
]
