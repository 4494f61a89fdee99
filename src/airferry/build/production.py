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
from typing import Any, Literal

import zstandard

from airferry import __version__
from airferry.build import contexts
from airferry.build.base_layers import BaseLayers, encoder
from airferry.build.bases import BaseImage
from airferry.build.carried_assets import carry_assets, pack_action
from airferry.build.image_writer import BuiltImage, ImageWriter, base_annotations
from airferry.build.images import ASSEMBLY_VERSION, Assembler, ImageRecipe
from airferry.build.launcher import project_wheel
from airferry.build.originals import put_originals
from airferry.build.pip import WheelTarget
from airferry.build.wheels import Pin, Wheel, WheelStore, file_sha256, read_wheel
from airferry.buildah.engine import Engine
from airferry.bundle.artifacts import OVERLAYS_ARTIFACT, REQUIREMENTS_ARTIFACT, ArtifactFile, put_artifact
from airferry.bundle.manifest import (
    MANIFEST_FILE,
    Addition,
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
from airferry.events import Emit, StageFinished, StageStarted
from airferry.host import clock, files
from airferry.host.journal import Journal
from airferry.host.shipped import shipped
from airferry.host.threads import parallel_map
from airferry.oci.archive import write_oci_archive
from airferry.oci.documents import (
    IMAGE_INDEX,
    Descriptor,
    Index,
    PlatformDocument,
    canonical_json,
)
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform, parse_platform
from airferry.oci.reference import parse_reference
from airferry.plan.lockfile import LOCK_FILE, LockedAddition, LockedPlatform, Lockfile
from airferry.plan.models import GroupPlan, LauncherPlan, Plan

LOCK_ARTIFACT = "application/vnd.airferry.lock.v1"
LOCK_CONTENT = "application/vnd.airferry.lock.v1+yaml"
REQUIREMENTS_CONTENT = "text/x-requirements.txt"
OVERLAYS_CONTENT = "application/json"
LAUNCHER = "launcher"
WORKSPACE = "/workspace/Nemotron"
BUNDLE = "bundle"
TITLE_LABEL = "org.opencontainers.image.title"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a production works with. `engine` opens the engine, which a run with nothing to build never needs."""

    plan: Plan
    lock: Lockfile
    lock_bytes: bytes
    bases: Mapping[str, Mapping[Platform, BaseImage]]
    base_store: LayoutStore
    layers: BaseLayers
    engine: Callable[[], Engine]
    engine_version: str
    wheels: WheelStore
    cache: Path
    scratch: Path
    jobs: int
    emit: Emit = field(repr=False)
    originals: Mapping[str, Descriptor] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """The output folder."""
        return self.plan.output_dir


@dataclass(frozen=True, slots=True)
class Task:
    """One image for one platform: what it is built from, as inputs for the journal, and how to lay out its context."""

    name: str
    platform: Platform
    base: BaseImage
    containerfile: Path
    arguments: Mapping[str, str]
    labels: Mapping[str, str]
    additions: tuple[LockedAddition, ...]
    python: str | None
    network: bool
    inputs: Mapping[str, Any]
    lay_out: Callable[[Path], None]

    @property
    def action(self) -> str:
        """The name of the action in the journal."""
        return f"image {self.name} {self.platform}"


@dataclass(frozen=True, slots=True)
class Produced:
    """What a production left: the built images by name, and, once sealed, manifest and root."""

    images: Mapping[str, tuple[BuiltImage, ...]]
    reused: int
    manifest: BundleManifest | None = None
    sealed: Sealed | None = None


class Production:
    """One run over a plan that is locked."""

    def __init__(self, workshop: Workshop) -> None:
        """Open the bundle's layout and the journal in the output folder, and clear what a killed run left there."""
        self._shop = workshop
        self._store = LayoutStore.create(workshop.output / BUNDLE)
        self._store.remove_stale_temporaries()
        files.remove_stale_temporaries(workshop.output)
        self._journal = Journal(workshop.output / "airgap-build-state.yaml")
        self._compression = workshop.layers.compression
        self._writer = ImageWriter(self._store, workshop.layers, self._journal)
        self._assembler: Assembler | None = None

    def run(self) -> Produced:
        """Do what the plan's stages ask for and return what there is now.

        Raises:
            AirferryError: of the family of what failed; finished actions stay in the journal.
        """
        stages = self._shop.plan.stages
        tasks: list[Task] = []
        if "build-launcher-image" in stages and self._shop.plan.launcher is not None:
            tasks += [self._launcher_task(self._shop.plan.launcher, p) for p in self._shop.plan.launcher.platforms]
        if "build-execution-images" in stages:
            tasks += [self._group_task(group, p) for group in self._shop.plan.groups for p in group.platforms]
        built = parallel_map(self._make, tasks, jobs=self._shop.jobs)
        images: dict[str, tuple[BuiltImage, ...]] = {}
        for task, (image, _reused) in zip(tasks, built, strict=True):
            images[task.name] = (*images.get(task.name, ()), image)
        reused = sum(reused for _image, reused in built)
        if "save-images" not in stages:
            return Produced(images, reused)
        manifest, sealed = self._save(images)
        kept = {task.action for task in tasks}
        kept |= {f"layer {layer.digest}" for task in tasks for layer in task.base.layers}
        kept |= {f"archive {image.reference}" for image in manifest.images}
        kept |= {pack_action(asset.name) for asset in manifest.persistent_assets.assets}
        self._journal.forget_except(kept)
        return Produced(images, reused, manifest, sealed)

    # --- building ----------------------------------------------------------------------------------------------------

    def _make(self, task: Task) -> tuple[BuiltImage, bool]:
        if (known := self._journal.result(task.action, task.inputs)) is not None:
            image = BuiltImage.from_json(known)
            if image.is_whole(self._store):
                self._shop.emit(StageFinished(f"{task.name} {task.platform}", 0.0, reused=True))
                return image, True
        started = clock.monotonic_s()
        self._shop.emit(StageStarted(f"{task.name} {task.platform}"))
        with files.scratch_directory(self._shop.scratch) as folder:
            context = folder / "context"
            task.lay_out(context)
            recipe = ImageRecipe(
                name=task.name,
                platform=task.platform,
                containerfile=task.containerfile,
                context=context,
                arguments=task.arguments,
                labels=task.labels,
                python=task.python,
                additions=tuple(_addition(item) for item in task.additions),
                network=task.network,
            )
            image = self._ensure_assembler().build(recipe, task.base)
        self._journal.record(task.action, task.inputs, image.to_json())
        elapsed = clock.monotonic_s() - started
        self._shop.emit(StageFinished(f"{task.name} {task.platform}", elapsed, detail=_added(task)))
        return image, False

    def _ensure_assembler(self) -> Assembler:
        if self._assembler is None:
            self._assembler = Assembler(
                engine=self._shop.engine(),
                writer=self._writer,
                cache=self._shop.base_store,
                scratch=self._shop.scratch,
                emit=self._shop.emit,
            )
        return self._assembler

    def _inputs(
        self, task_inputs: Mapping[str, Any], base: BaseImage, containerfile: Path, script: str
    ) -> dict[str, Any]:
        return {
            "assembly": ASSEMBLY_VERSION,
            "engine": self._shop.engine_version,
            "encoder": encoder(self._compression),
            "compression": [self._compression.kind, self._compression.level],
            "epoch_s": clock.source_date_epoch_s(),
            "base": base.manifest.digest,
            "containerfile": "sha256:" + file_sha256(containerfile),
            "script": "sha256:" + file_sha256(shipped("containerfiles") / script),
            **task_inputs,
        }

    def _group_task(self, group: GroupPlan, platform: Platform) -> Task:
        locked = self._shop.lock.groups[group.name].platforms[str(platform)]
        base = self._shop.bases[group.base_image.key][platform]
        containerfile = group.containerfile or shipped("containerfiles") / "Containerfile.execution"
        checkouts = tuple(
            (overlay.url, self._shop.lock.overlays[overlay.key].commit, overlay.target) for overlay in group.overlays
        )
        pip = self._pip(locked.python_version) if locked.additions else None
        arguments = {"PYTHON_BIN": locked.python, "BASE_USER": base.user}
        labels = _labels(group.tag, base)

        def lay_out(context: Path) -> None:
            contexts.execution_context(
                context,
                additions=self._fetch(locked),
                pip=pip,
                checkouts=checkouts,
                cache=self._shop.cache,
                emit=self._shop.emit,
            )

        inputs = {
            "arguments": arguments,
            "labels": labels,
            "wheels": [[item.file, item.sha256] for item in locked.additions],
            "pip": pip.name if pip else None,
            "overlays": [list(checkout) for checkout in checkouts],
        }
        return Task(
            name=group.name,
            platform=platform,
            base=base,
            containerfile=containerfile,
            arguments=arguments,
            labels=labels,
            additions=locked.additions,
            python=locked.python,
            network=group.containerfile is not None,
            inputs=self._inputs(inputs, base, containerfile, "install-execution.sh"),
            lay_out=lay_out,
        )

    def _launcher_task(self, launcher: LauncherPlan, platform: Platform) -> Task:
        assert self._shop.lock.launcher is not None
        locked = self._shop.lock.launcher.platforms[str(platform)]
        base = self._shop.bases[launcher.base_image.key][platform]
        containerfile = launcher.containerfile or shipped("containerfiles") / "Containerfile.launcher"
        root = self._shop.plan.source_root
        excluded = [self._shop.output]
        pip = self._pip(locked.python_version)
        arguments = {
            "PYTHON_BIN": locked.python,
            "BASE_USER": base.user,
            "WORKSPACE": WORKSPACE,
            "PACKAGES": " ".join(launcher.packages),
        }
        labels = _labels(launcher.tag, base)

        def lay_out(context: Path) -> None:
            files.ensure_directory(context)
            wheels = self._fetch(locked)
            if (root / "pyproject.toml").is_file():
                source = self._shop.plan.config.source
                source_path = f"{WORKSPACE}/{Path(source.steps).parts[0]}"
                made = project_wheel(
                    root / "pyproject.toml", source_path=source_path, version=None, into=context.parent
                )
                if made is not None:
                    wheels.append(read_wheel(made, sha256=file_sha256(made)))
            contexts.launcher_context(context, source_root=root, excluded=excluded, additions=wheels, pip=pip)

        inputs = {
            "arguments": arguments,
            "labels": labels,
            "wheels": [[item.file, item.sha256] for item in locked.additions],
            "pip": pip.name,
            "source": contexts.tracked_digest(root, excluded=excluded),
        }
        return Task(
            name=LAUNCHER,
            platform=platform,
            base=base,
            containerfile=containerfile,
            arguments=arguments,
            labels=labels,
            additions=locked.additions,
            python=locked.python,
            network=bool(launcher.packages),
            inputs=self._inputs(inputs, base, containerfile, "install-launcher.sh"),
            lay_out=lay_out,
        )

    def _pip(self, python_version: str) -> Path:
        return self._shop.wheels.pip_wheel(_release(python_version))

    def _fetch(self, locked: LockedPlatform) -> list[Wheel]:
        pins = [
            Pin(item.name, f"=={item.version}", git=item.git_source, filename=item.file, sha256=item.sha256)
            for item in locked.additions
        ]
        return self._shop.wheels.fetch(pins, _target(locked)) if pins else []

    # --- sealing -----------------------------------------------------------------------------------------------------

    def _save(self, built: Mapping[str, tuple[BuiltImage, ...]]) -> tuple[BundleManifest, Sealed]:
        plan = self._shop.plan
        started = clock.monotonic_s()
        self._shop.emit(StageStarted("seal"))
        entries: list[ImageEntry] = []
        named: dict[str, Descriptor] = {}
        if plan.launcher is not None:
            entries.append(self._index(LAUNCHER, "launcher", plan.launcher.tag, built[LAUNCHER], named))
        for group in plan.groups:
            entries.append(self._index(group.name, "execution", group.tag, built[group.name], named))
        groups: list[GroupEntry] = []
        described: list[tuple[ArtifactEntry, Descriptor]] = []
        for group in plan.groups:
            entry = next(entry for entry in entries if entry.name == group.name)
            group_entry, artifacts = self._describe_group(group, named[entry.reference])
            groups.append(group_entry)
            described += artifacts
        described.append(self._artifact(LOCK_ARTIFACT, ArtifactFile(LOCK_FILE, LOCK_CONTENT, self._shop.lock_bytes)))
        assets = carry_assets(plan, self._store, self._journal, emit=self._shop.emit)
        described += assets.artifacts
        saved = self._archives(entries, named)
        originals = put_originals(self._shop.originals, self._shop.base_store, self._store)
        named |= self._shop.originals
        saved += [_saved(entry) for entry in originals]
        listed = [entry for entry, _descriptor in described]
        manifest = self._manifest([*entries, *originals], groups, listed, saved, assets.entries)
        sealed = seal(self._store, named, artifacts=[descriptor for _entry, descriptor in described], manifest=manifest)
        manifest = manifest.with_root(sealed.root)
        files.write_bytes(self._shop.output / MANIFEST_FILE, manifest.to_yaml())
        self._shop.emit(StageFinished("seal", clock.monotonic_s() - started, detail=f"{len(named)} images"))
        return manifest, sealed

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
        """Write the group's requirements and overlays beside the bundle and into it, and return its entry."""
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
        files.write_text(self._shop.output / title, text)
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
            return str(known["sha256"])
        written = write_oci_archive(
            self._store, descriptor, path, reference=entry.reference, docker_names=[entry.image], emit=self._shop.emit
        )
        sha256 = written.digest.removeprefix("sha256:")
        self._journal.record(action, inputs, {"sha256": sha256, "size_bytes": written.size_bytes})
        return sha256

    def _manifest(
        self,
        entries: Sequence[ImageEntry],
        groups: Sequence[GroupEntry],
        artifacts: Sequence[ArtifactEntry],
        saved: Sequence[SavedImage],
        assets: Sequence[AssetEntry],
    ) -> BundleManifest:
        document = self._shop.plan.to_document()
        persistent = document["persistent_assets"]
        baked = [
            {**overlay.to_document(), "commit": self._shop.lock.overlays[overlay.key].commit}
            for overlay in self._shop.plan.overlays
        ]
        launcher = document.get("launcher_image")
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
            compression=self._compression.kind,
            locks=(LockEntry(path=LOCK_FILE, sha256=hashlib.sha256(self._shop.lock_bytes).hexdigest()),),
            tool=ToolEntry(
                airferry=__version__,
                versions={"zstandard": zstandard.__version__, "engine": self._shop.engine_version},
            ),
        )


def _saved(entry: ImageEntry, **archive: str) -> SavedImage:
    common = {"role": entry.role, "name": entry.name, "image": entry.image, "reference": entry.reference}
    return SavedImage.model_validate({**common, **archive, "layout": BUNDLE, "digest": entry.digest})


def full_reference(tag: str) -> str:
    """Return the name that an image has in index.json: the tag as planned, with registry and version, no digest."""
    reference = parse_reference(tag)
    return str(replace(reference, tag=reference.tag or "latest", digest=None))


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


def _labels(tag: str, base: BaseImage) -> dict[str, str]:
    return {TITLE_LABEL: tag, **base_annotations(base)}


def _target(locked: LockedPlatform) -> WheelTarget:
    major, minor, *_rest = (int(part) for part in locked.libc_version.split("."))
    return WheelTarget(_release(locked.python_version), locked.abi, locked.libc, (major, minor), locked.machine)


def _release(version: str) -> tuple[int, int, int]:
    major, minor, micro = [*(int(part) for part in version.split(".")), 0][:3]
    return major, minor, micro


def _addition(item: LockedAddition) -> Addition:
    return Addition(name=item.name, version=item.version, file=item.file, sha256=item.sha256)


def _added(task: Task) -> str:
    names = [f"{item.name} {item.version}" for item in task.additions]
    return "added " + ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else ""
