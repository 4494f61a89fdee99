"""Shipments into the repositories of one registry, and the audit of what is there. Moves no tag."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from airferry.errors import RegistryError
from airferry.events import Emit
from airferry.oci.copy import CopyOptions, Shipment, Transfer
from airferry.oci.ports import Source
from airferry.registry.client import RegistryClient
from airferry.registry.sink import RegistrySink
from airferry.registry.uploads import Uploader
from airferry.wording import some_of

SHOWN_MISSING = 10


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


def load_transfer(source: Source, sinks: RegistrySinks, *, jobs: int, emit: Emit) -> Transfer:
    """Return the copy that a load is: what the registry holds is read back, and not sent."""
    return Transfer(source, sinks, CopyOptions(jobs=jobs, task="load", skip_held=True, emit=emit))


def audit(transfer: Transfer, shipments: Sequence[Shipment], *, registry: str) -> None:
    """Read back what a load sent, before any tag moves.

    Raises:
        RegistryError: something is missing; the message says what.
        IntegrityError: the registry holds something else.
    """
    missing = transfer.audit(shipments)
    if missing:
        raise RegistryError(
            f"`{registry}` has lost content that it accepted: {some_of(missing, SHOWN_MISSING)}",
            hint="check whether the registry runs garbage collection during the load; no tag was moved, rerun",
            missing=missing,
        )
