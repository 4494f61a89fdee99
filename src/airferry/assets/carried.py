"""Assets as a bundle or a registry has them: which one is meant, then its verification or unpacking."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from airferry.assets.staged import (
    AssetReport,
    Unpacked,
    bundle_assets,
    bundle_packs,
    compare_asset,
    read_asset_file,
    unpack_pack,
)
from airferry.bundle.verify import open_bundle
from airferry.errors import AirferryError, UsageError
from airferry.events import Emit, silent
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, open_clients
from airferry.registry.pulls import Pulls

REGISTRY_PREFIX = "docker://"

T = TypeVar("T")


def verify_asset(
    source: Path,
    path: Path,
    *,
    name: str | None = None,
    root: str | None = None,
    jobs: int | None = None,
    emit: Emit = silent,
) -> AssetReport:
    """Compare what is staged at a path with a manifest, given as its file or as the bundle that carries it.

    `name` says which asset of the bundle is meant, where it carries several; `root` is the bundle's digest.

    Raises:
        UsageError: there is no manifest, or no telling which is meant.
        HostError: the path is not there, or a folder cannot be read.
        IntegrityError: the bundle is another, or what it or the file holds is not a manifest.
    """
    if source.is_file():
        if root is not None:
            raise UsageError("`--root` requires a bundle", hint="give the bundle instead of the manifest file")
        manifest = read_asset_file(source)
    else:
        bundle = open_bundle(source, root=root)
        bundle.warn_beside(source, emit)
        manifest = _choose(bundle_assets(bundle), name, f"bundle `{source}` carries the manifest")
    return compare_asset(manifest, path, jobs=jobs, emit=emit)


def unpack_asset(
    source: str,
    destination: Path,
    *,
    name: str | None = None,
    root: str | None = None,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> Unpacked:
    """Unpack an asset that was packed, from a bundle or from a registry, into a folder that is absent or empty.

    Raises:
        UsageError: the destination is not empty, or there is no telling which asset is meant.
        IntegrityError: what is unpacked is damaged, not a ModelPack, or would leave the destination.
        RegistryError: the registry does not hand it over.
        HostError: the disk is full.
    """
    if not source.startswith(REGISTRY_PREFIX) and Path(source).exists():
        bundle = open_bundle(Path(source), root=root)
        bundle.warn_beside(Path(source), emit)
        descriptor = _choose(bundle_packs(bundle), name, f"bundle `{source}` carries the content")
        return unpack_pack(bundle.store, descriptor, destination, emit=emit)
    try:
        reference = parse_reference(source.removeprefix(REGISTRY_PREFIX))
    except AirferryError as error:
        raise UsageError(
            f"`{source}` is neither a bundle nor a reference: {error.message}",
            hint="name the output folder of a build, its bundle, or `HOST:PORT/REPO:TAG`",
        ) from error
    with open_clients(options or ClientOptions(), emit=emit) as clients:
        registry = Pulls(clients, emit=emit).source(reference)
        return unpack_pack(registry, registry.resolve(reference.target), destination, emit=emit)


def _choose(found: dict[str, T], name: str | None, what: str) -> T:
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name is not None and name in found:
        return found[name]
    wanted = f" of no asset `{name}`" if name is not None else f" of {len(found) or 'no'} assets"
    raise UsageError(
        f"{what}{wanted}",
        hint="name one: " + ", ".join(f"`--name {item}`" for item in found) if found else "see `assets:` of the plan",
    )
