"""Sealing: the one write that turns a layout under work into a bundle with a root.

Until index.json is replaced the old bundle stands; from then on the new one does. What neither names is removed last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from airferry.bundle.artifacts import MANIFEST_ARTIFACT, MANIFEST_CONTENT, ArtifactFile, put_artifact
from airferry.bundle.manifest import MANIFEST_FILE, BundleManifest, read_manifest
from airferry.errors import IntegrityError
from airferry.oci.closure import expect_unambiguous, read_closure
from airferry.oci.digest import digest_of
from airferry.oci.documents import Descriptor
from airferry.oci.entries import named, names_of
from airferry.oci.layout import LayoutStore


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed bundle: its root, and what went when it was pruned."""

    root: str
    size_bytes: int
    pruned_blobs: int
    pruned_bytes: int


def seal(
    store: LayoutStore,
    images: Mapping[str, Descriptor],
    *,
    artifacts: Sequence[Descriptor] = (),
    manifest: BundleManifest,
) -> Sealed:
    """Write manifest and index.json over what the store holds, prune the rest, and return the root.

    `images` maps full references to descriptors; `artifacts` are what `put_artifact` returned. Atomic: killed
    anywhere, the old bundle or the new one is whole. Idempotent: the same inputs give the same root. The caller
    holds the lock on the layout.

    Raises:
        IntegrityError: something that would be named is not there, or programs may read it differently; nothing was
            changed.
    """
    entries = [named(_bare(descriptor), reference) for reference, descriptor in images.items()]
    data = manifest.model_copy(update={"root": None}).to_yaml()
    _expect_readable(data)
    document = ArtifactFile(MANIFEST_FILE, MANIFEST_CONTENT, data)
    entries += [*artifacts, put_artifact(store, MANIFEST_ARTIFACT, contents=[document])]
    sizes: dict[str, int] = {}
    originals = {image.reference for image in manifest.images if image.role == "base"}
    for entry in entries:
        sizes.update(_held(store, entry, as_it_came=not originals.isdisjoint(names_of(entry))))
    root = digest_of(store.write_index(entries))
    pruned_blobs, pruned_bytes = prune(store, sizes.keys())
    return Sealed(root, sum(sizes.values()), pruned_blobs, pruned_bytes)


def prune(store: LayoutStore, keep: Iterable[str]) -> tuple[int, int]:
    """Remove every blob that is not kept, and stale temporaries; return how many blobs went and their bytes."""
    unnamed = sorted(store.stored_digests().difference(keep))
    freed = 0
    for digest in unnamed:
        freed += store.blob_path(digest).lstat().st_size
        store.remove_blob(digest)
    store.remove_stale_temporaries()
    return len(unnamed), freed


def _expect_readable(data: bytes) -> None:
    """Check that the far side will read the manifest: it refuses what exceeds its limits."""
    try:
        read_manifest(data)
    except IntegrityError as error:
        raise error.reworded(
            f"cannot seal: {error.message}", hint="select fewer steps: build several bundles instead of one"
        ) from error


def _held(store: LayoutStore, entry: Descriptor, *, as_it_came: bool) -> dict[str, int]:
    closure = read_closure(store, entry)
    if not as_it_came:
        expect_unambiguous(store, closure)
    sizes = {stored.descriptor.digest: stored.descriptor.size for stored in closure.manifests}
    for blob in closure.blobs.values():
        if not store.has_blob(blob):
            raise IntegrityError(
                f"cannot seal: blob `{blob.digest}` of `{entry.digest}` is missing or not {blob.size} bytes long",
                hint="rerun `airferry build`; it rebuilds what is missing",
                digest=blob.digest,
            )
        sizes[blob.digest] = blob.size
    return sizes


def _bare(descriptor: Descriptor) -> Descriptor:
    return Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)
