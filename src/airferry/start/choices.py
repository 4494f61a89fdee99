"""What a project is made of, what came of it, and what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.host.process import find_program
from airferry.wording import shell_line


@dataclass(frozen=True, slots=True)
class ProjectChoices:
    """What a project is made of, as far as it is not left to what is found.

    `source` is the root of a catalogue that lies elsewhere, `steps` its folder of steps. `package` names a new
    catalogue. `targets` are what is carried, `base` is for steps that name no image.
    """

    source: Path | None = None
    steps: str | None = None
    package: str | None = None
    targets: tuple[str, ...] = ()
    base: str | None = None


@dataclass(frozen=True, slots=True)
class ProjectOutcome:
    """What was written, or would be: files below `folder`, the targets with the image and the base of each.

    `is_new` tells whether the catalogue is a new one. `carried` are the targets in the plan, `unready` folders that are
    no steps yet with the reason, `unnamed` targets whose files name no base. `commands` go on from here, each with what
    it is for.
    """

    folder: Path
    files: tuple[str, ...]
    is_new: bool
    steps: str
    package: str
    origin: str
    images: dict[str, tuple[str, str]]
    carried: tuple[str, ...]
    unready: dict[str, str]
    unnamed: tuple[str, ...]
    notes: tuple[str, ...]
    commands: dict[str, str]

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "folder": str(self.folder),
            "written": list(self.files),
            "new_catalogue": self.is_new,
            "steps": self.steps,
            "package": self.package,
            "origin": self.origin or None,
            "targets": [
                {"target": spec, "image": name, "base": base or None, "carried": spec in self.carried}
                for spec, (name, base) in self.images.items()
            ],
            "not_ready": dict(self.unready),
            "notes": list(self.notes),
            "next": list(self.commands),
        }


def userland_notes() -> list[str]:
    """Return what to say where images are built on a Debian userland, and this host cannot make one."""
    if find_program("mmdebstrap") is not None:
        return []
    return [
        "`mmdebstrap`, which makes the Debian userland, is not installed: see `airferry doctor`, or choose a `--base`"
    ]


def next_commands(place: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the commands that lead from a project to a bundle that was rehearsed; `more` come before the plan."""
    return {
        **({} if place == Path.cwd() else {change_folder(place): "go to the folder of the project"}),
        **(more or {}),
        "airferry plan": "see what a build would make",
        "airferry lock": "pin bases, commits and versions",
        "airferry build --rehearse": "run each step without network, and build the bundle",
        "airferry verify out": "check every byte of it, as the far side will",
    }


def change_folder(place: Path) -> str:
    """Return the command that changes to a folder."""
    here = Path.cwd()
    return shell_line(["cd", place.relative_to(here) if place.is_relative_to(here) else place])
