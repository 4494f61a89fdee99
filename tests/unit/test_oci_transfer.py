"""What the one engine does on its own: order, mounts, refusals, previews and audits, over sinks in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.errors import AirferryError, HostError, IntegrityError, RegistryError
from airferry.events import Event, Progress
from airferry.oci.closure import Closure, Shipment, read_closure
from airferry.oci.copy import CopyOptions, Transfer, transfer
from airferry.oci.documents import Descriptor
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Sink, Stored, blocks
from airferry.oci.streams import verifying
from oci_images import make_image, put_image

NAME = "registry.example/team/trainer:1.0"


class Memory(Sink):
    """A repository in memory that notes what is done to it, next to others that share a log."""

    def __init__(self, repository: str = "", log: list[tuple[str, str, str]] | None = None) -> None:
        self.repository = repository
        self.log = log if log is not None else []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.peers: dict[str, Memory] = {}
        self.lost: set[str] = set()
        self.fails: Callable[[str], AirferryError | None] = lambda digest: None
        self.can_mount = False

    @property
    def mounts(self) -> bool:
        return self.can_mount

    def note(self, what: str, digest: str) -> None:
        self.log.append((what, self.repository, digest))

    def has_blob(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs and descriptor.digest not in self.lost

    def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        if (error := self.fails(descriptor.digest)) is not None:
            raise error
        self.blobs[descriptor.digest] = b"".join(blocks(verifying(stream, descriptor)))
        self.note("blob", descriptor.digest)

    def mount_blob(self, descriptor: Descriptor, repository: str) -> bool:
        self.note("ask", descriptor.digest)
        if not self.can_mount:
            return False
        self.blobs[descriptor.digest] = self.peers[repository].blobs[descriptor.digest]
        self.note("mount", descriptor.digest)
        return True

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        if (error := self.fails(stored.descriptor.digest)) is not None:
            raise error
        self.manifests[stored.descriptor.digest] = stored.data
        if reference is not None:
            self.names[reference] = stored.descriptor.digest
        self.note(reference or "manifest", stored.descriptor.digest)

    def lacks_manifest(self, stored: Stored) -> str:
        digest = stored.descriptor.digest
        self.note("read", digest)
        return f"manifest `{digest}`" if digest in self.lost or digest not in self.manifests else ""

    def refuses(self, error: AirferryError, manifests: Sequence[Stored] = ()) -> bool:
        return isinstance(error, RegistryError)


class Registry:
    """Several repositories."""

    def __init__(self, *, mounts: bool = True) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.repositories: dict[str, Memory] = {}
        self.mounts = mounts

    def __call__(self, repository: str) -> Memory:
        if repository not in self.repositories:
            made = self.repositories[repository] = Memory(repository, self.log)
            made.peers, made.can_mount = self.repositories, self.mounts
        return self.repositories[repository]

    def did(self, what: str) -> list[tuple[str, str]]:
        return [(repository, digest) for done, repository, digest in self.log if done == what]


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "layout")


@pytest.fixture
def closure(store: LayoutStore) -> Closure:
    index, _entry = make_image(store)
    return read_closure(store, index)


def attach(store: LayoutStore, subject: Descriptor, text: bytes) -> Closure:
    contents = [ArtifactFile("note.txt", "text/plain", text)]
    return read_closure(store, put_artifact(store, "application/x-note", contents=contents, subject=subject))


@pytest.mark.parametrize("mounts", [True, False])
def test_a_blob_is_sent_once_and_the_other_repositories_take_it_over(
    mounts: bool, store: LayoutStore, closure: Closure
) -> None:
    registry = Registry(mounts=mounts)
    shipments = [Shipment(name, name, closure) for name in ("a", "b", "c")]
    report = Transfer(store, registry, CopyOptions(jobs=3)).send(shipments)
    count = len(closure.blobs)
    assert len(registry.did("blob")) == (count if mounts else 3 * count)
    assert (report.sent_blobs, report.mounted_blobs) == ((count, 2 * count) if mounts else (3 * count, 0))
    assert report.sent_bytes == sum(len(data) for data in registry("a").blobs.values()) * (1 if mounts else 3)
    assert registry("a").blobs == registry("b").blobs == registry("c").blobs


def test_a_repository_that_has_a_blob_gives_it_to_the_others(store: LayoutStore, closure: Closure) -> None:
    registry = Registry()
    transfer([Shipment("b", "b", closure)], store, registry("b"))
    registry.log.clear()
    report = Transfer(store, registry).send([Shipment(name, name, closure) for name in ("a", "b")])
    assert registry.did("blob") == []
    assert (report.present_blobs, report.mounted_blobs) == (len(closure.blobs), len(closure.blobs))


def test_blobs_come_first_then_children_then_what_refers_to_them_and_names_last(
    store: LayoutStore, closure: Closure
) -> None:
    note = attach(store, closure.top.descriptor, b"note")
    of_note = attach(store, note.top.descriptor, b"about the note")
    of_child = attach(store, closure.manifests[0].descriptor, b"about one platform")
    sink = Memory()
    shipments = [
        Shipment("of note", "", of_note),
        Shipment("note", "", note),
        Shipment("of child", "", of_child),
        Shipment("image", "", closure, reference=NAME),
    ]
    transfer(shipments, store, sink, CopyOptions(jobs=4))
    done = [what for what, _repository, _digest in sink.log if what != "read"]
    assert done == sorted(done, key=["blob", "manifest", NAME].index), "blobs, then manifests, then the name"
    order = [digest for what, _repository, digest in sink.log if what in ("manifest", NAME)]
    first = {digest: order.index(digest) for digest in order}
    digests = [stored.descriptor.digest for stored in closure.manifests]
    assert [first[digest] for digest in digests] == sorted(first[digest] for digest in digests), "children first"
    assert first[closure.top.descriptor.digest] < first[note.top.descriptor.digest]
    assert first[note.top.descriptor.digest] < first[of_note.top.descriptor.digest]
    assert first[digests[0]] < first[of_child.top.descriptor.digest]
    assert sink.names == {NAME: closure.top.descriptor.digest}


def test_an_image_that_nothing_refers_to_is_put_once_with_its_name(store: LayoutStore, closure: Closure) -> None:
    sink = Memory()
    report = transfer([Shipment("image", "", closure, reference=NAME)], store, sink)
    top = closure.top.descriptor.digest
    assert [what for what, _repository, digest in sink.log if digest == top] == [NAME]
    assert report.manifests == len(closure.manifests)


def test_the_largest_blobs_are_begun_first(store: LayoutStore) -> None:
    image, _results = put_image(store, [{"a": bytes(range(256)) * size} for size in (1, 3, 2)], kind="none")
    closure = read_closure(store, image)
    sink = Memory()
    transfer([Shipment("image", "", closure)], store, sink, CopyOptions(jobs=1))
    sizes = [len(sink.blobs[digest]) for what, _repository, digest in sink.log if what == "blob"]
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_refused_of_an_optional_shipment_keeps_nothing_else_back(store: LayoutStore, closure: Closure) -> None:
    twin = replace(closure, manifests=[*closure.manifests[:-1], _twin(store, closure)])
    twin.top = twin.manifests[-1]
    sink = Memory()
    sink.fails = lambda digest: RegistryError("not of this type") if digest == twin.top.descriptor.digest else None
    shipments = [Shipment("twin", "", twin, True, "twin:1"), Shipment("image", "", closure, reference=NAME)]
    report = transfer(shipments, store, sink)
    assert [(one.item.name, one.reason) for one in report.refused] == [("twin", "not of this type")]
    assert sink.names == {NAME: closure.top.descriptor.digest}
    sink.fails = lambda digest: None
    transfer(shipments, store, sink)
    assert sink.names == {NAME: closure.top.descriptor.digest, "twin:1": twin.top.descriptor.digest}
    sink.fails = lambda digest: HostError("the disk broke") if digest == twin.top.descriptor.digest else None
    with pytest.raises(HostError, match="the disk broke"):
        transfer(shipments, store, sink)
    sink.fails = lambda digest: RegistryError("no") if digest == closure.top.descriptor.digest else None
    with pytest.raises(RegistryError, match=r"^no$"):
        transfer(shipments, store, sink)


def _twin(store: LayoutStore, closure: Closure) -> Stored:
    data = closure.top.data + b"\n"
    return Stored(store.put_bytes(data, closure.top.descriptor.media_type), data)


def test_a_preview_asks_and_says_what_would_be_done(store: LayoutStore, closure: Closure) -> None:
    registry = Registry()
    shipments = [Shipment(name, name, closure) for name in ("a", "b")]
    copying = Transfer(store, registry, CopyOptions(skip_held=True))
    expected = copying.preview(shipments)
    assert {what for what, _repository, _digest in registry.log} == {"read"}
    done = copying.send(shipments)
    assert sorted(map(str, expected.steps)) == sorted(map(str, done.steps))
    assert sorted(map(str, expected.manifest_steps)) == sorted(map(str, done.manifest_steps))
    again = copying.preview(shipments)
    assert (again.steps, again.manifest_steps, again.present_blobs) == ([], [], 2 * len(closure.blobs))
    refusing = Transfer(store, Registry(mounts=False)).preview(shipments)
    assert {step.action for step in refusing.steps} == {"send"}


def test_manifests_that_are_held_are_not_sent_where_they_are_read_back(store: LayoutStore, closure: Closure) -> None:
    sink = Memory()
    shipments = [Shipment("image", "", closure)]
    transfer(shipments, store, sink)
    assert transfer(shipments, store, sink, CopyOptions(skip_held=True)).manifest_steps == []
    lost = closure.manifests[0].descriptor.digest
    del sink.manifests[lost]
    report = transfer(shipments, store, sink, CopyOptions(skip_held=True))
    assert [step.digest for step in report.manifest_steps] == [lost]


def test_an_audit_names_what_was_lost_and_reads_nothing_twice(store: LayoutStore, closure: Closure) -> None:
    registry = Registry()
    shipments = [Shipment("image", "a", closure)]
    copying = Transfer(store, registry)
    copying.send(shipments)
    assert copying.audit(shipments) == []
    registry.log.clear()
    assert copying.audit(shipments) == []
    assert registry.did("read") == [], "what was read back counts"
    blob, manifest = next(iter(closure.blobs)), closure.top.descriptor.digest
    registry("a").lost = {blob, manifest}
    assert copying.audit(shipments) == [f"blob `{blob}` in `a`"]
    fresh = Transfer(store, registry)
    assert fresh.audit(shipments) == [f"manifest `{manifest}` in `a`"], "blobs that others sent are not its affair"


def test_a_failure_stops_the_rest_and_says_what_is_not_whole(store: LayoutStore, closure: Closure) -> None:
    other = read_closure(store, put_image(store, [{"b": b"2"}])[0])
    broken = next(iter(other.blobs))
    sink = Memory()
    sink.fails = lambda digest: HostError("the disk broke") if digest == broken else None
    shipments = [Shipment("image", "", closure), Shipment("other", "", other, reference=NAME)]
    copying = Transfer(store, lambda _repository: sink, CopyOptions(jobs=1))
    with pytest.raises(HostError, match="the disk broke"):
        copying.send(shipments)
    assert "other" in copying.unfinished(shipments)
    assert (sink.manifests, sink.names) == ({}, {})
    sink.fails = lambda digest: None
    copying.send(shipments)
    assert copying.unfinished(shipments) == []


def test_a_copy_under_way_ends_soon_after_another_has_failed(store: LayoutStore, tmp_path: Path) -> None:
    image, _results = put_image(store, [{"large": bytes(range(256)) * 40_000}, {"small": b"1"}], kind="none")
    closure = read_closure(store, image)
    small = min(closure.blobs.values(), key=lambda blob: blob.size).digest
    begun, failed = threading.Event(), threading.Event()
    read: list[int] = []

    class Slow(Memory):
        def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
            if descriptor.digest == small:
                assert begun.wait(10)
                failed.set()
                raise HostError("the disk broke")
            if descriptor.size < 1 << 20:
                return super().put_blob(descriptor, stream)
            for block in blocks(stream):
                read.append(len(block))
                begun.set()
                assert failed.wait(10)
                # until the failure is known to the others as well
                threading.Event().wait(0.05)
            return None

    with pytest.raises(HostError, match="the disk broke"):
        transfer([Shipment("image", "", closure)], store, Slow(), CopyOptions(jobs=4))
    assert sum(read) < max(blob.size for blob in closure.blobs.values())


def test_progress_counts_what_need_not_be_sent_as_well_and_ends_at_the_total(
    store: LayoutStore, closure: Closure
) -> None:
    total = sum(blob.size for blob in closure.blobs.values())
    registry = Registry()
    for names in (["a"], ["a"], ["a", "b"], ["c", "d"]):
        events: list[Event] = []
        options = CopyOptions(task="load", emit=events.append)
        Transfer(store, registry, options).send([Shipment(name, name, closure) for name in names])
        assert events == [Progress("load", total, total)]


def test_a_blob_that_is_declared_with_two_sizes_is_refused_before_anything_is_sent(
    store: LayoutStore, closure: Closure
) -> None:
    digest, blob = next(iter(closure.blobs.items()))
    lying = replace(closure, blobs={digest: blob.annotated(size=blob.size + 1)})
    sink = Memory()
    with pytest.raises(IntegrityError, match="two different sizes"):
        transfer([Shipment("a", "", closure), Shipment("b", "", lying)], store, sink)
    assert sink.log == []
