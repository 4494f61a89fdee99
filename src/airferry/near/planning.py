"""From a selection to a plan: what is to be built, written down and predicted. Needs no network and no engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airferry.config import json_schema, load_config
from airferry.errors import ConfigurationError
from airferry.events import Emit, Warned
from airferry.host import files
from airferry.near.assemble.context import untracked_steps
from airferry.near.describe import warning_text
from airferry.near.lock.covered import uncovered
from airferry.near.predict import Prediction, Predictor, expect_readable
from airferry.oci.platform import Platform, parse_buildable_platform
from airferry.plan.lockfile import LOCK_FILE, Lockfile, read_lockfile
from airferry.plan.models import Plan, PlanWarning
from airferry.plan.planner import make_plan, split_choices, write_plan
from airferry.wording import shell_line

PLAN_FILE = "airgap-plan.yaml"


@dataclass(frozen=True, slots=True)
class Selection:
    """What a command is about: the plan's file, and what beats it."""

    config: Path
    source: Path | None = None
    targets: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """A plan, its document, where that was written, what a build of it is expected to take, and if a lock covers it."""

    plan: Plan
    document: dict[str, Any]
    path: Path
    prediction: Prediction
    locked: bool = False

    @property
    def runs_here(self) -> bool:
        """Whether this host runs all execution images as they are, so that a build can rehearse them."""
        return all_run_here(platform for group in self.plan.groups for platform in group.platforms)


def all_run_here(platforms: Iterable[Platform]) -> bool:
    """Tell whether there are platforms, and this host runs each without emulation."""
    found = set(platforms)
    return bool(found) and all(platform.matches_host() for platform in found)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `airgap.yaml`."""
    return json_schema()


def plan(selection: Selection) -> PlanOutcome:
    """Work out what is to be built and write `airgap-plan.yaml`. Needs no network and no engine.

    Raises:
        ConfigurationError: the file, the catalogue or what they say together is wrong.
        HostError: the output folder is not writable.
    """
    made = read_plan(selection)
    made = replace(made, warnings=(*made.warnings, *_untracked(made)))
    known = read_lockfile(made.output_dir / LOCK_FILE)
    prediction = Predictor(made, known or Lockfile(), files.cache_directory(make=False)).predict()
    expect_readable(prediction)
    document = made.to_document()
    path = made.output_dir / PLAN_FILE
    write_plan(document, path)
    covered = known is not None and not uncovered(made, known)
    return PlanOutcome(made, document, path, prediction, covered)


def _untracked(plan: Plan) -> list[PlanWarning]:
    """Return a warning for each step that Git does not track yet: rehearsals and launchers are without it."""
    return [
        PlanWarning(
            "untracked",
            path.relative_to(plan.source_root).as_posix(),
            "is not tracked by Git; only tracked files reach the far side",
            f"`{shell_line(['git', '-C', plan.source_root, 'add', path.parent.relative_to(plan.source_root)])}`",
            targets=tuple(step.target.spec for step in plan.steps if step.step_py == path),
        )
        for path in untracked_steps(plan)
    ]


def read_plan(selection: Selection) -> Plan:
    """Return the plan that a selection asks for. Reads files only."""
    return make_plan(
        load_config(selection.config),
        source_dir=selection.source,
        targets=split_choices(selection.targets),
        platforms=tuple(_parse_option(text) for text in split_choices(selection.platforms)),
        stages=split_choices(selection.stages),
    )


def _parse_option(text: str) -> Platform:
    try:
        return parse_buildable_platform(text)
    except ConfigurationError as error:
        raise error.at("`--platform`") from error


def warn_of_plan(plan: Plan, emit: Emit) -> None:
    """Say what of a plan's warnings is certain; the rest depends on values of configs, and `plan` lists it."""
    for warning in plan.warnings:
        if warning.certain:
            emit(Warned(warning_text(warning), hint=warning.hint))
