"""Images and artifacts of a bundle into the repositories of one registry, by digest, and the audit of what is there.

Blobs first, each sent once however many repositories want it, the others take it over by mount; then manifests,
children before indexes, artifacts last. Moves no tag.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from airferry.errors import IntegrityError, RegistryError
from airferry.events import Emit
from airferry.host.progress import Meter
from airferry.host.threads import parallel_map
from airferry.oci.copy import Closure
from airferry.oci.documents import MANIFEST_TYPES, Descriptor, parse_manifest
from airferry.oci.ports import OpenStream, Source, Stored, UncheckedSource
from airferry.oci.streams import sized, verifying
from airferry.registry.client import RegistryClient
from airferry.registry.failures import NotFound
from airferry.registry.sink import RegistrySink
from airferry.registry.uploads import Uploader
from airferry.wording import some_of

SHOWN_MISSING = 10
# how registries refuse a media type, once they took other manifests of the same user in the same repository
REFUSALS = frozenset({400, 403, 405, 406, 415, 422})


@dataclass(frozen=True, slots=True)
class Shipment:
    """An image or artifact on its way: what it is called, what it consists of, and the repository it goes to.

    An `optional` one goes last, and what the registry refuses of it does not keep the rest from arriving.
    """

    name: str
    repository: str
    closure: Closure
    optional: bool = False

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the whole."""
        return self.closure.top.descriptor


@dataclass(frozen=True, slots=True)
class BlobStep:
    """What is done for one blob: `action` is `send` or `mount`."""

    action: str
    digest: str
    size_bytes: int
    repository: str


@dataclass(frozen=True, slots=True)
class ManifestStep:
    """A manifest or index that is sent."""

    digest: str
    size_bytes: int
    repository: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An optional shipment that the registry refused, and what it said."""

    item: Shipment
    reason: str


@dataclass(slots=True)
class PushResult:
    """What a push did, or would do: blobs that were sent, mounted, and there before; manifests that were sent.

    `refused` are the optional shipments that the registry does not take.
    """

    steps: list[BlobStep] = field(default_factory=list)
    present_blobs: int = 0
    manifest_steps: list[ManifestStep] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def manifests(self) -> int:
        """How many manifests and indexes were sent."""
        return len(self.manifest_steps)

    @property
    def manifest_bytes(self) -> int:
        """The bytes of the manifests and indexes that were sent."""
        return sum(step.size_bytes for step in self.manifest_steps)

    @property
    def sent_blobs(self) -> int:
        """How many blobs were sent."""
        return sum(step.action == "send" for step in self.steps)

    @property
    def sent_bytes(self) -> int:
        """The bytes of the blobs that were sent."""
        return sum(step.size_bytes for step in self.steps if step.action == "send")

    @property
    def mounted_blobs(self) -> int:
        """How many blobs one repository took over from another."""
        return sum(step.action == "mount" for step in self.steps)


@dataclass(slots=True)
class _Blob:
    descriptor: Descriptor
    repositories: list[str] = field(default_factory=list)


class Pusher:
    """Brings shipments from a source into one registry."""

    def __init__(
        self,
        client: RegistryClient,
        uploader: Uploader,
        source: Source,
        *,
        jobs: int,
        emit: Emit,
        mounts: bool = True,
    ) -> None:
        """Prepare; nothing is sent yet. `mounts` False says that the registry is known to do none."""
        self._client = client
        self._uploader = uploader
        self._source = source
        self._jobs = jobs
        self._emit = emit
        self._sinks: dict[str, RegistrySink] = {}
        self._lock = threading.Lock()
        self._seen: set[tuple[str, str]] = set()
        self._read_back: set[tuple[str, str]] = set()
        self.mounts = mounts
        self.result = PushResult()

    def sink(self, repository: str) -> RegistrySink:
        """Return the sink of a repository, the same one each time."""
        with self._lock:
            if repository not in self._sinks:
                self._sinks[repository] = RegistrySink(self._client, repository, uploader=self._uploader)
            return self._sinks[repository]

    def preview(self, shipments: Sequence[Shipment]) -> PushResult:
        """Return what `push` would do, by asking the registry only."""
        result = PushResult()

        def ask(blob: _Blob) -> list[BlobStep]:
            lacking = [name for name in blob.repositories if not self.sink(name).has_blob(blob.descriptor)]
            held = len(lacking) < len(blob.repositories)
            return [
                BlobStep(
                    "mount" if self.mounts and (held or number) else "send",
                    blob.descriptor.digest,
                    blob.descriptor.size,
                    name,
                )
                for number, name in enumerate(lacking)
            ]

        blobs = _wanted_blobs(shipments)
        for blob, steps in zip(blobs, parallel_map(ask, blobs, jobs=self._jobs), strict=True):
            result.steps += steps
            result.present_blobs += len(blob.repositories) - len(steps)
        for item, lacking in zip(
            shipments, parallel_map(self._lacking_manifests, shipments, jobs=self._jobs), strict=True
        ):
            known = {(step.repository, step.digest) for step in result.manifest_steps}
            result.manifest_steps += [
                _manifest_step(item, stored)
                for stored in lacking
                if (item.repository, stored.descriptor.digest) not in known
            ]
        return result

    def push(self, shipments: Sequence[Shipment]) -> PushResult:
        """Bring everything into the registry, by digest. Idempotent; the first failure cancels the rest.

        Raises:
            RegistryError: the registry does not answer, refuses, or fails too often.
            IntegrityError: a blob is not what its descriptor says.
        """
        blobs = _wanted_blobs(shipments)
        cancelled = threading.Event()
        advance = Meter("load", sum(blob.descriptor.size for blob in blobs), self._emit, cancelled=cancelled).advance
        parallel_map(lambda blob: self._place(blob, advance), blobs, jobs=self._jobs, cancelled=cancelled)
        needed = [item for item in shipments if not item.optional]
        subjects = [item for item in needed if not _subject(item.closure.top)]
        for group in (subjects, [item for item in needed if _subject(item.closure.top)]):
            parallel_map(self._put_manifests, group, jobs=self._jobs)
        optional = [item for item in shipments if item.optional]
        refused = parallel_map(self._try_manifests, optional, jobs=self._jobs)
        self.result.refused = [answer for answer in refused if answer is not None]
        return self.result

    def unfinished(self, shipments: Iterable[Shipment]) -> list[str]:
        """Return the names of shipments of which blobs are not known to be in the registry."""
        with self._lock:
            return [
                item.name
                for item in shipments
                if any((item.repository, digest) not in self._seen for digest in item.closure.blobs)
            ]

    def audit(self, shipments: Sequence[Shipment]) -> None:
        """Read back the whole closure of every shipment: manifests byte by byte, sizes of blobs, referrers.

        Raises:
            RegistryError: something is missing; the message says what.
            IntegrityError: the registry holds something else.
        """
        held = {(step.repository, step.digest) for step in self.result.steps}
        changed = {digest for _repository, digest in held}
        blobs = [blob for blob in _wanted_blobs(shipments) if blob.descriptor.digest in changed]

        def check_blob(blob: _Blob) -> list[str]:
            return [
                f"blob `{blob.descriptor.digest}` in `{name}`"
                for name in blob.repositories
                if (name, blob.descriptor.digest) in held and not self.sink(name).has_blob(blob.descriptor)
            ]

        missing = [text for found in parallel_map(check_blob, blobs, jobs=self._jobs) for text in found]
        missing += [text for found in parallel_map(self._audit_manifests, shipments, jobs=self._jobs) for text in found]
        if missing:
            raise RegistryError(
                f"`{self._client.registry}` has lost content that it accepted: {some_of(missing, SHOWN_MISSING)}",
                hint="check whether the registry runs garbage collection during the load; no tag was moved, rerun",
                missing=missing,
            )

    def _place(self, blob: _Blob, advance: Callable[[int], None]) -> None:
        """Bring one blob into all repositories that want it."""
        descriptor = blob.descriptor
        if len(blob.repositories) == 1:
            self._bring(descriptor, blob.repositories[0], advance)
            return
        lacking = [name for name in blob.repositories if not self._has(name, descriptor)]
        holder = next((name for name in blob.repositories if name not in lacking), None)
        if holder is not None:
            advance(descriptor.size)
        for name in lacking:
            action = "send"
            if holder is not None and self._mount(descriptor, name, holder):
                action = "mount"
            else:
                self._send(descriptor, name, advance if holder is None else None)
            holder = holder or name
            self._note(action, descriptor, name)

    def _bring(self, descriptor: Descriptor, repository: str, advance: Callable[[int], None]) -> None:
        """Bring a blob into the one repository that wants it."""
        reopened = _Reopened(self._source, descriptor, advance)
        if self.sink(repository).bring_blob(descriptor, reopened.open, open_unchecked=reopened.unchecked):
            self._note("send", descriptor, repository)
            return
        advance(descriptor.size)
        self._note_present(descriptor, repository)

    def _note(self, action: str, descriptor: Descriptor, repository: str) -> None:
        with self._lock:
            self._seen.add((repository, descriptor.digest))
            self.result.steps.append(BlobStep(action, descriptor.digest, descriptor.size, repository))

    def _note_present(self, descriptor: Descriptor, repository: str) -> None:
        with self._lock:
            self._seen.add((repository, descriptor.digest))
            self.result.present_blobs += 1

    def _has(self, repository: str, descriptor: Descriptor) -> bool:
        found = self.sink(repository).has_blob(descriptor)
        if found:
            self._note_present(descriptor, repository)
        return found

    def _mount(self, descriptor: Descriptor, repository: str, holder: str) -> bool:
        """Try a mount, unless the registry has shown that it does none."""
        if not self.mounts:
            return False
        done = self.sink(repository).mount_blob(descriptor, holder)
        self.mounts = self.mounts and done
        return done

    def _send(self, descriptor: Descriptor, repository: str, advance: Callable[[int], None] | None) -> None:
        sink = self.sink(repository)
        reopened = _Reopened(self._source, descriptor, advance)
        sink.put_blob_from(descriptor, reopened.open, open_unchecked=reopened.unchecked)

    def _put_manifests(self, item: Shipment) -> None:
        sink = self.sink(item.repository)
        for stored in self._lacking_manifests(item):
            sink.put_manifest(stored)
            with self._lock:
                self.result.manifest_steps.append(_manifest_step(item, stored))

    def _try_manifests(self, item: Shipment) -> Refused | None:
        """Send the manifests of an optional shipment, and return the refusal if the registry does not take them."""
        try:
            self._put_manifests(item)
        except RegistryError as error:
            if error.status not in REFUSALS:
                raise
            return Refused(item, error.message)
        return None

    def _lacking_manifests(self, item: Shipment) -> list[Stored]:
        """Return the manifests that the repository does not hold, or holds unlisted as referrers, children first."""
        return [stored for stored in item.closure.manifests if self._find_trouble(item, stored)]

    def _audit_manifests(self, item: Shipment) -> list[str]:
        """Return what is wrong with the manifests of a shipment, those left out that were read in this run already."""
        troubles = [
            self._find_trouble(item, stored)
            for stored in item.closure.manifests
            if (item.repository, stored.descriptor.digest) not in self._read_back
        ]
        return [trouble for trouble in troubles if trouble]

    def _find_trouble(self, item: Shipment, stored: Stored) -> str:
        """Read a manifest back, and return what is missing, empty if nothing is.

        Raises:
            IntegrityError: the registry holds something else.
        """
        source = self.sink(item.repository).source
        digest, subject = stored.descriptor.digest, _subject(stored)
        try:
            held = source.read_manifest(stored.descriptor)
        except NotFound:
            return f"manifest `{digest}` in `{item.repository}`"
        if held.data != stored.data:
            raise IntegrityError(f"`{source}` has different content for `{digest}`", digest=digest)
        if subject and not _is_listed(source.referrers(subject), digest):
            return f"`{digest}` among the referrers of `{subject}` in `{item.repository}`"
        with self._lock:
            self._read_back.add((item.repository, digest))
        return ""


class _Reopened:
    """A blob of a source that can be opened again and counts no byte twice."""

    def __init__(self, source: Source, descriptor: Descriptor, advance: Callable[[int], None] | None) -> None:
        self._source = source
        self._descriptor = descriptor
        self._advance = advance
        self._counted = 0

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the blob from its start, verified."""
        with self._source.open_blob(self._descriptor) as stream:
            yield verifying(stream, self._descriptor, on_block=self._counter())

    @property
    def unchecked(self) -> OpenStream | None:
        """What opens the blob from its start without hashing it, if the source offers that."""
        source = self._source
        if not isinstance(source, UncheckedSource):
            return None

        @contextmanager
        def opened() -> Iterator[IO[bytes]]:
            with source.open_blob_unchecked(self._descriptor) as stream:
                yield sized(stream, self._descriptor, on_block=self._counter())

        return opened

    def _counter(self) -> Callable[[int], None]:
        position = 0

        def passed(size: int) -> None:
            nonlocal position
            position += size
            if self._advance is not None:
                self._advance(max(0, position - self._counted))
            self._counted = max(self._counted, position)

        return passed


def _manifest_step(item: Shipment, stored: Stored) -> ManifestStep:
    return ManifestStep(stored.descriptor.digest, stored.descriptor.size, item.repository)


def _wanted_blobs(shipments: Iterable[Shipment]) -> list[_Blob]:
    """Return every blob once, largest first, with the repositories that want it.

    Raises:
        IntegrityError: a blob is declared with two different sizes.
    """
    found: dict[str, _Blob] = {}
    for item in shipments:
        for digest, descriptor in item.closure.blobs.items():
            blob = found.setdefault(digest, _Blob(descriptor))
            if blob.descriptor.size != descriptor.size:
                raise IntegrityError(f"blob `{digest}` is declared with two different sizes", digest=digest)
            if item.repository not in blob.repositories:
                blob.repositories.append(item.repository)
    return sorted(found.values(), key=lambda blob: (-blob.descriptor.size, blob.descriptor.digest))


def _subject(stored: Stored) -> str:
    if stored.descriptor.media_type not in MANIFEST_TYPES:
        return ""
    manifest = parse_manifest(stored.data, what=f"manifest `{stored.descriptor.digest}`")
    return manifest.subject.digest if manifest.subject else ""


def _is_listed(referrers: Iterable[Descriptor], digest: str) -> bool:
    return any(entry.digest == digest for entry in referrers)
