"""The base images of a plan as their registries have them, carried for mirrors: bytes and digests untouched.

They go into the bundle next to the images that were built on them, under their own names. Nothing is recompressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from airferry.bundle.manifest import ImageEntry, describe_original
from airferry.config import RegistryBase
from airferry.errors import AirferryError, BuildError, IntegrityError
from airferry.near.bases.fetch import BaseCache
from airferry.near.lock.covered import needed_bases
from airferry.oci.closure import RememberingSource, read_closure
from airferry.oci.copy import CopyOptions, copy_image
from airferry.oci.documents import INDEX_TYPES, Descriptor
from airferry.oci.layout import LayoutStore, UnlistedLayout
from airferry.oci.ports import Source
from airferry.oci.reference import parse_reference
from airferry.plan.lockfile import LockedBase, Lockfile
from airferry.plan.models import Plan


def bring_originals(plan: Plan, lock: Lockfile, cache: BaseCache) -> dict[str, Descriptor]:
    """Bring the plan's registry bases whole into the cache, and return them by the names that the bundle gives them.

    With `bases: include` an index keeps every child that its registry has, with `platforms` only those that the plan
    needs; it then has another digest, its children do not. Empty with `omit`. What is in the cache is not fetched.

    Raises:
        BuildError: a base cannot be copied whole.
        RegistryError: the registry does not answer or refuses.
    """
    choice = plan.config.bases
    found: dict[str, Descriptor] = {}
    for base, platforms in needed_bases(plan).values() if choice != "omit" else ():
        if not isinstance(base, RegistryBase):
            continue
        locked = lock.bases[base.key]
        pinned = pinned_top(locked)
        source: Source = cache.store
        held = cache.store.find_manifest(pinned)
        top = held.descriptor if held is not None else None
        if top is None or (choice == "include" and not _is_whole(cache.store, top)):
            source = RememberingSource(cache.open_registry(base.parsed))
            top = source.resolve(pinned)
            cache.store.put_bytes(source.read_manifest(top).data, top.media_type)
        try:
            copied = copy_image(source, cache.store, top, platforms=platforms if choice == "platforms" else None)
        except AirferryError as error:
            raise BuildError(
                f"base `{base.reference}` cannot be carried as it is: {error.message}",
                hint="`bases: platforms` carries only what the plan's platforms need",
            ) from error
        found[original_name(base.reference)] = copied
    return found


def put_originals(originals: Mapping[str, Descriptor], cache: LayoutStore, bundle: LayoutStore) -> list[ImageEntry]:
    """Put originals from the cache into the bundle, linked where the file system can, and return their entries.

    Raises:
        IntegrityError: the cache lacks something, or holds what is not the blob.
    """
    entries = []
    # an older bundle in the same folder stays what its root says until it is sealed again
    sink = UnlistedLayout(bundle.path, read_only=False)
    for name, descriptor in originals.items():
        copy_image(cache, sink, descriptor, options=CopyOptions(link=True))
        entries.append(describe_original(bundle, descriptor, reference=name))
    return entries


def pinned_top(locked: LockedBase) -> str:
    """Return the digest that a base's reference had."""
    return locked.index or next(iter(locked.platforms.values())).manifest


def original_name(reference: str) -> str:
    """Return the name of a base in the bundle: in full; without its digest where it has a tag."""
    parsed = parse_reference(reference)
    return str(replace(parsed, digest=None) if parsed.tag else parsed)


def _is_whole(store: LayoutStore, top: Descriptor) -> bool:
    try:
        closure = read_closure(store, top)
    except IntegrityError:
        return False
    return (top.media_type in INDEX_TYPES or bool(closure.blobs)) and all(
        store.has_blob(blob) for blob in closure.blobs.values()
    )
