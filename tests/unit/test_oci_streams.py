"""Streams over blobs: not one byte more or less than declared, the right ones, and each counted once."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from airferry.errors import HostError, IntegrityError
from airferry.oci.documents import LAYER_TAR, descriptor_of
from airferry.oci.ports import BLOCK_BYTES
from airferry.oci.streams import BlockReader, BlockStream, FileSlice, SizedReader, VerifyingReader, sized, verifying

DATA = bytes(range(256)) * 5000
LAYER = descriptor_of(DATA, LAYER_TAR)
NOT_THE_BLOB = DATA[:-1] + b"\0"


def whole(stream: IO[bytes]) -> bytes:
    return stream.read()


def in_pieces(stream: IO[bytes]) -> bytes:
    return b"".join(iter(lambda: stream.read(65537), b""))


def into_a_buffer(stream: Any) -> bytes:
    buffer, found = bytearray(100_001), b""
    while count := stream.readinto(buffer):
        found += buffer[:count]
    return found


READS = [whole, in_pieces, into_a_buffer]


@pytest.mark.parametrize("make", [verifying, sized])
@pytest.mark.parametrize("read", READS)
def test_the_blob_comes_whole_and_each_byte_is_counted_once(
    read: Callable[[IO[bytes]], bytes], make: Callable[..., IO[bytes]]
) -> None:
    passed: list[int] = []
    stream = make(io.BytesIO(DATA), LAYER, on_block=passed.append)
    assert stream.readable()
    assert read(stream) == DATA and sum(passed) == len(DATA) and 0 not in passed
    assert stream.read(10) == b"" and stream.read() == b"", "and then nothing, as often as asked"
    assert sum(passed) == len(DATA)


@pytest.mark.parametrize("read", READS)
def test_a_blob_that_is_not_the_one_is_refused_with_its_last_byte(read: Callable[[IO[bytes]], bytes]) -> None:
    with pytest.raises(IntegrityError, match="has digest `sha256:") as caught:
        read(verifying(io.BytesIO(NOT_THE_BLOB), LAYER, what="the layer"))
    assert caught.value.message.startswith("the layer has digest")
    assert f"expected `{LAYER.digest}`" in caught.value.message
    assert read(sized(io.BytesIO(NOT_THE_BLOB), LAYER)) == NOT_THE_BLOB, "who measures only does not hash"


def test_the_last_byte_is_never_handed_out_unchecked() -> None:
    stream = verifying(io.BytesIO(NOT_THE_BLOB), LAYER)
    assert stream.read(len(DATA) - 1) == NOT_THE_BLOB[:-1]
    assert stream.read(0) == b""
    with pytest.raises(IntegrityError):
        stream.read(1)


@pytest.mark.parametrize("make", [verifying, sized])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA[:-1], f"is truncated: {len(DATA) - 1} bytes, expected {len(DATA)}"),
        (b"", f"is truncated: 0 bytes, expected {len(DATA)}"),
        (DATA + b"x", f"is longer than the declared {len(DATA)} bytes"),
    ],
)
def test_another_length_is_refused(
    data: bytes, message: str, read: Callable[[IO[bytes]], bytes], make: Callable[..., IO[bytes]]
) -> None:
    with pytest.raises(IntegrityError, match=f"blob `{LAYER.digest}` {message}"):
        read(make(io.BytesIO(data), LAYER))


def test_an_empty_blob_is_one() -> None:
    empty = descriptor_of(b"", LAYER_TAR)
    assert verifying(io.BytesIO(b""), empty).read() == b""
    with pytest.raises(IntegrityError, match="is longer"):
        verifying(io.BytesIO(b"x"), empty).read(1)


def test_what_the_counter_raises_ends_the_reading() -> None:
    def stop(size: int) -> None:
        raise KeyError(size)

    with pytest.raises(KeyError):
        verifying(io.BytesIO(DATA), LAYER, on_block=stop).read()


@pytest.mark.parametrize("make", [verifying, sized])
def test_a_medium_that_cannot_be_read_is_an_error_of_the_host(make: Callable[..., IO[bytes]]) -> None:
    class Bad(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(HostError, match="Input/output error") as caught:
        make(Bad(), LAYER).read()
    assert "copy it again" in (caught.value.hint or "") and LAYER.digest in caught.value.message


def test_nothing_is_hashed_twice_and_nothing_once_where_it_has_to_be() -> None:
    verified = verifying(io.BytesIO(DATA), LAYER)
    assert verifying(verified, LAYER) is verified
    assert verifying(verified, LAYER.annotated(title="x")) is verified, "annotations are not the blob"
    other = descriptor_of(b"other", LAYER_TAR)
    assert verifying(verified, other) is not verified
    longer = LAYER.model_copy(update={"size": LAYER.size + 1})
    assert verifying(verified, longer) is not verified
    measured = sized(io.BytesIO(DATA), LAYER)
    assert sized(measured, LAYER) is measured
    assert isinstance(verifying(measured, LAYER), VerifyingReader), "measured is not verified"
    assert sized(verified, LAYER) is not verified and type(sized(verified, LAYER)) is SizedReader
    passed: list[int] = []
    assert sized(measured, LAYER, on_block=passed.append).read() == DATA and sum(passed) == len(DATA)


# --- slices, which the kernel sends ---------------------------------------------------------------------------------

BIG = bytes(range(251)) * (BLOCK_BYTES // 200)
BIG_LAYER = descriptor_of(BIG, LAYER_TAR)


@pytest.fixture
def opened(tmp_path: Path) -> IO[bytes]:
    (tmp_path / "blob").write_bytes(BIG)
    return (tmp_path / "blob").open("rb", buffering=0)


def content(part: bytes | FileSlice) -> bytes:
    if isinstance(part, bytes):
        return part
    position = part.stream.tell()
    part.stream.seek(part.offset)
    data = part.stream.read(part.length)
    part.stream.seek(position)
    part.check(len(data))
    return data


def test_slices_of_a_file_are_left_to_the_kernel(opened: IO[bytes]) -> None:
    passed: list[int] = []
    with opened:
        reader = sized(opened, BIG_LAYER, on_block=passed.append)
        assert isinstance(reader, SizedReader)
        first = list(reader.slices(100))
        assert passed == [100]
        assert reader.read(50) == BIG[100:150], "bytes and slices can be mixed"
        parts = list(reader.slices(len(BIG) - 150))
        assert reader.read(1) == b""
    assert all(isinstance(part, FileSlice) for part in [*first, *parts])
    assert [(part.offset, len(part)) for part in first if isinstance(part, FileSlice)] == [(0, 100)]
    assert [len(part) for part in parts] == [BLOCK_BYTES, len(BIG) - 150 - BLOCK_BYTES]
    assert sum(passed) == len(BIG)
    with opened.__class__(opened.name) as again:
        sliced = sized(again, BIG_LAYER)
        assert isinstance(sliced, SizedReader)
        assert b"".join(content(part) for part in sliced.slices(len(BIG))) == BIG


def test_slices_count_when_the_next_is_asked_for(opened: IO[bytes]) -> None:
    passed: list[int] = []
    with opened:
        reader = sized(opened, BIG_LAYER, on_block=passed.append)
        assert isinstance(reader, SizedReader)
        parts = reader.slices(len(BIG))
        next(parts)
        assert passed == []
        next(parts)
        assert passed == [BLOCK_BYTES]


@pytest.mark.parametrize("data", [BIG, BIG[:-1] + b"\xff"])
def test_what_is_verified_or_no_file_comes_as_bytes(data: bytes, tmp_path: Path) -> None:
    plain = sized(io.BytesIO(data), BIG_LAYER)
    assert isinstance(plain, SizedReader)
    assert b"".join(part for part in plain.slices(len(BIG)) if isinstance(part, bytes)) == data
    (tmp_path / "blob").write_bytes(data)
    with (tmp_path / "blob").open("rb", buffering=0) as stream:
        reader = verifying(stream, BIG_LAYER)
        assert isinstance(reader, VerifyingReader)
        if data == BIG:
            assert b"".join(part for part in reader.slices(len(BIG) + 1) if isinstance(part, bytes)) == BIG
        else:
            with pytest.raises(IntegrityError, match="has digest"):
                list(reader.slices(len(BIG)))


def test_a_file_that_is_longer_or_ends_early_is_found_by_its_slices(opened: IO[bytes], tmp_path: Path) -> None:
    shorter = descriptor_of(BIG[:-1], LAYER_TAR)
    with opened:
        reader = sized(opened, shorter)
        assert isinstance(reader, SizedReader)
        with pytest.raises(IntegrityError, match="is longer than the declared"):
            list(reader.slices(shorter.size))
    part = FileSlice(opened, 100, 50, BIG_LAYER.digest)
    part.check(50)
    with pytest.raises(IntegrityError, match=rf"{BIG_LAYER.digest}` is truncated: it ends at 120 bytes"):
        part.check(20)


# --- blocks as streams ---------------------------------------------------------------------------------------------

BLOCKS = [b"abc", b"d", b"efghij", b"kl"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_blocks_are_read_by_size(size: int) -> None:
    stream = BlockStream(iter(BLOCKS))
    found = list(iter(lambda: stream.read(size), b""))
    assert b"".join(found) == b"abcdefghijkl" and max(map(len, found)) <= size
    assert stream.read(size) == b""
    reader = BlockReader(iter([*BLOCKS, b"", b"m"]))
    assert reader.readable()
    assert b"".join(iter(lambda: reader.read(size), b"")) == b"abcdefghijklm"


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 5, 8])
def test_bytes_are_passed_over(first: int, offset: int) -> None:
    stream = BlockStream(iter(BLOCKS))
    assert stream.read(first) == b"abcdefghijkl"[:first]
    stream.seek(offset, io.SEEK_CUR)
    assert b"".join(iter(lambda: stream.read(4), b"")) == b"abcdefghijkl"[first + offset :]


def test_no_more_is_passed_over_than_there_is() -> None:
    stream = BlockStream(iter(BLOCKS))
    stream.seek(1001, io.SEEK_CUR)
    assert stream.read(1) == b""


def test_no_more_is_read_at_once_than_was_asked_for() -> None:
    buffer = bytearray(10)
    assert VerifyingReader(io.BytesIO(DATA), LAYER).readinto(buffer) == 10 and buffer == DATA[:10]
    parts = SizedReader(io.BytesIO(BIG), BIG_LAYER).slices(len(BIG))
    assert [len(part) for part in parts] == [BLOCK_BYTES, len(BIG) - BLOCK_BYTES]
    reader = BlockReader(iter([b"a"]))
    assert [reader.read(1), reader.read(1), reader.read(1)] == [b"a", b"", b""]
