"""What copies, archives and caches promise, where a convenient fixture would hide that they do not."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import IO, Any

import pytest

from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.manifest import describe_original, describe_platform
from airferry.config import LayoutBase
from airferry.errors import AirferryError, IntegrityError
from airferry.events import silent
from airferry.host import clock
from airferry.near.bases.fetch import BaseCache
from airferry.near.bases.layers import BaseLayers
from airferry.oci.archive import write_oci_archive
from airferry.oci.copy import copy_image, image_shipments
from airferry.oci.documents import Descriptor
from airferry.oci.layers import Compression
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform
from airferry.oci.ports import Sink, Stored
from airferry.registry.retry import RetryPolicy, retry_after_s
from oci_images import base_image, image_defects, put_image, put_index, put_manifest

AMD64 = Platform("linux", "amd64")


NAME = "registry.example/team/trainer:1.0"


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "source")


class Named(Sink):
    """A sink that notes which digests it holds at the moment when it is given a name."""

    def __init__(self, inner: LayoutStore) -> None:
        self.inner = inner
        self.held: set[str] = set()
        self.at_naming: list[set[str]] = []

    def has_blob(self, descriptor: Descriptor) -> bool:
        return self.inner.has_blob(descriptor)

    def put_blob(self, descriptor: Descriptor, stream: IO[bytes]) -> None:
        self.inner.put_blob(descriptor, stream)
        self.held.add(descriptor.digest)

    def put_manifest(self, stored: Stored, *, reference: str | None = None) -> None:
        if reference is not None:
            self.at_naming.append(set(self.held))
        self.inner.put_manifest(stored, reference=reference)
        self.held.add(stored.descriptor.digest)

    def lacks_manifest(self, stored: Stored) -> str:
        return self.inner.lacks_manifest(stored)


@pytest.mark.parametrize("referrers", [True, False])
def test_a_name_comes_after_all_that_it_stands_for_referrers_too(
    referrers: bool, store: LayoutStore, tmp_path: Path
) -> None:
    index, _results = put_image(store, [{"a": b"1"}])
    note = add_artifact(store, index)
    of_note = add_artifact(store, note)
    sink = Named(LayoutStore.create(tmp_path / "target"))
    copy_image(store, sink, index, reference=NAME, referrers=referrers)
    (held,) = sink.at_naming
    assert ({note.digest, of_note.digest} <= held) is referrers
    assert sink.inner.resolve(NAME).digest == index.digest


def add_artifact(store: LayoutStore, subject: Descriptor) -> Descriptor:
    """Store an artifact that refers to something, listed in the layout's index, so that it is found from there."""
    contents = [ArtifactFile("note.txt", "text/plain", subject.digest.encode())]
    artifact = put_artifact(store, "application/x-note", contents=contents, subject=subject)
    store.put_manifest(store.read_manifest(artifact))
    return artifact


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64"),
        (["linux/amd64", "linux/arm64"], "linux/amd64"),
        (["linux/arm64", "linux/riscv64"], "linux/arm64"),
    ],
)
def test_docker_loads_amd64_of_an_archive_wherever_it_stands(
    platforms: list[str], expected: str, store: LayoutStore, tmp_path: Path
) -> None:
    children = {name: put_image(store, [{"own": name.encode()}], platform=name) for name in platforms}
    index = put_index(store, [child for child, _results in children.values()])
    write_oci_archive(store, image_shipments(store, index, reference=NAME), tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as tar:
        stream = tar.extractfile("manifest.json")
        assert stream is not None
        (entry,) = json.load(stream)
    _child, results = children[expected]
    assert entry["Layers"] == [f"blobs/sha256/{result.descriptor.digest[7:]}" for result in results]
    assert entry["RepoTags"] == [NAME]


def test_a_layer_recompressed_at_one_level_is_not_taken_for_another(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    bases = LayoutStore.create(cache / "bases")
    words = b"".join(b"line %d of a text that compresses\n" % (number % 977) for number in range(20_000))
    descriptor, results = put_image(bases, [{"text": words}], kind="gzip")
    base = base_image(bases, descriptor, AMD64)
    bundle = LayoutStore.create(tmp_path / "bundle")

    def packed(compression: Compression) -> Descriptor:
        layers = BaseLayers(bases, cache, compression=compression, output=tmp_path)
        return layers.carry(base.layers[0], results[0].diff_id, into=bundle).descriptor

    fast, dense = packed(Compression("zstd", level=1)), packed(Compression("zstd", level=19))
    assert dense.size < fast.size, "the test's text tells the levels apart"
    assert packed(Compression("zstd", level=1)) == fast
    assert packed(Compression("zstd", level=19)) == dense
    plain = packed(Compression("zstd"))
    assert plain not in (fast, dense)
    assert packed(Compression("gzip")).media_type != plain.media_type


def test_pauses_double_up_to_a_limit_and_a_wish_below_the_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    policy = RetryPolicy(sleep=pauses.append, jitter=lambda: 1.0)
    for attempt in range(8):
        policy.pause(attempt)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    pauses.clear()
    RetryPolicy(sleep=pauses.append, jitter=lambda: 0.0).pause(1)
    policy.pause(5, asked_s=0.0)
    policy.pause(0, asked_s=119.0)
    policy.pause(0, asked_s=120.5)
    assert pauses == [0.5, 0.0, 119.0, 120.0]
    monkeypatch.setattr(clock, "now_s", lambda: 1445412480.0 - 30)
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 30.0
    assert retry_after_s({}) is None and retry_after_s({"Retry-After": "1" * 10}) is None
    assert retry_after_s({"Retry-After": "1" * 9}) == 111111111.0


DIFF_ID = "sha256:" + "d" * 64


def with_diff_ids(store: LayoutStore, change: int) -> Descriptor:
    """Store an image of two layers whose config has that many diff_ids more, or fewer."""
    _child, results = put_image(store, [{"a": b"1"}, {"b": b"2"}])
    known = [result.diff_id for result in results]
    return put_manifest(store, results, diff_ids=[*known, DIFF_ID] if change > 0 else known[:change])


@pytest.mark.parametrize("change", [1, -1])
def test_an_image_with_more_or_fewer_diff_ids_than_layers_is_refused_everywhere(
    change: int, store: LayoutStore, tmp_path: Path
) -> None:
    image = with_diff_ids(store, change)
    listed = f"has 2 layers, its config lists {2 + change} diff_ids"
    assert any(listed in str(finding) for finding in image_defects(store, image, subject="image `x`"))
    _child, results = put_image(store, [{"a": b"1"}, {"b": b"2"}])
    with pytest.raises(IntegrityError, match=f"has 2 layers, its config {2 + change} diff_ids"):
        describe_platform(store, image, layers=results)
    with pytest.raises(IntegrityError, match="differ in their layers"):
        describe_original(store, image, reference=NAME)


@pytest.mark.parametrize("change", [1, -1])
def test_a_base_with_more_or_fewer_diff_ids_than_layers_is_refused(
    change: int, store: LayoutStore, tmp_path: Path
) -> None:
    store.put_manifest(store.read_manifest(with_diff_ids(store, change)), reference="base")
    bases = BaseCache(tmp_path / "cache", open_registry=refuse, emit=silent)
    with pytest.raises(AirferryError, match=rf"has 2 layers, but its config names {2 + change}"):
        bases.bring(LayoutBase(path=store.path, written=f"oci:{store.path}"), [AMD64], locked=None)


def refuse(reference: object) -> Any:
    raise AssertionError(f"no registry is asked for {reference}")
