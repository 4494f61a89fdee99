"""What of a bundle goes where: a place for each image, and shipments in the order of a load. Talks to no registry."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from airferry.assets.staged import bundle_packs
from airferry.bundle.twins import twin_of
from airferry.bundle.verify import Bundle
from airferry.errors import IntegrityError, UsageError
from airferry.far.relocate import ARTIFACTS_REPOSITORY, Destination, relocate
from airferry.oci.closure import RefusedShipment, Shipment, read_closure
from airferry.oci.digest import digest_hex
from airferry.oci.documents import Descriptor
from airferry.oci.reference import Reference

ARTIFACT_NAME = "artifact "


def place_images(bundle: Bundle, destination: Destination) -> dict[str, Reference]:
    """Return where each image of a bundle goes; a Docker twin goes to the repository of its image.

    Raises:
        UsageError: two images would take one name, a map fits nothing, or a result is not a reference.
    """
    twins = bundle.twins
    images = [name for name in bundle.images if name not in twins]
    places = relocate(images, destination, whole=bundle.originals)
    taken = {str(place): name for name, place in places.items()}
    for name, image in twins.items():
        place = twin_of(places[image.reference])
        if (other := taken.setdefault(str(place), name)) != name:
            raise UsageError(
                f"`{other}` and `{name}` would both become `{place}`",
                hint=f"give one another name: `--map {shlex.quote(f'{other}=OTHER/NAME')}`",
            )
        places[name] = place
    return places


def plan_shipments(bundle: Bundle, destination: Destination, places: Mapping[str, Reference]) -> list[Shipment]:
    """Return all that goes to the registry: images, then artifacts, each to where its subject goes.

    Optional are Docker twins and, unless the destination requires them, artifacts.

    Raises:
        IntegrityError: an artifact refers to content that is not in the bundle.
    """
    twins = bundle.twins
    shipments = [
        Shipment(name, places[name].repository, read_closure(bundle.documents, descriptor), optional=name in twins)
        for name, descriptor in bundle.images.items()
    ]
    homes: dict[str, list[str]] = {}
    for item in shipments:
        for stored in item.closure.manifests:
            homes.setdefault(stored.descriptor.digest, []).append(item.repository)
    waiting = list(bundle.artifacts)
    while waiting:
        held: list[Descriptor] = []
        for descriptor in waiting:
            closure = read_closure(bundle.documents, descriptor)
            subject = closure.top.subject
            if subject is not None and subject not in homes:
                held.append(descriptor)
                continue
            repositories = homes[subject] if subject else [destination.repository(ARTIFACTS_REPOSITORY)]
            for repository in dict.fromkeys(repositories):
                optional = destination.artifacts != "require"
                shipments.append(Shipment(f"{ARTIFACT_NAME}{descriptor.digest}", repository, closure, optional))
                homes.setdefault(descriptor.digest, []).append(repository)
        if len(held) == len(waiting):
            raise IntegrityError(f"artifact `{held[0].digest}` refers to content that is not in the bundle")
        waiting = held
    return shipments


def is_artifact(item: Shipment) -> bool:
    """Tell whether a shipment is one of the bundle's artifacts, not an image or its twin."""
    return item.name.startswith(ARTIFACT_NAME)


def part_skipped(
    shipments: Sequence[Shipment], destination: Destination
) -> tuple[list[Shipment], list[RefusedShipment]]:
    """Return what a load sends, and what it leaves out because the destination takes no artifacts."""
    if destination.artifacts != "skip":
        return list(shipments), []
    kept = [item for item in shipments if not is_artifact(item)]
    return kept, [RefusedShipment(item, "skipped (`--artifacts skip`)") for item in shipments if is_artifact(item)]


def artifact_tag(bundle: Bundle, item: Shipment) -> str | None:
    """Return the tag of an artifact that refers to nothing, so that no garbage collection takes it; else None."""
    if not item.repository.endswith(ARTIFACTS_REPOSITORY):
        return None
    if item.descriptor.digest == bundle.manifest_descriptor.digest:
        return f"bundle-{digest_hex(bundle.root)[:16]}"
    for name, descriptor in bundle_packs(bundle).items():
        if descriptor.digest == item.descriptor.digest:
            return f"model-{name}"
    return f"artifact-{digest_hex(item.descriptor.digest)[:16]}"
