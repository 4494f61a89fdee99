"""The merged root is what an engine mounts, for generated stacks of layers."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import odd_tars
from airferry.config import LayoutBase
from airferry.engine.driver import Engine, open_engine
from airferry.errors import AirferryError, BuildError
from airferry.events import silent
from airferry.host.canonical import canonical_json
from airferry.near.bases.fetch import BaseCache
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, Descriptor, Manifest, PlatformDocument
from airferry.oci.entries import named
from airferry.oci.layers import Compression, LayerResult, compress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.tar import DIRECTORY, END_OF_ARCHIVE, REGULAR, SYMLINK
from airferry.rootfs.layers import collect_facts
from airferry.rootfs.view import RootView
from debian_bases import AMD64
from layer_tars import Item, cut, facts_of, tar_of
from oci_images import put_index

SEEDS = range(24)
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
NAMES = ("a", "b", "c")
KINDS = {REGULAR: "file", DIRECTORY: "dir", SYMLINK: "link"}
# prints each path of a mounted image with what is there
WALK = """
import hashlib, json, os, stat
root, found = os.environ["MOUNTED"], {}
kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
for folder, names, files in os.walk(root):
    for name in names + files:
        path = os.path.join(folder, name)
        try:
            status = os.lstat(path)
        except FileNotFoundError:  # a whiteout that hides nothing: overlayfs lists its name all the same
            continue
        kind = kinds[stat.S_IFMT(status.st_mode)]
        value = str(status.st_size) if kind == "file" else os.readlink(path) if kind == "link" else ""
        mode = stat.S_IMODE(status.st_mode) if kind == "file" else 0
        time = 0 if kind == "dir" else int(status.st_mtime)
        data = open(path, "rb").read() if kind == "file" else b""
        owner = [status.st_uid, status.st_gid]
        found[os.path.relpath(path, root)] = [kind, value, mode, time, owner, hashlib.sha256(data).hexdigest()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def engine(engine_state: Path) -> Iterator[Engine]:
    with open_engine(engine_state) as opened:
        yield opened


def fits(items: list[Item], path: str) -> bool:
    """Tell whether engines take another entry: no name twice, and nothing but folders on the way to it."""
    view = RootView([facts_of(items)])
    hidden = path.replace(".wh.", "", 1)
    if any(item.path.replace(".wh.", "", 1) in (path, hidden) or item.path.startswith(hidden + "/") for item in items):
        return False
    if ".wh." in path and view.lookup(hidden) is not None:
        # the specification says that a name counts beside its own whiteout, engines do not agree
        return False
    above = posixpath.dirname(path)
    while above:
        if view.lookup(above) is not None and not view.is_dir(above):
            return False
        if any(
            item.path == posixpath.join(posixpath.dirname(above), f".wh.{posixpath.basename(above)}") for item in items
        ):
            return False
        above = posixpath.dirname(above)
    return True


def generated_layer(chance: random.Random) -> list[Item]:
    """Return a layer with whatever engines take."""
    items: list[Item] = []
    for _count in range(chance.randint(2, 12)):
        path = "/".join(chance.choice(NAMES) for _part in range(chance.randint(1, 3)))
        up = chance.choice(["", "/", "../"])
        target = up + "/".join(chance.choices(NAMES, k=chance.randint(1, 2)))
        files = [item for item in items if item.kind == "file" and ".wh." not in item.path]
        kind = chance.choice(["file", "file", "dir", "dir", "link", "hard", "whiteout", "opaque"])
        if kind == "opaque":
            path = f"{path}/.wh..wh..opq"
        elif kind == "whiteout":
            path = posixpath.join(posixpath.dirname(path), f".wh.{posixpath.basename(path)}")
        if not fits(items, path) or (kind == "hard" and not files):
            continue
        if kind == "hard":
            same = chance.choice(files)
            items.append(Item(path, "hard", same.path, mode=same.mode))
        elif kind == "link":
            items.append(Item(path, "link", target))
        elif kind == "dir":
            items.append(Item(path, "dir"))
        else:
            items.append(Item(path, value="x" * chance.randint(0, 3), mode=chance.choice([0o600, 0o644, 0o755])))
    return items or [Item("a")]


def import_stack(engine: Engine, store: LayoutStore, tars: Iterable[bytes]) -> str:
    return engine.import_base(store.path, put_tars(store, tars)[0].digest, platform=AMD64)


def put_tars(store: LayoutStore, tars: Iterable[bytes]) -> tuple[Descriptor, list[LayerResult]]:
    made = [compress_layer(io.BytesIO(data), compression=Compression("gzip", 1, 1), into=store) for data in tars]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in made]},
        "history": [{"created_by": "test"} for _layer in made],
    }
    manifest = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        config=store.put_bytes(canonical_json(config), IMAGE_CONFIG),
        layers=[layer.descriptor for layer in made],
    )
    return store.put_bytes(canonical_json(manifest), IMAGE_MANIFEST), made


def mounted(engine: Engine, image: str) -> dict[str, list[object]]:
    with engine._working_container(image) as container:
        argv = [*engine.storage.command(), "unshare", "--mount", f"MOUNTED={container}", "--"]
        done = engine.storage.invoke_raw([*argv, sys.executable, "-I", "-c", WALK])
    found: dict[str, list[object]] = json.loads(done.text)
    return found


def moved(items: list[Item], folder: str) -> list[Item]:
    """Return the entries of a layer as they are below a folder. What links say stays, but for hard links."""
    below = [
        replace(
            item, path=f"{folder}/{item.path}", value=f"{folder}/{item.value}" if item.kind == "hard" else item.value
        )
        for item in items
    ]
    return [Item(folder, "dir"), *below]


def test_it_is_what_the_engine_mounts(engine: Engine, tmp_path: Path) -> None:
    """One image has all stacks: one at its root, each other one below a folder, as imports cost the most."""
    layers: list[list[Item]] = [[] for _layer in range(4)]
    for seed in SEEDS:
        chance = random.Random(seed)
        stack = [generated_layer(chance) for _layer in range(chance.randint(1, 4))]
        for layer, items in zip(layers, stack, strict=False):
            layer += moved(items, f"stack{seed}") if seed else items
    store = LayoutStore.create(tmp_path / "layout")
    image = import_stack(engine, store, map(tar_of, layers))
    view = RootView([facts_of(items) for items in layers])
    expect_mounted(engine, image, view, layers)
    assert {path.partition("/")[0] for path, _entry in view.walk()} >= {f"stack{seed}" for seed in SEEDS[1:]}


def test_what_other_builders_write_is_what_the_engine_mounts(engine: Engine, tmp_path: Path) -> None:
    """Layers with names, owners, times and ends that are odd, and with sparse files: one image for all."""
    below = tar_of([Item("absolute/gone"), Item("absolute/hidden/old")])
    read = [below, *odd_tars.HARMLESS.values()]
    image = import_stack(engine, LayoutStore.create(tmp_path / "layout"), read)
    view = RootView([collect_facts(cut(data), what="the layer") for data in read])
    expect_mounted(engine, image, view, list(odd_tars.HARMLESS))


def test_foreign_layers_are_what_the_engine_makes_of_them(engine: Engine, tmp_path: Path) -> None:
    """The engine reads the layout by itself first, then the base as the cache has it, from an index in an index.

    It reads no such index itself, as nothing says which of several images it stands for.
    """
    store = LayoutStore.create(tmp_path / "upstream")
    stack = [[Item("a"), Item("kept", value="1")], [Item(".wh.a"), Item("b/c", value="22")]]
    image, results = put_tars(store, [tar_of(items) for items in stack])
    manifest = store.read_manifest(image).manifest
    foreign = [result.descriptor.model_copy(update={"media_type": FOREIGN}) for result in results]
    child = store.put_bytes(canonical_json(manifest.model_copy(update={"layers": foreign})), IMAGE_MANIFEST)
    index = put_index(store, [child.annotated(platform=PlatformDocument(os="linux", architecture="amd64"))])
    store.write_index([named(index, "base:1"), named(put_index(store, [index]), "nested:1")])
    own = engine._pull("oci:upstream:base:1", cwd=tmp_path, arguments=[], what="it")
    with pytest.raises(BuildError, match="manifest list instead of a manifest"):
        engine._pull("oci:upstream:nested:1", cwd=tmp_path, arguments=[], what="it")
    spec = LayoutBase(path=tmp_path / "upstream", reference="nested:1", written="oci:upstream:nested:1")
    cache = BaseCache(tmp_path / "cache", open_registry=lambda _: store, emit=silent)
    base = cache.bring(spec, [AMD64], locked=None).images[AMD64]
    brought = engine.import_base(cache.store.path, base.manifest.digest, platform=AMD64, name="brought")
    seen = mounted(engine, own)
    assert seen == mounted(engine, brought)
    assert sorted(path for path, entry in seen.items() if entry[0] == "file") == ["b/c", "kept"]
    engine.remove_image(own)
    expect_mounted(engine, brought, RootView([facts_of(items) for items in stack]), stack)


def test_what_is_refused_the_engine_refuses_too(engine: Engine, tmp_path: Path) -> None:
    """What is left to the engine is the engine's to refuse: this user's namespace lacks such owners."""
    # of those that are sparse one, as each costs a second: all were tried once
    odd = {**odd_tars.UNREAD, "sparse": next(iter(odd_tars.REFUSED_SPARSE.values())) + END_OF_ARCHIVE}
    taken = []
    for number, (name, data) in enumerate(odd.items()):
        with suppress(AirferryError):
            import_stack(engine, LayoutStore.create(tmp_path / str(number)), [data])
            taken.append(name)
    assert taken == []


def expect_mounted(engine: Engine, image: str, view: RootView, told: object) -> None:
    seen: dict[str, list[object]] = {}
    kept: dict[str, str] = {}
    for path, entry in view.walk():
        kind = KINDS[entry.type]
        value = str(entry.size) if kind == "file" else entry.link_name
        time_s = 0 if kind == "dir" else entry.mtime_s
        seen[path] = [kind, value, entry.mode if kind == "file" else 0, time_s, [entry.uid, entry.gid]]
        if entry.facts is not None and entry.facts.content is not None:
            kept[path] = hashlib.sha256(entry.facts.content).hexdigest()
    try:
        found = mounted(engine, image)
    finally:
        engine.remove_image(image)
    contents = {path: value.pop() for path, value in found.items()}
    assert kept == {path: contents.get(path) for path in kept}
    different = sorted(path for path in seen.keys() | found.keys() if seen.get(path) != found.get(path))
    assert {path: (seen.get(path), found.get(path)) for path in different} == {}, told
