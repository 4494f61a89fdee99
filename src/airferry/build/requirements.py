"""What is added to a base: the distributions that a group's steps need and its base lacks, closed over their own needs.

A name is never guessed, what belongs to the base is never installed, and nothing that the base holds is replaced
without a note. Fetching is for `wheels`; finding out what the base holds is for `probe`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airferry.build.closure import Addition, Closure, is_core_distribution, locked_pin, parse_requirement
from airferry.build.compilation import Compiler
from airferry.build.pip import WheelTarget, wheel_target
from airferry.build.probe import ProbeResult
from airferry.build.wheels import WheelStore
from airferry.errors import BuildError
from airferry.oci.platform import Platform
from airferry.plan.catalogue_lock import CatalogueLock
from airferry.plan.lockfile import LockedAddition, LockedGit
from airferry.plan.models import Candidate, GroupPlan
from airferry.plan.modules import CORE_MODULES, distribution_for, is_core


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
        closure = Closure(
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
    pins = [locked_pin(package) for package in catalogue.all_for(probe.python.markers)]
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
        requirement = parse_requirement(named, why=f"`requirements:` for `{candidate.module}`")
        if is_core_distribution(requirement.name):
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
        name = canonicalize_name(parse_requirement(named, why=answer.missing).name) if named else ""
        text = f"`{candidate.module}` is there, but imports `{answer.missing}`, which is not"
        if named is None or is_core(answer.missing) or is_core_distribution(name) or name in held:
            notes.append(f"{text}; it was left so: name its distribution under `requirements:` if a step needs it")
        else:
            wanted[answer.missing] = parse_requirement(named, why=f"`requirements:` for `{answer.missing}`")
            notes.append(f"{text}; `{named}` is added for it")
    return [(requirement, module) for module, requirement in sorted(wanted.items())], notes
