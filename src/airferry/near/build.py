"""Building a bundle: every image of a plan for each of its platforms, in order and journalled, then the seal.

Each image and platform is an action, journalled under the digest of all that goes into it. What the journal holds and
the bundle still has is not built again, so a rerun finishes what an interruption left, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.bundle.manifest import BundleManifest, ImageEntry
from airferry.bundle.seal import Sealed
from airferry.errors import UsageError
from airferry.events import Emit, Notice, Warned, silent
from airferry.host import files
from airferry.host.canonical import plain_data
from airferry.host.journal import Journal
from airferry.host.threads import parallel_map
from airferry.near.assemble.assembler import Maker
from airferry.near.assemble.recipes import Task, TaskMaker
from airferry.near.assemble.writer import BuiltImage, ImageWriter
from airferry.near.bases.attached import BroughtArtifacts, LeftBehind, bring_attached
from airferry.near.bases.originals import bring_originals
from airferry.near.carry.assets import pack_action
from airferry.near.carry.loader import LOADER_ACTION
from airferry.near.git.origin import uncommitted_files
from airferry.near.lock.follow import follow_lock
from airferry.near.lock.resolve import Locked
from airferry.near.output_folder import OutputFolder
from airferry.near.planning import PLAN_FILE, Selection, read_plan, warn_of_plan
from airferry.near.predict import Prediction, Predictor, ensure_room, expect_readable
from airferry.near.rehearse.run import REPORT_FILE, Rehearsal, RehearsalReport, check_rehearsal, report_json
from airferry.near.rehearse.stage import rehearsal_action
from airferry.near.seal import BUNDLE, Sealer
from airferry.near.session import BuildOptions, Session, open_session
from airferry.oci.layers import Compression
from airferry.oci.layout import LayoutStore
from airferry.plan.lockfile import LOCK_FILE, Lockfile, read_lockfile
from airferry.plan.models import Plan, PlanWarning
from airferry.plan.planner import write_plan
from airferry.wording import counted, size_text, some_of

IMAGE_STAGES = {"build-launcher-image", "build-execution-images"}


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
class Recompressed:
    """Layers of bases, each once, in bytes: as they were fetched, and as the bundle carries them, and by what."""

    fetched_bytes: int
    carried_bytes: int
    compression: str

    @property
    def text(self) -> str:
        """What recompressing them has gained, and the way out where that is nothing."""
        change = self.carried_bytes / max(1, self.fetched_bytes) - 1
        said = f"{abs(change):.1%} less" if change < 0 else f"{change:.1%} more, `compression: preserve` keeps them"
        return (
            f"layers of bases: {size_text(self.fetched_bytes)} fetched, {size_text(self.carried_bytes)} carried "
            f"({self.compression}): {said}"
        )


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """What a build left. `root`, `manifest` and sizes are there only once the bundle is sealed.

    `left_out` are the artifacts of bases that the bundle does not carry, `recompressed` is None where no layer of a
    base was recompressed.
    """

    output: Path
    bundle: Path
    images: tuple[ImageSummary, ...]
    reused: int
    root: str | None
    bundle_bytes: int
    manifest: BundleManifest | None
    warnings: tuple[PlanWarning, ...] = ()
    left_out: tuple[LeftBehind, ...] = ()
    recompressed: Recompressed | None = None

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        names = ("output", "bundle", "root", "bundle_bytes", "reused", "warnings", "images", "left_out", "recompressed")
        return plain_data(self, *names)  # type: ignore[no-any-return]


def build(
    selection: Selection,
    *,
    locked: bool = False,
    update: Sequence[str] = (),
    rehearse: bool = False,
    options: BuildOptions | None = None,
    emit: Emit = silent,
) -> BuildOutcome:
    """Run the plan's stages: lock, build, seal. What is finished from an earlier run is reused.

    What `update` names is resolved again first, as `lock` does. With `rehearse`, every step is tried before the bundle
    is sealed, in a network that leads nowhere; without it, the bundle keeps an earlier rehearsal that still fits.

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
    warn_of_plan(made, emit)
    outcome = BuildOutcome(made.output_dir, made.output_dir / BUNDLE, (), 0, None, 0, None, made.warnings)
    if not {"discover-execution-deps", *IMAGE_STAGES} & set(made.stages):
        return outcome
    with open_session(made, options or BuildOptions(), emit=emit) as session:
        first_look = _ensure_room(session, made, read_lockfile(made.output_dir / LOCK_FILE) or Lockfile())
        resolved = follow_lock(session, made, locked=locked, update=update)
        if not IMAGE_STAGES & set(made.stages):
            return outcome
        if first_look.unknown:
            _ensure_room(session, made, resolved.lockfile)
        produced = Production(session, made, resolved, rehearse=() if rehearse else None).run()
    return _outcome(made, produced)


@dataclass(frozen=True, slots=True)
class Produced:
    """What a production left: the built images by name, and, once sealed, manifest and root."""

    images: Mapping[str, tuple[BuiltImage, ...]]
    reused: int
    manifest: BundleManifest | None = None
    sealed: Sealed | None = None
    rehearsal: RehearsalReport | None = None
    left_out: tuple[LeftBehind, ...] = ()
    recompressed: Recompressed | None = None


class Production:
    """One run over a plan that is locked."""

    def __init__(
        self, session: Session, plan: Plan, locked: Locked, *, rehearse: tuple[str, ...] | None = None
    ) -> None:
        """Open the bundle's layout and the journal in the output folder, and clear what a killed run left there.

        `rehearse` names the targets to try before sealing, none standing for all; without it none are tried,
        and a bundle takes over what earlier runs found.
        """
        self._session = session
        self._plan = plan
        self._locked = locked
        self._rehearsed = rehearse
        self._store = LayoutStore.create(plan.output_dir / BUNDLE)
        self._store.remove_stale_temporaries()
        files.remove_stale_temporaries(plan.output_dir)
        self._journal = Journal(plan.output_dir / "airgap-build-state.yaml")
        self._folder = OutputFolder(plan.output_dir, self._journal, emit=session.emit)

    def run(self) -> Produced:
        """Do what the plan's stages ask for and return what there is now.

        Raises:
            AirferryError: of the family of what failed; finished actions stay in the journal.
        """
        plan, sealing = self._plan, "save-images" in self._plan.stages
        # first, so that a base that cannot be carried is told before anything is built
        bases, lockfile, emit = self._session.bases, self._locked.lockfile, self._session.emit
        originals = bring_originals(plan, lockfile, bases) if sealing else {}
        attached = BroughtArtifacts()
        if sealing:
            attached = bring_attached(plan, lockfile, bases, originals=originals, emit=emit)
        if self._rehearsed is not None:
            check_rehearsal(plan)
        tasks = self._tasks()
        made = parallel_map(self._maker().make, tasks, jobs=self._session.jobs)
        images: dict[str, tuple[BuiltImage, ...]] = {}
        for task, done in zip(tasks, made, strict=True):
            images[task.name] = (*images.get(task.name, ()), done.image)
        reused = sum(done.reused for done in made)
        rehearsal = self._rehearse(images, sealing=sealing)
        if not sealing:
            return Produced(images, reused, rehearsal=rehearsal)
        if rehearsal is not None:
            rehearsal.raise_if_wrong()
        self._say_uncommitted()
        sealer = Sealer(
            self._session,
            plan,
            self._locked.lockfile,
            store=self._store,
            journal=self._journal,
            folder=self._folder,
        )
        by_engine = any(done.by_engine for done in made)
        manifest, sealed = sealer.seal(
            images, originals=originals, attached=attached.carried, rehearsal=rehearsal, by_engine=by_engine
        )
        kept = {LOADER_ACTION, *(task.action for task in tasks)}
        kept |= {f"layer {layer.digest}" for task in tasks for layer in task.base.layers}
        kept |= {f"archive {image.reference}" for image in manifest.images}
        kept |= {pack_action(asset.name) for asset in manifest.persistent_assets.assets}
        kept |= {
            rehearsal_action(spec, item) for group in plan.groups for spec in group.targets for item in group.platforms
        }
        held = {digest for image in manifest.images for digest in (image.digest, *_platform_digests(image))}
        self._journal.forget_except(kept | self._folder.settle(held))
        compressed = recompressed(manifest, tasks, self._session.knowledge.layers.compression)
        return Produced(images, reused, manifest, sealed, rehearsal, attached.left_out, compressed)

    def _say_uncommitted(self) -> None:
        """Name what the bundle carries of the catalogue that no commit has, so that its origin can be told later."""
        root, output = files.resolved(self._plan.source_root), files.resolved(self._plan.output_dir)
        changed = [name for name in uncommitted_files(root) if not (root / name).is_relative_to(output)]
        if changed:
            text = f"carried with changes that are not committed: {some_of([f'`{name}`' for name in changed], 3)}"
            self._session.emit(Notice(text, details=tuple(changed) if len(changed) > 3 else ()))

    def _rehearse(self, images: Mapping[str, Sequence[BuiltImage]], *, sealing: bool) -> RehearsalReport | None:
        """Try the steps in the images that were built, if that was asked for, and write the report.

        Otherwise a seal takes over what earlier runs found, if that is still about these images, code and commands.
        """
        rehearsal = Rehearsal(
            self._session, self._plan, self._locked.lockfile, store=self._store, journal=self._journal
        )
        if self._rehearsed is not None:
            report = rehearsal.run(images, targets=self._rehearsed)
        elif not sealing or (kept := self._earlier(rehearsal, images)) is None:
            return None
        else:
            report = kept
        self._folder.write(REPORT_FILE, report_json(report), images=(entry.image for entry in report.entries))
        return report

    def _earlier(self, rehearsal: Rehearsal, images: Mapping[str, Sequence[BuiltImage]]) -> RehearsalReport | None:
        """Return what earlier runs found, or say why the bundle is sealed without it."""
        earlier, emit = rehearsal.earlier(images), self._session.emit
        if earlier is None:
            return None
        if not earlier.trouble:
            tried = counted(len(earlier.report.results), "rehearsal")
            emit(Notice(f"kept {tried} of an earlier run: same images, code and commands"))
            return earlier.report
        if earlier.changed:
            self._folder.drop(REPORT_FILE)
        hint = "run `airferry build --rehearse` to have a rehearsal on record in the bundle"
        emit(Warned(f"the bundle is sealed without a rehearsal: {earlier.trouble}", hint=hint))
        return None

    def _maker(self) -> Maker:
        writer = ImageWriter(self._store, self._session.knowledge.layers, self._journal)
        return Maker(self._session, builder=self._plan.config.builder, writer=writer, journal=self._journal)

    def _tasks(self) -> list[Task]:
        plan = self._plan
        tasks = TaskMaker(self._session, plan, self._locked.lockfile, self._locked.bases)
        found: list[Task] = []
        if "build-launcher-image" in plan.stages and plan.launcher is not None:
            found += [tasks.launcher(plan.launcher, platform) for platform in plan.launcher.platforms]
        if "build-execution-images" in plan.stages:
            found += [tasks.execution(group, platform) for group in plan.groups for platform in group.platforms]
        return found


def recompressed(manifest: BundleManifest, tasks: Iterable[Task], compression: Compression) -> Recompressed | None:
    """Return what recompressing the layers of bases has gained in the bundle; None if it has recompressed none."""
    fetched = {layer.digest: layer.size for task in tasks for layer in task.base.layers}
    carried = {
        layer.original_digest: layer.size_bytes
        for image in manifest.images
        for platform in image.platforms.values()
        for layer in platform.layers
        if layer.original_digest in fetched
    }
    if not carried:
        return None
    before = sum(size for digest, size in fetched.items() if digest in carried)
    return Recompressed(before, sum(carried.values()), compression.text)


def _platform_digests(image: ImageEntry) -> list[str]:
    return [platform.digest for platform in image.platforms.values()]


def _outcome(made: Plan, produced: Produced) -> BuildOutcome:
    bundle = made.output_dir / BUNDLE
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
        produced.left_out,
        produced.recompressed,
    )


def _ensure_room(session: Session, plan: Plan, known: Lockfile) -> Prediction:
    """Return what a build takes, as far as lock and cache tell.

    Refuses one that the disk has no room for, or whose bundle would be too large to be read.
    """
    prediction = Predictor(plan, known, session.cache).predict(jobs=session.jobs)
    expect_readable(prediction)
    ensure_room(prediction, cache=session.cache, output=plan.output_dir, emit=session.emit)
    return prediction
