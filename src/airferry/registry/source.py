"""A registry's repository as a Source: manifests and blobs by digest, verified, and referrers.

Follows the OCI distribution-spec v1.1, "Pull" and "Listing Referrers". Writes nothing.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, cast

import requests
import urllib3

from airferry.errors import AirferryError, IntegrityError, RegistryError
from airferry.host.parsing import Malformed, parse_count, parse_json
from airferry.oci.digest import digest_hex, digest_of, is_digest
from airferry.oci.documents import (
    IMAGE_INDEX,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    Descriptor,
)
from airferry.oci.entries import IndexListing, parse_listing, strange_entries
from airferry.oci.ports import BLOCK_BYTES, Source, Stored
from airferry.oci.streams import verifying
from airferry.registry.auth import repository_scope
from airferry.registry.client import RegistryClient
from airferry.registry.connections import Answer, Request
from airferry.registry.failures import (
    NO_REGISTRY_HINT,
    STRANGE_HINT,
    NoReferrers,
    TransientRegistryError,
    connection_error,
    following_url,
    one_line,
    redacted,
)
from airferry.wording import counted

ACCEPTED = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
_CHANGED_HINT = "the registry's storage is damaged, or a proxy changes what it sends: push the image there again"
MAX_REFERRER_PAGES = 100
MAX_REMEMBERED_MANIFESTS = 64
# how a registry says that it does not know the path of the referrers API
NO_API = frozenset({404, 405, 501})
# how a registry says that it does not have something, or does not give it to this user
WITHHELD = frozenset({401, 403, 404, 410, 451})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d*/(?:\d+|\*)")


def referrers_tag(digest: str) -> str:
    """Return the tag under which a registry without a referrers API keeps the referrers of a digest."""
    return f"sha256-{digest_hex(digest)}"


class RegistrySource(Source):
    """A Source over one repository. Safe to use from threads."""

    reads_ranges = True

    def __init__(self, client: RegistryClient, repository: str) -> None:
        """Read from a repository of the client's registry; nothing is sent yet."""
        self.client = client
        self.repository = repository
        self.scopes = (repository_scope(repository, "pull"),)
        self._lock = threading.Lock()
        self._remembered: dict[str, Stored] = {}
        self._unknown: dict[str, list[str]] = {}
        self._keeps_tags = False
        self._refused_names: dict[int, str] = {}

    def __str__(self) -> str:
        return f"{self.client.registry}/{self.repository}"

    def resolve(self, reference: str, *, attempts: int | None = None) -> Descriptor:
        """Return the descriptor that a tag or digest stands for at this moment.

        Raises:
            RegistryError: there is none, or the registry does not answer or refuses.
            IntegrityError: the registry gives other bytes than it says.
        """
        stored = self._fetch(reference, limit_bytes=MAX_MANIFEST_BYTES, attempts=attempts)
        with self._lock:
            while len(self._remembered) >= MAX_REMEMBERED_MANIFESTS:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[stored.descriptor.digest] = stored
        return stored.descriptor

    def find(self, reference: str, *, attempts: int | None = None) -> str | None:
        """Return the digest that a tag or digest stands for, or None if there is none.

        Raises:
            RegistryError: the registry does not answer or refuses.
        """
        response = self.client.request(
            Request(
                "HEAD",
                f"{self.repository}/manifests/{reference}",
                what=f"look up `{reference}` in `{self}`",
                scopes=self.scopes,
                headers={"Accept": ACCEPTED},
                attempts=attempts,
            ),
            expected=(200, 404),
        )
        if response.status_code == 404:
            return None
        digest = response.headers.get("Docker-Content-Digest", "")
        return digest if is_digest(digest) else self._fetch(reference, limit_bytes=MAX_MANIFEST_BYTES).descriptor.digest

    def find_name(self, name: str) -> Descriptor | None:
        """Return the descriptor that a tag stands for; None without it. A refusal is kept for `unknown_referrers`.

        Raises:
            RegistryError: the registry does not answer.
            IntegrityError: the registry gives other bytes than it says.
        """
        try:
            digest = self.find(name)
            return None if digest is None else self.resolve(digest)
        except TransientRegistryError:
            raise
        except RegistryError as error:
            if error.status is None:
                raise
            with self._lock:
                self._refused_names.setdefault(error.status, name)
            return None

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        """Return a manifest's or index's original bytes, verified.

        Raises:
            RegistryError: the registry does not answer, refuses, or has no such manifest.
            IntegrityError: the bytes are not what the descriptor says.
        """
        with self._lock:
            known = self._remembered.get(descriptor.digest)
        if known is not None and known.descriptor.size == descriptor.size:
            return known.described_as(descriptor)
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise IntegrityError(
                f"manifest `{descriptor.digest}` has {descriptor.size} bytes, more than the limit of "
                f"{MAX_MANIFEST_BYTES}",
                hint="no image needs such a manifest: check what was pushed under this name",
            )
        response = self._get_manifest(descriptor.digest, accept=descriptor.media_type, limit_bytes=MAX_MANIFEST_BYTES)
        data = response.content
        if (digest_of(data), len(data)) != (descriptor.digest, descriptor.size):
            raise IntegrityError(
                f"`{self}` returned {len(data)} bytes with digest `{digest_of(data)}` for manifest "
                f"`{descriptor.digest}` of {descriptor.size} bytes",
                digest=descriptor.digest,
                hint=_CHANGED_HINT,
            )
        return Stored(descriptor, data)

    @contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        """Open a blob as a stream that raises `IntegrityError` at its end if it is not the blob.

        A connection that breaks is taken up where it broke.

        Raises:
            RegistryError: the registry does not answer, refuses, or has no such blob.
        """
        with self.open_blob_at(descriptor, 0) as stream:
            yield verifying(stream, descriptor)

    @contextmanager
    def open_blob_at(self, descriptor: Descriptor, offset: int) -> Iterator[IO[bytes]]:
        """Open a blob from an offset on, unverified: the caller verifies the whole. Broken connections are taken up.

        Raises:
            RegistryError: the registry does not answer, refuses, or has no such blob.
        """
        stream = _BlobStream(self, descriptor, offset)
        try:
            yield cast(IO[bytes], stream)
        finally:
            stream.close()

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the descriptors of the artifacts whose subject is the digest, sorted by digest.

        They come from the referrers API or, where a registry has no usable one, from the tag that stands in for it.
        What may hide some of them is kept for `unknown_referrers`, and keeps nothing else from being read.

        Raises:
            RegistryError: the registry does not answer.
        """
        try:
            found, doubt = self._list_referrers(digest)
        except NoReferrers as error:
            found, doubt = [], error.message
        if doubt:
            with self._lock:
                self._unknown.setdefault(doubt, []).append(digest)
        return found

    def unknown_referrers(self) -> list[str]:
        """Return why referrers that were asked for may exist and yet be unknown, once each."""
        with self._lock:
            return [
                f"the referrers of `{digests[0]}` "
                + (f"and {counted(len(digests) - 1, 'other manifest')} " if len(digests) > 1 else "")
                + f"in `{self}` are unknown: {doubt}"
                for doubt, digests in self._unknown.items()
            ] + [
                f"whether `{self}` has `{name}` and other tags with signatures is unknown: it answers with {status}"
                for status, name in self._refused_names.items()
            ]

    def lacks(self, error: AirferryError) -> bool:
        """Tell whether an error is the answer that the repository does not have, or does not give, what it lists."""
        if not isinstance(error, RegistryError) or error.method != "GET" or error.status not in WITHHELD:
            return False
        # what a sink was asked for may be answered in the same way
        return (error.url or "").startswith(redacted(self.client.url(f"{self.repository}/")))

    def held_referrers(self, digest: str) -> list[Descriptor]:
        """Return what the registry lists as referrers of a digest, to see whether it lists what was stored.

        Raises:
            RegistryError: the registry does not answer, or (`NoReferrers`) something else is in the list's place.
        """
        return self._list_referrers(digest)[0]

    def has_referrers_api(self, digest: str) -> bool:
        """Tell whether the repository answers for the referrers of a digest itself.

        Raises:
            RegistryError: the registry does not answer.
        """
        return not isinstance(self._ask_for_referrers(digest), str)

    def _list_referrers(self, digest: str) -> tuple[list[Descriptor], str]:
        """Return the referrers that are known, and why there may be others; empty if that is excluded."""
        answer = self._ask_for_referrers(digest)
        if not isinstance(answer, str):
            return _known(answer)
        tagged = self.tagged_referrers(digest)
        # clients keep lists under tags where there is no API: where they do in this repository, those are the whole
        self._keeps_tags = self._keeps_tags or tagged is not None
        if tagged is not None:
            return _known(tagged)
        return [], ("" if self._keeps_tags else answer)

    def _ask_for_referrers(self, digest: str) -> IndexListing | str:
        """Return what the referrers API lists, or why it cannot be used; "" where there is none.

        It is there only where it answers with an index. Old registries, and proxies in front of new ones, answer with
        401 or 403 (Harbor before 2.8), 406, 501, a page of HTML or `"manifests": null`.
        """
        found = IndexListing([])
        url = f"{self.repository}/referrers/{digest}"
        what = f"list the referrers of `{digest}` in `{self}`"
        for page in range(MAX_REFERRER_PAGES):
            request = Request("GET", url, what=what, scopes=self.scopes, headers={"Accept": IMAGE_INDEX})
            answer = self._answer_or_status(request)
            status = answer if isinstance(answer, int) else answer.status_code
            entries: IndexListing | str = f"its referrers API answers with {status}"
            if not isinstance(answer, int) and status == 200:
                entries = _listed(answer.content)
            if isinstance(entries, str):
                if page:
                    raise NoReferrers(f"cannot {what}: {entries} on page {page + 1}")
                return "" if status in NO_API else entries
            found = IndexListing([*found.manifests, *entries.manifests], strange={**found.strange, **entries.strange})
            if isinstance(answer, int) or not answer.next_page:
                return found
            url = following_url(answer.url, answer.next_page, what=what)
        raise RegistryError(f"cannot {what}: there are more than {MAX_REFERRER_PAGES} pages", hint=STRANGE_HINT)

    def _answer_or_status(self, request: Request) -> Answer | int:
        """Return the answer to a request for what a registry need not have, or the status of a login that fails.

        That is then about this path: the login for manifests has led somewhere.
        """
        try:
            return self.client.request(request, expected=None)
        except RegistryError as error:
            if isinstance(error, TransientRegistryError) or error.status not in (400, *WITHHELD):
                raise
            return error.status

    def tagged_referrers(self, digest: str) -> IndexListing | None:
        """Return what the tag lists that stands in for the referrers API of a digest; None without the tag.

        GitLab's registry takes the tag for the digest, and answers with the subject itself: then there is no such tag.

        Raises:
            RegistryError: the registry does not answer or refuses, or (`NoReferrers`) the tag stands for something
                else.
        """
        tag = referrers_tag(digest)
        response = self._get_manifest(tag, accept=ACCEPTED, limit_bytes=MAX_MANIFEST_BYTES, expected=(200, 404))
        if response.status_code == 404 or digest_of(response.content) == digest:
            return None
        entries = _listed(response.content)
        if isinstance(entries, str):
            raise NoReferrers(
                f"`{self}:{tag}`, where the referrers of `{digest}` are listed, is something else: {entries}",
                hint="remove or rename the tag, if something else was pushed under it",
            )
        return entries

    def _get_manifest(
        self,
        reference: str,
        *,
        accept: str,
        limit_bytes: int,
        expected: tuple[int, ...] = (200,),
        attempts: int | None = None,
    ) -> Answer:
        return self.client.request(
            Request(
                "GET",
                f"{self.repository}/manifests/{reference}",
                what=f"read manifest `{reference}` of `{self}`",
                scopes=self.scopes,
                headers={"Accept": accept},
                attempts=attempts,
            ),
            expected=expected,
            limit_bytes=limit_bytes,
        )

    def _fetch(self, reference: str, *, limit_bytes: int, attempts: int | None = None) -> Stored:
        response = self._get_manifest(reference, accept=ACCEPTED, limit_bytes=limit_bytes, attempts=attempts)
        data = response.content
        observed = digest_of(data)
        stated = response.headers.get("Docker-Content-Digest", observed)
        wanted = reference if is_digest(reference) else stated
        if observed != stated or observed != wanted:
            raise IntegrityError(
                f"`{self}` returned a manifest with digest `{observed}` for `{reference}`, but declared "
                f"`{one_line(stated)}`",
                digest=observed,
                hint=STRANGE_HINT,
            )
        media_type = _media_type(data, response.headers.get("Content-Type", ""), what=f"`{reference}` of `{self}`")
        return Stored(Descriptor(media_type=media_type, digest=observed, size=len(data)), data)

    def request_blob(self, descriptor: Descriptor, offset: int, *, attempts: int | None = None) -> Answer:
        """Return the answer, not read yet, to a request for a blob from an offset on; 416 means nothing is there."""
        return self.client.request(
            Request(
                "GET",
                f"{self.repository}/blobs/{descriptor.digest}",
                what=f"read blob `{descriptor.digest}` of `{self}`",
                scopes=self.scopes,
                headers={"Range": f"bytes={offset}-"} if offset else {},
                attempts=attempts,
            ),
            expected=(200, 206, 416) if offset else (200,),
            stream=True,
        )


def _listed(data: bytes) -> IndexListing | str:
    """Return a list of referrers, or why it is none."""
    try:
        listing = parse_listing(data, what="the answer")
    except IntegrityError as error:
        return error.message
    # some registries leave it out in the answer of their API
    if listing.media_type not in (None, *INDEX_TYPES):
        return f"the answer has media type `{one_line(listing.media_type or '')}`"
    return listing


def _known(listing: IndexListing) -> tuple[list[Descriptor], str]:
    """Return what a list of referrers names, each once and sorted by digest, and what of it cannot be read."""
    found = {entry.digest: entry for entry in listing.manifests}
    return [found[key] for key in sorted(found)], "; ".join(strange_entries(listing.strange, where="their list"))


def _media_type(data: bytes, header: str, *, what: str) -> str:
    """Return a manifest's media type: its own word, else that of the header.

    Raises:
        RegistryError: it is not a manifest of a kind that is known.
    """
    stated = ""
    with suppress(Malformed):
        document = parse_json(data)
        if isinstance(document, dict):
            stated = document.get("mediaType") or ""
    for candidate in (stated, header.partition(";")[0].strip()):
        if candidate in INDEX_TYPES or candidate in MANIFEST_TYPES:
            return str(candidate)
    raise RegistryError(
        f"{what} is not an image or artifact: its media type is `{one_line(str(stated or header or 'missing'))}`",
        hint=f"{NO_REGISTRY_HINT}; Docker schema 1 is not supported",
    )


class _BlobStream(io.RawIOBase):
    """A blob as it comes, from an offset on. A broken connection is reopened where it broke."""

    def __init__(self, source: RegistrySource, descriptor: Descriptor, offset: int) -> None:
        super().__init__()
        self._source = source
        self._descriptor = descriptor
        self._offset = offset
        self._failures = 0
        self._fresh = False
        self._response: Answer | None = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        super().close()

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes; fewer than the blob has only at its end."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(BLOCK_BYTES), b""))
        while True:
            try:
                response = self._response or self._open()
                if response is None:
                    return b""
                block = response.raw.read(size)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                self._broke(error)
                continue
            if block or self._offset >= self._descriptor.size or not self._restart():
                self._offset += len(block)
                self._failures = 0
                self._fresh = self._fresh and not block
                return bytes(block)

    def _restart(self) -> bool:
        """Prepare to ask for the rest of a blob that ended early; False if the last request for it gave nothing."""
        if self._fresh:
            return False
        self._drop()
        return True

    def _open(self) -> Answer | None:
        response = self._source.request_blob(self._descriptor, self._offset)
        self._response, self._fresh = response, True
        if response.status_code == 416:
            return None
        skip = 0
        if self._offset and response.status_code == 206:
            begins = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if begins is None or parse_count(begins.group(1)) != self._offset:
                raise RegistryError(
                    f"`{self._source}` answers a range request with a different range", hint=STRANGE_HINT
                )
        elif self._offset:
            skip = self._offset
        while skip:
            block = response.raw.read(min(skip, BLOCK_BYTES))
            if not block:
                return None
            skip -= len(block)
        return response

    def _broke(self, error: Exception) -> None:
        client = self._source.client
        self._drop()
        self._failures += 1
        if self._failures >= client.options.retry.attempts:
            path = client.url(f"{self._source.repository}/blobs/{self._descriptor.digest}")
            what = f"read blob `{self._descriptor.digest}` of `{self._source}`"
            raise connection_error("GET", path, what=what, error=error, remedies=client.options.remedies) from error
        client.options.retry.pause(self._failures - 1)

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
