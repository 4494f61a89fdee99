"""Several processes in one cache: each thing is made by one of them, what is in use stays, and none waits for ever."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from airferry.config import BootstrapBase
from airferry.engine.program import Program
from airferry.engine.storage import Storage
from airferry.engine.transient import TransientImages
from airferry.errors import HostError
from airferry.events import Emit, Event, Notice, StageFinished, silent
from airferry.host import files, locks
from airferry.host.locks import Thing, making, making_all, own_folder, sharing
from airferry.host.process import Completed
from airferry.host.threads import NamedLocks, parallel_map
from airferry.near.bases import debian, fetch, shared
from airferry.near.bases.fetch import BaseCache
from airferry.near.bases.shared import RecentUserland, SharedLayout
from airferry.near.planning import Selection, read_plan
from airferry.near.session import BuildOptions, open_session
from airferry.near.wheels.pip import wheel_target
from airferry.near.wheels.store import Pin, WheelStore
from airferry.oci.documents import Descriptor
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.oci.ports import BlobOffer
from airferry.plan.lockfile import LockedBase
from airferry.registry.pulls import Pulls
from catalogues import airgap, write_airgap, write_step
from folder_pip import FolderPip
from held_locks import taken, until
from oci_images import make_image
from wheel_factory import make_probe, make_wheel, source_distribution

AMD64_TAG = "manylinux_2_17_x86_64"


AMD64 = wheel_target(make_probe().python)


def test_a_short_wait_is_not_worth_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAITING_SAID_AFTER_S", 120)
    events: list[Event] = []
    begun = threading.Event()

    def hold() -> None:
        with making(tmp_path, Thing.LAYER, "one", doing="x"):
            begun.set()
            time.sleep(0.05)

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(120)
    monkeypatch.setattr(locks, "_IN_PROCESS", NamedLocks())  # as another process has its own
    with making(tmp_path, Thing.LAYER, "one", doing="x", emit=events.append):
        holder.join(timeout=120)
    assert events == []


@pytest.mark.parametrize("second", [(Thing.LAYER, "one"), (Thing.LAYER, "a"), (Thing.BLOB, "z")])
def test_locks_are_taken_in_one_order(tmp_path: Path, second: tuple[Thing, str]) -> None:
    def take(thing: tuple[Thing, str]) -> None:
        with making(tmp_path, *thing, doing="x"):
            pass

    with making(tmp_path, Thing.LAYER, "one", doing="x"):
        with pytest.raises(AssertionError):
            take(second)
        with making(tmp_path, Thing.LAYER, "two", doing="x"), making(tmp_path, Thing.WHEEL, "a", doing="x"):
            pass
        # each thread has its own, as another one waits for nothing that this one holds
        parallel_map(take, [(Thing.BLOB, "z")], jobs=1)
    with making_all(tmp_path, Thing.WHEEL, ["b", "a", "b"], doing="x"):
        assert len(taken(tmp_path)) == 2
    take(second)


def test_what_was_left_is_cleared_by_one_who_is_alone(tmp_path: Path) -> None:
    calls: list[str] = []
    lock = tmp_path / "lock"
    with sharing(lock, clear=lambda: calls.append("first")):
        assert calls == ["first"]
        with sharing(lock, clear=lambda: calls.append("second")):
            pass
        assert calls == ["first"]
    assert calls == ["first", "first"]


def test_one_that_does_not_share_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAITING_SAID_AFTER_S", 0)
    lock = tmp_path / "lock"
    holder = lock.open("ab")
    fcntl.flock(holder, fcntl.LOCK_EX)
    said: list[Event] = []

    def emit(event: Event) -> None:
        said.append(event)
        holder.close()

    with sharing(lock, clear=list, emit=emit):
        assert said == [Notice(f"waiting for another airferry process that does not share `{tmp_path}`")]


@pytest.mark.parametrize("failing", ["locks", "scratch"])
def test_a_folder_where_nothing_can_be_locked_is_named(tmp_path: Path, failing: str) -> None:
    (tmp_path / failing).touch()
    with pytest.raises(HostError, match=f"{failing}`"), ExitStack() as stack:
        stack.enter_context(own_folder(tmp_path / "scratch"))
        stack.enter_context(making(tmp_path, Thing.LAYER, "one", doing="x"))


@pytest.fixture
def selections(tmp_path: Path) -> list[Selection]:
    """Return the plans of two folders of one user."""
    made = []
    for name in ("one", "two"):
        root = tmp_path / name
        write_step(root, "train/tiny")
        document = airgap({"image": {"base_image": "reg.example/base:1"}}, {"train/tiny": "image"})
        made.append(Selection(config=write_airgap(root, document)))
    return made


def test_sessions_on_two_folders_share_the_cache_and_two_on_one_are_told(selections: list[Selection]) -> None:
    one, two = (read_plan(selection) for selection in selections)
    cache, events = files.cache_directory(), list[Event]()
    blobs = cache / "layers" / "blobs" / "sha256"
    left, used = (blobs / f"{files.TEMPORARY_PREFIX}{name}" for name in ("left", "used"))
    files.write_text(left, "by a killed run")
    left.replace(left.with_name(left.name))
    with open_session(one, BuildOptions(), emit=events.append) as first:
        assert not left.exists()
        used.touch()
        with open_session(two, BuildOptions(), emit=events.append) as second:
            assert second.cache == first.cache
            assert second.scratch != first.scratch
            assert used.exists()
            assert first.scratch.is_dir()
            with pytest.raises(HostError, match="another airferry process is running here"):
                open_session(one, BuildOptions(), emit=silent).__enter__()
        assert not second.scratch.exists()
        assert used.exists()
    assert events == []
    assert not used.exists()
    assert list((cache / "scratch").iterdir()) == []


class SlowCompiler:
    """A compiler that takes as long as a test wants."""

    base = SimpleNamespace(name="base")

    def __init__(self) -> None:
        self.begun, self.ready, self.calls = threading.Event(), threading.Event(), list[str]()

    def key(self, requirement: str, *_: object) -> dict[str, str]:
        return {"requirement": requirement}

    def compile(self, requirement: str, *_: object, scratch: Path, **__: object) -> Path:
        self.calls.append(requirement)
        self.begun.set()
        assert self.ready.wait(120)
        return make_wheel(scratch / "out", "slow", "1.0", tag=f"cp311-cp311-{AMD64_TAG}")


def test_a_lock_that_compiles_stops_no_other_folder(
    selections: list[Selection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAITING_SAID_AFTER_S", 0)
    monkeypatch.setattr(WheelStore, "pip_wheel", lambda *_: tmp_path)
    index, compiler = tmp_path / "index", SlowCompiler()
    make_wheel(index, "pure", "1.0")
    make_wheel(index, "slow", "1.0", tag="cp311-cp311-manylinux_2_17_aarch64")
    source_distribution(index, name="slow", tag="any")
    one, two = (read_plan(selection) for selection in selections)
    events: list[list[Event]] = [[], [], []]

    def bring(cache: Path, name: str, emit: Emit) -> Path:
        store = WheelStore(cache, FolderPip(folder=index), emit)
        return store.fetch([Pin(name, "==1.0")], AMD64, compiler=compiler)[0].path  # type: ignore[arg-type]

    with open_session(one, BuildOptions(), emit=silent) as first, ThreadPoolExecutor() as pool:
        try:
            compiled = pool.submit(bring, first.cache, "slow", events[0].append)
            assert compiler.begun.wait(120)
            with open_session(two, BuildOptions(), emit=events[1].append) as second:
                assert bring(second.cache, "pure", events[1].append).is_file()
                assert events[1] == []
                waiting = pool.submit(bring, second.cache, "slow", events[2].append)
                until(lambda: any("is compiled" in str(event) for event in events[2]))
                assert not waiting.done()
                compiler.ready.set()
                assert waiting.result(120) == compiled.result(120)
        finally:
            compiler.ready.set()
    assert compiler.calls == ["slow==1.0"]


class Slow(LayoutStore):
    """A source that counts what is read, and whose blobs take a while."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=True)
        self.read: list[str] = []

    @contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[IO[bytes]]:
        self.read.append(descriptor.digest)
        time.sleep(0.02)
        with super().open_blob(descriptor) as stream:
            yield stream


def test_a_blob_that_two_want_at_once_is_fetched_once(tmp_path: Path) -> None:
    upstream = LayoutStore.create(tmp_path / "upstream")
    descriptor = upstream.put_bytes(b"layer" * 1000, "application/octet-stream")
    source = Slow(tmp_path / "upstream")
    stores = [SharedLayout(tmp_path / "cache" / "bases", cache=tmp_path / "cache", emit=silent) for _ in range(2)]
    actions = parallel_map(lambda store: store.take_blob(BlobOffer(descriptor, source)), stores, jobs=2)
    assert sorted(actions) == ["present", "send"]
    assert source.read == [descriptor.digest]


def test_indexes_of_a_shared_layout_lose_no_entry(tmp_path: Path) -> None:
    stores = [SharedLayout(tmp_path / "bases", cache=tmp_path, emit=silent) for _ in range(2)]

    def name(number: int) -> None:
        store = stores[number % 2]
        stored = store.read_manifest(make_image(store, str(number))[0])
        store.put_manifest(stored, reference=f"image:{number}")

    parallel_map(name, range(8), jobs=4)
    assert len(stores[0].read_index().manifests) == 8


def test_only_what_is_damaged_is_removed_from_a_shared_layout(tmp_path: Path) -> None:
    store = SharedLayout(tmp_path / "bases", cache=tmp_path, emit=silent)
    whole, damaged = (store.put_bytes(data, "application/json") for data in (b"{}", b'{"a": 1}'))
    store.blob_path(damaged.digest).write_bytes(b'{"a": 2}')
    for descriptor in (whole, damaged):
        store.remove_damaged(descriptor.digest)
    store.remove_damaged("sha256:" + "0" * 64)
    assert [store.has_blob(descriptor) for descriptor in (whole, damaged)] == [True, False]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_userland_is_made_once_for_two_who_ask_at_once_and_again_for_who_asks_later_or_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    calls: list[str] = []
    said: list[Event] = []
    asked: list[RecentUserland] = []

    class Asked(RecentUserland):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            asked.append(self)

    def bootstrap(base: BootstrapBase, *, into: Path, **_: Any) -> debian.BootstrapResult:
        calls.append(base.suite)
        until(lambda: len(asked) > 1)
        into.write_bytes(bytes(1024))
        return debian.BootstrapResult(into, {"base-files": "12"}, False)

    monkeypatch.setattr(debian, "bootstrap", bootstrap)
    monkeypatch.setattr(fetch, "RecentUserland", Asked)
    platform = parse_platform("linux/amd64")
    base = BootstrapBase(suite="bookworm")
    cache = tmp_path / "cache"
    caches = [BaseCache(cache, open_registry=Pulls(lambda _: None, emit=silent).source, emit=said.append) for _ in "12"]  # type: ignore[arg-type, return-value]

    def bring(bases: BaseCache, locked: LockedBase | None) -> LockedBase:
        return bases.bring(base, [platform], locked=locked).locked

    first, second = parallel_map(lambda bases: bring(bases, None), caches, jobs=2)
    assert first == second
    assert calls == ["bookworm"]
    if pinned:
        assert bring(caches[0], first) == first
        assert len(calls) == 1
    else:
        said.clear()
        assert bring(caches[0], None) == first
        assert len(calls) == 1, "a lock that failed is run again"
        assert [item.reused for item in said if isinstance(item, StageFinished)] == [True]
        monkeypatch.setattr(shared, "RECENT_S", 0.0)
        bring(caches[0], None)
        assert len(calls) == 2, "a mirror may have something else by now"
        monkeypatch.setattr(shared, "RECENT_S", 3600.0)
        caches[0].ask_again()
        bring(caches[0], None)
        assert len(calls) == 3


def test_a_locked_wheel_that_two_want_at_once_is_downloaded_once(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", "pure", "1.0")
    wheel = WheelStore(tmp_path / "first", FolderPip(folder=tmp_path / "index")).fetch([Pin("pure")], AMD64)[0]
    locked = Pin("pure", "==1.0", filename=wheel.filename, sha256=wheel.sha256)
    calls: list[Event] = []

    def emit(event: Event) -> None:
        calls.append(event)
        time.sleep(0.05)

    stores = [WheelStore(tmp_path / "cache", FolderPip(emit=emit, folder=tmp_path / "index")) for _ in "12"]
    one, two = parallel_map(lambda store: store.fetch([locked], AMD64), stores, jobs=2)
    assert one == two
    assert len(calls) == 1


def test_a_damaged_wheel_is_replaced_while_others_may_read_it(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", "pure", "1.0")
    store = WheelStore(tmp_path / "cache", FolderPip(folder=tmp_path / "index"))
    wheel = store.fetch([Pin("pure")], AMD64)[0]
    whole = wheel.path.read_bytes()
    wheel.path.write_bytes(whole[:-1])
    assert store.find(wheel.filename, wheel.sha256) is None
    assert wheel.path.exists(), "another process may have put a whole one there in the meantime"
    store.fetch([Pin("pure")], AMD64)
    assert wheel.path.read_bytes() == whole


def test_images_of_a_run_go_when_no_process_keeps_any(tmp_path: Path) -> None:
    images = tmp_path / "state" / "buildah-storage" / "overlay-images" / "images.json"
    names = ["localhost/airferry/linux-amd64:one", "localhost/base:1", "localhost/rehearsal:2"]
    files.write_text(images, json.dumps([{"names": names[:2]}, {"names": names[2:]}, {"id": "unnamed"}]))
    removed: list[str] = []

    class Told(Storage):
        def invoke(self, arguments: Sequence[str | Path], **_: Any) -> Completed:
            removed.append(str(arguments[-1]))
            return Completed(0, b"", ())

    program = Program("buildah", Path("/bin/false"), (1,))
    one, two = (TransientImages(Told(program, tmp_path / "state", emit=silent), emit=silent) for _ in "12")
    with one.kept():
        removed.clear()  # what a killed run left
        with two.kept(), one.kept():
            pass
        assert removed == []
    assert removed == [names[0], names[2]]
