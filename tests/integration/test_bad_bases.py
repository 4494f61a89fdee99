"""Bases whose layers are not what they should be: a clear error each, and the bundle stays what it was, or none."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from airferry.cli.app import run
from airferry.engine.program import find_engine
from airferry.engine.storage import Storage
from airferry.events import silent
from airferry.host.files import remove_tree
from airferry.oci.documents import LAYER_GZIP, LAYER_TAR, LAYER_ZSTD, REF_NAME, Descriptor
from airferry.oci.layers import Compression, LayerResult, compress_layer
from airferry.oci.layout import LayoutStore
from debian_bases import AMD64, DebianBase
from layer_tars import Item, folder, link, tar_of
from near_side import REFERENCE, NearSide, make_base, make_near_side, snapshot, temporaries
from oci_images import layer_tar, put_manifest
from static_bases import write_static_base

GOOD = [folder("usr"), Item("usr/file", value="content"), link("bin", "usr/bin")]


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blob(store: LayoutStore, data: bytes, media_type: str, *, diff_id: str) -> LayerResult:
    """Store bytes as a layer, whatever they are."""
    descriptor = store.put_bytes(data, media_type)
    return LayerResult(descriptor, diff_id, len(data))


def packed(items: Iterable[Item]) -> Callable[[LayoutStore], LayerResult]:
    """Return what stores a layer of entries, gzip."""
    return lambda store: compress_layer(io.BytesIO(tar_of(items)), compression=Compression("gzip"), into=store)


def bytes_of(change: Callable[[bytes], bytes], media_type: str = LAYER_GZIP) -> Callable[[LayoutStore], LayerResult]:
    """Return what stores a good layer in gzip whose bytes are changed, under the digest that they then have."""
    plain = tar_of(GOOD)
    return lambda store: blob(store, change(gzip.compress(plain, mtime=0)), media_type, diff_id=digest(plain))


def other_content(store: LayoutStore) -> LayerResult:
    """Store a layer that is another one than the image's config says."""
    return blob(store, gzip.compress(tar_of([Item("usr/other")])), LAYER_GZIP, diff_id=digest(tar_of(GOOD)))


def lost(store: LayoutStore) -> LayerResult:
    """Name a layer whose blob has other bytes."""
    good = packed(GOOD)(store)
    path = store.blob_path(good.descriptor.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    return good


BOMB = packed([Item("usr/zeros", value=bytes(3_000_000))])

CASES: list[tuple[str, Callable[[LayoutStore], LayerResult], dict[str, Any], str]] = [
    ("gzip called zstd", bytes_of(lambda data: data, LAYER_ZSTD), {}, "is declared as zstd but is gzip"),
    ("gzip called tar", bytes_of(lambda data: data, LAYER_TAR), {}, "but is gzip"),
    ("another diff_id", other_content, {}, "its image's config says"),
    ("another digest", lost, {}, "expected `sha256:"),
    ("garbage behind the end", bytes_of(lambda data: data + b"garbage"), {}, "bytes after the end"),
    ("truncated", bytes_of(lambda data: data[:-20]), {}, "ends in the middle"),
    ("flipped bit", bytes_of(lambda data: data[:40] + bytes([data[40] ^ 4]) + data[41:]), {}, "corrupt gzip"),
    ("no tar", bytes_of(lambda data: gzip.compress(b"no tar" * 500)), {}, "layer"),
    ("unknown type", bytes_of(lambda data: data, "application/vnd.oci.image.layer.v1.tar+lz4"), {}, "not a layer type"),
    ("absolute path upwards", packed([*GOOD, Item("/../etc/passwd")]), {}, "leads upwards"),
    ("path upwards", packed([*GOOD, Item("usr/../../etc/passwd")]), {}, "leads upwards"),
    ("hard link elsewhere", packed([*GOOD, Item("a", "hard", "../../etc/shadow")]), {}, "which leads upwards"),
    ("device", packed([*GOOD, Item("dev/sda", "block", "8:0")]), {}, "is a block device (8:0)"),
    ("deep path", packed([*GOOD, Item("d/" * 10_000 + "x")]), {}, "more than 4096 bytes"),
    ("bomb", BOMB, {"limits": {"layer_bytes": 1_000_000}}, "raise `limits.layer_bytes`"),
    (
        "too many",
        packed([Item(f"f{n}") for n in range(60)]),
        {"limits": {"layer_entries": 50}},
        "`limits.layer_entries`",
    ),
]


def base_of(path: Path, layer: Callable[[LayoutStore], LayerResult]) -> Path:
    """Write a layout with a base of a good layer and another one."""
    store = LayoutStore.create(path)
    good = compress_layer(io.BytesIO(layer_tar({"etc/name": b"x"})), compression=Compression("gzip"), into=store)
    manifest: Descriptor = put_manifest(store, [good, layer(store)])
    store.write_index([manifest.annotated(annotations={REF_NAME: REFERENCE})])
    return path


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NearSide:
    """A near side; each test gives it a base."""
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    made = make_near_side(tmp_path / "near", tmp_path / "base")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(made.catalogue)
    return made


@pytest.mark.parametrize("compression", ["zstd", "preserve"])
@pytest.mark.parametrize(("name", "layer", "keys", "says"), CASES, ids=[case[0] for case in CASES])
def test_a_bad_layer_ends_the_build_and_leaves_no_bundle(
    name: str,
    layer: Callable[[LayoutStore], LayerResult],
    keys: dict[str, Any],
    says: str,
    compression: str,
    side: NearSide,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base_of(tmp_path / "base", layer)
    side.write(compression=compression, **keys)
    assert run(["build"]) == 6
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown
    assert len(shown) < 3000
    assert not (side.out / "airgap-manifest.yaml").exists()
    assert not (side.out / "airgap.lock.yaml").exists()
    assert not (side.out / "bundle" / "index.json").exists()
    if name != "hard link elsewhere":  # which is told when layers are merged
        facts = list((tmp_path / "cache" / "facts").glob("*"))
        assert len(facts) <= 1, "what the good layer holds, and nothing of the bad one"
    assert temporaries(side.out, tmp_path / "cache") == []


def test_the_devices_of_a_userland_are_no_reason_to_refuse_it(
    side: NearSide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_of(tmp_path / "base", packed([*GOOD, Item("dev/null", "char", "1:3")]))
    assert run(["build"]) == 5
    assert "has no `/usr/bin/python3`" in capsys.readouterr().err, "the layer itself is well"


def test_a_base_with_a_device_can_be_taken_as_it_is(
    side: NearSide,
    debian_base: DebianBase,
    ordinary_user: None,
    require_tool: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    require_tool("buildah")
    make_base(debian_base.only(AMD64), tmp_path / "base", last=tar_of([Item("dev/sda", "block", "8:0")]))
    assert run(["build"]) == 6
    assert "`builder: buildah` with `--probe run` accepts it" in capsys.readouterr().err
    side.write(builder="buildah", launcher_image=False)
    try:
        assert run(["build", "--probe", "run"]) == 0
    finally:
        Storage(find_engine("buildah"), tmp_path / "cache" / "engine", emit=silent).remove_all()


def test_what_was_sealed_before_stays_when_the_base_goes_bad(side: NearSide, tmp_path: Path) -> None:
    write_static_base(tmp_path / "base", REFERENCE)
    side.build()
    before = snapshot(side.out, but=["airgap-plan.yaml", ".airferry.lock"])
    remove_tree(tmp_path / "base")
    base_of(tmp_path / "base", CASES[0][1])
    assert run(["lock", "--update"]) == 6
    side.write(compression="gzip")
    (side.out / "airgap.lock.yaml").rename(tmp_path / "lock")
    assert run(["build"]) == 6
    (tmp_path / "lock").rename(side.out / "airgap.lock.yaml")
    assert snapshot(side.out, but=["airgap-plan.yaml", ".airferry.lock"]) == before
