"""Producing a bundle: every image of a plan for each of its platforms, then indexes, artifacts, manifest and root.

Each image and platform is an action, journalled under the digest of all that goes into it. What the journal holds and
the bundle still has is not built again, so a rerun finishes what an interruption left, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import zstandard

from airferry import __version__
from airferry.bundle.artifacts import OVERLAYS_ARTIFACT, REQUIREMENTS_ARTIFACT, ArtifactFile, put_artifact
from airferry.bundle.manifest import (
    MANIFEST_FILE,
    ArtifactEntry,
    AssetEntry,
    BundleManifest,
    GroupEntry,
    ImageEntry,
    LauncherEntry,
    LockEntry,
    OverlayEntry,
    PersistentAssets,
    SavedImage,
    TargetEntry,
    ToolEntry,
    describe_image,
)
from airferry.bundle.seal import Sealed, seal
from airferry.bundle.twins import images_text, with_twins
from airferry.engine.driver import Engine
from airferry.events import Emit, StageFinished, StageStarted
from airferry.host import clock, files
from airferry.host.canonical import canonical_json
from airferry.host.journal import Journal
from airferry.host.threads import parallel_map
from airferry.near.assemble.assembler import Maker
from airferry.near.assemble.recipes import Task, TaskMaker
from airferry.near.assemble.writer import BuiltImage, ImageWriter
from airferry.near.bases.fetch import BaseImage
from airferry.near.bases.originals import put_originals
from airferry.near.carry.assets import carry_assets, pack_action
from airferry.near.carry.catalogue import carry_catalogue
from airferry.near.carry.loader import LOADER_ACTION, CarriedLoader, carry_loader
from airferry.near.git.checkouts import Checkouts
from airferry.near.output_folder import OutputFolder
from airferry.near.probe.knowledge import Knowledge
from airferry.near.rehearse.run import (
    REPORT_FILE,
    Rehearsal,
    RehearsalReport,
    check_rehearsal,
    entries_json,
    report_json,
)
from airferry.near.rehearse.stage import rehearsal_action
from airferry.near.wheels.store import WheelStore
from airferry.oci.archive import write_oci_archive
from airferry.oci.documents import IMAGE_INDEX, Descriptor, Index, PlatformDocument
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform, parse_platform
from airferry.oci.reference import parse_reference
from airferry.plan.inventory import parse_inventory, render_inventory
from airferry.plan.lockfile import LOCK_FILE, LockedPlatform, Lockfile
from airferry.plan.models import LAUNCHER, GroupPlan, Plan

LOCK_ARTIFACT = "application/vnd.airferry.lock.v1"
LOCK_CONTENT = "application/vnd.airferry.lock.v1+yaml"
REQUIREMENTS_CONTENT = "text/x-requirements.txt"
OVERLAYS_CONTENT = "application/json"
REHEARSAL_ARTIFACT = "application/vnd.airferry.rehearsal.v1"
REHEARSAL_CONTENT = "application/vnd.airferry.rehearsal.v1+json"
BUNDLE = "bundle"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a production works with. `engine` opens the engine, which a run with nothing to build never needs.

    `rehearse` names the targets to try before sealing, none standing for all; without it none are tried.
    """

    plan: Plan
    lock: Lockfile
    lock_bytes: bytes
    bases: Mapping[str, Mapping[Platform, BaseImage]]
    base_store: LayoutStore
    knowledge: Knowledge
    engine: Callable[[], Engine]
    engine_version: Callable[[], str]
    wheels: WheelStore
    cache: Path
    scratch: Path
    checkouts: Checkouts
    jobs: int
    emit: Emit = field(repr=False)
    originals: Mapping[str, Descriptor] = field(default_factory=dict)
    rehearse: tuple[str, ...] | None = None

    @property
    def output(self) -> Path:
        """The output folder."""
        return self.plan.output_dir


@dataclass(frozen=True, slots=True)
class Produced:
    """What a production left: the built images by name, and, once sealed, manifest and root."""

    images: Mapping[str, tuple[BuiltImage, ...]]
    reused: int
    manifest: BundleManifest | None = None
    sealed: Sealed | None = None
    rehearsal: RehearsalReport | None = None


class Production:
    """One run over a plan that is locked."""

    def __init__(self, workshop: Workshop) -> None:
        """Open the bundle's layout and the journal in the output folder, and clear what a killed run left there."""
        self._shop = workshop
        self._store = LayoutStore.create(workshop.output / BUNDLE)
        self._store.remove_stale_temporaries()
        files.remove_stale_temporaries(workshop.output)
        self._journal = Journal(workshop.output / "airgap-build-state.yaml")
        self._folder = OutputFolder(workshop.output, self._journal, emit=workshop.emit)
        self._by_engine = False

    def run(self) -> Produced:
        """Do what the plan's stages ask for and return what there is now.

        Raises:
            AirferryError: of the family of what failed; finished actions stay in the journal.
        """
        stages = self._shop.plan.stages
        if self._shop.rehearse is not None:
            check_rehearsal(self._shop.plan)
        tasks = self._tasks()
        made = parallel_map(self._maker().make, tasks, jobs=self._shop.jobs)
        images: dict[str, tuple[BuiltImage, ...]] = {}
        for task, done in zip(tasks, made, strict=True):
            images[task.name] = (*images.get(task.name, ()), done.image)
        self._by_engine = any(done.by_engine for done in made)
        reused = sum(done.reused for done in made)
        rehearsal = self._rehearse(images)
        if "save-images" not in stages:
            return Produced(images, reused, rehearsal=rehearsal)
        if rehearsal is not None:
            rehearsal.raise_if_wrong()
        manifest, sealed = self._save(images, rehearsal)
        kept = {LOADER_ACTION, *(task.action for task in tasks)}
        kept |= {f"layer {layer.digest}" for task in tasks for layer in task.base.layers}
        kept |= {f"archive {image.reference}" for image in manifest.images}
        kept |= {pack_action(asset.name) for asset in manifest.persistent_assets.assets}
        plan = self._shop.plan
        kept |= {
            rehearsal_action(spec, item) for group in plan.groups for spec in group.targets for item in group.platforms
        }
        held = {digest for image in manifest.images for digest in (image.digest, *_platform_digests(image))}
        self._journal.forget_except(kept | self._folder.settle(held))
        return Produced(images, reused, manifest, sealed, rehearsal)

    def _rehearse(self, images: Mapping[str, Sequence[BuiltImage]]) -> RehearsalReport | None:
        """Try the steps in the images that were built, if that was asked for, and write the report."""
        shop = self._shop
        if shop.rehearse is None:
            return None
        rehearsal = Rehearsal(
            plan=shop.plan,
            lock=shop.lock,
            store=self._store,
            journal=self._journal,
            engine=shop.engine,
            cache=shop.cache,
            scratch=shop.scratch,
            jobs=shop.jobs,
            emit=shop.emit,
        )
        report = rehearsal.run(images, targets=shop.rehearse)
        self._folder.write(REPORT_FILE, report_json(report), images=(entry.image for entry in report.entries))
        return report

    def _maker(self) -> Maker:
        shop = self._shop
        return Maker(
            builder=shop.plan.config.builder,
            writer=ImageWriter(self._store, shop.knowledge.layers, self._journal),
            journal=self._journal,
            bases=shop.base_store,
            engine=shop.engine,
            look=shop.knowledge.look,
            scratch=shop.scratch,
            emit=shop.emit,
        )

    def _tasks(self) -> list[Task]:
        shop = self._shop
        tasks = TaskMaker(
            plan=shop.plan,
            lock=shop.lock,
            bases=shop.bases,
            wheels=shop.wheels,
            cache=shop.cache,
            checkouts=shop.checkouts,
            compression=shop.knowledge.layers.compression,
            engine=shop.engine,
            base_layout=shop.base_store.path,
            engine_version=shop.engine_version,
            emit=shop.emit,
        )
        found: list[Task] = []
        if "build-launcher-image" in shop.plan.stages and shop.plan.launcher is not None:
            found += [tasks.launcher(shop.plan.launcher, platform) for platform in shop.plan.launcher.platforms]
        if "build-execution-images" in shop.plan.stages:
            found += [tasks.execution(group, platform) for group in shop.plan.groups for platform in group.platforms]
        return found

    # --- sealing -----------------------------------------------------------------------------------------------------

    def _save(
        self, built: Mapping[str, tuple[BuiltImage, ...]], rehearsal: RehearsalReport | None
    ) -> tuple[BundleManifest, Sealed]:
        plan = self._shop.plan
        started = clock.monotonic_s()
        self._shop.emit(StageStarted("seal"))
        entries: list[ImageEntry] = []
        named: dict[str, Descriptor] = {}
        if plan.launcher is not None:
            entries.append(self._index(LAUNCHER, "launcher", plan.launcher.tag, built[LAUNCHER], named))
        for group in plan.groups:
            entries.append(self._index(group.name, "execution", group.tag, built[group.name], named))
        if plan.config.effective_docker_twin:
            entries = with_twins(self._store, entries, named)
        groups: list[GroupEntry] = []
        described: list[tuple[ArtifactEntry, Descriptor]] = []
        for group in plan.groups:
            entry = next(entry for entry in entries if entry.name == group.name)
            group_entry, artifacts = self._describe_group(group, named[entry.reference])
            groups.append(group_entry)
            described += artifacts
        described.append(self._artifact(LOCK_ARTIFACT, ArtifactFile(LOCK_FILE, LOCK_CONTENT, self._shop.lock_bytes)))
        assets = carry_assets(plan, self._store, self._journal, self._folder, emit=self._shop.emit)
        described += assets.artifacts
        with files.scratch_directory(self._shop.scratch) as scratch:
            catalogue = carry_catalogue(plan, self._store, scratch=scratch, emit=self._shop.emit)
        if catalogue is not None:
            described.append(catalogue.artifact)
        if rehearsal is not None:
            content = ArtifactFile(REPORT_FILE, REHEARSAL_CONTENT, entries_json(rehearsal))
            described.append(self._artifact(REHEARSAL_ARTIFACT, content))
        loader = self._loader()
        if loader is not None:
            described.append(loader.artifact)
        saved = self._archives(entries, named)
        originals = put_originals(self._shop.originals, self._shop.base_store, self._store)
        named |= self._shop.originals
        saved += [_saved(entry) for entry in originals]
        listed = [entry for entry, _descriptor in described]
        manifest = self._manifest([*entries, *originals], groups, listed, saved, assets.entries, loader)
        manifest = manifest.model_copy(
            update={
                "rehearsals": rehearsal.entries if rehearsal else (),
                "catalogue": catalogue.entry if catalogue else None,
                "submit": plan.config.source.carried_submit,
            }
        )
        sealed = seal(self._store, named, artifacts=[descriptor for _entry, descriptor in described], manifest=manifest)
        manifest = manifest.with_root(sealed.root)
        files.write_bytes(self._shop.output / MANIFEST_FILE, manifest.to_yaml())
        twins = sum(entry.docker_twin is not None for entry in entries)
        detail = images_text(len(entries), twins=twins, originals=len(originals))
        self._shop.emit(StageFinished("seal", clock.monotonic_s() - started, detail=detail))
        return manifest, sealed

    def _loader(self) -> CarriedLoader | None:
        shop = self._shop
        choice = shop.plan.config.loader
        if not choice:
            return None
        return carry_loader(
            choice,
            shop.plan.platforms,
            self._store,
            journal=self._journal,
            wheels=shop.wheels,
            scratch=shop.scratch,
            emit=shop.emit,
        )

    def _index(
        self,
        name: str,
        role: Literal["launcher", "execution"],
        tag: str,
        built: Sequence[BuiltImage],
        named: dict[str, Descriptor],
    ) -> ImageEntry:
        children = [
            image.manifest.annotated(
                platform=PlatformDocument(
                    os=image.platform.os,
                    architecture=image.platform.architecture,
                    variant=image.platform.variant or None,
                )
            )
            for image in sorted(built, key=lambda image: image.platform)
        ]
        index = Index(schema_version=2, media_type=IMAGE_INDEX, manifests=children)
        descriptor = self._store.put_bytes(canonical_json(index), IMAGE_INDEX)
        reference = full_reference(tag)
        named[reference] = descriptor
        platforms = {str(image.platform): image.entry for image in built}
        return describe_image(descriptor, name=name, role=role, image=tag, reference=reference, platforms=platforms)

    def _describe_group(
        self, group: GroupPlan, subject: Descriptor
    ) -> tuple[GroupEntry, list[tuple[ArtifactEntry, Descriptor]]]:
        """Write the group's requirements and overlays next to the bundle and into it, and return its entry."""
        locked = self._shop.lock.groups[group.name].platforms
        requirements = requirements_lines(locked)
        commits = [
            {**overlay.to_document(), "commit": self._shop.lock.overlays[overlay.key].commit}
            for overlay in group.overlays
        ]
        documents = {item["name"]: item for item in self._shop.plan.to_document()["execution_groups"]}
        artifacts = []
        paths: dict[str, str] = {}
        if requirements:
            title = paths["requirements_path"] = f"requirements-{group.name}.txt"
            text = "".join(f"{line}\n" for line in requirements)
            artifacts.append(self._beside(REQUIREMENTS_ARTIFACT, title, REQUIREMENTS_CONTENT, text, subject))
        if commits:
            title = paths["repo_overlays_path"] = f"repo-overlays-{group.name}.json"
            text = json.dumps(commits, indent=2, sort_keys=True) + "\n"
            artifacts.append(self._beside(OVERLAYS_ARTIFACT, title, OVERLAYS_CONTENT, text, subject))
        entry = GroupEntry.model_validate(
            {
                **documents[group.name],
                **paths,
                "distributions": {} if group.containerfile else held(locked),
                "missing_imports": sorted({name for platform in locked.values() for name in platform.missing}),
                "missing_core_imports": [],
                "requirements": [line.partition(" --hash")[0] for line in requirements],
                "repo_overlays": commits,
            }
        )
        return entry, artifacts

    def _beside(
        self, artifact_type: str, title: str, media_type: str, text: str, subject: Descriptor
    ) -> tuple[ArtifactEntry, Descriptor]:
        self._folder.write(title, text.encode())
        return self._artifact(artifact_type, ArtifactFile(title, media_type, text.encode()), subject)

    def _artifact(
        self, artifact_type: str, content: ArtifactFile, subject: Descriptor | None = None
    ) -> tuple[ArtifactEntry, Descriptor]:
        descriptor = put_artifact(self._store, artifact_type, contents=[content], subject=subject)
        entry = ArtifactEntry(
            title=content.title,
            artifact_type=artifact_type,
            digest=descriptor.digest,
            size_bytes=descriptor.size,
            subject=subject.digest if subject else None,
        )
        return entry, descriptor

    def _archives(self, entries: Sequence[ImageEntry], named: Mapping[str, Descriptor]) -> list[SavedImage]:
        """Say where each image is, and write its archive if the plan wants archives."""
        plan = self._shop.plan
        tars = {group.name: group.tar for group in plan.groups}
        if plan.launcher is not None:
            tars[LAUNCHER] = plan.launcher.tar
        saved = []
        for entry in entries:
            archive: dict[str, str] = {}
            if plan.archives:
                archive = {
                    "tar": tars[entry.name],
                    "sha256": self._archive(entry, named[entry.reference], tars[entry.name]),
                }
            saved.append(_saved(entry, **archive))
        return saved

    def _archive(self, entry: ImageEntry, descriptor: Descriptor, tar: str) -> str:
        path = self._shop.output / tar
        action, inputs = f"archive {entry.reference}", {"digest": entry.digest, "tar": tar, "image": entry.image}
        known = self._journal.result(action, inputs)
        if known is not None and path.is_file() and path.stat().st_size == known["size_bytes"]:
            self._folder.note(tar, sha256=str(known["sha256"]), size_bytes=int(known["size_bytes"]))
            return str(known["sha256"])
        written = write_oci_archive(
            self._store, descriptor, path, reference=entry.reference, docker_names=[entry.image], emit=self._shop.emit
        )
        sha256 = written.digest.removeprefix("sha256:")
        self._journal.record(action, inputs, {"sha256": sha256, "size_bytes": written.size_bytes})
        self._folder.note(tar, sha256=sha256, size_bytes=written.size_bytes)
        return sha256

    def _manifest(
        self,
        entries: Sequence[ImageEntry],
        groups: Sequence[GroupEntry],
        artifacts: Sequence[ArtifactEntry],
        saved: Sequence[SavedImage],
        assets: Sequence[AssetEntry],
        loader: CarriedLoader | None,
    ) -> BundleManifest:
        document = self._shop.plan.to_document()
        persistent = document["persistent_assets"]
        baked = [
            {**overlay.to_document(), "commit": self._shop.lock.overlays[overlay.key].commit}
            for overlay in self._shop.plan.overlays
        ]
        launcher = document.get("launcher_image")
        engine = {"engine": self._shop.engine_version()} if self._by_engine else {}
        return BundleManifest(
            workflow=document["workflow"],
            build_stages=tuple(document["build_stages"]),
            targets=tuple(TargetEntry.model_validate(item) for item in document["targets"]),
            execution_groups=tuple(groups),
            launcher_image=LauncherEntry.model_validate(launcher) if launcher else None,
            step_execution_images=document["step_execution_images"],
            saved_images=tuple(saved),
            persistent_assets=PersistentAssets(
                policy=persistent["policy"],
                assets=tuple(assets),
                mounts_from_configs=tuple(persistent["mounts_from_configs"]),
                baked_repo_overlays=tuple(OverlayEntry.model_validate(item) for item in baked),
            ),
            images=tuple(entries),
            artifacts=tuple(artifacts),
            compression=self._shop.knowledge.layers.compression.kind,
            locks=(
                LockEntry(path=LOCK_FILE, sha256=hashlib.sha256(self._shop.lock_bytes).hexdigest()),
                *([loader.lock] if loader else []),
            ),
            tool=ToolEntry(
                airferry=__version__,
                versions={"zstandard": zstandard.__version__, **engine},
            ),
            loader=loader.entry if loader else None,
        )


def _platform_digests(image: ImageEntry) -> list[str]:
    return [platform.digest for platform in image.platforms.values()]


def _saved(entry: ImageEntry, **archive: str) -> SavedImage:
    common = {"role": entry.role, "name": entry.name, "image": entry.image, "reference": entry.reference}
    return SavedImage.model_validate({**common, **archive, "layout": BUNDLE, "digest": entry.digest})


def full_reference(tag: str) -> str:
    """Return the name that an image has in index.json: the tag as planned, with registry and version, no digest."""
    reference = parse_reference(tag)
    return str(replace(reference, tag=reference.tag or "latest", digest=None))


def held(platforms: Mapping[str, LockedPlatform]) -> dict[str, str]:
    """Return the distributions that an image holds on each platform: those of its base, and what was added."""
    texts = {}
    for name, locked in platforms.items():
        if locked.distributions:
            added = {item.name: item.version for item in locked.additions}
            texts[name] = render_inventory({**parse_inventory(locked.distributions), **added})
    return texts


def requirements_lines(platforms: Mapping[str, LockedPlatform]) -> list[str]:
    """Return pip requirements with hashes for what a group adds; a marker where platforms differ."""
    wanted: dict[tuple[str, str], dict[str, set[str]]] = {}
    for platform, locked in platforms.items():
        for item in locked.additions:
            by_platform = wanted.setdefault((item.name, item.version), {})
            by_platform.setdefault(platform, set()).add(item.sha256)
    lines = []
    for (name, version), by_platform in sorted(wanted.items()):
        machines = sorted({parse_platform(platform).machine for platform in by_platform})
        marker = ""
        if len(by_platform) < len(platforms):
            marker = " ; " + " or ".join(f'platform_machine == "{machine}"' for machine in machines)
        hashes = sorted({sha256 for found in by_platform.values() for sha256 in found})
        lines.append(f"{name}=={version}{marker}" + "".join(f" --hash=sha256:{sha256}" for sha256 in hashes))
    return lines
