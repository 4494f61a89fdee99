"""Wheels in a new layer: what lands where, and every wheel that is refused."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from airferry.errors import BuildError
from airferry.near.assemble.tree import LayerTree
from airferry.near.assemble.wheels import InstallScheme, WheelInstaller, install_scheme, recorded_files
from airferry.near.wheels.pack import Wheel
from airferry.near.wheels.pip import WheelTarget
from airferry.plan.locks.packages import GitSource
from base_trees import EPOCH_S, Base, Entry, link
from wheel_factory import WHEEL, make_probe, record_hash, sha256, wheel_of

SCHEME = InstallScheme(
    purelib="/usr/local/lib/python3.11/dist-packages",
    platlib="/usr/local/lib/python3.11/dist-packages",
    scripts="/usr/local/bin",
    data="/usr/local",
    include="/usr/local/include/python3.11",
    interpreter="/usr/bin/python3",
)
TARGET = WheelTarget((3, 11, 2), "cp311", "glibc", (2, 36), "x86_64")
LIB = "usr/local/lib/python3.11/dist-packages"


def wheel(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    name: str = "pkg",
    tag: str = "py3-none-any",
    record: str | None = None,
    executable: tuple[str, ...] = (),
    metadata: str = WHEEL,
) -> Wheel:
    path = wheel_of(folder, name, "1.0", files, tag=tag, record=record, executable=executable, wheel=metadata)
    return Wheel(name, "1.0", path.name, sha256(path), path)


def layer(
    *wheels: Wheel, base: Base | None = None, owned: Mapping[str, tuple[str, str]] | None = None, **fields: object
) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """Install wheels and return the members of the layer with their contents."""
    tree = LayerTree(base or Base(), epoch_s=EPOCH_S)
    with WheelInstaller(tree, SCHEME, TARGET, owned=(owned or {}).get) as installer:
        for item in wheels:
            installer.add(item, **fields)  # type: ignore[arg-type]
        data = b"".join(tree.blocks())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            member.name: (member, stream.read() if (stream := tar.extractfile(member)) else b"")
            for member in tar.getmembers()
        }


def test_files_scripts_data_and_record_land_in_the_bases_own_scheme(tmp_path: Path) -> None:
    made = layer(
        wheel(
            tmp_path,
            {
                "pkg/__init__.py": b"X = 1\n",
                "pkg/tool.so": b"\x7fELF",
                "pkg/__pycache__/x.cpython-311.pyc": b"code",
                "pkg-1.0.data/scripts/run": b"#!python -E\nprint()\n",
                "pkg-1.0.data/scripts/plain": b"#!/bin/sh\n",
                "pkg-1.0.data/data/share/pkg/x.txt": b"data",
                "pkg-1.0.data/headers/pkg.h": b"#define X",
                "pkg-1.0.data/purelib/other.py": b"pass\n",
                "pkg-1.0.dist-info/entry_points.txt": b"[console_scripts]\npkg = pkg:main\n",
            },
            executable=("pkg/tool.so", "pkg-1.0.data/scripts/run"),
        )
    )
    modes = {name: member.mode for name, (member, _data) in made.items() if member.isfile()}
    assert modes == {
        f"{LIB}/pkg/__init__.py": 0o644,
        f"{LIB}/pkg/tool.so": 0o755,
        f"{LIB}/other.py": 0o644,
        f"{LIB}/pkg-1.0.dist-info/METADATA": 0o644,
        f"{LIB}/pkg-1.0.dist-info/WHEEL": 0o644,
        f"{LIB}/pkg-1.0.dist-info/RECORD": 0o644,
        f"{LIB}/pkg-1.0.dist-info/INSTALLER": 0o644,
        f"{LIB}/pkg-1.0.dist-info/REQUESTED": 0o644,
        f"{LIB}/pkg-1.0.dist-info/entry_points.txt": 0o644,
        "usr/local/bin/pkg": 0o755,
        "usr/local/bin/run": 0o755,
        "usr/local/bin/plain": 0o644,
        "usr/local/share/pkg/x.txt": 0o644,
        "usr/local/include/python3.11/pkg/pkg.h": 0o644,
    }
    assert made["usr/local/bin/run"][1] == b"#!/usr/bin/python3\nprint()\n"
    assert made["usr/local/bin/pkg"][1].startswith(b"#!/usr/bin/python3\n")
    record = {row[0]: row[1:] for row in csv.reader(made[f"{LIB}/pkg-1.0.dist-info/RECORD"][1].decode().splitlines())}
    assert record.pop("pkg-1.0.dist-info/RECORD") == ["", ""]
    installed = {recorded(path): made[recorded(path)][1] for path in record}
    assert set(installed) == set(modes) - {f"{LIB}/pkg-1.0.dist-info/RECORD"}
    assert {recorded(path): row for path, row in record.items()} == {
        path: [record_hash(data), str(len(data))] for path, data in installed.items()
    }
    assert "../../../bin/pkg" in record


def recorded(path: str) -> str:
    found = next(iter(recorded_files(f"{path},sha256=x,1", library="/" + LIB)))
    return found.removeprefix("/")


def test_a_distribution_from_git_says_where_it_is_from_without_credentials(tmp_path: Path) -> None:
    git = GitSource("https://user:secret@git.example/pkg.git", "0" * 40, "python")
    made = layer(wheel(tmp_path, {"pkg.py": b""}), git=git)
    assert json.loads(made[f"{LIB}/pkg-1.0.dist-info/direct_url.json"][1]) == {
        "url": "https://git.example/pkg.git",
        "subdirectory": "python",
        "vcs_info": {"vcs": "git", "commit_id": "0" * 40, "requested_revision": "0" * 40},
    }


def test_a_linked_library_folder_stays_a_link(tmp_path: Path) -> None:
    base = Base({"usr/local/lib": link("lib64"), "usr/local/lib64": Entry()})
    made = layer(wheel(tmp_path, {"pkg.py": b""}), base=base)
    assert "usr/local/lib64/python3.11/dist-packages/pkg.py" in made
    assert "usr/local/lib" not in made


@pytest.mark.parametrize(
    "member",
    ["../evil.py", "/etc/evil", "pkg/../../evil.py", "pkg\\..\\evil.py", "pkg-1.0.data/scripts/../evil", "a//b"],
)
def test_members_that_lead_out_are_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(BuildError, match="points outside its folder"):
        layer(wheel(tmp_path, {member: b"x"}))


def test_an_entry_point_that_leads_out_is_refused(tmp_path: Path) -> None:
    bad = wheel(tmp_path, {"pkg-1.0.dist-info/entry_points.txt": b"[console_scripts]\n../x = pkg:main\n"})
    with pytest.raises(BuildError, match="not a valid script name"):
        layer(bad)


def test_a_wheel_for_another_platform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"is not compatible with CPython 3\.11\.2 on x86_64 with glibc 2\.36"):
        layer(wheel(tmp_path, {"pkg.py": b""}, tag="cp311-cp311-manylinux_2_28_aarch64"))


INFO = "pkg-1.0.dist-info"
METADATA = b"Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\n"
TRUE_ROWS = [
    f"{INFO}/METADATA,{record_hash(METADATA)},{len(METADATA)}",
    f"{INFO}/WHEEL,{record_hash(WHEEL.encode())},{len(WHEEL)}",
    f"{INFO}/RECORD,,",
]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("pkg.py,sha256=AAAA,5", "`pkg.py` does not match its RECORD"),
        (f"pkg.py,{record_hash(b'right')},4", "says 4 bytes of `pkg.py`, which has 5"),
        ("pkg.py,,", "no valid hash for `pkg.py`"),
        ("pkg.py,md5=AAAA,5", "no valid hash for `pkg.py`"),
        ("pkg.py,nonsense,5", "does not follow the required format"),
        ("other.py,sha256=AAAA,5", "does not name `pkg.py`"),
        ("pkg.py,sha256=AAAA", "expected 3 elements"),
    ],
)
def test_a_wheel_whose_record_lies_is_refused(tmp_path: Path, row: str, message: str) -> None:
    lying = wheel(tmp_path, {"pkg.py": b"right"}, record="\n".join([row, *TRUE_ROWS]) + "\n")
    with pytest.raises(BuildError, match=r"`pkg-1\.0-py3-none-any\.whl` cannot be installed") as caught:
        layer(lying)
    assert message in caught.value.message


def test_damaged_wheels_are_refused(tmp_path: Path) -> None:
    good = wheel(tmp_path, {"pkg.py": b"x" * 1000})
    data = good.path.read_bytes()
    good.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BuildError, match="not a zip file"):
        layer(good)
    at = data.index(b"pkg.py") + len("pkg.py")
    good.path.write_bytes(data[:at] + b"\xff\xff\xff" + data[at + 3 :])
    with pytest.raises(BuildError, match="cannot be installed"):
        layer(good)
    with pytest.raises(BuildError, match="Incompatible Wheel-Version"):
        layer(wheel(tmp_path, {"pkg.py": b""}, metadata=WHEEL.replace("1.0", "2.0")))


def test_a_file_that_another_distribution_owns_is_refused_unless_it_is_the_same(tmp_path: Path) -> None:
    place = f"{LIB}/shared.py"
    base = Base({place: Entry(b"0", 0o644)})
    new = wheel(tmp_path, {"shared.py": b"new"})
    with pytest.raises(BuildError, match=f"brings `/{place}`, which belongs to `other 2.0` of the base"):
        layer(new, base=base, owned={place: ("other 2.0", record_hash(b"old"))})
    assert layer(new, base=base, owned={place: ("other 2.0", record_hash(b"new"))})[place][1] == b"new"
    assert layer(new, base=base)[place][1] == b"new"


def test_two_additions_with_different_files_in_one_place_are_refused(tmp_path: Path) -> None:
    one = wheel(tmp_path, {"shared.py": b"one"}, name="one")
    two = wheel(tmp_path, {"shared.py": b"two"}, name="two")
    with pytest.raises(BuildError, match="both contain"):
        layer(one, two)


def test_the_scheme_follows_from_what_the_probe_found() -> None:
    facts = make_probe().python.model_copy(
        update={
            "in_venv": True,
            "executable": "/opt/venv/bin/python",
            "paths": {
                "purelib": "/opt/venv/lib/python3.11/site-packages",
                "platlib": "/opt/venv/lib64/python3.11/site-packages",
                "scripts": "/opt/venv/bin",
            },
        }
    )
    scheme = install_scheme(facts)
    assert scheme.folder("platlib", "pkg") == "/opt/venv/lib64/python3.11/site-packages"
    assert scheme.folder("data", "pkg") == "/opt/venv"
    assert scheme.folder("headers", "pkg") == "/opt/venv/include/site/python3.11/pkg"
    with pytest.raises(BuildError, match="does not report where its `purelib` is"):
        install_scheme(make_probe().python)
