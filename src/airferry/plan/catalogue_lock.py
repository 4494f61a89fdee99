"""The catalogue's own lock file: `uv.lock`, `pylock.toml`, or a hash-pinned `requirements.txt`.

Says which version of a distribution the catalogue was tried with, for a platform and a Python. Resolves nothing and
fetches nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.markers import InvalidMarker, Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from airferry.errors import ConfigurationError, HostError
from airferry.host import files

MAX_BYTES = 64 * 1024 * 1024
LOCK_NAMES = ("uv.lock", "pylock.toml", "requirements.txt")
Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """The distribution comes from a package registry, whichever the host is configured for."""


@dataclass(frozen=True, slots=True)
class GitSource:
    """The distribution is built of a commit of a Git repository."""

    url: str
    commit: str
    subdirectory: str | None = None


@dataclass(frozen=True, slots=True)
class UrlSource:
    """The distribution is a file at an address."""

    url: str


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The distribution is a folder or file of the catalogue itself. `path` is relative to the lock file."""

    path: str


LockedSource = RegistrySource | GitSource | UrlSource | LocalSource


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A wheel or source archive and its digest (`sha256:…`). A `requirements.txt` does not say the name."""

    name: str | None
    digest: str


@dataclass(frozen=True, slots=True)
class LockedDependency:
    """What a locked distribution needs, where `marker` holds. `version` tells several locked versions apart."""

    name: str
    version: str | None = None
    extras: tuple[str, ...] = ()
    marker: str | None = None


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One version of a distribution. `markers`, of which one must hold, say where it is the one that counts."""

    name: str
    version: str | None
    source: LockedSource
    files: tuple[LockedFile, ...] = ()
    dependencies: tuple[LockedDependency, ...] = ()
    extras: Mapping[str, tuple[LockedDependency, ...]] = field(default_factory=dict)
    markers: tuple[str, ...] = ()

    @property
    def hashes(self) -> tuple[str, ...]:
        """The digests of its files, sorted."""
        return tuple(sorted({file.digest for file in self.files}))


@dataclass(frozen=True)
class CatalogueLock:
    """All locked distributions of a catalogue. `flat` locks list what to install and carry no dependency graph."""

    path: Path
    packages: Mapping[str, tuple[LockedPackage, ...]]
    flat: bool

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and canonicalize_name(name) in self.packages

    def find(self, name: str, environment: Environment) -> LockedPackage | None:
        """Return the version of a distribution that counts in a PEP 508 marker environment, if any.

        Where the lock's markers leave several, it is the highest.
        """
        found = [item for item in self.packages.get(canonicalize_name(name), ()) if _holds(item.markers, environment)]
        return max(found, key=_version_key, default=None)

    def all_for(self, environment: Environment) -> tuple[LockedPackage, ...]:
        """Return what the catalogue's own environment consists of, sorted by name, its development groups left out.

        It is the closure over the default dependencies of the root project; of a flat lock, everything.

        Raises:
            ConfigurationError: the lock has no root project.
        """
        if self.flat:
            found = [self.find(name, environment) for name in self.packages]
            return tuple(sorted((item for item in found if item is not None), key=lambda item: item.name))
        chosen: dict[str, LockedPackage] = {}
        waiting: list[LockedDependency] = list(self._root().dependencies)
        seen: set[tuple[str, str]] = set()
        while waiting:
            wanted = waiting.pop()
            if wanted.marker is not None and not _evaluate(wanted.marker, environment):
                continue
            package = chosen.get(wanted.name) or self._of_version(wanted, environment)
            if package is None:
                continue
            if package.name not in chosen:
                chosen[package.name] = package
                waiting.extend(package.dependencies)
            for extra in wanted.extras:
                if (package.name, extra) not in seen:
                    seen.add((package.name, extra))
                    waiting.extend(package.extras.get(extra, ()))
        return tuple(chosen[name] for name in sorted(chosen) if not isinstance(chosen[name].source, LocalSource))

    def _of_version(self, wanted: LockedDependency, environment: Environment) -> LockedPackage | None:
        if wanted.version is not None:
            for package in self.packages.get(wanted.name, ()):
                if package.version == wanted.version:
                    return package
        return self.find(wanted.name, environment)

    def _root(self) -> LockedPackage:
        for versions in self.packages.values():
            for package in versions:
                if isinstance(package.source, LocalSource) and package.source.path in ("", "."):
                    return package
        raise ConfigurationError(
            f"{self.path}: no root project in the lock file",
            hint="run `uv lock` in the catalogue's root, or name another file in `source.lock`",
        )


def find_catalogue_lock(root: Path) -> Path | None:
    """Return the lock file in a catalogue's root: `uv.lock`, `pylock.toml`, then `requirements.txt`."""
    return next((root / name for name in LOCK_NAMES if (root / name).is_file()), None)


def read_catalogue_lock(path: Path) -> CatalogueLock:
    """Read a lock file; its kind follows from its name.

    Raises:
        ConfigurationError: it cannot be read, or is not what its name says.
    """
    try:
        text = files.read_bounded(path, limit_bytes=MAX_BYTES).decode("utf-8")
    except HostError as error:
        raise ConfigurationError(error.message, hint=error.hint, path=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text", path=str(path)) from error
    flat = path.name != "uv.lock"
    if path.suffix == ".txt":
        return CatalogueLock(path, _by_name(_read_requirements(path, text)), flat)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: no valid TOML: {error}", path=str(path)) from error
    try:
        packages = [_pylock_package(item) for item in data.get("packages", ())] if flat else _uv_packages(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path}: unexpected structure: {type(error).__name__}: {error}",
            hint="known are uv's lock version 1 and `pylock.toml` lock version 1.0",
            path=str(path),
        ) from error
    return CatalogueLock(path, _by_name(packages), flat)


def _by_name(packages: Iterable[LockedPackage]) -> dict[str, tuple[LockedPackage, ...]]:
    result: dict[str, tuple[LockedPackage, ...]] = {}
    for package in packages:
        result[package.name] = (*result.get(package.name, ()), package)
    return result


def _version_key(package: LockedPackage) -> Version:
    try:
        return Version(package.version or "0")
    except InvalidVersion:
        return Version("0")


@lru_cache(maxsize=4096)
def _marker(text: str) -> Marker:
    return Marker(text)


def _evaluate(text: str, environment: Environment) -> bool:
    try:
        return _marker(text).evaluate({"extra": "", **environment})
    except InvalidMarker as error:
        raise ConfigurationError(f"`{text}` is no environment marker: {error}") from error


def _holds(markers: tuple[str, ...], environment: Environment) -> bool:
    return not markers or any(_evaluate(marker, environment) for marker in markers)


def _uv_packages(data: Mapping[str, Any]) -> list[LockedPackage]:
    return [
        LockedPackage(
            name=canonicalize_name(item["name"]),
            version=item.get("version"),
            source=_uv_source(item["source"]),
            files=tuple(_uv_files(item)),
            dependencies=_uv_dependencies(item.get("dependencies", ())),
            extras={
                str(extra): _uv_dependencies(entries)
                for extra, entries in item.get("optional-dependencies", {}).items()
            },
            markers=tuple(item.get("resolution-markers", ())),
        )
        for item in data["package"]
    ]


def _uv_source(source: Mapping[str, str]) -> LockedSource:
    if "registry" in source:
        return RegistrySource()
    if "git" in source:
        parts = urlsplit(source["git"])
        query = dict(part.partition("=")[::2] for part in parts.query.split("&") if part)
        subdirectory = unquote(query["subdirectory"]) if "subdirectory" in query else None
        return GitSource(parts._replace(query="", fragment="").geturl(), parts.fragment, subdirectory)
    if "url" in source:
        return UrlSource(source["url"])
    for kind in ("editable", "virtual", "directory", "path"):
        if kind in source:
            return LocalSource(source[kind])
    raise KeyError(f"source of kind {sorted(source)}")


def _uv_files(item: Mapping[str, Any]) -> Iterable[LockedFile]:
    for entry in (*item.get("wheels", ()), *([item["sdist"]] if "sdist" in item else [])):
        if "hash" in entry:
            address = entry.get("url") or entry.get("path") or entry.get("filename") or ""
            yield LockedFile(_file_name(address), entry["hash"])


def _uv_dependencies(entries: Iterable[Mapping[str, Any]]) -> tuple[LockedDependency, ...]:
    return tuple(
        LockedDependency(
            canonicalize_name(entry["name"]), entry.get("version"), tuple(entry.get("extra", ())), entry.get("marker")
        )
        for entry in entries
    )


def _file_name(address: str) -> str | None:
    return PurePosixPath(unquote(urlsplit(address).path)).name or None


def _pylock_package(item: Mapping[str, Any]) -> LockedPackage:
    source: LockedSource = RegistrySource()
    if "vcs" in item:
        vcs = item["vcs"]
        source = GitSource(vcs.get("url") or vcs["path"], vcs["commit-id"], vcs.get("subdirectory"))
    elif "archive" in item:
        source = UrlSource(item["archive"]["url"]) if "url" in item["archive"] else LocalSource(item["archive"]["path"])
    elif "directory" in item:
        source = LocalSource(item["directory"]["path"])
    entries = [*item.get("wheels", ()), *(item[kind] for kind in ("sdist", "archive") if kind in item)]
    locked = [
        LockedFile(
            entry.get("name") or _file_name(entry.get("url") or entry.get("path") or ""),
            "sha256:" + entry["hashes"]["sha256"],
        )
        for entry in entries
        if "sha256" in entry.get("hashes", {})
    ]
    return LockedPackage(
        name=canonicalize_name(item["name"]),
        version=item.get("version"),
        source=source,
        files=tuple(locked),
        dependencies=tuple(
            LockedDependency(canonicalize_name(entry["name"])) for entry in item.get("dependencies", ())
        ),
        markers=(item["marker"],) if "marker" in item else (),
    )


_HASH = re.compile(r"--hash[= ](sha256:[0-9a-f]{64})\b")
_ANY_HASH = re.compile(r"--hash[= ]\S+")


def _read_requirements(path: Path, text: str) -> Iterable[LockedPackage]:
    for line, entry in _logical_lines(text):
        if entry.startswith("-"):
            if re.match(r"(-r|-c|-e|--requirement|--constraint|--editable)\b", entry):
                raise ConfigurationError(
                    f"{path}:{line}: `{entry}`: a lock file stands alone",
                    hint="write all pins into one file, for example with `pip-compile --generate-hashes`",
                )
            continue
        try:
            requirement = Requirement(_ANY_HASH.sub("", entry).strip())
        except InvalidRequirement as error:
            raise ConfigurationError(f"{path}:{line}: `{entry}` is no requirement: {error}") from error
        pins = [item.version for item in requirement.specifier if item.operator in ("==", "===")]
        if not requirement.url and (len(pins) != 1 or pins[0].endswith(".*")):
            raise ConfigurationError(
                f"{path}:{line}: `{requirement}` is not pinned to one version",
                hint="pin it, for example with `pip-compile --generate-hashes`",
            )
        yield LockedPackage(
            name=canonicalize_name(requirement.name),
            version=pins[0] if pins else None,
            source=_requirement_source(requirement.url),
            files=tuple(LockedFile(None, digest) for digest in _HASH.findall(entry)),
            markers=(str(requirement.marker),) if requirement.marker else (),
        )


def _requirement_source(url: str | None) -> LockedSource:
    if url is None:
        return RegistrySource()
    if not url.startswith("git+"):
        return UrlSource(url)
    address, _, fragment = url.removeprefix("git+").partition("#")
    subdirectory = dict(part.partition("=")[::2] for part in fragment.split("&") if part).get("subdirectory")
    address, _, commit = address.rpartition("@")
    return GitSource(address, commit, subdirectory)


def _logical_lines(text: str) -> Iterable[tuple[int, str]]:
    """Return each requirement with the line it begins on, continued lines joined, comments dropped."""
    held, first = "", 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        first = first or number
        held = f"{held} {line.removesuffix(chr(92)).strip()}".strip()
        if not line.endswith("\\"):
            if held:
                yield first, held
            held, first = "", 0
    if held:
        yield first, held
