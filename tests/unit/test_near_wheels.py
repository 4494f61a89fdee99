"""Wheels are chosen for the target, checked against the lock and kept by their hash. No index is asked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from packaging.tags import Tag

from airferry.errors import BuildError, IntegrityError
from airferry.near.wheels.pack import Wheel, normalise_wheel, read_wheel
from airferry.near.wheels.pip import WheelTarget, wheel_target
from airferry.near.wheels.store import Pin, WheelStore
from folder_pip import FolderPip
from wheel_factory import make_probe, make_wheel, sha256, source_distribution

AMD64 = wheel_target(make_probe().python)


ARM64 = wheel_target(make_probe(machine="aarch64", libc=("glibc", "2.28")).python)


def store(cache: Path, index: Path | None) -> WheelStore:
    return WheelStore(cache, FolderPip(folder=index or cache))


def test_the_newest_wheel_for_the_target_is_chosen_in_one_call(tmp_path: Path) -> None:
    index = tmp_path / "index"
    make_wheel(index, "pure", "1.0")
    make_wheel(index, "pure", "2.0")
    make_wheel(index, "native", "1.0", tag="cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64")
    make_wheel(index, "native", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64")
    make_wheel(index, "native", "2.0", tag="cp311-cp311-manylinux_2_35_aarch64")
    make_wheel(index, "future", "1.0")
    make_wheel(index, "future", "2.0", requires_python=">=3.12")
    calls: list[object] = []
    wheels = WheelStore(tmp_path / "cache", FolderPip(emit=calls.append, folder=index))
    found = wheels.fetch([Pin("pure", "<3"), Pin("native"), Pin("future")], ARM64)
    assert [wheel.filename for wheel in found] == [
        "pure-2.0-py3-none-any.whl",
        "native-1.0-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
        "future-1.0-py3-none-any.whl",
    ]
    assert len(calls) == 1
    assert all(wheel.path.is_file() and sha256(wheel.path) == wheel.sha256 for wheel in found)


def test_a_locked_wheel_in_the_cache_needs_no_pip_at_all(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", "pure", "1.0", requires=["other>=1"])
    first = store(tmp_path / "cache", tmp_path / "index").fetch([Pin("pure")], AMD64)[0]
    locked = Pin("pure", "==1.0", filename=first.filename, sha256=first.sha256)
    calls: list[object] = []
    again = WheelStore(tmp_path / "cache", FolderPip(emit=calls.append)).fetch([locked], AMD64)
    assert again == [first]
    assert again[0].requires == ("other>=1",)
    assert calls == []


def test_a_damaged_wheel_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", "pure", "1.0")
    wheels = store(tmp_path / "cache", tmp_path / "index")
    first = wheels.fetch([Pin("pure")], AMD64)[0]
    first.path.write_bytes(first.path.read_bytes()[:-1])
    locked = Pin("pure", "==1.0", filename=first.filename, sha256=first.sha256)
    assert sha256(wheels.fetch([locked], AMD64)[0].path) == first.sha256


@pytest.mark.parametrize("pin", [Pin("pure", "==1.0", sha256="0" * 64), Pin("pure", hashes=frozenset({"1" * 64}))])
def test_another_hash_than_the_locked_one_is_an_integrity_error(tmp_path: Path, pin: Pin) -> None:
    make_wheel(tmp_path / "index", "pure", "1.0")
    with pytest.raises(IntegrityError, match="SHA-256"):
        store(tmp_path / "cache", tmp_path / "index").fetch([pin], AMD64)
    assert not list((tmp_path / "cache" / "wheels").glob("*/*.whl"))


def test_any_of_the_hashes_of_the_catalogue_will_do(tmp_path: Path) -> None:
    path = make_wheel(tmp_path / "index", "pure", "1.0")
    pin = Pin("pure", "==1.0", hashes=frozenset({"1" * 64, sha256(path)}))
    assert store(tmp_path / "cache", tmp_path / "index").fetch([pin], AMD64)[0].sha256 == sha256(path)


def test_a_wheel_whose_metadata_tells_another_name_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "pure", "1.0", said_name="evil")
    with pytest.raises(BuildError, match="contains metadata of"):
        read_wheel(path, sha256="")


def test_a_source_with_another_hash_is_never_unpacked(tmp_path: Path) -> None:
    source_distribution(tmp_path / "index", name="onlysource", tag="py3-none-any")
    pin = Pin("onlysource", "==1.0", hashes=frozenset({"2" * 64}))
    with pytest.raises(IntegrityError, match="onlysource"):
        store(tmp_path / "cache", tmp_path / "index").fetch([pin], ARM64)


def test_no_wheel_for_the_platform_names_the_platforms_that_there_are(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", "native", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    make_wheel(tmp_path / "index", "native", "2.0", tag="cp311-cp311-win_amd64")
    with pytest.raises(BuildError, match=r"aarch64 with glibc 2\.28.*`manylinux_2_17_x86_64`") as caught:
        store(tmp_path / "cache", tmp_path / "index").fetch([Pin("native", "==1.0")], ARM64)
    assert caught.value.fields["platforms"] == ["manylinux_2_17_x86_64"]


def test_all_that_has_no_wheel_is_named_at_once(tmp_path: Path) -> None:
    for name in ("native", "other"):
        make_wheel(tmp_path / "index", name, "1.0", tag="cp311-cp311-win_amd64")
    with pytest.raises(BuildError, match=r"^`native==1\.0` has no wheel .*\n`other==1\.0` has no wheel") as e:
        store(tmp_path / "cache", tmp_path / "index").fetch([Pin("native", "==1.0"), Pin("other", "==1.0")], ARM64)
    assert (e.value.hint or "").count("set a version") == 1


def test_what_cannot_be_found_is_named_with_the_versions_there_are(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", "pure", "1.0")
    with pytest.raises(BuildError, match=r"`pure==9` was not found .*`1\.0`"):
        store(tmp_path / "cache", tmp_path / "index").fetch([Pin("pure", "==9")], AMD64)
    with pytest.raises(BuildError, match="`absent` was not found"):
        store(tmp_path / "cache", tmp_path / "index").fetch([Pin("pure"), Pin("absent")], AMD64)


def test_normalising_hides_time_and_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, two = tmp_path / "a" / "one", tmp_path / "a" / "two"
    with zipfile.ZipFile(one, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("b", (1990, 1, 1, 0, 0, 0)), b"B" * 100)
        archive.writestr(zipfile.ZipInfo("a", (1999, 1, 1, 0, 0, 0)), b"A")
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("a", b"A")
        archive.writestr("b", b"B" * 100)
    normalise_wheel(one, tmp_path / "one")
    normalise_wheel(two, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tags_of_other_targets() -> None:
    musl = wheel_target(make_probe(libc=("musl", "1.2.4"), machine="aarch64").python)
    assert musl.platforms == [
        *(f"musllinux_1_{minor}_aarch64" for minor in (2, 1, 0)),
        "linux_aarch64",
    ]
    assert Tag("cp311", "cp311", "manylinux2014_aarch64") in ARM64.tags
    assert Tag("cp38", "abi3", "manylinux_2_28_aarch64") in ARM64.tags
    assert Tag("cp311", "cp311", "manylinux_2_29_aarch64") not in ARM64.tags
    assert Tag("cp311", "cp311", "manylinux1_x86_64") in AMD64.tags


@pytest.mark.parametrize(
    "probe", [make_probe(implementation="pypy"), make_probe(libc=("", "")), make_probe(version="strange")]
)
def test_an_interpreter_that_no_wheel_can_be_chosen_for(probe: object) -> None:
    with pytest.raises(BuildError, match="cannot choose wheels"):
        wheel_target(probe.python)  # type: ignore[attr-defined]


def test_a_wheel_that_does_not_suit_the_target_is_refused_even_when_locked(tmp_path: Path) -> None:
    path = make_wheel(tmp_path / "index", "native", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    wheels = store(tmp_path / "cache", tmp_path / "index")
    wheel = wheels.fetch([Pin("native")], AMD64)[0]
    with pytest.raises(BuildError, match="is not compatible with"):
        wheels.fetch([Pin("native", "==1.0", filename=path.name, sha256=wheel.sha256)], ARM64)


def test_types_are_values() -> None:
    assert str(WheelTarget((3, 11, 2), "cp311", "glibc", (2, 36), "x86_64")) == str(AMD64)
    assert Wheel("a", "1", "f", "0", Path("x")) == Wheel("a", "1", "f", "0", Path("y"))
