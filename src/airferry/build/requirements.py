"""What is added to a base: the distributions that a group's steps need and its base lacks, closed over their own needs.

A name is never guessed, what belongs to the base is never installed, and nothing that the base holds is replaced
without a note. Fetching is for `wheels`; finding out what the base holds is for `probe`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from airferry.build.compilation import Compiler
from airferry.build.pip import WheelTarget, wheel_target
from airferry.build.probe import InstalledDistribution, ProbeResult
from airferry.build.wheels import Pin, Wheel, WheelStore
from airferry.errors import BuildError
from airferry.oci.platform import Platform
from airferry.plan.catalogue_lock import CatalogueLock
from airferry.plan.locked_packages import GitSource, LocalSource, LockedPackage
from airferry.plan.lockfile import LockedAddition, LockedGit
from airferry.plan.models import Candidate, GroupPlan
from airferry.plan.modules import CORE_MODULES, distribution_for, is_core

CORE_DISTRIBUTIONS = CORE_MODULES | {"megatron-core", "megatron-bridge", "nemo-toolkit"}
MAX_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Addition:
    """A distribution to install. `modules` are those it was added for, none if only another addition requires it."""

    wheel: Wheel
    modules: tuple[str, ...] = ()
    source: GitSource | None = None


@dataclass(frozen=True, slots=True)
class Additions:
    """What one base lacks and gets. `additions` are sorted by name; `notes` are sentences for an operator."""

    missing: tuple[str, ...] = ()
    missing_core: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    additions: tuple[Addition, ...] = ()

    def locked(self) -> tuple[LockedAddition, ...]:
        """Return the additions as the lock file holds them."""
        return tuple(
            LockedAddition(
                name=item.wheel.name,
                version=item.wheel.version,
                file=item.wheel.filename,
                sha256=item.wheel.sha256,
                modules=item.modules,
                source=LockedGit(url=item.source.url, commit=item.source.commit, subdirectory=item.source.subdirectory)
                if item.source
                else None,
            )
            for item in self.additions
        )


@dataclass(slots=True)
class _Want:
    """A distribution on its way into the list, and who asks for it."""

    specifier: SpecifierSet = field(default_factory=SpecifierSet)
    extras: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)
    git: GitSource | None = None
    closed_for: frozenset[str] | None = None
    wheel: Wheel | None = None


def modules_to_probe(candidates: Iterable[Candidate]) -> list[str]:
    """Return every module that the probe of a base has to be asked for: the candidates, and what belongs to bases."""
    return sorted({candidate.module for candidate in candidates} | CORE_MODULES)


def resolve_additions(
    group: GroupPlan,
    *,
    probe: ProbeResult,
    base: str,
    platform: Platform,
    catalogue: CatalogueLock | None,
    wheels: WheelStore,
    compiler: Compiler | None = None,
    target: WheelTarget | None = None,
) -> Additions:
    """Return the closed list of what a base needs for a group's steps, with the wheels in the cache.

    Versions come from the catalogue's lock where it has one that suits, else the newest that all who ask agree on.
    With the group's `pip_no_deps` a distribution of the base stays even where an addition asks for another version.
    Without `target` the wheels are those for the interpreter that was probed. `compiler` makes those that must be
    compiled, which are refused without it.

    Raises:
        BuildError: a core module is missing from the base, nothing names a module's distribution, or one cannot be
            had for the base's platform and Python.
        IntegrityError: a distribution has another hash than the catalogue's lock says.
    """
    where = f"{base}` for `{platform}"
    notes = _notes_on_present(group.candidates, probe)
    wanted, core, missing = _direct(
        group.candidates, probe, base=where, requirements=group.requirements, lock=catalogue
    )
    notes += [f"the catalogue imports `{name}`, which the base lacks and which is never installed" for name in core]
    transitive, more = _incomplete(group.candidates, probe, requirements=group.requirements, lock=catalogue)
    notes += more
    found: tuple[Addition, ...] = ()
    if wanted or transitive:
        closure = _Closure(
            probe,
            base=where,
            pip_no_deps=group.pip_no_deps,
            lock=catalogue,
            store=wheels,
            compiler=compiler,
            target=target or wheel_target(probe.python),
        )
        places = {candidate.module: candidate.place for candidate in group.candidates}
        for requirement, module in [*wanted, *transitive]:
            closure.add_direct(requirement, module, place=places.get(module, ""))
        closure.run()
        notes += closure.notes
        found = closure.additions()
    return Additions(tuple(missing), tuple(core), tuple(sorted(set(notes))), found)


def resolve_environment(
    *,
    probe: ProbeResult,
    catalogue: CatalogueLock | None,
    wheels: WheelStore,
    compiler: Compiler | None = None,
    target: WheelTarget | None = None,
) -> Additions:
    """Return the environment that the catalogue's lock names, for the base's platform and Python.

    It goes into an environment of its own, so what the base holds does not count.

    Raises:
        BuildError: a locked distribution cannot be had.
        IntegrityError: one has another hash than the lock says.
    """
    if catalogue is None:
        return Additions(notes=("the catalogue has no lock file, so the launcher's environment is empty",))
    pins = [_locked_pin(package) for package in catalogue.all_for(probe.python.markers)]
    found = wheels.fetch(pins, target or wheel_target(probe.python), compiler=compiler) if pins else []
    return Additions(additions=tuple(Addition(wheel, (), pin.git) for wheel, pin in zip(found, pins, strict=True)))


def _notes_on_present(candidates: Sequence[Candidate], probe: ProbeResult) -> list[str]:
    notes = []
    for candidate in candidates:
        answer = probe.modules.get(candidate.module)
        if answer is None and candidate.origin == "reported":
            continue
        if answer is None:
            raise BuildError(f"the probe was not asked for `{candidate.module}` ({candidate.place})")
        if answer.status == "present" and answer.note:
            notes.append(f"`{candidate.module}` is there, but its import failed in the build: {answer.note}")
        if answer.status == "missing" and candidate.origin == "reported":
            notes.append(
                f"{candidate.place}: `{candidate.module}` is imported under a condition; the base lacks it, and it is "
                "not installed"
            )
    return notes


def _direct(
    candidates: Sequence[Candidate],
    probe: ProbeResult,
    *,
    base: str,
    requirements: Mapping[str, str],
    lock: CatalogueLock | None,
) -> tuple[list[tuple[Requirement, str]], list[str], list[str]]:
    """Sort the missing modules into those to install and core ones; refuse what cannot be either."""
    wanted: dict[str, Requirement] = {}
    core: dict[str, Candidate] = {}
    unnamed: dict[str, Candidate] = {}
    refused: dict[str, Candidate] = {}
    for candidate in candidates:
        if candidate.origin == "reported" or probe.modules[candidate.module].status != "missing":
            continue
        if is_core(candidate.module):
            (core if candidate.origin == "catalogue" else refused).setdefault(candidate.module, candidate)
            continue
        named = distribution_for(candidate.module, lock=lock, requirements=requirements)
        if named is None:
            unnamed.setdefault(candidate.module, candidate)
            continue
        requirement = _parse(named, why=f"`requirements:` for `{candidate.module}`")
        if _is_core_distribution(requirement.name):
            refused.setdefault(candidate.module, candidate)
            continue
        wanted[candidate.module] = requirement
    if refused:
        listing = "; ".join(f"{item.place}: `{name}`" for name, item in sorted(refused.items()))
        raise BuildError(
            f"the base `{base}` lacks what only a base can bring: {listing}",
            hint="choose a `base_image` for these steps that has it; core packages are never installed on top",
            modules=sorted(refused),
        )
    if unnamed:
        first = min(unnamed)
        listing = "; ".join(f"{item.place}: `{name}`" for name, item in sorted(unnamed.items()))
        raise BuildError(
            f"the base `{base}` lacks modules whose distribution nothing names: {listing}",
            hint=f'name it under the image, `requirements: {{{first}: "distribution==version"}}`; none is guessed',
            modules=sorted(unnamed),
        )
    pairs = [(requirement, module) for module, requirement in sorted(wanted.items())]
    return pairs, sorted(core), sorted([*wanted, *core])


def _incomplete(
    candidates: Sequence[Candidate],
    probe: ProbeResult,
    *,
    requirements: Mapping[str, str],
    lock: CatalogueLock | None,
) -> tuple[list[tuple[Requirement, str]], list[str]]:
    """Treat modules that are there but import one that is not: add it where its distribution is named, else say so."""
    held = {canonicalize_name(item.name) for item in probe.distributions}
    wanted: dict[str, Requirement] = {}
    notes = []
    for candidate in candidates:
        answer = probe.modules[candidate.module]
        if candidate.origin == "reported" or answer.status != "incomplete":
            continue
        named = distribution_for(answer.missing, lock=lock, requirements=requirements)
        name = canonicalize_name(_parse(named, why=answer.missing).name) if named else ""
        text = f"`{candidate.module}` is there, but imports `{answer.missing}`, which is not"
        if named is None or is_core(answer.missing) or _is_core_distribution(name) or name in held:
            notes.append(f"{text}; it was left so: name its distribution under `requirements:` if a step needs it")
        else:
            wanted[answer.missing] = _parse(named, why=f"`requirements:` for `{answer.missing}`")
            notes.append(f"{text}; `{named}` is added for it")
    return [(requirement, module) for module, requirement in sorted(wanted.items())], notes


class _Closure:
    """Adds what additions require until nothing is missing any more."""

    def __init__(
        self,
        probe: ProbeResult,
        *,
        base: str,
        pip_no_deps: bool,
        lock: CatalogueLock | None,
        store: WheelStore,
        compiler: Compiler | None,
        target: WheelTarget,
    ) -> None:
        self.notes: set[str] = set()
        self._probe = probe
        self._base = base
        self._pip_no_deps = pip_no_deps
        self._lock = lock
        self._store = store
        self._compiler = compiler
        self._target = target
        self._installed = {canonicalize_name(item.name): item for item in probe.distributions}
        self._wants: dict[str, _Want] = {}

    def add_direct(self, requirement: Requirement, module: str, *, place: str) -> None:
        """Ask for the distribution of a module that the base lacks, and that is imported at a place of the catalogue.

        `place` is empty where only what the base holds imports it.
        """
        if not self._applies(requirement, extras=()):
            self.notes.add(f"`{requirement}`, named for `{module}`, does not apply to this platform and Python")
            return
        name = canonicalize_name(requirement.name)
        want = self._ask(name, requirement, parent=f"`{module}` ({place})" if place else f"`{module}`")
        want.modules.add(module)

    def run(self) -> None:
        """Fetch, read what the wheels require, and repeat until the list is closed.

        Raises:
            BuildError: a distribution cannot be had, or the wishes never agree.
        """
        for _ in range(MAX_ROUNDS):
            unsettled = sorted(
                name
                for name, want in self._wants.items()
                if want.wheel is None or not _satisfies(want.specifier, want.wheel.version)
            )
            if unsettled:
                self._fetch(unsettled)
            open_ones = [name for name, want in self._wants.items() if want.closed_for != frozenset(want.extras)]
            if not open_ones and not unsettled:
                self._note_replacements()
                return
            for name in sorted(open_ones):
                self._close(name)
        raise BuildError(f"the requirements of `{'`, `'.join(sorted(self._wants))}` never agree")

    def additions(self) -> tuple[Addition, ...]:
        """Return what was found, sorted by name."""
        return tuple(
            Addition(want.wheel, tuple(sorted(want.modules)), want.git)
            for _, want in sorted(self._wants.items())
            if want.wheel is not None
        )

    def _ask(self, name: str, requirement: Requirement, *, parent: str) -> _Want:
        want = self._wants.setdefault(name, _Want())
        want.specifier &= requirement.specifier
        want.extras |= {canonicalize_name(extra) for extra in requirement.extras}
        want.parents.add(parent)
        if requirement.url:
            want.git = _git_source(requirement)
        return want

    def _fetch(self, names: Sequence[str]) -> None:
        pins = [self._pin(name, self._wants[name]) for name in names]
        try:
            wheels = self._store.fetch(pins, self._target, compiler=self._compiler)
        except BuildError as error:
            asked = next((pin for pin in pins if f"`{pin.requirement}`" in error.message), None)
            if asked is None:
                raise
            parents = ", ".join(sorted(self._wants[asked.key].parents))
            raise BuildError(f"{error.message} (asked for by {parents})", hint=error.hint, **error.fields) from error
        for name, pin, wheel in zip(names, pins, wheels, strict=True):
            want = self._wants[name]
            want.wheel, want.git, want.closed_for = wheel, pin.git, None
            if not _satisfies(want.specifier, wheel.version):
                raise BuildError(
                    f"`{wheel.filename}` does not satisfy `{name}{want.specifier}` "
                    f"(asked for by {', '.join(sorted(want.parents))})"
                )

    def _pin(self, name: str, want: _Want) -> Pin:
        if want.git is not None and want.wheel is None:
            return Pin(name, git=want.git)
        locked = self._lock.find(name, self._probe.python.markers) if self._lock else None
        if locked is not None and (locked.version is None or _satisfies(want.specifier, locked.version)):
            return _locked_pin(locked)
        if locked is not None:
            self.notes.add(
                f"`{name}` {locked.version} of the catalogue's lock is not `{want.specifier}`, which "
                f"{', '.join(sorted(want.parents))} asks for; the newest that suits was taken"
            )
        return Pin(name, str(want.specifier))

    def _close(self, name: str) -> None:
        """Ask for what a fetched wheel requires."""
        want = self._wants[name]
        if want.wheel is None:
            return
        want.closed_for = frozenset(want.extras)
        self._require(want.wheel.requires, extras=want.extras, parent=f"`{name}` {want.wheel.version}", seen=set())

    def _require(self, lines: Iterable[str], *, extras: Iterable[str], parent: str, seen: set[tuple[str, str]]) -> None:
        for line in lines:
            requirement = _parse(line, why=f"what {parent} requires")
            if not self._applies(requirement, extras=extras):
                continue
            name = canonicalize_name(requirement.name)
            installed = self._installed.get(name)
            if name in self._wants:
                self._ask(name, requirement, parent=parent)
            elif installed is not None:
                self._require_installed(name, installed, requirement, parent=parent, seen=seen)
            elif _is_core_distribution(name):
                self._require_core(name, parent)
            else:
                self._ask(name, requirement, parent=parent)

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
            if not self._pip_no_deps and not _is_core_distribution(name):
                self._ask(name, requirement, parent=parent)
                return
            self.notes.add(
                f"{parent} asks for `{name}{requirement.specifier}`; the base has `{name}` {installed.version}, which "
                "stays"
            )
        for extra in sorted(canonicalize_name(item) for item in requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                lines = [line for line in installed.requires if "extra" in line]
                self._require(lines, extras=[extra], parent=f"`{name}[{extra}]` of the base", seen=seen)

    def _require_core(self, name: str, parent: str) -> None:
        module = name.partition("-")[0]
        answer = self._probe.modules.get(module)
        if answer is not None and answer.status != "missing":
            self.notes.add(f"{parent} asks for `{name}`; the base has the module `{module}` without its metadata")
            return
        raise BuildError(
            f"{parent} needs `{name}`, which only a base can bring, and the base `{self._base}` lacks it",
            hint="choose a `base_image` for these steps that has it; core packages are never installed on top",
        )

    def _applies(self, requirement: Requirement, *, extras: Iterable[str]) -> bool:
        if requirement.marker is None:
            return True
        environment = dict(self._probe.python.markers)
        return any(requirement.marker.evaluate({**environment, "extra": extra}) for extra in ("", *sorted(extras)))

    def _note_replacements(self) -> None:
        """Say which distributions of the base are replaced, and which others of the base do not like it."""
        for name, want in sorted(self._wants.items()):
            installed = self._installed.get(canonicalize_name(name))
            if installed is None or want.wheel is None:
                continue
            if installed.version == want.wheel.version and want.modules:
                raise BuildError(
                    f"the base `{self._base}` has `{name}` {installed.version}, yet lacks "
                    f"`{'`, `'.join(sorted(want.modules))}`",
                    hint="name the distribution or version that has it under `requirements:` of the image",
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
                requirement = Requirement(line)
            except InvalidRequirement:
                continue
            if canonicalize_name(requirement.name) != name or not self._applies(requirement, extras=()):
                continue
            if not _satisfies(requirement.specifier, version):
                self.notes.add(
                    f"`{other.name}` of the base asks for `{name}{requirement.specifier}`, and gets {version}"
                )


def _locked_pin(package: LockedPackage) -> Pin:
    """Return the pin for a locked distribution, whatever source it is locked to."""
    if isinstance(package.source, LocalSource):
        raise BuildError(
            f"the catalogue's lock takes `{package.name}` from the folder `{package.source.path}`, which is carried in "
            "no image",
            hint="name a distribution under `requirements:` of the image, or add the folder as an overlay",
        )
    specifier = f"=={package.version}" if package.version else ""
    if isinstance(package.source, GitSource):
        return Pin(package.name, specifier, git=package.source)
    hashes = frozenset(digest.removeprefix("sha256:") for digest in package.hashes if digest.startswith("sha256:"))
    return Pin(package.name, specifier, hashes=hashes)


def _git_source(requirement: Requirement) -> GitSource:
    address, _, fragment = (requirement.url or "").partition("#")
    url, _, commit = address.removeprefix("git+").rpartition("@")
    if not address.startswith("git+") or not url or len(commit) not in (40, 64):
        raise BuildError(
            f"`{requirement.name}` is named by an address that cannot be carried: `{requirement.name} @ …`",
            hint="write `name==version`, or `name @ git+URL@COMMIT` with a full commit id",
        )
    settings = dict(part.partition("=")[::2] for part in fragment.split("&") if part)
    return GitSource(url, commit, settings.get("subdirectory"))


def _parse(text: str, *, why: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise BuildError(f"`{text}` ({why}) is no requirement: {error}") from error


def _satisfies(specifier: SpecifierSet, version: str) -> bool:
    try:
        return not specifier or specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _is_core_distribution(name: str) -> bool:
    return canonicalize_name(name) in CORE_DISTRIBUTIONS
