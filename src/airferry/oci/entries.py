"""The entries of an index.json: their names, and the artifacts that refer to others (image-spec, *annotations.md*)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from airferry.errors import ConfigurationError
from airferry.oci.digest import is_digest
from airferry.oci.documents import (
    CONTAINERD_NAME,
    CONTAINERD_SUBJECT,
    EMPTY_CONFIG,
    MANIFEST_TYPES,
    REF_NAME,
    Descriptor,
    Manifest,
)
from airferry.oci.ports import Source, Stored

SHOWN_NAMES = 20


def names_of(descriptor: Descriptor) -> set[str]:
    """Return the names that index.json gives a descriptor."""
    annotations = descriptor.annotations or {}
    return {annotations[key] for key in (REF_NAME, CONTAINERD_NAME) if key in annotations}


def named(descriptor: Descriptor, reference: str) -> Descriptor:
    """Return the descriptor with a name in the two annotations that the tools of others look for."""
    annotations = {**(descriptor.annotations or {}), REF_NAME: reference, CONTAINERD_NAME: reference}
    return descriptor.annotated(annotations=annotations)


def as_referrer(stored: Stored) -> Descriptor | None:
    """Return the index.json entry of a manifest that has a subject, with both marks of a referrer; else None.

    Raises:
        IntegrityError: the bytes are no manifest.
    """
    if (subject := stored.subject) is None:
        return None
    manifest = stored.manifest
    annotations = {**(stored.descriptor.annotations or {}), CONTAINERD_SUBJECT: subject}
    return stored.descriptor.annotated(annotations=annotations, artifact_type=referrer_kind(manifest))


def referrer_kind(manifest: Manifest) -> str | None:
    """Return the artifact type under which a referrer is listed (distribution-spec, "Listing Referrers")."""
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
        found = [entry for entry in entries if entry.artifact_type is None]
    if len({entry.digest for entry in found}) == 1:
        return found[0]
    names = sorted({name for entry in entries for name in names_of(entry)})
    wanted = f"under `{reference}`" if reference else "to choose from without a name"
    raise ConfigurationError(
        f"{where} holds {len(found) or 'nothing'} {wanted}, expected one image",
        hint="it holds " + ", ".join(f"`{name}`" for name in names[:SHOWN_NAMES]) if names else "it names no image",
    )


Referrers = Mapping[str, list[Descriptor]]


def find_referrers(source: Source, entries: Sequence[Descriptor]) -> Referrers:
    """Return the entries that have a subject, by it: by annotation or by the manifest's own field, sorted by digest.

    All of them at once: who asks for one digest asks for thousands, and each manifest is to be read once.
    """
    found: dict[str, dict[str, Descriptor]] = {}
    own: dict[str, str | None] = {}
    for entry in entries:
        subject = (entry.annotations or {}).get(CONTAINERD_SUBJECT)
        if subject is None and entry.media_type in MANIFEST_TYPES:
            if entry.digest not in own:
                own[entry.digest] = source.read_manifest(entry).subject
            subject = own[entry.digest]
        if subject is not None:
            found.setdefault(subject, {})[entry.digest] = entry
    return {subject: [group[key] for key in sorted(group)] for subject, group in found.items()}
