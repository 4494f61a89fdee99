"""Compression of layers: gzip and zstd, both ways, as iterators of blocks.

Decoders are strict (nothing missing, nothing behind the end, bounded output per step) and encoders deterministic:
what comes out depends on content, level and library version, not on threads, clocks or how the input was cut. gzip
is written with zlib, whose output does not depend on the CPU, in blocks on several threads, as pigz does.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, Literal, Protocol, cast

import zstandard

try:
    from isal import igzip_lib
except ModuleNotFoundError:
    # not on the far side: a package less to approve there, and only foreign assets are gzip
    igzip_lib: Any = None  # type: ignore[no-redef]

from airferry.errors import IntegrityError
from airferry.oci.ports import BLOCK_BYTES

_GZIP_ERRORS: tuple[type[Exception], ...] = (zlib.error,)
if igzip_lib is not None:
    _GZIP_ERRORS += (cast(type[Exception], igzip_lib.error),)
# of a userland of 2.4 GB, in bytes of gzip -6: level 2 95.8 %, 3 92.4 %, 5 90.1 %; 5 takes twice the time of 3
DEFAULT_ZSTD_LEVEL = 3
# half the time of level 6 for two per cent more bytes
DEFAULT_GZIP_LEVEL = 4
# what a thread of zstd works on: less than by default, for half the memory and a third of a per cent more bytes
ZSTD_JOB_BYTES = 2 << 20
ZSTD_MAX_LEVEL_IN_JOBS = 9
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC_SUFFIX = b"\x2a\x4d\x18"
# what `zstd --long` needs at most, and `zstd -d` accepts by default: a frame may ask for far more memory
LONG_WINDOW_LOG = 27
MAX_ZSTD_WINDOW_BYTES = 1 << LONG_WINDOW_LOG
# what a decoder is given of a member first, as it copies what it does not need: with 1 MiB, a megabyte of members of 20
# bytes took six seconds
GZIP_FIRST_BYTES = 4096
GZIP_WINDOW_BYTES = 32 * 1024
# without name and time, and with the operating system "unknown" (RFC 1952, section 2.3): the same bytes on any host
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
DEFLATE_END = b"\x03\x00"


def inflate(source: Iterable[bytes], kind: Literal["zstd", "gzip", "none"], *, what: str) -> Iterator[bytes]:
    """Yield the uncompressed content of a stream in blocks of at most 1 MiB.

    Several gzip members and several zstd frames in a row are one stream, as RFC 1952 and RFC 8878 say.

    Raises:
        IntegrityError: the stream is not of that kind, is corrupt, ends early, or has something behind its end.
    """
    checked = _declared(source, kind, what)
    if kind == "gzip":
        return _gunzip(checked, what)
    if kind == "zstd":
        return _unzstd(checked, what)
    return checked


def _declared(source: Iterable[bytes], kind: str, what: str) -> Iterator[bytes]:
    iterator = iter(source)
    head = b""
    while len(head) < len(ZSTD_MAGIC) and (block := next(iterator, b"")):
        head += block
    found = "gzip" if head.startswith(GZIP_MAGIC) else "zstd" if _is_zstd(head) else "none"
    if found != kind:
        names = {"none": "an uncompressed tar" if head else "empty", "gzip": "gzip", "zstd": "zstd"}
        raise IntegrityError(f"{what} is declared as {names[kind]} but is {names[found]}")
    if head:
        yield head
    yield from iterator


def _is_zstd(head: bytes) -> bool:
    return head.startswith(ZSTD_MAGIC) or (head[1:4] == SKIPPABLE_MAGIC_SUFFIX and 0x50 <= head[0] <= 0x5F)


def _gunzip(source: Iterable[bytes], what: str) -> Iterator[bytes]:
    member = _gzip_member()
    head = b""
    try:
        for block in source:
            pending = head + block
            head = b""
            position, step = 0, BLOCK_BYTES
            while position < len(pending):
                if member.eof:
                    # a block may end between the two bytes of the next member's magic
                    if len(pending) - position < len(GZIP_MAGIC):
                        head = pending[position:]
                        break
                    if not pending.startswith(GZIP_MAGIC, position):
                        raise IntegrityError(f"{what} has bytes after the end of its gzip stream")
                    member, step = _gzip_member(), GZIP_FIRST_BYTES
                piece = pending[position : position + step]
                yield from _drained(member, piece)
                position += len(piece) - (len(member.unused_data) if member.eof else 0)
                step = BLOCK_BYTES
    except _GZIP_ERRORS as error:
        raise IntegrityError(f"{what} is corrupt gzip: {error}") from error
    if not member.eof:
        raise IntegrityError(f"{what} ends in the middle of its gzip stream")
    if head:
        raise IntegrityError(f"{what} has bytes after the end of its gzip stream")


class _GzipMember(Protocol):
    """A decoder of one gzip member, which checks the trailer and keeps what it was given and has not used."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _ZlibMember:
    """A gzip member as isal decodes it, by zlib: the same bytes in twice the time."""

    def __init__(self) -> None:
        # 16 above the largest window: with the header and trailer of gzip
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        plain = self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)
        # a full block may leave more in the decoder, although all that came in is used
        self.needs_input = not self._decoder.unconsumed_tail and len(plain) < max_length
        return plain


def _gzip_member() -> _GzipMember:
    if igzip_lib is None:
        return cast(_GzipMember, _ZlibMember())
    return cast(_GzipMember, igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))


def _drained(member: _GzipMember, packed: bytes) -> Iterator[bytes]:
    """Yield what compressed bytes give, in blocks of at most 1 MiB."""
    while True:
        if plain := member.decompress(packed, BLOCK_BYTES):
            yield plain
        if member.eof or member.needs_input:
            return
        packed = b""


def _unzstd(source: Iterable[bytes], what: str) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    frames = _ZstdFrames(source, what)
    reader = decompressor.stream_reader(
        cast(IO[bytes], frames), read_size=BLOCK_BYTES, read_across_frames=True, closefd=False
    )
    try:
        while plain := reader.read(BLOCK_BYTES):
            yield plain
    except zstandard.ZstdError as error:
        raise IntegrityError(f"{what} is corrupt zstd: {error}") from error


class _ZstdFrames:
    """A readable over blocks that follows the frames in them (RFC 8878, section 3) and insists on whole ones.

    zstandard's reader takes the end of its input for the end of a frame, wherever that is; this walks from block
    header to block header next to it.
    """

    def __init__(self, source: Iterable[bytes], what: str) -> None:
        self._source = iter(source)
        self._what = what
        self._rest = b""
        self._skip = 0
        self._head = b""
        self._state: Literal["frame", "block", "checksum"] = "frame"
        self._has_checksum = False

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = next(self._source, b"")
            if self._rest:
                self._follow(self._rest)
            elif self._skip or self._head or self._state != "frame":
                raise IntegrityError(f"{self._what} ends in the middle of a zstd frame")
        block, self._rest = self._rest[:size], self._rest[size:]
        return block

    def _follow(self, block: bytes) -> None:
        position = 0
        while True:
            step = min(self._skip, len(block) - position)
            self._skip -= step
            position += step
            if self._skip or position == len(block):
                return
            wanted = self._head_length()
            taken = block[position : position + wanted - len(self._head)]
            self._head += taken
            position += len(taken)
            if len(self._head) < wanted:
                return
            if self._head_length() == wanted:
                self._enter()

    def _head_length(self) -> int:
        if self._state == "block":
            return 3
        if self._state == "checksum":
            return 4
        if len(self._head) < 5:
            return 5
        if self._head[1:4] == SKIPPABLE_MAGIC_SUFFIX:
            return 8
        flags = self._head[4]
        single_segment = bool(flags & 0x20)
        content_size = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
        return 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[flags & 3] + content_size

    def _enter(self) -> None:
        head, self._head = self._head, b""
        if self._state == "checksum":
            self._state = "frame"
        elif self._state == "block":
            header = int.from_bytes(head, "little")
            # of an RLE block (type 1) the size is that of its content, which is one byte in the stream
            repeated = (header >> 1) & 3 == 1
            self._skip = 1 if repeated else header >> 3
            if header & 1:
                self._state = "checksum" if self._has_checksum else "frame"
        elif not _is_zstd(head):
            raise IntegrityError(f"{self._what} has bytes after the end of its zstd stream")
        elif head[1:4] == SKIPPABLE_MAGIC_SUFFIX:
            self._skip = int.from_bytes(head[4:8], "little")
        else:
            self._has_checksum = bool(head[4] & 4)
            self._state = "block"


def zstd_blocks(source: Iterable[bytes], *, level: int, threads: int, long: bool = False) -> Iterator[bytes]:
    """Yield one zstd frame over the content, without a content size and without a checksum.

    With `long`, matches are looked for in the last 128 MiB, which a reader has to hold (RFC 8878, section 3.1.1.1.2).
    `threads` is at least 1: zstd's single-threaded mode (0) would give other bytes than any number of threads.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        threads=max(1, threads),
        job_size=ZSTD_JOB_BYTES if level <= ZSTD_MAX_LEVEL_IN_JOBS else 0,
        # blobs have a digest, and the size is not known before the end: pledging it changes the frame's header
        write_checksum=False,
        write_content_size=False,
        **({"enable_ldm": True, "window_log": LONG_WINDOW_LOG} if long else {}),
    )
    chunker = zstandard.ZstdCompressor(compression_params=parameters).chunker(chunk_size=BLOCK_BYTES)
    for block in source:
        yield from chunker.compress(block)
    yield from chunker.finish()  # type: ignore[no-untyped-call]


def zstd_memory_bytes(*, level: int, threads: int, long: bool = False) -> int:
    """Return about how much memory `zstd_blocks` takes: within a tenth of what was measured at levels 3 to 19."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level)
    window = 1 << (LONG_WINDOW_LOG if long else parameters.window_log)
    # by default a thread works on four windows
    job = ZSTD_JOB_BYTES if level <= ZSTD_MAX_LEVEL_IN_JOBS else 4 << parameters.window_log
    return threads * (parameters.estimated_compression_context_size() + 2 * job) + window


def gzip_blocks(source: Iterable[bytes], *, level: int, threads: int) -> Iterator[bytes]:
    """Yield one gzip member over the content, without name and time, its blocks of 1 MiB compressed in parallel.

    Each block has the 32 KiB before it for a dictionary, so the ratio is nearly that of one pass.
    """
    yield GZIP_HEADER
    checksum = size = 0
    window = b""
    packing: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for block in exact_blocks(source):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
            packing.append(pool.submit(_deflate, block, window, level))
            window = block[-GZIP_WINDOW_BYTES:]
            if len(packing) > threads:
                yield packing.popleft().result()
        while packing:
            yield packing.popleft().result()
    yield DEFLATE_END + checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


def _deflate(block: bytes, window: bytes, level: int) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, zdict=window)
    return compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH)


def exact_blocks(source: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same content cut into blocks of exactly 1 MiB, but for the last."""
    parts: list[bytes] = []
    held = 0
    for block in source:
        while held + len(block) >= BLOCK_BYTES:
            cut = BLOCK_BYTES - held
            yield b"".join([*parts, block[:cut]])
            parts, held, block = [], 0, block[cut:]
        if block:
            parts.append(block)
            held += len(block)
    if parts:
        yield b"".join(parts)
