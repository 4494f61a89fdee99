"""Additions that must be compiled: in a container of the base, with a compiler that the base brings."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry.bundle.manifest import BundleManifest
from airferry.config import BootstrapBase
from airferry.engine.driver import open_engine
from airferry.errors import BuildError
from airferry.events import CommandRun, Event, Notice
from airferry.near.bases.userland import compose
from airferry.oci.normalise import normalise_layer
from catalogues import write_step
from debian_bases import AMD64, EPOCH_S, DebianBase, fetch_packages
from near_side import NearSide, added_files, commit_all, make_base, make_near_side
from pulled_images import pull_from_layout
from wheel_factory import make_wheel, source_distribution

COMPILING = BootstrapBase(suite="bookworm", packages=("libpython3-dev", "gcc", "libc6-dev"))
# what of these packages and of all that they bring compiles an extension: a quarter of the bytes
COMPILER = (
    *("binutils", "binutils-x86-64-linux-gnu", "cpp-12", "gcc", "gcc-12", "libbinutils", "libc6-dev", "libcrypt-dev"),
    *("libctf0", "libgcc-12-dev", "libgmp10", "libisl23", "libjansson4", "libmpc3", "libmpfr6", "libpython3.11-dev"),
    *("linux-libc-dev", "zlib1g", "libzstd1"),
)
DROPPED = ("*/lto1", "*-lto-dump-12", "*san.a", "*/libc.a", "*/libm*.a", "*/libpython*.a", "var/lib/dpkg/*")
EXTENSION = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(ANSWER); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "ferry_native", "", -1, methods};
PyMODINIT_FUNC PyInit_ferry_native(void) { return PyModule_Create(&module); }
"""
# `setup_requires` is what the back end asks for only once it is there
SETUP = """
from setuptools import Extension, setup
setup(
    name="ferry-native", version="1.0", py_modules=[], setup_requires=["ferry-helper"],
    ext_modules=[Extension("ferry_native", ["native.c"], define_macros=[("ANSWER", "42")])],
)
"""
PROJECT = {
    "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n',
    "native.c": EXTENSION,
    "PKG-INFO": "Metadata-Version: 2.1\nName: ferry-native\nVersion: 1.0\n",
}
WHEEL = "ferry_native-1.0-cp311-cp311-linux_x86_64.whl"


@pytest.fixture(scope="module")
def compiling_base(debian_base: DebianBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout whose `base:1` has a compiler, and a user of its own."""
    folder = tmp_path_factory.mktemp("compiling")
    fetched = fetch_packages(COMPILING, AMD64, folder / "cache")
    tar = folder / "compiler.tar"
    with tar.open("wb") as stream:
        stream.writelines(
            compose([path for path in fetched if path.name.partition("_")[0] in COMPILER], epoch_s=EPOCH_S)
        )
    with tar.open("rb") as stream:
        layer = b"".join(normalise_layer(stream, epoch_s=EPOCH_S, drop=DROPPED))
    tar.unlink()
    debian = replace(debian_base, manifests={AMD64: debian_base.manifests[AMD64]})
    return make_base(debian, folder / "base", last=layer)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, build_tools: Path) -> Path:
    """A folder that stands for a package index: a source alone of one distribution, and what its build asks for."""
    folder = tmp_path_factory.mktemp("index")
    for name in ("setuptools", "wheel", "packaging"):
        for wheel in build_tools.glob(f"{name}-*.whl"):
            shutil.copy(wheel, folder)
    make_wheel(folder, "ferry-helper", "1.0")
    write_source(folder, SETUP)
    return folder


def write_source(folder: Path, setup: str) -> None:
    with tarfile.open(folder / "ferry-native-1.0.tar.gz", "w:gz") as archive:
        for name, text in {**PROJECT, "setup.py": setup}.items():
            member = tarfile.TarInfo(f"ferry-native-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def offer_for_another_platform(side: NearSide) -> Path:
    """Let the index have a wheel that no base of ours takes: such a source is not tried on this host."""
    return make_wheel(side.index, "ferry-native", "1.0", tag="cp311-cp311-win_amd64")


@pytest.fixture
def lay_out(
    tmp_path: Path, near_cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], NearSide]:
    """Return what lays out a near side on a base whose one step imports what must be compiled."""

    def make(base: Path) -> NearSide:
        side = make_near_side(tmp_path / "near", base)
        shutil.copytree(index, side.index, dirs_exist_ok=True)
        write_step(side.catalogue, "native/run", source="import ferry_native\n", configs={"plain": "a: 1\n"})
        commit_all(side.catalogue)
        image = side.document["execution_images"]["py"]
        side.write(
            workflow={"name": "tests", "stages": ["native/run:plain"]},
            step_execution_images={"native/run": "py"},
            execution_images={"py": {**image, "requirements": {"ferry_native": "ferry-native==1.0"}}},
            build_stages=["build-execution-images", "save-images"],
            builder="auto",
        )
        monkeypatch.setenv("AIRFERRY_CACHE", str(near_cache))
        for name, value in side.environment.items():
            monkeypatch.setenv(name, value)
        return side

    return make


def forget_wheels(cache: Path) -> None:
    for name in ("wheels", "compiled"):
        shutil.rmtree(cache / name, ignore_errors=True)


def additions(side: NearSide) -> list[Mapping[str, Any]]:
    document = yaml.safe_load((side.out / "airgap.lock.yaml").read_text())
    (group,) = document["groups"].values()
    found: list[Mapping[str, Any]] = group["platforms"]["linux/amd64"]["additions"]
    return found


def test_an_addition_is_compiled_in_its_base_and_the_same_each_time(
    lay_out: Callable[[Path], NearSide], compiling_base: Path, near_cache: Path
) -> None:
    side = lay_out(compiling_base)
    events: list[Event] = []
    outcome = side.build(emit=events.append)
    said = [event.text for event in events if isinstance(event, Notice)]
    assert any("`ferry-native==1.0`" in text and "compiled in a container of" in text for text in said), said
    (addition,) = additions(side)
    assert addition["file"] == WHEEL
    assert isinstance(outcome.manifest, BundleManifest)
    (image,) = [image for image in outcome.manifest.images if image.role == "execution"]
    entry = image.platforms["linux/amd64"]
    library = next(name for name in added_files(side.store(), entry) if name.endswith(".so"))
    assert library.startswith("usr/local/lib/python3.11/dist-packages/ferry_native.")
    with open_engine(near_cache / "engine") as engine:
        image_id = pull_from_layout(engine, side.out / "bundle", image.reference)
        done = engine.run(
            image_id, ["/usr/bin/python3", "-c", "import ferry_native; print(ferry_native.answer())"], platform=AMD64
        )
        engine.remove_image(image_id)
    assert done.text == "42\n"

    # from nothing, it comes out as the lock says
    forget_wheels(near_cache)
    shutil.rmtree(side.out / "bundle")
    (side.out / "airgap-build-state.yaml").unlink()
    foreign = offer_for_another_platform(side)
    again = side.build(locked=True)
    assert again.root == outcome.root

    # and what was compiled once is neither compiled again nor tried on this host
    foreign.unlink()
    (side.out / "airgap.lock.yaml").unlink()
    events.clear()
    side.lock(emit=events.append)
    assert additions(side) == [addition]
    assert not any("compile ferry-native" in json.dumps(repr(event)) for event in events)
    started = [event.command for event in events if isinstance(event, CommandRun)]
    assert started and not any("confined" in command for command in started)


def test_a_base_without_a_compiler_says_so(
    lay_out: Callable[[Path], NearSide], near_base: Path, near_cache: Path
) -> None:
    side = lay_out(near_base)
    write_source(side.index, SETUP.replace('setup_requires=["ferry-helper"],', ""))
    offer_for_another_platform(side)
    forget_wheels(near_cache)
    with pytest.raises(BuildError, match=r"`ferry-native==1\.0` does not compile in .* for linux/amd64: ") as caught:
        side.lock()
    assert "gcc" in caught.value.message
    assert "`devel`" in (caught.value.hint or "")
    assert not (side.out / "airgap.lock.yaml").exists()


def test_a_direct_build_compiles_nothing(
    lay_out: Callable[[Path], NearSide], compiling_base: Path, near_cache: Path
) -> None:
    side = lay_out(compiling_base)
    side.write(builder="direct")
    (side.index / "ferry-native-1.0.tar.gz").unlink()
    source_distribution(side.index, name="ferry_native", tag="cp311-cp311-linux_x86_64")
    forget_wheels(near_cache)
    with pytest.raises(BuildError, match=r"`ferry-native==1\.0` has no wheel for .*its source") as caught:
        side.lock()
    assert "`builder: auto`" in (caught.value.hint or "")
