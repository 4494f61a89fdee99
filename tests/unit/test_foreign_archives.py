"""Wheels, sources and Debian packages that are damaged, or were made to fail, end in an error that names the file."""

from __future__ import annotations

import bz2
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_near_direct_wheels import layer, wheel
from test_near_userland import deb

from airferry.errors import BuildError, IntegrityError
from airferry.near.bases.userland import compose
from airferry.near.wheels.compile import build_requirements
from airferry.near.wheels.pack import normalise_wheel, read_wheel
from airferry.oci.tar import TarEntry, TarReader, tar_header
from wheel_factory import make_wheel, sha256, source_distribution

Damage = tuple[float, int, bool]
# where, as a part of the length; with what; whether the rest is cut off
DAMAGES = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(path: Path, damage: Damage) -> Path:
    """Change one byte of a file, or cut it there."""
    where, difference, cut = damage
    data = bytearray(path.read_bytes())
    position = int(where * len(data))
    data[position] ^= difference
    path.write_bytes(bytes(data[:position] if cut else data))
    return path


def expect(told: str, work: Callable[[], object]) -> None:
    """Do work that may succeed, for not all bytes matter; its failure names the file and is not a traceback."""
    try:
        work()
    except BuildError as error:
        assert told in error.message and error.exit_code == 5
        assert "\n" not in error.message.partition("\n  |")[0]


@QUICK
@given(DAMAGES, st.sampled_from(["", ".gz", ".xz", ".zst"]))
@example((0.3, 0, True), ".xz")
def test_a_damaged_debian_package(tmp_path_factory: pytest.TempPathFactory, damage: Damage, kind: str) -> None:
    path = deb(tmp_path_factory.mktemp("deb"), "base-files", {"usr/share/x": b"x" * 3000}, kind=kind)
    damaged(path, damage)
    expect(path.name, lambda: b"".join(compose([path], epoch_s=0)))


@pytest.mark.parametrize("size", [b"x", b"", b"-5", b"9" * 10, b"\xff\xfe"])
def test_a_debian_package_whose_member_has_no_size(tmp_path: Path, size: bytes) -> None:
    path = tmp_path / "a_1_all.deb"
    path.write_bytes(b"!<arch>\n" + b"control.tar.xz".ljust(48) + size.ljust(10) + b"`\n" + b"x" * 100)
    with pytest.raises(BuildError, match=r"`a_1_all\.deb` is not a Debian package"):
        list(compose([path], epoch_s=0))


@QUICK
@given(DAMAGES)
def test_a_damaged_wheel(tmp_path_factory: pytest.TempPathFactory, damage: Damage) -> None:
    folder = tmp_path_factory.mktemp("wheel")
    path = damaged(make_wheel(folder, "pkg", "1.0", requires=["other>1"]), damage)
    expect(path.name, lambda: read_wheel(path, sha256="0" * 64))
    expect(path.name, lambda: normalise_wheel(path, folder / "again.whl"))


@QUICK
@given(DAMAGES)
def test_a_damaged_wheel_is_not_installed(tmp_path_factory: pytest.TempPathFactory, damage: Damage) -> None:
    made = wheel(tmp_path_factory.mktemp("wheel"), {"pkg/__init__.py": b"x = 1\n" * 50})
    damaged(made.path, damage)
    expect(made.filename, lambda: layer(made))


def test_a_wheel_whose_directory_points_before_its_start(tmp_path: Path) -> None:
    made = wheel(tmp_path, {"pkg.py": b"x = 1\n"})
    data = bytearray(made.path.read_bytes())
    # where the directory begins, in the record at the end (APPNOTE.TXT, section 4.3.16): its highest byte but one
    data[-4] ^= 1
    made.path.write_bytes(data)
    with pytest.raises(BuildError, match=r"pkg-1\.0-py3-none-any\.whl` .*: it is cut short or damaged"):
        layer(made)
    with pytest.raises(BuildError, match=r"pkg-1\.0-py3-none-any\.whl` .*: it is cut short or damaged"):
        normalise_wheel(made.path, tmp_path / "again.whl")


@pytest.mark.parametrize(
    "text",
    [
        "[console_scripts",
        "x = y:z",
        "[console_scripts]\na = b:c\na = d:e\n",
        "[console_scripts]\n = :\n",
        "[a]\n%(x)s\n",
    ],
)
def test_entry_points_that_are_none(tmp_path: Path, text: str) -> None:
    files = {"pkg.py": b"", "pkg-1.0.dist-info/entry_points.txt": text.encode()}
    expect("pkg-1.0", lambda: layer(wheel(tmp_path, files)))


def test_entry_points_without_a_section_are_refused(tmp_path: Path) -> None:
    files = {"pkg.py": b"", "pkg-1.0.dist-info/entry_points.txt": b"x = y:z"}
    with pytest.raises(BuildError, match=r"pkg-1\.0-py3-none-any\.whl` cannot be installed: .*section"):
        layer(wheel(tmp_path, files))


@pytest.mark.parametrize("flag", ["encrypted", "unknown compression"])
def test_a_wheel_that_zipfile_cannot_read(tmp_path: Path, flag: str) -> None:
    path = make_wheel(tmp_path, "pkg", "1.0")
    data = bytearray(path.read_bytes())
    position = 0
    while (position := data.find(b"PK\x01\x02", position)) >= 0:
        data[position + (8 if flag == "encrypted" else 10)] |= 1 if flag == "encrypted" else 99
        local = int.from_bytes(data[position + 42 : position + 46], "little")
        data[local + (6 if flag == "encrypted" else 8)] |= 1 if flag == "encrypted" else 99
        position += 4
    path.write_bytes(bytes(data))
    with pytest.raises(BuildError, match=r"`pkg-1\.0-py3-none-any\.whl` is not a wheel: "):
        read_wheel(path, sha256="0" * 64)


@QUICK
@given(DAMAGES)
def test_a_damaged_source(tmp_path_factory: pytest.TempPathFactory, damage: Damage) -> None:
    path = damaged(source_distribution(tmp_path_factory.mktemp("source"), name="pkg", tag="py3-none-any"), damage)
    expect(path.name, lambda: build_requirements(path, {}))


@pytest.mark.parametrize(
    "pyproject",
    [
        b"[build-system]\nrequires = [" + b"[" * 20_000,
        b"[build-system]\nrequires = [" + b"1" * 5_000 + b"]",
        b"[build-system]\nrequires = 5",
        b"[build-system]\nrequires = ['a ; os_name ~= \"x\"']",
        b"[build-system]\nrequires = ['a ; " + b"(" * 5_000 + b"']",
        b"build-system = 1",
        b"\xff",
    ],
)
def test_a_source_that_asks_for_what_nobody_can_read(tmp_path: Path, pyproject: bytes) -> None:
    path = tmp_path / "pkg-1.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pkg-1/pyproject.toml", pyproject)
    with pytest.raises(BuildError, match=r"`pkg-1\.zip`"):
        build_requirements(path, {"os_name": "posix"})


def test_a_source_of_another_compression(tmp_path: Path) -> None:
    path = tmp_path / "pkg-1.tar.bz2"
    path.write_bytes(bz2.compress(b"x" * 2_000)[:-20])
    with pytest.raises(BuildError, match=r"`pkg-1\.tar\.bz2` cannot be read as a source distribution"):
        build_requirements(path, {})


def test_a_size_in_a_tar_that_no_file_can_have(tmp_path: Path) -> None:
    header = bytearray(tar_header(TarEntry("x", size=1)))
    header[124:136] = b"\x80" + ((1 << 63) - 1).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    for stream, seeks in ((path.open("rb"), True), (io.BytesIO(path.read_bytes()), False)):
        with stream, pytest.raises(IntegrityError, match="truncated"):
            list(TarReader(stream, what="layer", seeks=seeks))


def test_a_wheel_that_asks_for_no_python_is_named(tmp_path: Path) -> None:
    from test_near_direct_wheels import TARGET

    from airferry.near.wheels.pack import check_target

    path = make_wheel(tmp_path, "pkg", "1.0", requires_python="three")
    made = read_wheel(path, sha256=sha256(path))
    with pytest.raises(BuildError, match=r"`pkg-1\.0-py3-none-any\.whl` asks for a Python that cannot be: `three`"):
        check_target(made, TARGET)
