"""What the facts about a registry mean for one bundle: how much of it each of them is about. Asks no registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from airferry.bundle.verify import open_bundle
from airferry.far.foreseen import artifact_type_of, media_types_of
from airferry.far.relocate import Destination
from airferry.far.shipments import is_artifact, part_skipped, place_images, plan_shipments
from airferry.oci.closure import Shipment
from airferry.registry.profile import RegistryProfile
from airferry.registry.trials.names import depth_of
from airferry.wording import counted, size_text

NONE_OF_IT = "nothing in this bundle"


def shipments_of(bundle: Path, destination: Destination) -> list[Shipment]:
    """Return what a load of a bundle would send, by the bundle alone.

    Raises:
        UsageError: there is no bundle, or two of its images would have one name there.
        IntegrityError: it is damaged.
    """
    opened = open_bundle(bundle)
    places = place_images(opened, destination)
    return part_skipped(plan_shipments(opened, destination, places), destination)[0]


def has_twins(shipments: Sequence[Shipment]) -> bool:
    """Tell whether images of a bundle have Docker twins."""
    return any(item.optional and not is_artifact(item) for item in shipments)


def facts_for_bundle(shipments: Sequence[Shipment], known: RegistryProfile) -> dict[str, str]:
    """Return, by the name of a fact, what of a bundle it is about."""
    images = [item for item in shipments if not item.optional and not is_artifact(item)]
    twins = [item for item in shipments if item.optional and not is_artifact(item)]
    artifacts = [item for item in shipments if is_artifact(item)]
    sizes = {digest: blob.size for item in shipments for digest, blob in item.closure.blobs.items()}
    places = {(item.repository, digest) for item in shipments for digest in item.closure.blobs}
    again = Counter(digest for _repository, digest in places)
    shared = sum(sizes[digest] * (number - 1) for digest, number in again.items())
    largest = f"the largest blob has {size_text(max(sizes.values(), default=0))}"
    deepest = max((depth_of(item.repository) for item in shipments), default=0)
    with_twins = f"{counted(len(twins), 'Docker twin')}" if twins else "no Docker twins"
    facts = {
        "mounts": f"{size_text(shared)} are in more than one repository",
        "chunks": largest,
        "resumes": largest,
        "survives_breaks": largest,
        "referrers": counted(len(artifacts), "artifact"),
        "shows_oci_to_enroot": f"{counted(len(images), 'image')}, {with_twins}",
        "takes_docker_lists": with_twins,
        "deletes_tags": f"{counted(len(images) + len(twins), 'tag')} of images",
        "deletes_manifests": f"{counted(len(images), 'image')} that a later load may take the place of",
        "deletes_blobs": f"{counted(len(sizes), 'blob')}, {size_text(sum(sizes.values()))}",
        **dict.fromkeys(("largest_chunk_bytes", "largest_upload_bytes", "largest_tried_bytes"), largest),
        "largest_request_bytes": _requests(sizes.values(), known),
        "smallest_chunk_bytes": largest,
        "deepest_name": f"the deepest name has {counted(deepest, 'part')}",
    }
    kinds = Counter(kind for item in shipments for kind in media_types_of(item))
    kinds.update(artifact_type_of(item) or "" for item in artifacts)
    for name in (*known.media_types, *known.artifact_types):
        facts[name] = f"in {kinds[name]} of its {len(shipments)} images and artifacts" if kinds[name] else NONE_OF_IT
    return facts


def _requests(sizes: Iterable[int], known: RegistryProfile) -> str:
    limit = known.limits().chunked_above_bytes
    larger = sum(size > limit for size in sizes)
    if not larger:
        return "no blob is larger"
    return f"{counted(larger, 'blob')} above {size_text(limit)}, to be sent in parts"
