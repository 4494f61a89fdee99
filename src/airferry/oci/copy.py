"""The one engine that copies images and artifacts from a Source to Sinks. Knows no registries, archives and caches.

Whatever a copy is for, it keeps one order, so that nothing ever stands for something incomplete: blobs, the largest
first and each sent once however many repositories want it; then manifests, children before indexes and subjects before
what refers to them; names last. What was interrupted is begun again, and what arrived is not sent again. What a Source
or a Sink can do better than read and put, it says for itself (`oci.ports`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from airferry.errors import AirferryError, IntegrityError, RegistryError
from airferry.events import Emit, silent
from airferry.host.progress import Meter
from airferry.host.threads import parallel_map
from airferry.oci.closure import (
    RefusedShipment,
    Shipment,
    is_subject,
    read_closure,
    read_referrers,
    subjects_first,
)
from airferry.oci.copying.present import doubtful_blobs, send_manifests_as_blobs, send_unreadable
from airferry.oci.copying.report import BlobStep, CopyReport, ManifestStep
from airferry.oci.documents import FOREIGN_LAYERS, Descriptor, foreign_hint
from airferry.oci.platform import Platform
from airferry.oci.ports import Action, BlobOffer, Sink, Source, Stored
from airferry.wording import some_of

# between stores on disks, where hashing and writing are what takes time; registries have an option of their own
DEFAULT_JOBS = 4

SHOWN_MISSING = 3

T = TypeVar("T")
R = TypeVar("R")
Order = Callable[[Iterable[Descriptor]], Iterable[Descriptor]]


def largest_first(blobs: Iterable[Descriptor]) -> Iterable[Descriptor]:
    """Return blobs in the order in which several threads are done with them soonest."""
    return sorted(blobs, key=lambda blob: (-blob.size, blob.digest))


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """How to copy.

    `task` is what progress is said of. `link` lets a sink take files of the source as they are, as between stores of
    one user. With `skip_held`, manifests are read back first and only those that are missing are sent. `skip_lost`
    takes a blob that the source lacks for a refusal, where only optional shipments want it. With `read_back`, an audit
    reads all blobs.
    """

    jobs: int = DEFAULT_JOBS
    task: str = "copy"
    order: Order = largest_first
    link: bool = False
    skip_held: bool = False
    skip_lost: bool = False
    read_back: bool = False
    emit: Emit = silent


@dataclass(slots=True)
class _Wanted:
    """A blob, the repositories that want it, as they were named, and those of them that cannot do without it."""

    descriptor: Descriptor
    repositories: dict[str, None] = field(default_factory=dict)
    needed: set[str] = field(default_factory=set)


class Transfer:
    """Copies shipments from one source to the sinks of their repositories, in steps that a caller can part.

    `send` brings everything but the names, `audit` reads it back, `name` lets the names stand for it. What one step
    learned, the next ones know.
    """

    def __init__(self, source: Source, sinks: Callable[[str], Sink], options: CopyOptions | None = None) -> None:
        """Prepare; nothing is sent yet. `sinks` returns the sink of a repository, the same one each time."""
        self.report = CopyReport()
        self._source = source
        self._sinks = sinks
        self._options = options or CopyOptions()
        self._lock = threading.Lock()
        self._arrived: set[tuple[str, str]] = set()
        self._read_back: set[tuple[str, str]] = set()
        self._refusals: dict[tuple[str, str], str] = {}

    def preview(self, shipments: Sequence[Shipment]) -> CopyReport:
        """Return what `send` would do, by asking the sinks only."""
        report = CopyReport()

        def ask(blob: _Wanted) -> list[BlobStep]:
            lacking, held = self._compare(blob)
            report.present_blobs += len(held)
            return [
                BlobStep(
                    "mount" if (held or number) and self._sinks(name).mounts else "send",
                    blob.descriptor.digest,
                    blob.descriptor.size,
                    name,
                )
                for number, name in enumerate(lacking)
            ]

        blobs = self._wanted_blobs(shipments)
        for steps in self._map(ask, blobs):
            report.steps += steps
        missing: dict[tuple[str, str], ManifestStep] = {}
        for item, lacking in zip(shipments, self._map(self._preview_manifests, shipments), strict=True):
            if isinstance(lacking, RefusedShipment):
                report.refused.append(lacking)
                continue
            for stored in lacking:
                missing.setdefault((item.repository, stored.descriptor.digest), _manifest_step(item, stored))
        report.manifest_steps += missing.values()
        return report

    def send(self, shipments: Sequence[Shipment]) -> CopyReport:
        """Bring everything to the sinks, by digest. Idempotent; the first failure cancels the rest.

        Raises:
            IntegrityError: something is not what its descriptor says.
        """
        blobs = self._wanted_blobs(shipments)
        failed = threading.Event()
        total = sum(blob.descriptor.size for blob in blobs)
        meter = Meter(self._options.task, total, self._options.emit, cancelled=failed)
        self._map(lambda blob: self._place(blob, meter.advance), blobs, cancelled=failed)
        for level in subjects_first([item for item in shipments if not item.optional]):
            self._map(lambda item: self._put_manifests(item, shipments), level)
        for level in subjects_first([item for item in shipments if item.optional]):
            # of a level, so that what refers to something that was refused finds it in the report
            answers = self._map(self._try_manifests, level)
            self.report.refused += [answer for answer in answers if answer is not None]
        doubtful = doubtful_blobs(shipments, self.report)
        lost = send_unreadable(doubtful, self._source, self._sinks, jobs=self._options.jobs)
        for repository, blob in lost:
            self.report.add_lost(repository, blob)
        send_manifests_as_blobs(shipments, {repository for repository, _blob in lost}, self._sinks)
        return self.report

    def name(self, shipments: Sequence[Shipment]) -> None:
        """Let the references of shipments stand for what `send` has brought, those left out that were refused."""
        refused = {id(one.item) for one in self.report.refused}
        # an image last, so that its signatures are there once it has its name
        for item in sorted(shipments, key=lambda item: not item.optional):
            if item.reference is None or id(item) in refused:
                continue
            put = partial(self._sinks(item.repository).put_manifest, item.closure.top, reference=item.reference)
            if reason := self._tried(item, put):
                self.report.refused.append(RefusedShipment(item, reason))

    def audit(self, shipments: Sequence[Shipment]) -> list[str]:
        """Read back the whole closure of every shipment, and return what is missing, in words.

        Manifests are compared byte by byte, blobs that were sent or mounted by their size, referrers must be listed.
        With `read_back`, each blob is also read whole in one of its repositories, those that were there before too.
        What was read back before counts.

        Raises:
            IntegrityError: a sink holds something else.
        """
        # blobs that were there are not asked for again: that was done in this run, when the repository was compared
        moved = {(step.repository, step.digest) for step in self.report.steps}
        changed = {digest for _repository, digest in moved}
        blobs = [blob for blob in self._wanted_blobs(shipments) if blob.descriptor.digest in changed]

        def check_blob(blob: _Wanted) -> list[str]:
            return [
                f"blob `{blob.descriptor.digest}`{_in(name)}"
                for name in blob.repositories
                if (name, blob.descriptor.digest) in moved and not self._sinks(name).has_blob(blob.descriptor)
            ]

        missing = [text for found in self._map(check_blob, blobs) for text in found]
        if self._options.read_back:
            missing += [text for text in self._read_blobs(shipments) if text not in missing]
        return missing + [text for found in self._map(self._audit_manifests, shipments) for text in found]

    def _read_blobs(self, shipments: Sequence[Shipment]) -> list[str]:
        """Read blobs back that were not read yet, each once, and return those that are not there."""
        blobs = [blob for blob in self._wanted_blobs(shipments) if ("", blob.descriptor.digest) not in self._read_back]
        meter = Meter("audit", sum(blob.descriptor.size for blob in blobs), self._options.emit)

        def read(blob: _Wanted) -> str:
            # where it was sent to, as others may only have taken it over from there
            name = next(iter(blob.repositories))
            if not self._sinks(name).reads_back(blob.descriptor, meter.advance):
                return f"blob `{blob.descriptor.digest}`{_in(name)}"
            with self._lock:
                self._read_back.add(("", blob.descriptor.digest))
            return ""

        return [text for text in self._map(read, blobs) if text]

    def audit_optional(self, shipments: Sequence[Shipment]) -> list[RefusedShipment]:
        """Read optional shipments back as `audit` does, and return those that the sinks do not hold or do not show.

        Raises:
            IntegrityError: a sink holds something else.
        """

        def check(item: Shipment) -> RefusedShipment | None:
            missing: list[str] = []
            reason = self._tried(item, lambda: missing.extend(self.audit([item])))
            if missing:
                reason = f"accepted, but not there when read back: {some_of(missing, SHOWN_MISSING)}"
            return RefusedShipment(item, reason) if reason else None

        return [refused for item in shipments if (refused := check(item)) is not None]

    def hashed(self) -> set[str]:
        """Return the digests of the blobs of which all bytes were hashed: as they were sent, or when read back."""
        with self._lock:
            read_back = {digest for _repository, digest in self._read_back}
            return read_back | {step.digest for step in self.report.steps if step.action == "send"}

    def unfinished(self, shipments: Iterable[Shipment]) -> list[str]:
        """Return the names of shipments of which blobs are not known to have arrived."""
        with self._lock:
            return [
                item.name
                for item in shipments
                if any((item.repository, digest) not in self._arrived for digest in item.closure.blobs)
            ]

    # --- blobs -------------------------------------------------------------------------------------------------------

    def _wanted_blobs(self, shipments: Iterable[Shipment]) -> list[_Wanted]:
        """Return every blob once, in the order to send them, with the repositories that want it.

        Raises:
            IntegrityError: a blob is declared with two different sizes.
        """
        found: dict[str, _Wanted] = {}
        for item in shipments:
            for digest, descriptor in item.closure.blobs.items():
                blob = found.setdefault(digest, _Wanted(descriptor))
                if blob.descriptor.size != descriptor.size:
                    raise IntegrityError(f"blob `{digest}` is declared with two different sizes", digest=digest)
                blob.repositories[item.repository] = None
                if not item.optional:
                    blob.needed.add(item.repository)
        ordered = self._options.order(blob.descriptor for blob in found.values())
        return [found[descriptor.digest] for descriptor in ordered]

    def _place(self, blob: _Wanted, advance: Callable[[int], None]) -> None:
        """Bring one blob into all repositories that want it: one of them is sent it, the others take it over there."""
        try:
            self._place_everywhere(blob, advance)
        except (IntegrityError, RegistryError) as error:
            if blob.descriptor.media_type not in FOREIGN_LAYERS:
                raise
            raise error.reworded(error.message, hint=foreign_hint(blob.descriptor)) from error

    def _place_everywhere(self, blob: _Wanted, advance: Callable[[int], None]) -> None:
        descriptor = blob.descriptor
        offer = BlobOffer(descriptor, self._source, advance=advance, link=self._options.link)
        if len(blob.repositories) == 1:
            (name,) = blob.repositories
            with self._may_be_refused(blob, name):
                # asking is left to the sink, which may know a way that costs no request
                self._note(self._sinks(name).take_blob(offer), descriptor, name)
        else:
            lacking, held = self._compare(blob)
            for name in held:
                self._note("present", descriptor, name)
            # one after another: the second takes over what the first was sent
            for name in lacking:
                sink = self._sinks(name)
                with self._may_be_refused(blob, name):
                    if held and sink.mount_blob(descriptor, self._sinks(held[0]).repository):
                        self._note("mount", descriptor, name)
                    else:
                        # also after a mount that was refused, which registries do by beginning an upload (202)
                        self._note(sink.take_blob(offer, absent=True), descriptor, name)
                    held.append(name)
        offer.settle()

    def _compare(self, blob: _Wanted) -> tuple[list[str], list[str]]:
        """Return which repositories that want a blob lack it, and which hold it; what refuses the question is left."""
        lacking: list[str] = []
        held: list[str] = []
        for name in blob.repositories:
            with self._may_be_refused(blob, name):
                (held if self._sinks(name).has_blob(blob.descriptor) else lacking).append(name)
        return lacking, held

    @contextmanager
    def _may_be_refused(self, blob: _Wanted, repository: str) -> Iterator[None]:
        """Note instead of raising that a blob is refused, or lost, where only optional shipments want it there."""
        try:
            yield
        except AirferryError as error:
            lost = self._options.skip_lost and self._source.lacks(error)
            if repository in blob.needed or not (lost or self._sinks(repository).refuses(error)):
                raise
            with self._lock:
                self._refusals[repository, blob.descriptor.digest] = error.message

    def _note(self, action: Action, descriptor: Descriptor, repository: str) -> None:
        with self._lock:
            self._arrived.add((repository, descriptor.digest))
            if action == "present":
                self.report.present_blobs += 1
            else:
                self.report.steps.append(BlobStep(action, descriptor.digest, descriptor.size, repository))

    # --- manifests ---------------------------------------------------------------------------------------------------

    def _put_manifests(self, item: Shipment, shipments: Sequence[Shipment] = ()) -> None:
        """Send the manifests of a shipment, children first; the top is left to `name` where nothing refers to it."""
        sink = self._sinks(item.repository)
        lacking = self._lacking_manifests(item) if self._options.skip_held else item.closure.manifests
        # whether an optional one is taken has to be known before it gets a name
        named_later = item.reference is not None and not item.optional and not is_subject(item, shipments)
        held_back = item.closure.top if named_later else None
        for stored in lacking:
            if stored is not held_back:
                sink.put_manifest(stored)
            with self._lock:
                self.report.manifest_steps.append(_manifest_step(item, stored))

    def _try_manifests(self, item: Shipment) -> RefusedShipment | None:
        """Send the manifests of an optional shipment, and return the refusal if the sink does not take all of it."""
        reason = self._why_incomplete(item) or self._tried(item, lambda: self._put_manifests(item))
        return RefusedShipment(item, reason) if reason else None

    def _preview_manifests(self, item: Shipment) -> list[Stored] | RefusedShipment:
        """Return the manifests that the sink lacks; for an optional shipment, the refusal if that cannot be asked."""
        lacking: list[Stored] = []
        reason = self._why_incomplete(item) or self._tried(item, lambda: lacking.extend(self._lacking_manifests(item)))
        return RefusedShipment(item, reason) if reason else lacking

    def _why_incomplete(self, item: Shipment) -> str:
        """Return why an optional shipment cannot be whole: a blob, or what it refers to, was refused; else empty."""
        for digest in item.closure.blobs:
            if (reason := self._refusals.get((item.repository, digest))) is not None:
                return reason
        for refused in self.report.refused:
            if refused.item.repository == item.repository and is_subject(refused.item, [item]):
                return f"it refers to `{item.closure.top.subject}`, which was refused"
        return ""

    def _tried(self, item: Shipment, action: Callable[[], object]) -> str:
        """Do something for a shipment, and return why the sink refused, where it is optional; empty if it did not."""
        try:
            action()
        except AirferryError as error:
            if not item.optional or not self._sinks(item.repository).refuses(error, item.closure.manifests):
                raise
            return error.message
        return ""

    def _lacking_manifests(self, item: Shipment) -> list[Stored]:
        """Return the manifests that the sink does not hold, or holds unlisted as referrers, children first."""
        return [stored for stored in item.closure.manifests if self._lack(item, stored)]

    def _audit_manifests(self, item: Shipment) -> list[str]:
        """Return what is missing of the manifests of a shipment, those left out that were read back already."""
        found = [
            self._lack(item, stored)
            for stored in item.closure.manifests
            if (item.repository, stored.descriptor.digest) not in self._read_back
        ]
        return [f"{lack}{_in(item.repository)}" for lack in found if lack]

    def _lack(self, item: Shipment, stored: Stored) -> str:
        lack = self._sinks(item.repository).lacks_manifest(stored)
        if not lack:
            with self._lock:
                self._read_back.add((item.repository, stored.descriptor.digest))
        return lack

    def _map(
        self, function: Callable[[T], R], items: Iterable[T], *, cancelled: threading.Event | None = None
    ) -> list[R]:
        return parallel_map(function, items, jobs=self._options.jobs, cancelled=cancelled)


def transfer(
    shipments: Sequence[Shipment], source: Source, sink: Sink, options: CopyOptions | None = None
) -> CopyReport:
    """Copy shipments from a source to one sink, each name last.

    Idempotent: what the sink holds is not sent again. The first failure cancels the rest and leaves no new name.

    Raises:
        IntegrityError: something is not what its descriptor says.
    """
    copying = Transfer(source, lambda repository: sink, options)
    report = copying.send(shipments)
    copying.name(shipments)
    return report


def copy_image(
    source: Source,
    sink: Sink,
    descriptor: Descriptor,
    *,
    platforms: Collection[Platform] | None = None,
    reference: str | None = None,
    referrers: bool = False,
    options: CopyOptions | None = None,
) -> Descriptor:
    """Copy an image, all of it, and return the descriptor of what the sink holds now under `reference`.

    With `platforms`, an index is narrowed. With `referrers`, artifacts that refer to any part of the image come along.

    Raises:
        BuildError: a wanted platform is missing.
        IntegrityError: something is not what its descriptor says.
    """
    shipments = image_shipments(source, descriptor, platforms=platforms, reference=reference, referrers=referrers)
    transfer(shipments, source, sink, options)
    return shipments[0].descriptor


def image_shipments(
    source: Source,
    descriptor: Descriptor,
    *,
    platforms: Collection[Platform] | None = None,
    reference: str | None = None,
    referrers: bool = False,
    lost: dict[str, str] | None = None,
) -> list[Shipment]:
    """Return what a copy of one image consists of: the image, and with `referrers` the artifacts that refer to it.

    The artifacts are optional: an image arrives where a sink does not take them. For `lost` see `read_referrers`.

    Raises:
        BuildError: a wanted platform is missing.
        IntegrityError: a document is not what its descriptor says.
    """
    closure = read_closure(source, descriptor, platforms=platforms)
    attached = read_referrers(source, closure, lost=lost) if referrers else []
    return [
        Shipment(closure.top.descriptor.digest, "", closure, reference=reference),
        *(Shipment(inner.top.descriptor.digest, "", inner, optional=True) for inner in attached),
    ]


def copy_blob(
    source: Source, sink: Sink, descriptor: Descriptor, *, link: bool = False, verified: bool = False
) -> Action:
    """Copy one blob that no manifest names yet, and return what was done. Idempotent.

    With `link` the sink may take the very file; `verified` says that this process has just found it to be the blob.

    Raises:
        IntegrityError: it is not what its descriptor says.
    """
    return sink.take_blob(BlobOffer(descriptor, source, link=link, verified=verified))


def _manifest_step(item: Shipment, stored: Stored) -> ManifestStep:
    return ManifestStep(stored.descriptor.digest, stored.descriptor.size, item.repository)


def _in(repository: str) -> str:
    return f" in `{repository}`" if repository else ""
