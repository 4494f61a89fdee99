"""Resolving what moves: bases to digests, Git refs to commits, what each base lacks to wheels with hashes.

What a lock file holds already and the plan has not outgrown is kept as it is. A base is probed by its files; only where
these do not tell is it run, which needs an engine. A lock that covers the plan needs no network either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from airferry.events import Event, Notice, StageFinished, StageStarted, Warned
from airferry.host import clock
from airferry.host.progress import stage
from airferry.host.threads import parallel_map
from airferry.near.assemble import context
from airferry.near.bases.fetch import BaseImage, FoundBase
from airferry.near.failures import map_all, naming, naming_base, overlay_place, requirement_places
from airferry.near.git import driver as git
from airferry.near.git.addresses import redact
from airferry.near.lock.additions import (
    Additions,
    deciding_modules,
    refuse_missing,
    resolve_additions,
    resolve_environment,
)
from airferry.near.lock.closure import WheelSupply
from airferry.near.lock.covered import needed_bases, wanted_environments
from airferry.near.lock.job_modules import (
    JobModules,
    RefusedImports,
    image_variables,
    job_modules,
    refuse_unreached,
    steps_of,
)
from airferry.near.probe.answers import ProbeResult
from airferry.near.probe.ask import BaseProbe
from airferry.near.session import Session
from airferry.near.wheels.compile import Compiler, may_compile
from airferry.oci.platform import Platform
from airferry.plan.inventory import render_inventory
from airferry.plan.lockfile import (
    LockedBase,
    LockedGroup,
    LockedLauncher,
    LockedOverlay,
    LockedPlatform,
    Lockfile,
)
from airferry.plan.locks.catalogue import CatalogueLock, read_catalogue_lock
from airferry.plan.models import LAUNCHER, GroupPlan, LauncherPlan, Overlay, Plan
from airferry.wording import counted

LOOKUPS = 4


@dataclass(frozen=True, slots=True)
class Locked:
    """A lock that covers a plan, and the bases, which are in the cache now."""

    lockfile: Lockfile
    bases: Mapping[str, Mapping[Platform, BaseImage]]


_Probing = tuple[str, GroupPlan | LauncherPlan, Platform, str]


@dataclass(frozen=True, slots=True)
class _Probed:
    """A base that was probed for an image, and what its jobs can import."""

    task: _Probing
    base: BaseImage
    started_s: float
    answer: JobModules

    @property
    def refused(self) -> RefusedImports:
        """The imports that nothing leads to what satisfies them."""
        return RefusedImports(self.task[1], self.base, self.answer.unreached)


class Resolver:
    """Resolves what a plan needs. The engine is opened only where a base is run or something compiled."""

    def __init__(self, session: Session, plan: Plan) -> None:
        """Read the catalogue's own lock, which says what versions its steps were tried with."""
        self._session = session
        self.plan = plan
        self.catalogue: CatalogueLock | None = read_catalogue_lock(plan.lock_path) if plan.lock_path else None

    def resolve(self, existing: Lockfile) -> Locked:
        """Return a lock that covers the plan: entries of `existing` that still hold, and what is missing, resolved.

        Raises:
            AirferryError: of the family of what failed.
        """
        self._check_source()
        commits, bases, images = self._sources(existing)
        tasks: list[_Probing] = []
        environments: dict[tuple[str, Platform], LockedPlatform] = {}
        for name, platform, known, inputs, image in wanted_environments(self.plan, existing, bases, commits):
            if known is not None and known.inputs == inputs:
                environments[name, platform] = known
            else:
                tasks.append((name, image, platform, inputs))

        def probe(task: _Probing) -> _Probed:
            name, image, platform, _inputs = task
            base = images[image.base_image.key][platform]
            started = clock.monotonic_s()
            self._session.emit(StageStarted(f"probe {name} {platform}"))
            return _Probed(task, base, started, self._ask(image, platform, base, commits))

        def work(probed: _Probed) -> LockedPlatform:
            name, _image, platform, _inputs = probed.task
            added = self._additions(probed)
            for event in told(f"{name} on {platform}", added):
                self._session.emit(event)
            found = _environment(probed.answer.probe, added, probed.task[3])
            detail = f"adds {len(found.additions)}" if found.additions else "lacks nothing"
            self._session.emit(
                StageFinished(f"probe {name} {platform}", clock.monotonic_s() - probed.started_s, detail=detail)
            )
            return found

        self._gather(tasks, images, commits)
        answers = map_all(probe, tasks, jobs=self._session.jobs)
        self._refuse(answers)
        for task, found in zip(tasks, map_all(work, answers, jobs=self._session.jobs), strict=True):
            environments[task[0], task[2]] = found
        return Locked(self._assemble(existing, bases, commits, environments), images)

    def _check_source(self) -> None:
        """Refuse a launcher whose repository is not one, which needs no network to be seen."""
        if self.plan.launcher is not None:
            config = self.plan.config
            written = config.source is not None and config.source.root is not None
            with naming(f"{config.path}:{config.line('source', 'root')}" if written else str(config.path)):
                context.tracked_files(self.plan.source_root)

    # --- bases and overlays ------------------------------------------------------------------------------------------

    def _sources(
        self, existing: Lockfile
    ) -> tuple[dict[str, str], dict[str, LockedBase], dict[str, Mapping[Platform, BaseImage]]]:
        """Resolve all refs, fetch all bases, and at the same time do what probes of new groups need in any case."""
        # first, so that all that cannot be had is told before gigabytes are fetched
        commits, found = self._look_up(existing)
        locked: dict[str, LockedBase] = {}
        images: dict[str, Mapping[Platform, BaseImage]] = {}
        new = [group for group in self.plan.groups if group.name not in existing.groups]
        by_engine_alone = self._session.probe == "run" and self.plan.config.builder == "buildah"
        learn = None if by_engine_alone else self._session.knowledge

        def bring() -> None:
            for key, base in found.items():
                with naming_base(self.plan, key):
                    resolved = self._session.bases.fetch(base, learn=learn)
                locked[key], images[key] = resolved.locked, resolved.images
            needed = [(group.name, one, images[group.base_image.key][one]) for group in new for one in group.platforms]
            self._side_by_side(self._reading_stages(needed))

        self._side_by_side([bring, *self._checkout_stages((item for group in new for item in group.overlays), commits)])
        return commits, locked, images

    def _side_by_side(self, work: Sequence[Callable[[], object]]) -> None:
        parallel_map(lambda one: one(), work, jobs=self._session.jobs)

    def _reading_stages(self, bases: Iterable[tuple[str, Platform, BaseImage]]) -> list[Callable[[], object]]:
        """Return what reads bases, named after an image, each once, as stages."""
        if self._session.probe == "run":
            return []
        unread: dict[str, tuple[str, Platform, BaseImage]] = {}
        for name, platform, base in bases:
            if not self._session.knowledge.has_view(base):
                unread.setdefault(base.manifest.digest, (name, platform, base))
        return [
            partial(
                stage,
                f"read the base of {name} {platform}",
                self._session.emit,
                partial(self._session.knowledge.read, base),
            )
            for name, platform, base in unread.values()
        ]

    def _checkout_stages(self, checkouts: Iterable[Overlay], commits: Mapping[str, str]) -> list[Callable[[], object]]:
        """Return what writes checkouts, each once, as stages."""
        return [
            partial(
                stage,
                f"check out {redact(item.url)}@{item.ref}",
                self._session.emit,
                partial(self._tree, item, commits),
            )
            for item in {item.key: item for item in checkouts}.values()
            if not self._session.checkouts.has(item.url, commits[item.key])
        ]

    def _tree(self, overlay: Overlay, commits: Mapping[str, str]) -> Path:
        with naming(overlay_place(self.plan, overlay)):
            return self._session.checkouts.tree(overlay.url, commits[overlay.key])

    def _look_up(self, existing: Lockfile) -> tuple[dict[str, str], dict[str, FoundBase]]:
        """Resolve all refs and find all bases; one error tells all that cannot be had."""
        needed = needed_bases(self.plan)
        commits: dict[str, str] = {}
        found: dict[str, FoundBase] = {}

        def find(key: str) -> None:
            base, platforms = needed[key]
            with naming_base(self.plan, key):
                found[key] = self._session.bases.find(base, platforms, locked=existing.bases.get(key))

        def resolve(overlay: Overlay) -> None:
            if (known := existing.overlays.get(overlay.key)) is not None:
                commits[overlay.key] = known.commit
                return
            with naming(overlay_place(self.plan, overlay)):
                commit = git.resolve_commit(
                    overlay.url, overlay.ref, cache=self._session.cache, emit=self._session.emit
                )
                commits[overlay.key] = commit

        refs = [partial(resolve, overlay) for overlay in self.plan.overlays]
        map_all(lambda look: look(), [*refs, *(partial(find, key) for key in needed)], jobs=LOOKUPS)
        ordered = {overlay.key: commits[overlay.key] for overlay in self.plan.overlays}
        return ordered, {key: found[key] for key in needed}

    def _gather(
        self, tasks: Sequence[_Probing], images: Mapping[str, Mapping[Platform, BaseImage]], commits: Mapping[str, str]
    ) -> None:
        """Read bases and write checkouts side by side, each once, before the probes, most of which share them."""
        bases = [(name, platform, images[image.base_image.key][platform]) for name, image, platform, _inputs in tasks]
        checkouts = [
            item
            for _name, image, _platform, _inputs in tasks
            if isinstance(image, GroupPlan)
            for item in image.overlays
        ]
        self._side_by_side([*self._reading_stages(bases), *self._checkout_stages(checkouts, commits)])

    # --- what each base lacks ----------------------------------------------------------------------------------------

    def _refuse(self, answers: Sequence[_Probed]) -> None:
        """Tell all that can be seen to be wrong in any image in one error, before the first wheel is fetched."""

        def look(probed: _Probed) -> None:
            _name, image, platform, _inputs = probed.task
            if isinstance(image, GroupPlan):
                base, probe = probed.base.name, probed.answer.probe
                refuse_missing(image, probe=probe, base=base, platform=platform, catalogue=self.catalogue)

        unreached = partial(refuse_unreached, [probed.refused for probed in answers], partial(overlay_place, self.plan))
        map_all(lambda one: one(), [unreached, *(partial(look, probed) for probed in answers)], jobs=1)

    def _additions(self, probed: _Probed) -> Additions:
        _name, image, platform, _inputs = probed.task
        answer = probed.answer.probe
        supply = WheelSupply(self.catalogue, self._session.wheels, self._compiler(probed.base, answer))
        if isinstance(image, LauncherPlan):
            found = resolve_environment(
                probe=answer,
                supply=supply,
                requirements=image.requirements,
                base=probed.base.name,
                named_at=requirement_places(self.plan, image),
            )
        else:
            found = resolve_additions(
                image,
                probe=answer,
                base=probed.base.name,
                platform=platform,
                supply=supply,
                named_at=requirement_places(self.plan, image),
            )
        return replace(found, notes=(*found.notes, *probed.answer.notes))

    def _compiler(self, base: BaseImage, probe: ProbeResult) -> Compiler | None:
        return may_compile(
            self.plan,
            self._session.engine,
            self._session.bases.store.path,
            base,
            probe.python.executable,
            emit=self._session.emit,
        )

    def _ask(
        self, image: GroupPlan | LauncherPlan, platform: Platform, base: BaseImage, commits: Mapping[str, str]
    ) -> JobModules:
        """Find out what the jobs of an image can import, checkouts in their places."""
        if isinstance(image, LauncherPlan):
            variables = image_variables(image, base)
            return JobModules(self._probe(base, platform, image.python, [], variables, {}))
        trees = {item.target: self._tree(item, commits) for item in image.overlays}
        needed = deciding_modules(image)

        def probe(modules: Sequence[str], variables: Mapping[str, str], mounts: Mapping[str, Path]) -> ProbeResult:
            return self._probe(base, platform, image.python, modules, variables, mounts, needed)

        return job_modules(image, steps_of(self.plan, image), base=base, trees=trees, probe=probe)

    def _probe(
        self,
        base: BaseImage,
        platform: Platform,
        python: str | None,
        modules: Sequence[str],
        variables: Mapping[str, str],
        mounts: Mapping[str, Path],
        needed: Collection[str] = (),
    ) -> ProbeResult:
        """Find out what a base can import with checkouts mounted (see `BaseProbe.ask`)."""
        probe = BaseProbe(
            self._session.knowledge,
            self._session.engine,
            self._session.bases.store.path,
            self._session.probe,
            self._session.emit,
        )
        return probe.ask(
            base, platform, python=python, modules=modules, needed=needed, variables=variables, mounts=mounts
        )

    def _assemble(
        self,
        existing: Lockfile,
        bases: Mapping[str, LockedBase],
        commits: Mapping[str, str],
        environments: Mapping[tuple[str, Platform], LockedPlatform],
    ) -> Lockfile:
        groups = dict(existing.groups)
        for group in self.plan.groups:
            known = groups.get(group.name, LockedGroup()).platforms
            fresh = {str(platform): environments[group.name, platform] for platform in group.platforms}
            groups[group.name] = LockedGroup(platforms={**known, **fresh})
        launcher = existing.launcher
        if self.plan.launcher is not None:
            fresh = {str(platform): environments[LAUNCHER, platform] for platform in self.plan.launcher.platforms}
            launcher = LockedLauncher(platforms={**(launcher.platforms if launcher else {}), **fresh})
        return Lockfile(
            bases={**existing.bases, **bases},
            overlays={**existing.overlays, **{key: LockedOverlay(commit=commit) for key, commit in commits.items()}},
            groups=groups,
            launcher=launcher,
        )


def told(image: str, added: Additions) -> Iterator[Event]:
    """Yield what an operator is told of an image's additions; what is one fact about many modules is one event."""
    for note in added.notes:
        yield Warned(f"{image}: {note}")
    for distribution, sentences in added.completed.items():
        modules = counted(len(sentences), "module")
        text = (
            f"{image}: `{distribution}` is added: the base lacks it, and {modules} of "
            "the base cannot be imported without it"
        )
        yield Notice(text, details=sentences)
    if optional := added.conditional:
        modules = counted(len(optional), "module")
        text = f"{image}: {modules} imported conditionally are not in the base and are not installed"
        yield Notice(text, details=optional)


def _environment(probe: ProbeResult, found: Additions, inputs: str) -> LockedPlatform:
    python = probe.python
    return LockedPlatform(
        inputs=inputs,
        python=python.executable,
        python_version=".".join(re.findall(r"\d+", python.version)[:3]),
        abi=python.abi,
        libc=python.libc,
        libc_version=python.libc_version,
        machine=python.machine,
        missing=found.missing,
        missing_core=found.missing_core,
        notes=(*found.notes, *(text for texts in found.completed.values() for text in texts), *found.conditional),
        additions=found.locked(),
        distributions=render_inventory({item.name: item.version for item in probe.distributions}),
    )
