"""Opening and verifying a bundle that others, or a medium, hand over. Reads only, and trusts nothing in it.

Integrity is that everything is what the root says; origin is the root itself, which must come over a separate
channel.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.bundle.artifacts import COPY_AGAIN, MANIFEST_ARTIFACT, MANIFEST_CONTENT, OWN_ARTIFACTS, read_artifact_file
from airferry.bundle.beside import LEADS_OUT, Surroundings, holds_layout, look_beside
from airferry.bundle.manifest import ArtifactEntry, BundleManifest, ImageEntry, read_manifest
from airferry.bundle.origin import BundleOrigin, origin_of
from airferry.bundle.root import parse_root
from airferry.bundle.twins import images_text
from airferry.defaults import BUNDLE_FOLDER
from airferry.errors import AirferryError, IntegrityError, UsageError, advising
from airferry.events import Emit, Warned, silent
from airferry.host import files
from airferry.host.canonical import plain_data
from airferry.oci.closure import RememberingSource
from airferry.oci.digest import digest_of
from airferry.oci.documents import IMAGE_INDEX, MAX_NESTED, Descriptor, Index, expect_one_meaning, parse_index
from airferry.oci.entries import marked_subject, names_of, referrer_kind, signature_tag
from airferry.oci.layout import INDEX_FILE, LAYOUT_FILE, LayoutStore
from airferry.oci.ports import Source
from airferry.oci.reference import parse_reference
from airferry.oci.validate import (
    MAX_DEFECT_CHARACTERS,
    Defect,
    ImagePart,
    Inspector,
    report_strays,
    report_unnamed,
)
from airferry.wording import counted, printable, shell_word, some_of

SHOWN_FINDINGS = 5
COPY_BESIDE = "use none of these files: copy them again, or remove them"
NOT_A_BUNDLE = (
    "if it was sent to you as a bundle, copy that again from the source; images that `airferry copy` or another tool "
    "wrote are checked by `airferry verify`, and brought to a registry by `airferry copy`"
)


class NoBundleManifest(IntegrityError):
    """A layout holds nothing that airferry made: it may be an image layout of another tool."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was opened: its layout, its index and root, and the manifest inside it.

    `documents` is the layout as a source that reads and parses each manifest once. `root_verified` says whether a root
    was given and matched.
    """

    store: LayoutStore
    index: Index
    root: str
    manifest: BundleManifest
    manifest_descriptor: Descriptor
    documents: Source
    root_verified: bool = False

    @property
    def images(self) -> dict[str, Descriptor]:
        """The images by full reference, sorted."""
        found = {
            name: entry for entry in self.index.manifests if entry.artifact_type is None for name in names_of(entry)
        }
        return dict(sorted(found.items()))

    @property
    def twins(self) -> dict[str, ImageEntry]:
        """The images that have a Docker twin, by the full reference of the twin."""
        return {entry.docker_twin.reference: entry for entry in self.manifest.images if entry.docker_twin is not None}

    @property
    def originals(self) -> frozenset[str]:
        """The names of the images that are carried as they came, to be asked for by those names through mirrors."""
        return frozenset(entry.reference for entry in self.manifest.images if entry.role == "base")

    @property
    def artifacts(self) -> tuple[Descriptor, ...]:
        """The artifacts, the manifest's own among them."""
        return tuple(entry for entry in self.index.manifests if entry.artifact_type is not None)

    def surroundings(self, folder: Path) -> Surroundings:
        """Return the output folder around the bundle, with what the bundle says of it."""
        return Surroundings(folder, self.documents, self.index, self.manifest, self.manifest_descriptor, self.root)

    def warn_beside(self, given: Path, emit: Emit) -> None:
        """Warn of files next to the bundle that are not what it says, if it was given as the output folder.

        For commands that act on the bundle alone: nothing of it is wrong, but someone may act on those files.
        Archives are not read, as that may take as long as the command.
        """
        found: list[str] = []
        if self.store.path != given:
            look_beside(
                self.surroundings(given),
                archives=False,
                report=lambda subject, text, _digest: found.append(
                    printable(f"{subject} {text}", most=MAX_DEFECT_CHARACTERS)
                ),
            )
        if found:
            emit(
                Warned(
                    f"the root does not cover all that lies in `{given}`:\n  | "
                    + some_of(found, SHOWN_FINDINGS, separator="\n  | "),
                    hint=f"{COPY_BESIDE}; `airferry verify {shell_word(given)}` lists all",
                )
            )


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification saw. `root_verified` says whether a root was given and matched.

    `is_bundle` is false for an image layout of another tool, of which `not_checked` says what cannot be checked.
    `images` are those that were built, their Docker `twins` and the `originals` of their bases not counted.
    `exempt` lists what programs may read differently in originals, which are carried as others made them.
    `beside` lists notes on the output folder around the bundle; none of them means that the bundle is damaged. The last
    `beside_findings` of the findings are about files in that folder: the bundle itself is whole without them.
    """

    path: Path
    root: str
    root_verified: bool
    images: int
    artifacts: int
    blobs: int
    size_bytes: int
    findings: tuple[Defect, ...]
    beside: tuple[str, ...] = ()
    beside_findings: int = 0
    twins: int = 0
    originals: int = 0
    is_bundle: bool = True
    not_checked: tuple[str, ...] = ()
    exempt: tuple[Defect, ...] = ()
    litter: tuple[str, ...] = ()
    origin: BundleOrigin | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def only_beside(self) -> bool:
        """Whether all that is wrong is next to the bundle, which is whole itself."""
        return bool(self.findings) and len(self.findings) == self.beside_findings

    @property
    def images_text(self) -> str:
        """How many images there are, twins and originals named as such."""
        return images_text(self.images, twins=self.twins, originals=self.originals)

    def to_document(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "path": str(self.path),
            "kind": "bundle" if self.is_bundle else "layout",
            "ok": self.ok,
            "root": self.root,
            "root_verified": self.root_verified,
            "images": self.images,
            "docker_twins": self.twins,
            "original_images": self.originals,
            **plain_data(self, "artifacts", "blobs", "size_bytes"),
            "findings": [str(finding) for finding in self.findings],
            **plain_data(self, "beside", "not_checked", "litter"),
            "exempt": [str(defect) for defect in self.exempt],
            "origin": None if self.origin is None else plain_data(self.origin),
        }

    def warn_of_litter(self, emit: Emit) -> None:
        """Warn of what desktops, file systems and other tools left in the layout: the bundle is whole all the same."""
        if self.litter:
            more = f", and {len(self.litter) - 1} more: `airferry verify` names all" if len(self.litter) > 1 else ""
            emit(Warned(f"in `{self.path}`, {self.litter[0]}{more}"))

    def raise_if_wrong(self, *, listed: bool = False) -> None:
        """Do nothing if nothing is wrong. `listed` says that the findings were shown already.

        Raises:
            IntegrityError: something is; `fields["report"]` is this report.
        """
        if self.ok:
            return
        shown = some_of([str(finding) for finding in self.findings], SHOWN_FINDINGS, separator="\n  | ")
        damaged, hint = f"bundle `{self.path}` is damaged", COPY_AGAIN
        if not self.is_bundle:
            damaged, hint = f"image layout `{self.path}` is damaged", "copy it again from where it came"
        elif self.only_beside:
            damaged = f"bundle `{self.path}` is complete, but files next to it are not what its root covers"
            hint = COPY_BESIDE
        raise IntegrityError(
            f"{damaged}: {counted(len(self.findings), 'finding')}" + ("" if listed else f"\n  | {shown}"),
            hint=hint,
            report=self,
        )


def find_layout(path: Path) -> Path:
    """Return the layout folder of a bundle, given as that folder or as the output folder that holds it.

    In an output folder only `bundle` is ever chosen: a second layout that was put next to it wins nothing.

    Raises:
        UsageError: neither is one.
        IntegrityError: the folder is a layout, and there is something in it that could be the bundle too.
    """
    inner = path / BUNDLE_FOLDER
    if not holds_layout(path):
        if holds_layout(inner):
            return inner
        hint = "give the output folder of `airferry build`, or the bundle in it"
        if files.is_file(path):
            # tar finds out by itself how it is packed
            hint = f"unpack a packed one into a folder, and give that: `tar -xf {shell_word(path)} -C FOLDER`"
        raise UsageError(f"`{path}` contains no bundle: there is no `{LAYOUT_FILE}` in it or in `{inner}`", hint=hint)
    if not os.path.lexists(inner):
        return path
    if holds_layout(inner) and files.resolved(path).name.casefold() != BUNDLE_FOLDER:
        return inner
    # given `out/bundle` with a `bundle` in it, either may be the one that was added
    raise IntegrityError(
        f"`{path}` is an image layout, and `{inner}` in it has the name of a bundle: one of the two was added",
        hint=COPY_AGAIN,
    )


def expect_outside(written: Path, layout: Path) -> None:
    """Refuse to write into a bundle: a file that nothing in it names makes it damaged.

    Raises:
        UsageError: the path lies in the layout.
    """
    if files.lies_within(written, layout):
        raise UsageError(
            f"`{written}` is inside the bundle `{layout}`; added files damage a bundle",
            hint="choose a path outside the bundle",
        )


def open_bundle(path: Path, *, root: str | None = None) -> Bundle:
    """Open a bundle for reading: `out/` or `out/bundle`. The root, if given, is compared before anything is parsed.

    Raises:
        UsageError: there is no bundle, or the root that was given is not a digest.
        IntegrityError: the root is another, or layout, index or manifest cannot be read.
    """
    with advising(COPY_AGAIN):
        return _open(path, root)


def _open(path: Path, root: str | None) -> Bundle:
    store, data, observed = open_index(path, root)
    index = parse_index(data, what=f"`{store.path / INDEX_FILE}`")
    found = [entry for entry in index.manifests if entry.artifact_type == MANIFEST_ARTIFACT]
    if len(found) != 1:
        few = f"`{store.path}` contains {len(found)} airferry manifests, expected one"
        if index.manifests and not any(_is_of_a_bundle(entry) for entry in index.manifests):
            raise NoBundleManifest(f"{few}: it is another image layout than a bundle", hint=NOT_A_BUNDLE)
        raise IntegrityError(f"bundle {few}", hint=COPY_AGAIN)
    documents = RememberingSource(store)
    manifest = read_manifest(read_artifact_file(documents, found[0], media_type=MANIFEST_CONTENT))
    return Bundle(store, index, observed, manifest, found[0], documents, root_verified=root is not None)


def _is_of_a_bundle(entry: Descriptor) -> bool:
    """Tell whether an entry of index.json shows that the layout is or was a bundle.

    Artifacts of airferry that refer to an image do not: `airferry copy` takes them along with the image.
    """
    return (entry.artifact_type or "").startswith(OWN_ARTIFACTS) and marked_subject(entry) is None


def verify_bundle(
    path: Path,
    *,
    root: str | None = None,
    jobs: int | None = None,
    beside: bool = False,
    emit: Emit = silent,
) -> VerifyReport:
    """Check everything about a bundle and return what was seen. Each blob is read once, on `jobs` threads.

    Checked are: the layout's files; the root, if given; every digest and size; that every image is whole for each
    platform that the manifest names; that manifest and layout agree, both ways; that nothing is there that nothing
    names. Links are never followed. With `beside`, and an output folder as the path, what people act on next to the
    bundle is checked too, and what else is to be said of the folder is in the report.

    Raises:
        UsageError: there is no bundle.
        IntegrityError: the root is another, or there is no telling what the bundle should hold.
    """
    return verify_opened(open_bundle(path, root=root), jobs=jobs, beside=path if beside else None, emit=emit)


def verify_opened(
    bundle: Bundle,
    *,
    jobs: int | None = None,
    beside: Path | None = None,
    read_blobs: bool = True,
    emit: Emit = silent,
) -> VerifyReport:
    """Check everything about a bundle, see `verify_bundle`; with `beside`, also the output folder around it.

    What is done with the bundle afterwards uses the very documents that were checked here. Without `read_blobs`, what
    is not a document is only looked at: whether it is there, with the right size. That is for who hashes it later.
    """
    inspector = Inspector(bundle.documents, exempts_originals=True)
    _check_names(bundle.index, inspector)
    expected = {entry.reference: entry for entry in bundle.manifest.images}
    subjects = {entry.reference: f"image `{entry.name}`" for entry in bundle.manifest.images}
    twins = bundle.twins
    for reference, descriptor in bundle.images.items():
        if reference not in expected and (of := twins.pop(reference, None)) is not None:
            _compare_twin(inspector, of, descriptor)
            continue
        subject = subjects.get(reference, f"image `{reference}`")
        entry = expected.pop(reference, None)
        original = entry is not None and entry.role == "base"
        # others' indexes may list indexes, ours do not
        nested = MAX_NESTED if original else 0
        parts = inspector.image(descriptor, subject=subject, original=original, nested=nested)
        if entry is None:
            inspector.report(subject, "is in the layout, not in the manifest", descriptor.digest)
        else:
            _compare_image(inspector, entry, descriptor, parts)
    for entry in expected.values():
        inspector.report(f"image `{entry.name}`", f"`{entry.reference}` is in the manifest, not in the layout")
    for reference, of in twins.items():
        inspector.report(f"Docker twin of image `{of.name}`", f"`{reference}` is in the manifest, not in the layout")
    _check_artifacts(bundle, inspector)
    for descriptor in bundle.index.manifests:
        if descriptor.artifact_type is None and not names_of(descriptor):
            inspector.image(descriptor, subject=f"image `{descriptor.digest}`")
    size_bytes = inspector.check_blobs(jobs=jobs, read=read_blobs, emit=emit)
    report_unnamed(bundle.store.stored_digests(), inspector.wanted.keys(), inspector.report)
    litter = report_strays(bundle.store.path, inspector.report)
    around: tuple[str, ...] = ()
    about_the_bundle = len(inspector.findings)
    if beside is not None and bundle.store.path != beside:
        around = look_beside(bundle.surroundings(beside), jobs=jobs, report=inspector.report)
    return VerifyReport(
        path=bundle.store.path,
        root=bundle.root,
        root_verified=bundle.root_verified,
        images=len(bundle.images.keys() - bundle.twins.keys() - bundle.originals),
        twins=len(bundle.images.keys() & bundle.twins.keys()),
        originals=len(bundle.images.keys() & bundle.originals),
        artifacts=len(bundle.artifacts),
        blobs=len(inspector.wanted),
        size_bytes=size_bytes,
        findings=tuple(inspector.findings),
        beside=around,
        exempt=tuple(inspector.exempt),
        litter=litter,
        origin=origin_of(bundle.manifest),
        beside_findings=sum(found.text != LEADS_OUT for found in inspector.findings[about_the_bundle:]),
    )


def open_index(path: Path, root: str | None) -> tuple[LayoutStore, bytes, str]:
    """Open a layout and return it with the bytes of its index.json and their digest, which `root`, if given, must be.

    Raises:
        UsageError: there is no layout, or the root that was given is not a digest.
        IntegrityError: the root is another, blobs lie behind a link, or programs may read index.json differently.
    """
    layout = find_layout(path)
    expected = parse_root(root) if root is not None else None
    for folder in (layout / "blobs", layout / "blobs" / "sha256"):
        try:
            found = folder.lstat()
        except OSError as error:
            raise IntegrityError(f"bundle `{layout}` has no folder `{folder}`", hint=COPY_AGAIN) from error
        if not stat.S_ISDIR(found.st_mode):
            raise IntegrityError(f"`{folder}` is not a folder; links are not followed", hint=COPY_AGAIN)
    store = LayoutStore.open(layout, read_only=True)
    data = store.read_index_bytes()
    observed = digest_of(data)
    if expected is not None and observed != expected:
        raise IntegrityError(
            f"bundle `{layout}` has root `{observed}`, expected `{expected}`",
            hint="this is a different bundle, or its index.json was changed; do not load it",
            root=observed,
            expected=expected,
        )
    expect_one_meaning(data, IMAGE_INDEX, what=f"`{store.path / INDEX_FILE}`")
    return store, data, observed


def _check_names(index: Index, inspector: Inspector) -> None:
    seen: set[str] = set()
    for entry in index.manifests:
        names = names_of(entry)
        if entry.artifact_type is None and len(names) != 1:
            inspector.report(f"image `{entry.digest}`", f"has {len(names)} names in index.json, expected one")
        for name in sorted(names):
            try:
                parse_reference(name)
            except AirferryError as error:
                inspector.report(
                    f"image `{name}`", f"has a name that is not a valid reference: {error.message}", entry.digest
                )
            if name in seen:
                inspector.report(f"image `{name}`", "is listed twice in index.json", entry.digest)
            seen.add(name)


def _compare_image(
    inspector: Inspector, entry: ImageEntry, descriptor: Descriptor, parts: tuple[ImagePart, ...]
) -> None:
    subject = f"image `{entry.name}`"
    if entry.digest != descriptor.digest:
        inspector.report(subject, f"has digest `{descriptor.digest}`, the manifest says `{entry.digest}`")
    found = {str(part.platform): part for part in parts}
    for platform in sorted(found.keys() - entry.platforms.keys()):
        inspector.report(f"{subject}, platform `{platform}`", "is in the layout, not in the manifest")
    for platform, stated in entry.platforms.items():
        inner = f"{subject}, platform `{platform}`"
        part = found.get(platform)
        if part is None:
            inspector.report(inner, "is in the manifest, and missing or unreadable in the layout", stated.digest)
            continue
        observed = (
            part.manifest.digest,
            part.config.digest,
            tuple((layer.digest, layer.size, layer.media_type) for layer in part.layers),
            part.diff_ids,
        )
        expected = (
            stated.digest,
            stated.config_digest,
            tuple((layer.digest, layer.size_bytes, layer.media_type) for layer in stated.layers),
            tuple(layer.diff_id for layer in stated.layers),
        )
        for what, one, other in zip(("manifest", "config", "layers", "diff_ids"), observed, expected, strict=True):
            if one != other:
                inspector.report(inner, f"its {what} in the layout and in the manifest differ", part.manifest.digest)


def _compare_twin(inspector: Inspector, entry: ImageEntry, descriptor: Descriptor) -> None:
    """Check that a twin names the very manifests of its image, and is what the manifest says."""
    subject = f"Docker twin of image `{entry.name}`"
    listed = inspector.listing(descriptor, subject=subject)
    if entry.docker_twin is not None and entry.docker_twin.digest != descriptor.digest:
        inspector.report(subject, f"has digest `{descriptor.digest}`, the manifest says `{entry.docker_twin.digest}`")
    found = sorted((str(child.platform_value()), child.digest) for child in listed)
    if found != sorted((platform, stated.digest) for platform, stated in entry.platforms.items()):
        inspector.report(subject, "lists different manifests than the image", descriptor.digest)


def _check_artifacts(bundle: Bundle, inspector: Inspector) -> None:
    stated: dict[str, list[ArtifactEntry]] = {}
    for listed in bundle.manifest.artifacts:
        stated.setdefault(listed.digest, []).append(listed)
    own = bundle.manifest_descriptor.digest
    for descriptor in bundle.artifacts:
        # what cosign has put under several tags is one artifact with several titles
        tag, same = signature_tag(descriptor), stated.get(descriptor.digest, [])
        entry = next((one for one in same if tag in (None, one.title)), None)
        if entry is not None:
            same.remove(entry)
        subject = f"artifact `{entry.title}`" if entry else f"artifact `{descriptor.digest}`"
        if descriptor.digest == own:
            subject = "the manifest"
        elif entry is None:
            inspector.report(subject, "is in the layout, not in the manifest", descriptor.digest)
        stored = inspector.artifact(descriptor, subject=subject)
        kinds = {descriptor.artifact_type, referrer_kind(stored) if stored else descriptor.artifact_type}
        if entry is not None:
            kinds.add(entry.artifact_type)
        if len(kinds) > 1:
            inspector.report(subject, "has different types in index.json and elsewhere", descriptor.digest)
    for absent in (one for same in stated.values() for one in same):
        inspector.report(f"artifact `{absent.title}`", "is in the manifest, not in the layout", absent.digest)
