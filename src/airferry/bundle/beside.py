"""What lies in an output folder next to the bundle: what people act on there is checked against the bundle.

Reads only. Archives and copies are what the bundle says, by digest. A second layout, and a file that takes the name of
a part which the bundle does not have, are findings, as someone would act on them. Other files are the operator's own:
they are named, never a finding. Paths come from the bundle, so none may lead out of the folder, and links are not
followed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath

from airferry.bundle.artifacts import MANIFEST_CONTENT, OWN_ARTIFACTS, read_artifact_file
from airferry.bundle.manifest import MANIFEST_FILE, BundleManifest, SavedImage
from airferry.bundle.receipt import is_receipt_name, receipts_in
from airferry.defaults import BUNDLE_FOLDER, CATALOGUE_FOLDER, OVERLAYS_FOLDER, SITE_FILE
from airferry.errors import AirferryError, HostError
from airferry.host import files
from airferry.host.threads import parallel_map, usable_cores
from airferry.oci.digest import digest_hex
from airferry.oci.documents import TITLE, Descriptor, Index
from airferry.oci.layout import INDEX_FILE, LAYOUT_FILE
from airferry.oci.litter import entry_litter_source, litter_text
from airferry.oci.ports import Source
from airferry.oci.validate import MAX_DEFECT_CHARACTERS, ReportDefect
from airferry.wording import printable

LOCK_COPY = "airgap.lock.yaml"
# written before and after a build as well, so they may differ from what the bundle has, and no far side acts on them
WORKING_FILES = frozenset(
    {
        ".airferry.lock",
        "airferry-airgap-build-state.yaml",
        "airgap-build-state.yaml",
        "airgap-plan.yaml",
        "airgap-rehearsal.json",
        LOCK_COPY,
    }
)
# what commands of the far side write, and read again, where they run in this folder; no build makes them
FAR_SIDE_FILES = frozenset({SITE_FILE, OVERLAYS_FOLDER, CATALOGUE_FOLDER})
# what people sign a root with lies next to the layout, and comes after the build
SIGNATURES = (".asc", ".minisig", ".p7s", ".sig", ".sigstore", ".sigstore.json")
LEADS_OUT = "its name points outside the output folder"  # the manifest is to blame then, not the archive
DIFFERS = "differs from the copy in the bundle, which counts"
NOT_REGULAR = "is not a regular file; links are not followed"
SECOND_LAYOUT = f"is another image layout; the root covers `{BUNDLE_FOLDER}` alone"
MAX_NAMED_FILES = 1000
# no build leaves so many files
MAX_SEEN_FILES = 20_000
TOO_MANY = f"more than {MAX_SEEN_FILES} files lie there; not all were looked at"
NOT_SEARCHED = f"not all folders were searched for image layouts: there are more than {MAX_SEEN_FILES} files in them"


@dataclass(frozen=True)
class Surroundings:
    """An output folder, and what the bundle in it says of the files next to it."""

    folder: Path
    documents: Source
    index: Index
    manifest: BundleManifest
    manifest_descriptor: Descriptor
    root: str

    @property
    def archives(self) -> list[SavedImage]:
        """The images that have an archive."""
        return [saved for saved in self.manifest.saved_images if saved.tar is not None and saved.sha256 is not None]

    @cached_property
    def copies(self) -> Mapping[str, str]:
        """The SHA-256 of each small file that the bundle has a copy of, by its name; nothing that cannot be read."""
        found: dict[str, str] = {}
        by_digest = {entry.digest: entry for entry in self.index.manifests}
        for entry in self.manifest.artifacts:
            descriptor = by_digest.get(entry.digest)
            if descriptor is None or not entry.artifact_type.startswith(OWN_ARTIFACTS):
                continue
            try:
                layers = self.documents.read_manifest(descriptor).manifest.layers
            except AirferryError:
                continue  # damaged, which is reported where the bundle is checked
            if len(layers) == 1 and (layers[0].annotations or {}).get(TITLE) == entry.title:
                found[entry.title] = digest_hex(layers[0].digest)
        try:
            inside = read_artifact_file(self.documents, self.manifest_descriptor, media_type=MANIFEST_CONTENT)
            # the bytes that were sealed, not those that this version would write
            found[MANIFEST_FILE] = hashlib.sha256(inside + f"root: {self.root}\n".encode()).hexdigest()
        except AirferryError:
            pass
        return found

    @property
    def known(self) -> frozenset[str]:
        """The names of all that may lie there."""
        return frozenset({BUNDLE_FOLDER, *WORKING_FILES, *self.copies, *(str(saved.tar) for saved in self.archives)})

    @property
    def reserved(self) -> frozenset[str]:
        """The names that parts of this bundle would have, were there such parts: nothing else may take them."""
        groups = self.manifest.execution_groups
        launcher = self.manifest.launcher_image
        names = {group.tar for group in groups} | ({launcher.tar} if launcher is not None else set())
        for group in groups:
            names |= {f"requirements-{group.name}.txt", f"repo-overlays-{group.name}.json"}
        return frozenset(names)


def holds_layout(folder: Path) -> bool:
    """Tell whether a folder has a file of an image layout, or a link in its place."""
    return any(os.path.lexists(folder / name) for name in (LAYOUT_FILE, INDEX_FILE))


def lies_in_output(layout: Path) -> bool:
    """Tell whether next to a layout is what a build leaves next to a bundle, or, next to `bundle`, what a load does.

    A load writes its receipt where it was started: any other layout may lie in that folder.
    """
    folder = layout.absolute().parent
    if any((folder / name).exists() for name in (*WORKING_FILES, BUNDLE_FOLDER, MANIFEST_FILE)):
        return True
    try:
        return layout.absolute().name == BUNDLE_FOLDER and bool(receipts_in(folder))
    except HostError:
        return False


def look_beside(
    around: Surroundings, *, jobs: int | None = None, archives: bool = True, report: ReportDefect
) -> tuple[str, ...]:
    """Check what lies in an output folder next to the bundle, and return what else is to be said of the folder.

    Reported are archives and copies that are not what the bundle says, other image layouts, and what takes the name of
    a part. Returned are files that belong to nothing in the bundle, and archives that are not there; MAX_NAMED_FILES
    lines at most. Without `archives`, their content is not read.
    """
    said: list[str] = []
    saved = around.archives if archives else []
    # a file that many images name, or that many names are links to, is read once
    files_of = {str(one.tar): _file_of(around.folder, str(one.tar)) for one in saved}
    unique = {file: name for name, file in files_of.items()}
    seen = parallel_map(lambda name: _archive(around.folder, name), unique.values(), jobs=jobs or usable_cores())
    looked = dict(zip(unique, seen, strict=True))
    for one in saved:
        digest, damage, note = looked[files_of[str(one.tar)]]
        if not damage and not note and digest != one.sha256:
            damage = f"has SHA-256 `{digest}`, the manifest says `{one.sha256}`"
        if damage:
            report(f"archive `{one.tar}`", damage, None)
        if note:
            said.append(f"archive `{one.tar}` {note}")
    for name, digest in sorted(around.copies.items()):
        if damage := _copy(around.folder, name, digest):
            if name == LOCK_COPY:
                said.append(f"`{name}` {damage}")
            elif name not in WORKING_FILES:
                report(f"file `{name}`", damage, None)
    others = _Others(around, report)
    said += [*others.look(), *others.unseen]
    if len(said) > MAX_NAMED_FILES:
        said = [*said[: MAX_NAMED_FILES - 1], f"and {len(said) - MAX_NAMED_FILES + 1} more"]
    return tuple(said)


def _file_of(folder: Path, name: str) -> tuple[int, int] | str:
    """Return what tells the file of a name from others: device and inode; the name itself where there is none."""
    path = _inside(folder, name)
    try:
        found = path.lstat() if path is not None else None
    except OSError:
        found = None
    # a folder on the way may be a link, which is refused: names that lead there by different ways stay apart
    if (
        found is None
        or not stat.S_ISREG(found.st_mode)
        or files.resolved(folder / name) != files.resolved(folder) / name
    ):
        return name
    return found.st_dev, found.st_ino


def _archive(folder: Path, name: str) -> tuple[str, str, str]:
    """Return the digest of an archive, what is wrong with it, and what is to be said of one that is not there."""
    path = _inside(folder, name)
    if path is None:
        return "", LEADS_OUT, ""
    if not os.path.lexists(path):
        return "", "", "is missing; the bundle is complete without it"
    return *_sha256(folder, name), ""


def _copy(folder: Path, name: str, expected: str) -> str:
    """Return what is wrong with a copy of what the bundle holds; empty if it is the same, or not there."""
    path = _inside(folder, name)
    if path is None or not os.path.lexists(path):
        return ""
    digest, damage = _sha256(folder, name)
    return damage or ("" if digest == expected else DIFFERS)


def _sha256(folder: Path, name: str) -> tuple[str, str]:
    """Return the digest of a file that no link leads to, or what is wrong with it."""
    path = folder / name
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or files.resolved(path) != files.resolved(folder) / name:
            return "", NOT_REGULAR
        return files.file_sha256(path), ""
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"


class _Others:
    """A walk over all that nothing of the bundle has put into a folder."""

    def __init__(self, around: Surroundings, report: ReportDefect) -> None:
        self._folder = around.folder
        self._report = report
        self._known = around.known
        self._reserved = around.reserved - self._known
        names = {*self._known, *self._reserved}
        folders = {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}
        self._known_folders = {str(parent) for name in self._known for parent in PurePosixPath(name).parents}
        self._folded = {_folded(name): name for name in sorted(names | folders)}
        self._left = MAX_SEEN_FILES
        self.unseen: list[str] = []

    def look(self, prefix: str = "") -> Iterator[str]:
        """Report what someone would take for a part, and yield the rest, folders with a slash."""
        found = self._entries(self._folder / prefix, most=MAX_SEEN_FILES + 1)
        if len(found) > MAX_SEEN_FILES:
            self._report(f"folder `{self._folder / prefix}`", TOO_MANY, None)
        for entry in found:
            name = prefix + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if name == BUNDLE_FOLDER or (name in self._known and self._is_checked(name, entry)):
                continue
            if is_folder and name in self._known_folders:
                yield from self.look(f"{name}/")
            elif not (problem := self._problem(name, entry, is_folder=is_folder)):
                if not prefix and entry.name.endswith(SIGNATURES) and entry.is_file(follow_symlinks=False):
                    continue
                if (source := entry_litter_source(entry)) is not None:
                    yield litter_text(name, entry.path, source, is_folder=is_folder)
                    continue
                shown = f"`{printable(name, most=len(name))}{'/' if is_folder else ''}` is not part of the bundle"
                acted_on = name in FAR_SIDE_FILES or is_receipt_name(name)
                yield f"{shown}; use it only if it was made here" if acted_on else shown
            else:
                self._report(f"{'folder' if is_folder else 'file'} `{name}`", problem, None)

    def _is_checked(self, name: str, entry: os.DirEntry[str]) -> bool:
        """Tell whether a known name needs no word here: what is not as it should be is reported elsewhere."""
        return name not in WORKING_FILES or entry.is_file(follow_symlinks=False)

    def _problem(self, name: str, entry: os.DirEntry[str], *, is_folder: bool) -> str:
        """Return why something that is not known is a finding; empty if it is the operator's own."""
        if _folded(name) in (LAYOUT_FILE, INDEX_FILE, "blobs"):
            return SECOND_LAYOUT
        if name in self._reserved:
            return "has the name of a part that this bundle does not have; the root does not cover it"
        if name in self._known:
            return NOT_REGULAR
        if like := self._folded.get(_folded(name)):
            if like == name:
                return "is not a folder; links are not followed"
            return f"is not part of the bundle, but its name looks like `{like}`"
        if (is_folder or entry.is_symlink()) and self._layout_below(Path(entry.path)):
            return SECOND_LAYOUT
        return ""

    def _layout_below(self, folder: Path) -> bool:
        """Tell whether an image layout lies anywhere below a folder, as far as it may be searched."""
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            if holds_layout(place):
                return True
            if place.is_symlink() or self._left < 0:
                continue
            found = self._entries(place, most=self._left + 1)
            self._left -= len(found)
            if self._left < 0:
                self.unseen.append(NOT_SEARCHED)
            waiting += [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
        return False

    def _entries(self, folder: Path, *, most: int) -> list[os.DirEntry[str]]:
        """Return what is in a folder, sorted; what cannot be read, such as a medium's own `lost+found`, is noted."""
        try:
            with os.scandir(folder) as entries:
                return sorted(islice(entries, most), key=lambda entry: entry.name)
        except OSError as error:
            name = printable(str(folder.relative_to(self._folder)), most=MAX_DEFECT_CHARACTERS)
            self.unseen.append(f"`{name}/` cannot be looked into: {error.strerror}")
            return []


def _folded(name: str) -> str:
    """Return a name as it looks: no case, no compatibility forms, nothing invisible, no dots or blanks at its end."""
    seen = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFKC", seen).casefold().rstrip(". ")


def _inside(folder: Path, name: str) -> Path | None:
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts or not path.parts else folder / name
