"""The layer pipeline: every compression into every other, determinism, and each way in which a layer can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import re
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from airferry.errors import IntegrityError
from airferry.events import Event, Progress
from airferry.oci import codecs
from airferry.oci.codecs import inflate
from airferry.oci.documents import DOCKER_LAYER_GZIP, LAYER_GZIP, LAYER_TAR, LAYER_ZSTD, Descriptor, descriptor_of
from airferry.oci.layers import (
    DEFAULT_LIMIT_BYTES,
    MEDIA_TYPES,
    Compression,
    LayerChecks,
    LayerResult,
    compress_layer,
    layer_kind,
    recompress_layer,
)
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import BLOCK_BYTES, blocks
from examples import examples

KINDS = ("zstd", "gzip", "none")
RANDOM = random.Random(7)
# more than a block
CONTENT = b"".join(RANDOM.randbytes(40) + b"text " * RANDOM.randrange(60) for _ in range(6500))
assert len(CONTENT) > BLOCK_BYTES
DIFF_ID = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "layout")


@pytest.fixture(params=["isal", "zlib"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read gzip as where images are built, and as where isal is not installed."""
    if request.param == "zlib":
        monkeypatch.setattr(codecs, "igzip_lib", None)


@cache
def packed(kind: str, content: bytes = CONTENT) -> bytes:
    if kind == "gzip":
        return gzip.compress(content, mtime=0)
    return zstandard.ZstdCompressor().compress(content) if kind == "zstd" else content


def unpacked(kind: str, data: bytes) -> bytes:
    """Return the content as decoders that are not ours see it."""
    if kind == "gzip":
        return gzip.decompress(data)
    if kind == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def carry(
    store: LayoutStore,
    data: bytes,
    media_type: str,
    *,
    to: Compression | None = None,
    descriptor: Descriptor | None = None,
    diff_id: str | None = DIFF_ID,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    **options: object,
) -> LayerResult:
    return recompress_layer(
        io.BytesIO(data),
        descriptor or descriptor_of(data, media_type),
        checks=LayerChecks(diff_id, limit_bytes),
        compression=to or Compression("zstd"),
        into=store,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_each_compression_goes_into_each_other(store: LayoutStore, source: str, to: str) -> None:
    data = packed(source)
    result = carry(store, data, MEDIA_TYPES[source], to=Compression(to))
    assert result.diff_id == DIFF_ID
    assert result.unpacked_bytes == len(CONTENT)
    assert result.original == descriptor_of(data, MEDIA_TYPES[source])
    assert result.descriptor.media_type == MEDIA_TYPES[to]
    assert unpacked(to, store.read_bytes(result.descriptor, limit_bytes=1 << 30)) == CONTENT
    assert store.stored_digests() == {result.descriptor.digest}


@given(data=st.binary(max_size=3000), cut=st.integers(0, 3000), to=st.sampled_from(KINDS))
@examples(40)
def test_any_content_keeps_its_diff_id(data: bytes, cut: int, to: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LayoutStore.create(Path(folder))
        members = gzip.compress(data[:cut]) + gzip.compress(data[cut:])
        expected = "sha256:" + hashlib.sha256(data).hexdigest()
        result = carry(store, members, LAYER_GZIP, to=Compression(to, threads=1), diff_id=expected)
        back = recompress_layer(
            io.BytesIO(store.read_bytes(result.descriptor)),
            result.descriptor,
            checks=LayerChecks(None),
            compression=Compression("none", threads=1),
            into=store,
        )
        assert back.diff_id == expected
        assert store.read_bytes(back.descriptor) == data


def test_what_has_the_wanted_compression_keeps_its_bytes(store: LayoutStore) -> None:
    data = packed("gzip")
    for compression in (Compression("preserve"), Compression("gzip", level=9)):
        result = carry(store, data, DOCKER_LAYER_GZIP, to=compression)
        assert result.descriptor == descriptor_of(data, LAYER_GZIP)
        assert result.diff_id == DIFF_ID


@pytest.mark.parametrize("kind", ["zstd", "gzip"])
def test_bytes_depend_on_content_and_level_alone(kind: str) -> None:
    encode = codecs.zstd_blocks if kind == "zstd" else codecs.gzip_blocks
    content = (CONTENT * 9)[: 6 * BLOCK_BYTES + 17]

    def encoded(step: int, threads: int, level: int = 3) -> str:
        cut = (content[start : start + step] for start in range(0, len(content), step))
        return hashlib.sha256(b"".join(encode(cut, level=level, threads=threads))).hexdigest()

    reference = encoded(BLOCK_BYTES, 1)
    for step, threads in ((70_001, 1), (70_001, 4), (BLOCK_BYTES, 2), (1 << 22, 2), (1 << 22, 4)):
        assert encoded(step, threads) == reference
    assert encoded(BLOCK_BYTES, 1, level=1) != reference


def test_layers_of_many_blocks_match_what_was_put(store: LayoutStore) -> None:
    content = bytes(BLOCK_BYTES * 3 + 5)
    seen = bytearray()
    for kind in KINDS:
        result = compress_layer(io.BytesIO(content), compression=Compression(kind), into=store, observers=[seen.extend])
        assert bytes(seen) == content
        seen.clear()
        assert unpacked(kind, store.read_bytes(result.descriptor, limit_bytes=1 << 30)) == content


def test_several_frames_and_skippable_ones_are_one_layer(store: LayoutStore) -> None:
    half = len(CONTENT) // 2
    skippable = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"
    checked = zstandard.ZstdCompressor(write_checksum=True)
    data = skippable + checked.compress(CONTENT[:half]) + packed("zstd", CONTENT[half:]) + skippable
    assert carry(store, data, LAYER_ZSTD, to=Compression("none")).diff_id == DIFF_ID


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_decoders_do_not_care_how_their_input_is_cut(step: int) -> None:
    content = CONTENT[:60_000]
    for kind in KINDS:
        data = packed(kind, content) + (packed(kind, content) if kind != "none" else b"")
        cut = (data[start : start + step] for start in range(0, len(data), step))
        plain = b"".join(codecs.inflate(cut, kind, what="layer"))  # type: ignore[arg-type]
        assert plain == content * (1 if kind == "none" else 2)


def damaged(data: bytes, kind: str, position: int) -> bytes:
    """Return compressed data with one bit changed."""
    spoilt = bytearray(packed(kind, data))
    spoilt[position // 8 % len(spoilt)] ^= 1 << position % 8
    return bytes(spoilt)


STREAMS = {
    "begun": lambda data, kind, _position: (
        (codecs.ZSTD_MAGIC if kind == "zstd" else codecs.GZIP_MAGIC + b"\x08") + data + b"\xff"
    ),
    "damaged": damaged,
    "damaged behind a whole one": lambda data, kind, position: packed(kind, data) + damaged(data, kind, position),
    "garbage behind it": lambda data, kind, _position: packed(kind, data) + data,
}


@given(
    form=st.sampled_from(sorted(STREAMS)),
    data=st.binary(max_size=400),
    kind=st.sampled_from(KINDS[:2]),
    position=st.integers(0, 3200),
    isal=st.booleans(),
)
@example(form="garbage behind it", data=b"", kind="zstd", position=0, isal=True)
@example(form="damaged behind a whole one", data=b"x", kind="gzip", position=0, isal=True)
@examples(300)
def test_decoders_raise_nothing_but_integrity_errors(
    form: str, data: bytes, kind: str, position: int, isal: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch, suppress(IntegrityError):
        if not isal:
            patch.setattr(codecs, "igzip_lib", None)
        for block in codecs.inflate([STREAMS[form](data, kind, position)], kind, what="layer"):  # type: ignore[arg-type]
            assert len(block) <= BLOCK_BYTES


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    ("data", "media_type", "message"),
    [
        (packed("gzip"), LAYER_ZSTD, "declared as zstd but is gzip"),
        (packed("zstd"), LAYER_GZIP, "declared as gzip but is zstd"),
        (packed("zstd"), LAYER_TAR, "declared as an uncompressed tar but is zstd"),
        (CONTENT, LAYER_GZIP, "declared as gzip but is an uncompressed tar"),
        (b"", LAYER_ZSTD, "declared as zstd but is empty"),
        (packed("gzip") + b"\0" * 20, LAYER_GZIP, "after the end of its gzip"),
        (packed("gzip") + b"\x1f", LAYER_GZIP, "after the end of its gzip"),
        (packed("zstd") + b"trailing garbage", LAYER_ZSTD, "after the end of its zstd|corrupt zstd"),
        (packed("gzip")[:-9], LAYER_GZIP, "in the middle of its gzip"),
        (packed("zstd")[:-9], LAYER_ZSTD, "in the middle of a zstd frame"),
        (packed("gzip")[:-6] + b"\0" + packed("gzip")[-5:], LAYER_GZIP, "corrupt gzip"),
        (packed("zstd")[:40] + bytes(40) + packed("zstd")[80:], LAYER_ZSTD, "corrupt zstd|zstd frame|diff_id"),
        (packed("zstd", CONTENT[:-1]), LAYER_ZSTD, "has diff_id"),
    ],
)
def test_a_wrong_layer_is_named_and_not_stored(store: LayoutStore, data: bytes, media_type: str, message: str) -> None:
    digest = descriptor_of(data, media_type).digest
    for compression in (Compression("zstd"), Compression("gzip"), Compression("preserve")):
        with pytest.raises(IntegrityError, match=message) as caught:
            carry(store, data, media_type, to=compression)
        assert digest in caught.value.message
    assert list((store.path / "blobs" / "sha256").iterdir()) == []
    assert not [
        thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon
    ]


@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_refused(store: LayoutStore, change: int) -> None:
    data = packed("gzip")
    descriptor = descriptor_of(data, LAYER_GZIP)
    with pytest.raises(IntegrityError, match=r"truncated|longer"):
        carry(store, data, LAYER_GZIP, descriptor=descriptor.annotated(size=len(data) + change))


def test_another_digest_is_refused(store: LayoutStore) -> None:
    data = packed("gzip")
    wrong = descriptor_of(data[::-1], LAYER_GZIP)
    with pytest.raises(IntegrityError, match="has digest"):
        carry(store, data, LAYER_GZIP, descriptor=wrong)
    assert store.stored_digests() == set()


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("kind", ["zstd", "gzip"])
def test_a_bomb_is_stopped_at_the_limit(store: LayoutStore, kind: str) -> None:
    bomb = packed(kind, bytes(16 * BLOCK_BYTES))
    seen: list[int] = []
    with pytest.raises(IntegrityError, match="more than the limit of 3000000 bytes"):
        carry(
            store,
            bomb,
            MEDIA_TYPES[kind],  # type: ignore[index]
            diff_id=None,
            limit_bytes=3_000_000,
            observers=[lambda block: seen.append(len(block))],
        )
    assert sum(seen) <= 3_000_000
    assert max(seen) <= BLOCK_BYTES


def test_a_failing_observer_cancels_all(store: LayoutStore) -> None:
    before = threading.active_count()

    def refuse(_block: bytes) -> None:
        raise RuntimeError("seen enough")

    with pytest.raises(RuntimeError, match="seen enough"):
        carry(store, packed("gzip"), LAYER_GZIP, observers=[refuse])
    assert threading.active_count() == before
    assert list((store.path / "blobs" / "sha256").iterdir()) == []


def test_progress_ends_at_the_total(store: LayoutStore) -> None:
    events: list[Event] = []
    data = packed("gzip")
    carry(store, data, LAYER_GZIP, emit=events.append)
    last = events[-1]
    assert isinstance(last, Progress)
    assert (last.done, last.total) == (len(data), len(data))


def test_preserve_settles_on_the_compression_of_the_base() -> None:
    preserve = Compression("preserve", threads=1)
    assert preserve.matching([DOCKER_LAYER_GZIP, LAYER_GZIP]).kind == "gzip"
    assert preserve.matching([LAYER_TAR]).kind == "none"
    assert preserve.matching([]).kind == "zstd"
    assert Compression("zstd").matching([LAYER_GZIP]).kind == "zstd"
    with pytest.raises(IntegrityError, match="gzip, zstd") as caught:
        preserve.matching([LAYER_GZIP, LAYER_ZSTD])
    assert "compression: zstd" in (caught.value.hint or "")


def test_encrypted_layers_are_refused_by_name_and_foreign_ones_are_layers() -> None:
    encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
    with pytest.raises(IntegrityError, match=re.escape(encrypted)):
        layer_kind(encrypted)
    assert layer_kind("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip") == "gzip"
    assert layer_kind("application/vnd.oci.image.layer.nondistributable.v1.tar") == "none"


def test_a_long_window_finds_what_lies_far_back_and_is_declared(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    part = random.Random(1).randbytes(1 << 20)
    far = [part, bytes(12 << 20), random.Random(2).randbytes(1 << 20), part]

    def packed(**how: Any) -> Descriptor:
        stream = (block for block in far)
        return compress_layer(stream, compression=Compression("zstd", **how), into=store).descriptor

    near, long = packed(), packed(long=True)
    assert long.size < near.size - (1 << 19), "what is repeated 13 MiB later is found"
    window = zstandard.get_frame_parameters(store.blob_path(long.digest).read_bytes()).window_size
    assert window == 1 << 27
    assert packed(long=True, threads=3) == packed(long=True, threads=1) == long
    with store.open_blob(long) as stream:
        assert b"".join(inflate(blocks(stream), "zstd", what="x")) == b"".join(far)
    keys = [Compression("zstd", level, long).to_key() for level in (None, 3, 4) for long in (False, True)]
    assert keys[0] == keys[2] and keys[1] == keys[3], "the default is level 3"
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == 4


def test_threads_that_compress_step_back_for_others_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def refuse(_which: int, who: int, niceness: int) -> None:
        asked.append((who, niceness))
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    # as under `nice`, where an ordinary user may not ask for less
    monkeypatch.setattr(os, "getpriority", lambda _which, _who: 10)
    made = []
    for steps_back in (False, True):
        store = LayoutStore.create(tmp_path / str(steps_back))
        compression = Compression("gzip", 1)
        layer = compress_layer(io.BytesIO(CONTENT), compression=compression, into=store)
        with store.open_blob(layer.descriptor) as stream:
            made.append(
                recompress_layer(
                    stream,
                    layer.descriptor,
                    checks=LayerChecks(layer.diff_id),
                    compression=Compression("zstd", steps_back=steps_back),
                    into=store,
                )
            )
        assert len(asked) == steps_back
    assert made[0] == made[1]
    assert asked[0][0] != threading.get_native_id() and asked[0][1] > 10


@pytest.mark.parametrize(
    ("level", "long", "measured_mib"),
    [(3, False, 25), (9, False, 64), (3, True, 154), (9, True, 199), (15, False, 413)],
)
def test_what_compressing_takes_is_known_about(level: int, long: bool, measured_mib: int) -> None:
    told = Compression("zstd", level, long, threads=4).memory_bytes / (1 << 20)
    assert 0.8 * measured_mib < told < 1.2 * measured_mib
    assert Compression("preserve").memory_bytes == Compression("gzip").memory_bytes == 0
