"""The receipt of a load: what the registry holds afterwards, under which names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import airferry
from airferry.bundle.artifacts import COPY_AGAIN
from airferry.bundle.receipt import (
    LeftOut,
    Receipt,
    ReceiptAsset,
    ReceiptCatalogue,
    ReceiptImage,
    ReceiptTag,
    ReceiptTwin,
)
from airferry.bundle.verify import Bundle
from airferry.defaults import RECEIPT_STEM
from airferry.errors import IntegrityError
from airferry.far.relocate import Destination
from airferry.far.shipments import is_artifact, part_skipped, place_images, plan_shipments
from airferry.far.tags import TagMove
from airferry.host import clock
from airferry.host.canonical import inputs_digest
from airferry.oci.closure import RefusedShipment, Shipment
from airferry.oci.digest import digest_hex
from airferry.oci.reference import Reference
from airferry.wording import printable

MAX_REASON = 2000
ROOT_DIGITS = 16  # as in the tag `bundle-…`
MAX_PLACE_CHARACTERS = 160  # a file name has 255
# neither is in a host, a path or a port, so that no two destinations give one name; no shell and no file system minds
_IN_FILE_NAME = str.maketrans({":": "_", "/": "+", "[": "=", "]": "="})


def receipt_name(destination: Destination, root: str) -> str:
    """Return the file name of a load's receipt: registry, prefix and root, and a mark of how names change, if any.

    Loads into two destinations, or of two bundles, never give the same name.
    """
    place = str(destination).translate(_IN_FILE_NAME)
    if len(place) > MAX_PLACE_CHARACTERS:
        place = place[:MAX_PLACE_CHARACTERS] + "~" + _short(inputs_digest({"to": str(destination)}))
    marks = [RECEIPT_STEM, place, _short(root)]
    if destination.maps or destination.flatten:
        # other names are other tags, whose values from before are in their own receipt
        marks.append(_short(inputs_digest({"maps": dict(destination.maps), "flatten": destination.flatten}))[:8])
    return "-".join(marks) + ".yaml"


def _short(digest: str) -> str:
    return digest_hex(digest)[:ROOT_DIGITS]


def expected_receipt(bundle: Bundle, destination: Destination) -> Receipt:
    """Return the receipt that a load would write, as far as the bundle alone tells: no registry is asked.

    Raises:
        UsageError: two images would collide.
        IntegrityError: the bundle is damaged.
    """
    places = place_images(bundle, destination)
    shipments, _skipped = part_skipped(plan_shipments(bundle, destination, places), destination)
    return make_receipt(bundle, destination, places, (), shipments, verified=False)


def make_receipt(
    bundle: Bundle,
    destination: Destination,
    places: Mapping[str, Reference],
    tags: Sequence[TagMove],
    shipments: Sequence[Shipment],
    *,
    verified: bool,
    left: Sequence[LeftOut] = (),
) -> Receipt:
    """Return the receipt of a load. `verified` says that the bundle's root was given and matched, `left` what is not
    there.

    Raises:
        IntegrityError: a step runs in an image that the bundle does not hold.
    """
    previous = {move.reference: move.previous for move in tags}
    of_images = {str(place) for place in places.values()}
    groups = {group.name: group for group in bundle.manifest.execution_groups}
    twins = {
        item.name: ReceiptTwin(
            reference=str(places[item.name]),
            digest=item.descriptor.digest,
            previous_digest=previous.get(str(places[item.name])),
            pinned=str(places[item.name].with_digest(item.descriptor.digest)),
        )
        for item in shipments
        if item.name in bundle.twins
    }
    images: list[ReceiptImage] = []
    by_name: dict[str, str] = {}
    for entry in bundle.manifest.images:
        place = places[entry.reference]
        pinned = str(place.with_digest(entry.digest))
        before = previous.get(str(place))
        images.append(
            ReceiptImage(
                name=entry.name,
                role=entry.role,
                image=entry.image,
                reference=str(place),
                pinned=pinned,
                digest=entry.digest,
                previous_digest=before,
                platforms=tuple(entry.platforms),
                overlays=groups[entry.name].repo_overlays if entry.name in groups else (),
                env=groups[entry.name].env if entry.name in groups else {},
                distributions=groups[entry.name].distributions if entry.name in groups else {},
                docker_twin=twins.get(entry.docker_twin.reference) if entry.docker_twin else None,
            )
        )
        for name in (entry.image, entry.reference, entry.name):
            by_name.setdefault(name, pinned)
    artifacts = {
        f"{destination.registry}/{item.repository}@{item.descriptor.digest}"
        for item in shipments
        if item.name not in places
    }
    return Receipt(
        bundle_root=bundle.root,
        root_verified=verified,
        registry=str(destination),
        loaded_at=clock.rfc3339(clock.now_s()),
        airferry=airferry.__version__,
        images=tuple(images),
        steps={
            step: _pinned_image(by_name, step, image) for step, image in bundle.manifest.step_execution_images.items()
        },
        targets=tuple(dict.fromkeys(entry.target for entry in bundle.manifest.targets)),
        submit=bundle.manifest.submit,
        catalogue=_catalogue(bundle, destination, shipments),
        assets=tuple(
            ReceiptAsset(name=entry.name, kind=entry.kind, steps=entry.steps, target=entry.target)
            for entry in bundle.manifest.persistent_assets.assets
        ),
        artifacts=tuple(sorted(artifacts)),
        artifact_tags=tuple(
            ReceiptTag(reference=move.reference, digest=move.digest, previous_digest=move.previous)
            for move in sorted(tags, key=lambda move: move.reference)
            if move.reference not in of_images
        ),
        left_out=tuple(left),
    )


def _catalogue(bundle: Bundle, destination: Destination, shipments: Sequence[Shipment]) -> ReceiptCatalogue | None:
    if (entry := bundle.manifest.catalogue) is None:
        return None
    for item in shipments:
        if item.descriptor.digest == entry.digest:
            pinned = f"{destination.registry}/{item.repository}@{entry.digest}"
            return ReceiptCatalogue(pinned=pinned, steps=entry.steps, package=entry.package)
    return None


def _pinned_image(by_name: Mapping[str, str], step: str, image: str) -> str:
    if image not in by_name:
        raise IntegrityError(
            f"the manifest runs step `{step}` in image `{image}`, which is not in the bundle", hint=COPY_AGAIN
        )
    return by_name[image]


def left_out(
    refused: Iterable[RefusedShipment],
    destination: Destination,
    places: Mapping[str, Reference],
    *,
    untagged: Iterable[tuple[TagMove, str]],
) -> tuple[LeftOut, ...]:
    """Return what a load went on without, by the reference that it would have, with the reasons.

    `untagged` are the tags that the registry refused, though it took what they were to stand for.
    """
    found = [
        LeftOut(
            reference=f"{destination.registry}/{one.item.repository}@{one.item.descriptor.digest}"
            if is_artifact(one.item)
            else str(places[one.item.name]),
            digest=one.item.descriptor.digest,
            reason=printable(one.reason, most=MAX_REASON),
        )
        for one in refused
    ]
    found += [
        LeftOut(reference=move.reference, digest=move.digest, reason=printable(reason, most=MAX_REASON))
        for move, reason in untagged
    ]
    return tuple(sorted(found, key=lambda one: one.reference))
