"""What every Source and every Sink keeps to, and that anything can be copied from each of them to each of them."""

from __future__ import annotations

import io
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.manifest import BundleManifest, ToolEntry
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle
from airferry.errors import AirferryError, IntegrityError
from airferry.events import silent
from airferry.host import files
from airferry.host.threads import parallel_map
from airferry.near.bases.tee import learning
from airferry.oci.archive import ArchiveSink, ArchiveSource, write_oci_archive
from airferry.oci.closure import RememberingSource, Shipment
from airferry.oci.copy import CopyOptions, copy_blob, image_shipments, transfer
from airferry.oci.documents import IMAGE_MANIFEST, LAYER_TAR, Descriptor, descriptor_of
from airferry.oci.entries import names_of
from airferry.oci.layout import LayoutStore, UnlistedLayout
from airferry.oci.ports import BlobOffer, Sink, Source, Stored, blocks
from airferry.oci.reference import Reference
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.governor import Limits
from airferry.registry.pulls import Pulls
from airferry.registry.registries_conf import RegistriesConf
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.uploads import Uploader
from oci_images import make_image
from scripted_registry import run_scripted, sha256

NAME = "registry.example/team/trainer:1.0"
TAG = "1.0"
# two blocks, the second one short
LARGE = os.urandom(1024 * 1024 + 77)
OPTIONS = ClientOptions(
    plain_http=True, retry=RetryPolicy(attempts=2, sleep=lambda _: None), lookup=lambda registry, repository: None
)


# --- what is copied ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with an image of two platforms, a note that refers to it, and a note that refers to the note."""
    store = LayoutStore.create(tmp_path_factory.mktemp("template") / "origin")
    top, _entry = make_image(store)
    note = _note(store, top, LARGE)
    of_note = _note(store, note, b"about the note")
    store.put_manifest(store.read_manifest(top), reference=NAME)
    for artifact in (note, of_note):
        store.put_manifest(store.read_manifest(artifact))
    return store.path


@pytest.fixture
def origin(template: Path, tmp_path: Path) -> LayoutStore:
    """The layout for one test, which replaces files and never writes into them."""
    shutil.copytree(template, tmp_path / "origin", copy_function=os.link)
    return LayoutStore.open(tmp_path / "origin")


def _note(store: LayoutStore, subject: Descriptor, content: bytes) -> Descriptor:
    files_of_it = [ArtifactFile("note.bin", "application/octet-stream", content)]
    return put_artifact(store, "application/x-note", contents=files_of_it, subject=subject)


def top_of(store: LayoutStore) -> Descriptor:
    found = store.resolve(NAME)
    return Descriptor(media_type=found.media_type, digest=found.digest, size=found.size)


def blobs_of(store: LayoutStore) -> dict[str, Descriptor]:
    return {
        digest: blob
        for item in image_shipments(store, top_of(store), referrers=True)
        for digest, blob in item.closure.blobs.items()
    }


def large_of(store: LayoutStore) -> Descriptor:
    return blobs_of(store)[sha256(LARGE)]


# --- sources -------------------------------------------------------------------------------------------------------


class Given(ABC):
    """Where a source reads from, filled from a layout, and how what it gives is spoilt."""

    name = NAME

    def __init__(self, origin: LayoutStore, folder: Path, held: ExitStack) -> None:
        self.origin = origin
        self.folder = folder
        self.held = held

    @abstractmethod
    def open(self) -> Source:
        """Open the source. Again, it is another object."""

    @abstractmethod
    def replace(self, digest: str, data: bytes) -> None:
        """Let a blob or manifest be other bytes from now on."""


class GivenLayout(Given):
    def open(self) -> Source:
        return LayoutStore.open(self.origin.path, read_only=True)

    def replace(self, digest: str, data: bytes) -> None:
        path = self.origin.blob_path(digest)
        path.unlink()
        path.write_bytes(data)


class GivenArchive(Given):
    def open(self) -> Source:
        path = self.folder / "image.tar"
        if not path.exists():
            write_oci_archive(
                self.origin, image_shipments(self.origin, top_of(self.origin), reference=NAME, referrers=True), path
            )
        return ArchiveSource(path)

    def replace(self, digest: str, data: bytes) -> None:
        path = self.folder / "image.tar"
        self.open()
        whole, old = path.read_bytes(), self.origin.blob_path(digest).read_bytes()
        if len(data) == len(old):
            path.write_bytes(whole.replace(old, data))
            return
        # another size moves all that is behind: the archive is cut there, or its header says another size
        at = whole.index(old) - 512
        header = bytearray(whole[at : at + 512])
        header[124:136] = b"%011o\0" % len(data)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        padded = data + bytes(-len(data) % 512)
        path.write_bytes(whole[:at] + bytes(header) + padded + whole[at + 512 + len(old) + (-len(old) % 512) :])


Held = tuple[dict[str, bytes], dict[str, tuple[bytes, str]]]
PUSHED: dict[str, Held] = {}


def pushed(origin: LayoutStore) -> Held:
    """Return what a registry holds once a layout was copied to it, which is done once."""
    top = top_of(origin)
    if top.digest not in PUSHED:
        shipments = image_shipments(origin, top, reference=TAG, referrers=True)
        with run_scripted() as registry, RegistryClient(registry.address, options=OPTIONS) as client:
            transfer(shipments, origin, RegistrySink(client, "team/trainer"))
        PUSHED[top.digest] = registry.blobs, registry.manifests
    return PUSHED[top.digest]


class GivenRegistry(Given):
    name = TAG
    ranges = True

    def __init__(self, origin: LayoutStore, folder: Path, held: ExitStack) -> None:
        super().__init__(origin, folder, held)
        self.registry = held.enter_context(run_scripted())
        self.registry.ranges = self.ranges
        blobs, manifests = pushed(origin)
        self.registry.blobs.update(blobs)
        self.registry.manifests.update(manifests)
        self.client = held.enter_context(RegistryClient(self.registry.address, options=OPTIONS))

    def open(self) -> Source:
        return RegistrySource(self.client, "team/trainer")

    def replace(self, digest: str, data: bytes) -> None:
        if digest in self.registry.blobs:
            self.registry.blobs[digest] = data
            return
        key = f"team/trainer@{digest}"
        self.registry.manifests[key] = (data, self.registry.manifests[key][1])


class GivenRegistryWithoutRanges(GivenRegistry):
    ranges = False


class GivenPulls(GivenRegistry):
    def open(self) -> Source:
        pulls = Pulls(lambda host, insecure=False: self.client, emit=silent, read=lambda: RegistriesConf(()))
        source = pulls.source(Reference(self.registry.address, "team/trainer", TAG, None))
        source.find(TAG)
        return source


class GivenRemembering(GivenLayout):
    def open(self) -> Source:
        return RememberingSource(super().open())


class GivenForgetful(GivenLayout):
    """As one that has no room left."""

    def open(self) -> Source:
        return RememberingSource(super().open(), limit_bytes=0)


class GivenBundle(GivenLayout):
    def open(self) -> Source:
        path = self.folder / "bundle"
        if not path.exists():
            store = LayoutStore.create(path)
            shipments = image_shipments(self.origin, top_of(self.origin), reference=NAME, referrers=True)
            transfer(shipments, self.origin, store)
            entries = store.read_index().manifests
            manifest = BundleManifest(
                workflow={"name": "test", "stages": ["sft/tiny:default"]},
                build_stages=("validate",),
                compression="zstd",
                tool=ToolEntry(airferry="0.1.0"),
            )
            artifacts = [entry for entry in entries if entry.artifact_type is not None]
            seal(store, {NAME: top_of(store)}, artifacts=artifacts, manifest=manifest)
        return open_bundle(path).documents

    def replace(self, digest: str, data: bytes) -> None:
        self.open()
        path = LayoutStore.open(self.folder / "bundle").blob_path(digest)
        path.unlink()
        path.write_bytes(data)


class GivenLearning(GivenLayout):
    def open(self) -> Source:
        return _learning(super().open(), self.origin)


class GivenLearningRegistry(GivenRegistry):
    def open(self) -> Source:
        return _learning(super().open(), self.origin)


def _learning(source: Source, origin: LayoutStore) -> Source:
    return learning(source, dict.fromkeys(blobs_of(origin), "sha256:" + "0" * 64), _Learner())


class _Learner:
    """Wants all bytes of all blobs, and learns nothing."""

    at_once = 2

    @contextmanager
    def learning(self, descriptor: Descriptor, diff_id: str, file: Path | None) -> Iterator[_Learner]:
        yield self

    def feed(self, data: bytes) -> None:
        pass

    def result(self) -> None:
        pass


SOURCES: list[type[Given]] = [
    GivenLayout,
    GivenArchive,
    GivenRegistry,
    GivenRegistryWithoutRanges,
    GivenPulls,
    GivenRemembering,
    GivenForgetful,
    GivenBundle,
    GivenLearning,
    GivenLearningRegistry,
]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def name_of(kind: type[object]) -> str:
    return kind.__name__.removeprefix("Given").removeprefix("Taking")


@pytest.fixture(params=SOURCES, ids=name_of)
def given(request: pytest.FixtureRequest, origin: LayoutStore, tmp_path: Path, held: ExitStack) -> Given:
    kind: type[Given] = request.param
    return kind(origin, tmp_path, held)


def test_a_name_and_a_digest_stand_for_the_image_and_others_for_nothing(given: Given, origin: LayoutStore) -> None:
    source, top = given.open(), top_of(origin)
    assert source.resolve(given.name).digest == top.digest
    assert source.resolve(top.digest).digest == top.digest
    for unknown in ("other", "sha256:" + "0" * 64):
        with pytest.raises(AirferryError):
            source.resolve(unknown)


def test_a_manifest_comes_as_its_own_bytes_with_its_view_and_the_descriptor_that_was_asked_with(
    given: Given, origin: LayoutStore
) -> None:
    source, top = given.open(), top_of(origin)
    for _ in range(2):
        stored = source.read_manifest(top)
        assert (stored.descriptor, sha256(stored.data)) == (top, top.digest)
    (child, *_others) = stored.index.manifests
    held_child = source.read_manifest(child)
    assert held_child.descriptor == child
    assert held_child.manifest.layers
    assert held_child.subject is None
    renamed = child.annotated(annotations={"a": "b"})
    assert source.read_manifest(renamed).descriptor == renamed


def test_a_manifest_that_is_not_what_its_descriptor_says_is_refused(given: Given, origin: LayoutStore) -> None:
    top = top_of(origin)
    data = origin.read_bytes(top)
    with pytest.raises(IntegrityError):
        given.open().read_manifest(top.annotated(size=top.size + 1))
    given.replace(top.digest, data[:-1] + b" ")
    with pytest.raises(IntegrityError):
        given.open().read_manifest(top)


@pytest.mark.parametrize("size", [999_999, -1])
def test_a_blob_comes_whole_however_it_is_read(size: int, given: Given, origin: LayoutStore) -> None:
    source = given.open()
    with source.open_blob(large_of(origin)) as stream:
        read = b"".join(iter(lambda: stream.read(size), b""))
    assert read == LARGE
    for blob in blobs_of(origin).values():
        with source.open_blob(blob) as stream:
            assert sha256(stream.read()) == blob.digest


def test_a_blob_that_is_missing_is_an_error(given: Given) -> None:
    absent = descriptor_of(b"nowhere", LAYER_TAR)
    with pytest.raises(AirferryError), given.open().open_blob(absent) as stream:
        stream.read()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: b"",
    ],
    ids=["last", "half", "one-more", "empty"],
)
def test_a_spoilt_blob_never_comes_to_its_end(
    spoil: Callable[[bytes], bytes], given: Given, origin: LayoutStore
) -> None:
    large = large_of(origin)
    given.replace(large.digest, spoil(LARGE))
    got = 0
    with pytest.raises(IntegrityError), given.open().open_blob(large) as stream:
        while block := stream.read(1 << 20):
            got += len(block)
    assert got < len(LARGE), "its last byte was handed out"


@pytest.mark.parametrize("offset", [1, (1 << 20) + 5, len(LARGE) - 1])
def test_a_blob_is_read_from_an_offset_on(offset: int, given: Given, origin: LayoutStore) -> None:
    with given.open().open_blob_at(large_of(origin), offset) as stream:
        assert b"".join(blocks(stream)) == LARGE[offset:]


def test_what_nobody_has_hashed_has_the_right_size_at_least(given: Given, origin: LayoutStore) -> None:
    source, large = given.open(), large_of(origin)
    offer = BlobOffer(large, source)
    assert (offer.unchecked is not None) == source.reads_unchecked
    with source.open_blob_unchecked(large) as stream:
        assert b"".join(blocks(stream)) == LARGE
    file = source.blob_file(large)
    assert file is None or file.read_bytes() == LARGE
    assert source.blob_file(descriptor_of(b"nowhere", LAYER_TAR)) is None


def test_referrers_are_found_from_their_subject(given: Given, origin: LayoutStore) -> None:
    source, top = given.open(), top_of(origin)
    (note,) = source.referrers(top.digest)
    assert note.artifact_type == "application/x-note"
    (of_note,) = source.referrers(note.digest)
    assert source.referrers(of_note.digest) == []
    assert source.read_manifest(note).subject == top.digest


def test_threads_may_read_at_a_time(given: Given, origin: LayoutStore) -> None:
    source = given.open()

    def read(blob: Descriptor) -> str:
        with source.open_blob(blob) as stream:
            return sha256(b"".join(blocks(stream)))

    wanted = list(blobs_of(origin).values()) * 3
    assert parallel_map(read, wanted, jobs=6) == [blob.digest for blob in wanted]


# --- sinks ---------------------------------------------------------------------------------------------------------


class Taking(ABC):
    """Where a sink writes, and how that is read afterwards."""

    reference = NAME
    # documents are there from the beginning, and an error makes all of it worth nothing
    one_piece = False
    names = True

    def __init__(self, folder: Path, held: ExitStack) -> None:
        self.folder = folder
        self.held = held

    @abstractmethod
    def open(self, shipments: list[Shipment]) -> Sink:
        """Open the sink for shipments."""

    def finish(self) -> None:  # noqa: B027
        """Say that nothing more comes."""

    @abstractmethod
    def read(self) -> Source:
        """Open what was written."""

    @abstractmethod
    def named(self) -> bool:
        """Tell whether the name stands for something."""


class TakingLayout(Taking):
    kind = LayoutStore

    def open(self, shipments: list[Shipment]) -> Sink:
        LayoutStore.create(self.folder / "taken")
        return self.kind(self.folder / "taken", read_only=False)

    def read(self) -> Source:
        return LayoutStore.open(self.folder / "taken", read_only=True)

    def named(self) -> bool:
        return any(NAME in names_of(entry) for entry in LayoutStore.open(self.folder / "taken").read_index().manifests)


class TakingUnlistedLayout(TakingLayout):
    kind = UnlistedLayout
    names = False


class TakingArchive(Taking):
    one_piece = True

    def open(self, shipments: list[Shipment]) -> Sink:
        self.inner = ExitStack()
        self.held.callback(self.inner.pop_all)
        self.writing = files.atomic_file(self.folder / "taken.tar")
        self.sink = ArchiveSink(self.writing.__enter__(), shipments, docker_names=[NAME])
        return self.sink

    def finish(self) -> None:
        self.sink.finish()
        self.writing.__exit__(None, None, None)

    def read(self) -> Source:
        return ArchiveSource(self.folder / "taken.tar")

    def named(self) -> bool:
        return (self.folder / "taken.tar").exists()


class TakingRegistry(Taking):
    reference = TAG
    mounts = False
    limits = Limits()

    def open(self, shipments: list[Shipment]) -> Sink:
        self.registry = self.held.enter_context(run_scripted())
        self.registry.mounts = self.mounts
        self.client = self.held.enter_context(RegistryClient(self.registry.address, options=OPTIONS))
        uploader = Uploader(self.client, limits=self.limits, journal=self.folder / "uploads.json", mounts=self.mounts)
        return RegistrySink(self.client, "team/taken", uploader=uploader)

    def finish(self) -> None:
        assert self.registry.sessions == {}, "an upload was left open"
        assert not (self.folder / "uploads.json").exists()

    def read(self) -> Source:
        return RegistrySource(self.client, "team/taken")

    def named(self) -> bool:
        return f"team/taken@{TAG}" in self.registry.manifests


class TakingRegistryThatMounts(TakingRegistry):
    mounts = True


class TakingRegistryInChunks(TakingRegistry):
    limits = Limits(chunked_above_bytes=1 << 19, chunk_bytes=1 << 19)


SINKS: list[type[Taking]] = [
    TakingLayout,
    TakingUnlistedLayout,
    TakingArchive,
    TakingRegistry,
    TakingRegistryThatMounts,
    TakingRegistryInChunks,
]


@pytest.fixture(params=SINKS, ids=name_of)
def taking(request: pytest.FixtureRequest, tmp_path: Path, held: ExitStack) -> Taking:
    kind: type[Taking] = request.param
    return kind(tmp_path, held)


def shipments_of(source: Source, top: Descriptor, reference: str | None) -> list[Shipment]:
    return image_shipments(source, top, reference=reference, referrers=True)


# Every source to a folder, an archive and a registry, and one of files and one of a network to every sink; what is left
# brings no two together that meet nowhere else, and is copied by scripts/test-slow.
PAIRS = [
    pytest.param(
        source,
        sink,
        id=f"{name_of(source)}-{name_of(sink)}",
        marks=()
        if sink in (TakingLayout, TakingArchive, TakingRegistry) or source in (GivenLayout, GivenRegistry)
        else pytest.mark.slow,
    )
    for source in SOURCES
    for sink in SINKS
]


@pytest.mark.parametrize(("given", "taking"), PAIRS, indirect=True)
def test_everything_can_be_copied_from_anywhere_to_anywhere(given: Given, taking: Taking, origin: LayoutStore) -> None:
    source, top = given.open(), top_of(origin)
    shipments = shipments_of(source, top, taking.reference if taking.names else None)
    sink = taking.open(shipments)
    report = transfer(shipments, source, sink, CopyOptions(jobs=1 if taking.one_piece else 3))
    assert {step.digest for step in report.steps} == set(blobs_of(origin))
    assert report.manifests == 5
    again = transfer(shipments, source, sink)
    assert (again.steps, again.present_blobs) == ([], len(blobs_of(origin))), "a second copy sends no blob"
    taking.finish()
    read = taking.read()
    if taking.names:
        assert taking.named()
        assert read.resolve(taking.reference).digest == top.digest
        (note,) = read.referrers(top.digest)
        assert len(read.referrers(note.digest)) == 1
    for item in shipments:
        for stored in item.closure.manifests:
            assert read.read_manifest(stored.descriptor).data == stored.data
    for blob in blobs_of(origin).values():
        with read.open_blob(blob) as stream:
            assert sha256(stream.read()) == blob.digest


def test_a_failed_copy_leaves_no_name(taking: Taking, origin: LayoutStore, tmp_path: Path, held: ExitStack) -> None:
    given = GivenLayout(origin, tmp_path, held)
    shipments = shipments_of(origin, top_of(origin), taking.reference)
    sink = taking.open(shipments)
    given.replace(sha256(LARGE), LARGE[::-1])
    with pytest.raises(IntegrityError):
        transfer(shipments, given.open(), sink)
    assert not taking.named()
    assert not sink.has_blob(_described(LARGE))


def test_a_blob_is_there_once_it_was_put_and_putting_it_again_does_no_harm(taking: Taking, origin: LayoutStore) -> None:
    sink = taking.open(shipments_of(origin, top_of(origin), taking.reference))
    large = large_of(origin)
    assert not sink.has_blob(large)
    for _ in range(2):
        sink.put_blob(large, io.BytesIO(LARGE))
        assert sink.has_blob(large)


@pytest.mark.parametrize("wrong", [LARGE[::-1], LARGE[:-1], LARGE + b"x", b""], ids=["other", "short", "long", "none"])
def test_what_is_not_the_blob_is_refused_and_not_there(wrong: bytes, taking: Taking, origin: LayoutStore) -> None:
    sink = taking.open(shipments_of(origin, top_of(origin), taking.reference))
    large = large_of(origin)
    with pytest.raises(IntegrityError):
        sink.put_blob(large, io.BytesIO(wrong))
    assert not sink.has_blob(large)


def test_an_offer_is_taken_once_and_its_bytes_count_once(taking: Taking, origin: LayoutStore) -> None:
    sink = taking.open(shipments_of(origin, top_of(origin), taking.reference))
    large = large_of(origin)
    counted: list[int] = []
    offer = BlobOffer(large, origin, advance=counted.append)
    assert sink.take_blob(offer) == "send"
    offer.settle()
    assert sum(counted) == len(LARGE)
    assert copy_blob(origin, sink, large) == "present"
    if not sink.mounts:
        assert sink.mount_blob(large, "elsewhere") is False


def test_a_manifest_is_missing_until_it_is_put_and_others_bytes_are_refused(
    taking: Taking, origin: LayoutStore
) -> None:
    shipments = shipments_of(origin, top_of(origin), None)
    sink = taking.open(shipments)
    stored = shipments[0].closure.manifests[0]
    if not taking.one_piece:
        assert stored.descriptor.digest in sink.lacks_manifest(stored)
    with pytest.raises(IntegrityError):
        sink.put_manifest(Stored(stored.descriptor, stored.data[:-1] + b" "))
    sink.put_manifest(stored)
    assert sink.lacks_manifest(stored) == ""
    other = stored.data + b" "
    unknown = Stored(descriptor_of(other, IMAGE_MANIFEST), other)
    assert unknown.descriptor.digest in sink.lacks_manifest(unknown)


def test_a_referrer_is_missing_until_it_is_found_from_its_subject(taking: Taking, origin: LayoutStore) -> None:
    shipments = shipments_of(origin, top_of(origin), None)
    sink = taking.open(shipments)
    transfer(shipments, origin, sink)
    if taking.names:
        assert [sink.lacks_manifest(item.closure.top) for item in shipments] == ["", "", ""]
    else:
        lacks = [sink.lacks_manifest(item.closure.top) for item in shipments]
        assert ["among the referrers" in lack for lack in lacks] == [False, True, True]


def test_an_archive_takes_nothing_that_it_was_not_made_for_and_is_not_finished_without_all(
    origin: LayoutStore, tmp_path: Path
) -> None:
    shipments = shipments_of(origin, top_of(origin), NAME)
    sink = ArchiveSink(io.BytesIO(), shipments, docker_names=[NAME])
    stray = descriptor_of(b"stray", LAYER_TAR)
    with pytest.raises(IntegrityError, match="not a part"):
        sink.put_blob(stray, io.BytesIO(b"stray"))
    with pytest.raises(IntegrityError, match="did not come"):
        sink.finish()


def test_a_link_is_the_very_file_and_a_damaged_one_is_refused(origin: LayoutStore, tmp_path: Path) -> None:
    target, large = LayoutStore.create(tmp_path / "linked"), large_of(origin)
    assert copy_blob(origin, target, large, link=True) == "link"
    assert target.blob_path(large.digest).samefile(origin.blob_path(large.digest))
    other = LayoutStore.create(tmp_path / "other")
    GivenLayout(origin, tmp_path, ExitStack()).replace(large.digest, LARGE[::-1])
    with pytest.raises(IntegrityError):
        copy_blob(origin, other, large, link=True)
    assert not other.has_blob(large)


@pytest.mark.parametrize("kind", [kind for kind in SINKS if not kind.one_piece])
def test_an_interrupted_copy_goes_on_and_sends_only_what_is_missing(
    kind: type[Taking], origin: LayoutStore, tmp_path: Path, held: ExitStack
) -> None:
    taking = kind(tmp_path, held)
    shipments = shipments_of(origin, top_of(origin), taking.reference)
    sink = taking.open(shipments)
    blobs = list(blobs_of(origin).values())
    for blob in blobs[:2]:
        copy_blob(origin, sink, blob)
    report = transfer(shipments, origin, sink)
    assert {step.digest for step in report.steps} == {blob.digest for blob in blobs[2:]}
    assert report.present_blobs == 2


def _described(data: bytes) -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=sha256(data), size=len(data))
