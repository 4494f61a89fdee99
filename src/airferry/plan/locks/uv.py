"""`uv.lock`, read as uv reads it: what it locks, how it was resolved, and which of it an environment consists of.

uv itself is not asked: `uv export` keeps neither overrides nor constraints, cannot export extras that conflict at
once, and needs the project's folders next to the lock. Tests compare every answer with its export instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airferry.errors import ConfigurationError
from airferry.host.parsing import short_numbers, split_url, url_path
from airferry.plan.locks.packages import (
    LOCAL_KINDS,
    GitSource,
    IndexSource,
    LocalSource,
    LockedDependency,
    LockedFile,
    LockedPackage,
    LockedSource,
    MarkerEnvironment,
    ResolutionRules,
    UrlSource,
    any_holds,
    evaluate,
    version_key,
)

UV_LOCK_VERSION = 1
_HOLDS, _FAILS = "python_full_version >= '0'", "python_full_version < '0'"
# uv writes which extras, groups and projects are chosen as extras of made-up names: `extra-3-foo-cpu`, where 3 is the
# length of `foo`, `group-3-foo-docs`, `project-3-foo`
_CHOICE = re.compile(r"\bextra (==|!=) '([^']*)'")


@dataclass(frozen=True)
class UvGraph:
    """The packages of a `uv.lock` and their dependencies. `members` are the projects of the workspace.

    `requirements` and `groups` are those of a workspace whose root is not a project.
    """

    packages: Mapping[str, tuple[LockedPackage, ...]]
    members: tuple[str, ...] = ()
    requirements: tuple[LockedDependency, ...] = ()
    groups: Mapping[str, tuple[LockedDependency, ...]] = field(default_factory=dict)

    def roots(self) -> tuple[LockedPackage, ...]:
        """Return what `uv export` starts from: the root project, else all members of the workspace."""
        local = [
            item for versions in self.packages.values() for item in versions if isinstance(item.source, LocalSource)
        ]
        for package in local:
            if isinstance(package.source, LocalSource) and package.source.path in ("", "."):
                return (package,)
        return tuple(package for package in local if package.name in self.members)

    def scopes(self) -> list[tuple[frozenset[str], frozenset[str]]]:
        """Return what can be asked of the roots: nothing more, each extra, each group, as (extras, groups)."""
        extras = sorted({extra for root in self.roots() for extra in root.extras})
        groups = sorted({*self.groups, *(group for root in self.roots() for group in root.groups)})
        none: frozenset[str] = frozenset()
        return [
            (none, none),
            *((frozenset([extra]), none) for extra in extras),
            *((none, frozenset([group])) for group in groups),
        ]

    def closure(
        self,
        environment: MarkerEnvironment,
        *,
        extras: frozenset[str] = frozenset(),
        groups: frozenset[str] = frozenset(),
    ) -> tuple[LockedPackage, ...]:
        """Return what `uv sync` would install, sorted by name: the closure of the roots with extras and groups."""
        roots = self.roots()
        chosen = {f"project-{len(root.name)}-{root.name}" for root in roots}
        chosen |= {_choice("extra", root.name, extra) for root in roots for extra in extras & root.extras.keys()}
        chosen |= {_choice("group", root.name, group) for root in roots for group in groups & root.groups.keys()}
        while True:
            # an extra that a dependency asks for counts everywhere, so the walk is repeated until none comes up
            walk = _Walk(self, environment, chosen)
            for root in roots:
                walk.start(root, extras & root.extras.keys(), groups & root.groups.keys())
            walk.follow(self.requirements)
            for group in sorted(groups & self.groups.keys()):
                walk.follow(self.groups[group])
            walk.run()
            if walk.chosen == chosen:
                return tuple(sorted(walk.found, key=lambda item: (item.name, version_key(item))))
            chosen = walk.chosen

    def applies(self, package: LockedPackage, environment: MarkerEnvironment) -> bool:
        """Tell whether a package may count in an environment, whatever extras and groups are chosen."""
        return any_holds([_CHOICE.sub(_HOLDS, marker) for marker in package.markers], environment)

    def resolve(self, wanted: LockedDependency, environment: MarkerEnvironment) -> LockedPackage | None:
        """Return the package that a dependency means."""
        candidates = [
            item
            for item in self.packages.get(wanted.name, ())
            if wanted.version in (None, item.version) and wanted.source in (None, item.source)
        ]
        if len(candidates) > 1:
            candidates = [item for item in candidates if self.applies(item, environment)]
        return max(candidates, key=version_key, default=None)


class _Walk:
    """One walk along the dependencies, with the choices of extras and groups that count as made."""

    def __init__(self, graph: UvGraph, environment: MarkerEnvironment, chosen: Iterable[str]) -> None:
        self.found: list[LockedPackage] = []
        self.chosen = set(chosen)
        self._graph = graph
        self._environment = environment
        self._given = frozenset(self.chosen)
        self._waiting: list[tuple[LockedPackage, str | None]] = []
        self._seen: set[tuple[str, str | None, LockedSource, str | None]] = set()

    def start(self, root: LockedPackage, extras: Iterable[str], groups: Iterable[str]) -> None:
        """Begin at a root."""
        self._visit(root, [None, *sorted(extras)])
        for group in sorted(groups):
            self.follow(root.groups[group])

    def follow(self, dependencies: Iterable[LockedDependency]) -> None:
        """Take up what dependencies mean, where their markers hold."""
        for wanted in dependencies:
            asked = {_choice("extra", wanted.name, extra) for extra in wanted.extras}
            if wanted.marker is not None and not self._holds(wanted.marker, self._given | asked):
                continue
            package = self._graph.resolve(wanted, self._environment)
            if package is not None:
                self.chosen |= asked
                self._visit(package, [None, *wanted.extras])

    def run(self) -> None:
        """Walk until everything was seen."""
        while self._waiting:
            package, extra = self._waiting.pop()
            self.follow(package.dependencies if extra is None else package.extras.get(extra, ()))

    def _visit(self, package: LockedPackage, extras: Iterable[str | None]) -> None:
        for extra in extras:
            key = (package.name, package.version, package.source, extra)
            if key not in self._seen:
                self._seen.add(key)
                self._waiting.append((package, extra))
                if extra is None:
                    self.found.append(package)

    def _holds(self, marker: str, chosen: frozenset[str]) -> bool:
        def decide(match: re.Match[str]) -> str:
            return _HOLDS if (match[2] in chosen) == (match[1] == "==") else _FAILS

        return evaluate(_CHOICE.sub(decide, marker), self._environment)


def read_uv_lock(
    data: Mapping[str, Any], lines: Iterable[int], *, path: Path
) -> tuple[list[LockedPackage], UvGraph, ResolutionRules]:
    """Read the document of a `uv.lock`; `lines` are those on which its packages begin.

    Raises:
        ConfigurationError: a newer uv wrote it.
        KeyError, TypeError, AttributeError, ValueError: it is not what uv writes.
    """
    version = data.get("version")
    if version != UV_LOCK_VERSION:
        raise ConfigurationError(
            f"{path}: its version is `{version}`, and this version of airferry reads "
            f"uv's lock version {UV_LOCK_VERSION}",
            hint="export it with the uv that wrote it, `uv export --format pylock.toml -o pylock.toml`, and name that "
            "in `source.lock`",
        )
    packages = [_package(item, line) for item, line in zip(data.get("package", ()), lines, strict=True)]
    manifest = data.get("manifest", {})
    by_name: dict[str, tuple[LockedPackage, ...]] = {}
    for package in packages:
        by_name[package.name] = (*by_name.get(package.name, ()), package)
    graph = UvGraph(
        by_name,
        tuple(canonicalize_name(name) for name in manifest.get("members", ())),
        _dependencies(manifest.get("requirements", ())),
        {str(name): _dependencies(entries) for name, entries in manifest.get("dependency-groups", {}).items()},
    )
    return packages, graph, _rules(manifest)


def _choice(kind: str, package: str, name: str) -> str:
    return f"{kind}-{len(package)}-{package}-{name}"


def _package(item: Mapping[str, Any], line: int) -> LockedPackage:
    return LockedPackage(
        name=canonicalize_name(item["name"]),
        version=item.get("version"),
        source=_source(item["source"]),
        files=tuple(_files(item)),
        dependencies=_dependencies(item.get("dependencies", ())),
        extras={str(extra): _dependencies(entries) for extra, entries in item.get("optional-dependencies", {}).items()},
        groups={str(group): _dependencies(entries) for group, entries in item.get("dev-dependencies", {}).items()},
        markers=tuple(item.get("resolution-markers", ())),
        line=line,
    )


def _source(source: Mapping[str, str]) -> LockedSource:
    if "registry" in source:
        return IndexSource(source["registry"])
    if "git" in source:
        parts = split_url(source["git"])
        query = dict(part.partition("=")[::2] for part in parts.query.split("&") if part)
        subdirectory = unquote(query["subdirectory"]) if "subdirectory" in query else None
        return GitSource(parts._replace(query="", fragment="").geturl(), parts.fragment, subdirectory)
    if "url" in source:
        return UrlSource(source["url"])
    for kind in LOCAL_KINDS:
        if kind in source:
            return LocalSource(source[kind], kind)
    raise KeyError(f"source of kind {sorted(source)}")


def _files(item: Mapping[str, Any]) -> Iterable[LockedFile]:
    for entry in (*item.get("wheels", ()), *([item["sdist"]] if "sdist" in item else [])):
        if "hash" in entry:
            address = entry.get("url") or entry.get("path") or entry.get("filename") or ""
            yield LockedFile(PurePosixPath(unquote(url_path(address))).name or None, entry["hash"])


def _dependencies(entries: Iterable[Mapping[str, Any]]) -> tuple[LockedDependency, ...]:
    return tuple(
        LockedDependency(
            canonicalize_name(entry["name"]),
            entry.get("version"),
            _source(entry["source"]) if "source" in entry else None,
            tuple(entry.get("extra", entry.get("extras", ()))),
            entry.get("marker"),
        )
        for entry in entries
    )


def _rules(manifest: Mapping[str, Any]) -> ResolutionRules:
    return ResolutionRules(
        overrides=_requirements(manifest.get("overrides", ())),
        constraints=_requirements(manifest.get("constraints", ())),
        excluded=frozenset(canonicalize_name(name) for name in manifest.get("excludes", ())),
        metadata={
            (canonicalize_name(item["name"]), item.get("version")): tuple(
                str(_requirement(entry)) for entry in item.get("requires-dist", ())
            )
            for item in manifest.get("dependency-metadata", ())
        },
    )


def _requirements(entries: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Requirement, ...]]:
    found: dict[str, tuple[Requirement, ...]] = {}
    for entry in entries:
        requirement = _requirement(entry)
        name = canonicalize_name(requirement.name)
        found[name] = (*found.get(name, ()), requirement)
    return found


def _requirement(entry: Mapping[str, Any] | str) -> Requirement:
    """Return a requirement as the manifest writes it; one of a Git repository or an address is its name alone."""
    if isinstance(entry, str):
        return Requirement(short_numbers(entry))
    extras = f"[{','.join(entry['extras'])}]" if entry.get("extras") else ""
    marker = f" ; {entry['marker']}" if "marker" in entry else ""
    return Requirement(short_numbers(f"{entry['name']}{extras}{entry.get('specifier', '')}{marker}"))
