"""What is added to a base, closed over the distributions' own requirements, by the rules of the catalogue's lock.

`requirements` decides what is asked for first, `wheels` fetches. Leaving the lock for a version is always noted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from airferry.config.fields import parse_git_requirement
from airferry.errors import AirferryError, BuildError, parts, raise_all
from airferry.host.parsing import short_numbers
from airferry.near.probe.answers import InstalledDistribution, ProbeResult, PythonFacts
from airferry.near.wheels.compile import Compiler
from airferry.near.wheels.pack import Wheel
from airferry.near.wheels.pip import wheel_target
from airferry.near.wheels.store import Pin, WheelStore
from airferry.plan.code.modules import CORE_MODULES
from airferry.plan.locks.catalogue import CatalogueLock
from airferry.plan.locks.packages import (
    GitSource,
    LocalSource,
    LockedPackage,
    ResolutionRules,
    UrlSource,
    marker_holds,
    read_requirement,
)

CORE_DISTRIBUTIONS = CORE_MODULES | {"megatron-core", "megatron-bridge", "nemo-toolkit"}
MAX_CLOSURE_ROUNDS = 100
# of one image: each wheel that an index hands out may require thousands more, which it hands out as well
MAX_ADDED_DISTRIBUTIONS = 2_000


@dataclass(frozen=True, slots=True)
class AddedDistribution:
    """A distribution to install. `modules` are those it was added for, none if only another addition requires it.

    `address` is where its file is, if not in the package index.
    """

    wheel: Wheel
    modules: tuple[str, ...] = ()
    source: GitSource | None = None
    address: str = ""


@dataclass(slots=True)
class _Want:
    """A distribution on its way into the list, and who asks for it. `is_named`: the image's `requirements:` do."""

    specifier: SpecifierSet = field(default_factory=SpecifierSet)
    extras: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)
    git: GitSource | None = None
    address: str = ""
    is_named: bool = False
    named_at: str = ""
    closed_for: frozenset[str] | None = None
    wheel: Wheel | None = None


@dataclass(frozen=True, slots=True)
class WheelSupply:
    """Where the wheels of a base come from: the catalogue's lock, and the store, which asks the index.

    `compiler` makes those that must be compiled, which are refused without it.
    """

    lock: CatalogueLock | None
    store: WheelStore
    compiler: Compiler | None = None

    def fetch(self, pins: Sequence[Pin], python: PythonFacts) -> list[Wheel]:
        """Return the wheels of pins for an interpreter, in their order.

        Raises:
            BuildError: one cannot be had.
            IntegrityError: one has another hash than its pin says.
        """
        return self.store.fetch(pins, wheel_target(python), compiler=self.compiler)


class DependencyClosure:
    """Adds what additions require until nothing is missing any more."""

    def __init__(
        self,
        probe: ProbeResult,
        supply: WheelSupply,
        *,
        base: str,
        pip_no_deps: bool,
        is_own: bool = False,
    ) -> None:
        """Close over what a base holds; `is_own`: over a separate environment, in which no package is core."""
        self.notes: set[str] = set()
        self._probe = probe
        self._base = base
        self._pip_no_deps = pip_no_deps
        self._supply = supply
        self._lock = supply.lock
        self._is_own = is_own
        self._rules = supply.lock.rules if supply.lock is not None else ResolutionRules()
        self._installed = {canonicalize_name(item.name): item for item in probe.distributions}
        self._wants: dict[str, _Want] = {}

    def add_direct(
        self, requirement: Requirement, module: str, *, place: str, is_named: bool = False, named_at: str = ""
    ) -> None:
        """Ask for the distribution of a module that the base lacks, and that is imported at a place of the catalogue.

        `place` is empty where only what the base holds imports it. `is_named`: the image's `requirements:` name it,
        in the line `named_at`.
        """
        if not self._applies(requirement, extras=()):
            self.notes.add(f"`{requirement}`, named for `{module}`, does not apply to this platform and Python")
            return
        name = canonicalize_name(requirement.name)
        want = self._ask(name, requirement, parent=f"`{module}` ({place})" if place else f"`{module}`")
        want.modules.add(module)
        want.is_named = want.is_named or is_named
        want.named_at = want.named_at or named_at

    def run(self) -> None:
        """Fetch, read what the wheels require, and repeat until the list is closed.

        Raises:
            BuildError: a distribution cannot be had, or the wishes cannot be satisfied together.
        """
        for _ in range(MAX_CLOSURE_ROUNDS):
            unsettled = sorted(
                name
                for name, want in self._wants.items()
                if want.wheel is None or not _satisfies(want.specifier, want.wheel.version)
            )
            if unsettled:
                self._fetch(unsettled)
            open_ones = [name for name, want in self._wants.items() if want.closed_for != frozenset(want.extras)]
            if not open_ones and not unsettled:
                if not self._is_own:
                    self._note_replacements()
                self._note_unlocked()
                return
            for name in sorted(open_ones):
                self._close(name)
        raise BuildError(
            f"the requirements of `{'`, `'.join(sorted(self._wants))}` cannot be satisfied together",
            hint="choose versions that agree under `requirements:` of the image",
        )

    def additions(self) -> tuple[AddedDistribution, ...]:
        """Return what was found, sorted by name."""
        return tuple(
            AddedDistribution(want.wheel, tuple(sorted(want.modules)), want.git, want.address)
            for _, want in sorted(self._wants.items())
            if want.wheel is not None
        )

    def _ask(self, name: str, requirement: Requirement, *, parent: str) -> _Want:
        want = self._wants.setdefault(name, _Want())
        if len(self._wants) > MAX_ADDED_DISTRIBUTIONS:
            raise BuildError(
                f"more than {MAX_ADDED_DISTRIBUTIONS} distributions would be added, the limit; `{name}` is required by "
                f"{parent}",
                hint=f"check that {parent} comes from the index that you trust",
            )
        want.specifier &= requirement.specifier
        want.extras |= {canonicalize_name(extra) for extra in requirement.extras}
        want.parents.add(parent)
        if requirement.url:
            want.git = _git_source(requirement)
        return want

    def _fetch(self, names: Sequence[str]) -> None:
        pins = [self._pin(name, self._wants[name]) for name in names]
        try:
            wheels = self._supply.fetch(pins, self._probe.python)
        except BuildError as error:
            raise_all([self._asked_for(one, pins) for one in parts(error)])
        for name, pin, wheel in zip(names, pins, wheels, strict=True):
            want = self._wants[name]
            want.wheel, want.git, want.address, want.closed_for = wheel, pin.git, pin.address, None
            if not _satisfies(want.specifier, wheel.version):
                raise BuildError(
                    f"`{wheel.filename}` does not satisfy `{name}{want.specifier}` "
                    f"(required by {', '.join(sorted(want.parents))})",
                    hint="choose versions that agree under `requirements:` of the image",
                )

    def _asked_for(self, error: AirferryError, pins: Sequence[Pin]) -> AirferryError:
        """Return an error with who asks for what it is about."""
        asked = next((pin for pin in pins if f"`{pin.requirement}`" in error.message), None)
        if asked is None:
            return error
        parents = ", ".join(sorted(self._wants[asked.key].parents))
        return error.reworded(f"{error.message} (required by {parents})")

    def _pin(self, name: str, want: _Want) -> Pin:
        if want.git is not None and want.wheel is None:
            return Pin(name, git=want.git, place=want.named_at)
        locked = self._locked(name)
        if locked is not None and self._suits(want, locked):
            assert self._lock is not None
            return locked_pin(locked, self._lock)
        return Pin(name, str(want.specifier))

    def _locked(self, name: str) -> LockedPackage | None:
        return self._lock.find(name, self._probe.python.markers) if self._lock else None

    @staticmethod
    def _suits(want: _Want, locked: LockedPackage) -> bool:
        return locked.version is None or _satisfies(want.specifier, locked.version)

    def _note_unlocked(self) -> None:
        """Say which versions are not those of the catalogue's lock, and why."""
        if self._lock is None:
            return
        for name, want in sorted(self._wants.items()):
            if want.wheel is None:
                continue
            locked, who = self._locked(name), ", ".join(sorted(want.parents))
            if want.wheel.note:
                self.notes.add(want.wheel.note)
            elif locked is None:
                how = "as `requirements:` says" if want.is_named else "the newest compatible version"
                self.notes.add(
                    f"`{name}` is not in the catalogue's lock: {want.wheel.version} was chosen, {how}, for {who}"
                )
            elif locked.version not in (None, want.wheel.version):
                self.notes.add(
                    f"`{name}` {locked.version} of the catalogue's lock is not `{want.specifier or want.git}`, which "
                    f"{who} requires; {want.wheel.version} was chosen"
                )

    def _close(self, name: str) -> None:
        """Ask for what a fetched wheel requires."""
        want = self._wants[name]
        if want.wheel is None:
            return
        want.closed_for = frozenset(want.extras)
        lines = self._rules.requires(name, want.wheel.version, want.wheel.requires)
        self._require(lines, extras=want.extras, parent=f"`{name}` {want.wheel.version}", seen=set())

    def _require(self, lines: Iterable[str], *, extras: Iterable[str], parent: str, seen: set[tuple[str, str]]) -> None:
        for requirement in self._ruled(lines, extras=extras, parent=parent):
            name = canonicalize_name(requirement.name)
            installed = self._installed.get(name)
            if name in self._wants:
                self._ask(name, requirement, parent=parent)
            elif installed is not None:
                self._require_installed(name, installed, requirement, parent=parent, seen=seen)
            elif self._is_core(name):
                self._require_core(name, parent)
            else:
                self._ask(name, requirement, parent=parent)

    def _ruled(self, lines: Iterable[str], *, extras: Iterable[str], parent: str) -> Iterable[Requirement]:
        """Return the requirements that apply, as the lock was resolved: replaced, narrowed or dropped by its rules."""
        for line in lines:
            own = parse_requirement(line, why=f"what {parent} requires")
            name = canonicalize_name(own.name)
            if name in self._rules.excluded:
                continue
            for requirement in self._rules.overrides.get(name, (own,)):
                # an override counts whatever the markers of what it replaces say, but for their extras
                asked = own if requirement is own or "extra" in str(own.marker or "") else requirement
                if not self._applies(asked, extras=extras) or not self._applies(requirement, extras=extras):
                    continue
                for constraint in self._rules.constraints.get(name, ()):
                    if self._applies(constraint, extras=()):
                        requirement = _narrowed(requirement, constraint.specifier)
                yield requirement

    def _require_installed(
        self,
        name: str,
        installed: InstalledDistribution,
        requirement: Requirement,
        *,
        parent: str,
        seen: set[tuple[str, str]],
    ) -> None:
        """Keep a distribution of the base where it suits or must stay; else ask for another version of it."""
        if not _satisfies(requirement.specifier, installed.version):
            if not self._pip_no_deps and not self._is_core(name):
                self._ask(name, requirement, parent=parent)
                return
            self.notes.add(
                f"{parent} requires `{name}{requirement.specifier}`; the base has `{name}` {installed.version}, which "
                "is kept"
            )
        for extra in sorted(canonicalize_name(item) for item in requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                lines = [line for line in installed.requires if "extra" in line]
                self._require(lines, extras=[extra], parent=f"`{name}[{extra}]` of the base", seen=seen)

    def _is_core(self, name: str) -> bool:
        return not self._is_own and is_core_distribution(name)

    def _require_core(self, name: str, parent: str) -> None:
        module = name.partition("-")[0]
        answer = self._probe.modules.get(module)
        if answer is not None and answer.status == "unknown":
            self.notes.add(f"{parent} requires `{name}`; whether the base has `{module}` is unknown: {answer.doubt}")
            return
        if answer is not None and answer.status != "missing":
            self.notes.add(f"{parent} requires `{name}`; the base has the module `{module}` without its metadata")
            return
        raise BuildError(
            f"{parent} requires `{name}`, which only a base can provide, and the base `{self._base}` lacks it",
            hint="choose a `base_image` that has it for these steps; core packages are never installed on top",
        )

    def _applies(self, requirement: Requirement, *, extras: Iterable[str]) -> bool:
        if requirement.marker is None:
            return True
        environment = dict(self._probe.python.markers)
        try:
            return any(
                marker_holds(requirement.marker, {**environment, "extra": extra}) for extra in ("", *sorted(extras))
            )
        except ValueError as error:
            raise BuildError(
                f"`{requirement}` has a marker that cannot be evaluated: {error}",
                hint="correct the marker, or name the distribution under `requirements:` of the image",
            ) from error

    def _note_replacements(self) -> None:
        """Say which distributions of the base are replaced, and which others of the base do not like it."""
        for name, want in sorted(self._wants.items()):
            installed = self._installed.get(canonicalize_name(name))
            if installed is None or want.wheel is None:
                continue
            if installed.version == want.wheel.version and want.modules:
                raise BuildError(
                    f"the base `{self._base}` has `{name}` {installed.version}, but lacks "
                    f"`{'`, `'.join(sorted(want.modules))}`",
                    hint="set the distribution or version that contains it under `requirements:` of the image",
                )
            self.notes.add(
                f"`{name}` {installed.version} of the base is replaced by {want.wheel.version}, for "
                + ", ".join(sorted(want.parents))
            )
            for other in self._installed.values():
                if canonicalize_name(other.name) not in self._wants:
                    self._note_broken(other, name, want.wheel.version)

    def _note_broken(self, other: InstalledDistribution, name: str, version: str) -> None:
        for line in other.requires:
            try:
                requirement = parse_requirement(line, why=f"what `{other.name}` of the base requires")
                if canonicalize_name(requirement.name) != name or not self._applies(requirement, extras=()):
                    continue
            except BuildError:
                # nothing of it is installed here
                continue
            if not _satisfies(requirement.specifier, version):
                self.notes.add(
                    f"`{other.name}` of the base requires `{name}{requirement.specifier}`, but gets {version}"
                )


def locked_pin(package: LockedPackage, lock: CatalogueLock) -> Pin:
    """Return the pin for a locked distribution, whatever source it is locked to.

    Raises:
        BuildError: it is a folder of the catalogue.
    """
    source, place = package.source, lock.place(package)
    specifier = f"=={package.version}" if package.version else ""
    try:
        SpecifierSet(short_numbers(specifier))
    except ValueError as error:
        raise BuildError(
            f"{place}: `{package.version}` is not a version of `{package.name}`",
            hint="correct the entry there; `uv lock` writes it whole",
        ) from error
    hashes = frozenset(digest.removeprefix("sha256:") for digest in package.hashes if digest.startswith("sha256:"))
    if isinstance(source, LocalSource) and source.kind != "path":
        raise BuildError(
            f"{place}: the catalogue's lock takes `{package.name}` from the folder "
            f"`{source.path}`, which is in no image",
            hint="set a distribution under `requirements:` of the image, or add the folder as an overlay",
        )
    if isinstance(source, GitSource):
        return Pin(package.name, specifier, git=source, place=place)
    if isinstance(source, UrlSource):
        return Pin(package.name, specifier, hashes=hashes, address=source.url, place=place)
    if isinstance(source, LocalSource):
        return Pin(package.name, specifier, hashes=hashes, address=source.path, root=lock.path.parent, place=place)
    return Pin(package.name, specifier, hashes=hashes, place=place)


def _narrowed(requirement: Requirement, specifier: SpecifierSet) -> Requirement:
    narrowed = Requirement(str(requirement))
    narrowed.specifier &= specifier
    return narrowed


def _git_source(requirement: Requirement) -> GitSource:
    try:
        return GitSource(*parse_git_requirement(requirement))
    except ValueError as error:
        raise BuildError(str(error), hint="write it as `NAME @ git+https://HOST/REPO@COMMIT`") from error


def parse_requirement(text: str, *, why: str) -> Requirement:
    """Return a requirement; the error names it and `why` it was asked for."""
    try:
        return read_requirement(text)
    except ValueError as error:
        raise BuildError(
            f"`{text}` ({why}) is not a valid requirement: {error}",
            hint="correct it where it is named, as `NAME==VERSION`",
        ) from error


def _satisfies(specifier: SpecifierSet, version: str) -> bool:
    try:
        return not specifier or specifier.contains(version, prereleases=True)
    except ValueError:
        return False


def is_core_distribution(name: str) -> bool:
    """Tell whether a distribution belongs to the base and must never be installed."""
    return canonicalize_name(name) in CORE_DISTRIBUTIONS
