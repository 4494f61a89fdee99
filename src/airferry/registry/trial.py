"""Find out what a registry does, by trying it in one repository, and clear away what that left.

Sends at most one chunk of the usual size besides a few small things. Tags that the repository holds are left alone.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO

from airferry.errors import RegistryError
from airferry.host import clock
from airferry.host.canonical import canonical_json
from airferry.oci.documents import (
    DOCKER_MANIFEST_LIST,
    EMPTY_CONFIG,
    EMPTY_CONFIG_BYTES,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    PlatformDocument,
    descriptor_of,
)
from airferry.oci.ports import BLOCK_BYTES, Stored
from airferry.registry.auth import repository_scope
from airferry.registry.bodies import acknowledged_bytes
from airferry.registry.client import RegistryClient
from airferry.registry.connections import Body, Request
from airferry.registry.failures import following_url
from airferry.registry.governor import CHUNK_BYTES, SMALLEST_CHUNK_BYTES
from airferry.registry.profile import RegistryProfile
from airferry.registry.runtimes import hides_from_enroot
from airferry.registry.sink import RegistrySink

PROBE_REPOSITORY = "airferry-probe"
PROBE_ARTIFACT = "application/vnd.airferry.probe.v1"
BROKEN_CHUNK_BYTES = 64 * 1024
DONE = frozenset({200, 202, 204})
SETTLE_TRIES = 5
SETTLE_PAUSE_S = 0.1
TAKEN = frozenset({201, 202, 204})


def try_registry(client: RegistryClient, repository: str = PROBE_REPOSITORY) -> RegistryProfile:
    """Return what the registry does, as tried in `repository` and in `repository/mounted`.

    What was put there is removed again, as far as the registry removes anything.

    Raises:
        RegistryError: the registry does not answer, or does not let this user push there.
        IntegrityError: it says that it stored something else than was sent.
    """
    sink = RegistrySink(client, repository)
    other = RegistrySink(client, f"{repository}/mounted")
    # never seen before, so that nothing that an earlier probe left can answer for the registry
    content = f"airferry registry probe {secrets.token_hex(16)}\n".encode()
    blob = descriptor_of(content, "text/plain")
    _put_bytes(sink, blob, content)
    chunks = _Chunks(client, repository)
    chunks.probe()
    mounts = other.mount_blob(blob, repository)
    manifests = _probe_manifests(sink, blob)
    deletes_blobs = _deletes_blob(sink, blob)
    if mounts:
        _deletes_blob(other, blob)
    return RegistryProfile(
        registry=client.registry,
        probed_at=clock.rfc3339(clock.now_s()),
        mounts=mounts,
        chunks=chunks.taken,
        largest_request_bytes=chunks.largest_bytes,
        smallest_chunk_bytes=chunks.smallest_bytes,
        resumes=chunks.resumes,
        survives_breaks=chunks.survives,
        referrers=manifests.referrers,
        shows_oci_to_enroot=manifests.shows_indexes,
        takes_docker_lists=manifests.takes_lists,
        deletes_tags=manifests.deletes_tags,
        deletes_manifests=manifests.deletes,
        deletes_blobs=deletes_blobs,
    )


def _put_bytes(sink: RegistrySink, descriptor: Descriptor, data: bytes) -> None:
    @contextmanager
    def opened() -> Iterator[IO[bytes]]:
        yield io.BytesIO(data)

    sink.put_blob_from(descriptor, opened)


@dataclass(frozen=True, slots=True)
class _Manifests:
    """What a registry does with manifests and indexes."""

    referrers: bool
    shows_indexes: bool
    takes_lists: bool
    deletes_tags: bool
    deletes: bool


def _probe_manifests(sink: RegistrySink, blob: Descriptor) -> _Manifests:
    """Store a manifest and lists of it, ask for them, and remove them again."""
    config = descriptor_of(EMPTY_CONFIG_BYTES, EMPTY_CONFIG)
    if not sink.has_blob(config):
        _put_bytes(sink, config, EMPTY_CONFIG_BYTES)
    data = canonical_json(
        Manifest(
            schema_version=2,
            media_type=IMAGE_MANIFEST,
            artifact_type=PROBE_ARTIFACT,
            config=config,
            layers=[blob],
        )
    )
    stored = Stored(descriptor_of(data, IMAGE_MANIFEST), data)
    tag = f"airferry-probe-{secrets.token_hex(4)}"
    sink.put_manifest(stored, reference=tag)
    referrers = sink.source.has_referrers_api(stored.descriptor.digest)
    index, docker = (_list_of(stored.descriptor, media_type) for media_type in (IMAGE_INDEX, DOCKER_MANIFEST_LIST))
    sink.put_manifest(index)
    shows = not hides_from_enroot(sink.source, index.descriptor.digest)
    takes = _takes(sink, docker)
    tags = sink.delete_tag(tag)
    for made in (index, docker) if takes else (index,):
        sink.delete_manifest(made.descriptor.digest)
    return _Manifests(referrers, shows, takes, tags, sink.delete_manifest(stored.descriptor.digest))


def _list_of(manifest: Descriptor, media_type: str) -> Stored:
    child = manifest.annotated(platform=PlatformDocument(os="linux", architecture="amd64"))
    data = canonical_json(Index(schema_version=2, media_type=media_type, manifests=[child]))
    return Stored(descriptor_of(data, media_type), data)


def _takes(sink: RegistrySink, stored: Stored) -> bool:
    try:
        sink.put_manifest(stored)
    except RegistryError as error:
        if error.status is None:
            raise
        return False
    return True


def _deletes_blob(sink: RegistrySink, blob: Descriptor) -> bool:
    response = sink.client.request(
        Request(
            "DELETE",
            f"{sink.repository}/blobs/{blob.digest}",
            what=f"remove blob `{blob.digest}` of `{sink}`",
            scopes=(repository_scope(sink.repository, "delete", "pull", "push"),),
        ),
        expected=None,
    )
    return response.status_code in DONE


class _Zeros:
    """Zero bytes as the body of a request; with `breaks` the connection is cut half-way."""

    def __init__(self, size: int, client: RegistryClient, *, breaks: bool = False) -> None:
        self._size = size
        self._client = client
        self._breaks = breaks

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        left = self._size // 2 if self._breaks else self._size
        while left:
            block = bytes(min(BLOCK_BYTES, left))
            self._client.rate.take(len(block))
            left -= len(block)
            yield block
        if self._breaks:
            raise ConnectionAbortedError("cut off on purpose")


class _Chunks:
    """What a repository does with uploads in chunks."""

    def __init__(self, client: RegistryClient, repository: str) -> None:
        self._client = client
        self._repository = repository
        self._scopes = (repository_scope(repository, "pull", "push"),)
        self._what = f"try an upload in `{client.registry}/{repository}`"
        self._ask = partial(Request, what=self._what, scopes=self._scopes)
        self._location = ""
        self.taken = False
        self.largest_bytes: int | None = None
        self.smallest_bytes: int | None = None
        self.resumes: bool | None = None
        self.survives: bool | None = None

    def probe(self) -> None:
        """Try chunks, largest first, until one is taken; then ask for a session, before and after a break."""
        size, status = CHUNK_BYTES, 413
        while status == 413 and size >= SMALLEST_CHUNK_BYTES:
            with self._session():
                status = self._send(_Zeros(size, self._client), 0, size)
                self.taken = status in TAKEN
                self.resumes = self._acknowledged() == size if self.taken else None
            if status == 413:
                size //= 4
                self.largest_bytes = max(size, SMALLEST_CHUNK_BYTES)
        if self.resumes:
            # a separate session: some registries can neither go on with a broken one nor remove it
            with self._session():
                self.survives = self._survives(max(BROKEN_CHUNK_BYTES, self.smallest_bytes or 0))

    def _survives(self, size: int) -> bool:
        self._send(_Zeros(size, self._client), 0, size)
        with suppress(RegistryError):
            self._send(_Zeros(size, self._client, breaks=True), size, 2 * size)
        for _ in range(SETTLE_TRIES):
            # the registry may still be at work on what arrived
            self._client.options.retry.sleep(SETTLE_PAUSE_S)
            known = self._acknowledged()
            if known is None or not size <= known <= 2 * size:
                return False
        return True

    @contextmanager
    def _session(self) -> Iterator[None]:
        self._start()
        try:
            yield
        finally:
            self._client.end_session(self._location, what=self._what, scopes=self._scopes)

    def _start(self) -> None:
        response = self._client.request(self._ask("POST", f"{self._repository}/blobs/uploads/"), expected=(202,))
        self._location = following_url(
            response.url, response.headers.get("Location", ""), what="see which chunks the registry takes"
        )
        minimum = response.headers.get("OCI-Chunk-Min-Length", "")
        if minimum.isdecimal() and len(minimum) < 12:
            self.smallest_bytes = int(minimum)

    def _send(self, body: Body, begin: int, end: int) -> int:
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{begin}-{end - 1}"}
        response = self._client.request(
            self._ask("PATCH", self._location, body=body, headers=headers, attempts=1), expected=None
        )
        if response.status_code < 300 and response.headers.get("Location"):
            self._location = following_url(
                response.url, response.headers["Location"], what="see which chunks the registry takes"
            )
        return response.status_code

    def _acknowledged(self) -> int | None:
        response = self._client.request(self._ask("GET", self._location), expected=None)
        return acknowledged_bytes(response) if response.status_code in DONE else None
