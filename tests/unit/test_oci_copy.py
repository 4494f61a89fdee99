"""Copies, archives and validation, over layouts and archives as sources."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from airferry.errors import AirferryError, BuildError, ConfigurationError, HostError, IntegrityError
from airferry.events import Event, Progress
from airferry.host.canonical import canonical_json
from airferry.host.threads import Cancelled, parallel_map
from airferry.oci.archive import ArchiveSource, write_oci_archive
from airferry.oci.closure import Shipment, flat_index, read_closure
from airferry.oci.copy import CopyOptions, copy_image, image_shipments
from airferry.oci.documents import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    MAX_NESTED,
    Descriptor,
    Index,
    Manifest,
    parse_index,
    parse_manifest,
)
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform, parse_platform
from airferry.oci.ports import Sink, Stored
from airferry.oci.validate import validate_layout
from oci_images import image_defects, layout_defects, make_image, put_image, put_index, put_manifest

NAME = "registry.example/team/trainer:1.0"
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "target")


def shipped(store: LayoutStore, descriptor: Descriptor) -> list[Shipment]:
    return image_shipments(store, descriptor, reference=NAME)


def add_artifact(store: LayoutStore, subject: Descriptor) -> Descriptor:
    config = store.put_bytes(b"{}", "application/vnd.oci.empty.v1+json")
    manifest = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        artifact_type="application/x-note",
        config=config,
        layers=[config],
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
    )
    descriptor = store.put_bytes(canonical_json(manifest), IMAGE_MANIFEST)
    store.put_manifest(store.read_manifest(descriptor))
    return descriptor


class RecordingSink(Sink):
    """A sink that notes what comes in which order, and fails when told to."""

    def __init__(self, inner: LayoutStore, fail_on: str = "") -> None:
        self.inner = inner
        self.fail_on = fail_on
        self.order: list[str] = []

    def has_blob(self, descriptor: Descriptor) -> bool:
        return self.inner.has_blob(descriptor)

    def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        if descriptor.digest == self.fail_on:
            raise HostError("the disk broke")
        self.inner.put_blob(descriptor, stream)
        self.order.append(descriptor.digest)

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        self.inner.put_manifest(stored, reference=reference)
        self.order.append(stored.descriptor.digest)

    def lacks_manifest(self, stored: Stored) -> str:
        return self.inner.lacks_manifest(stored)


def test_children_go_before_parents_and_nothing_goes_twice(store: LayoutStore, target: LayoutStore) -> None:
    index, _entry = make_image(store)
    sink = RecordingSink(target)
    events: list[Event] = []
    assert copy_image(store, sink, index, reference=NAME, options=CopyOptions(jobs=3, emit=events.append)) == index
    assert len(sink.order) == len(set(sink.order)) == len(store.stored_digests())
    manifests = [child.digest for child in parse_index(store.read_manifest(index).data).manifests]
    assert sink.order[-3:] == [*manifests, index.digest]
    assert target.resolve(NAME).digest == index.digest
    assert layout_defects(target) == []
    last = events[-1]
    assert isinstance(last, Progress)
    assert last.done == last.total
    sink.order.clear()
    copy_image(store, sink, index, reference=NAME)
    assert sink.order == [*manifests, index.digest]


def test_one_platform_leaves_the_others_blobs_behind(store: LayoutStore, target: LayoutStore) -> None:
    index, _entry = make_image(store)
    copied = copy_image(store, target, index, platforms=[ARM64], reference=NAME)
    assert copied.digest != index.digest
    children = parse_index(target.read_manifest(copied).data).manifests
    assert [child.platform_value() for child in children] == [ARM64]
    assert len(target.stored_digests()) == 5
    assert layout_defects(target) == []


def test_all_platforms_keep_the_index_as_it_is(store: LayoutStore, target: LayoutStore) -> None:
    index, _entry = make_image(store)
    assert copy_image(store, target, index, platforms=[ARM64, AMD64]) == index


def test_a_missing_platform_is_refused_before_anything_is_copied(store: LayoutStore, target: LayoutStore) -> None:
    index, _entry = make_image(store)
    with pytest.raises(BuildError, match="no `linux/s390x`") as caught:
        copy_image(store, target, index, platforms=[AMD64, Platform("linux", "s390x")])
    assert caught.value.hint == "it has `linux/amd64`, `linux/arm64`"
    assert target.stored_digests() == set()


def test_referrers_come_along_when_asked_for(store: LayoutStore, target: LayoutStore) -> None:
    index, _entry = make_image(store)
    note = add_artifact(store, index)
    of_note = add_artifact(store, note)
    copy_image(store, target, index, reference=NAME)
    assert target.referrers(index.digest) == []
    copy_image(store, target, index, reference=NAME, referrers=True)
    assert [referrer.digest for referrer in target.referrers(index.digest)] == [note.digest]
    assert [referrer.digest for referrer in target.referrers(note.digest)] == [of_note.digest]
    assert layout_defects(target) == []


def test_a_failure_leaves_no_name(store: LayoutStore, target: LayoutStore) -> None:
    index, entry = make_image(store)
    broken = entry.platforms["linux/amd64"].layers[1].digest
    with pytest.raises(HostError, match="the disk broke"):
        copy_image(store, RecordingSink(target, fail_on=broken), index, reference=NAME, options=CopyOptions(jobs=2))
    assert target.read_index().manifests == []
    assert not target.has_blob(index)


def test_a_damaged_blob_is_not_copied(store: LayoutStore, target: LayoutStore) -> None:
    index, entry = make_image(store)
    layer = entry.platforms["linux/arm64"].layers[1]
    path = store.blob_path(layer.digest)
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(IntegrityError, match=layer.digest):
        copy_image(store, target, index, reference=NAME)
    assert target.read_index().manifests == []


def test_an_index_in_an_index_is_copied_and_narrowed_in_all_depths(store: LayoutStore, target: LayoutStore) -> None:
    inner, entry = make_image(store)
    alone, _results = put_image(store, [{"own": b"x"}], platform="linux/s390x")
    outer = put_index(store, [inner, put_index(store, [alone]), inner])
    assert copy_image(store, target, outer, reference=NAME).digest == outer.digest
    assert validate_layout(target, target.read_index()).findings == ()
    made = copy_image(store, target, outer, platforms=[parse_platform("linux/arm64")], reference=NAME)
    [kept] = {child.digest: child for child in target.read_manifest(made).index.manifests}.values()
    [child] = target.read_manifest(kept).index.manifests
    assert child.digest == entry.platforms["linux/arm64"].digest
    with pytest.raises(BuildError, match="has no `linux/ppc64le`"):
        read_closure(store, outer, platforms=[parse_platform("linux/ppc64le")])


def test_indexes_nest_as_deep_as_is_allowed_and_no_deeper(store: LayoutStore) -> None:
    top, _entry = make_image(store)
    for _depth in range(MAX_NESTED):
        top = put_index(store, [top])
    assert len(read_closure(store, top).manifests) == 2 + 1 + MAX_NESTED
    assert len(flat_index(store, store.read_manifest(top).index).manifests) == 2
    top = put_index(store, [top])
    for read in (read_closure, lambda source, one: flat_index(source, source.read_manifest(one).index)):
        with pytest.raises(IntegrityError, match=f"more than {MAX_NESTED} deep"):
            read(store, top)


def test_a_nested_index_states_the_platform_of_what_states_none(store: LayoutStore) -> None:
    child, _results = put_image(store, [{"own": b"x"}])
    inner = put_index(store, [child.annotated(platform=None)]).annotated(platform=child.platform)
    [found] = flat_index(store, Index(schema_version=2, manifests=[inner])).manifests
    assert (found.digest, found.platform) == (child.digest, child.platform)


def test_a_foreign_layer_is_copied_where_it_is_and_named_where_it_is_not(
    store: LayoutStore, target: LayoutStore
) -> None:
    image, results = put_image(store, [{"own": b"x"}], kind="gzip")
    manifest = store.read_manifest(image).manifest
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    layer = results[0].descriptor.model_copy(update={"media_type": kind, "urls": ["https://go.example/layer"]})
    foreign = store.put_bytes(canonical_json(manifest.model_copy(update={"layers": [layer]})), IMAGE_MANIFEST)
    copy_image(store, target, foreign, reference=NAME)
    assert validate_layout(target, target.read_index()).findings == ()
    target.remove_blob(layer.digest)
    store.remove_blob(layer.digest)
    with pytest.raises(IntegrityError, match=layer.digest) as caught:
        copy_image(store, target, foreign, reference=NAME)
    assert "is a foreign layer" in str(caught.value.hint) and "https://go.example/layer" in str(caught.value.hint)


def test_results_come_in_order_and_the_first_failure_stops_the_rest() -> None:
    assert parallel_map(lambda number: number * 2, range(50), jobs=7) == [number * 2 for number in range(50)]
    begun: list[int] = []
    stop = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        if stop.wait(timeout=0.02):
            raise Cancelled

    with pytest.raises(ValueError, match="three"):
        parallel_map(work, range(1000), jobs=4, cancelled=stop)
    assert len(begun) < 100


# -- archives -----------------------------------------------------------------------------------------------------


def test_an_archive_is_read_in_place(store: LayoutStore, target: LayoutStore, tmp_path: Path) -> None:
    index, _entry = make_image(store)
    written = write_oci_archive(store, shipped(store, index), tmp_path / "image.tar")
    assert written.path.stat().st_size == written.size_bytes
    again = write_oci_archive(store, shipped(store, index), tmp_path / "again.tar")
    assert again.digest == written.digest
    source = ArchiveSource(written.path)
    assert source.resolve(NAME).digest == source.resolve("").digest == index.digest
    copy_image(source, target, source.resolve(NAME), reference=NAME)
    assert target.stored_digests() == store.stored_digests()
    assert image_defects(source, index, subject="image") == []
    with pytest.raises(ConfigurationError, match="holds nothing under `other`"):
        source.resolve("other")


def test_an_archive_is_in_streaming_order_and_has_dockers_file(store: LayoutStore, tmp_path: Path) -> None:
    index, entry = make_image(store)
    write_oci_archive(store, shipped(store, index), tmp_path / "image.tar", docker_names=["short:1"])
    with tarfile.open(tmp_path / "image.tar") as tar:
        members = tar.getmembers()
        stream = tar.extractfile("manifest.json")
        assert stream is not None
        docker = json.load(stream)
    names = [member.name for member in members]
    assert names[:5] == ["oci-layout", "index.json", "manifest.json", "blobs", "blobs/sha256"]
    assert names[5] == f"blobs/sha256/{index.digest[7:]}"
    assert all((m.mtime, m.uid, m.gid, m.pax_headers) == (0, 0, 0, {}) for m in members)
    assert all(m.isreg() != m.name.endswith(("blobs", "sha256")) for m in members)
    amd64 = entry.platforms["linux/amd64"]
    assert docker == [
        {
            "Config": f"blobs/sha256/{amd64.config_digest[7:]}",
            "Layers": [f"blobs/sha256/{layer.digest[7:]}" for layer in amd64.layers],
            "RepoTags": ["short:1"],
        }
    ]
    layers = {layer.digest[7:] for platform in entry.platforms.values() for layer in platform.layers}
    assert {name[13:] for name in names[-3:]} == layers


def test_a_failed_archive_leaves_the_old_one(store: LayoutStore, tmp_path: Path) -> None:
    index, entry = make_image(store)
    path = tmp_path / "image.tar"
    path.write_bytes(b"old")
    store.remove_blob(entry.platforms["linux/amd64"].layers[0].digest)
    with pytest.raises(IntegrityError, match="is missing"):
        write_oci_archive(store, shipped(store, index), path)
    assert [child.name for child in tmp_path.iterdir() if child.is_file()] == ["image.tar"]
    assert path.read_bytes() == b"old"


def hostile_tar(entries: list[tuple[str, bytes, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, data in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(data), "oci-layout"
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


LAYOUT = ("oci-layout", tarfile.REGTYPE, b'{"imageLayoutVersion":"1.0.0"}')
INDEX = ("index.json", tarfile.REGTYPE, b'{"schemaVersion":2,"manifests":[]}')


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([LAYOUT, INDEX, LAYOUT], "repeated name"),
        ([LAYOUT, INDEX, ("blobs/../../x", tarfile.REGTYPE, b"")], "unsafe"),
        ([LAYOUT, INDEX, ("/etc/passwd", tarfile.REGTYPE, b"")], "unsafe"),
        ([LAYOUT, INDEX, ("blobs/sha256/x", tarfile.SYMTYPE, b"")], "neither a file nor a folder"),
        ([LAYOUT, INDEX, ("x", tarfile.LNKTYPE, b"")], "neither a file nor a folder"),
        ([LAYOUT, INDEX, ("x", tarfile.CHRTYPE, b"")], "neither a file nor a folder"),
        ([LAYOUT], "has no `index.json`"),
        ([INDEX], "has no `oci-layout`"),
        ([("oci-layout", tarfile.REGTYPE, b"[]"), INDEX], "imageLayoutVersion"),
        ([("oci-layout", tarfile.REGTYPE, b"{"), INDEX], "not valid JSON"),
        ([LAYOUT, ("index.json", tarfile.REGTYPE, b"{")], "index.json"),
        ([("oci-layout", tarfile.REGTYPE, b" " * 5000), INDEX], "limit"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, entries: list[tuple[str, bytes, bytes]], message: str) -> None:
    path = tmp_path / "hostile.tar"
    path.write_bytes(hostile_tar(entries))
    with pytest.raises(IntegrityError, match=message):
        ArchiveSource(path)


def test_a_compressed_truncated_or_missing_archive_is_refused(store: LayoutStore, tmp_path: Path) -> None:
    index, _entry = make_image(store)
    path = tmp_path / "image.tar"
    whole = write_oci_archive(store, shipped(store, index), path).path.read_bytes()
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(IntegrityError) as caught:
        ArchiveSource(path)
    assert "gunzip" in (caught.value.hint or "")
    for end in (0, 700, len(whole) // 2, len(whole) - 1024):
        path.write_bytes(whole[:end])
        with pytest.raises(IntegrityError):
            ArchiveSource(path)
    with pytest.raises(HostError):
        ArchiveSource(tmp_path / "missing.tar")


def test_a_damaged_archive_is_found_when_the_blob_is_read(store: LayoutStore, tmp_path: Path) -> None:
    index, entry = make_image(store)
    path = write_oci_archive(store, shipped(store, index), tmp_path / "image.tar").path
    layer = entry.platforms["linux/amd64"].layers[0]
    content = store.blob_path(layer.digest).read_bytes()
    path.write_bytes(path.read_bytes().replace(content, content[::-1]))
    findings = image_defects(ArchiveSource(path), index, subject="image")
    assert [finding.digest for finding in findings] == [layer.digest] * 2


# -- validation ---------------------------------------------------------------------------------------------------


def test_a_sound_layout_has_no_findings(store: LayoutStore) -> None:
    index, _entry = make_image(store)
    note = add_artifact(store, index)
    store.write_index([index, *store.referrers(index.digest)])
    assert note.digest in {entry.digest for entry in store.read_index().manifests}
    assert layout_defects(store) == []


def wrong_platform(store: LayoutStore) -> Descriptor:
    _child, results = put_image(store, [{"a": b"1"}])
    return put_index(store, [put_manifest(store, results, platform="linux/amd64", config_platform="linux/arm64")])


def missing_diff_id(store: LayoutStore) -> Descriptor:
    _child, results = put_image(store, [{"a": b"1"}, {"b": b"2"}])
    return put_manifest(store, results, diff_ids=[results[0].diff_id])


def mixed_compressions(store: LayoutStore) -> Descriptor:
    _one, zstd = put_image(store, [{"a": b"1"}])
    _two, gzipped = put_image(store, [{"b": b"2"}], kind="gzip")
    return put_manifest(store, [*zstd, *gzipped])


def unknown_layer(store: LayoutStore) -> Descriptor:
    child, _results = put_image(store, [{"a": b"1"}])
    document = json.loads(store.read_bytes(child))
    document["layers"][0]["mediaType"] = "application/x-strange"
    return store.put_bytes(canonical_json(document), IMAGE_MANIFEST)


def no_platform(store: LayoutStore) -> Descriptor:
    child, _results = put_image(store, [{"a": b"1"}])
    return put_index(store, [child.annotated(platform=None)])


def twice(store: LayoutStore) -> Descriptor:
    child, _results = put_image(store, [{"a": b"1"}])
    return put_index(store, [child, child])


def nested(store: LayoutStore) -> Descriptor:
    index, _entry = make_image(store)
    return put_index(store, [index])


def no_config(store: LayoutStore) -> Descriptor:
    child, _results = put_image(store, [{"a": b"1"}])
    store.remove_blob(parse_manifest(store.read_bytes(child)).config.digest)
    return child


def config_is_no_config(store: LayoutStore) -> Descriptor:
    child, _results = put_image(store, [{"a": b"1"}])
    document = json.loads(store.read_bytes(child))
    fake = store.put_bytes(b"[]", document["config"]["mediaType"])
    document["config"].update(digest=fake.digest, size=fake.size)
    return store.put_bytes(canonical_json(document), IMAGE_MANIFEST)


def lying_size(store: LayoutStore) -> Descriptor:
    child, _results = put_image(store, [{"a": b"1"}])
    document = json.loads(store.read_bytes(child))
    document["layers"][0]["size"] += 1
    return store.put_bytes(canonical_json(document), IMAGE_MANIFEST)


def index_is_no_index(store: LayoutStore) -> Descriptor:
    return store.put_bytes(b"{}", IMAGE_INDEX)


def manifest_is_a_blob(store: LayoutStore) -> Descriptor:
    return store.put_bytes(b"x", LAYER_TAR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong_platform, "platform `linux/amd64`: its config says platform `linux/arm64`"),
        (missing_diff_id, "has 2 layers, its config lists 1 diff_ids"),
        (mixed_compressions, "mixes compressions in its layers: gzip, zstd"),
        (unknown_layer, "has layers of unknown type `application/x-strange`"),
        (no_platform, "is listed without a platform"),
        (twice, "is listed twice"),
        (nested, "is nested in an index"),
        (no_config, "config: blob `sha256:"),
        (config_is_no_config, "is not valid"),
        (lying_size, "bytes, expected"),
        (index_is_no_index, "is not valid"),
        (manifest_is_a_blob, "unknown media type"),
    ],
)
def test_an_unsound_image_is_found(store: LayoutStore, make: Callable[[LayoutStore], Descriptor], message: str) -> None:
    findings = [str(finding) for finding in image_defects(store, make(store), subject="image `x`")]
    assert any(finding.startswith("image `x`") and message in finding for finding in findings), findings


def test_what_nothing_names_is_found(store: LayoutStore) -> None:
    index, _entry = make_image(store)
    store.write_index([index])
    stray = store.put_bytes(b"stray", LAYER_TAR)
    assert [finding.digest for finding in layout_defects(store)] == [stray.digest]


def test_any_flipped_byte_of_any_blob_is_found(store: LayoutStore) -> None:
    index, _entry = make_image(store)
    store.write_index([index])
    for digest in sorted(store.stored_digests()):
        path = store.blob_path(digest)
        good = path.read_bytes()
        for position in (0, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[position] ^= 0x20
            path.write_bytes(bad)
            try:
                found = {finding.digest for finding in layout_defects(store)}
            except AirferryError as error:
                pytest.fail(f"raised instead of reported: {error}")
            assert digest in found
        path.write_bytes(good)
    assert layout_defects(store) == []
