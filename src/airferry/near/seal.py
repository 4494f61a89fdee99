"""Sealing a bundle: indexes over platforms, artifacts, archives and originals, the manifest, and one write of the root.

What images there are and what they are made of is decided before (`near/build.py`); how a layout is sealed, below
(`bundle/seal.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import zstandard
from pydantic import ValidationError

from airferry import __version__
from airferry.bundle.artifacts import (
    LOCK_ARTIFACT,
    LOCK_CONTENT,
    OVERLAYS_ARTIFACT,
    OVERLAYS_CONTENT,
    REHEARSAL_ARTIFACT,
    REHEARSAL_CONTENT,
    REQUIREMENTS_ARTIFACT,
    REQUIREMENTS_CONTENT,
    ArtifactFile,
    put_artifact,
)
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
from airferry.errors import BuildError
from airferry.events import StageFinished, StageStarted
from airferry.host import clock, files
from airferry.host.canonical import canonical_json, plain_data
from airferry.host.journal import Journal
from airferry.host.records import as_noted
from airferry.near.assemble.writer import BuiltImage
from airferry.near.bases.attached import Attached, put_attached
from airferry.near.bases.originals import put_originals
from airferry.near.carry.assets import carry_assets
from airferry.near.carry.catalogue import carry_catalogue
from airferry.near.carry.loader import CarriedLoader, carry_loader
from airferry.near.output_folder import OutputFolder
from airferry.near.rehearse.run import (
    REPORT_FILE,
    RehearsalReport,
    entries_json,
)
from airferry.near.session import Session
from airferry.oci.archive import write_oci_archive
from airferry.oci.copy import image_shipments
from airferry.oci.documents import IMAGE_INDEX, Descriptor, Index, PlatformDocument
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.oci.reference import parse_reference
from airferry.plan.inventory import parse_inventory, render_inventory
from airferry.plan.lockfile import LOCK_FILE, LockedPlatform, Lockfile, render_lockfile
from airferry.plan.models import LAUNCHER, GroupPlan, Plan

BUNDLE = "bundle"


class Sealer:
    """Seals the images of a plan that is locked into the bundle of its output folder."""

    def __init__(
        self,
        session: Session,
        plan: Plan,
        lock: Lockfile,
        *,
        store: LayoutStore,
        journal: Journal,
        folder: OutputFolder,
    ) -> None:
        """`store` is the bundle, `journal` what is made already, and `folder` what lies next to the bundle."""
        self._session = session
        self._plan = plan
        self._lock = lock
        self._lock_bytes = render_lockfile(lock).encode()
        self._store = store
        self._journal = journal
        self._folder = folder

    def seal(
        self,
        built: Mapping[str, tuple[BuiltImage, ...]],
        *,
        originals: Mapping[str, Descriptor],
        attached: Sequence[Attached] = (),
        rehearsal: RehearsalReport | None,
        by_engine: bool,
    ) -> tuple[BundleManifest, Sealed]:
        """Write indexes, artifacts and archives, then the manifest, and seal the bundle. Killed anywhere, it is whole.

        `originals` are the bases that are carried as they came, by name, and `attached` the artifacts that belong to
        them. `by_engine` says that an engine built an image, whose version the manifest then names.

        Raises:
            BuildError: a name or text of catalogue or base cannot stand in a manifest.
            AirferryError: of the family of what failed.
        """
        try:
            return self._seal(built, originals=originals, attached=attached, rehearsal=rehearsal, by_engine=by_engine)
        except ValidationError as error:
            raise _unsayable(error) from error

    def _seal(
        self,
        built: Mapping[str, tuple[BuiltImage, ...]],
        *,
        originals: Mapping[str, Descriptor],
        attached: Sequence[Attached],
        rehearsal: RehearsalReport | None,
        by_engine: bool,
    ) -> tuple[BundleManifest, Sealed]:
        plan = self._plan
        started = clock.monotonic_s()
        self._session.emit(StageStarted("seal"))
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
        references = {entry.name: entry.reference for entry in entries}
        documents = {item["name"]: item for item in plan.to_document()["execution_groups"]}
        for group in plan.groups:
            subject = named[references[group.name]]
            group_entry, artifacts = self._describe_group(group, subject, documents[group.name])
            groups.append(group_entry)
            described += artifacts
        described.append(self._artifact(LOCK_ARTIFACT, ArtifactFile(LOCK_FILE, LOCK_CONTENT, self._lock_bytes)))
        assets = carry_assets(plan, self._store, self._journal, self._folder, emit=self._session.emit)
        described += assets.artifacts
        with files.scratch_directory(self._session.scratch) as scratch:
            catalogue = carry_catalogue(plan, self._store, scratch=scratch, emit=self._session.emit)
        if catalogue is not None:
            described.append(catalogue.artifact)
        if rehearsal is not None:
            content = ArtifactFile(REPORT_FILE, REHEARSAL_CONTENT, entries_json(rehearsal))
            described.append(self._artifact(REHEARSAL_ARTIFACT, content))
        loader = self._loader()
        if loader is not None:
            described.append(loader.artifact)
        saved = self._archives(entries, named)
        carried = put_originals(originals, self._session.bases.store, self._store)
        named |= originals
        described += put_attached(attached, self._session.bases.store, self._store)
        saved += [_saved(entry) for entry in carried]
        listed = [entry for entry, _descriptor in described]
        manifest = self._manifest([*entries, *carried], groups, listed, saved, assets.entries, loader)
        manifest = manifest.model_copy(
            update={
                "rehearsals": rehearsal.entries if rehearsal else (),
                "catalogue": catalogue.entry if catalogue else None,
                "submit": plan.config.source.carried_submit,
            }
        )
        if by_engine:
            versions = {**manifest.tool.versions, "engine": self._session.engine_version()}
            manifest = manifest.model_copy(update={"tool": manifest.tool.model_copy(update={"versions": versions})})
        sealed = seal(self._store, named, artifacts=[descriptor for _entry, descriptor in described], manifest=manifest)
        manifest = manifest.with_root(sealed.root)
        files.write_bytes(self._plan.output_dir / MANIFEST_FILE, manifest.to_yaml())
        twins = sum(entry.docker_twin is not None for entry in entries)
        detail = images_text(len(entries), twins=twins, originals=len(carried))
        self._session.emit(StageFinished("seal", clock.monotonic_s() - started, detail=detail))
        return manifest, sealed

    def _loader(self) -> CarriedLoader | None:
        choice = self._plan.config.loader
        if not choice:
            return None
        return carry_loader(
            choice,
            self._plan.platforms,
            self._store,
            journal=self._journal,
            wheels=self._session.wheels,
            scratch=self._session.scratch,
            emit=self._session.emit,
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
        self, group: GroupPlan, subject: Descriptor, document: Mapping[str, Any]
    ) -> tuple[GroupEntry, list[tuple[ArtifactEntry, Descriptor]]]:
        """Write the group's requirements and overlays next to the bundle and into it, and return its entry."""
        locked = self._lock.groups[group.name].platforms
        requirements = requirements_lines(locked)
        commits = [
            {**plain_data(overlay), "commit": self._lock.overlays[overlay.key].commit} for overlay in group.overlays
        ]
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
                **document,
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
        plan = self._plan
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
        path = self._plan.output_dir / tar
        action, inputs = f"archive {entry.reference}", {"digest": entry.digest, "tar": tar, "image": entry.image}
        noted = self._journal.result(action, inputs)
        known = as_noted(noted, lambda note: (str(note["sha256"]), int(note["size_bytes"])))
        if known is not None and path.is_file() and path.stat().st_size == known[1]:
            self._folder.note(tar, sha256=known[0], size_bytes=known[1])
            return known[0]
        written = write_oci_archive(
            self._store,
            image_shipments(self._store, descriptor, reference=entry.reference),
            path,
            docker_names=[entry.image],
            emit=self._session.emit,
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
        document = self._plan.to_document()
        persistent = document["persistent_assets"]
        baked = [
            {**plain_data(overlay), "commit": self._lock.overlays[overlay.key].commit}
            for overlay in self._plan.overlays
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
            compression=self._session.knowledge.layers.compression.kind,
            locks=(
                LockEntry(path=LOCK_FILE, sha256=hashlib.sha256(self._lock_bytes).hexdigest()),
                *([loader.lock] if loader else []),
            ),
            tool=ToolEntry(
                airferry=__version__,
                versions={"zstandard": zstandard.__version__},
            ),
            loader=loader.entry if loader else None,
        )


def _unsayable(error: ValidationError) -> BuildError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return BuildError(
        f"the manifest cannot hold `{where}` of its {error.title}: {first['msg'].removeprefix('Value error, ')}",
        hint="the far side refuses such names and texts: change them in the catalogue, the configuration or the base",
    )


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
