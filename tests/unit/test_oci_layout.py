"""The layout store: round trips, verified reads, atomic writes, hostile folders."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.errors import ConfigurationError, HostError, IntegrityError
from airferry.host import files
from airferry.host.canonical import canonical_json
from airferry.oci import streams
from airferry.oci.documents import IMAGE_MANIFEST, LAYER_TAR, Descriptor, Manifest, descriptor_of
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Stored
from examples import examples
from oci_images import put_image


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "layout")


def leftovers(store: LayoutStore) -> list[str]:
    return [path.name for path in (store.path / "blobs" / "sha256").iterdir() if path.name.startswith(".")]


@given(data=st.binary(max_size=5000))
@examples(30)
def test_what_is_put_is_what_is_read(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LayoutStore.create(Path(folder))
        descriptor = store.put_bytes(data, LAYER_TAR)
        store.put_blob(descriptor, io.BytesIO(b"not read: the blob is there"))
        assert store.read_bytes(descriptor) == data
        assert store.stored_digests() == {descriptor.digest}


@given(data=st.binary(min_size=1, max_size=300), wrong=st.binary(max_size=300))
@examples(50)
def test_a_wrong_stream_never_becomes_a_blob(data: bytes, wrong: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LayoutStore.create(Path(folder))
        descriptor = descriptor_of(data, LAYER_TAR)
        if wrong == data:
            return
        with pytest.raises(IntegrityError):
            store.put_blob(descriptor, io.BytesIO(wrong))
        assert not store.has_blob(descriptor)
        assert list((Path(folder) / "blobs" / "sha256").iterdir()) == []


def test_a_large_blob_is_on_its_way_to_disk_before_it_is_whole(
    store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[int, int]] = []
    monkeypatch.setattr(streams, "WRITEBACK_BYTES", 1000)
    monkeypatch.setattr(os, "posix_fadvise", lambda _handle, start, length, _advice: parts.append((start, length)))
    blocks = [bytes([number]) * 400 for number in range(7)]
    with store.new_blob() as writer:
        for block in blocks:
            writer.write(block)
        assert parts == [(0, 1200), (1200, 1200)]
        assert writer.path.stat().st_size >= 2400, "what is on its way is not in a buffer of this process"
        digest, size = writer.commit()
    assert store.read_bytes(Descriptor(media_type=LAYER_TAR, digest=digest, size=size)) == b"".join(blocks)


def test_an_empty_blob_can_be_put_and_read(store: LayoutStore) -> None:
    descriptor = store.put_bytes(b"", LAYER_TAR)
    assert store.read_bytes(descriptor) == b""
    with pytest.raises(IntegrityError, match="longer"):
        LayoutStore.create(store.path.parent / "other").put_blob(descriptor, io.BytesIO(b"x"))


def test_a_flipped_bit_is_found_when_the_blob_is_read(store: LayoutStore) -> None:
    descriptor = store.put_bytes(b"0123456789" * 100, LAYER_TAR)
    path = store.blob_path(descriptor.digest)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="has digest"), store.open_blob(descriptor) as stream:
        while stream.read(64):
            pass


@pytest.mark.parametrize("change", ["missing", "short", "link", "fifo", "folder"])
def test_a_blob_that_is_no_whole_regular_file_is_refused(store: LayoutStore, tmp_path: Path, change: str) -> None:
    descriptor = store.put_bytes(b"content", LAYER_TAR)
    path = store.blob_path(descriptor.digest)
    path.unlink()
    if change == "short":
        path.write_bytes(b"cont")
    elif change == "link":
        (tmp_path / "outside").write_bytes(b"content")
        path.symlink_to(tmp_path / "outside")
    elif change == "fifo":
        os.mkfifo(path)
    elif change == "folder":
        path.mkdir()
    assert not store.has_blob(descriptor)
    with pytest.raises(IntegrityError):
        store.read_bytes(descriptor)


def test_documents_are_read_up_to_a_limit(store: LayoutStore) -> None:
    descriptor = store.put_bytes(b"x" * 1000, LAYER_TAR)
    with pytest.raises(IntegrityError, match="limit of 999"):
        store.read_bytes(descriptor, limit_bytes=999)


def test_a_writer_without_commit_leaves_nothing(store: LayoutStore) -> None:
    with pytest.raises(RuntimeError), store.new_blob() as writer:
        writer.write(b"half")
        raise RuntimeError
    assert leftovers(store) == []
    assert store.stored_digests() == set()


def test_a_file_is_linked_in_and_checked(store: LayoutStore, tmp_path: Path) -> None:
    source = tmp_path / "cached"
    source.write_bytes(b"cached layer")
    descriptor = descriptor_of(b"cached layer", LAYER_TAR)
    store.link_blob(source, descriptor)
    assert store.read_bytes(descriptor) == b"cached layer"
    assert store.blob_path(descriptor.digest).stat().st_ino == source.stat().st_ino
    other = descriptor_of(b"another layer", LAYER_TAR)
    with pytest.raises(IntegrityError):
        store.link_blob(source, other)
    assert not store.has_blob(other)
    assert leftovers(store) == []


def test_a_link_falls_back_to_a_copy_between_file_systems(
    store: LayoutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    source = tmp_path / "cached"
    source.write_bytes(b"cached layer")
    descriptor = descriptor_of(b"cached layer", LAYER_TAR)
    monkeypatch.setattr(os, "link", refuse)
    store.link_blob(source, descriptor)
    assert store.read_bytes(descriptor) == b"cached layer"
    assert store.blob_path(descriptor.digest).stat().st_ino != source.stat().st_ino
    assert leftovers(store) == []


def test_a_read_only_store_refuses_to_write(store: LayoutStore) -> None:
    reader = LayoutStore.open(store.path, read_only=True)
    with pytest.raises(HostError, match="reading only"):
        reader.put_bytes(b"x", LAYER_TAR)
    with pytest.raises(HostError, match="reading only"):
        reader.write_index([])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"imageLayoutVersion":"1.1.0"}', b"{}", b"[" * 4000, b" " * 5000]
)
def test_another_layout_version_is_refused(store: LayoutStore, content: bytes) -> None:
    (store.path / "oci-layout").write_bytes(content)
    with pytest.raises(IntegrityError):
        LayoutStore.open(store.path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"schemaVersion":2}', b'{"schemaVersion":2,"manifests":[1]}'])
def test_a_damaged_index_is_refused(store: LayoutStore, content: bytes) -> None:
    (store.path / "index.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"index\.json"):
        store.read_index()


def test_create_keeps_what_is_there(store: LayoutStore) -> None:
    descriptor, _layers = put_image(store, [{"a": b"1"}])
    store.put_manifest(store.read_manifest(descriptor), reference="registry.example/a:1")
    again = LayoutStore.create(store.path)
    assert again.resolve("registry.example/a:1").digest == descriptor.digest


def test_names_are_replaced_sorted_and_resolved(store: LayoutStore) -> None:
    first, _layers = put_image(store, [{"a": b"1"}])
    second, _layers = put_image(store, [{"a": b"2"}])
    for reference, descriptor in (("b.example/x:1", first), ("a.example/x:1", first), ("b.example/x:1", second)):
        store.put_manifest(store.read_manifest(descriptor), reference=reference)
    entries = store.read_index().manifests
    names = [(entry.annotations or {})["org.opencontainers.image.ref.name"] for entry in entries]
    assert names == ["a.example/x:1", "b.example/x:1"]
    assert all(
        (e.annotations or {})["io.containerd.image.name"] == name for e, name in zip(entries, names, strict=True)
    )
    assert store.resolve("b.example/x:1").digest == second.digest
    assert store.resolve(first.digest).digest == first.digest
    with pytest.raises(ConfigurationError) as caught:
        store.resolve("c.example/x:1")
    assert caught.value.hint == "it holds `a.example/x:1`, `b.example/x:1`"
    with pytest.raises(ConfigurationError, match="holds 2"):
        store.resolve("")


def test_an_only_image_needs_no_name(store: LayoutStore) -> None:
    descriptor, _layers = put_image(store, [{"a": b"1"}])
    store.write_index([descriptor])
    assert store.resolve("").digest == descriptor.digest


def test_referrers_are_found_by_either_mark(store: LayoutStore) -> None:
    image, _layers = put_image(store, [{"a": b"1"}])
    config = store.put_bytes(b"{}", "application/vnd.oci.empty.v1+json")

    def artifact(kind: str) -> Descriptor:
        manifest = Manifest(
            schema_version=2,
            media_type=IMAGE_MANIFEST,
            artifact_type=kind,
            config=config,
            layers=[config],
            subject=Descriptor(media_type=image.media_type, digest=image.digest, size=image.size),
        )
        data = canonical_json(manifest)
        return descriptor_of(data, IMAGE_MANIFEST) if store.put_bytes(data, IMAGE_MANIFEST) else image

    by_field, by_annotation = artifact("a/field"), artifact("a/annotation")
    store.write_index([image, by_field])
    store.put_manifest(store.read_manifest(by_annotation))
    entry = next(entry for entry in store.read_index().manifests if entry.digest == by_annotation.digest)
    assert entry.annotations == {"io.containerd.manifest.subject": image.digest}
    assert entry.artifact_type == "a/annotation"
    found = [referrer.digest for referrer in store.referrers(image.digest)]
    assert found == sorted([by_field.digest, by_annotation.digest])
    assert store.referrers(by_field.digest) == []


def test_put_manifest_checks_the_bytes(store: LayoutStore) -> None:
    descriptor = descriptor_of(b"one", IMAGE_MANIFEST)
    with pytest.raises(IntegrityError):
        store.put_manifest(Stored(descriptor, b"two"), reference="a.example/x:1")
    assert store.read_index().manifests == []


def test_a_full_disk_is_a_host_error_with_a_hint(store: LayoutStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError) as caught:
        store.put_bytes(b"x", LAYER_TAR)
    assert "free up space" in (caught.value.hint or "")
    assert leftovers(store) == []


def test_stale_temporaries_go(store: LayoutStore) -> None:
    (store.path / "blobs" / "sha256" / f"{files.TEMPORARY_PREFIX}dead").write_bytes(b"x")
    assert store.remove_stale_temporaries() == 1
    assert leftovers(store) == []
