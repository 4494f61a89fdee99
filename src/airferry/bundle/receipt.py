"""airgap-receipt.yaml: what the far side holds after a load, and under which references. Models only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from airferry.bundle.manifest import OverlayEntry, Role, StepsFolder, SubmitTemplate
from airferry.bundle.root import parse_root
from airferry.bundle.texts import (
    Distributions,
    EnvironmentText,
    ImageText,
    Line,
    PlatformText,
    TargetText,
    Word,
)
from airferry.config.assets import AssetName
from airferry.config.fields import ContainerPath, ModuleName, VariableName
from airferry.errors import HostError, IntegrityError
from airferry.host import files
from airferry.host.yaml import MAX_DOCUMENT_BYTES, from_yaml, to_yaml
from airferry.oci.digest import Digest

RECEIPT_SCHEMA_VERSION = 2
RECEIPT_FILE = "airgap-receipt.yaml"


class ReceiptTag(BaseModel):
    """A tag of an artifact, so that no garbage collection takes it, and what it pointed at before the load."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: ImageText
    digest: Digest
    previous_digest: Digest | None = None


class ReceiptTwin(ReceiptTag):
    """The Docker twin of an image: its tag, and the same pinned by digest, which enroot is given."""

    pinned: ImageText


class LeftOut(BaseModel):
    """An optional part that the registry refused, by the reference that it would have had, and the refusal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: ImageText
    digest: Digest
    reason: Line


class ReceiptImage(BaseModel):
    """An image in the registry: its tag, the same pinned by digest, and what the tag pointed at before the load.

    `image` is its name on the near side, `overlays` are the Git checkouts that were baked into it, `env` the variables
    that the plan sets in it, `distributions` the Python distributions that it holds on each platform, as far as that is
    known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Word
    role: Role
    image: ImageText
    reference: ImageText
    pinned: ImageText
    digest: Digest
    previous_digest: Digest | None = None
    platforms: tuple[PlatformText, ...] = ()
    overlays: tuple[OverlayEntry, ...] = ()
    env: dict[VariableName, EnvironmentText] = Field(default_factory=dict)
    distributions: dict[PlatformText, Distributions] = Field(default_factory=dict)
    docker_twin: ReceiptTwin | None = None


class ReceiptCatalogue(BaseModel):
    """The step catalogue in the registry: its artifact pinned by digest, and where its steps are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pinned: ImageText
    steps: StepsFolder
    package: ModuleName


class ReceiptAsset(BaseModel):
    """An asset that steps read from storage, and where: no step means all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AssetName
    kind: Word
    steps: tuple[Line, ...] = ()
    target: ContainerPath | None = None


class Receipt(BaseModel):
    """What a load left. `root_verified` says whether the root was compared with one from a separate channel.

    `steps` maps a step, or a target where configs of one step have different images, to its image pinned by digest.
    `left_out` is what the registry refused of that which a load can do without, `submit` is as in the manifest.
    Version 1 had none of `catalogue`, `assets`, `left_out`, `submit` and the images' `docker_twin`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1, 2] = 2
    bundle_root: Digest
    root_verified: bool
    registry: Word
    loaded_at: Line
    airferry: Line
    images: tuple[ReceiptImage, ...]
    steps: dict[TargetText, ImageText] = Field(default_factory=dict)
    targets: tuple[TargetText, ...] = ()
    submit: SubmitTemplate | None = None
    catalogue: ReceiptCatalogue | None = None
    assets: tuple[ReceiptAsset, ...] = ()
    artifacts: tuple[ImageText, ...] = ()
    artifact_tags: tuple[ReceiptTag, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def tags(self) -> tuple[ReceiptTag, ...]:
        """All tags that the load set: those of images, of their twins, of artifacts."""
        images = tuple(
            ReceiptTag(reference=image.reference, digest=image.digest, previous_digest=image.previous_digest)
            for image in self.images
        )
        twins = tuple(image.docker_twin for image in self.images if image.docker_twin is not None)
        return images + twins + self.artifact_tags

    def to_yaml(self) -> bytes:
        """Return the receipt as YAML."""
        return to_yaml(self)


def write_receipt(receipt: Receipt, path: Path) -> None:
    """Write a receipt, atomically and durably."""
    files.write_bytes(path, receipt.to_yaml())


def read_receipt(path: Path, *, root: str | None = None) -> Receipt:
    """Read a receipt, and compare the bundle that it is of with `root`, if given.

    Raises:
        HostError: the file cannot be read.
        IntegrityError: it is not a receipt, one of a newer version, or one of another bundle.
    """
    if not path.exists():
        raise HostError(
            f"there is no receipt `{path}`",
            hint="`airferry load BUNDLE --to HOST:PORT/PREFIX` writes `airgap-receipt.yaml` to the current folder, or "
            "where `--receipt FILE` or `--jobs DIR` says",
            path=str(path),
        )
    data = files.read_bounded(path, limit_bytes=MAX_DOCUMENT_BYTES)
    what = f"receipt `{path}`"
    receipt = from_yaml(Receipt, data, schema_version=RECEIPT_SCHEMA_VERSION, what=what)
    if root is not None and receipt.bundle_root != parse_root(root):
        raise IntegrityError(
            f"{what} is of bundle `{receipt.bundle_root}`, expected `{root}`",
            hint="use the receipt that loading this bundle wrote",
            root=receipt.bundle_root,
            expected=root,
        )
    return receipt
