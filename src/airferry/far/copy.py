"""Copies of one image, index or artifact between layouts, archives and registries, named as skopeo names them.

`oci:DIR[:REF]`, `oci-archive:FILE[:REF]`, `docker://HOST/REPO[:TAG|@DIGEST]`. Bytes and digests stay what they are,
unless an index is narrowed to some of its platforms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from airferry.errors import AirferryError, ConfigurationError, RegistryError, UsageError
from airferry.events import Emit, Warned, silent
from airferry.host import files, locks
from airferry.host.records import expect_cache
from airferry.oci.archive import ArchiveSource, write_oci_archive
from airferry.oci.closure import Shipment, expect_unambiguous, read_signatures
from airferry.oci.copy import CopyOptions, image_shipments, transfer
from airferry.oci.digest import is_digest
from airferry.oci.documents import Descriptor
from airferry.oci.entries import names_of
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.oci.ports import Sink, Source
from airferry.oci.reference import Reference, expect_no_login, parse_reference, split_place
from airferry.registry.client import ClientOptions, Clients, open_clients
from airferry.registry.failures import STALE_CACHE_HINT
from airferry.registry.profile import keep_learned, read_profile
from airferry.registry.pulls import Pulls
from airferry.registry.sink import RegistrySink
from airferry.registry.uploads import Uploader

FORMS = "`oci:DIR[:REF]`, `oci-archive:FILE[:REF]` or `docker://HOST/REPO[:TAG]`"


@dataclass(frozen=True, slots=True)
class FilePlace:
    """An image in a layout folder, or with `archive` in a layout tar; an empty name stands for the only one."""

    path: Path
    name: str
    archive: bool

    def __str__(self) -> str:
        kind = "oci-archive" if self.archive else "oci"
        return f"{kind}:{self.path}" + (f":{self.name}" if self.name else "")


@dataclass(frozen=True, slots=True)
class RegistryPlace:
    """An image in a registry."""

    reference: Reference

    def __str__(self) -> str:
        return f"docker://{self.reference}"


Place = FilePlace | RegistryPlace


@dataclass(frozen=True, slots=True)
class NotCopied:
    """An artifact of an image that stayed behind: its digest, or the tag of cosign's that names it, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What was copied, and under which name it is there now.

    `left_out` are the artifacts that did not come along, `unknown` says in words where others may be that
    the source does not show.
    """

    descriptor: Descriptor
    destination: str
    left_out: tuple[NotCopied, ...] = ()
    unknown: tuple[str, ...] = ()


def parse_place(text: str) -> Place:
    """Return the place that a text names.

    Raises:
        UsageError: it names none.
    """
    if text.startswith("docker://"):
        return RegistryPlace(parse_reference(text))
    kind, _, rest = text.partition(":")
    path, name = split_place(rest)
    if kind not in ("oci", "oci-archive") or not path:
        expect_no_login(text)
        raise UsageError(f"`{text}` is not a source or destination, expected {FORMS}", hint=_form_hint(text))
    return FilePlace(Path(path), name, kind == "oci-archive")


def _form_hint(text: str) -> str:
    """Return the form that a place was probably meant to have."""
    if "://" in text or not text:
        return "for a registry write `docker://HOST/REPO:TAG`"
    path = Path(text.partition(":")[2] or text)
    if path.suffix == ".tar":
        return f"for an archive write `oci-archive:{path}`"
    return f"for a folder write `oci:{path}`, for a registry `docker://{text}`"


def copy(
    source: str,
    destination: str,
    *,
    platforms: Sequence[str] = (),
    referrers: bool = True,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> CopyResult:
    """Copy an image, index or artifact between layouts, archives and registries; the name there moves last.

    Idempotent; what the destination holds is not sent again, and an interrupted copy goes on where it was. Without a
    name at the destination, the image keeps the one that it has. `platforms` narrow an index. With `referrers` the
    artifacts that belong to the image come along; those that cannot are warned of, and in the result.

    Raises:
        UsageError: a place is none, or the destination cannot be written under that name, or needs one.
        ConfigurationError: the source has no such image.
        BuildError: a wanted platform is missing.
        IntegrityError: something is not what its descriptor says, or programs may read it differently.
        RegistryError: a registry does not answer or refuses.
    """
    options = options or ClientOptions()
    origin, there = parse_place(source), parse_place(destination)
    wanted = [parse_platform(text) for text in platforms] or None
    archive = files.output_file(there.path) if isinstance(there, FilePlace) and there.archive else None
    if archive is None:
        expect_cache(emit)
    with open_clients(options, emit=emit) as client:
        held, descriptor, name = _open_source(origin, Pulls(client, emit=emit))
        if isinstance(there, RegistryPlace):
            reference = _tag(there.reference, descriptor, narrowed=wanted is not None)
        else:
            there = _named(there, name)
            reference = there.name
        lost: dict[str, str] = {}
        shipments = image_shipments(
            held, descriptor, platforms=wanted, reference=reference, referrers=referrers, lost=lost
        )
        if referrers:
            shipments += _signatures(held, shipments[0], there, jobs=options.jobs, lost=lost)
            if shipments[0].descriptor.digest != descriptor.digest:
                lost |= _left_by_narrowing(held, descriptor, jobs=options.jobs)
        shipments = [item for item in shipments if _is_whole(held, item, there, lost)]
        unknown = held.unknown_referrers()
        for doubt in unknown:
            emit(Warned(doubt, hint="if the image has signatures or other artifacts, copy them by digest"))
        if archive is not None:
            write_oci_archive(held, shipments, archive, emit=emit)
        else:
            with _open_sink(there, origin, client) as sink:
                steps = CopyOptions(jobs=options.jobs, task=f"copy {descriptor.digest}", skip_lost=True, emit=emit)
                lost |= {one.item.name: one.reason for one in transfer(shipments, held, sink, steps).refused}
                _expect_there(sink, reference or shipments[0].descriptor.digest)
    for name, reason in lost.items():
        emit(Warned(f"`{name}`, which belongs to the image, was not copied: {reason}"))
    left_out = tuple(NotCopied(name, reason) for name, reason in lost.items())
    return CopyResult(shipments[0].descriptor, str(there), left_out, tuple(unknown))


def _expect_there(sink: Sink, reference: str) -> None:
    """Check that a registry knows the image that it has just taken, by one request.

    Raises:
        RegistryError: it does not.
    """
    if isinstance(sink, RegistrySink) and sink.source.find(reference) is None:
        raise RegistryError(f"`{sink}` accepted the image, and has lost it: `{reference}`", hint=STALE_CACHE_HINT)


def _open_source(place: Place, pulls: Pulls) -> tuple[Source, Descriptor, str]:
    """Return where an image comes from, its descriptor, and the name that it has there."""
    if isinstance(place, RegistryPlace):
        reference = place.reference
        source = pulls.source(reference)
        return source, source.resolve(reference.target), str(reference) if reference.tag else ""
    if not place.path.exists():
        raise ConfigurationError(
            f"`{place}`: `{place.path}` does not exist",
            hint="check the path; `oci:` takes the folder of a bundle or layout, `oci-archive:` a file",
        )
    origin = ArchiveSource(place.path) if place.archive else LayoutStore.open(place.path, read_only=True)
    descriptor = origin.resolve(place.name)
    names = names_of(descriptor)
    return origin, descriptor, place.name if place.name in names else next(iter(names)) if len(names) == 1 else ""


def _signatures(held: Source, image: Shipment, there: Place, *, jobs: int, lost: dict[str, str]) -> list[Shipment]:
    """Return what cosign's tags name of an image, to go along; into an archive, which readers load whole, none does."""
    digests = [stored.descriptor.digest for stored in image.closure.manifests]
    found = read_signatures(held, digests, jobs=jobs, lost=lost)
    if not isinstance(there, FilePlace) or not there.archive:
        return found
    lost |= {item.name: "an archive carries no tags of cosign; copy to `oci:DIR`" for item in found}
    return []


def _left_by_narrowing(held: Source, whole: Descriptor, *, jobs: int) -> dict[str, str]:
    """Return what belongs to an index of which only some platforms are copied, under another digest, and why it stays.

    What belongs to the platforms themselves goes along.
    """
    lost: dict[str, str] = {}
    found = [referrer.digest for referrer in held.referrers(whole.digest)]
    found += [item.name for item in read_signatures(held, [whole.digest], jobs=jobs, lost=lost)]
    return dict.fromkeys((*found, *lost), f"it belongs to `{whole.digest}`, and selecting platforms changes the digest")


def _is_whole(held: Source, item: Shipment, there: Place, lost: dict[str, str]) -> bool:
    """Tell whether a shipment can be sent. What belongs to the image, and of which the source lacks a part, cannot.

    An archive is written in one go, so that every blob is asked for before.

    Raises:
        IntegrityError: programs may read a document differently.
    """
    try:
        expect_unambiguous(held, item.closure)
        if item.optional and isinstance(there, FilePlace) and there.archive:
            for blob in item.closure.blobs.values():
                with held.open_blob_unchecked(blob) as stream:
                    stream.read(1)
    except AirferryError as error:
        if not item.optional or not held.lacks(error):
            raise
        lost[item.name] = error.message
        return False
    return True


def _named(place: FilePlace, name: str) -> FilePlace:
    """Return a destination with the name that the image gets there, which is its own where none is given."""
    if is_digest(place.name):
        raise UsageError(f"`{place}`: a destination has a name, not a digest", hint=f"write `oci:{place.path}:NAME`")
    if not place.name and not name:
        raise UsageError(f"`{place}`: the image has no name", hint=f"give it one: `{place}:NAME`")
    return FilePlace(place.path, place.name or name, place.archive)


def _open_sink(place: Place, source: Place, client: Clients) -> AbstractContextManager[Sink]:
    return _layout_sink(place.path) if isinstance(place, FilePlace) else _registry_sink(source, place.reference, client)


@contextmanager
def _registry_sink(source: Place, reference: Reference, client: Clients) -> Iterator[RegistrySink]:
    """Give the sink of a repository, with a journal of its uploads that no other process uses meanwhile."""
    known = read_profile(reference.registry)
    same = isinstance(source, RegistryPlace) and source.reference.registry == reference.registry
    mount_from = source.reference.repository if isinstance(source, RegistryPlace) and same else None
    mounts = known.mounts is not False
    work = files.cache_directory() / "copies" / hashlib.sha256(str(reference).encode()).hexdigest()[:16]
    with locks.exclusive_lock(work / "lock", purpose=f"copy to `{reference}`", elsewhere=False):
        uploader = Uploader(
            client(reference.registry), limits=known.limits(), journal=work / "uploads.json", mounts=mounts
        )
        try:
            yield RegistrySink(
                client(reference.registry),
                reference.repository,
                uploader=uploader,
                mount_from=mount_from if mounts else None,
            )
        finally:
            keep_learned(known, uploader.limits, mounts=mounts)


@contextmanager
def _layout_sink(path: Path) -> Iterator[LayoutStore]:
    """Give a layout, made if need be, once other copies into it have ended: each of them rewrites its index."""
    name = hashlib.sha256(str(files.resolved(path)).encode()).hexdigest()[:16]
    with locks.waiting_lock(files.cache_directory() / "layouts" / f"{name}.lock"):
        yield LayoutStore.create(path)


def _tag(reference: Reference, descriptor: Descriptor, *, narrowed: bool) -> str | None:
    """Return the tag to set, or None where the destination is a digest, which must be that of the image."""
    if reference.digest is None:
        return reference.tag
    if narrowed or reference.digest != descriptor.digest:
        raise UsageError(
            f"`docker://{reference}`: the image is `{descriptor.digest}`"
            + (", and selecting platforms changes the digest" if narrowed else ""),
            hint="name a tag as the destination",
        )
    return reference.tag
