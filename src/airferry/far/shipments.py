"""What of a bundle goes where: a place for each image, and shipments in the order of a load. Talks to no registry."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from airferry.assets.staged import bundle_packs
from airferry.bundle.artifacts import COPY_AGAIN
from airferry.bundle.twins import twin_of
from airferry.bundle.verify import Bundle
from airferry.defaults import ARTIFACTS_REPOSITORY
from airferry.errors import IntegrityError, UsageError
from airferry.far.relocate import Destination, relocate
from airferry.oci.closure import Closure, RefusedShipment, Shipment, read_closure
from airferry.oci.digest import digest_hex
from airferry.oci.documents import Descriptor
from airferry.oci.entries import signature_tag, signed_digest
from airferry.oci.reference import Reference
from airferry.wording import shell_word

ARTIFACT_NAME = "artifact "
# artifacts × the repositories of their subjects
MAX_SHIPMENTS = 100_000


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
                hint=f"give one another name: `--map {shell_word(f'{other}=OTHER/NAME')}`",
            )
        places[name] = place
    return places


def plan_shipments(bundle: Bundle, destination: Destination, places: Mapping[str, Reference]) -> list[Shipment]:
    """Return all that goes to the registry: images, then artifacts, each to where its subject goes.

    Optional are Docker twins and, unless the destination requires them, artifacts.

    Raises:
        IntegrityError: an artifact refers to content that is not in the bundle, or all would be too many.
    """
    twins = bundle.twins
    shipments = [
        Shipment(name, places[name].repository, read_closure(bundle.documents, descriptor), optional=name in twins)
        for name, descriptor in bundle.images.items()
    ]
    homes: dict[str, dict[str, None]] = {}
    for item in shipments:
        for stored in item.closure.manifests:
            homes.setdefault(stored.descriptor.digest, {})[item.repository] = None
    queue = deque((descriptor, read_closure(bundle.documents, descriptor)) for descriptor in bundle.artifacts)
    held: dict[str, list[tuple[Descriptor, Closure]]] = {}
    optional = destination.artifacts != "require"
    while queue:
        descriptor, closure = queue.popleft()
        subject = _subject(descriptor, closure)
        if subject is not None and subject not in homes:
            # it goes where its subject goes, which another artifact may be
            held.setdefault(subject, []).append((descriptor, closure))
            continue
        repositories = list(homes[subject]) if subject else [destination.repository(ARTIFACTS_REPOSITORY)]
        # one that has two tags is listed twice
        repositories = [name for name in repositories if name not in homes.get(descriptor.digest, ())]
        if len(shipments) + len(repositories) > MAX_SHIPMENTS:
            raise IntegrityError(
                f"artifacts and the repositories that they go to make more than {MAX_SHIPMENTS} uploads, the limit",
                hint="map images to fewer repositories with `--map`",
            )
        for repository in repositories:
            shipments.append(Shipment(f"{ARTIFACT_NAME}{descriptor.digest}", repository, closure, optional))
            homes.setdefault(descriptor.digest, {})[repository] = None
        queue += held.pop(descriptor.digest, ())
    for waiting in held.values():
        raise IntegrityError(
            f"artifact `{waiting[0][0].digest}` refers to content that is not in the bundle", hint=COPY_AGAIN
        )
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


def artifact_tags(bundle: Bundle, shipments: Iterable[Shipment]) -> dict[str, list[str]]:
    """Return the tags of artifacts, by digest: cosign's, and those of artifacts that refer to nothing, so that no
    garbage collection takes them.
    """
    packs = {descriptor.digest: name for name, descriptor in bundle_packs(bundle).items()}
    tags: dict[str, list[str]] = {}
    for descriptor in bundle.artifacts:
        if (signature := signature_tag(descriptor)) is not None:
            tags.setdefault(descriptor.digest, []).append(signature)
    for item in shipments:
        own = _artifact_tag(bundle, item, packs)
        if own is not None and item.descriptor.digest not in tags:
            tags[item.descriptor.digest] = [own]
    return tags


def _subject(descriptor: Descriptor, closure: Closure) -> str | None:
    """Return what an artifact belongs to: what cosign's tag of it names, or what it refers to itself."""
    tag = signature_tag(descriptor)
    return signed_digest(tag) if tag is not None else closure.top.subject


def _artifact_tag(bundle: Bundle, item: Shipment, packs: Mapping[str, str]) -> str | None:
    if not item.repository.endswith(ARTIFACTS_REPOSITORY):
        return None
    if item.descriptor.digest == bundle.manifest_descriptor.digest:
        return f"bundle-{digest_hex(bundle.root)[:16]}"
    if (name := packs.get(item.descriptor.digest)) is not None:
        return f"model-{name}"
    return f"artifact-{digest_hex(item.descriptor.digest)[:16]}"
