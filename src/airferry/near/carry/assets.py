"""What a bundle carries of a plan's assets: a manifest each, and where it was asked for, the content as a ModelPack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airferry.assets.manifest import (
    ASSET_ARTIFACT,
    ASSET_CONTENT,
    MAX_ASSET_MANIFEST_BYTES,
    MODELPACK_ARTIFACT,
    AssetManifest,
    asset_file_name,
    parse_asset_manifest,
)
from airferry.assets.record import PACK_VERSION, hash_asset, pack_asset
from airferry.bundle.artifacts import ArtifactFile, artifact_is_whole, put_artifact
from airferry.bundle.manifest import ArtifactEntry, AssetEntry
from airferry.config.assets import AssetChoice
from airferry.errors import AirferryError
from airferry.events import Emit, StageFinished, StageStarted
from airferry.host import clock, files
from airferry.host.journal import Journal
from airferry.host.records import as_noted
from airferry.near.output_folder import OutputFolder
from airferry.oci.documents import Descriptor
from airferry.oci.layout import LayoutStore
from airferry.plan.models import Plan
from airferry.wording import counted


@dataclass(frozen=True, slots=True)
class CarriedAssets:
    """The assets of a bundle and their artifacts."""

    entries: tuple[AssetEntry, ...] = ()
    artifacts: tuple[tuple[ArtifactEntry, Descriptor], ...] = ()


def carry_assets(
    plan: Plan, store: LayoutStore, journal: Journal, folder: OutputFolder, *, emit: Emit
) -> CarriedAssets:
    """Record or read the manifest of each asset of the plan, write it next to the bundle, and store what is carried.

    Files that are as they were when they were last hashed are not read again, unless they are packed again.

    Raises:
        ConfigurationError: a manifest that the file names is none, or cannot be read.
        AirferryError: as `hash_asset` and `pack_asset` raise.
    """
    entries: list[AssetEntry] = []
    artifacts: list[tuple[ArtifactEntry, Descriptor]] = []
    for name, choice in sorted(plan.config.assets.items()):
        started_s = clock.monotonic_s()
        emit(StageStarted(f"asset {name}"))
        manifest = _manifest(plan, name, choice, emit)
        title = asset_file_name(name)
        folder.write(title, manifest.to_bytes())
        listed = put_artifact(store, ASSET_ARTIFACT, contents=[ArtifactFile(title, ASSET_CONTENT, manifest.to_bytes())])
        artifacts.append((_entry(title, ASSET_ARTIFACT, listed), listed))
        packed = None
        if choice.pack:
            packed = _pack(store, journal, manifest, choice, emit)
            artifacts.append((_entry(name, MODELPACK_ARTIFACT, packed), packed))
        entries.append(
            AssetEntry(
                name=name,
                kind=manifest.kind,
                steps=tuple(plan.own_names.get(name, name) for name in choice.steps),
                target=choice.target,
                files=len(manifest.files),
                size_bytes=manifest.size_bytes,
                manifest=listed.digest,
                pack=packed.digest if packed else None,
            )
        )
        emit(
            StageFinished(f"asset {name}", clock.monotonic_s() - started_s, detail=counted(len(manifest.files), "file"))
        )
    return CarriedAssets(tuple(entries), tuple(artifacts))


def _manifest(plan: Plan, name: str, choice: AssetChoice, emit: Emit) -> AssetManifest:
    if choice.path is not None:
        return hash_asset(choice.path, name=name, kind=choice.kind, emit=emit)
    assert choice.manifest is not None
    try:
        data = files.read_bounded(choice.manifest, limit_bytes=MAX_ASSET_MANIFEST_BYTES)
        read = parse_asset_manifest(data, what=f"`{choice.manifest}`")
    except AirferryError as error:
        raise plan.config.error(
            "assets", name, "manifest", reason=error.message, hint="write it with `airferry assets record`"
        ) from error
    return AssetManifest(name, read.kind if choice.kind == "other" else choice.kind, read.files, read.links)


def _pack(store: LayoutStore, journal: Journal, manifest: AssetManifest, choice: AssetChoice, emit: Emit) -> Descriptor:
    inputs: dict[str, Any] = {"manifest": manifest.digest, "version": PACK_VERSION}
    known = as_noted(journal.result(pack_action(manifest.name), inputs), Descriptor.model_validate)
    if known is not None and artifact_is_whole(store, known):
        return known
    assert choice.path is not None
    descriptor = pack_asset(store, manifest, choice.path, emit=emit)
    journal.record(pack_action(manifest.name), inputs, descriptor.model_dump(by_alias=True, exclude_none=True))
    return descriptor


def pack_action(name: str) -> str:
    """Return the name of the action in the journal that packs an asset."""
    return f"pack {name}"


def _entry(title: str, artifact_type: str, descriptor: Descriptor) -> ArtifactEntry:
    return ArtifactEntry(title=title, artifact_type=artifact_type, digest=descriptor.digest, size_bytes=descriptor.size)
