"""Readers that store nothing: one that verifies what passes, one that only measures it, and one over blocks.

Also what a writer of large files tells the kernel meanwhile.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from airferry.errors import HostError, IntegrityError
from airferry.host.progress import MIB
from airferry.oci.documents import Descriptor

WRITEBACK_BYTES = 32 * MIB


class DamagedBlob(IntegrityError):
    """A blob is not what its descriptor says: it has other bytes, fewer or more."""


class UnreadableBlob(HostError):
    """The medium does not give a blob."""


def begin_writeback(stream: IO[bytes], start: int, end: int) -> int:
    """Let the kernel begin to write a part of a file to disk, so that fsync has little left to wait for.

    Does nothing while the part is small. Returns where the next part begins.
    """
    if end - start < WRITEBACK_BYTES:
        return start
    stream.flush()
    with suppress(OSError):
        os.posix_fadvise(stream.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)
    return end


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes of a file that the sender leaves to the kernel, and then checks."""

    stream: IO[bytes]
    offset: int
    length: int
    digest: str

    def __len__(self) -> int:
        return self.length

    @property
    def what(self) -> str:
        """What the file holds, for errors."""
        return f"blob `{self.digest}`"

    def check(self, sent: int) -> None:
        """Refuse a file that ended before the slice did.

        Raises:
            DamagedBlob: fewer bytes were there than the slice has.
        """
        if sent != self.length:
            raise DamagedBlob(f"{self.what} is truncated: it ends at {self.offset + sent} bytes", digest=self.digest)


class SizedReader(io.RawIOBase):
    """A stream over a blob that yields its declared size, no more and no less; for readers that hash it themselves.

    `on_block` gets the length of each block that passes; what it raises ends the reading.
    """

    on_block: Callable[[int], None] | None = None

    def __init__(self, stream: IO[bytes], descriptor: Descriptor, *, what: str | None = None) -> None:
        super().__init__()
        self.descriptor = descriptor
        self._stream = stream
        self._what = what or f"blob `{descriptor.digest}`"
        self._left = descriptor.size
        self._checked = False

    def readable(self) -> bool:
        """Say that the stream can be read."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, or all that is left.

        Raises:
            DamagedBlob: the stream is shorter or longer than declared, or not the blob where that is looked at.
            UnreadableBlob: the medium cannot be read.
        """
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(MIB), b""))
        if self._left == 0:
            self._end()
            return b""
        if size == 0:
            return b""
        block = self._read_source(min(size, self._left))
        if not block:
            got = self.descriptor.size - self._left
            raise DamagedBlob(
                f"{self._what} is truncated: {got} bytes, expected {self.descriptor.size}",
                digest=self.descriptor.digest,
            )
        self._see(block)
        self._left -= len(block)
        if self.on_block is not None:
            self.on_block(len(block))
        if self._left == 0:
            self._end()
        self._hand_on(block)
        return block

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer with up to its length of bytes and return how many there are."""
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def slices(self, size: int) -> Iterator[bytes | FileSlice]:
        """Yield the next `size` bytes in blocks: slices, if this is over a file and looks at nothing; else the bytes.

        Each block counts as passed when the one behind it is asked for.
        """
        sliced = type(self) is SizedReader and isinstance(self._stream, io.FileIO)
        while size:
            length = min(size, MIB)
            block: bytes | FileSlice
            if sliced and length <= self._left:
                offset = self.descriptor.size - self._left
                block = FileSlice(self._stream, offset, length, self.descriptor.digest)
                yield block
                self._left -= length
                if self.on_block is not None:
                    self.on_block(length)
                self._stream.seek(offset + length)
            else:
                block = self.read(length)
                if not block:
                    return
                length = len(block)
                yield block
            size -= length
        if self._left == 0:
            self._end()

    def _read_source(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as error:
            raise UnreadableBlob(
                f"cannot read {self._what}: {error.strerror or error}",
                hint="the disk or medium may be damaged: copy it again from another medium",
                digest=self.descriptor.digest,
            ) from error

    def _see(self, block: bytes) -> None:
        """Take note of a block before it is handed out."""

    def _hand_on(self, block: bytes) -> None:
        """Take note of a block that is right as far as that can be known by now."""

    def _end(self) -> None:
        """Check, once, that nothing follows the last declared byte."""
        if self._checked:
            return
        if self._read_source(1):
            raise DamagedBlob(
                f"{self._what} is longer than the declared {self.descriptor.size} bytes", digest=self.descriptor.digest
            )
        self._check()
        self._checked = True

    def _check(self) -> None:
        """Check what was seen."""


class VerifyingReader(SizedReader):
    """A stream over a blob that never yields more than the declared size and checks the digest at its end.

    The check runs when the last declared byte is read, before that byte is handed out, so a caller that read the
    whole blob without an error holds the right bytes.
    """

    def __init__(self, stream: IO[bytes], descriptor: Descriptor, *, what: str | None = None) -> None:
        super().__init__(stream, descriptor, what=what)
        self._hash = hashlib.sha256()

    def _see(self, block: bytes) -> None:
        self._hash.update(block)

    def _check(self) -> None:
        observed = "sha256:" + self._hash.hexdigest()
        if observed != self.descriptor.digest:
            raise DamagedBlob(
                f"{self._what} has digest `{observed}`, expected `{self.descriptor.digest}`",
                digest=self.descriptor.digest,
                observed=observed,
            )


class HashedBefore(VerifyingReader):
    """A stream over a blob that comes out of a reader that has hashed it. Checks the size, and hashes nothing again.

    Only for one who gets the last block from that reader, which hands it out when the digest is right.
    """

    def _see(self, block: bytes) -> None:
        """Leave the hashing to the reader before."""

    def _check(self) -> None:
        """Leave the check to the reader before."""


class BlockStream:
    """An iterator of blocks as a stream that hands whole blocks on, and others as slices, without copying more."""

    def __init__(self, source: Iterator[bytes]) -> None:
        """Read from blocks, none of which is empty."""
        self._source = source
        self._block = b""
        self._position = 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, and none at the end."""
        position = self._position
        if position == len(self._block):
            self._block = next(self._source, b"")
            position = 0
        self._position = position + size if position + size < len(self._block) else len(self._block)
        return self._block[position : self._position]

    def seek(self, offset: int, whence: int) -> None:
        """Pass over bytes without copying them: forwards from here only, and to the end at most."""
        assert whence == io.SEEK_CUR
        while offset > (left := len(self._block) - self._position):
            offset -= left
            self._position = 0
            self._block = next(self._source, b"")
            if not self._block:
                return
        self._position += offset


class BlockReader(io.RawIOBase):
    """An iterator of blocks as a raw stream, for what wants to read by size."""

    def __init__(self, source: Iterator[bytes]) -> None:
        super().__init__()
        self._source = source
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say that the stream can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as the next block goes and return how many bytes there are."""
        while not self._rest:
            block = next(self._source, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def verifying(
    stream: IO[bytes],
    descriptor: Descriptor,
    *,
    what: str | None = None,
    on_block: Callable[[int], None] | None = None,
) -> IO[bytes]:
    """Return a stream over a blob that raises `IntegrityError` at its end if it is not the blob.

    A stream that verifies the same blob already is returned as it is, so that nothing is hashed twice. `on_block`,
    if given, gets the length of each block that passes.
    """
    given: object = stream
    if isinstance(given, VerifyingReader) and _same(given.descriptor, descriptor):
        reader = given
    else:
        reader = VerifyingReader(stream, descriptor, what=what)
    if on_block is not None:
        reader.on_block = on_block
    return cast(IO[bytes], reader)


def sized(stream: IO[bytes], descriptor: Descriptor, *, on_block: Callable[[int], None] | None = None) -> IO[bytes]:
    """Return a stream over a blob that yields its declared size, and hashes nothing."""
    given: object = stream
    reader = given if type(given) is SizedReader else SizedReader(stream, descriptor)
    if on_block is not None:
        reader.on_block = on_block
    return cast(IO[bytes], reader)


def _same(one: Descriptor, other: Descriptor) -> bool:
    return (one.digest, one.size) == (other.digest, other.size)
