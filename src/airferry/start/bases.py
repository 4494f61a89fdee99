"""What the image of a step is built on, as far as files tell: the config's own image, a Containerfile, Nemotron's plan.

Nothing is asked of a registry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from airferry.config import Config, ExecutionImage, RegistryBase, load_config
from airferry.defaults import PLAN_CONFIG
from airferry.errors import AirferryError, ConfigurationError, HostError
from airferry.host import files
from airferry.host.installation import shipped
from airferry.oci.reference import parse_reference
from airferry.plan.catalogue import Catalogue, find_step
from airferry.plan.config_images import without_variables
from airferry.plan.models import Target
from airferry.plan.step_config import StepConfigReader
from airferry.start.survey import Survey

CONTAINERFILES = ("Containerfile", "Dockerfile")
MAX_CONTAINERFILE_BYTES = 1024 * 1024
_FROM = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*(?:#.*)?$", re.IGNORECASE)
_ARG = re.compile(r"^\s*ARG\s+(\w+)=[\"']?([^\"'\s]*)[\"']?\s*$", re.IGNORECASE)
_ARGUMENT = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")


@dataclass(frozen=True, slots=True)
class StepBase:
    """What a step is built on: a reference and the place that names it; both are empty where nothing does.

    `image` is what Nemotron's plan says of the step's image besides, and `name` how it calls it.
    """

    reference: str = ""
    place: str = ""
    name: str = ""
    image: ExecutionImage | None = None


def nemotron_plan(survey: Survey) -> Config | None:
    """Return the plan for Nemotron's catalogue that ships with airferry, None for any other catalogue."""
    return load_config(shipped(PLAN_CONFIG)) if survey.is_nemotron else None


def find_bases(survey: Survey, known: Config | None) -> dict[Target, StepBase]:
    """Return what each target is built on: `run.env.container_image` of its config, what `known` says of the step, or
    the nearest Containerfile at or above its folder.
    """
    reader = StepConfigReader()
    return {target: _base(survey.catalogue, target, reader, known) for target in survey.targets}


def _base(catalogue: Catalogue, target: Target, reader: StepConfigReader, known: Config | None) -> StepBase:
    entry = known.step_execution_images.get(target.step_id) if known else None
    name = entry.execution_image if entry else ""
    image = known.execution_images.get(name) if known else None
    reference, place = _of_config(catalogue, target, reader)
    if not reference and image is not None and isinstance(image.base_image, RegistryBase):
        reference, place = image.base_image.reference, "airferry's own plan for Nemotron"
    if not reference:
        reference, place = _of_containerfile(catalogue, target)
    return StepBase(reference, place, name, image)


def _of_config(catalogue: Catalogue, target: Target, reader: StepConfigReader) -> tuple[str, str]:
    path = find_step(catalogue, target).config_path
    try:
        named = reader.read(path).container_image if path else None
    except ConfigurationError:
        return "", ""  # it is for `plan` to say what is wrong with it
    reference = _usable(without_variables(named.text)) if named else ""
    return (reference, f"{catalogue.relative(named.file)}:{named.line}") if named and reference else ("", "")


def _of_containerfile(catalogue: Catalogue, target: Target) -> tuple[str, str]:
    folder = catalogue.steps_folder / target.step_id
    above = [parent for parent in (folder, *folder.parents) if parent.is_relative_to(catalogue.root)]
    for path in (parent / name for parent in above for name in CONTAINERFILES):
        if not files.is_file(path):
            continue
        try:
            text = files.read_bounded(path, limit_bytes=MAX_CONTAINERFILE_BYTES).decode(errors="replace")
        except HostError:
            continue
        reference, line = last_base(text)
        if reference := _usable(reference):
            return reference, f"{catalogue.relative(path)}:{line}"
    return "", ""


def last_base(text: str) -> tuple[str, int]:
    """Return the image that the last stage of a Containerfile is built on, and its line; empty if it names none.

    Arguments before the first stage count with their defaults, and a stage that is built on another with that one's.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, tuple[str, int]] = {}
    last = ("", 0)
    for number, line in enumerate(text.splitlines(), start=1):
        if (found := _ARG.match(line)) and not last[1]:
            arguments[found[1]] = _with_arguments(found[2], arguments)
        elif found := _FROM.match(line):
            image = _with_arguments(found[1], arguments)
            last = stages.get(image.lower(), ("" if image == "scratch" else image, number))
            if found[2]:
                stages[found[2].lower()] = last
    return last


def _with_arguments(text: str, arguments: dict[str, str]) -> str:
    return _ARGUMENT.sub(lambda found: arguments.get(found[1] or found[3]) or found[2] or "", text)


def _usable(text: str) -> str:
    """Return a reference as a base takes it, empty if the text is none, or an image that is in no registry.

    pyxis separates the registry by `#`.
    """
    text = text.strip().replace("#", "/", 1)
    try:
        return "" if parse_reference(text).registry == "localhost" else text
    except AirferryError:
        return ""


def name_images(bases: Sequence[StepBase], *, default: str) -> list[str]:
    """Return a name for the image of each base, the same for those that can share one.

    Nemotron's plan has names where it agrees; others are the last part of the repository, with the tag where two
    would have the same name, else numbered.
    """
    names: dict[tuple[str, str], str] = {}
    for base in bases:
        key = _sharing(base)
        if key not in names:
            names[key] = next(name for name in _candidates(base, default) if name not in names.values())
    return [names[_sharing(base)] for base in bases]


def _sharing(base: StepBase) -> tuple[str, str]:
    """Return what images have in common that steps can share: the base, and what else is said of it."""
    more = base.image.model_dump_json(exclude={"base_image", "tag", "tar"}, exclude_unset=True) if base.image else "{}"
    return base.reference, more


def _candidates(base: StepBase, default: str) -> Iterator[str]:
    try:
        reference = parse_reference(base.reference)
    except AirferryError:  # none, or a layout or an archive that the user named
        names = [default]
    else:
        last = reference.repository.rpartition("/")[2]
        known = base.image.base_image if base.image else None
        agrees = isinstance(known, RegistryBase) and known.reference == base.reference
        names = [base.name, last] if agrees else [last, base.name, f"{last}-{reference.tag or ''}"]
    names = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in names if name]
    yield from names
    number = 2
    while True:
        yield f"{names[-1]}-{number}"
        number += 1
