"""The text of a first `airgap.yaml`: short, and with comments that say what to change. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airferry.config.fields import is_target
from airferry.host.yaml import render_line
from airferry.wording import comment_line

DEBIAN_SUITE = "bookworm"
DEBIAN_PACKAGES = ("python3-minimal", "libpython3-stdlib", "python3-yaml")
DEBIAN_NAME = "python"
# for the two steps that `init` writes, on a base that lacks it
FIRST_REQUIREMENTS = {"yaml": "PyYAML==6.0.3"}


@dataclass(frozen=True, slots=True)
class FirstImage:
    """An execution image: its base, empty for a Debian userland, the place that names it, and what else is set."""

    base: str
    place: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FirstPlan:
    """What a first plan says. `stages` are all targets, with whether they are carried; `origin` is the catalogue's."""

    root: str
    steps: str
    package: str | None
    stages: Mapping[str, bool]
    dependencies: Mapping[str, tuple[str, ...]]
    step_images: Mapping[str, str]
    images: Mapping[str, FirstImage]
    origin: str = ""
    is_nemotron: bool = False
    is_new: bool = False

    def render(self) -> str:
        """Return the plan as YAML. Ends with a line feed."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# The plan: which steps cross the air gap, and in which images they run."
        if self.origin:
            yield comment_line(f"Written by `airferry init` for {self.origin}")
        yield "# docs/configuration.md has all keys, `airferry schema` prints them for an editor."
        yield from ("", *self._workflow(), "", *self._source(), "", *self._builds(), "")
        yield "# Which image each step runs in."
        yield from _mapping("step_execution_images", self.step_images.items())
        yield from ("", "execution_images:")
        for name, image in self.images.items():
            yield from _image(name, image)

    def _workflow(self) -> Iterator[str]:
        yield "# The steps to carry, as `step/id:config`."
        if not all(self.stages.values()):
            yield "# Remove the `#` of those that are to come along, too."
        yield from ("workflow:", "  stages:")
        for spec, carried in self.stages.items():
            yield f"    {'' if carried else '# '}- {_listed_target(spec)}"
        if self.dependencies:
            yield from ("", "# What a step cannot do without: it is carried with it, and comes before it.")
            yield "dependencies:"
            for step, targets in self.dependencies.items():
                yield f"  {render_line(step)}: [{', '.join(map(_listed_target, targets))}]"

    def _source(self) -> Iterator[str]:
        yield "# Where the steps are, from the folder of this file."
        keys = {"root": self.root}
        if not self.is_nemotron:
            keys["steps"] = self.steps
        if self.package:
            keys["package"] = self.package
        yield from _mapping("source", keys.items())
        if not self.is_nemotron:
            yield "  # What your users type on the far side, for example:"
            yield "  # submit: acme run {step} --config {config} --cluster {profile} {overrides}"

    def _builds(self) -> Iterator[str]:
        yield "# What images are built for; without it, this host's own CPU."
        yield "# platforms: [linux/amd64, linux/arm64]"
        yield ""
        if self.is_nemotron:
            yield "# The image that carries the catalogue and submits jobs is built on python:3.12-slim."
            yield "# `false` leaves it out."
            yield "# launcher_image: false"
            return
        yield "# `false` leaves out the image that carries the catalogue and submits jobs. Without the key, it is built"
        yield "# on python:3.12-slim."
        yield "launcher_image: false"
        if self.is_new:
            yield "# Without this line the bundle carries airferry too, for a far side that lacks it."
            yield "loader: false"


def _listed_target(spec: str) -> str:
    """Return a target as an item of a list: bare where it reads as text, as `12:30` does not."""
    return spec if is_target(spec) and "/" in spec else render_line(spec)


def _image(name: str, image: FirstImage) -> Iterator[str]:
    yield f"  {render_line(name)}:"
    if image.place:
        yield f"    {comment_line(f'as in {image.place}')}"
    if image.base:
        yield f"    base_image: {render_line(image.base)}"
    else:
        yield "    # A Debian userland made of packages, which needs no image registry. An image instead is written as"
        yield "    # `base_image: python:3.12-slim`."
        yield "    base_image:"
        yield "      bootstrap:"
        yield f"        suite: {DEBIAN_SUITE}"
        yield f"        packages: [{', '.join(DEBIAN_PACKAGES)}]"
    for key, value in image.settings.items():
        yield f"    {key}: {render_line(value)}"


def _mapping(key: str, items: Iterable[tuple[str, Any]]) -> Iterator[str]:
    yield f"{key}:"
    for name, value in items:
        yield f"  {render_line(name)}: {render_line(value)}"
