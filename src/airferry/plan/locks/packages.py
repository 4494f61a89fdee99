"""What a lock file of Python packages says, whichever tool wrote it: distributions, sources, files, dependencies.

Values only. `uv_lock` and `flat_locks` read files into them, `catalogue_lock` answers questions with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

from airferry.errors import ConfigurationError
from airferry.host.parsing import short_numbers

MarkerEnvironment = Mapping[str, str]
LocalKind = Literal["editable", "virtual", "directory", "path"]
LOCAL_KINDS: tuple[LocalKind, ...] = get_args(LocalKind)


@dataclass(frozen=True, slots=True)
class IndexSource:
    """The distribution comes from a package registry, whichever the host is configured for.

    `index` is the address that the lock names, which tells equal versions of two registries apart.
    """

    index: str = ""


@dataclass(frozen=True, slots=True)
class GitSource:
    """The distribution is built from a commit of a Git repository."""

    url: str
    commit: str
    subdirectory: str | None = None


@dataclass(frozen=True, slots=True)
class UrlSource:
    """The distribution is a file at an address."""

    url: str


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The distribution is part of the catalogue itself. `path` is relative to the lock file.

    `kind` is uv's: a folder that is installed (`editable`, `directory`) or is not (`virtual`), or a file (`path`).
    """

    path: str
    kind: LocalKind = "directory"


LockedSource = IndexSource | GitSource | UrlSource | LocalSource


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A wheel or source archive and its digest (`sha256:…`). A `requirements.txt` does not say the name."""

    name: str | None
    digest: str


@dataclass(frozen=True, slots=True)
class LockedDependency:
    """What a locked distribution needs, where `marker` holds.

    `version` and `source` tell several locked versions of one distribution apart, and are None where there is one.
    """

    name: str
    version: str | None = None
    source: LockedSource | None = None
    extras: tuple[str, ...] = ()
    marker: str | None = None


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One version of a distribution. `markers`, of which one must hold, say where it is the one that counts.

    `line` is where the lock file begins to speak of it.
    """

    name: str
    version: str | None
    source: LockedSource
    files: tuple[LockedFile, ...] = ()
    dependencies: tuple[LockedDependency, ...] = ()
    extras: Mapping[str, tuple[LockedDependency, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[LockedDependency, ...]] = field(default_factory=dict)
    markers: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)

    @property
    def hashes(self) -> tuple[str, ...]:
        """The digests of its files, sorted."""
        return tuple(sorted({file.digest for file in self.files}))


@dataclass(frozen=True, slots=True)
class ResolutionRules:
    """How the lock was resolved other than the distributions' own metadata asks for.

    `overrides` take the place of every requirement for their distribution, `constraints` narrow it, `excluded` drops
    it. `metadata` is what replaces the requirements in the metadata of a distribution, or of one version of it.
    See uv's documentation, *Resolution*: dependency constraints, overrides, exclusions and metadata.
    """

    overrides: Mapping[str, tuple[Requirement, ...]] = field(default_factory=dict)
    constraints: Mapping[str, tuple[Requirement, ...]] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    metadata: Mapping[tuple[str, str | None], tuple[str, ...]] = field(default_factory=dict)

    def requires(self, name: str, version: str, own: Iterable[str]) -> tuple[str, ...]:
        """Return what a distribution requires: its own metadata, unless the lock has other metadata for it."""
        for key in ((name, version), (name, None)):
            if key in self.metadata:
                return self.metadata[key]
        return tuple(own)


@lru_cache(maxsize=4096)
def _marker(text: str) -> Marker:
    return Marker(short_numbers(text))


def evaluate(text: str, environment: MarkerEnvironment) -> bool:
    """Tell whether a PEP 508 marker holds in an environment, without any extra.

    Raises:
        ConfigurationError: it is not a marker.
    """
    try:
        return marker_holds(_marker(text), environment)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"`{text}` is not an environment marker: {error}", hint="write the lock again with its tool (`uv lock`)"
        ) from error


def marker_holds(marker: Marker, environment: Mapping[str, str]) -> bool:
    """Tell whether a marker holds in an environment, without an extra unless that has one.

    Raises:
        ValueError: it compares what cannot be compared, or names a variable that there is not.
    """
    try:
        return marker.evaluate({"extra": "", **environment})
    except KeyError as error:
        # a variable that is not known, or an empty text where one stands
        raise ValueError(f"nothing is known of {error}") from error


def read_requirement(text: str) -> Requirement:
    """Return a requirement of PEP 508.

    Raises:
        ValueError: it is none.
    """
    try:
        return Requirement(short_numbers(text))
    except RecursionError as error:
        raise ValueError("its marker is nested too deeply") from error


def any_holds(markers: Collection[str], environment: MarkerEnvironment) -> bool:
    """Tell whether one of the markers holds, or there are none."""
    return not markers or any(evaluate(marker, environment) for marker in markers)


def version_key(package: LockedPackage) -> Version:
    """Return what sorts versions of a distribution; one that is not a version comes first."""
    try:
        return Version(package.version or "0")
    except ValueError:
        return Version("0")
