"""What only the launcher image needs: the repository that Git tracks, and the project as an installable wheel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from airferry.errors import ConfigurationError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_toml
from airferry.near.wheels.pack import write_wheel
from airferry.wording import obeyed, printable

MAX_PROJECT_BYTES = 1024 * 1024
FALLBACK_VERSION = "0.0.0"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
MAX_SHOWN_PROJECT = 80
# they are in the names of a file and a folder, of which file systems take 255 bytes
MAX_NAME_AND_VERSION = 200
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]+")


def project_wheel(pyproject: Path, *, source_path: str, version: str | None, into: Path) -> Path | None:
    """Write a wheel that makes the catalogue's project importable from where it lies in the launcher image.

    It holds the project's metadata, its entry points and a `.pth` file with `source_path`, so that commands and
    `importlib.metadata` work while the code stays in the working tree: what an editable install would give. Its bytes
    depend on the inputs alone. Returns None where the file declares no `[project]`. `version` serves where the
    project's own is dynamic. See PEP 427, *Binary distribution format*, and PEP 660.

    Raises:
        ConfigurationError: `pyproject.toml` is not valid TOML, or says what metadata cannot hold.
    """
    try:
        project = parse_toml(files.read_bounded(pyproject, limit_bytes=MAX_PROJECT_BYTES)).get("project")
    except Malformed as error:
        raise ConfigurationError(
            f"{pyproject}:{error.line}: not valid TOML: {error}",
            hint="correct the file",
            path=str(pyproject),
            line=error.line,
        ) from error
    if not isinstance(project, dict) or "name" not in project:
        return None
    _expect_shape(project, pyproject)
    _expect_lines(project, pyproject)
    name = str(project["name"])
    number = str(project.get("version") or version or FALLBACK_VERSION)
    fits = len(name) + len(number) <= MAX_NAME_AND_VERSION
    if not fits or not _NAME.fullmatch(name) or not _VERSION.fullmatch(number):
        shown = [printable(text, most=MAX_SHOWN_PROJECT) for text in (name, number)]
        raise ConfigurationError(
            f"{pyproject}: `project` has the name `{shown[0]}` and the version `{shown[1]}`, which no wheel can have",
            hint="correct the file",
            path=str(pyproject),
        )
    stem = f"{canonicalize_name(name).replace('-', '_')}-{number}"
    folder = f"{stem}.dist-info"
    members = {
        f"{stem.partition('-')[0]}.pth": source_path + "\n",
        f"{folder}/METADATA": _metadata(project, name, number),
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: airferry\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if entry_points := _entry_points(project):
        members[f"{folder}/entry_points.txt"] = entry_points
    data = {name: text.encode() for name, text in members.items()}
    return write_wheel(into / f"{stem}-py3-none-any.whl", data, info=folder)


def _expect_shape(project: Mapping[str, Any], pyproject: Path) -> None:
    """Check that what becomes metadata and entry points is of the types that the specification of `[project]` gives."""
    groups = project.get("entry-points", {})
    tables = [(key, project.get(key, {})) for key in ("scripts", "gui-scripts")]
    tables += [(f"entry-points.{key}", value) for key, value in groups.items()] if isinstance(groups, dict) else []
    wrong = [key for key, value in tables if not isinstance(value, dict) or not _all_texts(value.values())]
    if not isinstance(groups, dict):
        wrong.append("entry-points")
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list) or not _all_texts(dependencies):
        wrong.append("dependencies")
    if wrong:
        expected = "a list of texts" if wrong[0] == "dependencies" else "a table of texts"
        raise ConfigurationError(
            f"{pyproject}: `project.{wrong[0]}` is not {expected}", hint="correct the file", path=str(pyproject)
        )


def _all_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _expect_lines(project: Mapping[str, Any], pyproject: Path) -> None:
    """Check what becomes a line of metadata or of entry points: a line feed in it would begin another one."""
    used = ("requires-python", "dependencies", "scripts", "gui-scripts", "entry-points")
    levels: list[tuple[str, Any]] = [(key, project.get(key)) for key in used]
    while levels:
        key, value = levels.pop()
        if isinstance(value, dict):
            levels += [(key, item) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            levels += [(key, item) for item in value]
        elif isinstance(value, str) and (found := obeyed(value)):
            raise ConfigurationError(
                f"{pyproject}: `project.{key}` has a text with the control character {found}",
                hint="correct the file",
                path=str(pyproject),
            )


def _metadata(project: dict[str, Any], name: str, version: str) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    if isinstance(summary := project.get("description"), str):
        lines.append("Summary: " + " ".join(summary.split()))
    if isinstance(python := project.get("requires-python"), str):
        lines.append(f"Requires-Python: {python}")
    lines += [f"Requires-Dist: {requirement}" for requirement in project.get("dependencies") or []]
    return "\n".join(lines) + "\n"


def _entry_points(project: dict[str, Any]) -> str:
    groups: dict[str, dict[str, str]] = {
        "console_scripts": project.get("scripts") or {},
        "gui_scripts": project.get("gui-scripts") or {},
        **(project.get("entry-points") or {}),
    }
    text = ""
    for group, entries in sorted(groups.items()):
        if entries:
            text += f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in sorted(entries.items())) + "\n"
    return text
