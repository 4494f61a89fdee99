"""Validation of what others, or a medium, hand over: the closure of images and artifacts, and every byte of it.

Reads through a Source and trusts nothing in it. What is wrong becomes a `Finding` that says with which image; only
what makes reading on impossible is raised.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from airferry.errors import HostError, IntegrityError
from airferry.events import Emit, silent
from airferry.host.progress import MIB, Meter
from airferry.host.threads import parallel_map, usable_cores
from airferry.oci.documents import (
    CONFIG_TYPES,
    EMPTY_CONFIG,
    IMAGE_CONFIG,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_IMAGE_CONFIG_BYTES,
    MAX_NESTED,
    REF_NAME,
    Descriptor,
    Index,
    ambiguities,
    parse_image_config,
)
from airferry.oci.entries import is_about_another
from airferry.oci.layers import KINDS
from airferry.oci.layout import INDEX_FILE, LAYOUT_FILE, LayoutStore
from airferry.oci.litter import entry_litter_source, litter_text
from airferry.oci.platform import Platform
from airferry.oci.ports import Source, Stored, blocks
from airferry.oci.streams import verifying
from airferry.wording import printable

CHECKED_EVERY_BYTES = 64 * MIB
MAX_FINDINGS = 1000
# names × manifests × layers: one index of 3,000 children under 1,500 names, 440 KiB, kept a verification busy for
# hours. 500 images of two platforms with 100 layers each come to half of it, and all of it is walked within a second
MAX_REFERENCES = 200_000
# reading a document again, as what remembers them does not keep all, counts by its size
BYTES_PER_REFERENCE = 1024
# a bad sector is a finding about a blob, not the end of the search for others
UNREADABLE = (IntegrityError, HostError)
MAX_DEFECT_CHARACTERS = 500

# who has something wrong, what is wrong, and the digest that it is about
ReportDefect = Callable[[str, str, str | None], None]


@dataclass(frozen=True, slots=True)
class Defect:
    """Something wrong: with what (an image and its platform, an artifact, a file), and what is wrong."""

    subject: str
    text: str
    digest: str | None = None

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One platform of an image, as its documents describe it."""

    platform: Platform
    manifest: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]


@dataclass(slots=True)
class Wanted:
    """A blob that something names: its descriptor, its role, and the manifests, or subjects, that name it."""

    descriptor: Descriptor
    role: str
    holders: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Walked:
    """What became of a manifest the first time: its part of an image, and what was wrong with it."""

    part: ImagePart | None
    defects: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class _Config:
    """What counts of a config; `problem` says why there is none."""

    platform: Platform | None = None
    diff_ids: tuple[str, ...] = ()
    problem: str = ""
    ambiguities: tuple[str, ...] = ()


class Inspector:
    """Walks images and artifacts, collects findings, and remembers every blob that they name.

    `wanted` maps digest to blob; `check_blobs` then reads each of them once. However often a manifest is named, it is
    walked once; what is named in all is bounded by MAX_REFERENCES. With `exempts_originals`, originals whose JSON
    programs may read differently are no finding, as they are carried as others made them: `exempt` names them.
    """

    def __init__(self, source: Source, *, exempts_originals: bool = False) -> None:
        self.source = source
        self.findings: list[Defect] = []
        self.exempt: list[Defect] = []
        self.wanted: dict[str, Wanted] = {}
        self.read_whole: set[str] = set()
        self.artifacts: set[str] = set()
        self._exempts_originals = exempts_originals
        self._references = 0
        # who names a manifest: blobs know their manifests, so that a blob of all images is not noted once an image
        self._subjects: dict[str, dict[str, None]] = {}
        self._walked: dict[tuple[str, int, str, Platform | None, bool], _Walked] = {}
        self._configs: dict[tuple[str, int], _Config] = {}

    def report(self, subject: str, text: str, digest: str | None = None) -> None:
        """Note that something is wrong; what others wrote is cut and made printable."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(_defect(subject, text, digest))

    def image(
        self, descriptor: Descriptor, *, subject: str, original: bool = False, nested: int = 0
    ) -> tuple[ImagePart, ...]:
        """Walk an image or image index and return its platforms; what cannot be read is reported and left out.

        An `original` is carried as others made it: attestations, a platform listed twice (the first counts) and mixed
        compressions are its own affair, while every byte of it is wanted all the same. So deep as `nested` says may
        indexes list others.
        """
        if descriptor.media_type not in INDEX_TYPES:
            part = self._manifest(descriptor, subject=subject, stated=descriptor.platform_value(), original=original)
            return () if part is None else (part,)
        listed = self._index(descriptor, subject=subject, original=original)
        if listed is None:
            return ()
        parts: list[ImagePart] = []
        seen: set[Platform] = set()
        for child in listed.index.manifests:
            if original and not child.is_runnable and child.media_type not in INDEX_TYPES:
                self.artifact(child, subject=subject, original=True)
                continue
            platform = child.platform_value()
            inner = f"{subject}, platform `{platform}`" if platform else subject
            if child.media_type in INDEX_TYPES:
                if nested:
                    parts += self.image(child, subject=inner, original=original, nested=nested - 1)
                    continue
                self.report(inner, f"index `{child.digest}` is nested in an index", child.digest)
                continue
            if platform is None:
                self.report(inner, f"manifest `{child.digest}` is listed without a platform", child.digest)
            elif platform in seen and not original:
                self.report(inner, "is listed twice", child.digest)
            part = self._manifest(child, subject=inner, stated=platform, original=original)
            if part is not None and not (original and part.platform in seen):
                parts.append(part)
            if platform is not None:
                seen.add(platform)
        return tuple(parts)

    def listing(self, descriptor: Descriptor, *, subject: str) -> tuple[Descriptor, ...]:
        """Read an image index and return what it lists, without a look at what is in that; none if it is unreadable.

        For an index over manifests that another image has: what is wrong with them is said of that image.
        """
        listed = self._index(descriptor, subject=subject)
        return tuple(listed.index.manifests) if listed is not None else ()

    def artifact(
        self, descriptor: Descriptor, *, subject: str, original: bool = False, nested: int = MAX_NESTED
    ) -> Stored | None:
        """Walk an artifact, or an index of artifacts, and return its document, or None if it cannot be read."""
        if descriptor.media_type in INDEX_TYPES and nested:
            listed = self._index(descriptor, subject=subject, original=original)
            if listed is None:
                return None
            self.artifacts.add(descriptor.digest)
            for child in listed.index.manifests:
                self.artifact(child, subject=subject, original=original, nested=nested - 1)
            return listed
        stored = self._read_manifest(descriptor, subject=subject, original=original)
        if stored is None:
            return None
        manifest = stored.manifest
        self.artifacts.add(descriptor.digest)
        if manifest.config.media_type == EMPTY_CONFIG and not manifest.artifact_type:
            self.report(subject, "has an empty config and no artifactType", descriptor.digest)
        self._want(manifest.config, "config", descriptor, subject)
        for layer in manifest.layers:
            self._want(layer, "content", descriptor, subject)
        return stored

    def check_blobs(self, *, jobs: int | None = None, read: bool = True, emit: Emit = silent) -> int:
        """Read every wanted blob that was not read yet, each once, and return the bytes of all; report what is wrong.

        Blobs are hashed on `jobs` threads (all cores by default), the largest first. Without `read` they are only
        opened, which tells those that are missing or of another size.
        """
        check = _check_blob if read else _look_at_blob
        todo = [wanted for digest, wanted in self.wanted.items() if digest not in self.read_whole]
        todo.sort(key=lambda wanted: (-wanted.descriptor.size, wanted.descriptor.digest))
        total = sum(wanted.descriptor.size for wanted in todo) if read else 0
        progress = Meter("verify", total, emit, every_bytes=CHECKED_EVERY_BYTES)
        failures = parallel_map(
            lambda wanted: check(self.source, wanted.descriptor, progress.advance),
            todo,
            jobs=jobs or usable_cores(),
        )
        for wanted, failure in zip(todo, failures, strict=True):
            if failure is not None:
                for subject in self._subjects_of(wanted):
                    self.report(subject, f"{wanted.role}: {failure}", wanted.descriptor.digest)
        return sum(wanted.descriptor.size for wanted in self.wanted.values())

    def _subjects_of(self, wanted: Wanted) -> dict[str, None]:
        """Return who names a blob, each once, in the order in which they did; no more than can be reported."""
        found: dict[str, None] = {}
        for holder in wanted.holders:
            for subject in self._subjects.get(holder, (holder,)):
                found[subject] = None
                if len(found) >= MAX_FINDINGS:
                    return found
        return found

    def _charge(self, references: int) -> None:
        self._references += references
        if self._references > MAX_REFERENCES:
            raise IntegrityError(
                f"the names, manifests and layers add up to more than {MAX_REFERENCES} references, the limit for a "
                "bundle or layout",
                hint="no build comes near it: something repeats itself to keep programs busy",
            )

    def _index(self, descriptor: Descriptor, *, subject: str, original: bool = False) -> Stored | None:
        self._want(descriptor, "index", None, subject)
        self._charge(1 + descriptor.size // BYTES_PER_REFERENCE)
        try:
            stored = self.source.read_manifest(descriptor)
            listed = stored.index.manifests
        except UNREADABLE as error:
            self.report(subject, error.message, descriptor.digest)
            self.read_whole.add(descriptor.digest)
            return None
        self._charge(len(listed))
        self.read_whole.add(descriptor.digest)
        self._report_ambiguities(stored.ambiguities, "index", descriptor, subject=subject, original=original)
        return stored

    def _read_manifest(self, descriptor: Descriptor, *, subject: str, original: bool = False) -> Stored | None:
        self._want(descriptor, "manifest", None, subject)
        self._charge(1 + descriptor.size // BYTES_PER_REFERENCE)
        if descriptor.media_type not in MANIFEST_TYPES:
            self.report(
                subject,
                f"`{descriptor.digest}` has the unknown media type `{descriptor.media_type}`",
                descriptor.digest,
            )
            return None
        try:
            stored = self.source.read_manifest(descriptor)
            layers = stored.manifest.layers
        except UNREADABLE as error:
            self.report(subject, error.message, descriptor.digest)
            self.read_whole.add(descriptor.digest)
            return None
        self._charge(len(layers))
        self.read_whole.add(descriptor.digest)
        self._report_ambiguities(stored.ambiguities, "manifest", descriptor, subject=subject, original=original)
        return stored

    def _report_ambiguities(
        self, found: tuple[str, ...], role: str, descriptor: Descriptor, *, subject: str, original: bool
    ) -> None:
        for text in found:
            said = f"{role} `{descriptor.digest}` {text}"
            if not (original and self._exempts_originals):
                self.report(subject, said, descriptor.digest)
            elif len(self.exempt) < MAX_FINDINGS:
                self.exempt.append(_defect(subject, said, descriptor.digest))

    def _manifest(
        self, descriptor: Descriptor, *, subject: str, stated: Platform | None, original: bool = False
    ) -> ImagePart | None:
        key = (descriptor.digest, descriptor.size, descriptor.media_type, stated, original)
        walked = self._walked.get(key)
        if walked is None:
            before = len(self.findings)
            part = self._walk(descriptor, subject=subject, stated=stated, original=original)
            defects = tuple((defect.text, defect.digest) for defect in self.findings[before:])
            walked = self._walked[key] = _Walked(part, defects)
        else:
            self._want(descriptor, "manifest", None, subject)
            self._charge(3 + descriptor.size // BYTES_PER_REFERENCE + (len(walked.part.layers) if walked.part else 0))
            for text, digest in walked.defects:
                self.report(subject, text, digest)
        return walked.part

    def _walk(
        self, descriptor: Descriptor, *, subject: str, stated: Platform | None, original: bool
    ) -> ImagePart | None:
        stored = self._read_manifest(descriptor, subject=subject, original=original)
        if stored is None:
            return None
        manifest = stored.manifest
        for layer in manifest.layers:
            self._want(layer, "layer", descriptor, subject)
        self._want(manifest.config, "config", descriptor, subject)
        if original and manifest.config.media_type not in CONFIG_TYPES:
            # charts and the like have no artifactType where they are older than that field
            self.artifacts.add(descriptor.digest)
            return None
        kinds = {KINDS.get(layer.media_type) for layer in manifest.layers}
        if None in kinds:
            unknown = sorted({layer.media_type for layer in manifest.layers if layer.media_type not in KINDS})
            self.report(subject, f"has layers of unknown type `{unknown[0]}`", descriptor.digest)
        elif len(kinds) > 1 and not original:
            names = ", ".join(sorted(str(kind) for kind in kinds))
            self.report(subject, f"mixes compressions in its layers: {names}", descriptor.digest)
        config = self._config(manifest.config)
        if config.platform is None:
            self.report(subject, f"config: {config.problem}", manifest.config.digest)
            return None
        self._report_ambiguities(config.ambiguities, "config", manifest.config, subject=subject, original=original)
        if len(config.diff_ids) != len(manifest.layers):
            self.report(
                subject,
                f"has {len(manifest.layers)} layers, its config lists {len(config.diff_ids)} diff_ids",
                descriptor.digest,
            )
        platform = config.platform
        if stated is not None and not (stated.accepts(platform) and platform.accepts(stated)):
            self.report(subject, f"its config says platform `{platform}`, the index `{stated}`", descriptor.digest)
        return ImagePart(stated or platform, descriptor, manifest.config, tuple(manifest.layers), config.diff_ids)

    def _config(self, descriptor: Descriptor) -> _Config:
        """Return what a config says; each is read once, however many manifests share it."""
        key = (descriptor.digest, descriptor.size)
        known = self._configs.get(key)
        if known is None:
            known = self._configs[key] = self._read_config(descriptor)
        return known

    def _read_config(self, descriptor: Descriptor) -> _Config:
        self.read_whole.add(descriptor.digest)
        self._charge(1 + min(descriptor.size, MAX_IMAGE_CONFIG_BYTES) // BYTES_PER_REFERENCE)
        try:
            if descriptor.size > MAX_IMAGE_CONFIG_BYTES:
                raise IntegrityError(f"config `{descriptor.digest}` is larger than {MAX_IMAGE_CONFIG_BYTES} bytes")
            with self.source.open_blob(descriptor) as stream:
                data = verifying(stream, descriptor).read()
            config = parse_image_config(data, what=f"config `{descriptor.digest}`")
        except UNREADABLE as error:
            return _Config(problem=error.message)
        return _Config(
            config.platform_value(), tuple(config.rootfs.diff_ids), ambiguities=ambiguities(data, IMAGE_CONFIG)
        )

    def _want(self, descriptor: Descriptor, role: str, holder: Descriptor | None, subject: str) -> None:
        """Note a blob, and what names it: the manifest `holder`, or the subject itself."""
        wanted = self.wanted.get(descriptor.digest)
        if wanted is None:
            wanted = self.wanted[descriptor.digest] = Wanted(descriptor, role)
        if wanted.descriptor.size != descriptor.size:
            self.report(
                subject,
                f"{role} `{descriptor.digest}` is declared with {descriptor.size} bytes, "
                f"elsewhere with {wanted.descriptor.size}",
                descriptor.digest,
            )
        if holder is None:
            self._subjects.setdefault(descriptor.digest, {})[subject] = None
        wanted.holders[descriptor.digest if holder is None else holder.digest] = None


def _defect(subject: str, text: str, digest: str | None) -> Defect:
    """Return something wrong in words that are cut and made printable, as others wrote them."""
    return Defect(printable(subject, most=MAX_DEFECT_CHARACTERS), printable(text, most=MAX_DEFECT_CHARACTERS), digest)


@dataclass(frozen=True, slots=True)
class LayoutCheck:
    """What a layout holds, as far as its index names it, and what is wrong with it."""

    images: int
    artifacts: int
    blobs: int
    size_bytes: int
    findings: tuple[Defect, ...]
    litter: tuple[str, ...] = ()


def validate_layout(store: LayoutStore, index: Index, *, jobs: int | None = None, emit: Emit = silent) -> LayoutCheck:
    """Check a whole layout: every byte of what its index names, and that nothing lies there that nothing names.

    It may be of any tool: images are checked as `Inspector.image` checks originals, indexes may list indexes, and a
    name may be given to one thing alone.
    """
    inspector = Inspector(store)
    named: set[str] = set()
    for entry in index.manifests:
        name = (entry.annotations or {}).get(REF_NAME)
        if is_about_another(entry):
            inspector.artifact(entry, subject=f"artifact `{name or entry.digest}`")
        else:
            inspector.image(entry, subject=f"image `{name or entry.digest}`", original=True, nested=MAX_NESTED)
        if name in named:
            inspector.report(f"image `{name}`", "is listed twice in index.json", entry.digest)
        if name is not None:
            named.add(name)
    size_bytes = inspector.check_blobs(jobs=jobs, emit=emit)
    report_unnamed(store.stored_digests(), inspector.wanted.keys(), inspector.report)
    litter = report_strays(store.path, inspector.report)
    tops = {entry.digest for entry in index.manifests}
    return LayoutCheck(
        images=len(tops - inspector.artifacts),
        artifacts=len(tops & inspector.artifacts),
        blobs=len(inspector.wanted),
        size_bytes=size_bytes,
        findings=tuple(inspector.findings),
        litter=litter,
    )


def report_strays(layout: Path, report: ReportDefect) -> tuple[str, ...]:
    """Report what lies in a layout besides index.json, oci-layout and regular files named by digests.

    What a desktop, a file system or another tool is known to leave is not a defect: it is returned, a line each, with
    the command that removes it.
    """
    litter: list[str] = []

    def is_litter(folder: str, entry: os.DirEntry[str]) -> bool:
        source = entry_litter_source(entry, in_layout=not folder)
        if source is not None and len(litter) < MAX_FINDINGS:
            is_folder = entry.is_dir(follow_symlinks=False)
            litter.append(litter_text(str(Path(folder) / entry.name), entry.path, source, is_folder=is_folder))
        return source is not None

    known = {"": {LAYOUT_FILE, INDEX_FILE, "blobs"}, "blobs": {"sha256"}}
    for folder, names in known.items():
        with os.scandir(layout / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name not in names and not is_litter(folder, entry):
                    report(f"file `{Path(folder) / entry.name}`", "nothing refers to it", None)
    with os.scandir(layout / "blobs" / "sha256") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_litter("blobs/sha256", entry):
                continue
            if not entry.is_file(follow_symlinks=False):
                report(f"file `blobs/sha256/{entry.name}`", "is not a regular file", None)
            elif len(entry.name) != 64 or not set(entry.name) <= set("0123456789abcdef"):
                report(f"file `blobs/sha256/{entry.name}`", "nothing refers to it", None)
    return tuple(litter)


def report_unnamed(stored: Iterable[str], wanted: Collection[str], report: ReportDefect) -> None:
    """Report each stored digest that nothing wants."""
    for digest in sorted(set(stored).difference(wanted)):
        report(f"blob `{digest}`", "nothing refers to it", digest)


def _check_blob(source: Source, descriptor: Descriptor, on_block: Callable[[int], None]) -> str | None:
    try:
        with source.open_blob(descriptor) as stream:
            for _block in blocks(verifying(stream, descriptor, on_block=on_block)):
                pass
    except UNREADABLE as error:
        return error.message
    return None


def _look_at_blob(source: Source, descriptor: Descriptor, _on_block: Callable[[int], None]) -> str | None:
    try:
        with source.open_blob_unchecked(descriptor):
            return None
    except UNREADABLE as error:
        return error.message
