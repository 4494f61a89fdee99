"""Where a bundle came from, as its manifest says: a claim, until the root was compared with the one that was sent."""

from __future__ import annotations

from dataclasses import dataclass

from airferry.bundle.beside import LOCK_COPY
from airferry.bundle.manifest import BundleManifest
from airferry.wording import counted, printable

MAX_WORKFLOW_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class BundleOrigin:
    """What wrote a bundle, for what, and from what.

    `lock` is the digest of `airgap.lock.yaml`, `catalogue` that of the step catalogue as it was carried: None where
    there is none. `steps` is the folder of the steps in it, `tracked` whether it is what Git tracked.
    """

    airferry: str
    workflow: str | None
    targets: tuple[str, ...]
    platforms: tuple[str, ...]
    lock: str | None
    catalogue: str | None
    steps: str | None
    files: int | None
    tracked: bool | None

    def lines(self) -> list[str]:
        """Return the facts as lines to read."""
        what = f"`{self.workflow}`, " if self.workflow else ""
        lines = [
            f"written by airferry {self.airferry}: {what}{counted(len(self.targets), 'target')} for "
            f"{', '.join(self.platforms) or 'no platform'}"
        ]
        if self.catalogue is not None and self.files is not None:
            tracked = "that Git tracked" if self.tracked else "of a folder"
            lines.append(
                f"catalogue {self.catalogue}: {counted(self.files, 'file')} {tracked}, steps in `{self.steps}`"
            )
        if self.lock is not None:
            lines.append(f"lock {self.lock}")
        return lines


def origin_of(manifest: BundleManifest) -> BundleOrigin:
    """Return what a manifest says of the origin of its bundle."""
    name, entry = manifest.workflow.get("name"), manifest.catalogue
    return BundleOrigin(
        airferry=manifest.tool.airferry,
        # of what is free in a manifest, the only text that is shown
        workflow=printable(str(name), most=MAX_WORKFLOW_CHARACTERS) if name else None,
        targets=tuple(target.target for target in manifest.targets),
        platforms=tuple(sorted({platform for image in manifest.images for platform in image.platforms})),
        lock=next((f"sha256:{item.sha256}" for item in manifest.locks if item.path == LOCK_COPY), None),
        catalogue=entry.digest if entry else None,
        steps=entry.steps if entry else None,
        files=entry.files if entry else None,
        tracked=entry.tracked if entry else None,
    )
