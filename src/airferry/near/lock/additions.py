"""What is added to a base: the distributions that a group's steps need and its base lacks, closed over their own needs.

A name is never guessed, what belongs to the base is never installed, and nothing that the base holds is replaced
without a note. Fetching is for `wheels`; finding out what the base holds is for `probe`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airferry.errors import BuildError, raise_all
from airferry.near.lock.closure import (
    AddedDistribution,
    DependencyClosure,
    WheelSupply,
    is_core_distribution,
    locked_pin,
    parse_requirement,
)
from airferry.near.probe.answers import InstalledDistribution, ProbeResult
from airferry.oci.platform import Platform
from airferry.plan.code.modules import CORE_MODULES, distribution_for, is_core, parents
from airferry.plan.lockfile import LockedAddition, LockedGit
from airferry.plan.locks.catalogue import CatalogueLock
from airferry.plan.locks.packages import LocalSource
from airferry.plan.models import Candidate, GroupPlan


@dataclass(frozen=True, slots=True)
class Additions:
    """What one base lacks and gets. `additions` are sorted by name; `notes` are sentences for an operator.

    `completed` are, by what is added for them, sentences on modules of the base that import what it lacks.
    `conditional` are sentences on modules that are imported under a condition only, and neither there nor added.
    """

    missing: tuple[str, ...] = ()
    missing_core: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    conditional: tuple[str, ...] = ()
    additions: tuple[AddedDistribution, ...] = ()
    completed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
                address=item.address,
            )
            for item in self.additions
        )


def modules_to_probe(candidates: Iterable[Candidate]) -> list[str]:
    """Return every module that the probe of a base has to be asked for: the candidates, and what belongs to bases."""
    return sorted({candidate.module for candidate in candidates} | CORE_MODULES)


def deciding_modules(group: GroupPlan) -> list[str]:
    """Return the modules whose answers decide what is added to a base.

    One that the image's `requirements:` names needs no answer: it is added unless the base is known to have it.
    """
    return sorted(
        {
            candidate.module
            for candidate in group.candidates
            if candidate.origin != "reported" and not _is_named(candidate.module, group.requirements)
        }
    )


def _is_named(module: str, requirements: Mapping[str, str]) -> bool:
    return any(name in requirements for name in parents(module))


def refuse_missing(
    group: GroupPlan, *, probe: ProbeResult, base: str, platform: Platform, catalogue: CatalogueLock | None
) -> None:
    """Refuse a base that lacks what is never installed, or what nothing names a distribution for. Fetches nothing.

    Raises:
        BuildError: it does; one error names all.
    """
    _direct(group.candidates, probe, base=f"{base}` for `{platform}", requirements=group.requirements, lock=catalogue)


def resolve_additions(
    group: GroupPlan,
    *,
    probe: ProbeResult,
    base: str,
    platform: Platform,
    supply: WheelSupply,
    named_at: Mapping[str, str] | None = None,
) -> Additions:
    """Return the closed list of what a base needs for a group's steps, with the wheels in the cache.

    Versions come from the catalogue's lock where it has one that suits, else the newest that all who ask agree on.
    With the group's `pip_no_deps` a distribution of the base stays even where an addition asks for another version.
    `named_at` are the lines of the group's `requirements:`, by module.

    Raises:
        BuildError: a core module is missing from the base, nothing names a module's distribution, or one cannot be
            had for the base's platform and Python.
        IntegrityError: a distribution has another hash than the catalogue's lock says.
    """
    where = f"{base}` for `{platform}"
    lock = supply.lock
    notes = _notes_on_present(group.candidates, probe)
    wanted, core, missing = _direct(group.candidates, probe, base=where, requirements=group.requirements, lock=lock)
    notes += [f"the catalogue imports `{name}`, which the base lacks and which is never installed" for name in core]
    transitive, more, completed = _incomplete(group.candidates, probe, requirements=group.requirements, lock=lock)
    notes += more
    found: tuple[AddedDistribution, ...] = ()
    if wanted or transitive:
        closure = DependencyClosure(probe, supply, base=where, pip_no_deps=group.pip_no_deps)
        places = {candidate.module: candidate.place for candidate in group.candidates}
        for requirement, module in [*wanted, *transitive]:
            named = next((name for name in parents(module) if name in group.requirements), None)
            closure.add_direct(
                requirement,
                module,
                place=places.get(module, ""),
                is_named=named is not None,
                named_at=(named_at or {}).get(named or "", ""),
            )
        closure.run()
        notes += closure.notes
        found = closure.additions()
    conditional = _conditional(group, probe, found, lock=lock)
    return Additions(tuple(missing), tuple(core), tuple(sorted(set(notes))), conditional, found, completed)


def resolve_environment(
    *,
    probe: ProbeResult,
    supply: WheelSupply,
    requirements: Mapping[str, str] | None = None,
    base: str = "",
    named_at: Mapping[str, str] | None = None,
) -> Additions:
    """Return the environment that the catalogue's lock names, for the base's platform and Python.

    It goes into a separate environment, so what the base holds does not count. `requirements`, by module, take the
    place of what the lock names for these distributions, and are closed over what they require. `named_at` are their
    lines.

    Raises:
        BuildError: a locked distribution cannot be had.
        IntegrityError: one has another hash than the lock says.
    """
    named = [
        (module, parse_requirement(text, why=f"`requirements:` for `{module}`"))
        for module, text in sorted((requirements or {}).items())
    ]
    catalogue = supply.lock
    if catalogue is None and not named:
        return Additions(notes=("the catalogue has no lock file, so the environment of the launcher is empty",))
    instead = {canonicalize_name(requirement.name) for _, requirement in named}
    packages = catalogue.all_for(probe.python.markers) if catalogue is not None else ()
    notes = {
        f"`{item.name}` of the catalogue's lock is the folder `{item.source.path}`; the launcher contains "
        "it with the repository, so it is not installed"
        for item in packages
        if isinstance(item.source, LocalSource) and item.source.kind != "path"
    }
    pins = [
        locked_pin(item, catalogue)
        for item in packages
        if catalogue is not None
        and item.name not in instead
        and (not isinstance(item.source, LocalSource) or item.source.kind == "path")
    ]
    found = supply.fetch(pins, probe.python) if pins else []
    additions = [AddedDistribution(wheel, (), pin.git, pin.address) for wheel, pin in zip(found, pins, strict=True)]
    notes |= {wheel.note for wheel in found if wheel.note}
    if named:
        there = probe.model_copy(
            update={
                "distributions": tuple(
                    InstalledDistribution(name=wheel.name, version=wheel.version, requires=wheel.requires)
                    for wheel in found
                )
            }
        )
        closure = DependencyClosure(there, supply, base=base, pip_no_deps=False, is_own=True)
        for module, requirement in named:
            closure.add_direct(requirement, module, place="", is_named=True, named_at=(named_at or {}).get(module, ""))
        closure.run()
        taken = closure.additions()
        replaced = {item.wheel.name for item in taken}
        additions = [item for item in additions if item.wheel.name not in replaced] + list(taken)
        notes |= closure.notes
    return Additions(additions=tuple(sorted(additions, key=lambda item: item.wheel.name)), notes=tuple(sorted(notes)))


def _notes_on_present(candidates: Sequence[Candidate], probe: ProbeResult) -> list[str]:
    notes = []
    for candidate in candidates:
        answer = probe.modules.get(candidate.module)
        if answer is None and candidate.origin == "reported":
            continue
        if answer is None:
            raise BuildError(
                f"the probe did not check `{candidate.module}` ({candidate.place})",
                hint="run the command again; if it says so again, report it with the output of `--debug`",
            )
        if answer.status == "present" and answer.note:
            notes.append(f"`{candidate.module}` is installed, but importing it failed in the build: {answer.note}")
        if answer.status == "missing" and answer.note and candidate.origin != "reported":
            notes.append(f"`{candidate.module}` is missing: {answer.note}")
    return notes


def _conditional(
    group: GroupPlan, probe: ProbeResult, added: Iterable[AddedDistribution], *, lock: CatalogueLock | None
) -> tuple[str, ...]:
    """Return a sentence for each module that is imported under a condition, and neither there nor added."""
    names = {canonicalize_name(item.wheel.name) for item in added}
    brought = {module.partition(".")[0] for item in added for module in item.modules}
    found = []
    for candidate in group.candidates:
        answer = probe.modules.get(candidate.module)
        if candidate.origin != "reported" or answer is None or answer.status not in ("missing", "unknown"):
            continue
        named = distribution_for(candidate.module, lock=lock, requirements=group.requirements)
        comes = named is not None and canonicalize_name(parse_requirement(named, why=candidate.module).name) in names
        if not comes and candidate.module.partition(".")[0] not in brought:
            says = "the base lacks it, and it is not installed"
            if answer.status == "unknown":
                says = f"cannot tell whether the base has it: {answer.doubt}"
            found.append(f"{candidate.place}: `{candidate.module}` is imported conditionally; {says}")
    return tuple(sorted(set(found)))


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
    doubtful: dict[str, Candidate] = {}
    for candidate in candidates:
        answer = probe.modules[candidate.module]
        if candidate.origin == "reported" or answer.status not in ("missing", "unknown"):
            continue
        if answer.status == "unknown" and not _is_named(candidate.module, requirements):
            doubtful.setdefault(candidate.module, candidate)
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
    failures = []
    if doubtful:
        failures.append(_open_question(doubtful, probe, base=base))
    if refused:
        listing = "; ".join(f"{item.place}: `{name}`" for name, item in sorted(refused.items()))
        failures.append(
            BuildError(
                f"the base `{base}` lacks core packages that only a base can provide: {listing}",
                hint="choose a `base_image` that has it for these steps; core packages are never installed on top",
                modules=sorted(refused),
            )
        )
    if unnamed:
        first = min(unnamed)
        listing = "; ".join(f"{item.place}: `{name}`" for name, item in sorted(unnamed.items()))
        failures.append(
            BuildError(
                f"the base `{base}` lacks modules of unknown distributions: {listing}",
                hint=f'name it under the image, `requirements: {{{first}: "distribution==version"}}`; '
                "airferry never guesses a distribution",
                modules=sorted(unnamed),
            )
        )
    if failures:
        raise_all(failures)
    pairs = [(requirement, module) for module, requirement in sorted(wanted.items())]
    return pairs, sorted(core), sorted([*wanted, *core])


def _open_question(doubtful: Mapping[str, Candidate], probe: ProbeResult, *, base: str) -> BuildError:
    """Return the error for modules of which files do not tell, by what keeps them open."""
    reasons: dict[str, list[str]] = {}
    for name in sorted(doubtful):
        reasons.setdefault(probe.modules[name].doubt, []).append(f"{doubtful[name].place}: `{name}`")
    listing = "; ".join(f"{', '.join(places)} ({reason})" for reason, places in sorted(reasons.items()))
    first = min(doubtful)
    return BuildError(
        f"the files of the base `{base}` do not show whether it has {listing}",
        hint="install Buildah or Podman, so that airferry can run the base (not with "
        "`--probe static`); or name what to "
        f'add under the image, `requirements: {{{first}: "distribution==version"}}`',
        modules=sorted(doubtful),
    )


def _incomplete(
    candidates: Sequence[Candidate],
    probe: ProbeResult,
    *,
    requirements: Mapping[str, str],
    lock: CatalogueLock | None,
) -> tuple[list[tuple[Requirement, str]], list[str], dict[str, tuple[str, ...]]]:
    """Treat modules that are there but import one that is not: add it where its distribution is named, else say so.

    Return what to add with its module, notes on what was left so, and sentences by what is added.
    """
    held = {canonicalize_name(item.name) for item in probe.distributions}
    wanted: dict[str, Requirement] = {}
    notes = []
    completed: dict[str, list[str]] = {}
    for candidate in candidates:
        answer = probe.modules[candidate.module]
        if candidate.origin == "reported" or answer.status != "incomplete":
            continue
        named = distribution_for(answer.missing, lock=lock, requirements=requirements)
        name = canonicalize_name(parse_requirement(named, why=answer.missing).name) if named else ""
        text = f"`{candidate.module}` is installed, but imports `{answer.missing}`, which is missing"
        if answer.doubt and not _is_named(answer.missing, requirements):
            notes.append(
                f"`{candidate.module}` is installed, but imports `{answer.missing}`, which may be missing "
                f"({answer.doubt}); name its distribution under `requirements:` if a step needs it"
            )
            continue
        if named is None or is_core(answer.missing) or is_core_distribution(name) or name in held:
            notes.append(f"{text}; left as is: name its distribution under `requirements:` if a step needs it")
        else:
            wanted[answer.missing] = parse_requirement(named, why=f"`requirements:` for `{answer.missing}`")
            completed.setdefault(named, []).append(f"{text}; `{named}` is added for it")
    told = {named: tuple(sorted(set(sentences))) for named, sentences in sorted(completed.items())}
    return [(requirement, module) for module, requirement in sorted(wanted.items())], notes, told
