"""Work is bounded, products too: what others wrote is refused by a limit that is named, before it takes long."""

from __future__ import annotations

import gzip
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from airferry.assets.manifest import (
    MAX_ASSET_LINE_BYTES,
    AssetFile,
    AssetLink,
    AssetManifest,
    parse_asset_manifest,
)
from airferry.assets.record import record_asset
from airferry.assets.staged import compare_asset
from airferry.bundle import beside
from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.catalogue import CataloguePaths
from airferry.bundle.manifest import SavedImage
from airferry.bundle.tree_paths import MAX_PATH_FOLDERS
from airferry.bundle.verify import Bundle, open_bundle
from airferry.config.load import check_site
from airferry.errors import BuildError, ConfigurationError, HostError, IntegrityError
from airferry.events import Emit
from airferry.far import shipments
from airferry.far.relocate import parse_destination
from airferry.host import parsing
from airferry.host.parsing import Malformed, PythonTrees, parse_python, parse_toml
from airferry.jobs import configs
from airferry.near.git import driver
from airferry.near.git.driver import Submodule
from airferry.near.lock import closure as lock_closure
from airferry.near.wheels import pip
from airferry.near.wheels.pack import Wheel, read_wheel
from airferry.oci import closure
from airferry.oci.closure import Closure, read_closure, subjects_first
from airferry.oci.codecs import inflate
from airferry.oci.copy import image_shipments
from airferry.oci.documents import CONTAINERD_SUBJECT, Descriptor
from airferry.oci.entries import named
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Source, Stored
from airferry.oci.tar import END_OF_ARCHIVE, MAX_TAIL_BYTES, TarReader
from airferry.plan import config_images
from airferry.plan.catalogue import Catalogue, find_step, parse_target
from airferry.plan.code import commands
from airferry.plan.code.imports import ImportScanner
from airferry.plan.code.job_path import PathScanner
from airferry.plan.env_profiles import read_env_file
from airferry.plan.step_config import StepConfigReader
from airferry.plan.step_values import read_step_values, resolve_texts
from airferry.rootfs import files, layers, view
from airferry.wording import near_names
from catalogues import STEPS, write_step
from layer_tars import Item, facts_of, folder, link, view_of
from oci_images import make_bundle, put_image, put_index
from wheel_factory import make_probe, make_wheel

SHA256 = "0" * 64


@contextmanager
def quickly(seconds: float = 3.0) -> Iterator[None]:
    """See that a block takes less than seconds of this process's time, far less than what it guards against."""
    began = time.process_time()
    yield
    assert time.process_time() - began < seconds


# --- assets ----------------------------------------------------------------------------------------------------------


def asset(*paths: str, links: tuple[AssetLink, ...] = ()) -> AssetManifest:
    return AssetManifest("thing", "model", tuple(AssetFile(path, 1, SHA256) for path in paths), links)


def test_paths_that_are_deep_are_refused_by_the_number_of_their_folders() -> None:
    deep = "a/" * 1_500
    data = asset(*(f"{deep}{number:04}" for number in range(500))).to_bytes()
    with quickly(), pytest.raises(IntegrityError, match=f"lies in more than {MAX_PATH_FOLDERS} folders, the limit"):
        parse_asset_manifest(data, what="it")
    most = asset("a/" * MAX_PATH_FOLDERS + "x")
    assert parse_asset_manifest(most.to_bytes(), what="it") == most


def test_a_tree_that_is_too_deep_to_travel_is_not_recorded(tmp_path: Path) -> None:
    folder = tmp_path / ("a/" * (MAX_PATH_FOLDERS + 1))
    folder.mkdir(parents=True)
    (folder / "x").write_text("x")
    with pytest.raises(BuildError, match=f"more than {MAX_PATH_FOLDERS} folders"):
        record_asset(tmp_path, name="thing", kind="model")
    assert "folders, the limit" in str(CataloguePaths().trouble(b"a/" * 200 + b"x"))


@pytest.mark.parametrize(
    ("paths", "below"),
    [
        (("a", "a/b"), "a/b"),
        (("a", "a-x", "a.b", "a/b/c"), "a/b/c"),
        (("a/b", "a/b/c", "a/b-c"), "a/b/c"),
        (("a", "ab", "a b", "b/a"), None),
        (("a/b", "a/c", "a-b/c"), None),
    ],
)
def test_nothing_is_below_a_file(paths: tuple[str, ...], below: str | None) -> None:
    data = asset(*paths).to_bytes()
    if below is None:
        assert len(parse_asset_manifest(data, what="it").files) == len(paths)
        return
    with pytest.raises(IntegrityError, match=f"`{below}` is below a path that is not a folder"):
        parse_asset_manifest(data, what="it")


def test_a_line_of_an_asset_manifest_is_bounded() -> None:
    head = asset("a").to_bytes().partition(b"\n")[0] + b"\n"
    for line in (b"[" + b"{}," * 100_000 + b"{}]\n", b"[" * 100_000):
        with quickly(), pytest.raises(IntegrityError, match=f"a line of more than {MAX_ASSET_LINE_BYTES} bytes"):
            parse_asset_manifest(head + line, what="it")
    with pytest.raises(IntegrityError, match="its last line is truncated"):
        parse_asset_manifest(head + b'["file"', what="it")
    longest = asset("/".join(["%01" * 200] * 20))
    assert parse_asset_manifest(longest.to_bytes(), what="it") == longest


def test_links_to_links_are_followed_as_far_as_linux_follows_them(tmp_path: Path) -> None:
    links = tuple(AssetLink(f"l{number:05}", f"l{number + 1:05}") for number in range(3_000))
    links += (AssetLink("l03000", "file"),)
    links += (AssetLink("o", "p"), AssetLink("p", "o"), AssetLink("q", "o"), AssetLink("r", "gone"))
    manifest = asset("file", links=links)
    with quickly():
        found = [manifest.linked_file(link) for link in links]
    assert found[-44:] == [manifest.files[0]] * 40 + [None] * 4
    assert found[:-44] == [None] * (len(links) - 44)
    (tmp_path / "file").write_text("x")
    with quickly():
        compare_asset(manifest, tmp_path, content=False)


# --- tars ------------------------------------------------------------------------------------------------------------


class Zeros(io.RawIOBase):
    """A tar that never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = size or 0
        self.given += wanted
        return bytes(wanted)


def test_what_comes_after_the_end_of_a_tar_is_bounded() -> None:
    stream = Zeros()
    with quickly(), pytest.raises(IntegrityError, match=f"more than {MAX_TAIL_BYTES} bytes after its end"):
        list(TarReader(stream, what="it"))  # type: ignore[arg-type]
    assert stream.given < 2 * MAX_TAIL_BYTES
    assert list(TarReader(io.BytesIO(END_OF_ARCHIVE + bytes(2 << 20)), what="it")) == []


# --- Git -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repositories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], list[str]]:
    """Repositories of so many submodules in each level; returned are the commits that were looked at."""

    def make(width: int) -> list[str]:
        looked: list[str] = []

        def submodules(_repository: Path, url: str, _commit: str) -> list[Submodule]:
            looked.append(url)
            level = int(url.rpartition("/")[2])
            return [Submodule(f"s{number}", f"/r/{level - 1}", "a" * 40) for number in range(width if level else 0)]

        @contextmanager
        def locked(_url: str, _cache: Path, *, emit: Emit) -> Iterator[Path]:
            yield tmp_path

        monkeypatch.setattr(driver, "_submodules", submodules)
        monkeypatch.setattr(driver, "locked_repository", locked)
        monkeypatch.setattr(driver, "has_commit", lambda _repository, _commit: True)
        monkeypatch.setattr(driver, "_repository", lambda _url, _cache: tmp_path)
        return looked

    return make


def test_submodules_of_submodules_are_counted_before_they_are_many(
    repositories: Callable[[int], list[str]], tmp_path: Path
) -> None:
    looked = repositories(3)
    with pytest.raises(BuildError, match="has more than 500 submodules, theirs included, the limit"):
        driver.fetch_overlay("/r/8", "a" * 40, cache=tmp_path)
    # each level is looked at once, where 3 to the power of 8 repositories were visited
    assert len(looked) <= 9
    assert driver.fetch_overlay("/r/4", "a" * 40, cache=tmp_path) == tmp_path


def test_a_checkout_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "checkout_bytes", lambda _url, _commit, *, cache: 1 << 60)
    with pytest.raises(HostError, match=r"1048576\.0 TiB of files, but only"):
        driver.export_overlay("/r/1", "a" * 40, cache=tmp_path, into=tmp_path / "into")
    assert not (tmp_path / "into").exists()


# --- TOML ------------------------------------------------------------------------------------------------------------

LONG_KEYS = {
    "header": "[" + "a." * 5_000 + "a]\n" + "".join(f"k{number}=1\n" for number in range(5_000)),
    "key": "x=1\n\n" + "a." * 32 + "a=1\n",
    "quoted": "a={" + '"\\"".' * 32 + "a=1}\n",
    "literal": "'a' . " * 32 + "a=1\n",
}


@pytest.mark.parametrize("text", LONG_KEYS.values(), ids=LONG_KEYS)
def test_keys_of_toml_have_a_bounded_number_of_parts(text: str) -> None:
    with quickly(), pytest.raises(Malformed, match="a key of more than 32 parts, the limit") as caught:
        parse_toml(text)
    assert caught.value.line == (3 if text.startswith("x") else 1)


@pytest.mark.parametrize(
    "line", ['"\\' * 200_000, '"' * 200_000, "a " * 200_000, "." * 200_000, "' \"." * 100_000, "a" * 400_000 + "." * 32]
)
def test_looking_for_such_keys_takes_no_longer_than_reading(line: str) -> None:
    with quickly(), suppress(Malformed):
        parse_toml(line + "." * 32)


def test_what_toml_may_hold_is_read() -> None:
    assert parse_toml("a." * 31 + "a=1")
    assert parse_toml('a="' + "1." * 31 + '1"\nb=[' + '"x.y",' * 40 + "]")["b"] == ["x.y"] * 40
    with pytest.raises(Malformed, match="more than 4000000 values"):
        parse_toml("a=[" + "[]," * 2_000_000 + "]")


@pytest.mark.parametrize("number", ["0x" + "f" * 16, "-9223372036854775809", "0b" + "1" * 64, "0o" + "7" * 5_000])
def test_integers_of_toml_have_64_bits(number: str) -> None:
    with pytest.raises(Malformed, match="64 bits") as caught:
        parse_toml(f"a = 1\nb = [{{c = {number}}}]\n")
    assert caught.value.line == 2
    assert parse_toml(f"a = 9223372036854775807\nb = '{number}'")["a"] == (1 << 63) - 1


# --- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (configs._INTERPOLATION, "\\" * 100_000),
        (commands._INSTALLER_WITHIN, "pip " * 50_000),
        (pip._WHEEL, "." * 100_000),
        (pip._WHEEL, "a-" * 50_000),
        (files._GLIBC, b"a" * 200_000),
        (config_images._DEFAULTED, "${oc.env:A," + " " * 20_000),
    ],
)
def test_patterns_over_foreign_text_take_linear_time(pattern: re.Pattern[Any], text: Any) -> None:
    with quickly():
        assert not pattern.findall(text) or pattern is commands._INSTALLER_WITHIN


def test_a_table_of_a_profile_is_looked_for_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "env.toml"
    quotes = "'" * 3
    path.write_text(f"a = {quotes}\n[{' ' * 20_000}\n{quotes}\n[ table ]\nkey = 1\n")
    with quickly():
        assert read_env_file(path).line("table", "key") == 5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("${oc.env:A,x}", "x"),
        ("${oc.env:A, 'a/b:1' }", "a/b:1"),
        ("${oc.env:R,r.example}/${ oc.env : N , 'n' }:1", "r.example/n:1"),
        ("${oc.env:A,''}", "${oc.env:A,''}"),
        ("${oc.env:A, }", "${oc.env:A, }"),
        ("${oc.env:A,a'b'c}", "${oc.env:A,a'b'c}"),
    ],
)
def test_an_image_that_a_variable_names_by_default_is_read(text: str, wanted: str) -> None:
    assert config_images._DEFAULTED.sub(config_images._default_of, text) == wanted


def test_an_installer_within_other_arguments_is_found_in_linear_time() -> None:
    with quickly():
        assert not commands._installs_within("pip " * 50_000)
    for text in ("su -c pip install x", "uv tool add x", "flock /l pip  install"):
        assert commands._installs_within(text)
    for text in ("pip list installed", "mypip install", "install pip ", "pip install-x"):
        assert not commands._installs_within(text)


# --- names that are meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [lambda n: f"{n:064b}", lambda n: "a" * 60 + str(n), lambda n: "ab" * 2_000 + str(n)])
def test_the_nearest_of_a_million_names_is_found_in_bounded_time(made: Callable[[int], str]) -> None:
    known = [made(number) for number in range(20_000)]
    with quickly():
        near_names(made(1)[::-1], known, most=5, cutoff=0.5)
        near_names("steps/train", known)


def test_names_that_look_alike_are_near_whatever_else_there_is() -> None:
    known = [f"other-{number}" for number in range(5_000)]
    assert near_names("trian", [*known, "train", "test"]) == ["train"]
    assert near_names("trian", ["train", "trail", "x"], most=2, cutoff=0.5) == ["train", "trail"]
    assert near_names("a" * 65, ["a" * 64]) == near_names("a", []) == []


# --- Python of others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["a," * 150_000, "[]," * 100_000, "a and " * 210_000 + "a", b"f(1)\n" * 60_000])
def test_a_tree_of_python_is_bounded(source: str | bytes) -> None:
    with quickly(), pytest.raises(Malformed, match="more than 200000 names and signs, the limit for a Python file"):
        parse_python(source)


def test_long_texts_and_indentation_are_no_names_of_python() -> None:
    with quickly():
        assert parse_python("# " + " " * 500_000 + "\na = 1\nb = '" + "x" * 500_000 + "'\n")


def test_trees_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "MAX_KEPT_PYTHON_BYTES", 10)
    trees = PythonTrees()
    small, large = b"a = 1\n", b"b = 10000\n"
    assert trees.parse(small) is trees.parse(small)
    assert trees.parse(large) is not trees.parse(large)


def test_code_of_a_step_is_read_up_to_a_limit(tmp_path: Path) -> None:
    write_step(tmp_path, "a", source="import sys\nsys.path\n")
    code = next(tmp_path.rglob("step.py"))
    os.truncate(code, 1 << 33)
    catalogue = Catalogue(tmp_path, tmp_path / STEPS, "nemotron.steps")
    step = find_step(catalogue, parse_target("a"))
    with quickly(), pytest.raises(ConfigurationError, match="larger than the limit of 4194304 bytes"):
        ImportScanner(catalogue).candidates(step)
    with quickly():
        assert PathScanner(catalogue).job_path([code], None).folders == ()


# --- what wheels require ---------------------------------------------------------------------------------------------


def test_what_a_wheel_requires_is_bounded(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "wide", "1.0", requires=[f"a{number}" for number in range(10_001)])
    with quickly(), pytest.raises(BuildError, match="more than 10000 requirements, the limit for a wheel"):
        read_wheel(path, sha256="")


def test_what_is_added_to_an_image_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that hands out a wheel for every name, each of which requires more."""
    monkeypatch.setattr(lock_closure, "MAX_ADDED_DISTRIBUTIONS", 50)

    class Generous:
        lock = None

        def fetch(self, pins: Any, _python: Any) -> list[Any]:
            return [
                Wheel(
                    pin.name,
                    "1.0",
                    f"{pin.name}-1.0-py3-none-any.whl",
                    "0" * 64,
                    Path(),
                    (f"{pin.name}0", f"{pin.name}1"),
                )
                for pin in pins
            ]

    closed = lock_closure.DependencyClosure(make_probe(), Generous(), base="b", pip_no_deps=False)  # type: ignore[arg-type]
    closed.add_direct(Requirement("a"), "a", place="step.py:1")
    with quickly(), pytest.raises(BuildError, match="more than 50 distributions would be added, the limit"):
        closed.run()


# --- gzip ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"a"])
def test_a_stream_of_tiny_gzip_members_takes_linear_time(content: bytes) -> None:
    member = gzip.compress(content, mtime=0)
    data = member * 50_000
    for size in (1 << 20, 7, 4096):
        part = data if size > 7 else member * 500
        with quickly():
            plain = b"".join(inflate((part[at : at + size] for at in range(0, len(part), size)), "gzip", what="it"))
        assert plain == content * (len(part) // len(member))
    with pytest.raises(IntegrityError, match="bytes after the end"):
        list(inflate([data + b"x"], "gzip", what="it"))


# --- artifacts of artifacts ------------------------------------------------------------------------------------------


def note(store: LayoutStore, number: int, subject: Descriptor | None = None) -> Descriptor:
    content = ArtifactFile("note", "text/plain", str(number).encode())
    return put_artifact(store, "application/x.note", contents=[content], subject=subject)


def test_referrers_of_many_are_found_by_reading_each_manifest_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    children = [put_image(store, [{"a": str(number).encode()}])[0] for number in range(20)]
    index = put_index(store, children)
    notes = [note(store, number) for number in range(50)]
    store.write_index([named(index, "a.example/x:1"), *notes, note(store, 99, children[3])])
    read: list[str] = []
    read_manifest = LayoutStore.read_manifest

    def counted(self: LayoutStore, descriptor: Descriptor) -> Stored:
        read.append(descriptor.digest)
        return read_manifest(self, descriptor)

    monkeypatch.setattr(LayoutStore, "read_manifest", counted)
    found = image_shipments(store, index, referrers=True)
    assert len(found) == 2
    assert len(read) <= 1 + 20 + 50 + 2
    # what is added is found, as what was remembered is of another index.json
    another = note(store, 100, children[3])
    store.put_manifest(store.read_manifest(another))
    assert len(image_shipments(store, index, referrers=True)) == 3
    assert len(image_shipments(LayoutStore.open(store.path), index, referrers=True)) == 3


def test_artifacts_that_all_refer_to_each_other_come_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    image, _layers = put_image(store, [{"a": b"1"}])
    notes = [note(store, number) for number in range(5)]

    def refer(*pairs: tuple[Descriptor, Descriptor]) -> None:
        entries = [one.annotated(annotations={CONTAINERD_SUBJECT: other.digest}) for one, other in pairs]
        store.write_index([named(image, "a.example/x:1"), *entries])

    refer(*((one, other) for one in notes[:4] for other in [image, *notes[:4]] if one is not other))
    assert len(image_shipments(store, image, referrers=True)) == 5
    refer(*zip(notes, [image, *notes], strict=False))
    with pytest.raises(IntegrityError, match="more than 4 levels deep"):
        image_shipments(store, image, referrers=True)
    refer(*((one, image) for one in notes))
    monkeypatch.setattr(closure, "MAX_REFERRERS", 4)
    with pytest.raises(IntegrityError, match="more than 4 artifacts refer to `sha256:"):
        image_shipments(store, image, referrers=True)


def chain(tmp_path: Path, length: int) -> Bundle:
    """Return a bundle with artifacts that each refer to the one before, listed from the end."""
    path = tmp_path / "bundle"
    make_bundle(path)
    store = LayoutStore.open(path)
    (image,) = open_bundle(path).images.values()
    notes = [image]
    for number in range(length):
        notes.append(note(store, number, notes[-1]))
    bundle = open_bundle(path)
    entries = [*reversed(notes[1:]), *bundle.index.manifests]
    return replace(bundle, index=bundle.index.model_copy(update={"manifests": entries}))


def test_a_chain_of_artifacts_is_put_in_order_by_reading_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = chain(tmp_path, 60)
    read: list[str] = []

    def counted(source: Source, descriptor: Descriptor) -> Closure:
        read.append(descriptor.digest)
        return read_closure(source, descriptor)

    monkeypatch.setattr(shipments, "read_closure", counted)
    destination = parse_destination("localhost:5000/x")
    places = shipments.place_images(bundle, destination)
    found = shipments.plan_shipments(bundle, destination, places)
    assert len(read) == len(set(read)) == len(found)
    subjects = [item.closure.top.subject for item in found]
    digests = [item.descriptor.digest for item in found]
    assert all(subject is None or subject in digests[:at] for at, subject in enumerate(subjects))
    groups = [[item.descriptor.digest for item in group] for group in subjects_first(found)]
    assert [len(group) for group in groups[2:]] == [1] * 59
    assert sorted(digest for group in groups for digest in group) == sorted(digests)
    monkeypatch.setattr(shipments, "MAX_SHIPMENTS", 20)
    with pytest.raises(IntegrityError, match="make more than 20 uploads, the limit"):
        shipments.plan_shipments(bundle, destination, places)


def test_an_archive_of_many_names_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(b"1")
    (tmp_path / "b.tar").hardlink_to(tmp_path / "a.tar")
    hashed: list[Path] = []
    monkeypatch.setattr(beside.files, "file_sha256", lambda path: hashed.append(path) or "0" * 64)
    bundle = chain(tmp_path, 0)
    saved = [
        SavedImage(role="execution", name="x", image="x", reference="x", digest=bundle.root, tar=tar, sha256=sha256)
        for tar in ("a.tar", "a.tar", "./a.tar", "b.tar")
        for sha256 in ("0" * 64, "1" * 64)
    ]
    around = beside.Surroundings(
        tmp_path,
        bundle.documents,
        bundle.index,
        bundle.manifest.model_copy(update={"saved_images": tuple(saved)}),
        bundle.manifest_descriptor,
        bundle.root,
    )
    reported: list[str] = []
    beside.look_beside(around, jobs=2, report=lambda subject, text, _digest: reported.append(f"{subject} {text}"))
    assert len(hashed) == 1
    assert len([text for text in reported if "the manifest says" in text]) == 4


# --- step configs ----------------------------------------------------------------------------------------------------


def doubling(reference: str, *, first: str = "a0: x\n", line: str = "a{n}: '{r}{r}'\n") -> str:
    """Return a config each of whose values refers to the one before twice: 2^29 in all."""
    return first + "".join(line.format(n=n, r=reference.replace("#", str(n - 1))) for n in range(1, 30))


TOO_MANY_STEPS = "take more than 2000 steps to resolve, the limit"
PARTS = "an interpolation of more than 200 names and signs, the limit"
EXPANDING = {
    "doubling": (doubling("${a#}"), TOO_MANY_STEPS),
    "chain": ("a0: x\n" + "".join(f"a{n}: ${{a{n - 1}}}\n" for n in range(1, 300)), TOO_MANY_STEPS),
    "long": ("a: " + "x" * 100_000 + "\n" + "".join(f"b{n}: ${{a}}${{a}}\n" for n in range(100)), TOO_MANY_STEPS),
    "dynamic": (
        doubling("${t.${t.n#}}", first="t:\n  n0: a0\n  a0: x\n", line="  n{n}: a{n}\n  a{n}: '{r}{r}'\n"),
        TOO_MANY_STEPS,
    ),
    "relative": (doubling("${.a#}", first="m:\n  a0: x\n", line="  a{n}: '{r}{r}'\n"), TOO_MANY_STEPS),
    # what no reading of the texts tells
    "select": (doubling("${oc.select:a#}"), TOO_MANY_STEPS),
    "deprecated": (doubling("${oc.deprecated:a#}"), TOO_MANY_STEPS),
    "decoded": (doubling("${oc.decode:'${p}{a#}'}", first="a0: x\np: $\n", line='a{n}: "{r}{r}"\n'), TOO_MANY_STEPS),
    "odd keys": (doubling("${a/#}", first="a/0: x\n", line="a/{n}: '{r}{r}'\n"), TOO_MANY_STEPS),
    "through mappings": (
        doubling("${v#.a}", first="t0: {a: x}\n", line="t{n}: {{a: '{r}{r}'}}\nv{n}: ${{t{n}}}\n") + "v0: ${t0}\n",
        TOO_MANY_STEPS,
    ),
    "nested": ("a: " + "${oc.env:X," * 9 + "x" + "}" * 9, "nest deeper than 8 levels"),
    "opened": ("a: '" + "${" * 3_000 + "'", "nest deeper than 8 levels"),
    "lists in lists": ("a: '${oc.env:A," + "[" * 90 + "]" * 90 + "}'", "nest deeper than 8 levels"),
    "parts of a key": ("a: '${" + "a." * 10_000 + "a}'", PARTS),
    "indexes": ("a: '${a" + "[0]" * 10_000 + "}'", PARTS),
    "arguments": ("a: '${oc.env:A,[" + "1," * 10_000 + "1]}'", PARTS),
    "behind a brace in quotes": ('a: \'${oc.env:A,"}",[' + "1," * 10_000 + "1]}'", PARTS),
    "behind an escaped brace": ("a: '${oc.env:A,\\},[" + "1," * 10_000 + "1]}'", PARTS),
    "behind a mapping": ("a: '${oc.env:A,{a:1},[" + "1," * 10_000 + "1]}'", PARTS),
    "never closed": ("a: '${oc.env:A," + "1," * 10_000 + "'", PARTS),
    "many": ("a:\n" + "- ${x}\n" * 501, "more than 500 interpolations"),
    "many parts": ("a:\n" + f"- ${{{'.'.join('a' * 90)}}}\n" * 30, "more than 5000 names and signs in interpolations"),
    "values": ("a:\n" + "- 1\n" * 5_000, "more than 5000 keys and values"),
}


@pytest.mark.parametrize("name", EXPANDING)
def test_what_a_step_config_expands_to_is_bounded(name: str, tmp_path: Path) -> None:
    text, limit = EXPANDING[name]
    path = tmp_path / "default.yaml"
    path.write_text(text)
    with quickly(), pytest.raises(ConfigurationError, match=limit) as caught:
        read_step_values(StepConfigReader(), path, environment={})
    assert f"{path}:" in caught.value.message


def test_what_step_configs_say_is_far_below_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "default.yaml"
    path.write_text(
        "root: ${oc.env:ROOT,/data}\nmodel: {path: '${root}/m', size: 8}\n"
        + "".join(
            f"run{n}: {{out: '${{root}}/${{.name}}/${{model.path}}', name: n{n}, all: '${{model}}'}}\n"
            for n in range(80)
        )
    )
    values = {value.key: value.value for value in read_step_values(StepConfigReader(), path, environment={}).values}
    assert values["run79", "out"] == "/data/n79//data/m"


def test_what_interpolations_in_merged_configs_take_is_bounded_too(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(doubling("${oc.select:a#}") + "z: ${a29}\n")
    path = tmp_path / "default.yaml"
    path.write_text("defaults: [below]\nz: {b: '${auto_mount:git+https://e.example/r.git@main,/opt/r}'}\n")
    with quickly(), suppress(ConfigurationError):
        StepConfigReader().read(path)
    with quickly(), pytest.raises(ConfigurationError, match=TOO_MANY_STEPS):
        read_step_values(StepConfigReader(), path, environment={})


def test_text_around_interpolations_is_free(tmp_path: Path) -> None:
    path = tmp_path / "default.yaml"
    words = "a [word] {or} two. " * 1_000
    path.write_text(f"n: 1\nlong: '{words}${{n}} {words}'\n")
    values = {value.key: value.value for value in read_step_values(StepConfigReader(), path, environment={}).values}
    assert values["long",] == f"{words}1 {words}"


def test_a_config_without_interpolations_needs_no_omegaconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below.yaml").write_text("a: {x: 1, y: [1, 2]}\nc: 1\n")
    path = tmp_path / "default.yaml"
    path.write_text("defaults: below\na: {y: [3], z: null}\n")
    expected = read_step_values(StepConfigReader(), path, environment={})
    assert expected.tree == {"a": {"x": 1, "y": [3], "z": None}, "c": 1}
    monkeypatch.setattr(OmegaConf, "create", lambda *_: pytest.fail("used"))
    assert read_step_values(StepConfigReader(), path, environment={}) == expected


def test_a_variable_of_a_profile_that_nests_too_deeply_stays_as_it_is_written() -> None:
    text = "${oc.env:X," * 300 + "x" + "}" * 300
    with quickly():
        assert resolve_texts({"A": text, "B": "${oc.env:X,1}"}, environment={}) == {"A": text, "B": "1"}


# --- layers ----------------------------------------------------------------------------------------------------------


def test_names_of_a_layer_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_LAYER_NAMES_CHARACTERS", 20_000)
    with pytest.raises(IntegrityError, match="more than 20000 characters of names, the limit"):
        facts_of(folder("/".join([f"{number:04}" + "x" * 200] * 10)) for number in range(20))
    with pytest.raises(IntegrityError, match="is a link to a path of more than 4096 bytes"):
        facts_of([link("a", "a/" * 3_000)])
    assert len(facts_of(folder(f"{number:04}") for number in range(20)).entries) == 20


def test_hard_links_through_links_of_many_parts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "MAX_WALKED_PARTS", 100_000)
    items = [folder("d"), link("l", "d/../" * 700 + "d"), Item("d/f", value=b"x")]
    hard = [Item(f"h{number}", "hard", "l/f") for number in range(200)]
    with quickly(), pytest.raises(IntegrityError, match="lead through more than 100000 folders, the limit"):
        view_of([*items, *hard])
    assert view_of([*items, *hard[:5]]).lookup("h4")


@pytest.mark.parametrize("version", ["1" * 5_000, "1." * 5_000 + "1"])
def test_versions_in_a_site_profile_are_bounded(version: str) -> None:
    with pytest.raises(ConfigurationError, match=r"executors\[0\]`: `1.{119}`: expected a version") as caught:
        check_site({"executors": [f"slurm-pyxis:{version}"]})
    assert len(caught.value.message) < 300
