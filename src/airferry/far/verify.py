"""Verification of a bundle as the far side starts with it: the bundle, and the folder that it came in."""

from __future__ import annotations

from pathlib import Path

from airferry.bundle.verify import VerifyReport, verify_bundle
from airferry.events import Emit, silent


def verify(bundle: Path, *, root: str | None = None, emit: Emit = silent) -> VerifyReport:
    """Check every byte of a bundle and that each image in it is whole, and return what was seen.

    Findings are in the report, not raised; `raise_if_wrong` of the report raises them.

    Raises:
        UsageError: there is no bundle.
        IntegrityError: the root is another, or there is no telling what the bundle should hold.
    """
    return verify_bundle(bundle, root=root, beside=True, emit=emit)
