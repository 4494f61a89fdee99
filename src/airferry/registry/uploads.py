"""Uploads of one blob: in one piece, or in chunks with a journal from which a killed process goes on.

Follows the OCI distribution-spec v1.1, "Pushing blobs". A PATCH is never sent twice: after a failure the registry is
asked how far it got, and where it lost the session the upload starts over.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeGuard

from airferry.errors import IntegrityError, RegistryError
from airferry.host import files
from airferry.host.canonical import canonical_json
from airferry.host.parsing import Malformed, parse_json, url_host
from airferry.oci.digest import digest_of
from airferry.oci.documents import Descriptor
from airferry.oci.ports import OpenStream, skip
from airferry.registry.auth import repository_scope
from airferry.registry.bodies import PartBody, WholeBody, acknowledged_bytes
from airferry.registry.client import RegistryClient
from airferry.registry.connections import Answer, Request
from airferry.registry.failures import (
    DAMAGE_HINT,
    NO_REGISTRY_HINT,
    SESSION_HINT,
    STRANGE_HINT,
    LostSession,
    TooLarge,
    TransientRegistryError,
    following_url,
    one_line,
    registry_codes,
)
from airferry.registry.governor import Limits

# seeing whether a registry checks digests takes four requests, which small blobs would not win back
UNCHECKED_FROM_BYTES = 4 * 1024 * 1024
# distribution was measured at 480 MiB/s; one that is busy, on network storage, does far less
SLOWEST_DIGEST_BYTES_PER_S = 20 * 1024 * 1024
MAX_UPLOAD_JOURNAL_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class UploadSession:
    """An upload under way: where the next request goes, and how many bytes the registry has acknowledged."""

    location: str
    offset: int = 0


class UploadJournal:
    """Acknowledged chunks of uploads under way, in a file that its owner alone may read. Safe to use from threads."""

    def __init__(self, path: Path | None) -> None:
        """Use the file at `path`; with None, nothing is kept. A damaged file counts as empty: nothing depends on it."""
        self._path = path
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, object]] = {}
        if path is not None and path.is_file():
            with suppress(Malformed):
                document = parse_json(files.read_bounded(path, limit_bytes=MAX_UPLOAD_JOURNAL_BYTES))
                if isinstance(document, dict):
                    self._entries = {key: value for key, value in document.items() if isinstance(value, dict)}

    def find(self, repository: str, descriptor: Descriptor) -> UploadSession | None:
        """Return the session in which a blob was being sent to `HOST/REPOSITORY`, or None."""
        with self._lock:
            entry = self._entries.get(_journal_key(repository, descriptor))
        if entry is None:
            return None
        location, offset = entry.get("location"), entry.get("offset")
        return UploadSession(location, offset) if _is_url(location) and isinstance(offset, int) else None

    def record(self, repository: str, descriptor: Descriptor, session: UploadSession | None) -> None:
        """Note durably how far an upload is; None: it is over. Atomic."""
        if self._path is None:
            return
        key = _journal_key(repository, descriptor)
        with self._lock:
            entries = {name: entry for name, entry in self._entries.items() if name != key}
            if session is None and len(entries) == len(self._entries):
                return
            if session is not None:
                told = {"repository": repository, "digest": descriptor.digest}
                entries[key] = {**told, "location": session.location, "offset": session.offset}
            if entries:
                files.write_bytes(self._path, json.dumps(entries, indent=1, sort_keys=True).encode(), mode=0o600)
            else:
                self._path.unlink(missing_ok=True)
            # only now, so that nobody counts on what a full disk did not take
            self._entries = entries


class Uploader:
    """Uploads blobs into the repositories of one registry."""

    def __init__(
        self,
        client: RegistryClient,
        *,
        limits: Limits | None = None,
        journal: Path | None = None,
        mounts: bool = True,
    ) -> None:
        """Prepare uploads; nothing is sent yet. `mounts` False says that the registry is known to do none."""
        self.client = client
        self.limits = limits or Limits()
        self.journal = UploadJournal(journal)
        # whether one repository takes blobs over from another, as far as it is known
        self.mounts = mounts
        self.mounted = False
        # whether a mount of a blob from the repository that holds it is answered with "created"; None: not tried yet
        self.finds_by_mount: bool | None = None if mounts else False
        self._checks: bool | None = None
        self._checks_lock = threading.Lock()

    def upload(
        self,
        repository: str,
        scopes: tuple[str, ...],
        *,
        descriptor: Descriptor,
        source: OpenStream,
        unchecked: OpenStream | None = None,
        unless_held: Callable[[], bool] | None = None,
    ) -> bool:
        """Send a blob that the repository lacks. After a failure only what was not acknowledged is sent again.

        `source` verifies itself. `unchecked`, if given, does not: a large blob is read from there as long as the
        registry's own check of the digest stands for one of ours. With `unless_held`, the upload begins as a mount
        of the blob from this repository; where the registry says that it is there and `unless_held` confirms it,
        nothing is sent and False is returned.

        Raises:
            RegistryError: the registry refuses, or fails as often as the policy allows.
            IntegrityError: the source is not the blob, or the registry says that it stored something else.
        """
        transfer = _Transfer(self, repository, scopes, descriptor, source, unchecked, unless_held)
        retry, governor = self.client.options.retry, self.client.governor
        attempt, best = 0, transfer.offset
        while True:
            try:
                with governor.slot():
                    sent = transfer.run()
            except TransientRegistryError as error:
                # a reset counts too: what is in front of a registry may cut connections instead of answering 429
                governor.overloaded()
                # only what was never reached before counts as progress, so that this ends
                attempt = 0 if transfer.offset > best else attempt + 1
                best = max(best, transfer.offset)
                if attempt >= retry.attempts:
                    transfer.abandon()
                    if not self.limits.reconsider():
                        raise
                    attempt = 0
                retry.pause(max(0, attempt - 1), asked_s=error.retry_after_s)
                # asked after the pause, in which the registry may have finished what its proxy gave up on
                if transfer.arrived():
                    return True
            except TooLarge:
                # mostly the limit of a proxy: the registry behind it takes the blob in smaller requests
                transfer.abandon()
                if not self.limits.lower(transfer.request_bytes):
                    raise
            except (RegistryError, IntegrityError):
                # of the latter: what was acknowledged is not a part of the blob, or that is not known
                transfer.abandon()
                raise
            except BaseException:
                # Ctrl-C, or another upload failed: a later run goes on from the journal
                transfer.interrupt()
                raise
            else:
                governor.succeeded()
                return sent

    def registry_checks(self, repository: str, scopes: tuple[str, ...]) -> bool:
        """Tell whether the registry refuses bytes under a digest that is not theirs, which is tried once."""
        with self._checks_lock:
            if self._checks is None:
                self._checks = checks_digests(self.client, repository, scopes)
            return self._checks


def try_upload(
    client: RegistryClient, repository: str, *, what: str, expected: Collection[int] | None, attempts: int | None = None
) -> Answer:
    """Begin an upload, end it at once if it began, and return the answer to its beginning. Leaves nothing.

    Raises:
        RegistryError: the registry does not answer, or with another status than is `expected`.
    """
    scopes = (repository_scope(repository, "pull", "push"),)
    path = f"{repository}/blobs/uploads/"
    answer = client.request(Request("POST", path, what, scopes=scopes, attempts=attempts), expected=expected)
    if answer.status_code == 202 and (location := answer.headers.get("Location")):
        client.end_session(following_url(answer.url, location, what=what), what=what, scopes=scopes)
    return answer


def checks_digests(client: RegistryClient, repository: str, scopes: tuple[str, ...]) -> bool:
    """Send a few bytes under a wrong digest, and tell whether the registry refuses them for that. Leaves nothing."""
    what = f"see whether `{client.registry}/{repository}` checks digests"
    content, other = secrets.token_bytes(32), secrets.token_bytes(32)

    def ask(method: str, url: str, body: bytes = b"") -> Answer:
        headers = {"Content-Type": "application/octet-stream"}
        if method == "PATCH":
            headers["Content-Range"] = f"0-{len(content) - 1}"
        return client.request(
            Request(method, url, what=what, scopes=scopes, headers=headers, body=body, attempts=1), expected=None
        )

    # asked of each registry, never assumed of a product: proxies and forks answer for themselves
    refused, session = False, ""
    with suppress(RegistryError):
        begun = ask("POST", f"{repository}/blobs/uploads/")
        session = following_url(begun.url, begun.headers.get("Location", ""), what=what)
        # by a chunk, as distribution removes a session only at the offset that it last told
        taken = ask("PATCH", session, content)
        session = following_url(taken.url, taken.headers.get("Location", session), what=what)
        answer = ask("PUT", with_digest(session, digest_of(other)))
        refused = answer.status_code == 400 and registry_codes(answer.content)[0] == "DIGEST_INVALID"
        if answer.status_code < 300:
            ask("DELETE", f"{repository}/blobs/{digest_of(other)}")
    if session:
        client.end_session(session, what=what, scopes=scopes)
    return refused


class _Transfer:
    """One blob on its way into one repository."""

    def __init__(
        self,
        uploader: Uploader,
        repository: str,
        scopes: tuple[str, ...],
        descriptor: Descriptor,
        source: OpenStream,
        unchecked: OpenStream | None,
        unless_held: Callable[[], bool] | None,
    ) -> None:
        self._uploader = uploader
        self._client = uploader.client
        self._limits = uploader.limits
        self._journal = uploader.journal
        self._repository = repository
        self._name = f"{uploader.client.registry}/{repository}"
        self._scopes = scopes
        self._descriptor = descriptor
        self._source = source
        self._unchecked = unchecked if descriptor.size >= UNCHECKED_FROM_BYTES else None
        self._unless_held = unless_held
        self._what = f"upload blob `{descriptor.digest}` to `{self._name}`"
        self._ask = partial(Request, what=self._what, scopes=scopes)
        self._session = self._journal.find(self._name, descriptor)
        self._ending = False
        self.request_bytes = 0

    @property
    def offset(self) -> int:
        """How many bytes the registry has acknowledged."""
        return self._session.offset if self._session is not None else 0

    def run(self) -> bool:
        """Send all that is missing, in one pass over the source; False if the repository holds the blob already."""
        size = self._descriptor.size
        session = self._resumed()
        resumes = session is not None
        session = session or self._start()
        if session is None:
            return False
        if not resumes and (size <= self._limits.chunked_above_bytes or not self._limits.chunks):
            self._send_whole(session)
        else:
            self._send_chunks(session)
        self._session = None
        self._journal.record(self._name, self._descriptor, None)
        return True

    def arrived(self) -> bool:
        """Tell whether the registry holds the blob although its answer to the end of the upload was lost.

        Proxies give up on a registry that takes its time to hash a large blob, and the registry finishes it anyway.
        """
        if not self._ending:
            return False
        self._ending = False
        path = f"{self._repository}/blobs/{self._descriptor.digest}"
        try:
            response = self._client.request(self._ask("HEAD", path, attempts=1), expected=(200, 404))
        except RegistryError:
            return False
        if response.status_code != 200 or response.headers.get("Content-Length") != str(self._descriptor.size):
            return False
        self._session = None
        self._journal.record(self._name, self._descriptor, None)
        return True

    def interrupt(self) -> None:
        """Leave the session for a later run where chunks of it were acknowledged and are noted; else end it."""
        if not self.offset or self._journal.find(self._name, self._descriptor) is None:
            self.abandon()

    def abandon(self) -> None:
        """End the session, if there is one, and forget it."""
        session, self._session = self._session, None
        if session is None:
            return
        # first, as the disk of the journal may be full
        self._client.end_session(session.location, what=self._what, scopes=self._scopes)
        self._journal.record(self._name, self._descriptor, None)

    def _resumed(self) -> UploadSession | None:
        """Return the session that was under way, at the offset that the registry states, or None."""
        if self._session is None:
            return None
        # nothing was acknowledged: starting over costs no bytes, and a broken first request may have ended the session
        if not self._session.offset:
            self.abandon()
            return None
        try:
            response = self._client.request(self._ask("GET", self._session.location), expected=(200, 202, 204))
        except RegistryError:
            self.abandon()
            return None
        # the registry's word counts, not the journal's: a chunk may have arrived whose answer did not
        known = acknowledged_bytes(response)
        if known is None or known > self._descriptor.size:
            self.abandon()
            return None
        self._session = UploadSession(self._next_location(response), known)
        return self._session

    def _opener(self) -> OpenStream:
        if self._unchecked is not None and self._uploader.registry_checks(self._repository, self._scopes):
            return self._unchecked
        return self._source

    def _start(self) -> UploadSession | None:
        """Begin a session; None where the repository was asked for the blob by a mount, and holds it."""
        path = f"{self._repository}/blobs/uploads/"
        response = None
        if self._unless_held is not None:
            query = f"?mount={self._descriptor.digest}&from={self._repository}"
            response = self._client.request(self._ask("POST", path + query, attempts=1), expected=(201, 202))
            if response.status_code == 201:
                if self._unless_held():
                    return None
                # it was not meant so: from here on it is not asked that way
                self._uploader.finds_by_mount = False
                self._unless_held = response = None
        response = response or self._client.request(self._ask("POST", path, attempts=1), expected=(202,))
        minimum = response.headers.get("OCI-Chunk-Min-Length", "")
        if minimum.isdecimal() and len(minimum) < 12:
            self._limits.chunk_bytes = max(self._limits.chunk_bytes, int(minimum))
        self._session = UploadSession(self._next_location(response))
        return self._session

    def _send_whole(self, session: UploadSession) -> None:
        size = self._descriptor.size
        self.request_bytes = size
        body = WholeBody(self._opener(), size, self._client.rate) if size else b""
        self._finish(session, body)

    def _send_chunks(self, session: UploadSession) -> None:
        size = self._descriptor.size
        with self._opener()() as stream:
            skip(stream, session.offset)
            while session.offset < size:
                length = min(self._limits.chunk_bytes, size - session.offset)
                self.request_bytes = length
                session = self._send_chunk(session, stream, length)
                self._session = session
                self._journal.record(self._name, self._descriptor, session)
        self.request_bytes = 0
        self._finish(session, b"")

    def _send_chunk(self, session: UploadSession, stream: IO[bytes], length: int) -> UploadSession:
        end = session.offset + length
        # one attempt: distribution 2.8 does not look at Content-Range, so a chunk that is sent twice is stored twice
        response = self._client.request(
            self._ask(
                "PATCH",
                session.location,
                attempts=1,
                headers={"Content-Type": "application/octet-stream", "Content-Range": f"{session.offset}-{end - 1}"},
                body=PartBody(stream, length, self._client.rate),
            ),
            expected=(201, 202, 204, 404, 405, 416, 501),
        )
        status = response.status_code
        if status in (405, 501):
            # the next round sends the blob in one request; no failure of the network, but it is retried like one
            self._limits.chunks = False
            self.abandon()
            raise TransientRegistryError(
                f"cannot {self._what}: the registry does not accept chunks", status=status, hint=STRANGE_HINT
            )
        if status in (404, 416):
            # 416: it holds another number of bytes than we think, and says which when it is asked; 404: it holds none
            if status == 404:
                self.abandon()
            raise LostSession(
                f"cannot {self._what}: the registry lost the upload session", hint=SESSION_HINT, status=status
            )
        known = acknowledged_bytes(response)
        if known not in (None, end, end + 1):  # some state the count of bytes, not the number of the last one
            raise LostSession(
                f"cannot {self._what}: the registry acknowledges {known} bytes, but {end} were sent",
                hint=SESSION_HINT,
                status=status,
            )
        return UploadSession(self._next_location(response), end)

    def _finish(self, session: UploadSession, body: bytes | WholeBody) -> None:
        """Close the session under the digest. Registries hash here, so large blobs are given time."""
        digest = self._descriptor.digest
        self._ending = True
        response = self._client.request(
            self._ask(
                "PUT",
                with_digest(session.location, digest),
                attempts=1,
                headers={"Content-Type": "application/octet-stream"},
                body=body,
                read_timeout_s=self._client.options.read_timeout_s + self._descriptor.size / SLOWEST_DIGEST_BYTES_PER_S,
            ),
            expected=(200, 201, 202, 204, 400, 404),
        )
        if response.status_code in (400, 404):
            self.abandon()
            code, _text = registry_codes(response.content)
            if response.status_code == 404 or code in ("DIGEST_INVALID", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN"):
                # damaged, or cut, on its way, unless the source is damaged: from here on it verifies itself
                self._unchecked = None
                raise LostSession(
                    f"cannot {self._what}: the registry answers {response.status_code} `{code}`",
                    hint=DAMAGE_HINT if code == "DIGEST_INVALID" else SESSION_HINT,
                    status=response.status_code,
                    code=code or None,
                )
            raise RegistryError(
                f"cannot {self._what}: the registry answers 400 `{code}`",
                status=400,
                code=code or None,
                hint=STRANGE_HINT,
            )
        # the specification knows 201 only; a login form in front of a registry says 200 to everything
        if response.status_code != 201 and not self.arrived():
            self.abandon()
            what = f"cannot {self._what}: the registry answers {response.status_code}, but does not hold the blob"
            raise RegistryError(what, hint=NO_REGISTRY_HINT, status=response.status_code)
        stated = response.headers.get("Docker-Content-Digest", digest)
        if stated != digest:
            raise IntegrityError(
                f"`{self._name}` says that it stored `{one_line(stated)}` where `{digest}` was sent",
                digest=digest,
                hint=STRANGE_HINT,
            )

    def _next_location(self, response: Answer) -> str:
        location = response.headers.get("Location", "")
        if not location:
            if self._session is not None and response.method == "GET":
                return self._session.location
            raise RegistryError(f"cannot {self._what}: the registry answers without a `Location`", hint=STRANGE_HINT)
        return following_url(response.url, location, what=self._what)


def _is_url(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(url_host(value))


def with_digest(location: str, digest: str) -> str:
    """Return where the last request of a session goes."""
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def _journal_key(repository: str, descriptor: Descriptor) -> str:
    return digest_of(canonical_json({"repository": repository, "digest": descriptor.digest, "size": descriptor.size}))
