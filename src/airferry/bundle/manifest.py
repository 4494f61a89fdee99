"""airgap-manifest.yaml: what was built, under the key names that Nemotron's users know, with digests.

Models and their builders only. The manifest that counts is an artifact inside the bundle; it names no root, as the
root covers it. Paths in it are relative to the output folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from airferry.bundle.texts import (
    Distributions,
    EnvironmentText,
    FileTitle,
    ImageText,
    Line,
    PlatformText,
    TargetText,
    Word,
)
from airferry.config.assets import AssetName
from airferry.config.fields import ContainerPath, ModuleName, Text, VariableName
from airferry.config.submit import SubmitText
from airferry.defaults import PERSISTENT_ASSETS_POLICY
from airferry.errors import IntegrityError
from airferry.host.yaml import from_yaml, to_yaml
from airferry.oci.closure import flat_index
from airferry.oci.digest import Digest
from airferry.oci.documents import (
    INDEX_TYPES,
    MAX_IMAGE_CONFIG_BYTES,
    MAX_SIZE,
    Descriptor,
    parse_image_config,
)
from airferry.oci.layers import LayerResult
from airferry.oci.layout import LayoutStore

BUNDLE_SCHEMA_VERSION = 2
MANIFEST_FILE = "airgap-manifest.yaml"

Role = Literal["launcher", "execution", "base"]


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\0" in value:
        raise ValueError("expected a folder inside the catalogue")
    return value


StepsFolder = Annotated[Text, AfterValidator(_inside)]


SubmitTemplate = SubmitText | Literal[""]


class _Own(BaseModel):
    """A part that only airferry defines."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Familiar(BaseModel):
    """A part that Nemotron's runner defines, where more keys may stand."""

    model_config = ConfigDict(frozen=True, extra="allow")


class LayerEntry(_Own):
    """A layer of one platform of an image. `original_digest` is the blob it was recompressed from.

    `unpacked_bytes` is None where the layer is carried as it came and was never opened.
    """

    digest: Digest
    size_bytes: int = Field(ge=0, lt=MAX_SIZE)
    media_type: Line
    diff_id: Digest
    unpacked_bytes: int | None = Field(default=None, ge=0, lt=MAX_SIZE)
    original_digest: Digest | None = None
    from_base: bool = False


class Addition(_Own):
    """A Python distribution that was added to a base."""

    name: Word
    version: Line
    file: Line
    sha256: Line


class PlatformEntry(_Own):
    """One platform of an image. `size_bytes` counts its manifest, config and layers; layers are bottom first."""

    digest: Digest
    size_bytes: int = Field(ge=0, lt=MAX_SIZE)
    unpacked_bytes: int | None = Field(default=None, ge=0, lt=MAX_SIZE)
    config_digest: Digest
    base_digest: Digest | None = None
    python: Line | None = None
    layers: tuple[LayerEntry, ...]
    additions: tuple[Addition, ...] = ()


class TwinEntry(_Own):
    """A Docker manifest list over the platforms of an image, under a separate name in index.json."""

    reference: ImageText
    digest: Digest


class ImageEntry(_Own):
    """An image of the bundle: `image` is the tag as planned, `reference` its full name in index.json.

    One of the role `base` is an original that others were built on: `image` is its name outside. `docker_twin` names
    the same platforms for enroot, where a registry hides OCI indexes from it.
    """

    name: Word
    role: Role
    image: ImageText
    reference: ImageText
    digest: Digest
    platforms: dict[PlatformText, PlatformEntry]
    docker_twin: TwinEntry | None = None


class ArtifactEntry(_Own):
    """An artifact of the bundle other than this manifest."""

    title: FileTitle
    artifact_type: Line
    digest: Digest
    size_bytes: int = Field(ge=0, lt=MAX_SIZE)
    subject: Digest | None = None


class ToolEntry(_Own):
    """What built the bundle: airferry's version, and those of the tools and encoders that shape bytes."""

    airferry: Line
    versions: dict[Line, Line] = Field(default_factory=dict)


class LoaderEntry(_Own):
    """Airferry itself for the far side: a plain tar in the bundle, and the Pythons and CPUs that it serves."""

    archive: Annotated[str, Field(pattern=r"^bundle/blobs/sha256/[0-9a-f]{64}$")]
    digest: Digest
    size_bytes: int = Field(ge=0, lt=MAX_SIZE)
    environments: tuple[Line, ...]


class LockEntry(_Own):
    """A lock that was followed: its path, and the digest of its bytes."""

    path: Line
    sha256: Line


class CatalogueEntry(_Own):
    """The step catalogue as an artifact: its digest, where its steps are, and how many files and bytes it unpacks to.

    `tracked` says whether it is what Git tracks; else it is what lay in the folder that holds the steps.
    """

    digest: Digest
    size_bytes: int = Field(ge=0, lt=MAX_SIZE)
    unpacked_bytes: int = Field(ge=0, lt=MAX_SIZE)
    files: int = Field(ge=0, lt=MAX_SIZE)
    steps: StepsFolder
    package: ModuleName
    tracked: bool = True


class TargetEntry(_Familiar):
    """A target and the files that it was validated from."""

    target: TargetText
    step_py: Line
    step_toml: Line
    config: Line | None = None
    module: Line | None = None


class OverlayEntry(_Familiar):
    """A Git checkout that was baked. `commit` is what `ref` was resolved to."""

    repo: Line
    url: Line
    ref: Line
    target: Line
    commit: Word | None = None


class GroupEntry(_Familiar):
    """An execution group, as Nemotron's runner writes it, with its platforms and targets."""

    name: Word
    image_names: tuple[Word, ...]
    base_image: Line | dict[str, Any]
    platforms: tuple[PlatformText, ...]
    tag: ImageText
    selected_image: ImageText
    tar: Line
    steps: tuple[TargetText, ...]
    targets: tuple[TargetText, ...] = ()
    pip_no_deps: bool = False
    env: dict[VariableName, EnvironmentText] = Field(default_factory=dict)
    distributions: dict[PlatformText, Distributions] = Field(default_factory=dict)
    candidate_imports: tuple[Line, ...] = ()
    missing_imports: tuple[Line, ...] = ()
    missing_core_imports: tuple[Line, ...] = ()
    requirements: tuple[Line, ...] = ()
    requirements_path: FileTitle | None = None
    repo_overlays: tuple[OverlayEntry, ...] = ()
    repo_overlays_path: FileTitle | None = None


class LauncherEntry(_Familiar):
    """The launcher image, as Nemotron's runner writes it, with its platforms."""

    base_image: Line | dict[str, Any]
    platforms: tuple[PlatformText, ...]
    tag: ImageText
    tar: Line
    env: dict[VariableName, EnvironmentText] = Field(default_factory=dict)


class SavedImage(_Familiar):
    """Where an image is: in the layout, under `reference`, and as a separate archive where `tar` says so."""

    role: Role
    name: Word
    image: ImageText
    layout: Word = "bundle"
    reference: ImageText
    digest: Digest
    tar: Line | None = None
    sha256: Line | None = None


class AssetEntry(_Own):
    """An asset that stays on storage: `manifest` is the artifact that lists its files, `pack` that which holds them."""

    name: AssetName
    kind: Word
    steps: tuple[Line, ...] = ()
    target: ContainerPath | None = None
    files: int = Field(ge=0, lt=MAX_SIZE)
    size_bytes: int = Field(ge=0, lt=MAX_SIZE)
    manifest: Digest
    pack: Digest | None = None


class AttemptEntry(_Own):
    """An attempt of a step to reach outside; `allowed` says whether the plan declares it."""

    host: Line
    port: int | None = None
    protocol: Line
    process: Line = ""
    place: Line = ""
    library: Line = ""
    seen: Literal["python", "network"]
    allowed: bool = False

    @property
    def where(self) -> str:
        """Host and port as people write them."""
        return host_and_port(self.host, self.port)


def host_and_port(host: str, port: int | None) -> str:
    """Return `HOST:PORT`, an IPv6 address in brackets, or the host alone."""
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class RehearsalEntry(_Own):
    """How a target fared in its image for one platform, in a network that leads nowhere.

    `reached` is `nothing`, `image`, `imported`, `config` or `started`; the next three say what ended it.
    """

    target: TargetText
    group: Word
    platform: PlatformText
    image: Digest
    command: tuple[Line, ...]
    reached: Line
    stopped_by: Line
    text: Line = ""
    place: Line = ""
    modules: int = Field(ge=0, lt=MAX_SIZE)
    missing: tuple[Line, ...] = ()
    attempts: tuple[AttemptEntry, ...] = ()


class PersistentAssets(_Familiar):
    """What does not travel in images, and the overlays that do."""

    policy: Line = PERSISTENT_ASSETS_POLICY
    assets: tuple[AssetEntry, ...] = ()
    mounts_from_configs: tuple[Any, ...] = ()
    baked_repo_overlays: tuple[OverlayEntry, ...] = ()


class BundleManifest(_Own):
    """The whole manifest. `root` stands only in the copy next to the bundle. Version 1 had no `catalogue`.

    `submit` is the command that submits a step, left out for Nemotron's own, empty where none is known.
    """

    schema_version: Literal[1, 2] = 2
    workflow: dict[str, Any]
    build_stages: tuple[Line, ...]
    targets: tuple[TargetEntry, ...] = ()
    execution_groups: tuple[GroupEntry, ...] = ()
    launcher_image: LauncherEntry | None = None
    step_execution_images: dict[TargetText, Word] = Field(default_factory=dict)
    saved_images: tuple[SavedImage, ...] = ()
    persistent_assets: PersistentAssets = PersistentAssets()
    submit: SubmitTemplate | None = None
    catalogue: CatalogueEntry | None = None
    images: tuple[ImageEntry, ...] = ()
    artifacts: tuple[ArtifactEntry, ...] = ()
    rehearsals: tuple[RehearsalEntry, ...] = ()
    compression: Line
    locks: tuple[LockEntry, ...] = ()
    tool: ToolEntry
    loader: LoaderEntry | None = None
    root: Digest | None = None

    def to_yaml(self) -> bytes:
        """Return the manifest as YAML, the same bytes for the same manifest."""
        return to_yaml(self)

    def with_root(self, root: str) -> BundleManifest:
        """Return the copy that goes next to the bundle, which names its root."""
        return self.model_copy(update={"root": root})


def read_manifest(data: bytes, *, what: str = f"`{MANIFEST_FILE}`") -> BundleManifest:
    """Return the manifest that YAML bytes hold.

    Raises:
        IntegrityError: they are no manifest, one of a newer version, or hold text that could do harm where it is shown.
    """
    return from_yaml(BundleManifest, data, schema_version=BUNDLE_SCHEMA_VERSION, what=what)


def describe_platform(
    store: LayoutStore,
    descriptor: Descriptor,
    *,
    layers: Iterable[LayerResult],
    base_layers: int = 0,
    base_digest: str | None = None,
    python: str | None = None,
    additions: Sequence[Addition] = (),
) -> PlatformEntry:
    """Return the entry of one platform, from its manifest in the store and what the layer pipeline said.

    `layers` must cover every layer of the manifest, in any order; the first `base_layers` of it came with the base.

    Raises:
        IntegrityError: the store does not hold what the descriptor names, or a layer is not covered.
    """
    manifest = store.read_manifest(descriptor).manifest
    config = parse_image_config(store.read_bytes(manifest.config, limit_bytes=MAX_IMAGE_CONFIG_BYTES))
    known = {(result.descriptor.digest, result.diff_id): result for result in layers}
    if len(manifest.layers) != len(config.rootfs.diff_ids):
        raise IntegrityError(
            f"manifest `{descriptor.digest}` has {len(manifest.layers)} layers, its config "
            f"{len(config.rootfs.diff_ids)} diff_ids",
            hint="the image was made wrongly: rebuild it, or use another base",
        )
    entries = []
    for number, (layer, diff_id) in enumerate(zip(manifest.layers, config.rootfs.diff_ids, strict=True)):
        result = known.get((layer.digest, diff_id))
        if result is None:
            raise IntegrityError(
                f"missing record of layer `{layer.digest}` of manifest `{descriptor.digest}`",
                hint="run `airferry build` again",
            )
        original = result.original.digest if result.original else None
        entries.append(
            LayerEntry(
                digest=layer.digest,
                size_bytes=layer.size,
                media_type=layer.media_type,
                diff_id=diff_id,
                unpacked_bytes=result.unpacked_bytes,
                original_digest=original if original != layer.digest else None,
                from_base=number < base_layers,
            )
        )
    return PlatformEntry(
        digest=descriptor.digest,
        size_bytes=descriptor.size + manifest.config.size + sum(layer.size for layer in manifest.layers),
        unpacked_bytes=sum(entry.unpacked_bytes or 0 for entry in entries),
        config_digest=manifest.config.digest,
        base_digest=base_digest,
        python=python,
        layers=tuple(entries),
        additions=tuple(sorted(additions, key=lambda addition: (addition.name, addition.version))),
    )


def describe_image(
    descriptor: Descriptor,
    *,
    name: str,
    role: Role,
    image: str,
    reference: str,
    platforms: Mapping[str, PlatformEntry],
) -> ImageEntry:
    """Return the entry of an image index, its platforms sorted."""
    ordered = {platform: platforms[platform] for platform in sorted(platforms)}
    return ImageEntry(
        name=name, role=role, image=image, reference=reference, digest=descriptor.digest, platforms=ordered
    )


def describe_original(store: LayoutStore, descriptor: Descriptor, *, reference: str) -> ImageEntry:
    """Return the entry of an image that is carried as it came, its platforms sorted; attestations are no platform.

    Raises:
        IntegrityError: the store does not hold what the descriptor names.
    """
    children = [descriptor]
    if descriptor.media_type in INDEX_TYPES:
        index = flat_index(store, store.read_manifest(descriptor).index)
        children = [child for child in index.manifests if child.is_runnable]
    platforms: dict[str, PlatformEntry] = {}
    for child in children:
        manifest = store.read_manifest(child).manifest
        config = parse_image_config(store.read_bytes(manifest.config, limit_bytes=MAX_IMAGE_CONFIG_BYTES))
        if len(manifest.layers) != len(config.rootfs.diff_ids):
            raise IntegrityError(
                f"manifest `{child.digest}` of `{reference}` and its config differ in their layers",
                hint="the image was made wrongly: rebuild it, or use another base",
            )
        layers = tuple(
            LayerEntry(
                digest=layer.digest,
                size_bytes=layer.size,
                media_type=layer.media_type,
                diff_id=diff_id,
                from_base=True,
            )
            for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True)
        )
        entry = PlatformEntry(
            digest=child.digest,
            size_bytes=child.size + manifest.config.size + sum(layer.size for layer in manifest.layers),
            config_digest=manifest.config.digest,
            layers=layers,
        )
        platforms.setdefault(str(child.platform_value() or config.platform_value()), entry)
    return describe_image(
        descriptor, name=reference, role="base", image=reference, reference=reference, platforms=platforms
    )
