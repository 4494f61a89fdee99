"""The near side: plan, lock and build."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airferry import config as configuration
from airferry.bundle.manifest import BundleManifest
from airferry.engine.driver import Engine, open_engine
from airferry.engine.preflight import Check
from airferry.engine.program import EngineChoice, Program, find_engine
from airferry.errors import ConfigurationError, UsageError
from airferry.events import Emit, Notice, Warned, silent
from airferry.host import files, memory
from airferry.host.threads import usable_cores
from airferry.near.bases.fetch import BaseCache
from airferry.near.bases.layers import BaseLayers
from airferry.near.bases.originals import bring_originals
from airferry.near.build import Produced, Production, Workshop
from airferry.near.describe import warning_text
from airferry.near.doctor import DoctorReport, check_for_build, examine
from airferry.near.git.checkouts import Checkouts
from airferry.near.lock.resolve import Locked, Locker, forget, uncovered
from airferry.near.predict import Prediction, Predictor, ensure_room
from airferry.near.probe.ask import ProbeChoice
from airferry.near.probe.knowledge import Knowledge
from airferry.near.wheels.pip import Pip
from airferry.near.wheels.store import WheelStore
from airferry.oci.layers import Compression
from airferry.oci.platform import Platform, parse_buildable_platform
from airferry.plan.catalogue import open_catalogue
from airferry.plan.lockfile import LOCK_FILE, Lockfile, differences, read_lockfile, render_lockfile, write_lockfile
from airferry.plan.locks.catalogue import read_catalogue_lock
from airferry.plan.models import Plan, PlanWarning
from airferry.plan.planner import make_plan, write_plan
from airferry.registry.client import ClientOptions, open_clients
from airferry.registry.pulls import Pulls

PLAN_FILE = "airgap-plan.yaml"
MAX_JOBS = 4
# the folders of the cache, as patterns, that are written under its lock and that are cleared nowhere else
WRITTEN_UNDER_LOCK = (
    "bootstrap/debs/*",
    "compiled",
    "facts",
    "layers",
    "layers/blobs/sha256",
    "layers/records",
    "loader",
    "scratch",
    "wheels",
)
JOB_BYTES = 300 << 20  # what a build of one image needs of memory, measured
ENGINES: tuple[EngineChoice, ...] = ("auto", "buildah", "podman")
PROBES: tuple[ProbeChoice, ...] = ("auto", "static", "run")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a command is about: the plan's file, and what beats it."""

    config: Path
    source: Path | None = None
    targets: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """A plan, its document, where that was written, what a build of it is expected to take, and if a lock covers it."""

    plan: Plan
    document: dict[str, Any]
    path: Path
    prediction: Prediction
    locked: bool = False


@dataclass(frozen=True, slots=True)
class LockOutcome:
    """Where the lock is, what changed in it, a line each, what the plan warns of, and the lock itself."""

    path: Path
    changes: tuple[str, ...]
    warnings: tuple[PlanWarning, ...] = ()
    lockfile: Lockfile = field(default_factory=Lockfile)

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data, with the notes of every entry of the lock."""
        return {
            "path": str(self.path),
            "changes": list(self.changes),
            "notes": self.lockfile.noted(),
            "warnings": [warning.to_document() for warning in self.warnings],
        }


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """An image of a bundle: bytes are those of all its platforms, as carried and as uncompressed TARs."""

    name: str
    reference: str
    digest: str
    platforms: tuple[str, ...]
    size_bytes: int
    unpacked_bytes: int


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """What a build left. `root`, `manifest` and sizes are there only once the bundle is sealed."""

    output: Path
    bundle: Path
    images: tuple[ImageSummary, ...]
    reused: int
    root: str | None
    bundle_bytes: int
    manifest: BundleManifest | None
    warnings: tuple[PlanWarning, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "output": str(self.output),
            "bundle": str(self.bundle),
            "root": self.root,
            "bundle_bytes": self.bundle_bytes,
            "reused": self.reused,
            "warnings": [warning.to_document() for warning in self.warnings],
            "images": [
                {
                    "name": image.name,
                    "reference": image.reference,
                    "digest": image.digest,
                    "platforms": list(image.platforms),
                    "size_bytes": image.size_bytes,
                    "unpacked_bytes": image.unpacked_bytes,
                }
                for image in self.images
            ],
        }


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `airgap.yaml`."""
    return configuration.json_schema()


def plan(selection: Selection) -> PlanOutcome:
    """Work out what is to be built and write `airgap-plan.yaml`. Needs no network and no engine.

    Raises:
        ConfigurationError: the file, the catalogue or what they say together is wrong.
        HostError: the output folder is not writable.
    """
    made = read_plan(selection)
    document = made.to_document()
    path = made.output_dir / PLAN_FILE
    write_plan(document, path)
    known = read_lockfile(made.output_dir / LOCK_FILE)
    covered = known is not None and not uncovered(made, _catalogue_digest(made), known)
    prediction = Predictor(made, known or Lockfile(), files.cache_directory()).predict()
    return PlanOutcome(made, document, path, prediction, covered)


def _catalogue_digest(made: Plan) -> str | None:
    return hashlib.sha256(made.lock_path.read_bytes()).hexdigest() if made.lock_path else None


def lock(
    selection: Selection,
    *,
    update: bool = False,
    names: Sequence[str] = (),
    engine: str = "auto",
    probe: str = "auto",
    jobs: int | None = None,
    emit: Emit = silent,
) -> LockOutcome:
    """Resolve what moves into `airgap.lock.yaml`.

    Without `update`, what is locked stays and only what the plan has outgrown is resolved; with it, everything or what
    `names` say (bases, overlays as `URL@REF`, groups, `launcher`) is resolved again.

    Raises:
        UsageError: a name that nothing has, or names without `update`.
        AirferryError: of the family of what could not be resolved.
    """
    if names and not update:
        raise UsageError("NAME arguments require `--update`", hint=f"airferry lock --update {' '.join(names)}")
    made = read_plan(selection)
    _warn(made, emit)
    with open_near_side(made, engine=engine, probe=probe, jobs=jobs, emit=emit) as side:
        old = read_lockfile(side.lock_path)
        start = forget(old, names, plan=made) if update and old is not None else old or Lockfile()
        new = side.locker.resolve(start).lockfile
        write_lockfile(new, side.lock_path)
        return LockOutcome(side.lock_path, tuple(differences(old, new)), made.warnings, new)


def build(
    selection: Selection,
    *,
    locked: bool = False,
    update: Sequence[str] = (),
    rehearse: bool = False,
    engine: str = "auto",
    probe: str = "auto",
    jobs: int | None = None,
    emit: Emit = silent,
) -> BuildOutcome:
    """Run the plan's stages: lock, build, seal. What is finished from an earlier run is reused.

    What `update` names is resolved again first, as `lock` does. With `rehearse`, every step is tried before the bundle
    is sealed, in a network that leads nowhere.

    Raises:
        UsageError: `update` together with `locked`, or a name that nothing in the lock has.
        FindingsError: the rehearsal found something; nothing is sealed then.
        ConfigurationError: the plan is wrong, or has outgrown its lock; with `locked`, there is no lock.
        AirferryError: of the family of what failed. Finished work stays.
    """
    if locked and update:
        raise UsageError("`--locked` and `--update` exclude each other", hint="remove one of them")
    made = read_plan(selection)
    write_plan(made.to_document(), made.output_dir / PLAN_FILE)
    _warn(made, emit)
    outcome = BuildOutcome(made.output_dir, made.output_dir / "bundle", (), 0, None, 0, None, made.warnings)
    if not {"discover-execution-deps", "build-launcher-image", "build-execution-images"} & set(made.stages):
        return outcome
    with open_near_side(made, engine=engine, probe=probe, jobs=jobs, emit=emit) as side:
        first_look = side.ensure_room(read_lockfile(side.lock_path) or Lockfile())
        resolved = follow_lock(side, locked=locked, update=update, emit=emit)
        if not {"build-launcher-image", "build-execution-images"} & set(made.stages):
            return outcome
        if first_look.unknown:
            side.ensure_room(resolved.lockfile)
        workshop = side.workshop(resolved)
        produced = Production(replace(workshop, rehearse=()) if rehearse else workshop).run()
    return _outcome(made, produced)


def _warn(made: Plan, emit: Emit) -> None:
    for warning in made.warnings:
        if warning.certain:
            emit(Warned(warning_text(warning), hint=warning.hint))


def doctor(selection: Selection, *, engine: str = "auto", emit: Emit = silent) -> DoctorReport:
    """Check this host for what a build of the plan needs, or, where there is no plan's file, of any plan.

    A catalogue that is not found is a failed check, next to those of what any plan needs.

    Raises:
        ConfigurationError: there is a plan's file, and it is wrong.
    """
    choice = parse_engine(engine)
    if not selection.config.exists():
        return examine(None, engine=choice, emit=emit)
    config = configuration.load_config(selection.config)
    try:
        open_catalogue(config, source_dir=selection.source)
    except ConfigurationError as error:
        report = examine(None, engine=choice, emit=emit)
        return replace(report, checks=(*report.checks, Check("catalogue", "fail", error.message, error.hint or "")))
    return examine(read_plan(selection), engine=choice, emit=emit)


def read_plan(selection: Selection) -> Plan:
    """Return the plan that a selection asks for. Reads files only."""
    return make_plan(
        configuration.load_config(selection.config),
        source_dir=selection.source,
        targets=split(selection.targets),
        platforms=tuple(_parse_option(text) for text in split(selection.platforms)),
        stages=split(selection.stages),
    )


def _parse_option(text: str) -> Platform:
    try:
        return parse_buildable_platform(text)
    except ConfigurationError as error:
        raise error.at("`--platform`") from error


def split(values: Sequence[str]) -> tuple[str, ...]:
    """Return what was given several times or separated by commas, one by one."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def follow_lock(side: NearSide, *, locked: bool, update: Sequence[str] = (), emit: Emit) -> Locked:
    """Return what moves as the lock pins it; write the lock first if there is none and `locked` does not forbid it.

    What `update` names is resolved again, and the lock written with it.

    Raises:
        UsageError: `update` names what nothing in the lock has.
        ConfigurationError: the plan has outgrown its lock; with `locked`, there is no lock.
    """
    existing = read_lockfile(side.lock_path)
    if existing is None:
        if locked:
            raise ConfigurationError(
                f"there is no `{side.lock_path}`, and `--locked` forbids writing it", hint="run `airferry lock`"
            )
        resolved = side.locker.resolve(Lockfile())
        write_lockfile(resolved.lockfile, side.lock_path)
        emit(Notice(f"wrote {side.lock_path}"))
        return resolved
    if missing := side.locker.uncovered(existing):
        raise ConfigurationError(
            f"{side.lock_path}: the lock file does not cover " + "; ".join(missing),
            hint="run `airferry lock` with the same targets (existing pins stay), then this command again",
            missing=missing,
        )
    if not update:
        return side.locker.resolve(existing)
    resolved = side.locker.resolve(forget(existing, update, plan=side.plan))
    write_lockfile(resolved.lockfile, side.lock_path)
    for line in differences(existing, resolved.lockfile) or ["nothing changed"]:
        emit(Notice(f"lock: {line}"))
    return resolved


@dataclass(frozen=True, slots=True)
class NearSide:
    """The near side at work: the plan, and what resolves and builds it."""

    plan: Plan
    locker: Locker
    scratch: Path
    engine_version: Callable[[], str]

    @property
    def lock_path(self) -> Path:
        """Where the plan's lock is."""
        return self.plan.output_dir / LOCK_FILE

    def ensure_room(self, known: Lockfile) -> Prediction:
        """Refuse a build that the disk has no room for, as far as lock and cache tell, and return what it takes.

        Raises:
            HostError: there is less room than is needed in any case.
        """
        locker = self.locker
        prediction = Predictor(self.plan, known, locker.cache).predict(jobs=locker.jobs)
        ensure_room(prediction, cache=locker.cache, output=self.plan.output_dir, emit=locker.emit)
        return prediction

    def workshop(self, resolved: Locked) -> Workshop:
        """Return what a production works with."""
        locker = self.locker
        sealing = "save-images" in self.plan.stages
        return Workshop(
            plan=self.plan,
            lock=resolved.lockfile,
            lock_bytes=render_lockfile(resolved.lockfile).encode(),
            bases=resolved.bases,
            base_store=locker.bases.store,
            knowledge=locker.knowledge,
            engine=locker.engine,
            engine_version=self.engine_version,
            wheels=locker.wheels,
            cache=locker.cache,
            scratch=self.scratch,
            checkouts=locker.checkouts,
            jobs=locker.jobs,
            emit=locker.emit,
            originals=bring_originals(self.plan, resolved.lockfile, locker.bases) if sealing else {},
        )


@contextmanager
def open_near_side(made: Plan, *, engine: str, probe: str, jobs: int | None, emit: Emit) -> Iterator[NearSide]:
    """Open the cache and what works on it. The engine is opened, and its storage locked, when it is first needed."""
    choice, probing = parse_engine(engine), parse_probe_choice(probe)
    cache = files.cache_directory()
    with ExitStack() as stack:
        stack.enter_context(files.exclusive_lock(made.output_dir / ".airferry.lock", purpose="build"))
        stack.enter_context(_cache_lock(cache / "lock", emit=emit))
        scratch = files.ensure_directory(cache / "scratch")
        for pattern in WRITTEN_UNDER_LOCK:
            for folder in cache.glob(pattern):
                files.remove_stale_temporaries(folder)
        clients = stack.enter_context(open_clients(ClientOptions(), emit=emit))
        opened: list[Engine] = []

        def lend_engine() -> Engine:
            if not opened:
                check_for_build(made, cache=cache)
                opened.append(stack.enter_context(open_engine(cache / "engine", engine=choice, emit=emit)))
            return opened[0]

        catalogue = read_catalogue_lock(made.lock_path) if made.lock_path else None
        bases = BaseCache(cache, open_registry=Pulls(clients, emit=emit).source, emit=emit)
        compression = Compression(made.compression.kind, made.compression.level)
        limits = made.config.limits
        layers = BaseLayers(
            bases.store,
            cache,
            compression=compression,
            output=made.output_dir,
            limit_bytes=limits.layer_bytes,
            emit=emit,
        )
        locker = Locker(
            plan=made,
            bases=bases,
            knowledge=Knowledge(layers, cache, max_entries=limits.layer_entries),
            engine=_once(lend_engine),
            wheels=WheelStore(cache, Pip(emit=emit), emit),
            catalogue=catalogue,
            catalogue_digest=_catalogue_digest(made),
            cache=cache,
            checkouts=Checkouts(stack.enter_context(files.scratch_directory(scratch)), cache=cache, emit=emit),
            jobs=jobs or _default_jobs(),
            emit=emit,
            probe=probing,
        )
        yield NearSide(made, locker, scratch, lambda: _version_of(find_engine(choice)))


def _default_jobs() -> int:
    """Return how many images are made in parallel by default: what cores and memory allow."""
    return max(1, min(usable_cores(), MAX_JOBS, memory.available_bytes() // JOB_BYTES))


def _version_of(program: Program) -> str:
    return f"{program.kind} {program.version_text}"


@contextmanager
def _cache_lock(path: Path, *, emit: Emit) -> Iterator[None]:
    """Hold the cache's lock, waiting for other builds of this user to end, and saying so."""
    with files.waiting_lock(
        path, on_wait=lambda: emit(Notice(f"waiting for another airferry process that uses the same cache (`{path}`)"))
    ):
        yield


def parse_engine(text: str) -> EngineChoice:
    """Return the choice of an engine.

    Raises:
        UsageError: it is none of `auto`, `buildah` and `podman`.
    """
    for choice in ENGINES:
        if choice == text:
            return choice
    raise UsageError(f"unknown engine `{text}`", hint="choose `auto`, `buildah` or `podman`")


def parse_probe_choice(text: str) -> ProbeChoice:
    """Return how bases are probed.

    Raises:
        UsageError: it is none of `auto`, `static` and `run`.
    """
    for choice in PROBES:
        if choice == text:
            return choice
    raise UsageError(f"unknown probe mode `{text}`", hint="choose `auto`, `static` or `run`")


def _once(make: Callable[[], Engine]) -> Callable[[], Engine]:
    """Return the function so that threads which ask at the same time get one engine."""
    guard = threading.Lock()

    def lend() -> Engine:
        with guard:
            return make()

    return lend


def _outcome(made: Plan, produced: Produced) -> BuildOutcome:
    bundle = made.output_dir / "bundle"
    if produced.manifest is None or produced.sealed is None:
        return BuildOutcome(made.output_dir, bundle, (), produced.reused, None, 0, None, made.warnings)
    images = tuple(
        ImageSummary(
            name=entry.name,
            reference=entry.reference,
            digest=entry.digest,
            platforms=tuple(entry.platforms),
            size_bytes=sum(platform.size_bytes for platform in entry.platforms.values()),
            unpacked_bytes=sum(platform.unpacked_bytes or 0 for platform in entry.platforms.values()),
        )
        for entry in produced.manifest.images
        if entry.role != "base"
    )
    sealed = produced.sealed
    return BuildOutcome(
        made.output_dir,
        bundle,
        images,
        produced.reused,
        sealed.root,
        sealed.size_bytes,
        produced.manifest,
        made.warnings,
    )
