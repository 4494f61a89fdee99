"""Copies of whole images between a Source and a Sink, children before parents. Knows no registries."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from dataclasses import dataclass, field

from airferry.errors import BuildError, IntegrityError
from airferry.events import Emit, silent
from airferry.host.canonical import canonical_json
from airferry.host.progress import Meter
from airferry.host.threads import parallel_map
from airferry.oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    descriptor_of,
    parse_index,
    parse_manifest,
)
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform
from airferry.oci.ports import OpenStream, ReopeningSink, Sink, Source, Stored, UncheckedSource
from airferry.oci.resume import RESUMABLE_FROM_BYTES, RangedSource, fetch_blob
from airferry.oci.streams import verifying

DEFAULT_JOBS = 4
MAX_REFERRER_DEPTH = 4


@dataclass(slots=True)
class Closure:
    """All that an image consists of: its manifests, children first, and its blobs, each once."""

    top: Stored
    manifests: list[Stored] = field(default_factory=list)
    blobs: dict[str, Descriptor] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """The size of all blobs together, manifests left out."""
        return sum(blob.size for blob in self.blobs.values())


def read_closure(source: Source, descriptor: Descriptor, *, platforms: Collection[Platform] | None = None) -> Closure:
    """Read the manifests of an image (or of an artifact) and return what it consists of.

    With `platforms`, an index is narrowed to the children that serve them; it is rewritten, with another digest,
    only if that leaves something out.

    Raises:
        BuildError: a wanted platform is missing.
        IntegrityError: a document is not what its descriptor says, or an index nests another.
    """
    top = source.read_manifest(descriptor)
    if descriptor.media_type in INDEX_TYPES:
        index = parse_index(top.data, what=f"index `{descriptor.digest}`")
        children = index.manifests
        if platforms is not None:
            children = select_platforms(index, platforms, what=f"image `{descriptor.digest}`")
            if len(children) < len(index.manifests):
                top = _narrowed(top, {child.digest for child in children})
        closure = Closure(top)
        for child in {child.digest: child for child in children}.values():
            _add_manifest(closure, source.read_manifest(child))
        closure.manifests.append(top)
        return closure
    closure = Closure(top)
    _add_manifest(closure, top)
    return closure


def select_platforms(index: Index, platforms: Collection[Platform], *, what: str) -> list[Descriptor]:
    """Return the children of an index that serve the platforms, in the index's order.

    Raises:
        BuildError: a platform is missing.
    """
    chosen: set[str] = set()
    offered = [(child.platform_value(), child) for child in index.manifests]
    for wanted in platforms:
        match = next((child for platform, child in offered if platform is not None and wanted.accepts(platform)), None)
        if match is None:
            names = sorted({str(platform) for platform, _child in offered if platform is not None})
            raise BuildError(
                f"{what} has no `{wanted}`",
                hint="it has " + ", ".join(f"`{name}`" for name in names) if names else "it states no platform",
            )
        chosen.add(match.digest)
    return [child for child in index.manifests if child.digest in chosen]


def copy_image(
    source: Source,
    sink: Sink,
    descriptor: Descriptor,
    *,
    platforms: Collection[Platform] | None = None,
    reference: str | None = None,
    referrers: bool = False,
    jobs: int = DEFAULT_JOBS,
    emit: Emit = silent,
) -> Descriptor:
    """Copy an image, all of it, and return the descriptor of what the sink holds now.

    Blobs go first, on `jobs` threads, those that the sink holds are skipped; then manifests, then the index; last
    `reference`. So nothing ever stands for something incomplete. The first failure cancels the rest. With
    `referrers`, artifacts that refer to any part of the image come along, before `reference`.

    Raises:
        BuildError: a wanted platform is missing.
        IntegrityError: something is not what its descriptor says.
    """
    closure = read_closure(source, descriptor, platforms=platforms)
    attached = read_referrers(source, closure) if referrers else []
    _copy_closure(source, sink, closure, reference=None if attached else reference, jobs=jobs, emit=emit)
    for inner in attached:
        _copy_closure(source, sink, inner, reference=None, jobs=jobs, emit=emit)
    if attached and reference is not None:
        sink.put_manifest(closure.top, reference=reference)
    return closure.top.descriptor


def read_referrers(source: Source, closure: Closure, *, depth: int = MAX_REFERRER_DEPTH) -> list[Closure]:
    """Return the artifacts that refer to any part of an image, and those that refer to these, subjects first.

    Raises:
        IntegrityError: they refer to each other more than `depth` times over, or are not what they should be.
    """
    found: list[Closure] = []
    for stored in closure.manifests:
        for referrer in source.referrers(stored.descriptor.digest):
            if depth == 0:
                raise IntegrityError(f"artifacts refer to artifacts more than {MAX_REFERRER_DEPTH} levels deep")
            inner = read_closure(source, referrer)
            found += [inner, *read_referrers(source, inner, depth=depth - 1)]
    return found


def _copy_closure(
    source: Source, sink: Sink, closure: Closure, *, reference: str | None, jobs: int, emit: Emit
) -> None:
    failed = threading.Event()
    task = f"copy {closure.top.descriptor.digest}"
    progress = Meter(task, closure.total_bytes, emit, cancelled=failed)

    def copy_blob(blob: Descriptor) -> None:
        if isinstance(sink, ReopeningSink):
            sink.bring_blob(blob, lambda: source.open_blob(blob), open_unchecked=_unchecked(source, blob))
            progress.advance(blob.size)
            return
        if sink.has_blob(blob):
            progress.advance(blob.size)
            return
        if (
            blob.size >= RESUMABLE_FROM_BYTES
            and isinstance(source, RangedSource)
            and isinstance(sink, LayoutStore)
            and fetch_blob(source, sink, blob, on_block=progress.advance)
        ):
            return
        with source.open_blob(blob) as stream:
            sink.put_blob(blob, verifying(stream, blob, on_block=progress.advance))

    largest_first = sorted(closure.blobs.values(), key=lambda blob: (-blob.size, blob.digest))
    parallel_map(copy_blob, largest_first, jobs=jobs, cancelled=failed)
    for stored in closure.manifests:
        sink.put_manifest(stored, reference=reference if stored is closure.top else None)


def _unchecked(source: Source, blob: Descriptor) -> OpenStream | None:
    return (lambda: source.open_blob_unchecked(blob)) if isinstance(source, UncheckedSource) else None


def _add_manifest(closure: Closure, stored: Stored) -> None:
    descriptor = stored.descriptor
    if descriptor.media_type not in MANIFEST_TYPES:
        raise IntegrityError(
            f"`{descriptor.digest}` has media type `{descriptor.media_type}` but an image manifest is expected"
        )
    manifest = parse_manifest(stored.data, what=f"manifest `{descriptor.digest}`")
    for blob in (manifest.config, *manifest.layers):
        known = closure.blobs.setdefault(blob.digest, blob)
        if known.size != blob.size:
            raise IntegrityError(f"blob `{blob.digest}` is declared with {known.size} and with {blob.size} bytes")
    closure.manifests.append(stored)


def _narrowed(top: Stored, digests: set[str]) -> Stored:
    document = json.loads(top.data)
    document["manifests"] = [entry for entry in document["manifests"] if entry["digest"] in digests]
    data = canonical_json(document)
    fresh = descriptor_of(data, top.descriptor.media_type, annotations=top.descriptor.annotations)
    return Stored(fresh, data)
