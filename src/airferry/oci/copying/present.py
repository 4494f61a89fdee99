"""Blobs that a sink says it holds are read where that is doubtful, and sent again if they cannot be. Nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence

from airferry.errors import RegistryError
from airferry.host.threads import parallel_map
from airferry.oci.closure import Shipment
from airferry.oci.copying.report import CopyReport
from airferry.oci.documents import Descriptor
from airferry.oci.ports import BlobOffer, Sink, Source


def doubtful_blobs(shipments: Sequence[Shipment], report: CopyReport) -> list[tuple[str, Descriptor]]:
    """Return the blobs, each with its repository, that were there although a manifest that names them was not.

    That is so where images share blobs, and where a garbage collection took the manifest, perhaps the blob too: the
    cache of docker-registry 2 and 3 answers for blobs that are gone until it is restarted (distribution#3743).
    """
    moved = {(step.repository, step.digest) for step in report.steps}
    stored = {(step.repository, step.digest) for step in report.manifest_steps}
    refused = {id(one.item) for one in report.refused}
    found = {
        (item.repository, blob.digest): blob
        for item in shipments
        if id(item) not in refused
        for manifest in item.closure.manifests
        if (item.repository, manifest.descriptor.digest) in stored
        for blob in item.closure.blobs.values()
        if (item.repository, blob.digest) not in moved
    }
    return [(repository, blob) for (repository, _digest), blob in found.items()]


def send_unreadable(
    doubtful: Sequence[tuple[str, Descriptor]], source: Source, sinks: Callable[[str], Sink], *, jobs: int
) -> list[tuple[str, Descriptor]]:
    """Send again what of these blobs the sinks cannot give, and return that.

    Raises:
        RegistryError: a sink takes one again, and still cannot give it.
        IntegrityError: the source is not what its descriptor says.
    """

    def mend(one: tuple[str, Descriptor]) -> bool:
        repository, blob = one
        sink = sinks(repository)
        if sink.gives_blob(blob):
            return False
        sink.take_blob(BlobOffer(blob, source), absent=True)
        if not sink.gives_blob(blob):
            raise RegistryError(
                f"`{sink}` says that it holds blob `{blob.digest}`, and cannot give it",
                hint="its cache may name what a garbage collection has removed: restart the registry, then rerun",
            )
        return True

    mended = parallel_map(mend, doubtful, jobs=jobs)
    return [one for one, sent in zip(doubtful, mended, strict=True) if sent]


def send_manifests_as_blobs(
    shipments: Sequence[Shipment], repositories: Collection[str], sinks: Callable[[str], Sink]
) -> None:
    """Bring the bytes of manifests into repositories that promised blobs they could not give.

    distribution stores no manifest whose bytes its cache names, and says that it did; an upload it does store.
    """
    for item in shipments:
        if item.repository in repositories:
            for stored in item.closure.manifests:
                sinks(item.repository).put_blob(stored.descriptor, io.BytesIO(stored.data))
