"""The plan for a catalogue that is there: its steps, with the images that its files name for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airferry.config import Config
from airferry.defaults import PLAN_CONFIG
from airferry.errors import UsageError
from airferry.host import files
from airferry.near.git.origin import WorkingCopy, find_working_copy
from airferry.start.bases import StepBase, find_bases, name_images, nemotron_plan
from airferry.start.choices import ProjectChoices, ProjectOutcome, next_commands, userland_notes
from airferry.start.plan_text import DEBIAN_NAME, FirstImage, FirstPlan
from airferry.start.prerequisites import find_prerequisites
from airferry.start.survey import Survey
from airferry.wording import shell_line, some_of


def found_catalogue(
    place: Path, survey: Survey, choices: ProjectChoices, base: str
) -> tuple[dict[str, str], ProjectOutcome]:
    """Return the plan for a catalogue by its name in `place`, and what it says. `base` is for steps that name none.

    Raises:
        UsageError: a name for a new catalogue was given.
    """
    if choices.package is not None:
        raise UsageError(
            f"`--name {choices.package}` is for a new catalogue, and `{survey.catalogue.root}` has steps",
            hint="leave it out, or choose an empty folder",
        )
    known = nemotron_plan(survey)
    bases = find_bases(survey, known)
    by_step: dict[str, StepBase] = {}
    for target, found in bases.items():
        by_step.setdefault(target.step_id, _with_default(found, base))
    names = dict(zip(by_step, name_images(list(by_step.values()), default=DEBIAN_NAME), strict=True))
    images: dict[str, FirstImage] = {}
    for step_id, found in by_step.items():
        images.setdefault(names[step_id], FirstImage(found.reference, found.place, _settings(found)))
    carried = _carried(survey, known)
    copy = find_working_copy(survey.catalogue.root)
    origin = _origin(copy)
    plan = FirstPlan(
        root=os.path.relpath(survey.catalogue.root, place),
        steps=survey.steps,
        package=survey.package,
        stages={target.spec: target.spec in carried for target in survey.targets},
        dependencies=_dependencies(survey, known),
        step_images=names,
        images={name: images[name] for name in sorted(images)},
        origin=origin,
        is_nemotron=survey.is_nemotron,
    )
    unnamed = tuple(target.spec for target, found in bases.items() if not found.reference)
    notes = []
    if unnamed and not base:
        notes.append(
            f"nothing names an image for {some_of(unnamed, 3)}: a Debian userland is their base; "
            f"`--base` or `base_image` of `{DEBIAN_NAME}` names another"
        )
        notes += userland_notes()
    own = survey.catalogue.root / PLAN_CONFIG
    if own.parent != place and files.is_file(own):
        notes.append(
            f"the catalogue has a plan, `{own}`, whose bases, overlays and requirements are not taken over: "
            f"`{shell_line(['airferry', 'plan', '--config', own])}` shows what it builds"
        )
    made = {PLAN_CONFIG: plan.render()}
    return made, ProjectOutcome(
        folder=place,
        files=tuple(made),
        is_new=False,
        steps=survey.steps,
        package=survey.catalogue.package,
        origin=origin,
        images={
            target.spec: (names[target.step_id], _with_default(found, base).reference)
            for target, found in bases.items()
        },
        carried=carried,
        unready=survey.unready,
        unnamed=unnamed,
        notes=tuple(notes),
        commands=next_commands(place),
    )


def _dependencies(survey: Survey, known: Config | None) -> dict[str, tuple[str, ...]]:
    """Return what the known plan says that steps depend on, as far as that exists in the catalogue, else what they say.

    The types of Nemotron's steps are too coarse to tell: several steps produce each checkpoint.
    """
    if known is None:
        return find_prerequisites(survey)
    ids = {target.step_id for target in survey.targets}
    return {
        step: kept
        for step, targets in known.effective_dependencies.items()
        if step in ids and (kept := tuple(target for target in targets if _exists(survey, target)))
    }


def _exists(survey: Survey, spec: str) -> bool:
    step, _, config = spec.partition(":")
    return step in survey.catalogue.step_ids() and config in survey.catalogue.config_names(step)


def _carried(survey: Survey, known: Config | None) -> tuple[str, ...]:
    """Return the targets that the plan carries: those asked for, else those of the known plan, else all."""
    every = [target.spec for target in survey.targets]
    if survey.asked:
        return tuple(target.spec for target in survey.asked)
    usual = [spec for spec in (known.workflow.stages if known else ()) if _exists(survey, spec)]
    return tuple(usual or every)


def _with_default(found: StepBase, base: str) -> StepBase:
    return found if found.reference else StepBase(base)


def _settings(found: StepBase) -> dict[str, Any]:
    """Return what Nemotron's plan says of an image besides its base and its names."""
    if found.image is None:
        return {}
    kept = {"required_imports", "requirements", "overlays", "python", "env", "pip_no_deps"}
    return found.image.model_dump(mode="json", include=kept, exclude_unset=True)


def _origin(copy: WorkingCopy | None) -> str:
    if copy is None or copy.commit is None:
        return copy.remote or "" if copy else ""
    return f"{copy.remote} at {copy.commit}" if copy.remote else f"commit {copy.commit}"
