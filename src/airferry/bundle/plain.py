"""Verification of an image layout that is not a bundle of airferry's, as far as it can be told from itself."""

from __future__ import annotations

from pathlib import Path

from airferry.bundle.beside import BUILD_FILES, BUNDLE_FOLDER
from airferry.bundle.verify import NoBundleManifest, VerifyReport, open_index, verify_bundle
from airferry.events import Emit, silent
from airferry.oci.documents import parse_index
from airferry.oci.layout import INDEX_FILE
from airferry.oci.validate import validate_layout

NOT_CHECKED = (
    "whether anything is missing: no manifest of airferry says what the layout should hold",
    "what the images contain, and from where it came",
)
ORIGIN = "who made it: compare the digest with one from a separate channel (`--root`)"


def verify_any(path: Path, *, root: str | None = None, jobs: int | None = None, emit: Emit = silent) -> VerifyReport:
    """Check a bundle as `verify_bundle` does, archives next to it included, or else an image layout of another tool.

    What lies in the output folder of a build, or next to a build's files, is a bundle whatever it holds: one without
    its manifest is damaged, not another kind of layout.

    Raises:
        UsageError: there is neither.
        IntegrityError: the root is another, or there is no telling what the bundle or layout should hold.
    """
    try:
        return verify_bundle(path, root=root, jobs=jobs, beside=True, emit=emit)
    except NoBundleManifest:
        if (path / BUNDLE_FOLDER).exists() or any((path.absolute().parent / name).exists() for name in BUILD_FILES):
            raise
    return _verify_layout(path, root=root, jobs=jobs, emit=emit)


def _verify_layout(path: Path, *, root: str | None, jobs: int | None, emit: Emit) -> VerifyReport:
    store, data, observed = open_index(path, root)
    found = validate_layout(store, parse_index(data, what=f"`{path / INDEX_FILE}`"), jobs=jobs, emit=emit)
    return VerifyReport(
        path=store.path,
        root=observed,
        root_verified=root is not None,
        images=found.images,
        artifacts=found.artifacts,
        blobs=found.blobs,
        size_bytes=found.size_bytes,
        findings=found.findings,
        is_bundle=False,
        not_checked=NOT_CHECKED if root is not None else (*NOT_CHECKED, ORIGIN),
    )
