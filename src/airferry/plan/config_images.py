"""Images that configs name for their jobs, compared with the bases that the plan builds on. Reads no file."""

from __future__ import annotations

import re
from collections.abc import Iterable

from airferry.config import Config, RegistryBase
from airferry.errors import AirferryError
from airferry.oci.reference import Reference, parse_reference
from airferry.plan.catalogue import Catalogue
from airferry.plan.models import PlanWarning, StepPlan

# the default's blanks and quotes are not in the pattern: three ways to share blanks took cubic time
_DEFAULTED = re.compile(r"\$\{\s*oc\.env\s*:\s*\w+\s*,([^{}$]*)\}")
_QUOTES = "\"'"


def _default_of(found: re.Match[str]) -> str:
    """Return the default that a variable has, without the quotes around it; all that was found where it has none."""
    text = found[1].strip()
    if text[:1] in _QUOTES:
        text = text[1:]
    if text[-1:] in _QUOTES:
        text = text[:-1]
    return text if text and not any(quote in text for quote in _QUOTES) else found[0]


def without_variables(text: str) -> str:
    """Return the image that a config names, with variables replaced by their defaults where they have one."""
    return _DEFAULTED.sub(_default_of, text).strip()


def image_warnings(config: Config, catalogue: Catalogue, steps: Iterable[StepPlan]) -> tuple[PlanWarning, ...]:
    """Return a warning for each image that configs name in `run.env.container_image` and that is not their base.

    One warning stands for all targets that name one image and are built on one other. The same repository and tag in
    another registry are the same image: sites pull through their own registries.
    """
    found: dict[tuple[str, str, str], list[StepPlan]] = {}
    for step in steps:
        entry = config.step_execution_images.get(step.target.step_id)
        image = config.execution_images.get(entry.execution_image) if entry else None
        if entry is None or image is None or step.container_image is None:
            continue
        wanted = without_variables(step.container_image.text)
        if isinstance(image.base_image, RegistryBase) and _differ(wanted, image.base_image.reference):
            found.setdefault((wanted, image.base_image.reference, entry.execution_image), []).append(step)
    return tuple(_warning(config, catalogue, *key, steps=concerned) for key, concerned in found.items())


def _warning(
    config: Config, catalogue: Catalogue, wanted: str, base: str, name: str, *, steps: list[StepPlan]
) -> PlanWarning:
    places = [
        f"{catalogue.relative(step.container_image.file)}:{step.container_image.line}"
        for step in steps
        if step.container_image is not None
    ]
    places = list(dict.fromkeys(places))
    line = config.line("execution_images", name, "base_image")
    file = catalogue.relative(config.path.absolute())
    return PlanWarning(
        kind="image",
        place=places[0],
        message=f"`container_image` is `{wanted}`, but `{name}` is built on `{base}` ({file}:{line})",
        hint="try the steps on that base with `airferry rehearse`, or set `base_image: "
        f"{wanted}` for `{name}` or for a "
        "separate image of these steps",
        targets=tuple(step.target.spec for step in steps),
        also=tuple(places[1:]),
    )


def _differ(wanted: str, base: str) -> bool:
    """Tell whether two references name different images; text that is not a reference is not judged."""
    one, other = _parsed(wanted), _parsed(base)
    if one is None or other is None or one.repository != other.repository:
        return one is not None and other is not None
    if one.digest and other.digest:
        return one.digest != other.digest
    return bool(one.tag and other.tag) and one.tag != other.tag


def _parsed(text: str) -> Reference | None:
    try:
        return parse_reference(text.replace("#", "/", 1))  # pyxis separates the registry by `#`
    except AirferryError:
        return None
