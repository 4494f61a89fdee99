"""An existing catalogue, recognised by its steps: the folder that holds them, its package, and what each step needs.

Reads files only, and runs none of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from airferry.config import SourceSettings
from airferry.config.fields import is_target
from airferry.config.models import NEMOTRON_PACKAGE
from airferry.errors import ConfigurationError, UsageError
from airferry.host import files
from airferry.plan.catalogue import Catalogue, catalogue_at, find_step, find_steps, parse_target, step_tomls
from airferry.plan.models import Target
from airferry.plan.planner import split_choices
from airferry.wording import some_of

SHOWN_PROBLEMS = 5
STEP_FILE = "step.toml"
PREFERRED_CONFIGS = ("default", "tiny")
NEMOTRON_CONFIGS = ("tiny", "default")  # as its plan here, whose prerequisites have that config
_SOURCE_FOLDERS = ("src", "python", "lib")


@dataclass(frozen=True, slots=True)
class Survey:
    """A catalogue that was found: its folder of steps below its root, and a target for each step.

    `package` is None where it follows from the folder, `asked` are the targets that were asked for, and `unready` are
    folders that are not complete, with the reason.
    """

    catalogue: Catalogue
    steps: str
    package: str | None
    targets: tuple[Target, ...]
    asked: tuple[Target, ...]
    unready: dict[str, str]

    @property
    def is_nemotron(self) -> bool:
        """Whether the catalogue is Nemotron's or a fork of it."""
        return SourceSettings(steps=self.steps, package=self.package).is_nemotron


def survey_catalogue(root: Path, *, steps: str | None = None, targets: Sequence[str] = ()) -> Survey | None:
    """Return the catalogue in a folder, None if it has no steps. `targets` choose the configs of their steps.

    Raises:
        UsageError: `steps` is not a folder of steps below the root.
        ConfigurationError: steps are in several places, a target does not exist, or no step is complete.
    """
    if steps is None and next(step_tomls(root), None) is None:
        return None
    place = _chosen_folder(root, steps) if steps is not None else find_steps(root)
    package = _package(root, place) if PurePosixPath(place).parts else None
    catalogue = catalogue_at(root, steps=place, package=package)
    asked = [_asked_target(catalogue, text) for text in split_choices(targets)]
    known = {target.step_id: target for target in reversed(asked)}
    ready: list[Target] = []
    unready: dict[str, str] = {}
    for step_id in catalogue.step_ids():
        target = known.get(step_id) or _first_target(catalogue, step_id)
        try:
            if not is_target(step_id):
                raise ConfigurationError(f"`{step_id}` is not a name for a step", hint="rename its folder")
            find_step(catalogue, target)
            ready.append(target)
        except ConfigurationError as error:
            unready[step_id] = error.message
    if not ready:
        raise ConfigurationError(
            f"no step of `{root / place}` is complete:\n  "
            + some_of(list(unready.values()), SHOWN_PROBLEMS, separator="\n  "),
            hint="a step is a folder with `step.py`, `step.toml` and `config/<name>.yaml`",
        )
    # several configs of one step may be asked for
    ready += [target for target in asked if target not in ready]
    return Survey(catalogue, place, package, tuple(sorted(ready)), tuple(asked), unready)


def _asked_target(catalogue: Catalogue, text: str) -> Target:
    """Return the target that a text names; for a step without a config, the config that stands for it.

    Raises:
        ConfigurationError: there is no such target.
    """
    target = parse_target(text)
    find_step(catalogue, target)
    return target if target.config else _first_target(catalogue, target.step_id)


def _chosen_folder(root: Path, steps: str) -> str:
    path = PurePosixPath(os.path.relpath(root / steps, root))
    if ".." in path.parts:
        raise UsageError(
            f"`--steps {steps}`: expected a folder below the root of the catalogue, `{root}`",
            hint="give a folder of steps, as `src/steps`",
        )
    if files.is_folder(root / path) and next(step_tomls(root / path), None) is None:
        raise UsageError(
            f"`--steps {steps}`: no folder below `{root / path}` has a `{STEP_FILE}`",
            hint="a step is a folder with `step.py`, `step.toml` and `config/<name>.yaml`",
        )
    return path.as_posix()


def _package(root: Path, steps: str) -> str | None:
    """Return the package of the folder of steps where its path does not say it: without what is not a part of it.

    That is what lies above the topmost folder with an `__init__.py`, else a folder that sources are put in.
    """
    parts = PurePosixPath(steps).parts
    first = len(parts)
    while first and files.is_file(root / Path(*parts[:first]) / "__init__.py"):
        first -= 1
    kept = parts[first:]
    if not kept:
        kept = parts[1:] if len(parts) > 1 and parts[0] in _SOURCE_FOLDERS else parts
    package = ".".join(kept)
    if package == SourceSettings(steps=steps).steps_package or not all(part.isidentifier() for part in kept):
        return None
    return package


def _first_target(catalogue: Catalogue, step_id: str) -> Target:
    """Return a step with the config that stands for it: the one of a preferred name, else the first one, else none."""
    names = [name for name in catalogue.config_names(step_id) if is_target(f"{step_id}:{name}")]
    usual = NEMOTRON_CONFIGS if catalogue.package == NEMOTRON_PACKAGE else PREFERRED_CONFIGS
    preferred = next((name for name in usual if name in names), None)
    return Target(step_id, preferred or next(iter(names), None))
