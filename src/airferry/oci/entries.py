"""The entries of an index.json: their names, and the artifacts that refer to others (image-spec, *annotations.md*)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from airferry.errors import ConfigurationError, IntegrityError
from airferry.oci.digest import digest_hex, is_digest
from airferry.oci.documents import (
    CONTAINERD_NAME,
    CONTAINERD_SUBJECT,
    EMPTY_CONFIG,
    INDEX_TYPES,
    MANIFEST_TYPES,
    REF_NAME,
    Descriptor,
)
from airferry.oci.ports import Source, Stored

SHOWN_NAMES = 20
# cosign before 3, and everything that reads what it wrote, finds these by name: no field says what they belong to
SIGNATURE_SUFFIXES = ("sig", "att", "sbom")
_SIGNATURE_TAG = re.compile(r"sha256-[0-9a-f]{64}\.(?:sig|att|sbom)")


def signature_tags(digest: str) -> list[str]:
    """Return the tags under which cosign keeps signatures, attestations and SBOMs of a digest."""
    return [f"sha256-{digest_hex(digest)}.{suffix}" for suffix in SIGNATURE_SUFFIXES]


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


def find_entry(entries: Sequence[Descriptor], reference: str, *, where: str) -> Descriptor:
    """Return the entry that a name or digest stands for; an empty name stands for an only image.

    Raises:
        ConfigurationError: nothing, or more than one thing, has that name.
    """
    if is_digest(reference):
        found = [entry for entry in entries if entry.digest == reference]
    elif reference:
        found = [entry for entry in entries if reference in names_of(entry)]
    else:
        found = [entry for entry in entries if not _is_about_another(entry)]
    if len({entry.digest for entry in found}) == 1:
        return found[0]
    names = sorted({name for entry in entries for name in names_of(entry)})
    wanted = f"under `{reference}`" if reference else "to choose from without a name"
    raise ConfigurationError(
        f"{where} holds {len(found) or 'nothing'} {wanted}, expected one image",
        hint="it holds " + ", ".join(f"`{name}`" for name in names[:SHOWN_NAMES]) if names else "it names no image",
    )


Referrers = Mapping[str, list[Descriptor]]


def find_referrers(source: Source, entries: Sequence[Descriptor], *, strange: dict[str, str]) -> Referrers:
    """Return the entries that have a subject, by it: by annotation or by the document's own field, sorted by digest.

    All of them at once: who asks for one digest asks for thousands, and each document is to be read once. An entry
    whose document cannot be read says of nothing that it belongs to it: it goes into `strange`, with the reason, and
    its neighbours are looked at all the same.
    """
    found: dict[str, dict[str, Descriptor]] = {}
    own: dict[str, str | None] = {}
    for entry in entries:
        subject = _subject_mark(entry)
        if subject is None and entry.media_type in (*INDEX_TYPES, *MANIFEST_TYPES):
            if entry.digest not in own:
                try:
                    own[entry.digest] = source.read_manifest(entry).subject
                except IntegrityError as error:
                    strange[entry.digest] = error.message
                    own[entry.digest] = None
            subject = own[entry.digest]
        if subject is not None:
            found.setdefault(subject, {})[entry.digest] = entry
    return {subject: [group[key] for key in sorted(group)] for subject, group in found.items()}


def strange_entries(strange: Mapping[str, str], *, where: str) -> list[str]:
    """Return in words which entries `find_referrers` could not read, so that they may be referrers of anything."""
    return [
        f"entry `{digest}` of {where} cannot be read, and may refer to anything: {reason}"
        for digest, reason in sorted(strange.items())
    ]


def _is_about_another(entry: Descriptor) -> bool:
    """Tell whether an entry is an artifact or a signature rather than an image."""
    names = names_of(entry)
    signature = bool(names) and all(_SIGNATURE_TAG.fullmatch(name) for name in names)
    return entry.artifact_type is not None or _subject_mark(entry) is not None or signature


def _subject_mark(entry: Descriptor) -> str | None:
    return (entry.annotations or {}).get(CONTAINERD_SUBJECT)
