"""Layers of bases that processes read: the same as here, from their own files, and whole after one is killed."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airferry.config import LayoutBase
from airferry.errors import HostError, IntegrityError
from airferry.events import Emit, Event, Progress, silent
from airferry.host.workers.processes import LocalProcesses
from airferry.host.workers.work import IN_PLACE, Running, Work, Workers
from airferry.near.bases.fetch import BaseCache, BaseImage
from airferry.near.bases.layers import BaseLayers
from airferry.near.probe.knowledge import Knowledge
from airferry.oci.documents import Descriptor
from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from airferry.rootfs import sources
from airferry.rootfs.layers import UnreadLayer, collect_facts
from debian_bases import AMD64
from layer_tars import Item, cut, facts_of, tar_of
from oci_images import base_image, put_image, put_manifest

FILES = [
    {f"usr/file{number}": random.Random(number).randbytes(100_000 * (3 - number)), f"usr/m{number}.py": b"import os\n"}
    for number in range(3)
]


class Near:
    """A cache, and what works on it."""

    def __init__(self, cache: Path, workers: Workers, kind: str = "zstd", emit: Emit = silent) -> None:
        self.bases = BaseCache(cache, open_registry=_no_registry, emit=silent)
        self.layers = BaseLayers(
            self.bases.store,
            cache,
            compression=Compression(kind),  # type: ignore[arg-type]
            output=cache.parent,
            workers=workers,
            emit=emit,
        )
        self.knowledge = Knowledge(self.layers, cache)

    def bring(self, layout: Path) -> BaseImage:
        base = LayoutBase(path=layout, reference="base", written=f"oci:{layout}:base")
        return self.bases.bring(base, [AMD64], locked=None, learn=self.knowledge).images[AMD64]

    def carried(self, base: BaseImage, into: Path) -> list[Descriptor]:
        bundle = LayoutStore.create(into)
        pairs = zip(base.layers, base.config.rootfs.diff_ids, strict=True)
        return [self.layers.carry(layer, diff_id, into=bundle).descriptor for layer, diff_id in pairs]


def _no_registry(reference: object) -> LayoutStore:
    raise AssertionError("no registry is asked")


class Asked(LocalProcesses):
    """Workers that note what they are given, and kill the process that is to read one layer."""

    def __init__(self, kill: str = "") -> None:
        super().__init__(2, start_from_bytes=0)
        self.works: list[Work] = []
        self._kill = kill

    @contextmanager
    def begin(self, work: Work, *, emit: Emit = silent) -> Iterator[Running]:
        self.works.append(work)
        with super().begin(work, emit=emit) as running:
            if self._kill and self._kill in work.what:
                running._process.child.kill()  # type: ignore[attr-defined]
            yield running


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    store = LayoutStore.create(tmp_path / "base")
    top, _layers = put_image(store, FILES, kind="gzip")
    store.put_manifest(store.read_manifest(top), reference="base")
    return store.path


@pytest.mark.parametrize("kind", ["zstd", "preserve"])
def test_layers_of_a_layout_are_read_from_its_files_while_they_are_copied(
    kind: str, layout: Path, tmp_path: Path
) -> None:
    here = Near(tmp_path / "here" / "cache", IN_PLACE, kind)
    expected = here.carried(here.bring(layout), tmp_path / "here" / "bundle")
    said: list[Event] = []
    with Asked() as workers:
        near = Near(tmp_path / "apart" / "cache", workers, kind, said.append)
        base = near.bring(layout)
        assert {Path(work.arguments["place"]["file"]).parents[2] for work in workers.works} == {layout}
        assert not any(work.fed for work in workers.works)
        assert near.knowledge.view(base).listdir("usr") == here.knowledge.view(base).listdir("usr")
        assert near.carried(base, tmp_path / "apart" / "bundle") == expected
        assert len(workers.works) == len(FILES), "each layer is read once"
    done = {event.task for event in said if isinstance(event, Progress) and event.done == event.total}
    assert done == {f"layer `{layer.digest}`" for layer in base.layers}


def test_a_layer_of_a_layout_that_is_damaged_is_not_copied_and_not_learned(layout: Path, tmp_path: Path) -> None:
    store = LayoutStore.open(layout)
    manifest = store.read_manifest(store.resolve("base")).manifest
    path = store.blob_path(manifest.layers[0].digest)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with LocalProcesses(2, start_from_bytes=0) as workers:
        near = Near(tmp_path / "cache", workers)
        with pytest.raises(IntegrityError, match="has digest"):
            near.bring(layout)
    kept = {path.name for path in (tmp_path / "cache" / "facts").glob("*")}
    assert len(kept) <= len(FILES) - 1
    assert not near.bases.store.has_blob(manifest.layers[0])


def test_a_layer_whose_reader_was_killed_while_it_was_copied_is_read_again(layout: Path, tmp_path: Path) -> None:
    killed = LayoutStore.open(layout).read_manifest(LayoutStore.open(layout).resolve("base")).manifest.layers[1].digest
    with Asked(kill=killed) as workers:
        near = Near(tmp_path / "cache", workers)
        base = near.bring(layout)
        workers._kill = ""
        assert near.knowledge.view(base).listdir("usr")[:3] == ["file0", "file1", "file2"]
        assert [killed in work.what for work in workers.works].count(True) == 2


def test_a_killed_process_is_named_with_its_layer_and_a_rerun_reads_what_is_left(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    store = LayoutStore.create(cache / "bases")
    base = base_image(store, put_image(store, FILES, kind="gzip")[0], AMD64)
    # the last one in the order of sizes, so that the others are finished or under way
    killed = base.layers[2].digest
    with Asked(kill=killed) as workers, pytest.raises(HostError) as caught:
        Near(cache, workers).knowledge.view(base)
    assert caught.value.message == f"a worker process was killed by SIGKILL while it worked on layer `{killed}`"
    assert caught.value.exit_code == 4 and "rerun" in str(caught.value.hint)
    finished = {path.name.split(".")[0] for path in (cache / "facts").glob("*")}
    with Asked() as workers:
        again = Near(cache, workers)
        assert again.knowledge.view(base).listdir("usr")[:3] == ["file0", "file1", "file2"]
        assert len(workers.works) == len(FILES) - len(finished)
        again.carried(base, tmp_path / "bundle")


def test_a_layer_that_is_not_read_here_is_kept_and_its_reason_told(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    store = LayoutStore.create(cache / "bases")
    odd = io.BytesIO()
    with tarfile.open(fileobj=odd, mode="w", format=tarfile.GNU_FORMAT) as tar:
        entry = tarfile.TarInfo("usr/b")
        entry.uid = -5
        tar.addfile(entry)
    odd.seek(0)
    layer = compress_layer(odd, compression=Compression("gzip", 1), into=store)
    base = base_image(store, put_manifest(store, [layer]), AMD64)
    with LocalProcesses(1, start_from_bytes=0) as workers:
        near = Near(cache, workers)
        with pytest.raises(UnreadLayer, match="negative owner") as caught:
            near.knowledge.view(base)
        assert "container engine" in str(caught.value.hint)
    with Asked() as again:
        (made,) = Near(cache, again).carried(base, tmp_path / "bundle")
    assert made.media_type.endswith("zstd") and again.works == [], "it is not recompressed again"


def test_sources_are_looked_at_the_same_here_and_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [
        Item(f"site/p{number}.py", value=f"import a{number}\nfrom b import (\n  c{number},\n)\n" + "x = 1\n" * 2000)
        for number in range(200)
    ]
    items[20:20] = [Item("site/n/__init__.py", value="__path__ = extend_path(__path__, __name__)"), Item("site/no.py")]
    items += [Item("site/é.py", value="import é\nimport last\n"), Item("site/RECORD", value="no source")]
    here = facts_of(items)
    monkeypatch.setattr(sources, "INLINE_BYTES", 100_000)
    with Asked() as workers:
        assert collect_facts(cut(tar_of(items)), what="the layer", workers=workers) == here
        assert len(workers.works) == 1
    assert facts_of(items) == here
    monkeypatch.setattr(sources, "MAX_KEPT_BYTES", 1000)
    monkeypatch.setattr(sources, "INLINE_BYTES", 8 << 20)
    with pytest.raises(IntegrityError, match="more than 1000 bytes of imports"):
        facts_of(items)
