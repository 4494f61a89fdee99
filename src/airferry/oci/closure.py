"""What images and artifacts consist of: manifests, children first, and blobs. Reads documents only."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from airferry.errors import AirferryError, BuildError, IntegrityError
from airferry.host.canonical import canonical_json
from airferry.host.parsing import parse_json
from airferry.host.progress import MIB
from airferry.host.threads import parallel_map
from airferry.oci.documents import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_IMAGE_CONFIG_BYTES,
    MAX_INDEX_ENTRIES,
    MAX_NESTED,
    Descriptor,
    Index,
    UnreadableDocument,
    ambiguities,
    descriptor_of,
    expect_one_meaning,
)
from airferry.oci.entries import signature_tags
from airferry.oci.platform import Platform, nearest
from airferry.oci.ports import Source, Stored, WrappedSource
from airferry.oci.streams import verifying

MAX_REFERRER_DEPTH = 4
# signatures and SBOMs of an image are a handful; annotations may say that any refers to any other
MAX_REFERRERS = 1_000
# the documents of a thousand images stay below it; a view takes several times its bytes, so the documents of a bundle
# that is made to fill memory are read again instead
MAX_REMEMBERED_BYTES = 16 * MIB


class RememberingSource(WrappedSource):
    """A Source whose manifests and indexes are read, hashed and parsed once. Safe to use from threads.

    What it returns is what it read first, whatever happens to the medium meanwhile: documents that were verified are
    the ones that are used.
    """

    def __init__(self, inner: Source, *, limit_bytes: int = MAX_REMEMBERED_BYTES) -> None:
        """Remember nothing yet, and never more than the limit."""
        super().__init__(inner)
        self._left_bytes = limit_bytes
        self._known: dict[str, Stored] = {}
        self._lock = threading.Lock()

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        """Return a manifest's or index's original bytes, verified when they were read."""
        with self._lock:
            known = self._known.get(descriptor.digest)
        if known is not None and known.descriptor.size == descriptor.size:
            return known.described_as(descriptor)
        stored = self.inner.read_manifest(descriptor)
        with self._lock:
            if descriptor.digest not in self._known and self._left_bytes >= descriptor.size:
                self._left_bytes -= descriptor.size
                self._known[descriptor.digest] = stored
        return stored


@dataclass(slots=True)
class Closure:
    """All that an image consists of: its manifests, children first, and its blobs, each once."""

    top: Stored
    manifests: list[Stored] = field(default_factory=list)
    blobs: dict[str, Descriptor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shipment:
    """An image or artifact on its way: what it is called, the repository it goes to, and what it consists of.

    `repository` is empty where the sink is one place. `reference` is the name that it gets there, last of all. An
    `optional` one goes after the others, and what the sink refuses of it does not keep the rest from arriving.
    """

    name: str
    repository: str
    closure: Closure
    optional: bool = False
    reference: str | None = None

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the whole."""
        return self.closure.top.descriptor


@dataclass(frozen=True, slots=True)
class RefusedShipment:
    """An optional shipment that a sink refused, and what it said."""

    item: Shipment
    reason: str


def read_closure(source: Source, descriptor: Descriptor, *, platforms: Collection[Platform] | None = None) -> Closure:
    """Read the manifests of an image (or of an artifact) and return what it consists of.

    With `platforms`, an index is narrowed to the children that serve them; it is rewritten, with another digest,
    only if that leaves something out.

    Raises:
        BuildError: a wanted platform is missing.
        IntegrityError: a document is not what its descriptor says, or indexes nest too deeply.
    """
    top = source.read_manifest(descriptor)
    closure = Closure(top)
    if descriptor.media_type not in INDEX_TYPES:
        _add_manifest(closure, top)
        return closure
    chosen: set[str] | None = None
    if platforms is not None:
        index = flat_index(source, top.index)
        chosen = {child.digest for child in select_platforms(index, platforms, what=f"image `{descriptor.digest}`")}
    closure.top = _IndexWalk(closure, source, chosen).add(top, MAX_NESTED) or top
    return closure


def flat_index(source: Source, index: Index) -> Index:
    """Return the view of an index in which each index that it lists is replaced by what that lists, however deep.

    What states no platform has that of the index that lists it.

    Raises:
        IntegrityError: indexes list each other more than `MAX_NESTED` deep, or more than `MAX_INDEX_ENTRIES` in all.
    """
    if all(child.media_type not in INDEX_TYPES for child in index.manifests):
        return index
    found: dict[str, Descriptor] = {}
    _flatten(source, index, found, set(), MAX_NESTED)
    return index.model_copy(update={"manifests": list(found.values())})


def _flatten(source: Source, index: Index, found: dict[str, Descriptor], seen: set[str], left: int) -> None:
    for child in index.manifests:
        if child.media_type not in INDEX_TYPES:
            found.setdefault(child.digest, child)
        elif child.digest not in seen:
            seen.add(child.digest)
            inner = source.read_manifest(child).index
            if child.platform is not None:
                listed = [one if one.platform else one.annotated(platform=child.platform) for one in inner.manifests]
                inner = inner.model_copy(update={"manifests": listed})
            _expect_shallow(child, left, len(found) + len(seen))
            _flatten(source, inner, found, seen, left - 1)


def _expect_shallow(child: Descriptor, left: int, entries: int) -> None:
    if not left or entries > MAX_INDEX_ENTRIES:
        raise IntegrityError(
            f"index `{child.digest}` lies in other indexes, more than {MAX_NESTED} deep or with more than "
            f"{MAX_INDEX_ENTRIES} entries in all",
            digest=child.digest,
        )


class _IndexWalk:
    """Adds what an index lists to a closure, children first and each once; with `chosen`, only those images."""

    def __init__(self, closure: Closure, source: Source, chosen: set[str] | None) -> None:
        self._closure = closure
        self._source = source
        self._chosen = chosen
        self._images: set[str] = set()
        # what became of an index: itself, narrowed, or None where nothing of it is wanted
        self._indexes: dict[str, Stored | None] = {}

    def add(self, stored: Stored, left: int) -> Stored | None:
        changes: dict[str, Descriptor | None] = {}
        for child in {child.digest: child for child in stored.index.manifests}.values():
            if child.media_type in INDEX_TYPES:
                if child.digest not in self._indexes:
                    _expect_shallow(child, left, len(self._images) + len(self._indexes))
                    self._indexes[child.digest] = self.add(self._source.read_manifest(child), left - 1)
                made = self._indexes[child.digest]
                if made is None or made.descriptor.digest != child.digest:
                    changes[child.digest] = made.descriptor if made is not None else None
            elif self._chosen is not None and child.digest not in self._chosen:
                changes[child.digest] = None
            elif child.digest not in self._images:
                self._images.add(child.digest)
                _add_manifest(self._closure, self._source.read_manifest(child))
        if changes:
            stored = _narrowed(stored, changes)
            if not stored.index.manifests:
                return None
        self._closure.manifests.append(stored)
        return stored


def expect_unambiguous(source: Source, closure: Closure) -> None:
    """Refuse manifests, indexes and image configs of a closure that programs may read differently.

    Raises:
        IntegrityError: there is one.
    """
    for stored in closure.manifests:
        if found := stored.ambiguities:
            raise _ambiguous(stored.descriptor, found[0])
    for blob in closure.blobs.values():
        if blob.media_type in CONFIG_TYPES and blob.size <= MAX_IMAGE_CONFIG_BYTES:
            with source.open_blob(blob) as stream:
                data = verifying(stream, blob).read()
            if found := ambiguities(data, blob.media_type):
                raise _ambiguous(blob, found[0])


def _ambiguous(descriptor: Descriptor, reason: str) -> IntegrityError:
    return IntegrityError(
        f"`{descriptor.digest}` {reason}",
        hint="programs may take it for different things: get it from where it was made, or have it rebuilt",
        digest=descriptor.digest,
    )


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
                f"{what} has no `{wanted}`{nearest(str(wanted), names)}",
                hint="it has " + ", ".join(f"`{name}`" for name in names) if names else "it states no platform",
            )
        chosen.add(match.digest)
    return [child for child in index.manifests if child.digest in chosen]


def read_referrers(source: Source, closure: Closure, *, lost: dict[str, str] | None = None) -> list[Closure]:
    """Return the artifacts that refer to any part of an image, and those that refer to these, each once, subjects
    first.

    Those that are listed, but that the source lacks, or that are something else, go into `lost` with the reason;
    without it they are an error.

    Raises:
        IntegrityError: they refer to each other more than MAX_REFERRER_DEPTH times over, are more than MAX_REFERRERS,
            or are not what they should be.
    """
    found: dict[str, Closure] = {}
    _add_referrers(source, closure, MAX_REFERRER_DEPTH, found, lost)
    return list(found.values())


def _add_referrers(
    source: Source, closure: Closure, depth: int, found: dict[str, Closure], lost: dict[str, str] | None
) -> None:
    for stored in closure.manifests:
        for referrer in source.referrers(stored.descriptor.digest):
            if referrer.digest in found or referrer.digest in (lost or ()):
                continue
            if depth == 0:
                raise IntegrityError(f"artifacts refer to artifacts more than {MAX_REFERRER_DEPTH} levels deep")
            if len(found) >= MAX_REFERRERS:
                raise IntegrityError(
                    f"more than {MAX_REFERRERS} artifacts refer to `{closure.top.descriptor.digest}` or to each other, "
                    "the limit for an image"
                )
            inner = _read_unless_lost(source, referrer, referrer.digest, lost)
            if inner is not None:
                found[referrer.digest] = inner
                _add_referrers(source, inner, depth - 1, found, lost)


def _read_unless_lost(source: Source, descriptor: Descriptor, name: str, lost: dict[str, str] | None) -> Closure | None:
    """Return what an optional part of an image consists of, or note why it cannot be read where it comes from."""
    if lost is not None and descriptor.media_type not in (*INDEX_TYPES, *MANIFEST_TYPES):
        lost[name] = f"it has the media type `{descriptor.media_type}`, which is neither a manifest's nor an index's"
        return None
    try:
        return read_closure(source, descriptor)
    except AirferryError as error:
        if lost is None or not (source.lacks(error) or isinstance(error, UnreadableDocument)):
            raise
        lost[name] = error.message
        return None


def read_signatures(
    source: Source, digests: Iterable[str], *, jobs: int, lost: dict[str, str] | None = None
) -> list[Shipment]:
    """Return what cosign's tags name of these manifests: signatures, attestations, SBOMs, under these tags.

    Those of which the source lacks a manifest go into `lost`, with the reason; without it they are an error.

    Raises:
        IntegrityError: one of them is not what it should be.
    """
    tags = [tag for digest in digests for tag in signature_tags(digest)]
    signatures = []
    for tag, descriptor in zip(tags, parallel_map(source.find_name, tags, jobs=jobs), strict=True):
        closure = _read_unless_lost(source, descriptor, tag, lost) if descriptor is not None else None
        if closure is not None:
            signatures.append(Shipment(tag, "", closure, optional=True, reference=tag))
    return signatures


def subjects_first(shipments: Sequence[Shipment]) -> Iterator[list[Shipment]]:
    """Yield shipments in groups, those that something refers to before it. What is within a group goes side by side."""
    coming = Counter(stored.descriptor.digest for item in shipments for stored in item.closure.manifests)
    waiting: dict[str, list[int]] = {}
    ready: list[int] = []
    for number, item in enumerate(shipments):
        subject = item.closure.top.subject
        if subject in coming:
            waiting.setdefault(str(subject), []).append(number)
        else:
            ready.append(number)
    while ready:
        yield [shipments[number] for number in ready]
        freed: list[int] = []
        for number in ready:
            for stored in shipments[number].closure.manifests:
                digest = stored.descriptor.digest
                coming[digest] -= 1
                if not coming[digest]:
                    freed += waiting.pop(digest, ())
        ready = sorted(freed)
    if waiting:
        # digests cannot refer to each other in a circle; were it so, the order would not matter
        yield [shipments[number] for number in sorted(number for group in waiting.values() for number in group)]


def is_subject(item: Shipment, shipments: Iterable[Shipment]) -> bool:
    """Tell whether another shipment refers to a part of this one."""
    parts = {stored.descriptor.digest for stored in item.closure.manifests}
    return any(other.closure.top.subject in parts for other in shipments)


def _add_manifest(closure: Closure, stored: Stored) -> None:
    descriptor = stored.descriptor
    if descriptor.media_type not in MANIFEST_TYPES:
        raise IntegrityError(
            f"`{descriptor.digest}` has media type `{descriptor.media_type}` but an image manifest is expected"
        )
    manifest = stored.manifest
    for blob in (manifest.config, *manifest.layers):
        known = closure.blobs.setdefault(blob.digest, blob)
        if known.size != blob.size:
            raise IntegrityError(f"blob `{blob.digest}` is declared with {known.size} and with {blob.size} bytes")
    closure.manifests.append(stored)


def _narrowed(top: Stored, changes: Mapping[str, Descriptor | None]) -> Stored:
    """Return an index without the entries that became None, and with the digests and sizes that others got."""
    # it is written anew, and what is written here has one meaning
    expect_one_meaning(top.data, top.descriptor.media_type, what=f"index `{top.descriptor.digest}`")
    document = parse_json(top.data)
    kept = []
    for entry in document["manifests"]:
        made = changes.get(entry["digest"])
        if made is not None:
            kept.append({**entry, "digest": made.digest, "size": made.size})
        elif entry["digest"] not in changes:
            kept.append(entry)
    document["manifests"] = kept
    data = canonical_json(document)
    fresh = descriptor_of(data, top.descriptor.media_type, annotations=top.descriptor.annotations)
    return Stored(fresh, data)
