"""A registry's repository as a Sink: blobs by existence check, mount or upload; manifests as their original bytes.

Follows the OCI distribution-spec v1.1, "Push" and "Pushing Manifests with Subject".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import IO, cast

import urllib3

from airferry.errors import AirferryError, IntegrityError, RegistryError
from airferry.host import files
from airferry.host.canonical import canonical_json
from airferry.host.parsing import parse_count
from airferry.oci.digest import digest_of
from airferry.oci.documents import IMAGE_INDEX, INDEX_TYPES, Descriptor, Index
from airferry.oci.entries import listed_referrer, strange_entries
from airferry.oci.ports import Action, BlobOffer, OpenStream, Sink, Stored, blocks
from airferry.oci.streams import verifying
from airferry.registry.auth import repository_scope
from airferry.registry.client import RegistryClient
from airferry.registry.connections import Answer, Request
from airferry.registry.failures import (
    STRANGE_HINT,
    NoReferrers,
    NotFound,
    TransientRegistryError,
    following_url,
    one_line,
)
from airferry.registry.source import RegistrySource, referrers_tag
from airferry.registry.uploads import Uploader

SPOOL_IN_MEMORY_BYTES = 8 * 1024 * 1024
ABSENT_IN_A_ROW = 4
# less than for what mostly passes: an error of this kind is to be known within seconds
MANIFEST_ATTEMPTS = 4
# a mount saves bytes; without it they are sent
MOUNT_ATTEMPTS = 2
# what cannot be read is sent again, which is tried longer
DOUBT_ATTEMPTS = 2
# how registries refuse for good what others take: a media type (400, 415), a repository that they do not make by
# themselves (401, 403, 404), a tag that must not move (409; Harbor: 412), a size (413)
REFUSALS = frozenset({400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 422, 501})
DAMAGED_STORAGE_HINT = "the storage of the registry is damaged: delete the blob there, then rerun"
# codes of errors about content that got lost or damaged, whatever the status: sending it again may help
LOSSES = ("MANIFEST_BLOB_UNKNOWN", "BLOB_", "DIGEST_INVALID", "SIZE_INVALID")
# of these, the codes that say that a part is missing, which can be looked up
UNKNOWN_PARTS = ("MANIFEST_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")


class RegistrySink(Sink):
    """A Sink over one repository. Safe to use from threads; sinks of one registry share an uploader."""

    def __init__(
        self,
        client: RegistryClient,
        repository: str,
        *,
        uploader: Uploader | None = None,
        mount_from: str | None = None,
    ) -> None:
        """Write into a repository of the client's registry; nothing is sent yet.

        `mount_from` is a repository of the same registry that holds the blobs, from which they are taken over.
        """
        self.client = client
        self.repository = repository
        self.source = RegistrySource(client, repository)
        self._uploader = uploader or Uploader(client)
        self._scopes = (repository_scope(repository, "pull", "push"),)
        # reading and writing with one token spares a request
        self.source.scopes = self._scopes
        self._mount_from = mount_from if mount_from != repository else None
        self._absent_in_a_row = 0
        self._referrers_lock = threading.Lock()

    def __str__(self) -> str:
        return f"{self.client.registry}/{self.repository}"

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether the repository holds the blob already.

        A yes names the blob's size or digest. For one that names neither the blob is asked for as well: a login page
        or a proxy says 200 to anything, and an image would be tagged without the blob.

        Raises:
            RegistryError: the registry answers neither yes nor no.
            IntegrityError: it holds something of another size under this digest.
        """
        response = self.client.request(
            Request(
                "HEAD",
                f"{self.repository}/blobs/{descriptor.digest}",
                what=f"look for blob `{descriptor.digest}` in `{self}`",
                scopes=self._scopes,
            ),
            expected=(200, 404),
        )
        if response.status_code == 404:
            return False
        # proxies answer HEAD with the length of a body that HEAD has not got: 0 says nothing
        stated = response.headers.get("Content-Length", "")
        if stated.isdecimal() and parse_count(stated) != 0:
            return self._expect_size(descriptor, stated)
        if not descriptor.size or response.headers.get("Docker-Content-Digest") == descriptor.digest:
            return True
        return self._serves(descriptor)

    def _serves(self, descriptor: Descriptor) -> bool:
        """Ask for the last byte of a blob, and tell whether there is one."""
        try:
            answer = self.source.request_blob(descriptor, descriptor.size - 1)
        except NotFound:
            return False
        try:
            stated = answer.headers.get("Content-Length", "")
            if answer.status_code != 200:
                stated = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if stated.isdecimal():
                return self._expect_size(descriptor, stated)
            if answer.status_code == 416:
                raise self._of_another_size(descriptor, "fewer bytes")
            return True
        finally:
            answer.close()

    def _expect_size(self, descriptor: Descriptor, stated: str) -> bool:
        if parse_count(stated) != descriptor.size:
            raise self._of_another_size(descriptor, f"{one_line(stated)} bytes")
        return True

    def _of_another_size(self, descriptor: Descriptor, held: str) -> IntegrityError:
        return IntegrityError(
            f"`{self}` holds {held} as blob `{descriptor.digest}`, which has {descriptor.size}",
            hint=DAMAGED_STORAGE_HINT,
            digest=descriptor.digest,
        )

    @property
    def mounts(self) -> bool:
        """Whether the registry is not known to do no mounts."""
        return self._uploader.mounts

    def mount_blob(self, descriptor: Descriptor, repository: str) -> bool:
        """Take a blob over from a repository of the registry that holds it; False if the registry does not do that.

        One that has shown that it does not is not asked again. However it says no, the blob can be sent.

        Raises:
            RegistryError: the registry, or its token server, cannot be reached safely.
        """
        if not self._uploader.mounts:
            return False
        done = self._try_mount(descriptor, repository)
        self._uploader.mounted = self._uploader.mounted or done
        # one that worked outweighs a refusal, which may be about one repository or a blob that was just collected
        self._uploader.mounts = self._uploader.mounted
        return done

    def _try_mount(self, descriptor: Descriptor, repository: str) -> bool:
        request = Request(
            "POST",
            f"{self.repository}/blobs/uploads/?mount={descriptor.digest}&from={repository}",
            what=f"mount blob `{descriptor.digest}` from `{repository}` into `{self}`",
            scopes=(*self._scopes, repository_scope(repository, "pull")),
            attempts=MOUNT_ATTEMPTS,
        )
        try:
            response = self.client.request(request, expected=(201, 202))
        except RegistryError as error:
            # Harbor and others answer 401 or 403 where this user may not read the other repository, though it may push
            # here; a registry that does not answer at all says so to the upload, which is tried longer
            if not (isinstance(error, TransientRegistryError) or self.refuses(error)):
                raise
            return False
        if response.status_code == 201:
            return True
        location = response.headers.get("Location", "")
        if location:
            what = "end an upload session"
            with suppress(RegistryError):
                self.client.end_session(
                    following_url(response.url, location, what=what), what=what, scopes=self._scopes
                )
        return False

    def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        """Store a blob from a stream that can be read once: it is spooled, so that it can be sent again.

        Raises:
            RegistryError: the registry does not answer, refuses, or fails too often.
            IntegrityError: the stream is not the blob.
        """
        with SpooledTemporaryFile(max_size=SPOOL_IN_MEMORY_BYTES) as spool:
            for block in blocks(verifying(stream, descriptor)):
                try:
                    spool.write(block)
                except OSError as error:
                    place = Path(gettempdir())
                    raise files.translate_os_error(error, doing="keep a blob in", path=place) from error

            @contextmanager
            def rewound() -> Iterator[IO[bytes]]:
                spool.seek(0)
                yield cast(IO[bytes], spool)

            self.put_blob_from(descriptor, rewound)

    def take_blob(self, offer: BlobOffer, *, absent: bool = False) -> Action:
        """Store a blob unless the repository holds it, and return what was done. Idempotent.

        After several blobs in a row that were absent, a mount of the blob from this same repository begins the next
        upload: a registry that knows mounts answers whether the blob is there, and with a session if it is not, so
        that asking costs no extra request. Whether the registry does that is tried on a blob that it holds.

        Raises:
            RegistryError: the registry does not answer, refuses, or fails too often.
            IntegrityError: the source is not the blob, or the registry holds or stored something else.
        """
        descriptor = offer.descriptor
        asks_by_mount = (
            not absent
            and self._absent_in_a_row >= ABSENT_IN_A_ROW
            and self._mount_from is None
            and self._uploader.finds_by_mount is True
        )
        if not absent and not asks_by_mount and self.has_blob(descriptor):
            self._absent_in_a_row = 0
            return "present"
        unless_held = (lambda: self.has_blob(descriptor)) if asks_by_mount else None
        action = self._send(descriptor, offer.open, open_unchecked=offer.unchecked, unless_held=unless_held)
        if absent:
            return action
        self._absent_in_a_row = 0 if action == "present" else self._absent_in_a_row + 1
        if self._absent_in_a_row >= ABSENT_IN_A_ROW and self._uploader.finds_by_mount is None:
            self._uploader.finds_by_mount = False
            with suppress(RegistryError):
                self._uploader.finds_by_mount = self._try_mount(descriptor, self.repository)
        return action

    def put_blob_from(
        self, descriptor: Descriptor, open_stream: OpenStream, *, open_unchecked: OpenStream | None = None
    ) -> None:
        """Store a blob from a source that can be opened again. Idempotent; nothing half sent counts.

        A registry that is seen to check digests is given what `open_unchecked` opens, if the blob is large.

        Raises:
            RegistryError: the registry does not answer, refuses, or fails too often.
            IntegrityError: the source is not the blob, or the registry says that it stored something else.
        """
        self._send(descriptor, open_stream, open_unchecked=open_unchecked, unless_held=None)

    def _send(
        self,
        descriptor: Descriptor,
        open_stream: OpenStream,
        *,
        open_unchecked: OpenStream | None,
        unless_held: Callable[[], bool] | None,
    ) -> Action:
        if self._mount_from is not None:
            # a refusal is about this one repository, which may lack the blob: it says nothing of the registry
            if self._try_mount(descriptor, self._mount_from):
                return "mount"
            self._mount_from = None
        sent = self._uploader.upload(
            self.repository,
            self._scopes,
            descriptor=descriptor,
            source=open_stream,
            unchecked=open_unchecked,
            unless_held=unless_held,
        )
        return "send" if sent else "present"

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        """Store a manifest's or index's original bytes under its digest, and let a tag stand for it if given.

        A manifest with a subject becomes a referrer of it: by the registry's API, or by the tag that stands in for it.

        Raises:
            RegistryError: the registry does not answer or refuses.
            IntegrityError: the registry says that it stored something else.
        """
        descriptor = stored.descriptor
        if digest_of(stored.data) != descriptor.digest:
            raise IntegrityError(f"these bytes are not manifest `{descriptor.digest}`", digest=descriptor.digest)
        try:
            response = self._put(
                reference or descriptor.digest,
                stored.data,
                media_type=descriptor.media_type,
                what=f"store manifest `{descriptor.digest}` in `{self}`" + (f" as `{reference}`" if reference else ""),
            )
        except RegistryError as error:
            # a tag that must not move need not move where it stands for this already
            if reference is None or error.status not in REFUSALS or not self._names(reference, descriptor):
                raise
            return
        stated = response.headers.get("Docker-Content-Digest", descriptor.digest)
        if stated != descriptor.digest:
            raise IntegrityError(
                f"`{self}` says that it stored `{one_line(stated)}` where manifest `{descriptor.digest}` was sent",
                digest=descriptor.digest,
                hint=STRANGE_HINT,
            )
        subject = stored.subject
        if subject is not None and "OCI-Subject" not in response.headers:
            # the tag is to list nothing that is not there, whatever answered in the registry's place
            if "Docker-Content-Digest" not in response.headers and self.source.find(descriptor.digest) is None:
                raise NoReferrers(f"`{self}` does not hold manifest `{descriptor.digest}`, which it accepted")
            self._tag_referrer(stored, subject)

    def _names(self, reference: str, descriptor: Descriptor) -> bool:
        """Tell whether a tag stands for a manifest; False where that cannot be asked."""
        try:
            found = self.source.find(reference)
        except AirferryError:
            return False
        return found == descriptor.digest

    def lacks_manifest(self, stored: Stored) -> str:
        """Read a manifest back, and return what is missing, empty if nothing is.

        Raises:
            RegistryError: the registry does not answer or refuses.
            IntegrityError: the registry holds something else.
        """
        digest, subject = stored.descriptor.digest, stored.subject
        try:
            held = self.source.read_manifest(stored.descriptor)
        except NotFound:
            return f"manifest `{digest}`"
        if held.data != stored.data:
            raise IntegrityError(
                f"`{self}` has different content for `{digest}`", digest=digest, hint=DAMAGED_STORAGE_HINT
            )
        if subject is not None and all(entry.digest != digest for entry in self.source.held_referrers(subject)):
            return f"`{digest}` among the referrers of `{subject}`"
        return ""

    def reads_back(self, descriptor: Descriptor, on_block: Callable[[int], None]) -> bool:
        """Read a blob back, all of it, and check its digest; False where the repository does not have it.

        Raises:
            RegistryError: the registry does not answer or refuses.
            IntegrityError: it gives something else under the digest.
        """
        try:
            with self.source.open_blob_at(descriptor, 0) as stream:
                for _block in blocks(verifying(stream, descriptor, on_block=on_block)):
                    pass
        except NotFound:
            return False
        except IntegrityError as error:
            raise error.reworded(f"`{self}`: {error.message}", hint=DAMAGED_STORAGE_HINT) from error
        return True

    def gives_blob(self, descriptor: Descriptor) -> bool:
        """Ask for the last byte of a blob, and tell whether it comes. An answer that says neither counts as yes."""
        if not descriptor.size:
            return True
        try:
            answer = self.source.request_blob(descriptor, descriptor.size - 1, attempts=DOUBT_ATTEMPTS)
        except (NotFound, TransientRegistryError):
            return False
        except RegistryError:
            return True
        try:
            # distribution promises the byte by its cache, and breaks off when its storage has none
            return answer.status_code == 416 or bool(answer.raw.read(1))
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        finally:
            answer.close()

    def refuses(self, error: AirferryError, manifests: Sequence[Stored] = ()) -> bool:
        """Tell whether the registry refused for good, and meant the thing itself: its type, size, place or name.

        Docker Hub and Harbor have refused artifacts for their `subject` as if a part was missing. Where each part is
        there when the registry is asked for it, the thing itself is refused.
        """
        if isinstance(error, NoReferrers):
            return True
        if not isinstance(error, RegistryError) or error.status not in REFUSALS:
            return False
        code = error.code or ""
        if not code.startswith((*LOSSES, "MANIFEST_") if error.status == 404 else LOSSES):
            return True
        refers = bool(manifests) and manifests[-1].subject is not None
        return refers and code in UNKNOWN_PARTS and self._holds_parts(manifests)

    def _holds_parts(self, manifests: Sequence[Stored]) -> bool:
        """Tell whether everything is there that the last of these manifests names, its subject included."""
        *children, top = manifests
        named = [*(stored.descriptor.digest for stored in children), str(top.subject)]
        views = [stored.manifest for stored in manifests if stored.descriptor.media_type not in INDEX_TYPES]
        blobs = {blob.digest: blob for view in views for blob in (view.config, *view.layers)}
        try:
            return all(self.source.find(digest) for digest in named) and all(map(self.gives_blob, blobs.values()))
        except AirferryError:
            return False

    def delete_tag(self, tag: str) -> bool:
        """Remove a tag; False if the registry cannot. A tag that is not there counts as removed.

        Raises:
            RegistryError: the registry does not answer or refuses.
        """
        return self._delete(tag, what=f"remove tag `{tag}` of `{self}`")

    def delete_manifest(self, digest: str) -> bool:
        """Remove a manifest and all tags of it; False if the registry cannot. One that is not there is removed.

        Raises:
            RegistryError: the registry does not answer or refuses.
        """
        return self._delete(digest, what=f"remove manifest `{digest}` of `{self}`")

    def _delete(self, reference: str, *, what: str) -> bool:
        response = self.client.request(
            Request(
                "DELETE",
                f"{self.repository}/manifests/{reference}",
                what=what,
                scopes=(repository_scope(self.repository, "delete", "pull", "push"),),
            ),
            expected=(200, 202, 204, 400, 404, 405, 501),
        )
        if response.status_code == 404:
            return self.source.find(reference) is None
        return response.status_code < 300

    def _put(self, reference: str, data: bytes, *, media_type: str, what: str) -> Answer:
        """Send a manifest whose bytes are known to be right, again if the registry says 400 and means lost content.

        docker-registry 2.8 answers `DIGEST_INVALID` while another client sends it the same content: it writes the links
        to that in place, and reads one that is still empty.
        """
        request = Request(
            "PUT",
            f"{self.repository}/manifests/{reference}",
            what=what,
            scopes=self._scopes,
            headers={"Content-Type": media_type},
            body=data,
        )
        retry = self.client.options.retry
        last = min(retry.attempts, MANIFEST_ATTEMPTS) - 1
        for attempt in range(last):
            try:
                return self.client.request(request, expected=(200, 201, 202))
            except RegistryError as error:
                if error.status != 400 or not (error.code or "").startswith(LOSSES):
                    raise
            retry.pause(attempt)
        return self.client.request(request, expected=(200, 201, 202))

    def _tag_referrer(self, stored: Stored, subject: str) -> None:
        """Enter a referrer in the index that the subject's tag stands for, once.

        Others may write the same tag at the same time, and the last one wins: what they wrote over is entered again.

        Raises:
            RegistryError: the registry refuses, or (`NoReferrers`) does not store the list.
        """
        entry = listed_referrer(stored)
        retry = self.client.options.retry
        for attempt in range(min(retry.attempts, MANIFEST_ATTEMPTS)):
            if attempt:
                retry.pause(attempt - 1)
            with self._referrers_lock:
                known = self.source.tagged_referrers(subject)
                if known is not None and any(old.digest == entry.digest for old in known.manifests):
                    return
                if known is not None and known.strange:
                    raise NoReferrers(
                        f"the list of referrers of `{subject}` in `{self}` has entries that would be lost: "
                        f"{'; '.join(strange_entries(known.strange, where='it'))}",
                        hint=f"repair or remove the tag `{referrers_tag(subject)}`, then rerun",
                    )
                entries = sorted([*(known.manifests if known else ()), entry], key=lambda one: one.digest)
                data = canonical_json(Index(schema_version=2, media_type=IMAGE_INDEX, manifests=entries))
                what = f"list a referrer of `{subject}` in `{self}`"
                self._put(referrers_tag(subject), data, media_type=IMAGE_INDEX, what=what)
            stored_now = self.source.tagged_referrers(subject)
            if stored_now is not None and any(old.digest == entry.digest for old in stored_now.manifests):
                return
        raise NoReferrers(
            f"`{self}` did not store the list of referrers of `{subject}`",
            hint="if another client pushes referrers there, rerun when it has finished",
        )
