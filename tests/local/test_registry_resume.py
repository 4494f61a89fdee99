"""A pull that was cut off goes on in the next process where it stopped, and damaged leftovers never get in."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from airferry.errors import IntegrityError
from airferry.host import files
from airferry.oci.digest import digest_hex
from airferry.oci.documents import LAYER_TAR, descriptor_of
from airferry.oci.layout import LayoutStore
from airferry.oci.resume import fetch_blob
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.retry import RetryPolicy
from airferry.registry.source import RegistrySource
from scripted_registry import ScriptedRegistry, run_scripted

BLOB = bytes(range(256)) * 4096 * 3
LAYER = descriptor_of(BLOB, LAYER_TAR)


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with run_scripted() as running:
        running.blobs[LAYER.digest] = BLOB
        yield running


@pytest.fixture
def source(registry: ScriptedRegistry) -> Iterator[RegistrySource]:
    options = ClientOptions(plain_http=True, retry=RetryPolicy(attempts=2, sleep=lambda seconds: None))
    with RegistryClient(registry.address, options=options) as client:
        yield RegistrySource(client, "r/x")


@pytest.fixture
def partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    folder = files.ensure_directory(files.cache_directory() / "partial")
    return folder / digest_hex(LAYER.digest)


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_pull_goes_on_where_it_was_cut_off(
    registry: ScriptedRegistry, source: RegistrySource, partial: Path, tmp_path: Path
) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    seen = [0]

    def die(size: int) -> None:
        seen[0] += size
        if seen[0] > 2_000_000:
            raise Killed

    with pytest.raises(Killed):
        fetch_blob(source, store, LAYER, on_block=die)
    kept = partial.stat().st_size
    assert 1_000_000 < kept < len(BLOB)
    assert store.stored_digests() == set()
    counted: list[int] = []
    assert fetch_blob(source, store, LAYER, on_block=counted.append)
    assert sum(counted) == len(BLOB)
    assert store.blob_path(LAYER.digest).read_bytes() == BLOB
    assert registry.calls[-1].headers["Range"] == f"bytes={kept}-"
    assert not partial.exists()


@pytest.mark.parametrize("left", [b"\0" * 1000, b"\0" * len(BLOB), BLOB + b"x", BLOB])
def test_leftovers_are_proved_or_dropped(left: bytes, source: RegistrySource, partial: Path, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    partial.write_bytes(left)
    assert fetch_blob(source, store, LAYER, on_block=lambda size: None)
    assert store.blob_path(LAYER.digest).read_bytes() == BLOB
    assert not partial.exists()


@pytest.mark.parametrize("bad", [BLOB[:-1], BLOB[:-1] + b"x", BLOB + b"x"])
def test_what_is_not_the_blob_is_refused_and_not_kept(
    bad: bytes, registry: ScriptedRegistry, source: RegistrySource, partial: Path, tmp_path: Path
) -> None:
    registry.blobs[LAYER.digest] = bad
    store = LayoutStore.create(tmp_path / "layout")
    with pytest.raises(IntegrityError):
        fetch_blob(source, store, LAYER, on_block=lambda size: None)
    assert store.stored_digests() == set()
    assert not partial.exists()


def test_two_processes_do_not_write_one_file(source: RegistrySource, partial: Path, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not fetch_blob(source, store, LAYER, on_block=lambda size: None)
