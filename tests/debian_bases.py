"""A small bootstrapped Debian for two platforms, which tests of real builds share."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from airferry.config import BootstrapBase
from airferry.events import silent
from airferry.near.bases import debian
from airferry.near.bases.debian import BootstrapResult, bootstrap, store_userland
from airferry.oci.digest import digest_of
from airferry.oci.documents import IMAGE_CONFIG, Descriptor, parse_image_config, parse_manifest
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform, parse_platform

AMD64 = parse_platform("linux/amd64")
ARM64 = parse_platform("linux/arm64")
EPOCH_S = 1_700_000_000
DEBIAN = BootstrapBase(suite="bookworm", packages=("python3-minimal", "libpython3-stdlib"))


@dataclass(frozen=True)
class DebianBase:
    """A layout that holds one bootstrapped base for each platform."""

    layout: Path
    manifests: dict[Platform, Descriptor]
    results: dict[Platform, BootstrapResult]
    cache: Path

    def only(self, platform: Platform) -> DebianBase:
        """Return the base as one that there is for a single platform."""
        return replace(self, manifests={platform: self.manifests[platform]})

    def diff_ids(self, platform: Platform) -> list[str]:
        store = LayoutStore.open(self.layout, read_only=True)
        manifest = parse_manifest(store.read_bytes(self.manifests[platform]))
        assert manifest.config.media_type == IMAGE_CONFIG
        data = store.read_bytes(manifest.config)
        assert digest_of(data) == manifest.config.digest
        return list(parse_image_config(data).rootfs.diff_ids)


def write_debian(folder: Path) -> None:
    """Bootstrap both platforms side by side into a folder that `read_debian` reads."""
    store = LayoutStore.create(folder / "layout")

    def write(platform: Platform) -> tuple[Descriptor, BootstrapResult]:
        tar = folder / f"{platform.slug}.tar"
        result = bootstrap(DEBIAN, platform=platform, into=tar, cache=folder / "cache", epoch_s=EPOCH_S)
        made = store_userland(result, base=DEBIAN, platform=platform, epoch_s=EPOCH_S, store=store)
        return made, result

    platforms = (AMD64, ARM64)
    with ThreadPoolExecutor(len(platforms)) as pool:
        made = dict(zip(platforms, pool.map(write, platforms), strict=True))
    manifests = {platform: descriptor for platform, (descriptor, _) in made.items()}
    results = {platform: result for platform, (_, result) in made.items()}
    (folder / "made").write_bytes(pickle.dumps((manifests, results)))


def fetch_packages(base: BootstrapBase, platform: Platform, folder: Path) -> list[Path]:
    """Return the .deb files of what a base names and of all that it requires, without making a userland of them."""
    folder.mkdir()
    job = debian._Job(base, platform, folder, {}, EPOCH_S, silent)
    return debian._fetch(job, debian.PackageCache(folder / "packages"))


def read_debian(folder: Path) -> DebianBase:
    """Return what `write_debian` made in this run."""
    manifests, results = pickle.loads((folder / "made").read_bytes())
    return DebianBase(folder / "layout", manifests, results, folder / "cache")
