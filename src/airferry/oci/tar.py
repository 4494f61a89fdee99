"""Tar streams: a strict reader of headers and a deterministic writer (POSIX.1-2001 pax, ustar, GNU extensions).

Reads only forward, never unpacks, never holds an entry's content. What is malformed is an error, not the end of the
archive. Layers of images are read as engines unpack them, sparse files too; they do not always end as POSIX says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Literal

from airferry.errors import BuildError, IntegrityError
from airferry.oci.ports import BLOCK_BYTES

RECORD_BYTES = 512
END_OF_ARCHIVE = bytes(2 * RECORD_BYTES)
MAX_META_BYTES = 1024 * 1024
MAX_SPARSE_BYTES = 64 << 30  # of all sparse files of a layer, unpacked: a header of a few bytes can say any size
# tar pads to a record, 10 KiB by default, and a tape's were 2 MiB: a sparse file of 16 GiB took a minute to read past
MAX_TAIL_BYTES = 16 * 1024 * 1024
REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
REGULAR_TYPES = (REGULAR, b"\0", b"7")
KNOWN_TYPES = (*REGULAR_TYPES, HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO)
MAX_SHOWN_NAME = 200
MAX_OCTAL_7 = 0o7777777
MAX_OCTAL_11 = 0o77777777777
KEPT_PAX_PREFIXES = ("SCHILY.xattr.", "SCHILY.acl.", "LIBARCHIVE.xattr.")
_SPARSE_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,7}) ")


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry's header. Names are text with undecodable bytes escaped; `xattrs` are its pax records for those."""

    name: str
    type: bytes = REGULAR
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_s: int = 0
    link_name: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The name without leading `./` and `/` and without trailing `/`."""
        return plain_path(self.name)

    @property
    def is_regular(self) -> bool:
        """Whether the entry is a file with content."""
        return self.type in REGULAR_TYPES


def plain_path(name: str) -> str:
    """Return a tar name without leading `./` and `/` and without trailing `/`."""
    return re.sub(r"^(\.?/+)+", "", name).rstrip("/").removesuffix("/.")


class TarReader:
    """Iterates over the entries of a tar stream; between two of them `content` yields the bytes of the last one.

    `offset_bytes` is where the content of the last entry begins. With `seeks`, content that is not requested is passed
    over by seeking.
    """

    def __init__(self, stream: IO[bytes], *, what: str, seeks: bool = False, tolerant: bool = False) -> None:
        """Read a tar from its start.

        With `tolerant` it may end wherever Go's `archive/tar`, by which engines unpack, takes it: between two entries
        without a mark, in the padding of the last one, or with anything behind two blocks of zeros. Only for streams
        whose digest is checked, as a truncated one may look like that. What else Go takes and is not read here is then
        passed over: `not_read` says what, and the caller decides.
        """
        self.offset_bytes = 0
        self.not_read = ""
        self._tolerant = tolerant
        self._seeks = seeks
        self._stream = stream
        self._what = what
        self._position = 0
        self._content_left = 0
        self._padding = 0
        self._parts: list[tuple[int, int]] | None = None  # of a sparse file: where data is, and how much
        self._logical_size = 0
        self._sparse_bytes = 0

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield each entry.

        Raises:
            IntegrityError: the stream is malformed or truncated, or an entry is of an unknown type.
        """
        while (entry := self._next()) is not None:
            yield entry

    def content(self) -> Iterator[bytes]:
        """Yield the content of the last entry in blocks, zeros where a sparse file has none."""
        if self._parts is None:
            yield from self._data(self._content_left)
            return
        position = 0
        for offset, length in [*self._parts, (self._logical_size, 0)]:
            for start in range(position, offset, BLOCK_BYTES):
                yield bytes(min(BLOCK_BYTES, offset - start))
            yield from self._data(length)
            position = offset + length

    def _data(self, size: int) -> Iterator[bytes]:
        """Yield the next bytes of the last entry in the stream."""
        while size:
            block = self._stream.read(min(BLOCK_BYTES, size))
            if not block:
                raise IntegrityError(f"{self._what} is truncated in the middle of an entry")
            size -= len(block)
            self._content_left -= len(block)
            self._position += len(block)
            yield block

    def _skip_content(self) -> None:
        """Pass over what is left of the last entry, and its padding."""
        if self._seeks:
            left = self._content_left + self._padding
            try:
                if self._tolerant and self._content_left:
                    # seeking does not tell whether the stream ends before, and only padding may be missing
                    self._stream.seek(self._content_left - 1, 1)
                    if not self._stream.read(1):
                        raise IntegrityError(f"{self._what} is truncated in the middle of an entry")
                    self._stream.seek(self._padding, 1)
                else:
                    self._stream.seek(left, 1)
            except (OSError, OverflowError, ValueError) as error:
                # a size that no file can have
                raise IntegrityError(f"{self._what} is truncated in the middle of an entry") from error
            self._position += left
            self._content_left = 0
            return
        for _block in self._data(self._content_left):
            pass
        if self._tolerant:
            self._position += len(self._read_up_to(self._padding))
        else:
            self._read(self._padding)

    def _next(self) -> TarEntry | None:
        pax: dict[str, bytes] = {}
        long_name: bytes | None = None
        long_link: bytes | None = None
        while True:
            self._skip_content()
            self._parts = None
            header = self._read_header()
            if header is None:
                return None
            if not header[0] and not header.strip(b"\0"):
                self._expect_end()
                return None
            entry = self._parse(header)
            self.offset_bytes = self._position
            self._content_left, self._padding = entry.size, -entry.size % RECORD_BYTES
            if entry.type in (b"x", b"g", b"L", b"K"):
                data = self._meta(entry)
                if entry.type == b"x":
                    pax = _parse_pax(data, self._what)
                elif entry.type == b"L":
                    long_name = data.split(b"\0", 1)[0]
                elif entry.type == b"K":
                    long_link = data.split(b"\0", 1)[0]
                continue
            if entry.type not in KNOWN_TYPES:
                raise IntegrityError(f"{self._what}: entry `{entry.name}` has the unsupported type {entry.type!r}")
            entry = self._complete(entry, pax, long_name, long_link)
            if entry.uid < 0 or entry.gid < 0:
                # chown(2) takes -1 for "as it is", and engines create all files as root; other such owners, which are
                # huge unsigned ones to it, they refuse where a user namespace does not have them
                if not self._tolerant or min(entry.uid, entry.gid) < -1:
                    self._pass_over(entry, "has a negative owner")
                entry = replace(entry, uid=max(0, entry.uid), gid=max(0, entry.gid))
            if entry.size and not entry.is_regular:
                entry = replace(entry, size=0)
            self._content_left, self._padding = entry.size, -entry.size % RECORD_BYTES
            return self._expanded(entry, pax) if any(key.startswith("GNU.sparse.") for key in pax) else entry

    def _expanded(self, entry: TarEntry, pax: dict[str, bytes]) -> TarEntry:
        """Return a sparse file as Go's `archive/tar` unpacks it; what it takes for a whole file stays one.

        Raises:
            IntegrityError: the reader is not tolerant, or the file is malformed or too large.
        """
        if not self._tolerant:
            self._pass_over(entry, "is sparse, which is not supported")
        version = (_text(pax.get("GNU.sparse.major")), _text(pax.get("GNU.sparse.minor")))
        named = _text(pax.get("GNU.sparse.name"))
        # other programs go by other records: none of the names may lead elsewhere
        for name in filter(None, (entry.name, named)):
            if ".." in name.split("/") or "\0" in name:
                raise IntegrityError(f"{self._what}: the sparse entry `{name[:MAX_SHOWN_NAME]}` leads upwards")
        known = version == ("", "") and pax.get("GNU.sparse.map")
        if not known and version not in (("0", "0"), ("0", "1"), ("1", "0")):
            return entry
        try:
            told = pax.get("GNU.sparse.size") or pax.get("GNU.sparse.realsize")
            size = _sparse_number(_text(told)) if told else entry.size
            numbers = self._sparse_map() if version == ("1", "0") else _sparse_records(pax)
            parts = list(zip(numbers[::2], numbers[1::2], strict=True))
            ends = [0, *(offset + length for offset, length in parts)]
            starts = [*(offset for offset, _length in parts), size]
            ordered = all(end <= start for end, start in zip(ends, starts, strict=True))
            filled = sum(length for _offset, length in parts) == self._content_left
            if not entry.is_regular or min(numbers, default=0) < 0 or not ordered or not filled:
                raise ValueError
        except ValueError as error:
            raise IntegrityError(f"{self._what}: the sparse entry `{entry.name[:99]}` is malformed") from error
        self._sparse_bytes += size
        if self._sparse_bytes > MAX_SPARSE_BYTES:
            raise IntegrityError(f"{self._what} has sparse files of more than {MAX_SPARSE_BYTES} bytes, the limit")
        self._parts, self._logical_size = parts, size
        return replace(entry, name=named or entry.name, size=size)

    def _sparse_map(self) -> list[int]:
        """Read the numbers that a sparse file's content begins with, in whole records: how many pairs, and these."""
        text, lines, wanted = bytearray(), 0, 1
        while lines < wanted:
            if self._content_left < RECORD_BYTES or len(text) >= MAX_META_BYTES:
                raise ValueError
            record = b"".join(self._data(RECORD_BYTES))
            text += record
            lines += record.count(b"\n")
            if wanted == 1 and lines:
                wanted += 2 * _sparse_number(_text(bytes(text.split(b"\n")[0])))
                if wanted < 1:
                    raise ValueError
        return [_sparse_number(_text(bytes(line))) for line in text.split(b"\n")[1:wanted]]

    def _pass_over(self, entry: TarEntry, why: str) -> None:
        """Note what is not read, where engines may take it, or refuse it.

        Raises:
            IntegrityError: the reader is not tolerant.
        """
        problem = f"{self._what}: entry `{entry.name[:MAX_SHOWN_NAME]}` {why}"
        if not self._tolerant:
            raise IntegrityError(problem)
        self.not_read = self.not_read or problem

    def _meta(self, entry: TarEntry) -> bytes:
        if entry.size > MAX_META_BYTES:
            raise IntegrityError(f"{self._what}: a header of {entry.size} bytes is larger than {MAX_META_BYTES}")
        return b"".join(self.content())

    def _complete(
        self, entry: TarEntry, pax: dict[str, bytes], long_name: bytes | None, long_link: bytes | None
    ) -> TarEntry:
        if not pax and long_name is None and long_link is None:
            return entry
        name = _text(pax.get("path", long_name)) or entry.name
        try:
            return replace(
                entry,
                name=name,
                link_name=_text(pax.get("linkpath", long_link)) or entry.link_name,
                size=_number(pax, "size", entry.size),
                uid=_number(pax, "uid", entry.uid, signed=True),
                gid=_number(pax, "gid", entry.gid, signed=True),
                mtime_s=int(float(pax.get("mtime") or entry.mtime_s)),
                xattrs={key: value for key, value in pax.items() if key.startswith(KEPT_PAX_PREFIXES)},
            )
        except (ValueError, OverflowError) as error:
            raise IntegrityError(f"{self._what}: entry `{entry.name}` has a malformed pax record") from error

    def _read_header(self) -> bytes | None:
        """Return the next record, or None where the archive may end without a mark, and does."""
        header = self._read_up_to(RECORD_BYTES)
        if len(header) == RECORD_BYTES:
            self._position += RECORD_BYTES
            return header
        if header or not self._tolerant:
            raise IntegrityError(f"{self._what} is truncated: it has no end-of-archive mark")
        return None

    def _read(self, size: int) -> bytes:
        block = self._read_up_to(size)
        if len(block) < size:
            raise IntegrityError(f"{self._what} is truncated: it has no end-of-archive mark")
        self._position += size
        return block

    def _read_up_to(self, size: int) -> bytes:
        block = self._stream.read(size) if size else b""
        while len(block) < size:
            more = self._stream.read(size - len(block))
            if not more:
                break
            block += more
        return block

    def _expect_end(self) -> None:
        # the first of the two blocks was read; Go insists on the second one, and looks at nothing behind it
        second = self._read_up_to(RECORD_BYTES)
        if second.strip(b"\0"):
            raise IntegrityError(f"{self._what} has data after its end-of-archive mark")
        passed = 0
        while block := self._stream.read(BLOCK_BYTES):
            passed += len(block)
            if passed > MAX_TAIL_BYTES:
                raise IntegrityError(
                    f"{self._what} has more than {MAX_TAIL_BYTES} bytes after its end-of-archive mark, the limit there"
                )
            if not self._tolerant and block.strip(b"\0"):
                raise IntegrityError(f"{self._what} has data after its end-of-archive mark")

    def _parse(self, header: bytes) -> TarEntry:
        try:
            stated = _octal(header[148:156])
            if stated != sum(header) - sum(header[148:156]) + 8 * 32:
                raise ValueError
            if (size := _octal(header[124:136])) < 0:
                raise ValueError
            name, magic = _field(header[0:100]), header[257:263]
            prefix = _field(header[345:500]) if magic == b"ustar\0" else b""
            return TarEntry(
                name=_text(prefix + b"/" + name if prefix else name),
                mode=_octal(header[100:108]) & 0o7777,
                uid=_octal(header[108:116]),
                gid=_octal(header[116:124]),
                size=size,
                mtime_s=_octal(header[136:148]),
                type=header[156:157],
                link_name=_text(_field(header[157:257])),
                device=(_octal(header[329:337]), _octal(header[337:345])) if magic[:5] == b"ustar" else (0, 0),
            )
        except ValueError as error:
            raise IntegrityError(
                f"{self._what} is not a tar archive: malformed header at byte {self._position}"
            ) from error


def tar_header(entry: TarEntry, *, large: Literal["pax", "gnu"] = "pax") -> bytes:
    """Return the header records of an entry, the same bytes for the same entry.

    Long and non-ASCII names and large numbers go into pax records, sorted; with `gnu`, sizes over 8 GiB are written
    in GNU's base-256 instead, and nothing else may be large. User and group names, atime and ctime are left out.
    """
    records = dict(entry.xattrs)
    name, link = _bytes(entry.name), _bytes(entry.link_name)
    for key, value in (("path", name), ("linkpath", link)):
        if len(value) > 100 or not value.isascii():
            records[key] = value
    size = entry.size if entry.is_regular else 0
    numbers = {"uid": (entry.uid, MAX_OCTAL_7), "gid": (entry.gid, MAX_OCTAL_7)}
    if large == "pax":
        numbers |= {"size": (size, MAX_OCTAL_11), "mtime": (entry.mtime_s, MAX_OCTAL_11)}
    for key, (number, most) in numbers.items():
        if number > most:
            records[key] = str(number).encode()
    if large == "gnu" and records:
        raise ValueError(f"`{entry.name}` needs pax records")
    head = b""
    if records:
        data = b"".join(_pax_record(key, records[key]) for key in sorted(records))
        pax = TarEntry("././@PaxHeader", type=b"x", size=len(data))
        head = _ustar(pax, size=len(data)) + data + bytes(-len(data) % RECORD_BYTES)
    return head + _ustar(entry, size=size)


def entry_blocks(
    entry: TarEntry, content: Iterable[bytes] = (), *, what: str = "", large: Literal["pax", "gnu"] = "pax"
) -> Iterator[bytes]:
    """Yield an entry whole: header, content, padding. Whoever writes a tar ends it with `END_OF_ARCHIVE`.

    Raises:
        BuildError: the content is not as long as the header, which went out first, says; the message names `what`.
    """
    yield tar_header(entry, large=large)
    if not entry.is_regular:
        return
    written = 0
    for block in content:
        written += len(block)
        yield block
    if written != entry.size:
        raise BuildError(
            f"`{what or entry.name}` changed while it was read: {written} bytes, {entry.size} were expected",
            hint="run the command again",
            path=what or entry.name,
        )
    yield bytes(-entry.size % RECORD_BYTES)


def _ustar(entry: TarEntry, *, size: int) -> bytes:
    regular = REGULAR if entry.is_regular else entry.type
    encoded_size = b"%011o\0" % size if size <= MAX_OCTAL_11 else b"\x80" + size.to_bytes(11, "big")
    header = b"".join(
        (
            _bytes(entry.name)[:100].ljust(100, b"\0"),
            b"%07o\0" % entry.mode,
            b"%07o\0" % min(entry.uid, MAX_OCTAL_7),
            b"%07o\0" % min(entry.gid, MAX_OCTAL_7),
            encoded_size,
            b"%011o\0" % min(entry.mtime_s, MAX_OCTAL_11),
            b" " * 8,
            regular,
            _bytes(entry.link_name)[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0" % entry.device[0],
            b"%07o\0" % entry.device[1],
        )
    ).ljust(RECORD_BYTES, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _pax_record(key: str, value: bytes) -> bytes:
    body = b" " + _bytes(key) + b"=" + value + b"\n"
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return str(length).encode() + body


def _parse_pax(data: bytes, what: str) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(data) and data[position]:
        match = _PAX_LENGTH.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or end > len(data) or end <= match.end() or data[end - 1 : end] != b"\n":
            raise IntegrityError(f"{what} has a malformed pax record")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals:
            raise IntegrityError(f"{what} has a malformed pax record")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            # version 0.0 repeats them, in turns
            if b"," in value or (key == b"GNU.sparse.offset") is bool(len(sparse) % 2):
                raise IntegrityError(f"{what} has a malformed pax record")
            sparse.append(value)
        else:
            records[_text(key)] = value
        position = end
    if sparse:
        records["GNU.sparse.map"] = b",".join(sparse)
    return records


def _sparse_records(pax: dict[str, bytes]) -> list[int]:
    told = _text(pax.get("GNU.sparse.map"))
    numbers = [_sparse_number(part) for part in told.split(",")] if told else []
    if len(numbers) != 2 * _sparse_number(_text(pax.get("GNU.sparse.numblocks"))):
        raise ValueError
    return numbers


def _sparse_number(text: str) -> int:
    if not _SPARSE_NUMBER.fullmatch(text) or not -1 << 63 <= int(text) < 1 << 63:
        raise ValueError
    return int(text)


def _number(pax: dict[str, bytes], key: str, default: int, *, signed: bool = False) -> int:
    value = pax.get(key)
    if value is None or value == b"":
        return default
    if not (value.removeprefix(b"-") if signed else value).isdigit():
        raise ValueError(key)
    return int(value)


def _octal(raw: bytes) -> int:
    if raw[0] & 0x80:
        # GNU's base-256: two's complement below the mark, which is the first bit
        negative = raw[0] & 0x40
        number = int.from_bytes(raw if negative else bytes((raw[0] & 0x7F,)) + raw[1:], "big", signed=True)
        if not -1 << 63 <= number < 1 << 63:
            raise ValueError("too large")
        return number
    text = raw.strip(b"\0 ")
    if not text:
        return 0
    if not text.isdigit():
        raise ValueError("no octal number")
    return int(text, 8)


def _field(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
