"""What a build will bring in, give out and need on disk, told before it begins, from what lock and cache know.

Fetches nothing, changes nothing and guesses nothing: unknown sizes are listed as unknown. Sizes of what is going
to be compressed are those before it, so that what comes out is at most as large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from airferry.config import ArchiveBase, BaseSpec, BootstrapBase, LayoutBase
from airferry.errors import AirferryError, ConfigurationError, HostError
from airferry.events import Emit, Warned, silent
from airferry.host import files
from airferry.host.canonical import plain_data
from airferry.host.yaml import MAX_DOCUMENT_VALUES, count_values
from airferry.near.assemble import context
from airferry.near.bases.layers import BaseLayers, compression_of
from airferry.near.carry.loader import expected_loader_bytes
from airferry.near.git import driver as git
from airferry.near.git.addresses import redact
from airferry.near.lock.covered import needed_bases
from airferry.near.wheels.store import WheelStore
from airferry.oci.archive import ArchiveSource
from airferry.oci.closure import flat_index, select_platforms
from airferry.oci.documents import (
    INDEX_TYPES,
    MAX_IMAGE_CONFIG_BYTES,
    Descriptor,
    parse_image_config,
)
from airferry.oci.layers import KINDS, layer_kind
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform
from airferry.oci.ports import Source
from airferry.plan.lockfile import LockedBase, LockedPlatform, Lockfile
from airferry.plan.models import LAUNCHER, Plan
from airferry.wording import counted

MARGIN_PERCENT = 10
# what is left of a layer, at the very least, when it is recompressed
LEAST_PART = {"gzip": 2, "zstd": 2, "none": 10}
# keys and values of a bundle's manifest, those that are left out where there is nothing to say not counted
IMAGE_VALUES = 26
PLATFORM_VALUES = 14
LAYER_VALUES = 13
ADDITION_VALUES = 9
ROOM_HINT = "free up space, or choose another folder with `AIRFERRY_CACHE` or `paths.output_dir`"


Part = Literal["base", "wheels", "checkout", "other"]


@dataclass(frozen=True, slots=True)
class Expected:
    """One thing that a bundle will be made of, in bytes, None where they are not known.

    `in_bytes` are yet to be fetched. `out_bytes` come into the output at most, and `least_bytes` however well they
    compress; `new_bytes` and `sure_bytes` are those parts of both that need room which they do not take yet.
    """

    what: str
    in_bytes: int | None
    out_bytes: int | None
    new_bytes: int = 0
    sure_bytes: int = 0
    least_bytes: int = 0
    part: Part = "other"

    @property
    def is_known(self) -> bool:
        """Whether all of it is known."""
        return self.in_bytes is not None and self.out_bytes is not None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a build is expected to take. `in_flight_bytes` are held on disk for a while only.

    `manifest_values` are the keys and values that the bundle's manifest will have at least.
    """

    items: tuple[Expected, ...]
    in_flight_bytes: int = 0
    manifest_values: int = 0

    @property
    def in_bytes(self) -> int:
        """What is yet to be fetched, as far as it is known."""
        return sum(item.in_bytes or 0 for item in self.items)

    @property
    def out_bytes(self) -> int:
        """What the output will hold at most, as far as it is known."""
        return sum(item.out_bytes or 0 for item in self.items)

    @property
    def new_bytes(self) -> int:
        """What the output will take at most that it does not take yet, as far as it is known."""
        return sum(item.new_bytes for item in self.items)

    @property
    def sure_bytes(self) -> int:
        """What the output will take in any case that it does not take yet, as far as it is known."""
        return sum(item.sure_bytes for item in self.items)

    @property
    def least_out_bytes(self) -> int:
        """What the output will hold in any case."""
        return sum(item.least_bytes for item in self.items)

    @property
    def least_disk_bytes(self) -> int:
        """What the build needs on disk in any case that is not taken yet."""
        return self.in_bytes + self.sure_bytes

    @property
    def bases(self) -> int:
        """How many bases there are, one for each platform."""
        return sum(item.part == "base" for item in self.items)

    @property
    def unknown(self) -> tuple[str, ...]:
        """What has a size that is not known before it was fetched, each once."""
        return tuple(dict.fromkeys(item.what for item in self.items if not item.is_known))

    @property
    def unknown_text(self) -> str:
        """What is not known, counted: bases of all bases, images whose wheels are not known, checkouts, the rest."""
        lacking = {item.what: item for item in self.items if not item.is_known}
        numbers = {part: sum(item.part == part for item in lacking.values()) for part in ("base", "wheels", "checkout")}
        words = []
        if number := numbers["base"]:
            words.append(f"{number} of {counted(self.bases, 'base')}")
        if number := numbers["wheels"]:
            words.append(f"wheels of {counted(number, 'image')}")
        if number := numbers["checkout"]:
            words.append(counted(number, "checkout"))
        return ", ".join([*words, *(what for what, item in lacking.items() if item.part == "other")])

    def disk_bytes(self) -> int:
        """Return what the build needs on disk that is not taken yet: what comes in and goes out, and a margin."""
        return _with_margin(self.in_bytes + self.new_bytes) + self.in_flight_bytes

    def to_document(self) -> dict[str, object]:
        """Return the prediction as plain data. The plain sizes are the most, where nothing is unknown."""
        return {
            **plain_data(self, "in_bytes", "out_bytes"),
            "disk_bytes": self.disk_bytes(),
            **plain_data(self, "least_out_bytes", "least_disk_bytes", "bases"),
            "unknown_bases": sum(item.part == "base" and not item.is_known for item in self.items),
            "unknown": list(self.unknown),
        }


@dataclass(frozen=True, slots=True)
class _Layers:
    """The layers of a base for one platform, with their diff_ids where its config is at hand."""

    descriptors: tuple[Descriptor, ...]
    diff_ids: tuple[str | None, ...]


class Predictor:
    """Looks at what is there: a plan's lock, the cache, which need not exist, and the bundle, which need not either."""

    def __init__(self, plan: Plan, lock: Lockfile, cache: Path) -> None:
        """Open what there is to look at."""
        self._plan = plan
        self._lock = lock
        self._cache = cache
        self._bases = _existing(cache / "bases")
        self._bundle = _existing(plan.output_dir / "bundle")
        self._carrier: BaseLayers | None = None
        self._layer_counts: dict[tuple[str, Platform], int] = {}
        if self._bases is not None and (cache / "layers").is_dir():
            self._carrier = BaseLayers(
                self._bases, cache, compression=compression_of(plan.compression), output=plan.output_dir
            )

    def predict(self, *, jobs: int = 1) -> Prediction:
        """Return what a build of the plan takes, with this many images in parallel."""
        plan = self._plan
        checkouts = list(self._checkouts())
        items = [*self._base_layers(), *self._wheels(), *checkouts]
        sealed = "save-images" in plan.stages
        if plan.launcher is not None:
            items.append(_added("the catalogue", self._catalogue_bytes(), times=len(plan.launcher.platforms)))
        if plan.config.loader and sealed:
            size_or_none = expected_loader_bytes(plan.config.loader, plan.platforms, self._cache)
            items.append(_added("airferry itself", size_or_none))
        for name, choice in plan.config.assets.items():
            if sealed and choice.pack and choice.path is not None:
                items.append(_added(f"asset `{name}`", _tree_bytes(choice.path)))
        if plan.archives and sealed:
            items.append(_added("archives", sum(item.out_bytes or 0 for item in items)))
        at_once = sorted((item.out_bytes or 0 for item in checkouts), reverse=True)[: max(1, jobs)]
        return Prediction(tuple(items), sum(at_once), self._manifest_values() if sealed else 0)

    def _manifest_values(self) -> int:
        """Return how many keys and values the manifest will have at least, as far as bases and lock are known."""
        plan = self._plan
        bases = {group.name: group.base_image.key for group in plan.groups}
        if plan.launcher is not None:
            bases[LAUNCHER] = plan.launcher.base_image.key
        values = count_values(plan.to_document()) + IMAGE_VALUES * len(bases)
        for name, platform, locked in self._environments():
            layers = self._layer_counts.get((bases[name], platform), 1)
            additions = len(locked.additions) if locked is not None else 0
            values += PLATFORM_VALUES + LAYER_VALUES * layers + ADDITION_VALUES * additions
        return values

    def _catalogue_bytes(self) -> int | None:
        try:
            configs = {PurePosixPath(item.name): item.source for item in self._plan.config_files}
            tracked = context.carried(self._plan.source_root, [self._plan.output_dir], configs)
            return sum(path.lstat().st_size for _name, path in tracked)
        except AirferryError:
            return None  # no Git repository, or no Git here

    # --- bases -------------------------------------------------------------------------------------------------------

    def _base_layers(self) -> Iterator[Expected]:
        seen: set[str] = set()
        for key, (base, platforms) in needed_bases(self._plan).items():
            for platform in platforms:
                what = f"base `{key}` for {platform}"
                if isinstance(base, BootstrapBase):
                    what = f"base `Debian {base.suite}` for {platform}"
                layers = self._layers_of(base, platform, self._lock.bases.get(key))
                if layers is None:
                    yield Expected(what, None, None, part="base")
                    continue
                self._layer_counts[key, platform] = len(layers.descriptors)
                fetch = out = new = sure = least = 0
                for descriptor, diff_id in zip(layers.descriptors, layers.diff_ids, strict=True):
                    if descriptor.digest in seen:
                        continue
                    seen.add(descriptor.digest)
                    fetch += 0 if self._bases is not None and self._bases.has_blob(descriptor) else descriptor.size
                    packed, linked = self._in_bundle(descriptor, diff_id)
                    out += packed
                    kept = packed // LEAST_PART[layer_kind(descriptor.media_type)]
                    least += kept
                    if not linked:
                        new += packed
                        sure += kept
                yield Expected(what, fetch, out, new, sure, least, "base")

    def _in_bundle(self, descriptor: Descriptor, diff_id: str | None) -> tuple[int, bool]:
        """Return what a layer takes in the bundle, at most, and whether that takes no further room."""
        if self._carrier is None or diff_id is None:
            return descriptor.size, False
        packed, linked = self._carrier.expected(descriptor, diff_id)
        return packed.size, linked or (self._bundle is not None and self._bundle.has_blob(packed))

    def _layers_of(self, base: BaseSpec, platform: Platform, locked: LockedBase | None) -> _Layers | None:
        pin = locked.platforms.get(str(platform)) if locked else None
        try:
            if pin is not None and self._bases is not None:
                held = self._bases.find_manifest(pin.manifest)
                if held is not None:
                    return _read_layers(self._bases, held.descriptor, platform)
            if isinstance(base, LayoutBase) and base.path.is_dir():
                layout = LayoutStore.open(base.path, read_only=True)
                top = layout.resolve((locked.index if locked else None) or base.reference or "")
                return _read_layers(layout, top, platform)
            if isinstance(base, ArchiveBase) and base.path.is_file():
                archive = ArchiveSource(base.path)
                top = archive.resolve((locked.index if locked else None) or base.reference or "")
                return _read_layers(archive, top, platform)
        except AirferryError:
            return None  # the build itself says what is wrong
        return None

    # --- what is added -----------------------------------------------------------------------------------------------

    def _wheels(self) -> Iterator[Expected]:
        counted: set[str] = set()
        for name, platform, locked in self._environments():
            if locked is None:
                yield Expected(f"wheels of `{name}` for {platform}", None, None, part="wheels")
                continue
            for item in locked.additions:
                size = WheelStore(self._cache).size_bytes(item.file, item.sha256) or None
                what = item.file if item.sha256 not in counted else ""
                counted.add(item.sha256)
                if size is not None or what:
                    yield _added(what, size, part="wheels")

    def _environments(self) -> Iterator[tuple[str, Platform, LockedPlatform | None]]:
        plan, lock = self._plan, self._lock
        for group in plan.groups:
            known = lock.groups.get(group.name)
            for platform in group.platforms:
                yield group.name, platform, known.platforms.get(str(platform)) if known else None
        for platform in plan.launcher.platforms if plan.launcher else ():
            yield LAUNCHER, platform, lock.launcher.platforms.get(str(platform)) if lock.launcher else None

    def _checkouts(self) -> Iterator[Expected]:
        sizes: dict[str, int | None] = {}
        for group in self._plan.groups:
            for overlay in group.overlays:
                known = self._lock.overlays.get(overlay.key)
                if overlay.key not in sizes:
                    sizes[overlay.key] = self._checkout_bytes(overlay.url, known.commit) if known else None
                size = sizes[overlay.key]
                what = f"checkout `{redact(overlay.url)}@{overlay.ref}`"
                yield _added(what, size, times=len(group.platforms), part="checkout")

    def _checkout_bytes(self, url: str, commit: str) -> int | None:
        try:
            return git.checkout_bytes(url, commit, cache=self._cache)
        except AirferryError:
            return None  # no Git here, or a damaged copy


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """What a build needs on a disk, in any case and at most, and what is free there."""

    folder: Path
    least_bytes: int
    most_bytes: int
    free_bytes: int


def disk_needs(prediction: Prediction, *, cache: Path, output: Path) -> list[DiskNeed]:
    """Return what a build needs on the disk of cache and output folder, or on both disks where these are two."""
    brought, in_flight = prediction.in_bytes, prediction.in_flight_bytes
    here, there = _nearest(cache), _nearest(output)
    needs = [(there, brought + prediction.sure_bytes, prediction.disk_bytes())]
    if here.stat().st_dev != there.stat().st_dev:
        needs = [
            (here, brought, _with_margin(brought) + in_flight),
            (there, prediction.sure_bytes, _with_margin(prediction.new_bytes)),
        ]
    return [DiskNeed(folder, least, most, files.free_bytes(folder)) for folder, least, most in needs]


def expect_readable(prediction: Prediction) -> None:
    """Refuse a plan whose bundle the far side would not read, as far as that is known before anything is built.

    Raises:
        ConfigurationError: its manifest would have more keys and values than are read.
    """
    if prediction.manifest_values > MAX_DOCUMENT_VALUES:
        parts = -(-prediction.manifest_values // MAX_DOCUMENT_VALUES)
        raise ConfigurationError(
            f"the bundle's manifest would have at least {prediction.manifest_values} keys and values, more than the "
            f"limit of {MAX_DOCUMENT_VALUES} that a far side reads",
            hint=f"split the plan into {parts} bundles or more: part of the steps each (`--target STEP,STEP`, or "
            "`workflow.stages` in another file), or one platform each (`--platform`), and another "
            "`paths.output_dir` for each; what they share is fetched and kept once",
        )


def ensure_room(prediction: Prediction, *, cache: Path, output: Path, emit: Emit = silent) -> None:
    """Refuse a build for which the disk surely has no room, and warn of one for which it may have none.

    Raises:
        HostError: it has less than is needed in any case, as far as that is known.
    """
    for room in disk_needs(prediction, cache=cache, output=output):
        says = f"{room.free_bytes / 1e9:.2f} GB are free at `{room.folder}`"
        if room.free_bytes < room.least_bytes:
            raise HostError(
                f"{says}, but the build needs at least {room.least_bytes / 1e9:.2f} GB more there",
                hint=ROOM_HINT,
                needed_bytes=room.least_bytes,
                free_bytes=room.free_bytes,
            )
        if room.free_bytes < room.most_bytes:
            needs = f"may need {room.most_bytes / 1e9:.2f} GB more there"
            if prediction.unknown:
                needs += f", plus an unknown amount for: {prediction.unknown_text}"
            emit(Warned(f"{says}, but the build {needs}", hint=ROOM_HINT))


def _added(what: str, size_bytes: int | None, *, times: int = 1, part: Part = "other") -> Expected:
    """Return what is laid over a base: it comes out once for each image and is known where it has been fetched."""
    if size_bytes is None:
        return Expected(what, None, None, part=part)
    whole = size_bytes * times
    return Expected(what, 0, whole, whole, least_bytes=whole // LEAST_PART["none"], part=part)


def _with_margin(size_bytes: int) -> int:
    return size_bytes + size_bytes * MARGIN_PERCENT // 100


def _nearest(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _existing(path: Path) -> LayoutStore | None:
    try:
        return LayoutStore.open(path, read_only=True) if path.is_dir() else None
    except AirferryError:
        return None


def _read_layers(source: Source, top: Descriptor, platform: Platform) -> _Layers | None:
    """Return a base's layers from where its documents are, or None where a layer is of no type that can be carried."""
    if top.media_type in INDEX_TYPES:
        index = flat_index(source, source.read_manifest(top).index)
        top = select_platforms(index, [platform], what=top.digest)[0]
    manifest = source.read_manifest(top).manifest
    with source.open_blob(manifest.config) as stream:
        config = parse_image_config(stream.read(MAX_IMAGE_CONFIG_BYTES))
    layers = tuple(manifest.layers)
    if any(layer.media_type not in KINDS for layer in layers):
        return None
    diff_ids: tuple[str | None, ...] = tuple(config.rootfs.diff_ids)
    return _Layers(layers, diff_ids if len(diff_ids) == len(layers) else (None,) * len(layers))


def _tree_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in [folder, *folder.rglob("*")] if path.is_file())
