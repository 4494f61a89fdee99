"""Receipts as a load leaves them: one execution image, in the registry of a site, and the targets that run in it."""

from __future__ import annotations

from typing import Any

from airferry.bundle.receipt import Receipt, ReceiptImage

DIGEST = "sha256:" + "c" * 64
PINNED = f"hub.site:5000/airgap/trainer@{DIGEST}"


def loaded_receipt(*targets: str, steps: dict[str, str] | None = None, **image: Any) -> Receipt:
    """Return a receipt of these targets; what is given of the image takes the place of what it has else."""
    trainer = {
        "name": "trainer",
        "role": "execution",
        "image": "trainer:airgap",
        "reference": "hub.site:5000/airgap/trainer:airgap",
        "pinned": PINNED,
        "digest": DIGEST,
        "platforms": ("linux/amd64",),
    }
    return Receipt(
        bundle_root=DIGEST,
        root_verified=True,
        registry="hub.site:5000/airgap",
        loaded_at="2026-01-01T00:00:00Z",
        airferry="0",
        images=(ReceiptImage.model_validate(trainer | image),),
        steps=steps or {target.partition(":")[0]: PINNED for target in targets},
        targets=targets,
    )
