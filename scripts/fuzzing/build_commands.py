"""Cases through `build`: of the base, a wheel, the catalogue, and notes of an earlier build."""

from __future__ import annotations

import functools
import io
import os
import shutil
from functools import partial
from pathlib import Path

from changed import MAX_SEED_BYTES, PREFIX, RESEALED, Changed
from command_line import STEP, Refused, airferry, files_target, judged
from table import checksummed
from worker import Target

from airferry.host import files
from airferry.near import session
from airferry.oci.documents import REF_NAME
from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from catalogues import airgap, write_airgap, write_step
from folder_pip import FolderPip
from layer_tars import tar_of
from oci_images import put_manifest
from static_bases import python_of
from wheel_factory import make_wheel, sha256

PACKAGE = "added_package"


def _near_side(base: Path) -> None:
    """Write a catalogue of one step that needs a package, on a base, and let a folder stand for the index."""
    write_step(Path.cwd(), "sft/one", configs={"tiny": "a: 1\n"}, source=f"import json, {PACKAGE}\n")
    Path("pyproject.toml").write_text('[project]\nname = "nemotron"\nversion = "1"\ndependencies = ["a>1"]\n')
    image = {"base_image": f"oci:{base}:base:1", "python": "/usr/bin/python3"}
    document = airgap({"img": image}, {"sft/one": "img"}, platforms=["linux/amd64"], source={"lock": "lock.txt"})
    write_airgap(Path.cwd(), {**document, "builder": "direct", "loader": False, "launcher_image": False})
    index = files.ensure_directory(Path.cwd() / "index")
    _pin(make_wheel(index, PACKAGE.replace("_", "-"), "1.0"))
    session.Pip = functools.partial(FolderPip, folder=index)  # type: ignore[misc,assignment]


def _pin(wheel: Path) -> None:
    Path("lock.txt").write_text(f"{PACKAGE.replace('_', '-')}==1.0 --hash=sha256:{sha256(wheel)}\n")


def _build() -> None:
    for name in ("out", "home/bases", "home/probes"):
        shutil.rmtree(name, ignore_errors=True)
    judged(*airferry("build", "--jobs", "1"))


def _write_base(path: Path) -> None:
    """Write a base whose layer is a plain tar, so that what is changed in it is read."""
    store = LayoutStore.create(path)
    layers = [compress_layer(io.BytesIO(tar_of(python_of("usr"))), compression=Compression("none"), into=store)]
    store.write_index([put_manifest(store, layers).annotated(annotations={REF_NAME: "base:1"})])


def build_base_target() -> Target:
    """Return what builds on a changed base."""
    original = Path.cwd() / "original"
    _write_base(original)
    changed = Changed(original)
    _near_side(changed.folder / "bundle")

    def parse(case: bytes) -> None:
        changed.write(case)
        _build()

    def repair(case: bytes) -> bytes:
        return case[:PREFIX] + checksummed(case[PREFIX:])

    return Target(parse, changed.seeds(0, RESEALED), repair=repair, also=(Refused,), prefix=PREFIX)


def build_wheel_target() -> Target:
    """Return what builds with a changed wheel, whose hash the catalogue's lock names."""
    from packages import rezipped

    base = Path.cwd() / "base"
    _write_base(base)
    _near_side(base)
    (wheel,) = Path("index").iterdir()

    def parse(case: bytes) -> None:
        wheel.write_bytes(case)
        _pin(wheel)
        _build()

    return Target(parse, [wheel.read_bytes()], repair=rezipped, also=(Refused,))


def build_files_target() -> Target:
    """Return what builds from a changed catalogue."""
    base = Path.cwd() / "base"
    _write_base(base)
    target = files_target(
        ["lock.txt", "airgap.yaml", "pyproject.toml", f"{STEP}/step.py", f"{STEP}/config/tiny.yaml"],
        *("build", "--jobs", "1"),
        prepare=partial(_near_side, base),
        cleared=["out"],
    )
    return target


def build_notes_target() -> Target:
    """Return what builds again where the journal or a record of the cache says something else."""
    base = Path.cwd() / "base"
    _write_base(base)
    _near_side(base)
    judged(*airferry("build", "--jobs", "1"))
    cache = Path(os.environ["AIRFERRY_CACHE"])
    found = [path for path in sorted(cache.rglob("*.json")) if path.stat().st_size < MAX_SEED_BYTES]
    names = [path.relative_to(Path.cwd()).as_posix() for path in found if "blobs" not in path.parts]
    names += ["out/airgap-build-state.yaml", "out/airgap.lock.yaml"]
    return files_target(names, "build", "--jobs", "1", prepare=lambda: None)
