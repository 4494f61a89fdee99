"""What a copy did, or would do: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from airferry.oci.closure import RefusedShipment
from airferry.oci.documents import Descriptor
from airferry.oci.ports import Action


@dataclass(frozen=True, slots=True)
class BlobStep:
    """What was done for one blob: `action` is `send`, `mount` or `link`."""

    action: Action
    digest: str
    size_bytes: int
    repository: str


@dataclass(frozen=True, slots=True)
class ManifestStep:
    """A manifest or index that was sent."""

    digest: str
    size_bytes: int
    repository: str


@dataclass(slots=True)
class CopyReport:
    """What a copy did, or would do: blobs that were sent, mounted, and there before; manifests that were sent.

    `refused` are the optional shipments that the sink does not take.
    """

    steps: list[BlobStep] = field(default_factory=list)
    present_blobs: int = 0
    manifest_steps: list[ManifestStep] = field(default_factory=list)
    refused: list[RefusedShipment] = field(default_factory=list)

    def add_lost(self, repository: str, blob: Descriptor) -> None:
        """Count a blob as sent that a sink said it held, and did not."""
        self.present_blobs -= 1
        self.steps.append(BlobStep("send", blob.digest, blob.size, repository))

    @property
    def manifests(self) -> int:
        """How many manifests and indexes were sent."""
        return len(self.manifest_steps)

    @property
    def manifest_bytes(self) -> int:
        """The bytes of the manifests and indexes that were sent."""
        return sum(step.size_bytes for step in self.manifest_steps)

    @property
    def sent_blobs(self) -> int:
        """How many blobs were sent."""
        return sum(step.action == "send" for step in self.steps)

    @property
    def sent_bytes(self) -> int:
        """The bytes of the blobs that were sent."""
        return sum(step.size_bytes for step in self.steps if step.action == "send")

    @property
    def mounted_blobs(self) -> int:
        """How many blobs one repository took over from another."""
        return sum(step.action == "mount" for step in self.steps)
