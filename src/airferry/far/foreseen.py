"""What a bundle will meet at a registry, by earlier facts about it: said before anything is sent. Asks no registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from airferry.events import Warned
from airferry.far.relocate import Destination
from airferry.far.shipments import is_artifact
from airferry.oci.closure import Shipment
from airferry.oci.documents import INDEX_TYPES, LAYER_ZSTD, Descriptor
from airferry.oci.entries import referrer_kind
from airferry.registry.profile import RegistryProfile, write_profile
from airferry.registry.trials.kinds import PROBE_ARTIFACT
from airferry.registry.trials.names import depth_of
from airferry.wording import counted, size_text, some_of

SHOWN_FORESEEN = 3


def media_types_of(item: Shipment) -> set[str]:
    """Return the media types of an image or artifact that registries go by: lists, manifests, configs, layers."""
    return {stored.descriptor.media_type for stored in item.closure.manifests} | {
        blob.media_type for blob in item.closure.blobs.values()
    }


def artifact_type_of(item: Shipment) -> str | None:
    """Return the type of a shipment that is an artifact; None of an image."""
    return referrer_kind(item.closure.top) or "" if is_artifact(item) else None


def foresee(shipments: Sequence[Shipment], destination: Destination, known: RegistryProfile) -> list[Warned]:
    """Return what of these shipments the registry is known to refuse, or to take in another way, and the way out."""
    images = [item for item in shipments if not item.optional and not is_artifact(item)]
    twins = [item for item in shipments if item.optional and not is_artifact(item)]
    artifacts = [item for item in shipments if is_artifact(item)]
    return [
        *_refused_images(images, destination, known),
        *_refused_twins(twins, destination, known),
        *_refused_artifacts(artifacts, destination, known),
        *_deep_names(shipments, destination, known),
        *_large_blobs(shipments, destination, known),
    ]


def keep_taken(known: RegistryProfile, shipments: Sequence[Shipment]) -> None:
    """Forget refusals that were noted of the registry and that it did not show with these shipments, which it holds."""
    if not shipments:
        return
    taken = known.disproved(
        {media_type for item in shipments for media_type in media_types_of(item)},
        {artifact_type_of(item) or "" for item in shipments},
        max(depth_of(item.repository) for item in shipments),
    )
    if taken != known:
        write_profile(taken)


def _refused_types(items: Iterable[Shipment], known: RegistryProfile) -> list[str]:
    refused = {name for name, taken in known.media_types.items() if taken is False}
    return sorted(refused & {media_type for item in items for media_type in media_types_of(item)})


def _refused_images(images: Sequence[Shipment], destination: Destination, known: RegistryProfile) -> list[Warned]:
    refused = _refused_types(images, known)
    if not refused:
        return []
    number = sum(bool(media_types_of(item) & set(refused)) for item in images)
    lists = set(refused) & set(INDEX_TYPES)
    if refused == [LAYER_ZSTD]:
        way = "have the bundle built with `compression: gzip`, or another registry"
    elif lists:
        way = "load into a registry that takes lists of images; no build of the bundle goes without"
    else:
        way = "have these types allowed there, or load into another registry"
    what = f"`{destination.registry}` refuses {some_of(refused, SHOWN_FORESEEN)}, which {counted(number, 'image')} of "
    return [Warned(f"{what}the bundle {'has' if number == 1 else 'have'}: the load would fail", hint=way)]


def _refused_twins(twins: Sequence[Shipment], destination: Destination, known: RegistryProfile) -> list[Warned]:
    if not (refused := _refused_types(twins, known)):
        return []
    enroot = (
        "enroot is given the images themselves, which this registry shows to it"
        if known.shows_oci_to_enroot
        else "enroot cannot import from this registry then: use another one for Slurm"
    )
    types = some_of(refused, SHOWN_FORESEEN)
    return [
        Warned(
            f"`{destination.registry}` refuses {types}: the load would leave out {counted(len(twins), 'Docker twin')}",
            hint=enroot,
        )
    ]


def _refused_artifacts(artifacts: Sequence[Shipment], destination: Destination, known: RegistryProfile) -> list[Warned]:
    # what was not tried is taken for one that the registry does not know
    others = known.artifact_types.get(PROBE_ARTIFACT)
    refused = [item for item in artifacts if known.artifact_types.get(artifact_type_of(item) or "", others) is False]
    if not refused:
        return []
    kinds = some_of(sorted({artifact_type_of(item) or "unknown type" for item in refused}), SHOWN_FORESEEN)
    what = f"`{destination.registry}` refuses artifacts of these types: {kinds}"
    number = counted(len(refused), "artifact")
    if destination.artifacts == "require":
        return [
            Warned(
                f"{what}: the load would fail for {number}, as `--artifacts require` asks",
                hint="have the types allowed there, or go without: `--artifacts try`",
            )
        ]
    return [
        Warned(
            f"{what}: the load would leave out {number}",
            hint="images and tags are not affected; keep the bundle, which still holds them",
        )
    ]


def _deep_names(shipments: Sequence[Shipment], destination: Destination, known: RegistryProfile) -> list[Warned]:
    if not known.limits_names:
        return []
    deepest = known.deepest_name or 0
    deep = sorted({item.repository for item in shipments if depth_of(item.repository) > deepest})
    if not deep:
        return []
    return [
        Warned(
            f"`{destination.registry}` takes names of {counted(deepest, 'part')}; these have more: "
            f"{some_of([f'`{name}`' for name in deep], SHOWN_FORESEEN)}: the load would fail",
            hint="use `--flatten`, map names with `--map FROM=TO`, or choose a shorter prefix with `--to`",
        )
    ]


def _large_blobs(shipments: Sequence[Shipment], destination: Destination, known: RegistryProfile) -> list[Warned]:
    largest = known.largest_request_bytes
    if largest is None:
        return []
    blobs: Mapping[str, Descriptor] = {
        digest: blob for item in shipments for digest, blob in item.closure.blobs.items() if blob.size > largest
    }
    if not blobs:
        return []
    most = max(blob.size for blob in blobs.values())
    what = (
        f"`{destination.registry}`, or a proxy in front of it, takes {size_text(largest)} in one request; "
        f"{counted(len(blobs), 'blob')} of the bundle {'is' if len(blobs) == 1 else 'are'} larger, "
        f"up to {size_text(most)}"
    )
    if known.chunks is False:
        hint = "have the limit raised (nginx: `client_max_body_size 0`): the registry takes no uploads in chunks either"
        return [Warned(f"{what}: the load would fail", hint=hint)]
    return [Warned(f"{what}: they would go in chunks", hint="nothing has to be done; a higher limit would be quicker")]
