"""What was learned about a registry ages: limits are tried again after a day, and where they make a load fail."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from airferry import api
from airferry.errors import RegistryError
from airferry.host import clock
from airferry.oci.documents import descriptor_of
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.governor import SMALLEST_CHUNK_BYTES, Limits
from airferry.registry.profile import RegistryProfile, keep_learned, read_profile, write_profile
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.registry.uploads import Uploader
from oci_images import make_bundle
from scripted_registry import Exchange, Fault, ScriptedRegistry

OPTIONS = ClientOptions(
    plain_http=True,
    lookup=lambda _registry, _repository: None,
    retry=RetryPolicy(attempts=2, sleep=lambda _seconds: None),
)
HOST = "registry.example:5000"
HALF = 512 * 1024


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [clock.now_s()]
    monkeypatch.setattr(clock, "now_s", lambda: moment[0])
    return moment


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def at_most(size: int) -> Fault:
    def fault(exchange: Exchange) -> bool:
        if int(exchange.call.headers.get("Content-Length", "0")) <= size:
            return False
        exchange.read_body()
        return exchange.answer(413)

    return fault


def test_limits_are_forgotten_after_a_day_and_the_rest_is_kept(now: list[float]) -> None:
    keep_learned(RegistryProfile(registry=HOST, deletes_tags=False), Limits(HALF, HALF, False), mounts=False)
    known = read_profile(HOST)
    assert (known.mounts, known.chunks, known.largest_request_bytes) == (False, False, HALF)
    assert known.limits().remembered
    now[0] += 23 * 3600
    assert read_profile(HOST) == known
    now[0] += 2 * 3600
    later = read_profile(HOST)
    assert (later.mounts, later.chunks, later.largest_request_bytes, later.learned_at) == (None, None, None, {})
    assert later.deletes_tags is False and not later.limits().remembered
    # what is seen again counts from then on
    keep_learned(later, Limits(), mounts=False)
    now[0] += 23 * 3600
    assert read_profile(HOST).mounts is False


def test_what_a_probe_found_ages_too_and_so_does_what_has_no_time(now: list[float]) -> None:
    write_profile(RegistryProfile(registry=HOST, probed_at=clock.rfc3339(now[0]), mounts=False, chunks=True))
    assert read_profile(HOST).mounts is False
    now[0] += 25 * 3600
    assert (read_profile(HOST).mounts, read_profile(HOST).chunks) == (None, True)
    for moment in (None, "soon", "9999-12-31T23:59:59Z"):
        write_profile(RegistryProfile(registry=HOST, probed_at=moment, mounts=False))
        assert read_profile(HOST).mounts is None


def test_a_success_to_the_contrary_clears_what_was_noted(now: list[float]) -> None:
    known = RegistryProfile(registry=HOST, chunks=False, learned_at={"chunks": now[0]})
    assert known.learned(known.limits(), mounts=True) == known
    limits = known.limits()
    assert limits.reconsider() and not limits.reconsider()
    assert known.learned(limits, mounts=True).chunks is None


def test_a_remembered_lack_of_chunks_is_tried_again_before_an_upload_fails(registry: ScriptedRegistry) -> None:
    data = bytes(600 * 1024)
    registry.faults.append(at_most(400 * 1024))
    blob = descriptor_of(data, "text/plain")
    limits = RegistryProfile(registry=registry.address, chunks=False).limits()
    with RegistryClient(registry.address, options=OPTIONS) as client:
        RegistrySink(client, "r/x", uploader=Uploader(client, limits=limits)).put_blob(blob, io.BytesIO(data))
    assert registry.blobs[blob.digest] == data and limits.chunks and registry.count("PATCH") >= 2


def test_a_failure_names_what_was_noted_and_what_finds_it_out_again(registry: ScriptedRegistry, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    known = RegistryProfile(registry=registry.address, largest_request_bytes=SMALLEST_CHUNK_BYTES)
    write_profile(known.model_copy(update={"learned_at": {"largest_request_bytes": clock.now_s()}}))
    registry.faults.append(at_most(0))
    with pytest.raises(RegistryError) as caught:
        api.load(tmp_path / "bundle", to=f"{registry.address}/s", receipt=tmp_path / "r.yaml", options=OPTIONS)
    hint = caught.value.hint or ""
    assert "noted earlier: it takes at most" in hint and f"`airferry registry probe {registry.address}`" in hint


def test_one_mount_that_worked_outweighs_a_refusal(registry: ScriptedRegistry) -> None:
    blob, other = descriptor_of(b"there", "text/plain"), descriptor_of(b"collected", "text/plain")
    registry.mounts, registry.blobs[blob.digest] = True, b"there"
    with RegistryClient(registry.address, options=OPTIONS) as client:
        uploader = Uploader(client)
        sink = RegistrySink(client, "r/x", uploader=uploader)
        assert sink.mount_blob(blob, "r/y") and not sink.mount_blob(other, "r/y")
        assert uploader.mounts and sink.mount_blob(blob, "r/y")
        fresh = Uploader(client)
        assert not RegistrySink(client, "r/x", uploader=fresh).mount_blob(other, "r/y") and not fresh.mounts
