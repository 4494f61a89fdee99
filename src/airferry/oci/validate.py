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
    DOCKER_CONFIG,
    EMPTY_CONFIG,
    IMAGE_CONFIG,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_IMAGE_CONFIG_BYTES,
    REF_NAME,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse_image_config,
)
from airferry.oci.layers import KINDS
from airferry.oci.layout import INDEX_FILE, LAYOUT_FILE, LayoutStore
from airferry.oci.platform import Platform
from airferry.oci.ports import Source, blocks
from airferry.oci.streams import verifying
from airferry.wording import printable

CHECKED_EVERY_BYTES = 64 * MIB
MAX_FINDINGS = 1000
MAX_NESTED = 4
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
    """A blob that something names: its descriptor and who names it."""

    descriptor: Descriptor
    role: str
    subjects: list[str] = field(default_factory=list)


class Inspector:
    """Walks images and artifacts, collects findings, and remembers every blob that they name.

    `wanted` maps digest to blob; `check_blobs` then reads each of them once.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.findings: list[Defect] = []
        self.wanted: dict[str, Wanted] = {}
        self.read_whole: set[str] = set()
        self.artifacts: set[str] = set()

    def report(self, subject: str, text: str, digest: str | None = None) -> None:
        """Note that something is wrong; what others wrote is cut and made printable."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(
                Defect(
                    printable(subject, most=MAX_DEFECT_CHARACTERS), printable(text, most=MAX_DEFECT_CHARACTERS), digest
                )
            )

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
        index = self._index(descriptor, subject=subject)
        if index is None:
            return ()
        parts: list[ImagePart] = []
        seen: set[Platform] = set()
        for child in index.manifests:
            if original and not child.is_runnable and child.media_type not in INDEX_TYPES:
                self.artifact(child, subject=subject)
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
        index = self._index(descriptor, subject=subject)
        return tuple(index.manifests) if index is not None else ()

    def artifact(self, descriptor: Descriptor, *, subject: str) -> Manifest | None:
        """Walk an artifact and return its manifest, or None if it cannot be read."""
        manifest = self._read_manifest(descriptor, subject=subject)
        if manifest is None:
            return None
        self.artifacts.add(descriptor.digest)
        if manifest.config.media_type == EMPTY_CONFIG and not manifest.artifact_type:
            self.report(subject, "has an empty config and no artifactType", descriptor.digest)
        self._want(manifest.config, "config", subject)
        for layer in manifest.layers:
            self._want(layer, "content", subject)
        return manifest

    def check_blobs(self, *, jobs: int | None = None, emit: Emit = silent) -> int:
        """Read every wanted blob that was not read yet, each once, and return the bytes of all; report what is wrong.

        Blobs are hashed on `jobs` threads (all cores by default), the largest first.
        """
        todo = [wanted for digest, wanted in self.wanted.items() if digest not in self.read_whole]
        todo.sort(key=lambda wanted: (-wanted.descriptor.size, wanted.descriptor.digest))
        total = sum(wanted.descriptor.size for wanted in todo)
        progress = Meter("verify", total, emit, every_bytes=CHECKED_EVERY_BYTES)
        failures = parallel_map(
            lambda wanted: _check_blob(self.source, wanted.descriptor, progress.advance),
            todo,
            jobs=jobs or usable_cores(),
        )
        for wanted, failure in zip(todo, failures, strict=True):
            if failure is not None:
                for subject in wanted.subjects:
                    self.report(subject, f"{wanted.role}: {failure}", wanted.descriptor.digest)
        return sum(wanted.descriptor.size for wanted in self.wanted.values())

    def _index(self, descriptor: Descriptor, *, subject: str) -> Index | None:
        self._want(descriptor, "index", subject)
        try:
            index = self.source.read_manifest(descriptor).index
        except UNREADABLE as error:
            self.report(subject, error.message, descriptor.digest)
            self.read_whole.add(descriptor.digest)
            return None
        self.read_whole.add(descriptor.digest)
        return index

    def _read_manifest(self, descriptor: Descriptor, *, subject: str) -> Manifest | None:
        self._want(descriptor, "manifest", subject)
        if descriptor.media_type not in MANIFEST_TYPES:
            self.report(
                subject,
                f"`{descriptor.digest}` has the unknown media type `{descriptor.media_type}`",
                descriptor.digest,
            )
            return None
        try:
            manifest = self.source.read_manifest(descriptor).manifest
        except UNREADABLE as error:
            self.report(subject, error.message, descriptor.digest)
            self.read_whole.add(descriptor.digest)
            return None
        self.read_whole.add(descriptor.digest)
        return manifest

    def _manifest(
        self, descriptor: Descriptor, *, subject: str, stated: Platform | None, original: bool = False
    ) -> ImagePart | None:
        manifest = self._read_manifest(descriptor, subject=subject)
        if manifest is None:
            return None
        for layer in manifest.layers:
            self._want(layer, "layer", subject)
        self._want(manifest.config, "config", subject)
        if original and manifest.config.media_type not in (IMAGE_CONFIG, DOCKER_CONFIG):
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
        config = self._config(manifest.config, subject=subject)
        if config is None:
            return None
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            self.report(
                subject,
                f"has {len(manifest.layers)} layers, its config lists {len(config.rootfs.diff_ids)} diff_ids",
                descriptor.digest,
            )
        platform = config.platform_value()
        if stated is not None and not (stated.accepts(platform) and platform.accepts(stated)):
            self.report(subject, f"its config says platform `{platform}`, the index `{stated}`", descriptor.digest)
        return ImagePart(
            stated or platform, descriptor, manifest.config, tuple(manifest.layers), tuple(config.rootfs.diff_ids)
        )

    def _config(self, descriptor: Descriptor, *, subject: str) -> ImageConfig | None:
        self.read_whole.add(descriptor.digest)
        try:
            if descriptor.size > MAX_IMAGE_CONFIG_BYTES:
                raise IntegrityError(f"config `{descriptor.digest}` is larger than {MAX_IMAGE_CONFIG_BYTES} bytes")
            with self.source.open_blob(descriptor) as stream:
                data = verifying(stream, descriptor).read()
            return parse_image_config(data, what=f"config `{descriptor.digest}`")
        except UNREADABLE as error:
            self.report(subject, f"config: {error.message}", descriptor.digest)
            return None

    def _want(self, descriptor: Descriptor, role: str, subject: str) -> None:
        wanted = self.wanted.setdefault(descriptor.digest, Wanted(descriptor, role))
        if wanted.descriptor.size != descriptor.size:
            self.report(
                subject,
                f"{role} `{descriptor.digest}` is declared with {descriptor.size} bytes, "
                f"elsewhere with {wanted.descriptor.size}",
                descriptor.digest,
            )
        if subject not in wanted.subjects:
            wanted.subjects.append(subject)


@dataclass(frozen=True, slots=True)
class LayoutCheck:
    """What a layout holds, as far as its index names it, and what is wrong with it."""

    images: int
    artifacts: int
    blobs: int
    size_bytes: int
    findings: tuple[Defect, ...]


def validate_layout(store: LayoutStore, index: Index, *, jobs: int | None = None, emit: Emit = silent) -> LayoutCheck:
    """Check a whole layout: every byte of what its index names, and that nothing lies there that nothing names.

    It may be of any tool: images are checked as `Inspector.image` checks originals, indexes may list indexes, and a
    name may be given to one thing alone.
    """
    inspector = Inspector(store)
    named: set[str] = set()
    for entry in index.manifests:
        name = (entry.annotations or {}).get(REF_NAME)
        if entry.artifact_type is not None:
            inspector.artifact(entry, subject=f"artifact `{name or entry.digest}`")
        else:
            inspector.image(entry, subject=f"image `{name or entry.digest}`", original=True, nested=MAX_NESTED)
        if name in named:
            inspector.report(f"image `{name}`", "is listed twice in index.json", entry.digest)
        if name is not None:
            named.add(name)
    size_bytes = inspector.check_blobs(jobs=jobs, emit=emit)
    report_unnamed(store.stored_digests(), inspector.wanted.keys(), inspector.report)
    report_strays(store.path, inspector.report)
    tops = {entry.digest for entry in index.manifests}
    return LayoutCheck(
        images=len(tops - inspector.artifacts),
        artifacts=len(tops & inspector.artifacts),
        blobs=len(inspector.wanted),
        size_bytes=size_bytes,
        findings=tuple(inspector.findings),
    )


def report_strays(layout: Path, report: ReportDefect) -> None:
    """Report what lies in a layout besides index.json, oci-layout and regular files named by digests."""
    known = {"": {LAYOUT_FILE, INDEX_FILE, "blobs"}, "blobs": {"sha256"}}
    for folder, names in known.items():
        with os.scandir(layout / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name not in names:
                    report(f"file `{Path(folder) / entry.name}`", "nothing refers to it", None)
    with os.scandir(layout / "blobs" / "sha256") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.is_file(follow_symlinks=False):
                report(f"file `blobs/sha256/{entry.name}`", "is not a regular file", None)
            elif len(entry.name) != 64 or not set(entry.name) <= set("0123456789abcdef"):
                report(f"file `blobs/sha256/{entry.name}`", "nothing refers to it", None)


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
