"""Shipments into the repositories of one registry, and the audit of what is there. Moves no tag."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from airferry.errors import RegistryError
from airferry.events import Emit, Warned
from airferry.far.relocate import Destination
from airferry.far.shipments import is_artifact
from airferry.far.tags import TagMove
from airferry.oci.closure import RefusedShipment, Shipment
from airferry.oci.copy import CopyOptions, Transfer
from airferry.oci.entries import referrer_kind
from airferry.oci.ports import Source
from airferry.registry.client import RegistryClient
from airferry.registry.failures import STALE_CACHE_HINT
from airferry.registry.sink import RegistrySink
from airferry.registry.uploads import Uploader
from airferry.wording import counted, some_of

SHOWN_LOST = 10
SHOWN_KINDS = 5


class RegistrySinks:
    """The sinks of one registry's repositories. They share an uploader, and so what is learned of the registry."""

    def __init__(self, client: RegistryClient, uploader: Uploader) -> None:
        """Nothing is sent yet."""
        self._client = client
        self._uploader = uploader
        self._sinks: dict[str, RegistrySink] = {}
        self._lock = threading.Lock()

    def __call__(self, repository: str) -> RegistrySink:
        """Return the sink of a repository, the same one each time."""
        with self._lock:
            if repository not in self._sinks:
                self._sinks[repository] = RegistrySink(self._client, repository, uploader=self._uploader)
            return self._sinks[repository]


def load_transfer(source: Source, sinks: RegistrySinks, destination: Destination, *, jobs: int, emit: Emit) -> Transfer:
    """Return the copy that a load is: what the registry holds is read back, and not sent."""
    read_back = destination.audit == "read"
    return Transfer(source, sinks, CopyOptions(jobs=jobs, task="load", skip_held=True, read_back=read_back, emit=emit))


def audit(transfer: Transfer, shipments: Sequence[Shipment], *, registry: str) -> list[RefusedShipment]:
    """Read back what a load sent, before any tag moves; return the optional shipments that are not there after all.

    Raises:
        RegistryError: something is missing that must be there; the message says what.
        IntegrityError: the registry holds something else.
    """
    missing = transfer.audit([item for item in shipments if not item.optional])
    if missing:
        raise RegistryError(
            f"`{registry}` has lost content that it accepted: {some_of(missing, SHOWN_LOST)}",
            hint=f"{STALE_CACHE_HINT}; no tag was moved. A registry that shows manifests by digest only as long as a "
            "tag names them takes no loads",
            missing=missing,
        )
    return transfer.audit_optional([item for item in shipments if item.optional])


def say_untagged(untagged: Sequence[tuple[TagMove, str]], destination: Destination, emit: Emit) -> None:
    """Warn about tags that a load goes on without: what they were to stand for is there, by its digest alone."""
    if untagged:
        shown = [f"`{move.reference}` for `{move.digest}`" for move, _reason in untagged]
        emit(
            Warned(
                f"`{destination.registry}` holds {counted(len(untagged), 'artifact')} without the tag, which it "
                f"refuses: {some_of(shown, SHOWN_KINDS)}: {untagged[0][1]}",
                hint="the receipt lists them under `left_out`; a garbage collection there may remove what has no tag; "
                "`--artifacts require` fails instead",
            )
        )


def say_left_out(without: Sequence[RefusedShipment], destination: Destination, emit: Emit) -> None:
    """Warn about what a load goes on without: Docker twins, and artifacts by their kinds."""
    artifacts = [one for one in without if is_artifact(one.item)]
    twins = [one for one in without if not is_artifact(one.item)]
    if twins:
        emit(
            Warned(
                f"`{destination.registry}` refuses the Docker twins of its images ({len(twins)}), "
                f"so they are skipped and everything else is loaded: {twins[0].reason}",
                hint="enroot then gets the images themselves; `airferry check` tells whether it can import them",
            )
        )
    if artifacts and destination.artifacts != "skip":
        kinds = sorted({referrer_kind(one.item.closure.top) or "unknown type" for one in artifacts})
        emit(
            Warned(
                f"`{destination.registry}` does not take {counted(len(artifacts), 'artifact')} of the bundle, so "
                f"images and tags are loaded without: {some_of(kinds, SHOWN_KINDS)}: {artifacts[0].reason}",
                hint="the receipt lists them under `left_out`, and the bundle still holds them: keep it for the step "
                "catalogue and assets; `--artifacts require` fails instead, `--artifacts skip` sends none",
            )
        )
