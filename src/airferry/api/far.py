"""The far side: verify a bundle, load it into a registry, and put the tags of a load back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.bundle.receipt import RECEIPT_FILE, Receipt
from airferry.bundle.verify import VerifyReport, verify_bundle
from airferry.events import Emit, silent
from airferry.far import load as loading
from airferry.far import tags
from airferry.jobs.places import OVERLAYS_FOLDER
from airferry.jobs.submission import submit_command
from airferry.registry.client import ClientOptions
from airferry.wording import counted, size_text

RollbackResult = tags.RollbackResult


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """What a load did, or with `dry_run` would do."""

    result: loading.LoadResult
    receipt_path: Path

    @property
    def receipt(self) -> Receipt:
        """What the registry holds now, under which references."""
        return self.result.receipt

    @property
    def summary(self) -> str:
        """One line: what was sent, what was there before, and how many tags moved."""
        pushed = self.result.pushed
        return (
            f"{counted(pushed.sent_blobs, 'blob')} sent ({size_text(pushed.sent_bytes)}), {pushed.mounted_blobs} taken "
            f"over from another repository, {pushed.present_blobs} already present; "
            f"{counted(pushed.manifests, 'manifest')}, "
            f"{len(self.result.moved_tags)} of {counted(len(self.result.tags), 'tag')} moved"
        )

    @property
    def baked(self) -> bool:
        """Whether an image holds Git checkouts: its steps need a config that does not clone them."""
        return any(group.repo_overlays for group in self.result.manifest.execution_groups)

    def submit_commands(self) -> list[str]:
        """Return what submits each target, `EXECUTOR`, `CONFIG` and `PROFILE` being left to fill in.

        A step whose image holds Git checkouts takes the config that `airferry overlays` writes: that drops them from
        `run.env.mounts`, and no override of that key can, as overrides come after the profile and drop its storage too.
        """
        groups = [group for group in self.result.manifest.execution_groups if group.repo_overlays]
        held = {name for group in groups for name in group.targets or group.steps}
        steps = self.receipt.steps
        commands = []
        for target in dict.fromkeys((*self.receipt.targets, *steps)):
            step, _, config = target.partition(":")
            image = steps.get(target) or steps.get(step)
            if image is None or (not config and any(other.startswith(f"{step}:") for other in self.receipt.targets)):
                continue
            named, overrides = config or "CONFIG", {"run.env.container_image": image}
            if held & {target, step}:
                named, overrides = f"{OVERLAYS_FOLDER}/EXECUTOR/{step}/{named}.yaml", {}
            template = self.receipt.submit
            commands.append(
                submit_command(step, config=named, profile="PROFILE", overrides=overrides, template=template)
            )
        return commands

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        pushed = self.result.pushed
        return {
            "dry_run": self.result.dry_run,
            "receipt_path": None if self.result.dry_run else str(self.receipt_path),
            "sent_blobs": pushed.sent_blobs,
            "sent_bytes": pushed.sent_bytes,
            "mounted_blobs": pushed.mounted_blobs,
            "present_blobs": pushed.present_blobs,
            "manifests": pushed.manifests,
            "steps": [
                {
                    "action": step.action,
                    "repository": step.repository,
                    "digest": step.digest,
                    "size_bytes": step.size_bytes,
                }
                for step in pushed.steps
            ]
            + [
                {
                    "action": "manifest",
                    "repository": step.repository,
                    "digest": step.digest,
                    "size_bytes": step.size_bytes,
                }
                for step in pushed.manifest_steps
            ],
            "tags": [
                {"tag": move.reference, "digest": move.digest, "previous": move.previous, "moved": move.needed}
                for move in self.result.tags
            ],
            "receipt": self.receipt.model_dump(mode="json"),
        }


def verify(bundle: Path, *, root: str | None = None, emit: Emit = silent) -> VerifyReport:
    """Check every byte of a bundle and that each image in it is whole, and return what was seen.

    Raises:
        UsageError: there is no bundle.
        IntegrityError: the root is another, or there is no telling what the bundle should hold.
    """
    return verify_bundle(bundle, root=root, beside=True, emit=emit)


def load(
    bundle: Path,
    *,
    to: str,
    root: str | None = None,
    receipt: Path | None = None,
    maps: Mapping[str, str] | None = None,
    flatten: bool = False,
    dry_run: bool = False,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> LoadOutcome:
    """Verify a bundle, load it into `HOST[:PORT][/PREFIX]`, read back what is there, and write the receipt.

    The receipt goes to `airgap-receipt.yaml` in the current folder unless another path is given; nothing is written
    into the bundle. A second load transfers nothing.

    Raises:
        UsageError: there is no bundle, no registry, or two images would collide.
        IntegrityError: the bundle is damaged.
        RegistryError: the registry does not answer, refuses, or lacks something afterwards.
    """
    path = receipt or Path(RECEIPT_FILE)
    result = loading.load_bundle(
        bundle,
        to=to,
        receipt_path=path,
        root=root,
        maps=maps,
        flatten=flatten,
        dry_run=dry_run,
        options=options,
        emit=emit,
    )
    return LoadOutcome(result, path)


def rollback(receipt: Path, *, options: ClientOptions | None = None, emit: Emit = silent) -> RollbackResult:
    """Put the tags of a load back as they were before it. Images and blobs stay. Idempotent.

    Raises:
        IntegrityError: it is not a receipt.
        RegistryError: tags are not as they were before the load; the message says which, and why.
    """
    return tags.roll_back(receipt, options=options, emit=emit)
