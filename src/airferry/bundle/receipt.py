"""airgap-receipt-….yaml: what the far side holds after a load, and under which references. Models, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
from airferry.defaults import BUNDLE_FOLDER, RECEIPT_STEM
from airferry.errors import HostError, IntegrityError, UsageError, advising
from airferry.events import Emit, Notice, silent
from airferry.host import files
from airferry.host.yaml import MAX_DOCUMENT_BYTES, from_yaml, to_yaml
from airferry.oci.digest import Digest
from airferry.wording import shell_line, some_of

if TYPE_CHECKING:
    from airferry.registry.client import ClientOptions

RECEIPT_SCHEMA_VERSION = 2
SHOWN_RECEIPTS = 10
RECEIPT_AGAIN = (
    "copy the receipt again from where `airferry load` wrote it, or run that load again: it sends nothing twice"
)
NO_RECEIPT_HINT = (
    f"`airferry load BUNDLE --to HOST:PORT/PREFIX` writes `{RECEIPT_STEM}-….yaml` to the current folder, or where "
    "`--receipt FILE` or `--jobs DIR` says"
)


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


class ReceiptConnection(BaseModel):
    """How the registry was reached: over TLS or not, and the SHA-256 fingerprints of the CAs that were given for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tls: bool
    ca_fingerprints: tuple[Digest, ...] = ()


class ReceiptBlobs(BaseModel):
    """Blobs of a load: how many it hashed, and the digests of those that the registry held and that were not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hashed: int = Field(ge=0)
    found: tuple[Digest, ...] = ()


class Receipt(BaseModel):
    """What a load left. `root_verified` says whether the root was compared with one from a separate channel.

    `steps` maps a step, or a target where configs of one step have different images, to its image pinned by digest.
    `left_out` is what the registry refused of that which a load can do without, `submit` is as in the manifest.
    `loaded_at` is when the bundle was loaded first, `loaded_again_at` when it was loaded last after that, and
    `rolled_back_at` when all its tags were put back last. Version 1 had none of these two, `connection`, `blobs`,
    `catalogue`, `assets`, `left_out`, `submit` and the images' `docker_twin`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1, 2] = 2
    bundle_root: Digest
    root_verified: bool
    registry: Word
    connection: ReceiptConnection | None = None
    blobs: ReceiptBlobs | None = None
    loaded_at: Line
    loaded_again_at: Line | None = None
    rolled_back_at: Line | None = None
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

    @property
    def last_loaded_at(self) -> str:
        """When the bundle was loaded last."""
        return self.loaded_again_at or self.loaded_at

    @property
    def rolled_back(self) -> bool:
        """Whether the tags were put back after the last load, as far as the receipt knows."""
        return self.rolled_back_at is not None and self.rolled_back_at >= self.last_loaded_at

    def after(self, earlier: Receipt | None) -> Receipt:
        """Return the receipt of a repeated load of the same bundle, with what only the earlier one knows.

        The root is the same digest: if it was compared once, it stays compared.
        """
        if earlier is None or (earlier.registry, earlier.bundle_root) != (self.registry, self.bundle_root):
            return self
        return self.model_copy(
            update={
                "root_verified": self.root_verified or earlier.root_verified,
                "loaded_at": earlier.loaded_at,
                "loaded_again_at": self.loaded_at,
                "rolled_back_at": earlier.rolled_back_at,
            }
        )

    def reached_with(self, options: ClientOptions) -> ClientOptions:
        """Return options by which the registry is reached as the load reached it, where they leave that open.

        A private CA is not in a receipt: only its fingerprint is.
        """
        if self.connection is None or options.plain_http is not None or options.ca_file:
            return options
        # not above, as most of what reads receipts needs no registry
        from airferry.registry.tls import BY_RECEIPT, CA_OF_RECEIPT

        if self.connection.tls:
            return replace(options, told=CA_OF_RECEIPT) if self.connection.ca_fingerprints else options
        return replace(options, plain_http=True, told=BY_RECEIPT)

    def to_yaml(self) -> bytes:
        """Return the receipt as YAML."""
        return to_yaml(self)


def write_receipt(receipt: Receipt, path: Path) -> None:
    """Write a receipt, atomically and durably. Everybody may read it, and its folder where that is made for it."""
    place = files.output_file(path)
    # `load --jobs` puts here what jobs of other users read
    files.ensure_directory(place.parent, shared=True)
    files.write_bytes(place, receipt.to_yaml())


def is_receipt_name(name: str) -> bool:
    """Tell whether receipts have such a name, unless `--receipt` gives them another."""
    return name == f"{RECEIPT_STEM}.yaml" or (name.startswith(f"{RECEIPT_STEM}-") and name.endswith(".yaml"))


def locate_receipt(path: Path, *, registry: str | None = None, root: str | None = None) -> Path:
    """Return the receipt that a path names: the file itself, or the only one in a folder.

    Among several in a folder, `registry` (with its prefix) and `root` choose the load that it is of.

    Raises:
        HostError: there is none, or the folder cannot be read.
        UsageError: there are several.
        IntegrityError: one of several is not a receipt.
    """
    if not path.is_dir():
        if not path.exists():
            others = receipts_in(path.parent) if path.parent.is_dir() else []
            raise HostError(
                f"there is no receipt `{path}`",
                hint=f"this folder has {_listed(others)}" if others else NO_RECEIPT_HINT,
                path=str(path),
            )
        return path
    found = receipts_in(path)
    if len(found) > 1 and (registry is not None or root is not None):
        place = registry.removeprefix("docker://").strip().rstrip("/") if registry is not None else None
        of_root = parse_root(root) if root is not None else None
        receipts = {one: read_receipt(one) for one in found}
        matching = [
            one
            for one, receipt in receipts.items()
            if place in (None, receipt.registry) and of_root in (None, receipt.bundle_root)
        ]
        if not matching:
            raise HostError(
                f"no receipt in `{path}` is of this destination and root",
                hint=f"name one of {_listed(found)}",
                path=str(path),
            )
        found = matching
    if not found:
        below = receipt_folders_below(path)
        hint = f"name the folder that has one: {_listed(below)}" if below else NO_RECEIPT_HINT
        raise HostError(f"there is no receipt in `{path}`", hint=hint, path=str(path))
    if len(found) > 1:
        command = shell_line(["airferry", "history", path])
        raise UsageError(
            f"there are several receipts in `{path}`, from different loads:\n" + "\n".join(_told_apart(found)),
            hint=f"name the file of the load that is meant; `{command}` lists them",
        )
    return found[0]


def receipts_in(folder: Path) -> list[Path]:
    """Return the files in a folder that have the name of a receipt, sorted.

    Raises:
        HostError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if is_receipt_name(path.name) and path.is_file())
    except OSError as error:
        raise files.translate_os_error(error, doing="read folder", path=folder) from error


def receipt_folders_below(folder: Path) -> list[Path]:
    """Return the direct sub-folders with receipts, as `load --jobs DIR` leaves one; none where that cannot be read.

    They are for hints, and never taken by themselves: what was carried over may hold forged ones, and is left out.
    """
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        return [path for path in below if names_receipt(path)]
    except (OSError, HostError):
        return []


def names_receipt(path: Path) -> bool:
    """Tell whether a path that may be a bundle or a receipt is the latter: a file, or a folder with nothing else.

    What was carried over is a bundle, whatever else lies in it.

    Raises:
        HostError: the folder cannot be read.
    """
    if not path.is_dir():
        return path.is_file()
    return not any((path / name).exists() for name in ("oci-layout", BUNDLE_FOLDER)) and bool(receipts_in(path))


def _told_apart(paths: list[Path]) -> list[str]:
    """Return a line for each receipt with what its load was of, the latest first."""
    told: list[tuple[str, str]] = []
    for path in paths:
        try:
            receipt = read_receipt(path)
        except (HostError, IntegrityError):
            told.append(("", f"`{path}`: cannot be read as a receipt"))
        else:
            shown = f"`{path}`: into {receipt.registry}, root {receipt.bundle_root[:23]}…, {receipt.last_loaded_at}"
            told.append((receipt.last_loaded_at, shown))
    lines = [line for _, line in sorted(told, reverse=True)]
    left = len(lines) - SHOWN_RECEIPTS
    return lines[:SHOWN_RECEIPTS] + ([f"and {left} more"] if left > 0 else [])


def _listed(paths: list[Path]) -> str:
    return some_of([f"`{path}`" for path in paths], SHOWN_RECEIPTS)


def find_receipt(path: Path, *, root: str | None = None, emit: Emit = silent) -> Receipt:
    """Read a receipt, or that of a folder which describes what the registry holds now, for what jobs are made from it.

    Of several of one destination, that is the one of the latest load that was not rolled back, and a notice says which.
    `root` chooses the bundle, and is compared.

    Raises:
        UsageError: receipts of several destinations are in the folder.
        HostError: there is none, or it cannot be read.
        IntegrityError: it is not a receipt, one of a newer version, or one of another bundle.
    """
    places = receipts_in(path) if path.is_dir() and root is None else []
    if len(places) > 1:
        receipts = {place: read_receipt(place) for place in places}
        if len({receipt.registry for receipt in receipts.values()}) == 1:
            standing = [place for place in places if not receipts[place].rolled_back] or places
            latest = max(standing, key=lambda place: (receipts[place].last_loaded_at, place))
            emit(
                Notice(
                    f"{len(places)} receipts in `{path}`; taking that of the latest load, `{latest.name}`, "
                    f"of {receipts[latest].last_loaded_at}"
                )
            )
            return receipts[latest]
    return read_receipt(locate_receipt(path, root=root), root=root)


def read_receipt(path: Path, *, root: str | None = None) -> Receipt:
    """Read a receipt, or the only one in a folder, and compare the bundle that it is of with `root`, if given.

    Raises:
        UsageError: there are several in the folder.
        HostError: there is none, or it cannot be read.
        IntegrityError: it is not a receipt, one of a newer version, or one of another bundle.
    """
    path = locate_receipt(path)
    data = files.read_bounded(path, limit_bytes=MAX_DOCUMENT_BYTES)
    what = f"receipt `{path}`"
    with advising(RECEIPT_AGAIN):
        receipt = from_yaml(Receipt, data, schema_version=RECEIPT_SCHEMA_VERSION, what=what)
    if root is not None and receipt.bundle_root != parse_root(root):
        raise IntegrityError(
            f"{what} is of bundle `{receipt.bundle_root}`, expected `{root}`",
            hint="use the receipt that loading this bundle wrote",
            root=receipt.bundle_root,
            expected=root,
        )
    return receipt
