"""Failures told at once: what is done for several images goes on after one has failed, and ends in one error.

Also where in the user's files stands what failed. Knows nothing of what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from airferry.errors import AirferryError, HostError, IntegrityError, raise_all
from airferry.host.threads import parallel_map
from airferry.plan.models import GroupPlan, LauncherPlan, Overlay, Plan
from airferry.registry.registries_conf import SharedFileError

T = TypeVar("T")
R = TypeVar("R")


def map_all(function: Callable[[T], R], items: Iterable[T], *, jobs: int) -> list[R]:
    """Return the function of each item, in their order; what fails for some items is tried for all.

    Faults of the host and of bytes end it at once.

    Raises:
        AirferryError: for one item or more it failed; one error tells all.
    """

    def attempt(item: T) -> R | _Failed:
        try:
            return function(item)
        except (HostError, IntegrityError):
            raise
        except AirferryError as error:
            return _Failed(error)

    done = parallel_map(attempt, list(items), jobs=jobs)
    failures = [one.error for one in done if isinstance(one, _Failed)]
    if failures:
        raise_all(failures)
    return [one for one in done if not isinstance(one, _Failed)]


@contextmanager
def naming(place: str, *, hint: str | None = None) -> Iterator[None]:
    """Put the place in the user's files before the message of what fails, and a way out behind its hint.

    The host's faults have no such place, nor has what is wrong in a file that all images share.
    """
    try:
        yield
    except (HostError, SharedFileError):
        raise
    except AirferryError as error:
        hints = [text for text in (error.hint, hint) if text]
        raise error.at(place, hint="; ".join(hints)) from error


@contextmanager
def naming_base(plan: Plan, key: str) -> Iterator[None]:
    """Name the first image that is built on a base; a default is named as such, with the key to set."""
    place = base_place(plan, key)
    if place is not None:
        with naming(place):
            yield
        return
    default = f"{plan.config.path}: `launcher_image.base_image` is not set, and its default is `{key}`"
    with naming(default, hint="set `launcher_image.base_image` to a base that this host can pull"):
        yield


def base_place(plan: Plan, key: str) -> str | None:
    """Return `file:line` of the plan's first image on a base, or None where that is the launcher's default."""
    config = plan.config
    planned = {name for group in plan.groups for name in group.image_names}
    for name, image in config.execution_images.items():
        if name in planned and image.base_image.key == key:
            return f"{config.path}:{config.line('execution_images', name, 'base_image')}"
    launcher = config.launcher_image
    if not launcher or "base_image" not in launcher.model_fields_set:
        return None
    return f"{config.path}:{config.line('launcher_image', 'base_image')}"


def overlay_place(plan: Plan, overlay: Overlay) -> str:
    """Return `file:line` of the first step config, else the first image, that asks for an overlay."""
    for step in plan.steps:
        if overlay in step.overlays and step.config_path is not None:
            lines = step.config_path.read_text(encoding="utf-8").splitlines()
            numbers = [number for number, line in enumerate(lines, 1) if overlay.key in line]
            return f"{step.config_path}:{numbers[0]}" if numbers else str(step.config_path)
    config = plan.config
    for name, image in config.execution_images.items():
        if any((spec.url, spec.ref) == (overlay.url, overlay.ref) for spec in image.overlays):
            return f"{config.path}:{config.line('execution_images', name, 'overlays')}"
    return str(config.path)


def requirement_places(plan: Plan, image: GroupPlan | LauncherPlan) -> dict[str, str]:
    """Return `file:line` of each module under an image's `requirements:`."""
    config = plan.config
    keys: dict[str, tuple[str, ...]]
    if isinstance(image, LauncherPlan):
        keys = {module: ("launcher_image", "requirements", module) for module in image.requirements}
    else:
        keys = {
            module: ("execution_images", name, "requirements", module)
            for name in reversed(image.image_names)
            for module in config.execution_images[name].requirements
        }
    return {module: f"{config.path}:{config.line(*key)}" for module, key in keys.items()}


class _Failed:
    def __init__(self, error: AirferryError) -> None:
        self.error = error
