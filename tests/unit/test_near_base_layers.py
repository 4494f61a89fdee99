"""Layers of bases on their way into a bundle: read once, one after the other or several at a time."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import zstandard

from airferry.errors import IntegrityError
from airferry.events import Event, Progress
from airferry.host.journal import Journal
from airferry.host.records import Records
from airferry.host.workers import processes, work
from airferry.host.workers.processes import LocalProcesses
from airferry.near.assemble.writer import ImageWriter
from airferry.near.bases import layers as base_layers
from airferry.near.bases import reading
from airferry.near.bases.fetch import BaseImage
from airferry.near.bases.layers import BaseLayers
from airferry.near.probe.knowledge import Knowledge
from airferry.oci.codecs import DEFAULT_GZIP_LEVEL, DEFAULT_ZSTD_LEVEL
from airferry.oci.documents import Descriptor
from airferry.oci.layers import Compression, LayerResult
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import blocks
from debian_bases import AMD64
from oci_images import base_image, put_image

LAYERS = [{f"usr/file{number}": random.Random(number).randbytes(300_000 + number)} for number in range(5)]


def make_base(cache: Path) -> BaseImage:
    """Put a base into a cache; one of its layers is there twice, as an empty one often is."""
    store = LayoutStore.create(cache / "bases")
    descriptor, _layers = put_image(store, [*LAYERS, LAYERS[0]], kind="gzip")
    return base_image(store, descriptor, AMD64)


def carry(folder: Path, kind: str) -> tuple[list[Descriptor], list[str], BaseLayers]:
    """Look at a base and bring its layers into a bundle; return these, what is in the root, and what carried them."""
    cache = folder / "cache"
    base = make_base(cache)
    layers = BaseLayers(
        LayoutStore.open(cache / "bases"),
        cache,
        compression=Compression(kind),
        output=folder,  # type: ignore[arg-type]
    )
    view = Knowledge(layers, cache).view(base)
    bundle = LayoutStore.create(folder / "bundle")
    made = ImageWriter(bundle, layers, Journal(folder / "journal.yaml")).base_layers(base)
    assert all(bundle.has_blob(layer.descriptor) for layer in made)
    return [layer.descriptor for layer in made], view.listdir("usr"), layers


@pytest.mark.parametrize("kind", ["zstd", "preserve"])
def test_several_at_a_time_give_the_same_in_the_same_order(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "usable_cores", lambda: 1)
    one_by_one = carry(tmp_path / "one", kind)
    monkeypatch.setattr(work, "usable_cores", lambda: 16)
    at_a_time = carry(tmp_path / "four", kind)
    assert at_a_time[0] == one_by_one[0]
    assert at_a_time[0][0] == at_a_time[0][-1] and len(set(map(str, at_a_time[0]))) == len(LAYERS)
    assert at_a_time[1] == one_by_one[1] == [f"file{number}" for number in range(len(LAYERS))]


@pytest.mark.parametrize(
    ("cores", "here", "read", "packed"), [(1, 1, 1, 1), (2, 1, 1, 1), (6, 3, 3, 2), (16, 4, 6, 5), (64, 4, 22, 17)]
)
def test_layers_at_a_time(
    cores: int, here: int, read: int, packed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (work, processes):
        monkeypatch.setattr(module, "usable_cores", lambda: cores)
    assert Cache(tmp_path / "here").run("preserve").at_once == here
    many = LocalProcesses(100)
    assert Cache(tmp_path / "read").run("preserve", workers=many).at_once == read
    assert Cache(tmp_path / "packed").run("zstd", workers=many).at_once == packed
    assert Cache(tmp_path / "few").run("zstd", workers=LocalProcesses(1)).at_once == 1


def test_a_layer_that_is_not_what_the_config_says_fails_whatever_is_read_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "usable_cores", lambda: 16)
    cache = tmp_path / "cache"
    base = make_base(cache)
    base.config.rootfs.diff_ids[2] = "sha256:" + "0" * 64
    layers = BaseLayers(LayoutStore.open(cache / "bases"), cache, compression=Compression("zstd"), output=tmp_path)
    with pytest.raises(IntegrityError, match="diff_id"):
        Knowledge(layers, cache).view(base)


def test_what_a_layer_will_take_in_a_bundle_is_known_once_it_was_recompressed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    base = make_base(cache)
    fresh = BaseLayers(LayoutStore.open(cache / "bases"), cache, compression=Compression("zstd"), output=tmp_path)
    diff_id = base.config.rootfs.diff_ids[0]
    assert fresh.expected(base.layers[0], diff_id) == (base.layers[0], False)
    packed, _names, layers = carry(tmp_path, "zstd")
    assert layers.expected(base.layers[0], diff_id) == (packed[0], True)


class Cache:
    """A cache of bases with one layer, from which layers go into a bundle, in one run or in several."""

    def __init__(self, root: Path, kind: str = "gzip") -> None:
        self.root = root
        self.bases = LayoutStore.create(root / "cache" / "bases")
        descriptor, _layers = put_image(self.bases, [LAYERS[0]], kind=kind)
        base = base_image(self.bases, descriptor, AMD64)
        self.layer, self.diff_id = base.layers[0], base.config.rootfs.diff_ids[0]
        self.bundle = LayoutStore.create(root / "bundle")

    def run(self, kind: str = "zstd", **more: Any) -> BaseLayers:
        """Return what carries layers in a process that begins now."""
        compression = Compression(kind, level=more.pop("level", None), long=more.pop("long", False))  # type: ignore[arg-type]
        return BaseLayers(self.bases, self.root / "cache", compression=compression, output=self.root, **more)

    def carry(self, layers: BaseLayers) -> LayerResult:
        return layers.carry(self.layer, self.diff_id, into=self.bundle)

    def kept(self, descriptor: Descriptor) -> Path:
        return LayoutStore.open(self.root / "cache" / "layers").blob_path(descriptor.digest)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which layers are inflated, and for what."""
    done: list[str] = []

    def noting(real: Callable[..., LayerResult], what: str) -> Callable[..., LayerResult]:
        def call(*arguments: Any, **more: Any) -> LayerResult:
            done.append(what)
            return real(*arguments, **more)

        return call

    for what in ("inspect", "recompress"):
        monkeypatch.setattr(reading, f"{what}_layer", noting(getattr(reading, f"{what}_layer"), what))
    return done


def test_a_layer_is_recompressed_once_and_a_link_in_each_bundle(tmp_path: Path, reads: list[str]) -> None:
    cache = Cache(tmp_path)
    made = cache.carry(cache.run())
    assert reads == ["recompress"]
    assert (made.diff_id, made.original) == (cache.diff_id, cache.layer)
    assert made.descriptor.media_type.endswith("+zstd") and made.unpacked_bytes > 300_000
    assert cache.bundle.blob_path(made.descriptor.digest).samefile(cache.kept(made.descriptor))
    cache.bundle = LayoutStore.create(tmp_path / "another")
    again = cache.carry(cache.run())
    assert again == made and reads == ["recompress"]
    assert cache.bundle.blob_path(made.descriptor.digest).samefile(cache.kept(made.descriptor))
    with cache.bundle.open_blob(made.descriptor) as stream:
        assert len(stream.read()) == made.descriptor.size


@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_cache_is_made_again_from_the_base(tmp_path: Path, gone: bool, reads: list[str]) -> None:
    cache = Cache(tmp_path)
    made = cache.carry(cache.run())
    path = cache.kept(made.descriptor)
    data = path.read_bytes()
    path.unlink()
    if not gone:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    cache.bundle = LayoutStore.create(tmp_path / "another")
    assert cache.carry(cache.run()) == made
    assert reads == ["recompress", "recompress"]
    assert path.read_bytes() == data == cache.bundle.blob_path(made.descriptor.digest).read_bytes()


def test_a_layer_that_keeps_its_bytes_is_looked_at_once_in_all(tmp_path: Path, reads: list[str]) -> None:
    cache = Cache(tmp_path)
    for kind in ("preserve", "gzip"):
        cache.bundle = LayoutStore.create(tmp_path / kind)
        kept = cache.carry(cache.run(kind))
        assert kept.descriptor.digest == cache.layer.digest and kept.original == cache.layer
        assert kept.unpacked_bytes > 300_000 and kept.diff_id == cache.diff_id
    assert reads == ["inspect"]
    with pytest.raises(IntegrityError, match="diff_id"):
        cache.run("gzip").carry(cache.layer, "sha256:" + "0" * 64, into=cache.bundle)
    assert reads == ["inspect", "inspect"], "what was noted is of another diff_id"


@pytest.mark.parametrize("kind", ["preserve", "zstd"])
def test_a_base_that_was_damaged_in_the_cache_is_never_carried(tmp_path: Path, kind: str) -> None:
    cache = Cache(tmp_path)
    cache.carry(cache.run("preserve"))
    path = cache.bases.blob_path(cache.layer.digest)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    cache.bundle = LayoutStore.create(tmp_path / "another")
    with pytest.raises(IntegrityError):
        cache.carry(cache.run(kind))
    assert cache.bundle.stored_digests() == set()


def test_nothing_is_kept_where_the_bundle_is_on_another_file_system(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_layers, "_same_file_system", lambda cache, output: False)
    cache = Cache(tmp_path)
    layers = cache.run()
    assert layers.expected(cache.layer, cache.diff_id) == (cache.layer, False)
    made = cache.carry(layers)
    assert cache.bundle.has_blob(made.descriptor) and not (tmp_path / "cache" / "layers" / "blobs").exists()
    assert cache.run("preserve").expected(cache.layer, cache.diff_id) == (cache.layer, False)
    cache.bundle = LayoutStore.create(tmp_path / "another")
    assert cache.carry(cache.run()) == made and reads == ["recompress", "recompress"]


def test_whether_links_can_be_made_is_asked_of_the_folder_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, output = tmp_path / "cache", tmp_path / "not" / "made" / "yet"
    assert base_layers._same_file_system(cache, output)
    assert cache.is_dir() and not output.parent.parent.exists()
    real, mounted = Path.stat, tmp_path / "mounted"
    mounted.mkdir()

    def stat(path: Path, **more: Any) -> Any:
        return SimpleNamespace(st_dev=-1, st_mode=0o40755) if path == mounted else real(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    assert not base_layers._same_file_system(cache, mounted)
    assert not base_layers._same_file_system(cache, mounted / "out" / "of" / "a" / "build")


def observe(layers: BaseLayers, cache: Cache, stream: IO[bytes] | None) -> None:
    """Look at the layer of a cache, on its way there if a stream is given."""
    with layers.observing(cache.layer, cache.diff_id, None, comes_by=stream is not None) as running:
        for block in blocks(stream) if stream is not None else ():
            running.write(block)
        running.result()


def test_what_is_read_on_the_way_is_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    cache = Cache(tmp_path)
    layers = cache.run()
    assert layers.expected(cache.layer, cache.diff_id) == (cache.layer, False)
    assert cache.run("gzip").expected(cache.layer, cache.diff_id) == (cache.layer, True)
    with cache.bases.open_blob(cache.layer) as stream:
        observe(layers, cache, stream)
    assert reads == ["recompress"]
    made = cache.carry(layers)
    assert reads == ["recompress"]
    assert layers.expected(cache.layer, cache.diff_id) == (made.descriptor, True)
    observe(layers, cache, None)
    assert reads == ["recompress", "inspect"], "it already exists: nothing is compressed again"


def test_a_layer_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    for kind in ("zstd", "preserve"):
        cache = Cache(tmp_path / kind)
        with pytest.raises(IntegrityError, match="limit"):
            cache.carry(cache.run(kind, limit_bytes=1000))


def test_levels_encoders_and_kinds_have_cache_entries_of_their_own(tmp_path: Path, reads: list[str]) -> None:
    cache = Cache(tmp_path)
    first = cache.carry(cache.run(level=DEFAULT_ZSTD_LEVEL))
    assert cache.carry(cache.run()) == first and reads == ["recompress"], "the default is that level"
    cache.carry(cache.run(level=1))
    assert reads == ["recompress"] * 2
    cache.carry(cache.run(long=True))
    assert reads == ["recompress"] * 3
    encoders = {Compression(kind).to_key()["encoder"] for kind in ("zstd", "gzip", "none")}  # type: ignore[arg-type]
    assert len(encoders) == 3 and any(zstandard.__version__ in encoder for encoder in encoders)


def test_the_default_level_of_gzip_is_a_level_as_others(tmp_path: Path, reads: list[str]) -> None:
    cache = Cache(tmp_path, kind="zstd")
    first = cache.carry(cache.run("gzip", level=DEFAULT_GZIP_LEVEL))
    assert cache.carry(cache.run("gzip")) == first and reads == ["recompress"]


def test_an_encoder_is_its_library_in_its_version() -> None:
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    assert Compression("zstd").to_key()["encoder"].startswith(f"zstd {version}, zstandard {zstandard.__version__},")
    assert Compression("gzip").to_key()["encoder"] == f"zlib {zlib.ZLIB_RUNTIME_VERSION}, blocks"
    assert Compression("none").to_key()["encoder"] == "none"


def test_what_is_kept_is_noted_as_other_versions_look_for_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = cache.carry(cache.run())
    records = Records(tmp_path / "cache" / "layers" / "records")
    key = {
        "diff_id": cache.diff_id,
        "kind": "zstd",
        "level": DEFAULT_ZSTD_LEVEL,
        "encoder": Compression("zstd").to_key()["encoder"],
    }
    packed = made.descriptor
    assert records.recall(key) == {
        "descriptor": {"mediaType": packed.media_type, "digest": packed.digest, "size": packed.size},
        "unpacked_bytes": made.unpacked_bytes,
    }
    noted = {"diff_id": cache.diff_id, "unpacked_bytes": made.unpacked_bytes}
    assert records.recall({"blob": cache.layer.digest}) == noted


def test_only_what_this_process_has_read_counts_as_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    real = base_layers.copy_blob

    def noting(*arguments: Any, **more: Any) -> Any:
        told.append(more.get("verified"))
        return real(*arguments, **more)

    monkeypatch.setattr(base_layers, "copy_blob", noting)
    cache = Cache(tmp_path)
    for number in range(2):
        cache.bundle = LayoutStore.create(tmp_path / f"bundle{number}")
        cache.carry(cache.run())
    assert told == [True, False], "read and hashed once in a run: while it is made, or else when it is linked"


@pytest.mark.parametrize("kind", ["zstd", "preserve"])
def test_reading_a_layer_is_progress(tmp_path: Path, kind: str) -> None:
    events: list[Event] = []
    cache = Cache(tmp_path)
    cache.carry(cache.run(kind, emit=events.append))
    done = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert done[-1:] == [(cache.layer.size, cache.layer.size)]
