"""The catalogue's own lock file: `uv.lock`, `pylock.toml`, or a hash-pinned `requirements.txt`.

Says which version of a distribution the catalogue was tried with, for a platform and a Python. Resolves nothing and
fetches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement
from packaging.utils import canonicalize_name

from airferry.errors import ConfigurationError, HostError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_toml
from airferry.plan.locks.flat import pylock_packages, read_requirements
from airferry.plan.locks.packages import (
    LocalSource,
    LockedPackage,
    MarkerEnvironment,
    ResolutionRules,
    any_holds,
    version_key,
)
from airferry.plan.locks.uv import UvGraph, read_uv_lock

MAX_LOCK_BYTES = 64 * 1024 * 1024
LOCK_NAMES = ("uv.lock", "pylock.toml", "requirements.txt")


@dataclass(frozen=True)
class CatalogueLock:
    """All locked distributions of a catalogue. Locks without `graph` list what to install, and no dependencies."""

    path: Path
    packages: Mapping[str, tuple[LockedPackage, ...]]
    graph: UvGraph | None = None
    rules: ResolutionRules = field(default_factory=ResolutionRules)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and canonicalize_name(name) in self.packages

    def find(self, name: str, environment: MarkerEnvironment) -> LockedPackage | None:
        """Return the version of a distribution that counts in a PEP 508 marker environment, if any.

        Where the lock has several, it is the one that the catalogue's project gets there by default, then the highest
        of those that it gets with one of its extras or groups, then the highest whose markers hold.
        """
        candidates = self.packages.get(canonicalize_name(name), ())
        if self.graph is not None and len(candidates) > 1:
            for extras, groups in self.graph.scopes():
                reached = [item for item in self._closure(environment, extras, groups) if item in candidates]
                if reached:
                    return max(reached, key=version_key)
        found = [item for item in candidates if self._applies(item, environment)]
        return max(found, key=version_key, default=None)

    def all_for(
        self,
        environment: MarkerEnvironment,
        *,
        extras: frozenset[str] = frozenset(),
        groups: frozenset[str] = frozenset(),
    ) -> tuple[LockedPackage, ...]:
        """Return what the catalogue's own environment consists of, sorted by name.

        It is what `uv sync --no-default-groups` installs, with the extras and groups named, so development groups are
        left out, and so is the project itself; of a flat lock, it is everything.

        Raises:
            ConfigurationError: the lock has no root project.
        """
        if self.graph is None:
            found = [self.find(name, environment) for name in self.packages]
            return tuple(sorted((item for item in found if item is not None), key=lambda item: item.name))
        roots = self.graph.roots()
        if not roots:
            raise ConfigurationError(
                f"{self.path}: no root project in the lock file",
                hint="run `uv lock` in the catalogue's root, or set another file in `source.lock`",
            )
        return tuple(
            item
            for item in self._closure(environment, extras, groups)
            if not isinstance(item.source, LocalSource)
            or (item.source.kind != "virtual" and item.source.path not in ("", "."))
        )

    def place(self, package: LockedPackage) -> str:
        """Return `file:line` of where the lock speaks of a package."""
        return f"{self.path}:{package.line}" if package.line else str(self.path)

    def _closure(
        self, environment: MarkerEnvironment, extras: frozenset[str], groups: frozenset[str]
    ) -> tuple[LockedPackage, ...]:
        assert self.graph is not None
        return self.graph.closure(environment, extras=extras, groups=groups)

    def _applies(self, package: LockedPackage, environment: MarkerEnvironment) -> bool:
        if self.graph is not None:
            return self.graph.applies(package, environment)
        return any_holds(package.markers, environment)


def find_catalogue_lock(root: Path) -> Path | None:
    """Return the lock file in a catalogue's root: `uv.lock`, `pylock.toml`, then `requirements.txt`."""
    return next((root / name for name in LOCK_NAMES if (root / name).is_file()), None)


def read_catalogue_lock(path: Path) -> CatalogueLock:
    """Read a lock file; its kind follows from its name.

    Raises:
        ConfigurationError: it cannot be read, or is not what its name says.
    """
    try:
        text = files.read_bounded(path, limit_bytes=MAX_LOCK_BYTES).decode("utf-8")
    except HostError as error:
        raise ConfigurationError(error.message, hint=error.hint, path=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: not UTF-8 text", path=str(path), hint="write the lock again with its tool (`uv lock`)"
        ) from error
    if path.suffix == ".txt":
        return CatalogueLock(path, _by_name(read_requirements(path, text)))
    try:
        data = parse_toml(text)
    except Malformed as error:
        raise ConfigurationError(
            f"{path}:{error.line}: not valid TOML: {error}",
            path=str(path),
            line=error.line,
            hint="write the lock again with its tool (`uv lock`)",
        ) from error
    try:
        return _read_toml(path, data, text)
    except (KeyError, TypeError, AttributeError, ValueError, InvalidRequirement, RecursionError) as error:
        raise ConfigurationError(
            f"{path}: unexpected structure: {type(error).__name__}: {error}",
            hint="known are uv's lock version 1 and `pylock.toml` lock version 1.0",
            path=str(path),
        ) from error


def _read_toml(path: Path, data: Mapping[str, Any], text: str) -> CatalogueLock:
    if path.name != "uv.lock":
        entries = data.get("packages", [])
        return CatalogueLock(path, _by_name(pylock_packages(entries, _heads(text, "packages", len(entries)))))
    packages, graph, rules = read_uv_lock(data, _heads(text, "package", len(data.get("package", []))), path=path)
    return CatalogueLock(path, _by_name(packages), graph, rules)


def _heads(text: str, table: str, count: int) -> list[int]:
    """Return the lines on which the entries of an array of tables begin, 0 where it is written in another form."""
    head = re.compile(rf"\s*\[\[\s*{table}\s*\]\]")
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if head.match(line)]
    return lines if len(lines) == count else [0] * count


def _by_name(packages: Iterable[LockedPackage]) -> dict[str, tuple[LockedPackage, ...]]:
    result: dict[str, tuple[LockedPackage, ...]] = {}
    for package in packages:
        result[package.name] = (*result.get(package.name, ()), package)
    return result
