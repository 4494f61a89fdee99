"""Find out what a registry does, by trying it in one repository, and clear away what that left.

Sends a chunk of up to 64 MiB, and a whole upload where that tells more, besides small things. Tags that the repository
holds are left alone.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from airferry.defaults import PROBE_REPOSITORY
from airferry.errors import RegistryError
from airferry.host import clock
from airferry.oci.digest import digest_of
from airferry.oci.documents import DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, descriptor_of
from airferry.oci.ports import BLOCK_BYTES, Stored
from airferry.registry.auth import repository_scope
from airferry.registry.bodies import acknowledged_bytes
from airferry.registry.client import RegistryClient
from airferry.registry.connections import Body, Request
from airferry.registry.failures import TransientRegistryError, following_url
from airferry.registry.governor import CHUNK_BYTES, SMALLEST_CHUNK_BYTES
from airferry.registry.profile import RegistryProfile
from airferry.registry.runtimes import hides_from_enroot
from airferry.registry.sink import RegistrySink
from airferry.registry.trials.kinds import ArtifactKind, TakenKinds, try_kinds
from airferry.registry.trials.leavings import DONE, Leavings
from airferry.registry.trials.names import TRIED_DEPTHS, deep_name, deepest_name, depth_of, takes_uploads
from airferry.registry.uploads import with_digest

PROBE_TAG = "airferry-probe"
BROKEN_CHUNK_BYTES = 64 * 1024
SETTLE_TRIES = 5
SETTLE_PAUSE_S = 0.1
TAKEN = frozenset({201, 202, 204})


def try_registry(
    client: RegistryClient,
    repository: str = PROBE_REPOSITORY,
    *,
    artifacts: Iterable[ArtifactKind] = (),
    largest_bytes: int = CHUNK_BYTES,
    left: Leavings | None = None,
) -> RegistryProfile:
    """Return what the registry does, as tried in `repository`, `repository/mounted` and one deep name below it.

    These `artifacts` are tried besides one that no registry knows. No request carries more than `largest_bytes`. What
    was put there is removed again, as far as the registry removes anything; `left` says what stays, failed or not.

    Raises:
        RegistryError: the registry does not answer, or does not let this user push there.
        IntegrityError: it says that it stored something else than was sent.
    """
    left = Leavings() if left is None else left
    sink = RegistrySink(client, repository)
    try:
        return _try(sink, artifacts, largest_bytes, left)
    except BaseException:
        left.clear_what_can_be(sink)
        raise


def _try(sink: RegistrySink, artifacts: Iterable[ArtifactKind], largest_bytes: int, left: Leavings) -> RegistryProfile:
    client, repository = sink.client, sink.repository
    left.repositories.append(repository)
    # never seen before, so that nothing that an earlier probe left can answer for the registry
    content = f"airferry registry probe {secrets.token_hex(16)}\n".encode()
    blob = descriptor_of(content, "text/plain")
    left.blobs.append((repository, blob.digest))
    sink.put_blob(blob, io.BytesIO(content))
    sizes = _Sizes(client, repository, largest_bytes, left)
    sizes.probe()
    mounts = _mounts(client, repository, blob, left)
    kinds = try_kinds(sink, artifacts, left)
    manifests = _probe_manifests(sink, kinds, left)
    cleared = left.clear(sink)
    deepest = deepest_name(client, repository)
    left.repositories += [deep_name(repository, deepest)] if (deepest or 0) > depth_of(repository) else []
    return RegistryProfile(
        registry=client.registry,
        probed_at=clock.rfc3339(clock.now_s()),
        mounts=mounts,
        chunks=sizes.taken,
        largest_request_bytes=sizes.largest_request_bytes,
        smallest_chunk_bytes=sizes.smallest_bytes,
        largest_chunk_bytes=sizes.largest_chunk_bytes,
        largest_upload_bytes=sizes.largest_upload_bytes,
        largest_tried_bytes=largest_bytes,
        resumes=sizes.resumes,
        survives_breaks=sizes.survives,
        referrers=manifests.referrers,
        shows_oci_to_enroot=manifests.shows_indexes,
        takes_docker_lists=kinds.media_types[DOCKER_MANIFEST_LIST],
        deletes_tags=cleared.tags,
        deletes_manifests=cleared.manifests,
        deletes_blobs=cleared.blobs,
        media_types=kinds.media_types,
        artifact_types=kinds.artifact_types,
        deepest_name=deepest,
        deepest_tried=max(TRIED_DEPTHS),
    )


def _mounts(client: RegistryClient, repository: str, blob: Descriptor, left: Leavings) -> bool | None:
    """Tell whether a second repository takes a blob over; None where the registry allows no repository of that name."""
    other = RegistrySink(client, f"{repository}/mounted")
    done = other.mount_blob(blob, repository)
    if not done and not takes_uploads(client, other.repository):
        return None
    left.repositories.append(other.repository)
    if done:
        left.blobs.append((other.repository, blob.digest))
    return done


@dataclass(frozen=True, slots=True)
class _Manifests:
    """What a registry does with manifests and indexes; None where it takes none that would tell."""

    referrers: bool
    shows_indexes: bool | None


def _probe_manifests(sink: RegistrySink, kinds: TakenKinds, left: Leavings) -> _Manifests:
    """Ask for what was stored, and give it a tag."""
    images = [held for held in kinds.manifests if held.descriptor.media_type == IMAGE_MANIFEST]
    lists = [held.descriptor for held in kinds.manifests if held.descriptor.media_type == IMAGE_INDEX]
    asked = images[0].descriptor.digest if images else digest_of(b"never stored")
    referrers = sink.source.has_referrers_api(asked)
    shows = not hides_from_enroot(sink.source, lists[0].digest) if lists else None
    if kinds.manifests:
        _tag(sink, (images or kinds.manifests)[0], left)
    return _Manifests(referrers, shows)


def _tag(sink: RegistrySink, stored: Stored, left: Leavings) -> None:
    """Give what was stored the tag of all probes. One that an earlier probe left is no longer needed."""
    earlier = sink.source.find(PROBE_TAG)
    if earlier is not None:
        left.manifests.append(earlier)
    left.tags.append(PROBE_TAG)
    try:
        sink.put_manifest(stored, reference=PROBE_TAG)
    except RegistryError as error:
        # a registry whose tags never move keeps that of an earlier probe, and is probed all the same
        if not sink.refuses(error):
            raise


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


class _Sizes:
    """How much a repository takes in one request, and what it does with uploads in chunks."""

    def __init__(self, client: RegistryClient, repository: str, largest_bytes: int, left: Leavings) -> None:
        self._client = client
        self._left = left
        self._largest = largest_bytes
        self._repository = repository
        self._scopes = (repository_scope(repository, "pull", "push"),)
        self._what = f"try an upload in `{client.registry}/{repository}`"
        self._ask = partial(Request, what=self._what, scopes=self._scopes)
        self._location = ""
        self.taken: bool | None = None
        # the largest of the tried sizes that came through, and the same if a larger one was refused
        self.largest_chunk_bytes: int | None = None
        self.largest_upload_bytes: int | None = None
        self.largest_request_bytes: int | None = None
        self.smallest_bytes: int | None = None
        self.resumes: bool | None = None
        self.survives: bool | None = None

    def probe(self) -> None:
        """Try chunks, largest first, and whole uploads if there is more to learn; then ask for a session, also broken.

        docker-registry 2.8 keeps the bytes of such an upload for a week: none of a size that came as a chunk is sent.
        """
        size = self._chunks(min(CHUNK_BYTES, self._largest))
        if not self.taken or (self.largest_request_bytes is None and self._largest > size):
            self._wholes(self._largest if self.largest_request_bytes is None else size)
        if self.resumes:
            # a separate session: some registries can neither go on with a broken one nor remove it
            with self._session():
                self.survives = self._survives(max(BROKEN_CHUNK_BYTES, self.smallest_bytes or 0))

    def _chunks(self, size: int) -> int:
        """Try one chunk, half as large after each 413, and return the size that was answered otherwise."""
        while True:
            with self._session():
                try:
                    status = self._send(_Zeros(size, self._client), 0, size)
                except TransientRegistryError:
                    # it fails, or cuts connections: not known, and not found out by more of the same
                    return size
                self.taken = status in TAKEN
                if self.taken:
                    self.largest_chunk_bytes = size
                    self.resumes = self._acknowledged() == size
            if status != 413 or size <= SMALLEST_CHUNK_BYTES:
                return size
            size = self.largest_request_bytes = max(size // 2, SMALLEST_CHUNK_BYTES)

    def _wholes(self, size: int) -> None:
        """Try one whole upload, half as large after each 413, until one is answered otherwise."""
        while True:
            with self._session():
                status = self._send_whole(size)
            if status is not None and status != 413:
                self.largest_upload_bytes = size
            if status != 413 or size <= SMALLEST_CHUNK_BYTES:
                return
            size = max(size // 2, SMALLEST_CHUNK_BYTES)
            self.largest_request_bytes = min(size, self.largest_request_bytes or size)

    def _send_whole(self, size: int) -> int | None:
        """Send this many bytes under a digest that is not theirs, so that nothing is stored; None without an answer."""
        digest = digest_of(secrets.token_bytes(32))
        headers = {"Content-Type": "application/octet-stream"}
        url, body = with_digest(self._location, digest), _Zeros(size, self._client)
        try:
            answer = self._client.request(self._ask("PUT", url, body=body, headers=headers, attempts=1), expected=None)
        except TransientRegistryError:
            return None
        status = answer.status_code
        if status < 300:
            # it does not check digests
            self._left.blobs.append((self._repository, digest))
        return status

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
