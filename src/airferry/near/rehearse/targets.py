"""The rehearsal: every step in its image, as the far side would run it, in a network that leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airferry.events import Emit, silent
from airferry.near.build import Production
from airferry.near.lock.covered import uncovered
from airferry.near.lock.follow import follow_lock
from airferry.near.planning import Selection, read_plan
from airferry.near.rehearse.run import REPORT_FILE, RehearsalReport
from airferry.near.session import BuildOptions, open_session
from airferry.plan.lockfile import LOCK_FILE, read_lockfile
from airferry.plan.models import Plan
from airferry.plan.planner import split_choices

REHEARSED_STAGES = ("build-execution-images",)


@dataclass(frozen=True, slots=True)
class RehearsalOutcome:
    """What a rehearsal saw, and where the report was written."""

    report: RehearsalReport
    path: Path


def rehearse(
    selection: Selection,
    *,
    locked: bool = False,
    options: BuildOptions | None = None,
    emit: Emit = silent,
) -> RehearsalOutcome:
    """Try the plan's targets, or those that the selection names, and write `airgap-rehearsal.json`. Seals nothing.

    Execution images that are needed and not built yet are built first. Named targets are tried as the file's plan
    builds them; those that are not in it, or that the lock has only by themselves, as `build --target` builds them. A
    step id stands for all its targets in the plan; prerequisites are not tried. What was found for the same image, code
    and command is not tried again; `airferry build --rehearse` takes it over into the bundle. Findings are in the
    report, not raised.

    Raises:
        ConfigurationError: the plan is wrong or has outgrown its lock, or there is no such step.
        AirferryError: of the family of what failed.
    """
    names = split_choices(selection.targets)
    plans = list(_plans(replace(selection, stages=REHEARSED_STAGES), names))
    for made in plans:
        with open_session(made, options or BuildOptions(), emit=emit) as session:
            existing = read_lockfile(made.output_dir / LOCK_FILE)
            if existing is not None and made is not plans[-1] and uncovered(made, existing):
                continue
            resolved = follow_lock(session, made, locked=locked)
            produced = Production(session, made, resolved, rehearse=names).run()
        assert produced.rehearsal is not None
        return RehearsalOutcome(produced.rehearsal, made.output_dir / REPORT_FILE)
    raise AssertionError("there is always a plan")


def _plans(selection: Selection, names: Sequence[str]) -> Iterator[Plan]:
    """Return the plans that named targets may be rehearsed by, the file's own first, where it has them all."""
    if names:
        whole = read_plan(replace(selection, targets=()))
        if all(_has(whole, name) for name in names):
            yield _only(whole, names)
        yield _only(read_plan(selection), names)
    else:
        yield read_plan(selection)


def _has(plan: Plan, name: str) -> bool:
    """Tell whether a plan has a target. A path is none of it: those of the file start elsewhere."""
    return any(name in (step.target.spec, step.target.step_id) for step in plan.steps)


def _only(plan: Plan, names: Sequence[str]) -> Plan:
    """Return a plan with the images of the named targets alone, named as they are in the whole."""
    wanted = {
        step.target.spec for step in plan.steps if {step.target.spec, step.target.step_id, *step.written} & set(names)
    }
    groups = tuple(group for group in plan.groups if wanted & set(group.targets))
    kept = {spec for group in groups for spec in group.targets}
    return replace(plan, groups=groups, steps=tuple(step for step in plan.steps if step.target.spec in kept))
