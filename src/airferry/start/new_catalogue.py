"""A new catalogue: two steps that build, and the plan for them."""

from __future__ import annotations

import keyword
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from airferry.defaults import PLAN_CONFIG
from airferry.errors import UsageError
from airferry.host.installation import PACKAGE
from airferry.host.process import find_program
from airferry.near.git.origin import WorkingCopy
from airferry.start.choices import ProjectChoices, ProjectOutcome, next_commands, userland_notes
from airferry.start.plan_text import DEBIAN_NAME, FIRST_REQUIREMENTS, FirstImage, FirstPlan
from airferry.wording import shell_line, some_of

IGNORED = ".gitignore"
IGNORED_TEXT = "# what airferry builds, and what the steps write when they are tried here\n/out/\n/output/\n"
FIRST_STEPS = PACKAGE / "example" / "first" / "steps"
FIRST_TARGETS = ("data/table:default", "train/line:default")
FIRST_DEPENDENCIES = {"train/line": ("data/table:default",)}
MAX_PACKAGE_CHARACTERS = 60
_TAKEN = frozenset({"airferry", "nemotron"})
SHOWN_FILES = 8


class PackageNameError(UsageError):
    """A new catalogue cannot have this package."""


def new_catalogue(
    place: Path, choices: ProjectChoices, base: str, copy: WorkingCopy | None
) -> tuple[dict[str, str], ProjectOutcome]:
    """Return the files of a new catalogue with its plan, by their paths below `place`, and what they are.

    Raises:
        UsageError: targets were asked for, the package's name is not allowed, or a file is in the way.
    """
    if choices.targets:
        raise UsageError(
            f"`--target {choices.targets[0]}`: `{place}` has no steps",
            hint="give the root of a catalogue with `--source`, or leave out `--target` for a new one",
        )
    package = choices.package or _package_of(place)
    _check_package_name(package, chosen=choices.package is not None)
    steps = f"src/{package}/steps"
    step_images = {target.partition(":")[0]: DEBIAN_NAME for target in FIRST_TARGETS}
    image = FirstImage(base, settings={"requirements": FIRST_REQUIREMENTS} if base else {})
    plan = FirstPlan(
        root=".",
        steps=steps,
        package=None,
        stages=dict.fromkeys(FIRST_TARGETS, True),
        dependencies=FIRST_DEPENDENCIES,
        step_images=step_images,
        images={DEBIAN_NAME: image},
        is_new=True,
    )
    made = {
        f"{steps}/{path.relative_to(FIRST_STEPS).as_posix()}": path.read_text(encoding="utf-8")
        for path in sorted(FIRST_STEPS.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    made[PLAN_CONFIG] = plan.render()
    notes = [] if base else userland_notes()
    if os.path.lexists(place / IGNORED):
        notes.append(f"`{IGNORED}` is there and stays as it is: add `/out/` to it")
    else:
        made[IGNORED] = IGNORED_TEXT
    _check_free(place, made)
    return made, ProjectOutcome(
        folder=place,
        files=tuple(sorted(made)),
        is_new=True,
        steps=steps,
        package=f"{package}.steps",
        origin="",
        images=dict.fromkeys(FIRST_TARGETS, (DEBIAN_NAME, base)),
        carried=FIRST_TARGETS,
        unready={},
        unnamed=() if base else FIRST_TARGETS,
        notes=tuple(notes),
        commands=next_commands(place, _git_command(made, copy)),
    )


def _package_of(place: Path) -> str:
    """Return the package that a new catalogue gets by its folder's name, as uv and Cargo do."""
    return re.sub(r"[\s.-]+", "_", place.name).strip("_").lower()


def _check_package_name(name: str, *, chosen: bool) -> None:
    """Refuse a package that Python could not import, or that would hide another one.

    Raises:
        PackageNameError: it is one.
    """
    trouble = None
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name) or not re.search(r"[a-z0-9]", name):
        trouble = "expected small letters, digits and `_`, and no digit in front"
    elif len(name) > MAX_PACKAGE_CHARACTERS:
        trouble = f"it has {len(name)} characters, the limit is {MAX_PACKAGE_CHARACTERS}"
    elif keyword.iskeyword(name):
        trouble = "it is a keyword of Python"
    elif name in sys.stdlib_module_names:
        trouble = "a module of Python's standard library has this name"
    elif name in _TAKEN:
        trouble = f"`{name}` is another program's package"
    if trouble is None:
        return
    if chosen:
        raise PackageNameError(f"`--name {name}`: {trouble}", hint="choose another name, for example `--name acme`")
    raise PackageNameError(
        f"the folder's name makes no Python package: `{name}`: {trouble}",
        hint="name the package with `--name`, for example `--name acme`",
    )


def _check_free(place: Path, made: Mapping[str, str]) -> None:
    """Refuse to write where something is in the way of a file, or of a folder.

    Raises:
        UsageError: it is; says all that would be written.
    """
    taken = [name for name in sorted(made) if os.path.lexists(place / name)]
    for name in made:
        for parent in (place / name).parents:
            if parent != place and parent.is_relative_to(place) and os.path.lexists(parent) and not parent.is_dir():
                taken.append(parent.relative_to(place).as_posix())
    if taken:
        told = some_of([f"`{name}`" for name in dict.fromkeys(taken)], SHOWN_FILES)
        raise UsageError(
            f"`{place}` has files in the way, and nothing is overwritten: {told}",
            hint="choose another `--name` or folder; it would write "
            + some_of([f"`{name}`" for name in sorted(made)], SHOWN_FILES),
        )


def _git_command(made: Mapping[str, str], copy: WorkingCopy | None) -> dict[str, str]:
    """Return the command that has Git track the new files, where there is Git, with what it is for."""
    if find_program("git") is None:
        return {}
    add = shell_line(["git", "add", *sorted({name.partition("/")[0] for name in made})])
    command = f"git init --quiet && {add}" if copy is None else add
    return {command: "have Git track the files: only what it tracks reaches the far side"}
