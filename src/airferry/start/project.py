"""`airferry init`: the plan of a project, and where there are no steps yet, two that build. Overwrites nothing."""

from __future__ import annotations

import os
from pathlib import Path

from airferry.config.load import base_trouble
from airferry.defaults import DEFAULT_STEPS, PLAN_CONFIG
from airferry.errors import ConfigurationError, UsageError
from airferry.host import files
from airferry.near.git.origin import WorkingCopy, find_working_copy
from airferry.oci.reference import split_place
from airferry.start.choices import ProjectChoices, ProjectOutcome, change_folder
from airferry.start.found_catalogue import found_catalogue
from airferry.start.new_catalogue import new_catalogue
from airferry.start.new_files import write_new_files
from airferry.start.survey import STEP_FILE, survey_catalogue


def init_project(folder: Path, *, choices: ProjectChoices | None = None, dry_run: bool = False) -> ProjectOutcome:
    """Write the plan for the steps below a folder or of `choices.source`; where there are none, for two new ones.

    All or nothing: what cannot be written in full leaves the folder as it was. No file is overwritten. With `dry_run`,
    nothing is written.

    Raises:
        UsageError: there is a plan or a file in the way, the folder is inside another project, or a name is not
            allowed.
        ConfigurationError: a target does not exist, or no step is complete.
        HostError: the folder cannot be written to.
    """
    choices = choices or ProjectChoices()
    place = Path(os.path.normpath(folder.absolute()))
    copy = _check_place(place, may_be_inside=choices.source is not None)
    base = _base_for(choices.base, place)
    root = place if choices.source is None else Path(os.path.normpath(choices.source.absolute()))
    if choices.source is not None and not files.is_folder(root):
        raise UsageError(f"`--source {choices.source}`: there is no such folder", hint=files.CHECK_PATH)
    survey = survey_catalogue(root, steps=choices.steps, targets=choices.targets) if files.is_folder(root) else None
    if survey is None and choices.source is not None:
        raise ConfigurationError(
            f"`{root}` has no steps: no folder below it has a `{STEP_FILE}`",
            hint="give the root of a catalogue, or leave out `--source` for a new one",
        )
    if survey is None:
        made, outcome = new_catalogue(place, choices, base, copy)
    else:
        made, outcome = found_catalogue(place, survey, choices, base)
    write_new_files(place, made, last=PLAN_CONFIG, dry_run=dry_run)
    return outcome


# --- what stands in the way -------------------------------------------------------------------------------------------


def _check_place(place: Path, *, may_be_inside: bool) -> WorkingCopy | None:
    """Return the working copy that the place is in. A plan may lie inside a catalogue that was named.

    Raises:
        UsageError: it is not a folder, has a plan, or lies in another project.
    """
    if os.path.lexists(place) and not files.is_folder(place):
        raise UsageError(f"`{place}` is not a folder", hint="name a folder, which is made if it is missing")
    if os.path.lexists(place / PLAN_CONFIG):
        raise UsageError(
            f"`{place / PLAN_CONFIG}` already exists, and nothing is overwritten",
            hint=f"`{_plan_command(place)}` shows what it builds; to begin again, move it away",
        )
    nearest = next(path for path in (place, *place.parents) if files.is_folder(path))
    copy = find_working_copy(nearest)
    above = [path for path in place.parents if copy is not None and path.is_relative_to(copy.top)]
    for path in above:
        marks = [path / PLAN_CONFIG, *([] if may_be_inside else [path / DEFAULT_STEPS, path / STEP_FILE])]
        if found := next((mark for mark in marks if os.path.lexists(mark)), None):
            raise UsageError(
                f"`{place}` is inside another project: `{found}` is there",
                hint=f"run the commands in `{path}`"
                if found.name == PLAN_CONFIG
                else "run `airferry init` at the root of that catalogue, or name it with `--source` from outside of it",
            )
    return copy


def _base_for(text: str | None, place: Path) -> str:
    """Return the base that was asked for as the plan has it: a relative path starts at the plan's folder there.

    Raises:
        UsageError: it is not a base.
    """
    if not text:
        return ""
    if trouble := base_trouble(text):
        raise UsageError(
            f"`--base`: {trouble}", hint="name an image as `HOST/REPO:TAG`, `oci:DIR` or `oci-archive:FILE`"
        )
    kind, _, rest = text.partition(":")
    if kind not in ("oci", "oci-archive"):
        return text
    name, reference = split_place(rest)
    path = files.expand_home(Path(name)).absolute()
    return f"{kind}:{_relative(path, place)}{f':{reference}' if reference else ''}"


def _relative(path: Path, place: Path) -> str:
    """Return a path as the plan has it: relative if the project is moved with it, else absolute."""
    return os.path.relpath(path, place) if path.is_relative_to(place) else str(path)


def _plan_command(place: Path) -> str:
    return "airferry plan" if place == Path.cwd() else f"{change_folder(place)} && airferry plan"
