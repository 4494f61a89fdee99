"""Faults between a load or a pull and a real registry: each ends in success or in one clear error, in bounded time."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pytest
from registries import RegistryProcess, run_registry

from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.manifest import ArtifactEntry, BundleManifest, ToolEntry
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.errors import IntegrityError, RegistryError
from airferry.far.load import load
from airferry.far.relocate import parse_destination
from airferry.host.threads import parallel_map
from airferry.oci.closure import read_closure
from airferry.oci.copy import copy_image
from airferry.oci.documents import LAYER_TAR, Descriptor, parse_index
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.credentials import Credential
from airferry.registry.governor import Limits
from airferry.registry.profile import read_profile
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.uploads import Uploader
from fault_proxy import FaultProxy, is_download, is_upload, run_fault_proxy
from oci_images import REFERENCE, make_bundle, make_image, put_image
from scripted_registry import Call, Exchange, Fault, error_document, times

OPTIONS = ClientOptions(
    retry=RetryPolicy(attempts=4, first_pause_s=0.01, longest_pause_s=0.05),
    read_timeout_s=0.5,
    plain_http=True,
    lookup=lambda registry, repository: None,
)
PATIENT = dataclasses.replace(OPTIONS, read_timeout_s=60.0)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], Path]
) -> Iterator[RegistryProcess]:
    require_tool("docker-registry")
    with run_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def proxy(registry: RegistryProcess) -> Iterator[FaultProxy]:
    with run_fault_proxy(registry.address) as running:
        yield running


def put_random(store: LayoutStore, size: int) -> Descriptor:
    with store.new_blob() as writer:
        for _ in range(max(1, size // MIB)):
            writer.write(os.urandom(min(size, MIB)))
        digest, written = writer.commit()
    return Descriptor(media_type=LAYER_TAR, digest=digest, size=written)


# -- how many at once -------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize(("allowed", "refusal"), [(1, 429), (2, 503), (5, 429)])
def test_parallel_uploads_settle_at_what_a_proxy_allows_and_find_a_raised_limit_within_50_requests(
    proxy: FaultProxy, tmp_path: Path, allowed: int, refusal: int
) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    blobs = [put_random(store, 2048) for _ in range(160)]
    options = ClientOptions(
        jobs=8,
        plain_http=True,
        lookup=lambda registry, repository: None,
        retry=RetryPolicy(attempts=12, first_pause_s=0.005, longest_pause_s=0.02),
    )
    # long enough to overlap on a busy machine as well
    proxy.allowed, proxy.refusal, proxy.hold_s = allowed, refusal, 0.04 if allowed == 1 else 0.12
    with RegistryClient(proxy.address, options=options) as client:
        sink = RegistrySink(client, f"many/x{allowed}", uploader=Uploader(client))
        limits: list[int] = []
        proxy.on_upload = lambda: limits.append(client.governor.limit)

        def push(blob: Descriptor) -> None:
            sink.put_blob_from(blob, lambda: store.open_blob(blob))

        parallel_map(push, blobs[:90], jobs=8)
        settled = limits[30:]
        assert sum(settled) / len(settled) == pytest.approx(allowed, abs=1.0)
        assert max(settled) <= allowed + 2
        before = proxy.refused
        limits.clear()
        proxy.allowed = None
        parallel_map(push, blobs[90:], jobs=8)
        assert 8 in limits[:50]
        assert proxy.refused == before
        assert all(sink.has_blob(blob) for blob in blobs)


def test_413_leads_to_smaller_chunks_which_the_next_load_begins_with(
    proxy: FaultProxy, registry: RegistryProcess, tmp_path: Path
) -> None:
    big = os.urandom(3 * MIB)
    proxy.body_limit = MIB
    store = LayoutStore.create(tmp_path / "layout")
    layer = store.put_bytes(big, LAYER_TAR)
    known = read_profile(proxy.address)
    with RegistryClient(proxy.address, options=OPTIONS) as client:
        uploader = Uploader(client, limits=known.limits())
        RegistrySink(client, "limited/x", uploader=uploader).put_blob_from(layer, lambda: store.open_blob(layer))
    assert 256 * 1024 <= uploader.limits.chunk_bytes <= MIB
    learned = known.learned(uploader.limits, mounts=True)
    assert learned.largest_request_bytes == uploader.limits.chunk_bytes
    refused = len([call for call in proxy.uploads() if int(call.headers["Content-Length"]) > MIB])
    assert refused >= 1
    with RegistryClient(proxy.address, options=OPTIONS) as client:
        again = Uploader(client, limits=learned.limits())
        RegistrySink(client, "limited/y", uploader=again).put_blob_from(layer, lambda: store.open_blob(layer))
    assert len([call for call in proxy.uploads() if int(call.headers["Content-Length"]) > MIB]) == refused
    assert registry.sessions() == []


def test_a_load_keeps_what_it_learned_for_the_next_one_and_for_those_who_ask(
    proxy: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.body_limit = MIB
    refused: list[int] = []
    for number in range(2):
        store = LayoutStore.create(tmp_path / f"bundle{number}")
        image, entry = make_image(store, salt=str(number))
        big = ArtifactFile("big", "application/octet-stream", os.urandom(3 * MIB))
        artifact = put_artifact(store, "application/vnd.test", contents=[big], subject=image)
        listed = ArtifactEntry(
            title="big",
            artifact_type="application/vnd.test",
            digest=artifact.digest,
            size_bytes=artifact.size,
            subject=image.digest,
        )
        manifest = BundleManifest(
            workflow={"name": "t"},
            build_stages=(),
            images=(entry,),
            artifacts=(listed,),
            compression="zstd",
            tool=ToolEntry(airferry="0"),
        )
        seal(store, {REFERENCE: image}, artifacts=[artifact], manifest=manifest)
        before = count_large(proxy, MIB)
        load(store.path, to=f"{proxy.address}/learned", receipt=tmp_path / f"r{number}.yaml", options=PATIENT)
        refused.append(count_large(proxy, MIB) - before)
    assert refused[0] > 0 and refused[1] == 0
    assert (read_profile(proxy.address).largest_request_bytes or 0) <= MIB
    proxy.body_limit = None
    assert run(["registry", "probe", proxy.address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_request_bytes"] is None
    assert read_profile(proxy.address).largest_request_bytes is None


def count_large(proxy: FaultProxy, size: int) -> int:
    return len([call for call in proxy.uploads() if int(call.headers["Content-Length"]) > size])


def test_ten_images_that_share_a_layer_send_it_once_and_what_holds_others_comes_later(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    store = LayoutStore.create(tmp_path / "bundle")
    made = [
        make_image(store, salt=str(number), name=f"image{number}", reference=f"r.example/team/image{number}:1")
        for number in range(10)
    ]
    manifest = BundleManifest(
        workflow={"name": "t"},
        build_stages=(),
        images=tuple(entry for _index, entry in made),
        compression="zstd",
        tool=ToolEntry(airferry="0"),
    )
    seal(store, {entry.reference: index for index, entry in made}, manifest=manifest)
    one_at_a_time = dataclasses.replace(PATIENT, jobs=1)
    result = load(store.path, to=f"{proxy.address}/ten", receipt=tmp_path / "r.yaml", options=one_at_a_time).pushed
    uploads = [(call.query["digest"][0], int(call.headers["Content-Length"])) for call in proxy.uploads()]
    assert len({digest for digest, _size in uploads}) == len(uploads) == result.sent_blobs
    sizes = [size for _digest, size in uploads]
    assert sizes == sorted(sizes, reverse=True)
    assert result.mounted_blobs >= 9, "the other nine repositories take the shared layer over"
    puts = [call for call in proxy.calls if call.method == "PUT"]
    manifests = [number for number, call in enumerate(puts) if "/manifests/" in call.path]
    assert manifests[0] == len(uploads), "no manifest goes before all blobs are there"
    kinds = ["tag" if "sha256:" not in puts[number].path else "digest" for number in manifests]
    assert kinds == sorted(kinds), "tags move last"
    children = {child.digest for index, _entry in made for child in parse_index(store.read_bytes(index)).manifests}
    for index, _entry in made:
        order = [puts[number].path.rpartition("/")[2] for number in manifests]
        held = {child.digest for child in parse_index(store.read_bytes(index)).manifests}
        assert all(order.index(child) < order.index(index.digest) for child in held)
    assert children <= {puts[number].path.rpartition("/")[2] for number in manifests}


# -- faults on the way there ------------------------------------------------------------------------------------------


def cut_request(share: float) -> Fault:
    return lambda exchange: forwarded(exchange, request_share=share)


def cut_answer(share: float) -> Fault:
    return lambda exchange: forwarded(exchange, response_share=share)


def forwarded(exchange: Exchange, **how: float) -> bool:
    proxy: FaultProxy = exchange.registry  # type: ignore[assignment]
    return proxy.forward(exchange, **how)  # type: ignore[arg-type]


def status(code: int, **headers: str) -> Fault:
    def fault(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(code, error_document("INJECTED"), **headers)

    return fault


def stall(exchange: Exchange) -> bool:
    exchange.read_body()
    time.sleep(0.6)
    return exchange.reset()


LOST_ANSWERS: dict[str, Fault] = {
    "cut off": lambda exchange: forwarded(exchange, response_share=0.0),
    "too late": lambda exchange: forwarded(exchange, stall_s=0.6),
    "504": lambda exchange: forwarded(exchange, instead=504),
}
UPLOAD_FAULTS: dict[str, Fault] = {
    "reset at 0 %": cut_request(0.0),
    "reset at 50 %": cut_request(0.5),
    "reset at 99 %": cut_request(0.99),
    "stalled": stall,
    "401": status(401, WWW_Authenticate='Basic realm="proxy"'),
    "session lost": status(404),
    "408": status(408),
    "429": status(429, Retry_After="0"),
    "500": status(500),
    "502": status(502),
    "504": status(504),
}
ALWAYS = 10_000


@pytest.mark.parametrize("name", UPLOAD_FAULTS)
def test_a_load_survives_faults_that_pass(
    name: str, proxy: FaultProxy, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "bundle", salt=os.urandom(4).hex())
    prefix = "passing/" + name.replace(" ", "").replace("%", "")
    proxy.faults.append(times(1 if name == "401" else 3, is_upload, UPLOAD_FAULTS[name]))
    try:
        load(tmp_path / "bundle", to=f"{proxy.address}/{prefix}", receipt=tmp_path / "r.yaml", options=OPTIONS)
    except RegistryError as error:
        assert name == "401", error.message
        assert find_tag(registry, prefix) is None
        return
    check_whole(registry, prefix, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["reset at 50 %", "stalled", "401", "session lost", "429", "502"])
def test_a_load_under_faults_that_stay_is_one_error_without_a_tag(
    name: str, proxy: FaultProxy, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "bundle", salt=os.urandom(4).hex())
    prefix = "staying/" + name.replace(" ", "").replace("%", "")
    proxy.faults.append(times(ALWAYS, is_upload, UPLOAD_FAULTS[name]))
    with pytest.raises(RegistryError) as caught:
        load(tmp_path / "bundle", to=f"{proxy.address}/{prefix}", receipt=tmp_path / "r.yaml", options=OPTIONS)
    assert "no tag was moved" in caught.value.message and caught.value.fields["missing"]
    assert not (tmp_path / "r.yaml").exists()
    assert find_tag(registry, prefix) is None
    proxy.faults.clear()
    load(tmp_path / "bundle", to=f"{proxy.address}/{prefix}", receipt=tmp_path / "r.yaml", options=OPTIONS)
    check_whole(registry, prefix, tmp_path / "bundle")


@pytest.mark.parametrize("name", LOST_ANSWERS)
def test_a_blob_whose_last_answer_is_lost_each_time_is_found_and_sent_once(
    name: str, proxy: FaultProxy, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "bundle", salt=os.urandom(4).hex())
    proxy.faults.append(times(ALWAYS, is_upload, LOST_ANSWERS[name]))
    result = load(
        tmp_path / "bundle",
        to=f"{proxy.address}/lost/{name.split()[0]}",
        receipt=tmp_path / "r.yaml",
        options=OPTIONS,
    )
    check_whole(registry, f"lost/{name.split()[0]}", tmp_path / "bundle")
    assert len(proxy.uploads()) == result.pushed.sent_blobs


def find_tag(registry: RegistryProcess, prefix: str) -> str | None:
    with RegistryClient(registry.address, options=OPTIONS) as client:
        return RegistrySource(client, f"{prefix}/team/trainer").find("1.0")


def check_whole(registry: RegistryProcess, prefix: str, bundle: Path) -> None:
    image = open_bundle(bundle).images[REFERENCE]
    assert find_tag(registry, prefix) == image.digest
    with RegistryClient(registry.address, options=OPTIONS) as client:
        source = RegistrySource(client, f"{prefix}/team/trainer")
        for blob in read_closure(source, source.resolve("1.0")).blobs.values():
            with source.open_blob(blob) as stream:
                while stream.read(MIB):
                    pass


def lost_manifest(proxy: FaultProxy, call: Call) -> bool:
    return call.method == "GET" and "/manifests/sha256:" in call.path


def lost_blob(proxy: FaultProxy, call: Call) -> bool:
    manifests = any(other.method == "PUT" and "/manifests/" in other.path for other in proxy.calls)
    return manifests and call.method == "HEAD" and "/blobs/" in call.path


def lost_referrer(proxy: FaultProxy, call: Call) -> bool:
    listed = [other.method for other in proxy.calls if "/manifests/sha256-" in other.path]
    return listed[-1:] == ["GET"] and listed[-3:-1] == ["PUT", "GET"] and "/manifests/sha256-" in call.path


@pytest.mark.parametrize("lost", [lost_manifest, lost_blob, lost_referrer])
def test_what_the_registry_lost_meanwhile_is_found_before_a_tag_moves(
    lost: Callable[[FaultProxy, Call], bool], proxy: FaultProxy, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "bundle", salt=os.urandom(4).hex())
    struck: list[str] = []

    def fault(exchange: Exchange) -> bool:
        if not lost(proxy, exchange.call):
            return False
        struck.append(exchange.call.path)
        return exchange.answer(404, error_document("UNKNOWN"))

    proxy.faults.append(fault)
    to = parse_destination(f"{proxy.address}/{lost.__name__}", artifacts="require")
    receipt = tmp_path / "r.yaml"
    alone = dataclasses.replace(PATIENT, jobs=1)
    with pytest.raises(RegistryError, match="has lost content") as caught:
        load(tmp_path / "bundle", to=to, receipt=receipt, options=alone)
    assert struck and caught.value.fields["missing"]
    assert not receipt.exists() and find_tag(registry, lost.__name__) is None
    proxy.faults.clear()
    load(tmp_path / "bundle", to=to, receipt=receipt, options=alone)
    check_whole(registry, lost.__name__, tmp_path / "bundle")


# -- faults on the way back -------------------------------------------------------------------------------------------

DOWNLOAD_FAULTS: dict[str, Fault] = {
    "reset at 0 %": cut_answer(0.0),
    "reset at 50 %": cut_answer(0.5),
    "reset at 99 %": cut_answer(0.99),
    "stalled": lambda exchange: forwarded(exchange, stall_s=0.8),
    "damaged": lambda exchange: forwarded(exchange, damage=True),
    "503": status(503),
}


@pytest.mark.parametrize("name", DOWNLOAD_FAULTS)
def test_a_pull_survives_faults_or_says_what_is_wrong(name: str, proxy: FaultProxy, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    image = push_image(store, proxy)
    proxy.faults.append(times(2, is_download, DOWNLOAD_FAULTS[name]))
    target = LayoutStore.create(tmp_path / "pulled")
    with RegistryClient(proxy.address, options=OPTIONS) as client:
        source = RegistrySource(client, "pulls/x")
        if name == "damaged":
            with pytest.raises(IntegrityError):
                copy_image(source, target, source.resolve(image.digest), reference="x")
            assert not any(name_ for name_ in target.read_index().manifests)
            proxy.faults.clear()
        copy_image(source, target, source.resolve(image.digest), reference="x")
    for blob in read_closure(target, target.resolve("x")).blobs.values():
        with target.open_blob(blob) as stream:
            while stream.read(MIB):
                pass


def push_image(store: LayoutStore, proxy: FaultProxy) -> Descriptor:
    image, _ = put_image(store, [{"big": os.urandom(20 * MIB)}, {"small": b"x"}], kind="none")
    with RegistryClient(proxy.address, options=OPTIONS) as client:
        copy_image(store, RegistrySink(client, "pulls/x"), image)
    return image


def test_a_redirect_to_another_host_carries_no_login_and_is_verified(proxy: FaultProxy, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    image = push_image(store, proxy)
    seen: list[str | None] = []

    class Storage(http.server.BaseHTTPRequestHandler):
        """A store of blobs on another host, as clouds have them."""

        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            data = store.blob_path("sha256:" + self.path.rpartition("/")[2]).read_bytes()
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(data) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(data[begin:])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_address[1]}"

    def redirect(exchange: Exchange) -> bool:
        if exchange.call.headers.get("Authorization") is None:
            return exchange.answer(401, WWW_Authenticate='Basic realm="proxy"')
        return exchange.answer(307, Location=f"{place}/{exchange.call.path.rpartition(':')[2]}")

    proxy.faults.append(times(ALWAYS, is_download, redirect))
    options = ClientOptions(plain_http=True, retry=OPTIONS.retry, lookup=lambda *_: Credential("user", "hidden"))
    target = LayoutStore.create(tmp_path / "pulled")
    try:
        with RegistryClient(proxy.address, options=options) as client:
            source = RegistrySource(client, "pulls/x")
            assert copy_image(source, target, source.resolve(image.digest), reference="x").digest == image.digest
    finally:
        server.shutdown()
        server.server_close()
    assert seen and set(seen) == {None}


# -- sessions ---------------------------------------------------------------------------------------------------------


class Dying:
    """A stream that ends its process when so many blocks of 1 MiB have been read."""

    def __init__(self, stream: IO[bytes], blocks: int) -> None:
        self.stream, self.left = stream, blocks

    def read(self, count: int) -> bytes:
        if not self.left:
            os._exit(9)
        self.left -= 1
        return self.stream.read(count)


def upload_in_chunks(
    address: str, repository: str, layer: Descriptor, store: LayoutStore, journal: Path, *, dies_after: int = ALWAYS
) -> None:
    @contextmanager
    def opened() -> Iterator[IO[bytes]]:
        with store.open_blob(layer) as stream:
            yield cast(IO[bytes], Dying(stream, dies_after))

    limits = Limits(chunked_above_bytes=2 * MIB, chunk_bytes=2 * MIB)
    with RegistryClient(address, options=PATIENT) as client:
        sink = RegistrySink(client, repository, uploader=Uploader(client, limits=limits, journal=journal))
        sink.put_blob_from(layer, opened)
        assert sink.has_blob(layer)


@pytest.mark.parametrize(("blocks", "sent_again"), [(14, 6), (15, 20)], ids=["between chunks", "within a chunk"])
def test_a_killed_upload_sends_only_what_was_not_acknowledged_where_the_session_lives(
    blocks: int, sent_again: int, proxy: FaultProxy, registry: RegistryProcess, tmp_path: Path
) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    layer = put_random(store, 20 * MIB)
    journal = tmp_path / "uploads.json"
    repository = f"killed/after{blocks}"
    child = os.fork()
    if child == 0:
        upload_in_chunks(proxy.address, repository, layer, store, journal, dies_after=blocks)
        os._exit(0)
    _, code = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(code) == 9
    entry = next(iter(json.loads(journal.read_text()).values()))
    assert entry["offset"] == 14 * MIB
    assert journal.stat().st_mode & 0o777 == 0o600
    before = proxy.uploaded_bytes
    assert before >= 14 * MIB
    upload_in_chunks(proxy.address, repository, layer, store, journal)
    # 2.8 keeps a session between chunks, and loses one that broke within a chunk: then the upload starts over
    assert proxy.uploaded_bytes - before == sent_again * MIB
    assert not journal.exists()
    if sent_again < 20:
        assert not [path for path in registry.sessions() if "killed" in path.parts]
    else:
        assert [call.method for call in proxy.calls].count("DELETE") == 1, "the registry is asked to end it"
