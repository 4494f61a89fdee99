"""What belongs to bases that are carried as they came: signatures, attestations, SBOMs. Pinned by the lock, optional.

They are found where the base was, as referrers of any part of it and under cosign's tags, and carried as artifacts of
the bundle. What cannot be carried is named, and keeps no base from being carried. No signature is checked here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from airferry.assets.manifest import MODELPACK_ARTIFACT
from airferry.bundle.artifacts import OWN_ARTIFACTS, artifact_is_whole
from airferry.bundle.manifest import ArtifactEntry
from airferry.config import RegistryBase
from airferry.errors import AirferryError, IntegrityError
from airferry.events import Emit, Notice, Warned
from airferry.near.bases.fetch import BaseCache
from airferry.near.bases.originals import original_name, pinned_top
from airferry.near.lock.covered import needed_bases
from airferry.oci.closure import (
    RememberingSource,
    expect_unambiguous,
    read_closure,
    read_referrers,
    read_signatures,
)
from airferry.oci.copy import CopyOptions, copy_image
from airferry.oci.digest import digest_hex, is_digest
from airferry.oci.documents import TITLE, Descriptor
from airferry.oci.entries import as_referrer, referrer_kind, signed_digest
from airferry.oci.layout import LayoutStore, UnlistedLayout
from airferry.oci.ports import Source, Stored
from airferry.plan.lockfile import LockedBase, Lockfile
from airferry.plan.models import Plan
from airferry.wording import counted, some_of

SHOWN_ARTIFACTS = 5
REFERRER_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Attached:
    """An artifact that belongs to a base: its title is cosign's tag, where it has one. `kind` is its type."""

    title: str
    stored: Stored
    kind: str
    subject: str


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """An artifact of a base that the bundle does not carry: its digest or tag, and why."""

    base: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class BroughtArtifacts:
    """The artifacts of the bases that are in the cache now, and those that could not be brought there."""

    carried: tuple[Attached, ...] = ()
    left_out: tuple[LeftBehind, ...] = ()


def pin_attached(plan: Plan, lockfile: Lockfile, cache: BaseCache, *, jobs: int, emit: Emit) -> Lockfile:
    """Return a lock that also says what belongs to the bases that the plan carries as they are. Idempotent.

    What it says already stays. A registry that does not show all there may be is named.

    Raises:
        RegistryError: a registry does not answer.
        IntegrityError: bytes are not what a digest says.
    """
    bases = dict(lockfile.bases)
    for base, locked in _carried_bases(plan, lockfile):
        if locked.attached is not None:
            continue
        source = RememberingSource(cache.open_registry(base.parsed))
        closure = read_closure(source, source.resolve(pinned_top(locked)))
        lost: dict[str, str] = {}
        found = {
            inner.top.descriptor.digest: inner.top.descriptor.digest
            for inner in read_referrers(source, closure, lost=lost)
        }
        digests = [stored.descriptor.digest for stored in closure.manifests]
        signatures = read_signatures(source, digests, jobs=jobs, lost=lost)
        found |= {item.name: item.descriptor.digest for item in signatures}
        for name, reason in lost.items():
            emit(Warned(f"`{name}`, which belongs to base `{base.reference}`, cannot be carried: {reason}"))
        for doubt in source.unknown_referrers():
            emit(Warned(f"base `{base.reference}`: {doubt}", hint="its signatures, if it has some, are not carried"))
        bases[base.key] = locked.model_copy(update={"attached": found})
    return lockfile.model_copy(update={"bases": bases})


def bring_attached(
    plan: Plan, lock: Lockfile, cache: BaseCache, *, originals: Mapping[str, Descriptor], emit: Emit
) -> BroughtArtifacts:
    """Bring what the lock pins of the bases' artifacts into the cache; what cannot be carried is named.

    `originals` are the bases in the cache, by the names that the bundle gives them. What is cached is not fetched.

    Raises:
        RegistryError: a registry does not answer.
        IntegrityError: bytes are not what a digest says.
    """
    carried: list[Attached] = []
    left: list[LeftBehind] = []
    for base, locked in _carried_bases(plan, lock):
        if locked.attached is None:
            emit(
                Warned(
                    f"the lock does not say what belongs to base `{base.reference}`, so that no signature or SBOM of "
                    "it is carried",
                    hint="run `airferry lock`, which looks for them, then build again",
                )
            )
            continue
        lost: dict[str, str] = {}
        found = _bring(base, locked, cache, lost)
        there = read_closure(cache.store, originals[original_name(base.reference)]).manifests
        own = _belonging(found, {stored.descriptor.digest for stored in there}, lost)
        if own:
            names = some_of([f"`{item.title}`" for item in own], SHOWN_ARTIFACTS)
            emit(Notice(f"base `{base.reference}` comes with {counted(len(own), 'artifact')}: {names}"))
        for name, reason in lost.items():
            emit(Warned(f"`{name}`, which belongs to base `{base.reference}`, is not carried: {reason}"))
            left.append(LeftBehind(base.reference, name, reason))
        carried += own
    # two bases may be one image
    once = {(item.title, item.stored.descriptor.digest): item for item in carried}
    return BroughtArtifacts(tuple(once.values()), tuple(left))


def put_attached(
    attached: Collection[Attached], cache: LayoutStore, bundle: LayoutStore
) -> list[tuple[ArtifactEntry, Descriptor]]:
    """Put artifacts from the cache into the bundle, linked where the file system can; return how both are to list them.

    Raises:
        IntegrityError: the cache lacks something, or holds what is not the blob.
    """
    sink = UnlistedLayout(bundle.path, read_only=False)
    described = []
    for item in attached:
        descriptor = item.stored.descriptor
        copy_image(cache, sink, descriptor, options=CopyOptions(link=True))
        listed = as_referrer(item.stored) or descriptor.annotated(artifact_type=item.kind)
        annotations = {**(listed.annotations or {}), TITLE: item.title}
        entry = ArtifactEntry(
            title=item.title,
            artifact_type=item.kind,
            digest=descriptor.digest,
            size_bytes=descriptor.size,
            subject=item.subject,
        )
        described.append((entry, listed.annotated(annotations=annotations)))
    return described


def _carried_bases(plan: Plan, lock: Lockfile) -> Iterator[tuple[RegistryBase, LockedBase]]:
    if plan.config.bases == "omit":
        return
    for base, _platforms in needed_bases(plan).values():
        if isinstance(base, RegistryBase):
            yield base, lock.bases[base.key]


def _bring(base: RegistryBase, locked: LockedBase, cache: BaseCache, lost: dict[str, str]) -> dict[str, Stored]:
    """Return the documents that the lock pins, by the names that it has for them, whole in the cache."""
    source: Source | None = None
    sink = UnlistedLayout(cache.store.path, read_only=False)
    found: dict[str, Stored] = {}
    for name, digest in (locked.attached or {}).items():
        held = cache.store.find_manifest(digest)
        if held is None or not artifact_is_whole(cache.store, held.descriptor):
            if source is None:
                source = RememberingSource(cache.open_registry(base.parsed))
                # which of several mirrors is asked is chosen by the image
                source.resolve(pinned_top(locked))
            reason = _fetch(source, digest, sink)
            held = cache.store.find_manifest(digest)
            if reason or held is None:
                lost[name] = reason or "it is neither a manifest nor an index"
                continue
        try:
            expect_unambiguous(cache.store, read_closure(cache.store, held.descriptor))
        except IntegrityError as error:
            lost[name] = error.message
        else:
            found[name] = held
    return found


def _fetch(source: Source, digest: str, sink: LayoutStore) -> str:
    """Copy an artifact, and return why the source does not give it; empty if it does."""
    descriptor = source.find_name(digest)
    if descriptor is None:
        return "its registry no longer has it, or does not give it to this user"
    try:
        copy_image(source, sink, descriptor)
    except AirferryError as error:
        if not source.lacks(error):
            raise
        return error.message
    return ""


def _belonging(found: Mapping[str, Stored], there: set[str], lost: dict[str, str]) -> list[Attached]:
    """Return those that belong to what is carried, or to one of them; the others go into `lost`."""
    waiting: dict[str, Attached] = {}
    tagged = {stored.descriptor.digest for name, stored in found.items() if not is_digest(name)}
    for name, stored in found.items():
        if is_digest(name) and name in tagged:
            # cosign may write both: one entry says both
            continue
        kind = referrer_kind(stored) or ""
        subject = (None if is_digest(name) else signed_digest(name)) or stored.subject
        if not kind or subject is None:
            lost[name] = "it states no type" if not kind else "it refers to nothing"
        elif kind.startswith(OWN_ARTIFACTS) or kind == MODELPACK_ARTIFACT:
            lost[name] = f"its type, `{kind}`, is that of a part of bundles"
        else:
            title = f"referrer-{digest_hex(name)[:REFERRER_DIGITS]}" if is_digest(name) else name
            waiting[name] = Attached(title, stored, kind, subject)
    own: list[Attached] = []
    while ready := [name for name, item in waiting.items() if item.subject in there]:
        for name in ready:
            item = waiting.pop(name)
            there.add(item.stored.descriptor.digest)
            own.append(item)
    for name, item in waiting.items():
        lost[name] = f"it belongs to `{item.subject}`, which is not carried"
    return sorted(own, key=lambda item: (item.title, item.stored.descriptor.digest))
