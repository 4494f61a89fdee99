"""What is said to be on disk is there: data before its name, then the name. The system calls are recorded, in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.bundle.receipt import write_receipt
from airferry.errors import IntegrityError
from airferry.host import files
from airferry.host.journal import Journal
from airferry.oci.archive import write_oci_archive
from airferry.oci.copy import image_shipments
from airferry.oci.documents import LAYER_TAR, descriptor_of
from airferry.oci.layout import LayoutStore
from oci_images import make_bundle, make_image
from recorded_disk import Disk
from travelling_catalogue import DIGEST, receipt_of


def test_a_file_of_ours(disk: Disk, tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a" / "file", b"x")
    files.write_text(tmp_path / "a" / "text", "x")
    assert disk.names() == {"file", "text"}


def test_blobs_and_the_index_of_a_layout(disk: Disk, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    small = store.put_bytes(b"small", LAYER_TAR)
    with store.new_blob() as writer:
        writer.write(b"larger")
        large, _size = writer.commit()
    source = tmp_path / "cached"
    source.write_bytes(b"linked")
    linked = descriptor_of(b"linked", LAYER_TAR)
    store.link_blob(source, linked)
    verified = tmp_path / "verified"
    verified.write_bytes(b"verified")
    store.link_blob(verified, descriptor_of(b"verified", LAYER_TAR), verified=True)
    store.write_index([small])
    blobs = {descriptor_of(data, LAYER_TAR).digest[7:] for data in (b"small", b"larger", b"linked", b"verified")}
    assert large[7:] in blobs
    assert disk.names() == {*blobs, "index.json", "oci-layout"}


def test_a_bundle_its_archive_the_receipt_and_a_journal(disk: Disk, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    other = LayoutStore.create(tmp_path / "other")
    index, _entry = make_image(other)
    write_oci_archive(other, image_shipments(other, index, reference="registry.example/x:1"), tmp_path / "image.tar")
    write_receipt(receipt_of(DIGEST), tmp_path / "receipt.yaml")
    Journal(tmp_path / "journal.yaml").record("build", {"a": 1}, {"b": 2})
    assert disk.names() >= {"index.json", "image.tar", "receipt.yaml", "journal.yaml"}


def test_an_equal_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"same")
    before = path.stat()
    files.write_bytes(path, b"same")
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns
    files.write_bytes(path, b"else")
    assert path.read_bytes() == b"else" and path.stat().st_ino != before.st_ino


@pytest.mark.parametrize("content", [b"cached lAyer", b"cached layer!", b""])
def test_a_file_that_is_not_the_blob_is_not_linked(content: bytes, tmp_path: Path) -> None:
    """The first one has the right length: only its hash tells."""
    store = LayoutStore.create(tmp_path / "layout")
    source = tmp_path / "cached"
    source.write_bytes(content)
    wanted = descriptor_of(b"cached layer", LAYER_TAR)
    with pytest.raises(IntegrityError):
        store.link_blob(source, wanted)
    assert not store.has_blob(wanted) and store.stored_digests() == set()
