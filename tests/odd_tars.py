"""Layers as other builders write them, byte by byte: odd in a harmless way, or in one that Go's reader refuses as well.

Each lies in a folder of its own, so that one image can have them all.
"""

from __future__ import annotations

from airferry.oci.tar import DIRECTORY, END_OF_ARCHIVE, HARD_LINK, RECORD_BYTES, REGULAR, SYMLINK, TarEntry, tar_header

# fields of a header, by offset
MODE, UID, SIZE, MTIME, DEVICE = (100, 8), (108, 8), (124, 12), (136, 12), (329, 8)
TIME_S = 1_000_000


def entry(
    name: str,
    data: bytes = b"",
    kind: bytes = REGULAR,
    *,
    link: str = "",
    fields: dict[tuple[int, int], int] | None = None,
) -> bytes:
    """Return an entry whose numeric `fields` are written in base-256, as GNU tar and Go do for large and negative."""
    mode = 0o755 if kind == DIRECTORY else 0o644
    made = TarEntry(name, type=kind, size=len(data), mode=mode, mtime_s=TIME_S, link_name=link)
    header = bytearray(tar_header(made))
    if not made.is_regular:
        header[124:136] = b"%011o\0" % len(data)
    for (offset, length), number in (fields or {}).items():
        raw = number.to_bytes(length, "big", signed=True)
        header[offset : offset + length] = bytes((raw[0] | 0x80,)) + raw[1:]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % RECORD_BYTES)


def folder(name: str) -> bytes:
    """Return a folder's entry."""
    return entry(name, kind=DIRECTORY)


def pax(**records: str) -> bytes:
    """Return the pax header of the entry behind it; `__` in a key stands for a dot."""
    data = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 1
        while length != len(body) + len(str(length)):
            length = len(body) + len(str(length))
        data += str(length).encode() + body
    return entry("pax", data, b"x")


# what Buildah takes, and what it makes of it
HARMLESS = {
    "absolute names": folder("/")
    + folder("/absolute/")
    + entry("/absolute/etc/x", b"kaniko")
    + entry("//absolute/y", b"bazel")
    + entry("/absolute/hard", kind=HARD_LINK, link="/absolute/etc/x")
    + entry("/absolute/.wh.gone")
    + entry("/absolute/hidden/.wh..wh..opq")
    + entry("/absolute/hidden/new")
    + END_OF_ARCHIVE,
    "dots in names": folder("./")
    + entry("./dots/./a", b"1")
    + entry("././dots//b", b"22")
    + folder("dots/f/.")
    + entry("dots/..c/d", b"333")
    + END_OF_ARCHIVE,
    "a file called like the root": entry("./", b"x") + entry("dot/a") + END_OF_ARCHIVE,
    "no mark at the end": folder("unmarked/") + entry("unmarked/a", b"1"),
    "a folder at the end": folder("folder/"),
    "no padding at the end": entry("unpadded/a", b"12")[: RECORD_BYTES + 2],
    "half a mark": entry("half/a", b"1") + bytes(RECORD_BYTES),
    "garbage behind the mark": entry("garbage/a", b"1") + END_OF_ARCHIVE + b"garbage",
    "a tar behind the mark": entry("second/a", b"1") + END_OF_ARCHIVE + entry("second/b", b"1") + END_OF_ARCHIVE,
    "nothing": b"",
    "zeros": bytes(20 * RECORD_BYTES),
    "times": entry("times/before", fields={MTIME: -5})
    + entry("times/last", fields={MTIME: 9_223_372_036})
    + entry("times/after", fields={MTIME: 9_223_372_037})
    + entry("times/far", fields={MTIME: 1 << 62})
    + pax(mtime="-5.5")
    + entry("times/pax")
    + pax(mtime="", uid="", path="")
    + entry("times/empty")
    + END_OF_ARCHIVE,
    "numbers": entry("numbers/mode", fields={MODE: -1}) + entry("numbers/device", fields={DEVICE: -1}) + END_OF_ARCHIVE,
    "headers for all": entry("global", b"10 aa=bbb\n", b"g") + entry("global/a", b"1") + END_OF_ARCHIVE,
    "links to themselves": entry("loops/a", kind=SYMLINK, link="a")
    + entry("loops/b", kind=SYMLINK, link="c")
    + entry("loops/c", kind=SYMLINK, link="/loops/b")
    + END_OF_ARCHIVE,
}


def sparse(name: str, path: str) -> bytes:
    """Return a sparse file that goes by `name`, while its own header says `path`."""
    told = pax(GNU__sparse__name=name, GNU__sparse__size="2000", GNU__sparse__numblocks="1", GNU__sparse__map="1000,3")
    return told + entry(path, b"abc") + END_OF_ARCHIVE


# what Buildah takes and is not read here
UNREAD = {
    "has a negative owner": entry("owner/a", b"1", fields={UID: -1}) + END_OF_ARCHIVE,
    "is sparse": sparse("sparse/a", "GNUSparseFile.0/a"),
}
# what Go's reader refuses as well
REFUSED = {
    "has data after its end-of-archive mark": entry("a") + bytes(RECORD_BYTES) + entry("b") + END_OF_ARCHIVE,
    "is truncated: it has no end-of-archive mark": entry("a") + entry("b")[:100],
    "is truncated in the middle of an entry": entry("a", b"1" * 100)[: RECORD_BYTES + 99],
    "malformed header": entry("a", fields={SIZE: -1}) + END_OF_ARCHIVE,
    "unsupported type": entry("a", b"1", b"Z") + END_OF_ARCHIVE,
    "is the root, but not a folder": entry("/", b"1") + END_OF_ARCHIVE,
    "malformed pax record": pax(uid="x") + entry("a") + END_OF_ARCHIVE,
}
