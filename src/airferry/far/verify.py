"""Verification as the far side starts with it: a bundle and the folder it came in, or an image layout as such."""

from __future__ import annotations

from pathlib import Path

from airferry.bundle.beside import lies_in_output
from airferry.bundle.verify import NoBundleManifest, VerifyReport, open_index, verify_bundle
from airferry.defaults import BUNDLE_FOLDER
from airferry.events import Emit, silent
from airferry.oci.documents import parse_index
from airferry.oci.layout import INDEX_FILE
from airferry.oci.validate import validate_layout

NOT_CHECKED = (
    "whether it was a bundle once, or anything is missing: no manifest of airferry says what the layout should hold",
    "what the images contain, and from where it came",
)
ORIGIN = "who made it: compare the digest with one from a separate channel (`--root`)"


def verify(bundle: Path, *, root: str | None = None, jobs: int | None = None, emit: Emit = silent) -> VerifyReport:
    """Check every byte of a bundle and that each image in it is whole, and return what was seen.

    An image layout of another tool is checked as far as can be told from itself: `is_bundle` is false then. What lies
    in the output folder of a build, or next to a build's files, is a bundle whatever it holds: one without its manifest
    is damaged, not another kind of layout.

    Findings are in the report, not raised; `raise_if_wrong` of the report raises them.

    Raises:
        UsageError: there is neither.
        IntegrityError: the root is another, or there is no telling what the bundle or layout should hold.
    """
    try:
        return verify_bundle(bundle, root=root, jobs=jobs, beside=True, emit=emit)
    except NoBundleManifest:
        if (bundle / BUNDLE_FOLDER).exists() or lies_in_output(bundle):
            raise
    return _verify_layout(bundle, root=root, jobs=jobs, emit=emit)


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
        litter=found.litter,
        not_checked=NOT_CHECKED if root is not None else (*NOT_CHECKED, ORIGIN),
    )
