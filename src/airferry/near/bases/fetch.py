"""Base images in the cache: resolved to digests, copied blob by blob for the platforms wanted, verified, kept as
they are.

The cache is one layout that every plan shares; what lies there under its digest is never fetched again. Documents of
Docker's media types get a twin in OCI's, since the engines' layouts and the bundle know only those; the original
digest stays the one that is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from airferry.config import ArchiveBase, BaseSpec, BootstrapBase, LayoutBase, RegistryBase
from airferry.errors import AirferryError, BuildError, ConfigurationError, HostError, IntegrityError
from airferry.events import Emit, StageFinished
from airferry.host import clock, files
from airferry.host.canonical import canonical_json, inputs_digest
from airferry.host.locks import Thing, making, own_scratch
from airferry.host.parsing import parse_json
from airferry.host.threads import parallel_map
from airferry.near.bases import debian
from airferry.near.bases.shared import RecentUserland, SharedLayout
from airferry.near.bases.tee import Learner, learning
from airferry.oci.archive import ArchiveSource
from airferry.oci.closure import RememberingSource, flat_index, select_platforms
from airferry.oci.copy import DEFAULT_JOBS, CopyOptions, copy_image
from airferry.oci.documents import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_TAR,
    DOCKER_MANIFEST,
    FOREIGN_LAYERS,
    IMAGE_CONFIG,
    IMAGE_MANIFEST,
    INDEX_TYPES,
    LAYER_GZIP,
    LAYER_TAR,
    MAX_IMAGE_CONFIG_BYTES,
    Descriptor,
    ImageConfig,
    Manifest,
    expect_one_meaning,
    parse_image_config,
)
from airferry.oci.layers import Compression
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform
from airferry.oci.ports import Source, Stored
from airferry.oci.reference import Reference
from airferry.plan.lockfile import LockedBase, LockedBasePlatform
from airferry.wording import counted, shell_line

_OCI_TYPES = {
    DOCKER_MANIFEST: IMAGE_MANIFEST,
    DOCKER_CONFIG: IMAGE_CONFIG,
    DOCKER_LAYER_GZIP: LAYER_GZIP,
    DOCKER_LAYER_TAR: LAYER_TAR,
    **FOREIGN_LAYERS,
}

BaseKind = Literal["registry", "layout", "archive", "bootstrap"]
OpenRegistry = Callable[[Reference], Source]


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base for one platform, whole in the cache.

    `digest` is the manifest's digest where the base came from, `manifest` describes the one in the cache, which is
    the same unless that was Docker's. `name` is the base as the plan writes it, `reference` its name in a registry.
    """

    name: str
    reference: str | None
    platform: Platform
    digest: str
    manifest: Descriptor
    config: ImageConfig
    config_bytes: bytes
    layers: tuple[Descriptor, ...]

    @property
    def user(self) -> str:
        """The user that the base's containers run as, `root` unless it says another."""
        return str((self.config.config or {}).get("User") or "root")

    @property
    def size_bytes(self) -> int:
        """The bytes of its layers as they are in the cache."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True)
class FoundBase:
    """A base that can be had: what of it is in the cache, and where the rest comes from. No layer was fetched yet.

    `source` is None where the rest is made on this host, or there is none.
    """

    base: BaseSpec
    locked: LockedBase | None
    images: Mapping[Platform, BaseImage]
    missing: tuple[Platform, ...]
    kind: BaseKind
    source: Source | None = None
    index: str | None = None
    children: Mapping[Platform, Descriptor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolvedBase:
    """A base for all platforms wanted, and what the lock file says of it."""

    images: Mapping[Platform, BaseImage]
    locked: LockedBase = field(repr=False)


class BaseCache:
    """Brings bases into the cache. Safe to use from threads and processes: each blob is fetched by one of them."""

    def __init__(self, cache: Path, *, open_registry: OpenRegistry, emit: Emit) -> None:
        """Open the cache's layout, made if it is missing."""
        self.store = SharedLayout(cache / "bases", cache=cache, emit=emit)
        self._cache = cache
        self.open_registry = open_registry
        self._emit = emit
        self._configs: dict[str, tuple[ImageConfig, bytes]] = {}
        self._asks_again = False

    def ask_again(self) -> None:
        """Take nothing that was made before for what no lock pins: somebody wants what there is now."""
        self._asks_again = True

    def bring(
        self,
        base: BaseSpec,
        platforms: Sequence[Platform],
        *,
        locked: LockedBase | None,
        learn: Learner | None = None,
    ) -> ResolvedBase:
        """Return a base for the platforms, from the cache where it is there, else fetched or made.

        The same as `find`, then `fetch`.
        """
        return self.fetch(self.find(base, platforms, locked=locked), learn=learn)

    def find(self, base: BaseSpec, platforms: Sequence[Platform], *, locked: LockedBase | None) -> FoundBase:
        """Find out where a base comes from, and whether it is there for the platforms. Fetches no layer.

        What `locked` pins is followed, to the digest; what it does not pin is resolved now.

        Raises:
            ConfigurationError: the base lacks a wanted platform, or is not where its path says.
            BuildError: it is no longer what the lock file pins.
            RegistryError: the registry does not answer, refuses, or has no such image.
            IntegrityError: bytes are not what a digest says.
        """
        pinned = dict(locked.platforms) if locked else {}
        images: dict[Platform, BaseImage] = {}
        for platform in platforms:
            pin = pinned.get(str(platform))
            if pin is not None and (image := self._cached(base, platform, pin.manifest)) is not None:
                images[platform] = image
        missing = tuple(platform for platform in platforms if platform not in images)
        if isinstance(base, BootstrapBase) or not missing:
            return FoundBase(base, locked, images, missing, "bootstrap")
        opened, reference, kind = open_base(base, open_registry=self.open_registry)
        source = RememberingSource(opened)
        pins = [pinned[str(platform)].manifest for platform in missing if str(platform) in pinned]
        top = source.resolve((locked.index if locked else None) or (pins[0] if pins else reference))
        read_config = partial(self._config, source, name=base.key)
        children = find_children(base.key, source, top, missing, read_config=read_config)
        for platform, child in children.items():
            if (pin := pinned.get(str(platform))) is not None and pin.manifest != child.digest:
                raise BuildError(
                    f"base `{base.key}` for `{platform}` is now `{child.digest}`, but the "
                    f"lock file pins `{pin.manifest}`",
                    hint=f"run `{shell_line(['airferry', 'lock', '--update', base.key])}` to accept the new one",
                )
        index = top.digest if top.media_type in INDEX_TYPES else None
        return FoundBase(base, locked, images, missing, kind, source, index, children)

    def fetch(self, found: FoundBase, *, learn: Learner | None = None) -> ResolvedBase:
        """Bring a base into the cache, or make it there. `learn` reads layers while they are fetched.

        Raises:
            ConfigurationError: its config is one for another platform.
            BuildError: it cannot be made, or comes out as something else than the lock file pins.
            RegistryError: the registry does not answer or refuses.
            IntegrityError: bytes are not what a digest says.
        """
        if not found.missing:
            assert found.locked is not None
            return ResolvedBase(found.images, found.locked)
        if isinstance(found.base, BootstrapBase):
            return self._bootstrap(found.base, found.missing, dict(found.images), found.locked)
        assert found.source is not None
        return self._copy(found, found.source, learn=learn)

    def _copy(self, found: FoundBase, source: Source, *, learn: Learner | None) -> ResolvedBase:
        name = found.base.key
        images = dict(found.images)
        pinned = dict(found.locked.platforms) if found.locked else {}
        for platform, child in found.children.items():
            stored = source.read_manifest(child)
            manifest = stored.manifest
            self._ensure_room(manifest, name=name)
            reader, jobs = source, DEFAULT_JOBS
            if learn is not None:
                reader = learning(source, self._diff_ids(source, manifest, name=name), learn)
                # as many as are learned at a time: two layers keep two cores busy; no more connections than usual
                jobs = min(2 * learn.at_once, DEFAULT_JOBS)
                if found.kind in ("layout", "archive"):
                    jobs = max(jobs, learn.at_once)
            options = CopyOptions(jobs=jobs, task=f"copy {child.digest}", emit=self._emit)
            copy_image(reader, self.store, child, options=options)
            image = self._image(found.base, platform, stored)
            _check_platforms(name, image.config, [platform])
            images[platform] = image
            pinned[str(platform)] = LockedBasePlatform(manifest=child.digest)
        return ResolvedBase(images, LockedBase(kind=found.kind, index=found.index, platforms=pinned))

    def _diff_ids(self, source: Source, manifest: Manifest, *, name: str) -> dict[str, str]:
        """Return the diff_ids of an image's layers by digest, as its config has them."""
        diff_ids = self._config(source, manifest, name=name).rootfs.diff_ids
        return {layer.digest: diff_id for layer, diff_id in zip(manifest.layers, diff_ids, strict=False)}

    def _config(self, source: Source, manifest: Manifest, *, name: str) -> ImageConfig:
        """Return an image's config, which is in the cache now."""
        if manifest.config.digest not in self._configs:
            with source.open_blob(manifest.config) as stream:
                self.store.put_blob(manifest.config, stream)
        return self._stored_config(manifest.config, name=name)[0]

    def _stored_config(self, descriptor: Descriptor, *, name: str) -> tuple[ImageConfig, bytes]:
        """Return a config that is in the cache, and its bytes; each is read and parsed once."""
        known = self._configs.get(descriptor.digest)
        if known is None:
            data = self.store.read_bytes(descriptor, limit_bytes=MAX_IMAGE_CONFIG_BYTES)
            known = parse_image_config(data, what=f"the config of `{name}`"), data
            self._configs[descriptor.digest] = known
        return known

    def _ensure_room(self, manifest: Manifest, *, name: str) -> None:
        """Refuse to fetch what the cache's disk has no room for, before the first byte of it."""
        missing = {layer.digest: layer.size for layer in manifest.layers if not self.store.has_blob(layer)}
        needed, free = sum(missing.values()), files.free_bytes(self.store.path)
        if free < needed:
            raise HostError(
                f"base `{name}` needs {needed / 1e9:.2f} GB to fetch, but only {free / 1e9:.2f} GB are free at "
                f"`{self.store.path}`",
                hint="free up space, or choose another folder with `AIRFERRY_CACHE`",
                needed_bytes=needed,
                free_bytes=free,
            )

    def _bootstrap(
        self,
        base: BootstrapBase,
        missing: Sequence[Platform],
        images: dict[Platform, BaseImage],
        locked: LockedBase | None,
    ) -> ResolvedBase:
        pinned = dict(locked.platforms) if locked else {}

        def make(platform: Platform) -> tuple[Descriptor, dict[str, str]]:
            pin = pinned.get(str(platform))
            return self._make_userland(base, platform, pins=pin.packages if pin else None)

        for platform, (descriptor, packages) in zip(missing, parallel_map(make, missing, jobs=2), strict=True):
            pin = pinned.get(str(platform))
            if pin is not None and pin.manifest != descriptor.digest:
                raise BuildError(
                    f"the bootstrapped base for `{platform}` has digest `{descriptor.digest}`, but the lock file pins "
                    f"`{pin.manifest}`",
                    hint="the version of mmdebstrap or airferry differs; run `airferry lock "
                    "--update` to accept the new one",
                )
            images[platform] = self._image(base, platform, self.store.read_manifest(descriptor))
            pinned[str(platform)] = LockedBasePlatform(manifest=descriptor.digest, packages=packages)
        return ResolvedBase(images, LockedBase(kind="bootstrap", index=None, platforms=pinned))

    def _make_userland(
        self, base: BootstrapBase, platform: Platform, *, pins: Mapping[str, str] | None
    ) -> tuple[Descriptor, dict[str, str]]:
        epoch_s = clock.source_date_epoch_s()
        key = {
            "base": base.key,
            "platform": str(platform),
            "epoch_s": epoch_s,
            "pins": dict(pins or {}),
            "mirrors": debian.mmdebstrap_mirrors(base, platform=platform),
        }
        made = RecentUserland(self._cache / "bootstrap" / "made", key)
        doing = f"making the userland of `{base.suite}` for {platform}"
        with making(self._cache, Thing.USERLAND, inputs_digest(key), doing=doing, emit=self._emit):
            if (known := made.meanwhile(self.store)) is not None:
                return known
            if not (pins or self._asks_again) and (known := made.recent(self.store)) is not None:
                stage = debian.bootstrap_stage(base, platform)
                self._emit(StageFinished(stage, 0.0, reused=True, detail=counted(len(known[1]), "package")))
                return known
            with own_scratch(self._cache / "bootstrap") as folder:
                result = debian.bootstrap(
                    base,
                    platform=platform,
                    into=folder / "userland.tar",
                    cache=self._cache / "bootstrap",
                    epoch_s=epoch_s,
                    pins=pins,
                    emit=self._emit,
                )
                descriptor = debian.store_userland(
                    result, base=base, platform=platform, epoch_s=epoch_s, store=self.store, compression=Compression()
                )
            made.note(descriptor, result.packages)
        return descriptor, result.packages

    def _cached(self, base: BaseSpec, platform: Platform, digest: str) -> BaseImage | None:
        """Return the pinned image if all of it is in the cache."""
        stored = self.store.find_manifest(digest)
        try:
            image = self._image(base, platform, stored) if stored is not None else None
        except AirferryError:
            image = None
        if image is None:
            for document in (digest, *([stored.manifest.config.digest] if stored is not None else [])):
                self.store.remove_damaged(document)
            return None
        return image if all(self.store.has_blob(layer) for layer in image.layers) else None

    def _image(self, base: BaseSpec, platform: Platform, original: Stored) -> BaseImage:
        """Return a base's image that is in the cache; `original` is its manifest as it came."""
        name = base.key
        reference = str(base.parsed) if isinstance(base, RegistryBase) else None
        own = self._in_oci_types(original)
        manifest = own.manifest
        config, config_bytes = self._stored_config(manifest.config, name=name)
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise IntegrityError(
                f"base `{name}` has {len(manifest.layers)} layers, but its config names {len(config.rootfs.diff_ids)}",
                hint="the image was made wrongly: name another base, or tell its maker",
            )
        # images are made of it by programs that each read it in their own way
        _expect_one_meaning(original.data, original.manifest.media_type or IMAGE_MANIFEST, "manifest", name)
        _expect_one_meaning(config_bytes, IMAGE_CONFIG, "config", name)
        digest = original.descriptor.digest
        return BaseImage(
            name, reference, platform, digest, own.descriptor, config, config_bytes, tuple(manifest.layers)
        )

    def _in_oci_types(self, stored: Stored) -> Stored:
        """Return a manifest of OCI's types, in the cache, for one of Docker's or foreign layers; others as they are.

        It has no `urls`, where engines would fetch such layers although they are there.
        """
        manifest = stored.manifest
        is_foreign = any(layer.media_type in FOREIGN_LAYERS for layer in manifest.layers)
        if manifest.media_type in (None, IMAGE_MANIFEST) and not is_foreign:
            return stored
        document = parse_json(stored.data)
        document["mediaType"] = IMAGE_MANIFEST
        for part in (document["config"], *(document["layers"] or ())):
            part["mediaType"] = _OCI_TYPES.get(part["mediaType"], part["mediaType"])
            part.pop("urls", None)
        data = canonical_json(document)
        return Stored(self.store.put_bytes(data, IMAGE_MANIFEST), data)


def _expect_one_meaning(data: bytes, media_type: str, role: str, name: str) -> None:
    expect_one_meaning(
        data,
        media_type,
        what=f"base `{name}`: its {role}",
        hint="the tool that wrote it is at fault: have the base rebuilt, or choose another",
    )


def open_base(
    base: RegistryBase | LayoutBase | ArchiveBase, *, open_registry: OpenRegistry
) -> tuple[Source, str, BaseKind]:
    """Open where a base is read from, and return it with the tag, digest or name to ask it for.

    Raises:
        ConfigurationError: there is nothing at its path.
    """
    if isinstance(base, RegistryBase):
        return open_registry(base.parsed), base.parsed.target, "registry"
    if not base.path.exists():
        raise ConfigurationError(
            f"`{base.key}`: `{base.path}` does not exist",
            hint="paths are relative to the configuration file; `skopeo copy` writes a base as `oci:DIR:NAME`",
        )
    if isinstance(base, LayoutBase):
        return LayoutStore.open(base.path, read_only=True), base.reference or "", "layout"
    return ArchiveSource(base.path), base.reference or "", "archive"


def find_children(
    name: str,
    source: Source,
    top: Descriptor,
    platforms: Sequence[Platform],
    *,
    read_config: Callable[[Manifest], ImageConfig],
) -> dict[Platform, Descriptor]:
    """Return a base's manifest for each platform: those of an index, or the only one, if its config is for them.

    Raises:
        ConfigurationError: the base lacks a platform; all that it lacks are named.
    """
    if top.media_type not in INDEX_TYPES:
        _check_platforms(name, read_config(source.read_manifest(top).manifest), platforms)
        return dict.fromkeys(platforms, top)
    index = flat_index(source, source.read_manifest(top).index)
    children: dict[Platform, Descriptor] = {}
    lacking: list[BuildError] = []
    for platform in platforms:
        try:
            children[platform] = select_platforms(index, [platform], what=f"base `{name}`")[0]
        except BuildError as error:
            lacking.append(error)
    if lacking:
        named = ", ".join(f"`{platform}`" for platform in platforms if platform not in children)
        hint = _without_variant(platform for platform in platforms if platform not in children)
        raise ConfigurationError(
            f"base `{name}` has no image for {named}", hint="; ".join(filter(None, (lacking[0].hint, hint)))
        ) from lacking[0]
    return children


def _without_variant(refused: Iterable[Platform]) -> str:
    """Return the way out for CPUs that also run what is made for less: few bases are made for one variant of amd64."""
    for platform in refused:
        if platform.variant and platform.architecture == "amd64":
            plain = replace(platform, variant="")
            return f"an image for `{plain}` also runs on `{platform}`, so `{plain}` is enough under `platforms:`"
    return ""


def _check_platforms(name: str, config: ImageConfig, platforms: Sequence[Platform]) -> None:
    """Refuse a base whose config is for another platform than one of those wanted."""
    refused = [platform for platform in platforms if not platform.accepts(config.platform_value())]
    if refused:
        named = " or ".join(f"`{platform}`" for platform in refused)
        raise ConfigurationError(
            f"base `{name}` is for `{config.platform_value()}`, not for {named}",
            hint=_without_variant(refused) or "choose another base, or another `platforms:`",
        )
