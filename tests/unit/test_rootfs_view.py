"""The merged root: what layers hide, what links do, what is refused, and what the cache keeps."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from airferry.errors import AirferryError, IntegrityError
from airferry.host.workers.work import IN_PLACE
from airferry.near.bases.fetch import BaseImage
from airferry.oci.layers import Compression, LayerChecks, LayerResult, compress_layer, recompress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.tar import CHARACTER, DIRECTORY, REGULAR, SYMLINK
from airferry.rootfs import layers, sources
from airferry.rootfs.layers import FactsCache, LayerFacts, collect_facts, layer_observer
from airferry.rootfs.view import RootView
from debian_bases import AMD64
from examples import examples
from layer_tars import Item, cut, facts_of, folder, link, tar_of, view_of
from oci_images import base_image, knowledge_of, put_manifest


def paths(view: RootView) -> list[str]:
    return sorted(path for path, _entry in view.walk())


def test_links_are_followed_within_the_root() -> None:
    view = view_of(
        [folder("usr/lib/"), link("lib", "usr/lib"), link("abs", "/usr/lib"), Item("usr/lib/libc.so", value="x")]
    )
    assert view.resolve("lib/python3/x") == "usr/lib/python3/x"
    assert view.resolve("/abs/../bin") == "usr/bin"
    assert view.resolve("../../etc") == "etc"
    assert view.lookup("lib").type == SYMLINK  # type: ignore[union-attr]
    assert view.lookup("lib/libc.so") is None, "a lookup follows nothing"
    assert view.is_file("/lib/libc.so")
    assert view.is_dir("abs")
    assert view.listdir("abs/") == ["libc.so"]
    assert view.lookup("").type == DIRECTORY  # type: ignore[union-attr]


def test_whiteouts_hide_what_is_below_whatever_their_order() -> None:
    lower = [folder("a"), Item("a/1"), Item("a/2"), folder("b"), Item("b/1"), folder("c"), Item("c/1")]
    upper = [Item("a/.wh.1"), Item("b/2"), Item("b/.wh..wh..opq"), Item(".wh.c"), Item("a/.wh..wh.plnk")]
    assert paths(view_of(lower, upper)) == ["a", "a/2", "b", "b/2"]


def test_a_hidden_folder_that_comes_back_is_empty() -> None:
    assert paths(view_of([Item("a/old")], [Item(".wh.a"), Item("a/new")])) == ["a", "a/new"]


def test_the_upper_entry_counts_and_folders_are_merged() -> None:
    view = view_of(
        [Item("d/x", value="1"), Item("f", value="1")], [Item("d/", "dir"), Item("d/y"), folder("f"), Item("f/z")]
    )
    assert paths(view) == ["d", "d/x", "d/y", "f", "f/z"]
    assert paths(view_of([Item("d/x")], [Item("d")])) == ["d"]


def test_a_folder_of_an_upper_layer_takes_the_place_of_a_link() -> None:
    view = view_of([folder("usr/lib"), link("lib", "usr/lib")], [Item("lib/x")])
    assert view.lookup("lib").type == DIRECTORY  # type: ignore[union-attr]
    assert view.lookup("usr/lib/x") is None


def test_a_link_of_the_same_layer_is_followed() -> None:
    assert paths(view_of([folder("usr/lib"), link("lib", "usr/lib"), Item("lib/x")])) == [
        "lib",
        "usr",
        "usr/lib",
        "usr/lib/x",
    ]


def test_hard_links_are_the_file_itself_and_outlive_its_first_name() -> None:
    view = view_of([Item("a", value="content"), Item("b", "hard", "a"), Item("a", value="other")], [Item(".wh.a")])
    assert paths(view) == ["b"]
    entry = view.lookup("b")
    assert entry is not None
    assert (entry.type, entry.size) == (REGULAR, 7)


def test_of_equal_names_the_last_counts() -> None:
    view = view_of([Item("a/b"), Item("a", value="now a file"), Item("c"), Item("c", value="22")])
    assert paths(view) == ["a", "c"]
    assert view.lookup("c").size == 2  # type: ignore[union-attr]


def test_devices_of_a_userland_are_recorded() -> None:
    view = view_of([Item("dev/null", "char", "1:3"), Item("./dev/net/tun", "char", "10:200")])
    assert view.lookup("dev/null").type == CHARACTER  # type: ignore[union-attr]
    assert view.lookup("dev/net/tun").type == CHARACTER  # type: ignore[union-attr]


def test_contents_that_matter_are_kept_and_others_not() -> None:
    view = view_of(
        [Item("etc/passwd", value="root:x:0:0::/root:/bin/sh\n"), Item("etc/shadow", value="secret"), Item("e.pth")]
    )
    assert view.read_text("/etc/passwd") == "root:x:0:0::/root:/bin/sh\n"
    assert view.read_bytes("etc/shadow") is None
    assert view.read_bytes("e.pth") == b""
    assert view.read_bytes("nowhere") is None


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item("/../etc/passwd"), "leads upwards"),
        (Item("../etc/passwd"), "leads upwards|to another folder"),
        (Item("a/../../etc/passwd"), "leads upwards"),
        (Item("a/.."), "points to another folder"),
        (Item("d/" * 10_000 + "x"), "more than 4096 bytes"),
        (Item("n" * 256), "more than 255 bytes"),
        (Item("a", "hard", "../../etc/shadow"), "which leads upwards"),
        (Item("a", "hard", "nowhere"), "which is not a file of the image"),
        (Item("a", "hard", "folder"), "which is not a file of the image"),
        (Item("file/x"), "is used as a folder"),
        (Item("loop/x"), "is used as a folder"),
        (Item("a/.wh."), "has no name"),
        (Item("dev/sda", "block", "8:0"), r"is a block device \(8:0\)"),
        (Item("etc/dev/mem", "char", "1:1"), r"is a character device \(1:1\)"),
        (Item("dev/gone", "char", "0:0"), "is a whiteout of overlayfs"),
        (Item("a/.wh..."), "has no name"),
    ],
)
def test_what_no_engine_could_unpack_is_refused(item: Item, message: str) -> None:
    before = [folder("folder"), Item("file"), link("loop", "other"), link("other", "loop")]
    with pytest.raises(IntegrityError, match=message) as caught:
        view_of([*before, item])
    assert len(caught.value.message) < 500


def test_links_in_circles_and_files_on_the_way() -> None:
    view = view_of([link("a", "b"), link("b", "a"), Item("f")])
    assert view.stat("a/x") is None
    assert view.listdir("a") == []
    for path, message in (("a/x", "forms a loop"), ("f/x", "is not a folder")):
        with pytest.raises(IntegrityError, match=message):
            view.resolve(path)


def test_too_many_entries_are_refused_in_one_layer_and_in_all() -> None:
    items = [Item(f"{number}") for number in range(6)]
    with pytest.raises(IntegrityError, match="more than 5 entries"):
        collect_facts(cut(tar_of(items)), what="the layer", max_entries=5)
    with pytest.raises(IntegrityError, match="more than 10 entries"):
        RootView([facts_of(items), facts_of(items)], max_entries=10)


def test_a_tar_that_ends_early_is_refused() -> None:
    data = tar_of([Item("a.pth", value="x" * 3000)])
    for end in (100, 600, 2000, 3500):
        with pytest.raises(IntegrityError):
            collect_facts(cut(data[:end]), what="the layer")


def test_a_folder_of_this_machine_is_mounted_in_place_of_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("import os\n")
    (tmp_path / "there").symlink_to("pkg")
    view = view_of([folder("srv"), link("opt", "srv"), Item("srv/code/old.py"), Item("srv/other")])
    mounted = view.mounted({"/opt/code": tmp_path})
    assert mounted.listdir("/opt/code") == ["pkg", "there"]
    assert mounted.listdir("srv/code/there") == ["__init__.py"]
    assert mounted.is_file("srv/other")
    assert view.listdir("/opt/code") == ["old.py"], "the root itself stays as it was"


NAMES = st.sampled_from(["a", "b", "c"])


PLACES = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


ITEMS = st.one_of(
    st.builds(Item, PLACES, st.just("file"), st.sampled_from(["", "1", "22"])),
    st.builds(Item, PLACES, st.just("dir")),
    st.builds(lambda place: Item(posixpath.join(posixpath.dirname(place), ".wh." + posixpath.basename(place))), PLACES),
    st.builds(lambda place: Item(f"{place}/.wh..wh..opq"), PLACES),
)


LAYERS = st.lists(st.lists(ITEMS, max_size=8), max_size=4)


def model(layers: Sequence[Sequence[Item]]) -> dict[str, str]:
    """Say what is where, by the words of the specification: a dictionary of paths, whiteouts before the rest.

    A whiteout goes with its folder where a file takes the folder's place later in the same layer.
    """
    root: dict[str, str] = {}
    for layer in layers:
        marks: list[str] = []
        for item in layer:
            if posixpath.basename(item.path).startswith(".wh."):
                marks.append(item.path)
            elif item.kind == "file":
                marks = [mark for mark in marks if not mark.startswith(item.path + "/")]
        for mark in marks:
            parent, name = posixpath.split(mark)
            if name == ".wh..wh..opq":
                root = {path: kind for path, kind in root.items() if not path.startswith(parent + "/")}
            else:
                gone = posixpath.join(parent, name[4:])
                root = {path: kind for path, kind in root.items() if path != gone and not path.startswith(gone + "/")}
        own: dict[str, str] = {}
        for item in layer:
            parent, name = posixpath.split(item.path)
            above = parent
            while above:
                if own.get(above, "dir") != "dir":
                    raise IntegrityError("a file as a folder")
                own[above] = "dir"
                above = posixpath.dirname(above)
            if name.startswith(".wh."):
                continue
            if item.kind == "file":
                own = {path: kind for path, kind in own.items() if not path.startswith(item.path + "/")}
            own[item.path] = item.kind if item.kind == "dir" else f"file {len(item.value)}"
        for path, kind in sorted(own.items()):
            if kind != "dir":
                root = {old: value for old, value in root.items() if not old.startswith(path + "/")}
            root[path] = kind
    return root


@given(LAYERS)
@examples(150)
def test_it_agrees_with_a_naive_model(layers: list[list[Item]]) -> None:
    try:
        expected = model(layers)
    except IntegrityError:
        with pytest.raises(IntegrityError):
            view_of(*layers)
        return
    view = view_of(*layers)
    assert {path: "dir" if entry.type == DIRECTORY else f"file {entry.size}" for path, entry in view.walk()} == expected


@given(
    st.lists(
        st.one_of(ITEMS, st.builds(link, PLACES, PLACES), st.builds(Item, PLACES, st.just("hard"), PLACES)), max_size=12
    )
)
@examples(200)
def test_whatever_a_layer_holds_it_is_a_root_or_an_error_and_the_cache_keeps_it(items: list[Item]) -> None:
    facts = facts_of(items)
    assert LayerFacts.from_bytes(facts.to_bytes()) == facts
    try:
        view = RootView([facts])
    except AirferryError as error:
        assert error.exit_code == 6
        return
    for path, entry in view.walk():
        assert view.lookup(path) == entry
        if entry.type != SYMLINK:
            assert view.resolve(path) == path


LAYER = [
    Item("usr/lib/python3.11/os.py", value="import abc\n"),
    Item("etc/passwd", value="x"),
    Item("n\udcff"),
]


def stored(tmp_path: Path) -> tuple[LayoutStore, LayerResult]:
    store = LayoutStore.create(tmp_path / "layout")
    return store, compress_layer(io.BytesIO(tar_of(LAYER)), compression=Compression("gzip", threads=1), into=store)


def based(tmp_path: Path, *, diff_id: str | None = None) -> tuple[LayoutStore, BaseImage]:
    store, layer = stored(tmp_path)
    return store, base_image(store, put_manifest(store, [layer], diff_ids=[diff_id or layer.diff_id]), AMD64)


def test_a_layer_is_read_once_and_then_found(tmp_path: Path) -> None:
    store, base = based(tmp_path)
    view = knowledge_of(store, tmp_path / "cache").view(base)
    assert view.read_text("etc/passwd") == "x"
    store.blob_path(base.layers[0].digest).unlink()
    again = knowledge_of(store, tmp_path / "cache").view(base)
    assert list(again.walk()) == list(view.walk())


def test_facts_are_collected_while_a_layer_is_recompressed(tmp_path: Path) -> None:
    store, layer = stored(tmp_path)
    into = LayoutStore.create(tmp_path / "into")
    with store.open_blob(layer.descriptor) as stream, layer_observer(what="it") as observer:
        recompress_layer(
            stream,
            layer.descriptor,
            checks=LayerChecks(layer.diff_id),
            compression=Compression("zstd"),
            into=into,
            observers=[observer],
        )
        facts, data = observer.result()
    assert facts == facts_of(LAYER)
    assert LayerFacts.from_bytes(data) == facts


def test_what_the_observer_refuses_ends_the_recompression(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    data = tar_of([Item("../x"), *(Item(f"{number}", value=b"x" * 400_000) for number in range(20))])
    layer = compress_layer(io.BytesIO(data), compression=Compression("none"), into=store)
    into = LayoutStore.create(tmp_path / "into")
    with (
        pytest.raises(IntegrityError, match="leads"),
        store.open_blob(layer.descriptor) as stream,
        layer_observer(what="it") as observer,
    ):
        recompress_layer(
            stream,
            layer.descriptor,
            checks=LayerChecks(layer.diff_id),
            compression=Compression("zstd"),
            into=into,
            observers=[observer],
        )
        observer.result()
    assert into.stored_digests() == set()


def test_an_observer_that_is_given_up_leaves_no_thread() -> None:
    with layer_observer(what="it") as observer:
        observer(tar_of(LAYER)[:700])
        name = observer._thread
    assert not name.is_alive()
    assert name not in threading.enumerate()


def test_a_wrong_diff_id_is_refused_and_not_cached(tmp_path: Path) -> None:
    wrong = "sha256:" + hashlib.sha256(b"other").hexdigest()
    store, base = based(tmp_path, diff_id=wrong)
    with pytest.raises(IntegrityError, match="has diff_id"):
        knowledge_of(store, tmp_path / "cache").view(base)
    assert FactsCache(tmp_path / "cache" / "facts").find(wrong) is None


def test_a_layer_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    store, base = based(tmp_path)
    with pytest.raises(IntegrityError, match="unpacks to more than the limit"):
        knowledge_of(store, tmp_path / "cache", limit_bytes=1000).view(base)


def test_the_cache_survives_damage_and_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    digests = ["sha256:" + hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]
    size = len(facts_of(LAYER).to_bytes())
    cache = FactsCache(tmp_path, max_bytes=int(size * 2.5))
    for number, digest in enumerate(digests):
        cache.keep(digest, facts_of(LAYER).to_bytes())
        os.utime(tmp_path / (digest[7:] + ".json.zst"), (1000 + number, 1000 + number))
        assert cache.find(digests[0]) is not None or number == 2
    assert [cache.find(digest) is not None for digest in digests] == [True, False, True]
    (tmp_path / (digests[0][7:] + ".json.zst")).write_bytes(b"damaged")
    assert cache.find(digests[0]) is None


def test_what_was_remembered_of_a_layer_is_bounded_in_bytes_and_not_in_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit for documents of others, 500,000 values, would be that of a layer of 45,000 files."""

    def refuse(*_: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr("airferry.host.parsing.expect_few_values", refuse)
    facts = facts_of(LAYER)
    assert LayerFacts.from_bytes(facts.to_bytes()) == facts
    monkeypatch.setattr("airferry.rootfs.layers.MAX_FACTS_BYTES", 10)
    assert LayerFacts.from_bytes(facts.to_bytes()) is None


def test_facts_of_sources_are_as_many_as_the_base_has_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(sources, "INLINE_BYTES", 1)
    monkeypatch.setattr("airferry.host.parsing.expect_few_values", refuse)
    with sources.SourceReader(IN_PLACE, what="x") as reader:
        for number in (3, 5):
            reader.take(number, b"import a\n")
        assert [number for number, _facts in reader.results()] == [3, 5]


@pytest.mark.parametrize("rows", ["[[0,1,2]]", "[[0,[],[],0,0,0,0,0,0,0]]", "[3]", "[null]", "{}", "5"])
def test_a_damaged_file_of_the_cache_counts_as_none(rows: str) -> None:
    document = f'{{"schema_version":{layers.FACTS_SCHEMA_VERSION},"folders":[""],"entries":{rows}}}'
    found = LayerFacts.from_bytes(zstandard.compress(document.encode()))
    assert found is None or found.entries == []
