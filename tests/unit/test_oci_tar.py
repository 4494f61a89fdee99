"""The tar reader, the writer and the normaliser, against Python's own tarfile."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.errors import AirferryError, BuildError, IntegrityError
from airferry.oci.normalise import RUN_LAYER_LEFTOVERS, normalise_layer
from airferry.oci.tar import REGULAR, TarEntry, TarReader, tar_header
from examples import examples

EPOCH_S = 315532800


def container_tar(*, mtime_s: float, leftovers: bool = False, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar with all that a container's changes may hold."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:

        def add(name: str, data: bytes = b"", **fields: Any) -> None:
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.size = mtime_s, len(data)
            for key, value in fields.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(data))

        add("./etc/", type=tarfile.DIRTYPE, mode=0o755)
        if leftovers:
            add("etc/hosts", b"127.0.0.1")
            add("run/secrets/", type=tarfile.DIRTYPE)
            add("run/secrets/key", b"secret")
            add("proc/", type=tarfile.DIRTYPE)
            add("usr/lib/__pycache__/", type=tarfile.DIRTYPE)
            add("usr/lib/__pycache__/a.cpython-311.pyc", b"bytecode")
        add("deep/" * 40 + "file", b"hello" * 300, mode=0o4755, uid=70, gid=80, uname="joe", gname="staff")
        add("ünïcode", b"1")
        add("not utf-8 \udcff", b"2")
        add("link", type=tarfile.SYMTYPE, linkname="x" * 150)
        add("hard", type=tarfile.LNKTYPE, linkname="ünïcode")
        add("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("a/.wh.gone")
        add("fifo", type=tarfile.FIFOTYPE)
        if form == tarfile.PAX_FORMAT:
            records = {"SCHILY.xattr.security.capability": "\x01\0\udcff=\n", "atime": "12.5", "comment": "x"}
            add("capable", b"3", pax_headers=records, uid=5_000_000)
    return buffer.getvalue()


def normalised(data: bytes, **options: Any) -> bytes:
    return b"".join(normalise_layer(io.BytesIO(data), epoch_s=EPOCH_S, **options))


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


def test_times_and_leftovers_make_no_difference() -> None:
    drop = (*RUN_LAYER_LEFTOVERS, "*.pyc", "__pycache__", "*/__pycache__")
    one = normalised(container_tar(mtime_s=1_700_000_000), drop=drop)
    other = normalised(container_tar(mtime_s=1_600_000_000.25, leftovers=True), drop=drop)
    assert one == other
    assert normalised(one) == one


def test_what_matters_stays() -> None:
    raw = container_tar(mtime_s=1_700_000_000)
    before, after = members(raw), members(normalised(raw))
    assert list(before) == list(after)
    for name, old in before.items():
        new = after[name]
        kept = ("mode", "uid", "gid", "size", "type", "linkname", "devmajor", "devminor")
        assert {key: getattr(new, key) for key in kept} == {key: getattr(old, key) for key in kept}
        assert (new.mtime, new.uname, new.gname) == (EPOCH_S, "", "")
    assert after["capable"].pax_headers["SCHILY.xattr.security.capability"] == "\x01\0\udcff=\n"
    assert not {"atime", "mtime", "comment"} & after["capable"].pax_headers.keys()
    with tarfile.open(fileobj=io.BytesIO(normalised(raw))) as tar:
        content = tar.extractfile("deep/" * 40 + "file")
        assert content is not None
        assert content.read() == b"hello" * 300


def test_old_times_stay() -> None:
    assert {member.mtime for member in members(normalised(container_tar(mtime_s=1000))).values()} == {1000}


def test_gnu_tars_come_out_as_pax_ones() -> None:
    gnu = container_tar(mtime_s=1_700_000_000, form=tarfile.GNU_FORMAT)
    assert list(members(normalised(gnu))) == list(members(gnu))


def test_a_hard_link_to_what_is_dropped_is_refused() -> None:
    with pytest.raises(BuildError, match="hard link"):
        normalised(container_tar(mtime_s=0), drop=("ünïcode",))


def test_what_ends_early_is_refused_wherever_it_ends() -> None:
    raw = container_tar(mtime_s=0)
    whole = len(raw.rstrip(b"\0"))
    for end in range(0, whole, 211):
        with pytest.raises(IntegrityError):
            normalised(raw[:end])


@pytest.mark.parametrize("garbage", [b"x" * 512, b"x"])
def test_garbage_is_refused(garbage: bytes) -> None:
    raw = container_tar(mtime_s=0)
    with pytest.raises(IntegrityError, match="after its end"):
        normalised(raw + garbage)
    with pytest.raises(IntegrityError):
        normalised(garbage + raw)


def test_sizes_beyond_eight_gib_are_written_both_ways() -> None:
    size = (8 << 30) + 5
    for large in ("pax", "gnu"):
        header = tar_header(TarEntry("layer", size=size), large=large)  # type: ignore[arg-type]
        assert tarfile.TarInfo.frombuf(header[-512:], "utf-8", "strict").name == "layer"
        entry = next(iter(TarReader(io.BytesIO(header), what="tar")))
        assert entry == TarEntry("layer", size=size)
    assert b"size=" not in tar_header(TarEntry("layer", size=size), large="gnu")


def test_a_header_of_headers_is_bounded() -> None:
    header = tar_header(TarEntry("x", size=1 << 40), large="gnu")
    forged = bytearray(header[:512])
    forged[156:157] = b"x"
    forged[148:156] = b" " * 8
    forged[148:156] = b"%06o\0 " % sum(forged)
    with pytest.raises(IntegrityError, match="larger than"):
        next(iter(TarReader(io.BytesIO(bytes(forged)), what="tar")))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150)


@given(
    name=NAMES,
    link=NAMES,
    size=st.integers(0, 1 << 45),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 1 << 32),
    mtime_s=st.integers(0, 1 << 33),
    xattrs=st.dictionaries(st.just("SCHILY.xattr.user.x"), st.binary(max_size=200)),
)
@examples(150)
def test_what_is_written_is_read(
    name: str, link: str, size: int, mode: int, uid: int, mtime_s: int, xattrs: dict[str, bytes]
) -> None:
    entry = TarEntry(
        name, REGULAR, size=size, mode=mode, uid=uid, gid=uid, mtime_s=mtime_s, link_name=link, xattrs=xattrs
    )
    assert next(iter(TarReader(io.BytesIO(tar_header(entry)), what="tar"))) == entry


@given(position=st.integers(0, 5000), value=st.integers(0, 255))
@examples(200)
def test_a_damaged_tar_raises_nothing_but_our_errors(position: int, value: int) -> None:
    raw = bytearray(container_tar(mtime_s=0))
    raw[position % len(raw)] = value
    try:
        normalised(bytes(raw))
    except AirferryError as error:
        assert error.exit_code in (5, 6)
