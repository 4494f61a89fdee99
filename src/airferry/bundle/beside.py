"""What lies in an output folder next to the bundle: archives are checked, what belongs to nothing is named.

Reads only. The manifest with the list of files came with the bundle, so no path of it may point outside the folder,
and links are not followed. Files of the operator are his own: they are named, never a finding.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from airferry.bundle.artifacts import read_artifact_file
from airferry.bundle.manifest import MANIFEST_FILE, BundleManifest, SavedImage
from airferry.bundle.receipt import RECEIPT_FILE
from airferry.errors import AirferryError
from airferry.host import files
from airferry.host.threads import parallel_map, usable_cores
from airferry.oci.documents import Index
from airferry.oci.layout import INDEX_FILE, LAYOUT_FILE
from airferry.oci.ports import Source
from airferry.oci.validate import ReportDefect
from airferry.wording import printable

BUNDLE_FOLDER = "bundle"
BUILD_FILES = frozenset(
    {
        BUNDLE_FOLDER,
        ".airferry.lock",
        "airferry-airgap-build-state.yaml",
        "airgap-build-state.yaml",
        "airgap-plan.yaml",
        "airgap-rehearsal.json",
        "airgap.lock.yaml",
        MANIFEST_FILE,
        RECEIPT_FILE,
        f"{RECEIPT_FILE}.pending",
    }
)
# what people sign a root with lies next to the layout, and comes after the build
SIGNATURES = (".asc", ".minisig", ".p7s", ".sig", ".sigstore", ".sigstore.json")
LEADS_OUT = "its name points outside the output folder"  # the manifest is to blame then, not the archive
MAX_NAMED_FILES = 1000
MAX_COMPARED_BYTES = 16 * 1024 * 1024


def holds_layout(folder: Path) -> bool:
    """Tell whether a folder has a file of an image layout, or a link in its place."""
    return any(os.path.lexists(folder / name) for name in (LAYOUT_FILE, INDEX_FILE))


def look_beside(
    folder: Path,
    documents: Source,
    index: Index,
    manifest: BundleManifest,
    root: str,
    *,
    jobs: int | None,
    report: ReportDefect,
) -> tuple[str, ...]:
    """Check the archives of a bundle that lie in its output folder, and return what else is to be said of the folder.

    A damaged archive is reported. Returned are files that belong to nothing in the bundle, copies that differ from what
    the bundle holds, and archives that are not there; MAX_NAMED lines at most.
    """
    said: list[str] = []
    archives = [saved for saved in manifest.saved_images if saved.tar is not None and saved.sha256 is not None]
    for saved, (damage, note) in zip(
        archives,
        parallel_map(lambda saved: _archive(folder, saved), archives, jobs=jobs or usable_cores()),
        strict=True,
    ):
        if damage:
            report(f"archive `{saved.tar}`", damage, None)
        if note:
            said.append(note)
    said += _copies(folder, documents, index, manifest, root)
    known = {*BUILD_FILES, *(entry.title for entry in manifest.artifacts), *(str(saved.tar) for saved in archives)}
    said += [f"`{name}` is not part of the bundle" for name in _others(folder, known)]
    if len(said) > MAX_NAMED_FILES:
        said = [*said[: MAX_NAMED_FILES - 1], f"and {len(said) - MAX_NAMED_FILES + 1} more"]
    return tuple(said)


def _archive(folder: Path, saved: SavedImage) -> tuple[str, str]:
    """Return what is wrong with an archive, and what is to be said of one that is not there; empty if nothing is."""
    path = _inside(folder, str(saved.tar))
    if path is None:
        return LEADS_OUT, ""
    try:
        found = path.lstat()
    except OSError:
        return "", f"archive `{saved.tar}` is missing; the bundle is complete without it"
    if not stat.S_ISREG(found.st_mode) or files.resolved(path) != files.resolved(folder) / str(saved.tar):
        return "is not a regular file; links are not followed", ""
    try:
        digest = files.file_sha256(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}", ""
    return ("" if digest == saved.sha256 else f"has SHA-256 `{digest}`, the manifest says `{saved.sha256}`"), ""


def _copies(folder: Path, documents: Source, index: Index, manifest: BundleManifest, root: str) -> Iterator[str]:
    """Yield the small files next to the bundle that are not what the bundle has of them."""
    expected: dict[str, bytes] = {MANIFEST_FILE: manifest.with_root(root).to_yaml()}
    for entry in manifest.artifacts:
        path = _inside(folder, entry.title)
        if path is None or not path.is_file() or entry.size_bytes > MAX_COMPARED_BYTES:
            continue
        try:
            (descriptor,) = [found for found in index.manifests if found.digest == entry.digest]
            (layer,) = documents.read_manifest(descriptor).manifest.layers
            expected[entry.title] = read_artifact_file(documents, descriptor, media_type=layer.media_type)
        except (AirferryError, ValueError):
            continue  # not a file of ours, or damaged, which is reported where the bundle is checked
    for name, data in sorted(expected.items()):
        path = folder / name
        try:
            same = path.lstat().st_size == len(data) and path.read_bytes() == data
        except FileNotFoundError:
            continue
        except OSError:
            same = False
        if not same:
            yield f"`{name}` differs from the copy in the bundle, which counts"


def _others(folder: Path, known: Collection[str], prefix: str = "") -> Iterator[str]:
    """Yield what nothing of the bundle has put there, folders with a slash; those of known files are looked into."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = prefix + entry.name
        if name in known or (not prefix and entry.name.endswith(SIGNATURES)):
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder and any(other.startswith(f"{name}/") for other in known):
            yield from _others(folder / entry.name, known, f"{name}/")
        else:
            shown = printable(name, most=len(name))
            yield shown + ("/" if is_folder else "")


def _inside(folder: Path, name: str) -> Path | None:
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts or not path.parts else folder / name
