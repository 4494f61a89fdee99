"""Layers as other builders write them, byte by byte: odd in a harmless way, or in one that Go's reader refuses as well.

Each lies in a folder of its own, so that one image can have them all.
"""

from __future__ import annotations

from airferry.oci.tar import DIRECTORY, END_OF_ARCHIVE, HARD_LINK, RECORD_BYTES, REGULAR, SYMLINK, TarEntry, tar_header

# fields of a header, by offset
MODE, UID, GID, SIZE, MTIME, DEVICE = (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (329, 8)
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


def pax(*more: tuple[str, str], **records: str) -> bytes:
    """Return the pax header of the entry behind it; keys that are repeated, or have a dot, come first."""
    data = b""
    for key, value in (*more, *records.items()):
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while length != len(body) + len(str(length)):
            length = len(body) + len(str(length))
        data += str(length).encode() + body
    return entry("pax", data, b"x")


def sparse(
    name: str, data: bytes, *records: tuple[str, str], path: str = "GNUSparseFile.0/a", kind: bytes = REGULAR
) -> bytes:
    """Return a sparse file that goes by `name`, while its own header says `path`; records without `GNU.sparse.`."""
    told = [(f"GNU.sparse.{key}", value) for key, value in (("name", name), *records)]
    return pax(*told) + entry(path, data, kind, link="x" if kind != REGULAR else "")


def first(*lines: int) -> bytes:
    """Return the numbers that version 1.0 begins the content with."""
    return pad("".join(f"{line}\n" for line in lines).encode())


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % RECORD_BYTES)


# what unpacks as `SPARSE_DATA`, as different versions of GNU tar write it
SPARSE_DATA = b"Name: a\nVersion: 1\n\n" + bytes(980) + b"end" + bytes(1000)
SPARSE_HELD, SPARSE_SIZE = SPARSE_DATA[:20] + b"end", ("realsize", str(len(SPARSE_DATA)))
SPARSE = {
    "guessed": [("size", str(len(SPARSE_DATA))), ("numblocks", "2"), ("map", "0,20,1000,3")],
    "0.0": [
        *[("major", "0"), ("minor", "0"), SPARSE_SIZE, ("numblocks", "2")],
        *[("offset", "0"), ("numbytes", "20"), ("offset", "1000"), ("numbytes", "3")],
    ],
    "0.1": [("major", "0"), ("minor", "1"), SPARSE_SIZE, ("numblocks", "2"), ("map", "0,20,1000,3")],
    "1.0": [("major", "1"), ("minor", "0"), SPARSE_SIZE],
}


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
    "owners": entry("owners/same", b"1", fields={UID: -1, GID: -1})
    + pax(uid="-1")
    + entry("owners/pax", b"1")
    + entry("owners/folder/", kind=DIRECTORY, fields={GID: -1})
    + entry("owners/large", fields={UID: 1000, GID: 65534})
    + END_OF_ARCHIVE,
    "sparse files": b"".join(
        sparse(f"sparse/{name}.dist-info/METADATA", first(2, 0, 20, 1000, 3) * (name == "1.0") + SPARSE_HELD, *records)
        for name, records in SPARSE.items()
    )
    + sparse("sparse/empty", first(0), ("major", "1"), ("minor", "0"), ("realsize", "70000"))
    + sparse("sparse/full", b"abc", ("size", "3"), ("numblocks", "1"), ("map", "0,3"))
    + sparse("sparse/not", first(0) + b"abc", ("major", "2"), ("minor", "0"), path="sparse/newer")
    + sparse("sparse/not", b"abc", ("size", "70000"), path="sparse/no-map")
    + entry("sparse/after", b"1")
    + END_OF_ARCHIVE,
    "links to themselves": entry("loops/a", kind=SYMLINK, link="a")
    + entry("loops/b", kind=SYMLINK, link="c")
    + entry("loops/c", kind=SYMLINK, link="/loops/b")
    + END_OF_ARCHIVE,
}


# what Buildah takes where a user has such an owner in their namespace, and is not read here
UNREAD = {"has a negative owner": entry("owner/a", b"1", fields={UID: -2}) + END_OF_ARCHIVE}
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
SIZED = ("size", "20")
# sparse files that Go's reader refuses as well
REFUSED_SPARSE = {
    "more data than it says": sparse("a", b"abcd", SIZED, ("numblocks", "1"), ("map", "10,3")),
    "less data than it says": sparse("a", b"ab", SIZED, ("numblocks", "1"), ("map", "10,3")),
    "parts that overlap": sparse("a", b"abcabc", SIZED, ("numblocks", "2"), ("map", "1,3,2,3")),
    "a part beyond its end": sparse("a", b"abc", SIZED, ("numblocks", "1"), ("map", "18,3")),
    "a negative part": sparse("a", b"", SIZED, ("numblocks", "2"), ("map", "1,1,3,-1")),
    "another number of parts": sparse("a", b"abc", SIZED, ("numblocks", "2"), ("map", "1,3")),
    "no number of parts": sparse("a", b"abc", SIZED, ("map", "1,3")),
    "no numbers": sparse("a", b"abc", SIZED, ("numblocks", "1"), ("map", "1,x")),
    "huge numbers": sparse("a", b"", SIZED, ("numblocks", "1"), ("map", f"{1 << 63},0")),
    "a negative size": sparse("a", b"", ("major", "0"), ("minor", "1"), ("size", "-1"), ("numblocks", "0")),
    "no size of a number": sparse("a", b"abc", ("size", "x"), ("numblocks", "1"), ("map", "1,3")),
    "a link": sparse("a", b"", SIZED, ("numblocks", "1"), ("map", "0,0"), kind=SYMLINK),
    "a map that is cut off": sparse("a", pad(b"2\n0\n1"), SIZED, ("major", "1"), ("minor", "0")),
    "a negative map": sparse("a", first(-1), SIZED, ("major", "1"), ("minor", "0")),
    "a map of words": sparse("a", first(1, 0) + pad(b"x\n"), SIZED, ("major", "1"), ("minor", "0")),
    "half a record": sparse("a", b"abc", SIZED, ("numblocks", "1"), ("offset", "1"), ("offset", "3")),
    "a comma in a record": sparse("a", b"abc", SIZED, ("numblocks", "1"), ("offset", "1,2"), ("numbytes", "3")),
}
