"""The rehearsal: every step in its image, as the far side would run it, in a network that leads nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airferry.build.production import Production
from airferry.build.rehearsal import REPORT_FILE, RehearsalReport
from airferry.events import Emit, silent
from airferry.usecases.near import Selection, follow_lock, open_near_side, read_plan

STAGES = ("build-execution-images",)


@dataclass(frozen=True, slots=True)
class RehearsalOutcome:
    """What a rehearsal saw, and where the report was written."""

    report: RehearsalReport
    path: Path


def rehearse(
    selection: Selection,
    *,
    steps: Sequence[str] = (),
    locked: bool = False,
    engine: str = "auto",
    probe: str = "auto",
    jobs: int | None = None,
    emit: Emit = silent,
) -> RehearsalOutcome:
    """Try the plan's steps, or those named by step id or target, and write `airgap-rehearsal.json`. Seals nothing.

    Execution images that are not built yet are built first. What was found for the same image, code and command is not
    tried again; `airferry build --rehearse` takes it over into the bundle. Findings are in the report, not raised.

    Raises:
        ConfigurationError: the plan is wrong or has outgrown its lock, or a step is none of it.
        AirferryError: of the family of what failed.
    """
    made = read_plan(replace(selection, stages=STAGES))
    with open_near_side(made, engine=engine, probe=probe, jobs=jobs, emit=emit) as side:
        workshop = side.workshop(follow_lock(side, locked=locked, emit=emit))
        produced = Production(replace(workshop, rehearse=tuple(steps))).run()
    assert produced.rehearsal is not None
    return RehearsalOutcome(produced.rehearsal, made.output_dir / REPORT_FILE)
