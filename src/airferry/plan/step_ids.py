"""Step ids in `airgap.yaml` that the catalogue does not have, where nothing selected needs them.

They are warnings: a file for a whole catalogue may be used with one that has fewer steps, as Nemotron's runner allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from airferry.config import Config
from airferry.errors import ConfigurationError
from airferry.plan.catalogue import Catalogue, choose_target, find_step
from airferry.plan.models import PlanWarning, StepPlan
from airferry.wording import near_names, some_of

CUTOFF = 0.75
_Key = tuple[str | int, ...]


def id_warnings(config: Config, catalogue: Catalogue, steps: Iterable[StepPlan]) -> tuple[PlanWarning, ...]:
    """Return a warning for each unknown step with a near match, and one a section for all others.

    Looked at are the keys of `dependencies` and `step_execution_images`, and the targets that `dependencies` lists for
    steps that are not selected; those of selected ones were found already.
    """
    selected = {step.target.step_id: step.target.spec for step in steps}
    known: list[str] = []
    found: list[PlanWarning] = []
    for section, keys in _sections(config):
        unknown = [name for name in keys if not _is_step(catalogue, name)]
        known = known or (catalogue.step_ids() if unknown else [])
        strange = []
        for name in unknown:
            plain = name.partition(":")[0].strip()
            near = near_names(plain, known, cutoff=CUTOFF)
            if not near:
                strange.append(name)
                continue
            place = _place(config, catalogue, (*section, name))
            message = f"`{'.'.join(section)}` refers to step `{name}`, which is not in the catalogue"
            targets = (selected[near[0]],) if near[0] in selected else ()
            found.append(PlanWarning("name", place, message, f"did you mean `{near[0]}`?", targets))
        if strange:
            places = [_place(config, catalogue, (*section, name)) for name in strange]
            shown = some_of([f"`{name}`" for name in strange], 5)
            message = f"`{'.'.join(section)}` refers to steps that are not in the catalogue: {shown}"
            hint = "remove them, or set `source.root` to the catalogue that has them"
            found.append(PlanWarning("name", places[0], message, hint, also=tuple(places[1:])))
    return (*found, *_dependencies(config, catalogue, selected))


def _sections(config: Config) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    yield _dependencies_key(config), list(config.effective_dependencies)
    yield ("step_execution_images",), list(config.step_execution_images)


def _dependencies_key(config: Config) -> tuple[str, ...]:
    return ("dependencies",) if config.dependencies else ("workflow", "dependencies")


def _dependencies(config: Config, catalogue: Catalogue, selected: Iterable[str]) -> Iterator[PlanWarning]:
    """Yield what is wrong with prerequisites of steps that are not selected."""
    for step_id, targets in config.effective_dependencies.items():
        if step_id in selected or not _is_step(catalogue, step_id):
            continue
        for index, text in enumerate(targets):
            try:
                find_step(catalogue, choose_target(catalogue, text, folder=config.folder))
            except ConfigurationError as error:
                place = _place(config, catalogue, (*_dependencies_key(config), step_id, index))
                yield PlanWarning("name", place, f"a prerequisite of `{step_id}`: {error.message}", error.hint or "")


def _is_step(catalogue: Catalogue, name: str) -> bool:
    folder = catalogue.steps_folder / name
    return ".." not in Path(name).parts and any((folder / file).is_file() for file in ("step.toml", "step.py"))


def _place(config: Config, catalogue: Catalogue, key: _Key) -> str:
    return f"{catalogue.relative(config.path)}:{config.line(*key)}"
