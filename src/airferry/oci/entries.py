"""The entries of an index.json: their names, and the artifacts that refer to others (image-spec, *annotations.md*)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from airferry.errors import ConfigurationError, IntegrityError
from airferry.host.canonical import canonical_json
from airferry.host.parsing import Malformed, parse_json
from airferry.oci.digest import digest_hex, is_digest
from airferry.oci.documents import (
    CONTAINERD_NAME,
    CONTAINERD_SUBJECT,
    EMPTY_CONFIG,
    IMAGE_INDEX,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_INDEX_ENTRIES,
    REF_NAME,
    TITLE,
    Descriptor,
    Index,
    parse_index,
)
from airferry.oci.ports import Source, Stored
from airferry.wording import printable, some_of

SHOWN_NAMES = 20
SHOWN_STRANGE = 5
MAX_REASON_CHARACTERS = 300
# cosign before 3, and everything that reads what it wrote, finds these by name: no field says what they belong to
SIGNATURE_SUFFIXES = ("sig", "att", "sbom")
_SIGNATURE_TAG = re.compile(r"sha256-(?P<hex>[0-9a-f]{64})\.(?:sig|att|sbom)")


@dataclass(frozen=True, slots=True)
class IndexListing:
    """What an index.json lists: descriptors, and entries that are none, as they came and by their place with a reason.

    A copy needs one entry. What another tool left next to it, damaged or of a later specification, does not matter.
    """

    manifests: list[Descriptor]
    media_type: str | None = None
    strange: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[Any, ...] = ()


def parse_listing(data: bytes, *, what: str) -> IndexListing:
    """Return what the bytes of an index.json list, entries that are no descriptors apart.

    Raises:
        IntegrityError: they are no index, whatever its entries.
    """
    try:
        index = parse_index(data, what=what)
        return IndexListing(index.manifests, index.media_type)
    except IntegrityError as error:
        try:
            document = parse_json(data)
        except Malformed:
            raise error from None
        entries = document.get("manifests") if isinstance(document, dict) else None
        if not isinstance(entries, list) or len(entries) > MAX_INDEX_ENTRIES:
            raise
        try:
            index = Index.model_validate({**document, "manifests": []})
        except ValidationError:
            raise error from None
        found: list[Descriptor] = []
        strange: dict[str, str] = {}
        kept = []
        for number, entry in enumerate(entries, 1):
            try:
                found.append(Descriptor.model_validate(entry))
            except ValidationError as problem:
                first = problem.errors(include_url=False, include_input=False)[0]
                place = ".".join(str(part) for part in first["loc"]) or "entry"
                strange[f"number {number}"] = printable(f"{place}: {first['msg']}", most=MAX_REASON_CHARACTERS)
                kept.append(entry)
        return IndexListing(found, index.media_type, strange, tuple(kept))


def index_bytes(entries: Iterable[Descriptor], *, strange: Sequence[Any] = ()) -> bytes:
    """Return the index.json of these descriptors, sorted; `strange` are entries of others, left as they were."""
    ordered = sorted(entries, key=_index_order)
    data = canonical_json(Index(schema_version=2, media_type=IMAGE_INDEX, manifests=ordered))
    if not strange:
        return data
    document = parse_json(data)
    document["manifests"] += strange
    # in ASCII: theirs may hold halves of surrogates, which are no UTF-8
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def entered(entries: Iterable[Descriptor], entry: Descriptor) -> list[Descriptor]:
    """Return entries with one more, in the place of what had its name, or of the same without a name."""
    own = names_of(entry)
    kept = [old for old in entries if (names_of(old).isdisjoint(own) and (names_of(old) or old.digest != entry.digest))]
    return [*kept, entry]


def _index_order(entry: Descriptor) -> tuple[str, str, str, str]:
    annotations = entry.annotations or {}
    name = annotations.get(REF_NAME, "")
    return (entry.artifact_type or "", name, annotations.get(CONTAINERD_SUBJECT, ""), entry.digest)


def signature_tags(digest: str) -> list[str]:
    """Return the tags under which cosign keeps signatures, attestations and SBOMs of a digest."""
    return [f"sha256-{digest_hex(digest)}.{suffix}" for suffix in SIGNATURE_SUFFIXES]


def signed_digest(name: str) -> str | None:
    """Return the digest that one of cosign's tags is about; None for any other name."""
    found = _SIGNATURE_TAG.fullmatch(name)
    return f"sha256:{found['hex']}" if found else None


def signature_tag(entry: Descriptor) -> str | None:
    """Return the tag of cosign's that an artifact of a bundle is to have: its title. None where that is another one."""
    title = (entry.annotations or {}).get(TITLE, "")
    return title if entry.artifact_type is not None and signed_digest(title) else None


def find_signature(listing: IndexListing, tag: str) -> Descriptor | None:
    """Return the entry that has a tag of cosign's as its name, or as its title; None if there is none, or several."""
    found = {
        entry.digest: entry for entry in listing.manifests if tag in names_of(entry) or signature_tag(entry) == tag
    }
    return next(iter(found.values())) if len(found) == 1 else None


def names_of(descriptor: Descriptor) -> set[str]:
    """Return the names that index.json gives a descriptor."""
    annotations = descriptor.annotations or {}
    return {annotations[key] for key in (REF_NAME, CONTAINERD_NAME) if key in annotations}


def named(descriptor: Descriptor, reference: str) -> Descriptor:
    """Return the descriptor with a name in the two annotations that the tools of others look for."""
    annotations = {**(descriptor.annotations or {}), REF_NAME: reference, CONTAINERD_NAME: reference}
    return descriptor.annotated(annotations=annotations)


def as_referrer(stored: Stored) -> Descriptor | None:
    """Return the index.json entry of what has a subject, with both marks of a referrer; None where it has none.

    Raises:
        IntegrityError: the bytes are neither a manifest nor an index.
    """
    if (subject := stored.subject) is None:
        return None
    annotations = {**(stored.descriptor.annotations or {}), CONTAINERD_SUBJECT: subject}
    return stored.descriptor.annotated(annotations=annotations, artifact_type=referrer_kind(stored))


def listed_referrer(stored: Stored) -> Descriptor:
    """Return the entry of a referrer in the list that a registry keeps (distribution-spec, "Listing Referrers").

    Raises:
        IntegrityError: the bytes are neither a manifest nor an index.
    """
    view = stored.index if stored.descriptor.media_type in INDEX_TYPES else stored.manifest
    return Descriptor(
        media_type=stored.descriptor.media_type,
        digest=stored.descriptor.digest,
        size=stored.descriptor.size,
        artifact_type=referrer_kind(stored),
        annotations=view.annotations,
    )


def referrer_kind(stored: Stored) -> str | None:
    """Return the artifact type under which a referrer is listed (distribution-spec, "Listing Referrers")."""
    if stored.descriptor.media_type in INDEX_TYPES:
        return stored.index.artifact_type
    manifest = stored.manifest
    if manifest.artifact_type is None and manifest.config.media_type != EMPTY_CONFIG:
        return manifest.config.media_type
    return manifest.artifact_type


def find_entry(listing: IndexListing, reference: str, *, where: str) -> Descriptor:
    """Return the entry that a name or digest stands for; an empty name stands for an only image.

    Raises:
        ConfigurationError: nothing, or more than one thing, has that name.
    """
    entries = listing.manifests
    if is_digest(reference):
        found = [entry for entry in entries if entry.digest == reference]
    elif reference:
        found = [entry for entry in entries if reference in names_of(entry)]
    else:
        found = [entry for entry in entries if not is_about_another(entry)]
    if len({entry.digest for entry in found}) == 1:
        return found[0]
    names = sorted({name for entry in entries for name in names_of(entry)})
    wanted = f"under `{reference}`" if reference else "to choose from without a name"
    hint = "it holds " + ", ".join(f"`{name}`" for name in names[:SHOWN_NAMES]) if names else "it names no image"
    if listing.strange:
        # what was asked for may be among them
        hint += "; not read: " + some_of(strange_entries(listing.strange, where="it"), SHOWN_STRANGE, separator="; ")
    raise ConfigurationError(f"{where} holds {len(found) or 'nothing'} {wanted}, expected one image", hint=hint)


Referrers = Mapping[str, list[Descriptor]]


def find_referrers(source: Source, listing: IndexListing, *, strange: dict[str, str]) -> Referrers:
    """Return the entries that have a subject, by it: by annotation or by the document's own field, sorted by digest.

    All of them at once: who asks for one digest asks for thousands, and each document is to be read once. An entry
    that is not a descriptor, or whose document cannot be read, says of nothing that it belongs to it: it goes into
    `strange`, with the reason, and its neighbours are looked at all the same.
    """
    found: dict[str, dict[str, Descriptor]] = {}
    own: dict[str, str | None] = {}
    strange |= listing.strange
    for entry in listing.manifests:
        subject = marked_subject(entry)
        if subject is None and entry.media_type in (*INDEX_TYPES, *MANIFEST_TYPES):
            if entry.digest not in own:
                try:
                    own[entry.digest] = source.read_manifest(entry).subject
                except IntegrityError as error:
                    strange[f"`{entry.digest}`"] = error.message
                    own[entry.digest] = None
            subject = own[entry.digest]
        if subject is not None:
            found.setdefault(subject, {})[entry.digest] = entry
    return {subject: [group[key] for key in sorted(group)] for subject, group in found.items()}


def strange_entries(strange: Mapping[str, str], *, where: str) -> list[str]:
    """Return in words which entries could not be read, so that they may be referrers of anything; a few are named."""
    named = [
        f"entry {entry} of {where} cannot be read, and may refer to anything: {reason}"
        for entry, reason in list(strange.items())[:SHOWN_STRANGE]
    ]
    more = len(strange) - len(named)
    return [*named, f"{more} more entries of {where} cannot be read"] if more else named


def is_about_another(entry: Descriptor) -> bool:
    """Tell whether an entry is an artifact or a signature rather than an image."""
    names = names_of(entry)
    signature = bool(names) and all(_SIGNATURE_TAG.fullmatch(name) for name in names)
    return entry.artifact_type is not None or marked_subject(entry) is not None or signature


def marked_subject(entry: Descriptor) -> str | None:
    """Return the digest of what an entry refers to, as far as its annotations say so."""
    return (entry.annotations or {}).get(CONTAINERD_SUBJECT)
