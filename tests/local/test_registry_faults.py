"""Every fault of a registry ends in success after a retry, or in one clear error; never in a tag, never in a hang."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airferry.bundle.artifacts import REQUIREMENTS_ARTIFACT, ArtifactFile, put_artifact
from airferry.errors import AirferryError, HostError, IntegrityError, RegistryError
from airferry.events import Event, Warned
from airferry.host import files
from airferry.oci.copy import CopyOptions, copy_image
from airferry.oci.documents import LAYER_TAR, Descriptor, descriptor_of
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.credentials import Credential
from airferry.registry.failures import NoReferrers
from airferry.registry.governor import Limits
from airferry.registry.retry import RetryPolicy, retry_after_s
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.uploads import Uploader
from oci_images import make_image
from scripted_registry import Call, Exchange, Fault, ScriptedRegistry, error_document, run_scripted, sha256, times

BLOB = bytes(range(256)) * 4096 * 3
LAYER = descriptor_of(BLOB, LAYER_TAR)
SECRET = "hunter-2-secret"


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(registry: ScriptedRegistry, pauses: list[float]) -> Iterator[RegistryClient]:
    with RegistryClient(registry.address, options=options(pauses)) as made:
        yield made


def options(pauses: list[float], **changes: object) -> ClientOptions:
    fields: dict[str, object] = {
        "plain_http": True,
        "connect_timeout_s": 5.0,
        "read_timeout_s": 0.5,
        "retry": RetryPolicy(attempts=4, sleep=pauses.append, jitter=lambda: 1.0),
        "lookup": lambda registry, repository: None,
        **changes,
    }
    return ClientOptions(**fields)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    made = LayoutStore.create(tmp_path / "layout")
    made.put_bytes(BLOB, LAYER_TAR)
    return made


def upload(client: RegistryClient, store: LayoutStore, *, limits: Limits | None = None) -> None:
    sink = RegistrySink(client, "r/x", uploader=Uploader(client, limits=limits))
    sink.put_blob_from(LAYER, lambda: store.open_blob(LAYER))


def is_upload(call: Call) -> bool:
    return call.method in ("PUT", "PATCH") and "/uploads/" in call.path


def is_blob(call: Call) -> bool:
    return call.method == "GET" and "/blobs/" in call.path


def status(code: int, **headers: str) -> Fault:
    def fault(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(code, error_document("SCRIPTED"), **headers)

    return fault


def cut_upload(share: float) -> Fault:
    def fault(exchange: Exchange) -> bool:
        exchange.rfile.read(int(int(exchange.headers["Content-Length"]) * share))
        return exchange.reset()

    return fault


def cut_download(share: float, *, lie: bool = False) -> Fault:
    """Stop a download; with `lie`, the announced length is that of what comes."""

    def fault(exchange: Exchange) -> bool:
        start = int(exchange.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        rest = BLOB[start:]
        part = rest[: int(len(rest) * share)]
        exchange.send_response(206 if start else 200)
        exchange.send_header("Content-Length", str(len(part) if lie else len(rest)))
        if start:
            exchange.send_header("Content-Range", f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}")
        exchange.end_headers()
        exchange.wfile.write(part)
        exchange.wfile.flush()
        return True if lie else exchange.reset()

    return fault


def stall(exchange: Exchange) -> bool:
    if exchange.command != "GET":
        exchange.read_body()
    # until the client has gone
    exchange.connection.settimeout(10)
    with suppress(OSError):
        exchange.connection.recv(1)
    return exchange.reset()


def expect(fault: Fault, client: RegistryClient) -> None:
    """Let a client give up soon where a fault is that nothing comes."""
    if fault is stall:
        client.options = replace(client.options, read_timeout_s=0.2)


# -- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *(cut_upload(share) for share in (0, 0.5, 0.99)),
        *(status(code) for code in (408, 429, 500, 502, 503, 504, 404)),
        stall,
    ],
    ids=["reset-0", "reset-50", "reset-99", "408", "429", "500", "502", "503", "504", "lost-session", "stalled"],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_survives(
    fault: Fault, chunked: bool, registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    expect(fault, client)
    registry.faults.append(times(2, is_upload, fault))
    upload(client, store, limits=Limits(1024 * 1024, 1024 * 1024) if chunked else None)
    assert registry.blobs == {LAYER.digest: BLOB}
    assert registry.sessions == {}


def test_an_upload_gives_up_with_one_error_and_leaves_no_session(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, pauses: list[float]
) -> None:
    registry.faults.append(times(1000, is_upload, status(503)))
    with pytest.raises(RegistryError, match="503 `SCRIPTED`: as scripted") as caught:
        upload(client, store)
    assert caught.value.fields["status"] == 503
    assert "secret-state" not in caught.value.message + str(caught.value.fields)
    assert len(pauses) == 3
    assert (registry.blobs, registry.sessions) == ({}, {})


def test_retry_after_is_honoured(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, pauses: list[float]
) -> None:
    registry.faults.append(times(1, is_upload, status(429, Retry_After="7")))
    registry.faults.append(times(1, lambda call: call.method == "HEAD", status(429, Retry_After="3")))
    assert not RegistrySink(client, "r/x").has_blob(LAYER)
    upload(client, store)
    assert pauses == [3.0, 7.0]


def test_413_leads_to_smaller_chunks_until_they_fit(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    def too_large(exchange: Exchange) -> bool:
        if int(exchange.headers.get("Content-Length", "0")) <= 1_000_000:
            return False
        exchange.read_body()
        return exchange.answer(413)

    registry.faults.append(too_large)
    limits = Limits()
    upload(client, store, limits=limits)
    assert registry.blobs == {LAYER.digest: BLOB}
    assert 256 * 1024 <= limits.chunk_bytes <= 1_000_000
    assert registry.sessions == {}


def test_413_for_the_smallest_chunk_is_an_error(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    registry.faults.append(times(1000, is_upload, status(413)))
    with pytest.raises(RegistryError, match="413") as caught:
        upload(client, store)
    assert "limits the size" in (caught.value.hint or "")


@pytest.mark.parametrize("code", [405, 501])
def test_a_registry_without_chunks_gets_the_blob_whole(
    code: int, registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    registry.faults.append(times(1000, lambda call: call.method == "PATCH", status(code)))
    upload(client, store, limits=Limits(1024 * 1024, 1024 * 1024))
    assert registry.blobs == {LAYER.digest: BLOB}


def test_416_restarts_from_what_the_registry_acknowledges(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    registry.faults.append(times(1, lambda call: call.method == "PATCH" and "s" in call.path, status(416)))
    upload(client, store, limits=Limits(1024 * 1024, 1024 * 1024))
    assert registry.blobs == {LAYER.digest: BLOB}


def test_a_range_that_counts_bytes_is_understood(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of stating the number of the last one."""
    answer = Exchange.answer

    def one_too_high(self: Exchange, status: int, data: bytes = b"", **headers: str) -> bool:
        if self.command == "PATCH" and "Range" in headers:
            headers["Range"] = f"0-{int(headers['Range'].removeprefix('0-')) + 1}"
        return answer(self, status, data, **headers)

    monkeypatch.setattr(Exchange, "answer", one_too_high)
    upload(client, store, limits=Limits(1024 * 1024, 1024 * 1024))
    assert registry.blobs == {LAYER.digest: BLOB}
    assert registry.count("PATCH") == 3


@pytest.mark.parametrize("ranges", [True, False])
def test_a_head_without_a_length_condemns_no_blob(
    ranges: bool, registry: ScriptedRegistry, client: RegistryClient
) -> None:
    registry.blobs[LAYER.digest], registry.ranges = BLOB, ranges
    registry.faults.append(times(1, lambda call: call.method == "HEAD", status(200, Content_Length="0")))
    assert RegistrySink(client, "r/x", uploader=Uploader(client)).has_blob(LAYER)


def test_a_yes_that_anything_might_say_is_no_blob(registry: ScriptedRegistry, client: RegistryClient) -> None:
    sink = RegistrySink(client, "r/x", uploader=Uploader(client))
    registry.faults.append(times(1, lambda call: call.method == "HEAD", status(200, Content_Length="0")))
    assert not sink.has_blob(LAYER)
    registry.faults.append(times(1, lambda call: call.method == "HEAD", status(200, Content_Length="0")))
    registry.faults.append(
        times(1, lambda call: call.method == "GET", lambda exchange: exchange.answer(200, b"<html>"))
    )
    with pytest.raises(IntegrityError, match="holds 6 bytes"):
        sink.has_blob(LAYER)
    registry.blobs[LAYER.digest] = BLOB[:-1]
    registry.faults.append(times(1, lambda call: call.method == "HEAD", status(200, Content_Length="0")))
    with pytest.raises(IntegrityError, match="holds fewer bytes"):
        sink.has_blob(LAYER)
    named = status(200, Content_Length="0", Docker_Content_Digest=LAYER.digest)
    registry.faults.append(times(1, lambda call: call.method == "HEAD", named))
    registry.calls.clear()
    assert sink.has_blob(LAYER) and registry.count("GET") == 0


def test_a_tag_lists_no_referrer_that_only_a_login_page_took(
    registry: ScriptedRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    store = LayoutStore.create(tmp_path / "artifact")
    index, _entry = make_image(store)
    artifact = put_artifact(store, REQUIREMENTS_ARTIFACT, contents=[ArtifactFile("a", "b/c", b"d")], subject=index)
    registry.faults.append(times(1, lambda call: call.method == "PUT", status(200)))
    sink = RegistrySink(client, "r/x", uploader=Uploader(client))
    with pytest.raises(NoReferrers, match="does not hold manifest"):
        sink.put_manifest(store.read_manifest(artifact))
    assert not registry.manifests
    sink.put_manifest(store.read_manifest(artifact))
    assert [entry.digest for entry in sink.source.referrers(index.digest)] == [artifact.digest]


@pytest.mark.parametrize("code", [400, 403])
def test_a_refusal_is_not_retried(
    code: int, registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, pauses: list[float]
) -> None:
    registry.faults.append(times(1000, lambda call: call.method == "POST", status(code)))
    with pytest.raises(RegistryError, match=str(code)):
        upload(client, store)
    assert (pauses, registry.count("POST")) == ([], 1)


def test_a_wrong_digest_in_the_answer_is_an_integrity_error(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    registry.faults.append(times(1, is_upload, status(201, Docker_Content_Digest="sha256:" + "0" * 64)))
    with pytest.raises(IntegrityError, match="says that it stored"):
        upload(client, store)


def test_bytes_damaged_on_their_way_are_sent_again(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    def damage(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(400, error_document("DIGEST_INVALID"))

    registry.faults.append(times(1, is_upload, damage))
    upload(client, store)
    assert registry.blobs == {LAYER.digest: BLOB}
    # what was sent was right each time, and no session was lost
    registry.blobs.clear()
    registry.faults.append(times(100, is_upload, damage))
    with pytest.raises(RegistryError) as caught:
        upload(client, store)
    assert "damaged on their way" in str(caught.value.hint)


def test_a_damaged_source_is_never_sent_as_the_blob(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    path = store.blob_path(LAYER.digest)
    path.chmod(0o644)
    path.write_bytes(BLOB[:-1] + b"x")
    with pytest.raises(IntegrityError):
        upload(client, store)
    assert (registry.blobs, registry.sessions) == ({}, {})


# -- downloads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [*(cut_download(share) for share in (0, 0.5, 0.99)), cut_download(0.5, lie=True), status(503), stall],
    ids=["reset-0", "reset-50", "reset-99", "truncated", "503", "stalled"],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke(
    fault: Fault, ranges: bool, registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, tmp_path: Path
) -> None:
    expect(fault, client)
    registry.blobs[LAYER.digest] = BLOB
    registry.ranges = ranges
    registry.faults.append(times(2 if ranges else 1, is_blob, fault))
    target = LayoutStore.create(tmp_path / "target")
    with RegistrySource(client, "r/x").open_blob(LAYER) as stream:
        target.put_blob(LAYER, stream)
    assert target.blob_path(LAYER.digest).read_bytes() == BLOB


@pytest.mark.parametrize("bad", [BLOB[:-1], BLOB[:-1] + b"x", BLOB + b"x"], ids=["short", "corrupt", "long"])
def test_a_wrong_download_is_an_integrity_error_and_is_not_kept(
    bad: bytes, registry: ScriptedRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    registry.blobs[LAYER.digest] = bad
    target = LayoutStore.create(tmp_path / "target")
    with pytest.raises(IntegrityError), RegistrySource(client, "r/x").open_blob(LAYER) as stream:
        target.put_blob(LAYER, stream)
    assert target.stored_digests() == set()


def test_another_range_than_asked_for_is_an_error(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.blobs[LAYER.digest] = BLOB

    def other(exchange: Exchange) -> bool:
        return exchange.answer(206, BLOB[5:], Content_Range=f"bytes 5-{len(BLOB) - 1}/{len(BLOB)}")

    registry.faults.append(times(1, is_blob, other))
    source = RegistrySource(client, "r/x")
    with pytest.raises(RegistryError, match="a different range"), source.open_blob_at(LAYER, 100) as stream:
        stream.read(10)


# -- manifests and odd answers ----------------------------------------------------------------------------------------


def resolve_with(registry: ScriptedRegistry, client: RegistryClient, then: Fault) -> Callable[[], Descriptor]:
    registry.faults.append(times(1000, lambda call: "/manifests/" in call.path, then))
    return lambda: RegistrySource(client, "r/x").resolve("latest")


def test_a_manifest_of_100_mb_is_not_read_whole(registry: ScriptedRegistry, client: RegistryClient) -> None:
    sent = [0]

    def huge(exchange: Exchange) -> bool:
        exchange.send_response(200)
        exchange.send_header("Content-Length", str(100_000_000))
        exchange.end_headers()
        for _ in range(100):
            exchange.wfile.write(b" " * 1_000_000)
            sent[0] += 1_000_000
        return True

    with pytest.raises(RegistryError, match="more than 4194304 bytes"):
        resolve_with(registry, client, huge)()
    assert sent[0] < 50_000_000


def test_html_instead_of_json_is_said_to_be_no_image(registry: ScriptedRegistry, client: RegistryClient) -> None:
    page = b"<html><title>log in</title></html>"
    with pytest.raises(RegistryError, match="not an image or artifact: its media type is `text/html`") as caught:
        resolve_with(registry, client, lambda ex: ex.answer(200, page, Content_Type="text/html"))()
    assert "login form" in (caught.value.hint or "")


def test_a_manifest_with_another_digest_is_an_integrity_error(
    registry: ScriptedRegistry, client: RegistryClient
) -> None:
    answer = resolve_with(registry, client, lambda ex: ex.answer(200, b"{}", Docker_Content_Digest=sha256(b"other")))
    with pytest.raises(IntegrityError, match="but declared"):
        answer()


def test_what_a_registry_says_cannot_reach_the_terminal(registry: ScriptedRegistry, client: RegistryClient) -> None:
    evil = error_document("DENIED\x1b[2J", "\x1b]0;owned\x07" + "x" * 5000)
    with pytest.raises(RegistryError) as caught:
        resolve_with(registry, client, lambda ex: ex.answer(403, evil))()
    assert "\x1b" not in caught.value.message and len(caught.value.message) < 1000


def test_a_refused_connection_is_retried_then_one_error(pauses: list[float]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for plain_http in (True, None):
        pauses.clear()
        with (
            RegistryClient(address, options=options(pauses, plain_http=plain_http)) as client,
            pytest.raises(RegistryError, match="refuses connections"),
        ):
            RegistrySource(client, "r/x").find("latest")
        assert len(pauses) == 3


@pytest.mark.parametrize("plain_http", [True, None])
def test_where_nobody_ever_answered_the_first_refusal_is_said_and_few_follow(
    pauses: list[float], plain_http: bool | None
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    events: list[Event] = []
    patient = RetryPolicy(attempts=20, sleep=pauses.append)
    with RegistryClient(
        address, options=options(pauses, plain_http=plain_http, retry=patient), emit=events.append
    ) as client:
        with pytest.raises(RegistryError, match="refuses connections"):
            RegistrySource(client, "r/x").find("latest")
        assert len(pauses) == 3
        assert [event.text for event in events if isinstance(event, Warned)] == [
            f"`{address}` refuses connections; trying again"
        ]


def test_threads_do_not_wait_one_after_the_other_for_a_registry_that_is_not_there() -> None:
    waiting = threading.Barrier(3)
    tried: list[str] = []

    class Counting(RegistryClient):
        def _detect_scheme(self, host: str) -> str:
            tried.append(host)
            time.sleep(0.2)
            raise RegistryError(f"`{host}` refuses connections")

    with Counting("127.0.0.1:1") as client:

        def ask(_number: int) -> str:
            waiting.wait(5)
            with pytest.raises(RegistryError, match="refuses") as caught:
                client.url("")
            return caught.value.message

        with ThreadPoolExecutor(3) as pool:
            assert len(list(pool.map(ask, range(3)))) == 3
        assert len(tried) == 1
        with pytest.raises(RegistryError):
            client.url("")
        assert len(tried) == 2, "a later request tries again"


def test_plain_http_on_loopback_is_found_out(registry: ScriptedRegistry, pauses: list[float]) -> None:
    with RegistryClient(registry.address, options=options(pauses, plain_http=None)) as client:
        assert RegistrySource(client, "r/x").find("latest") is None
        assert client.url("").startswith("http://127.")


def test_a_name_that_does_not_exist_fails_at_once(pauses: list[float]) -> None:
    with (
        RegistryClient("registry.invalid:5000", options=options(pauses)) as client,
        pytest.raises(RegistryError, match=r"^cannot .*: the name of .* cannot be resolved"),
    ):
        RegistrySource(client, "r/x").find("latest")
    assert pauses == []


def test_nothing_but_404_means_missing(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.faults.append(times(1000, lambda call: call.method == "HEAD", status(403)))
    with pytest.raises(RegistryError, match="403"):
        RegistrySink(client, "r/x").has_blob(LAYER)


def test_a_blob_of_another_size_at_the_registry_is_an_integrity_error(
    registry: ScriptedRegistry, client: RegistryClient
) -> None:
    registry.blobs[LAYER.digest] = b"short"
    with pytest.raises(IntegrityError, match="holds 5 bytes"):
        RegistrySink(client, "r/x").has_blob(LAYER)


def test_a_copy_that_fails_half_way_sets_no_tag(
    registry: ScriptedRegistry, client: RegistryClient, tmp_path: Path
) -> None:
    store = LayoutStore.create(tmp_path / "images")
    index, _entry = make_image(store)
    registry.faults.append(times(1000, lambda call: call.method == "PUT" and "/manifests/" in call.path, status(500)))
    with pytest.raises(RegistryError):
        copy_image(store, RegistrySink(client, "r/x"), index, reference="v1")
    assert registry.manifests == {}
    registry.faults.clear()
    copy_image(store, RegistrySink(client, "r/x"), index, reference="v1")
    assert sha256(registry.manifests["r/x@v1"][0]) == index.digest


# -- redirects and login ----------------------------------------------------------------------------------------------


def guarded(header: str, good: str) -> Fault:
    """Refuse every request that does not carry the header's value."""

    def fault(exchange: Exchange) -> bool:
        if exchange.call.path.startswith("/token") or exchange.headers.get("Authorization") == good:
            return False
        exchange.read_body()
        return exchange.answer(401, error_document("UNAUTHORIZED"), WWW_Authenticate=header)

    return fault


def test_credentials_do_not_follow_a_redirect_to_another_host(
    registry: ScriptedRegistry, pauses: list[float], store: LayoutStore
) -> None:
    login = Credential("user", SECRET)
    registry.faults.append(guarded('Basic realm="x"', login.basic))
    with run_scripted() as elsewhere:
        elsewhere.blobs[LAYER.digest] = BLOB
        target = f"http://{elsewhere.address}/v2/r/x/blobs/{LAYER.digest}"
        registry.faults.append(times(1, is_blob, lambda ex: ex.answer(307, Location=target)))
        with (
            RegistryClient(
                registry.address, options=options(pauses, lookup=lambda registry, repository: login)
            ) as client,
            RegistrySource(client, "r/x").open_blob(LAYER) as stream,
        ):
            assert stream.read() == BLOB
        assert [call.headers.get("Authorization") for call in elsewhere.calls] == [None]
    assert registry.calls[-1].headers.get("Authorization") == login.basic


def test_a_redirect_that_goes_round_ends(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.faults.append(times(1000, is_blob, lambda ex: ex.answer(302, Location=ex.path)))
    with (
        pytest.raises(RegistryError, match="redirects more than"),
        RegistrySource(client, "r/x").open_blob(LAYER) as stream,
    ):
        stream.read()


class Tokens:
    """A token server on the scripted registry itself, which gives what the test says."""

    def __init__(self, registry: ScriptedRegistry, answers: list[tuple[int, bytes]]) -> None:
        self.answers = answers
        self.asked: list[Call] = []
        registry.faults.append(self.serve)

    def serve(self, exchange: Exchange) -> bool:
        if exchange.call.path != "/token":
            return False
        self.asked.append(exchange.call)
        code, data = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        exchange.read_body()
        return exchange.answer(code, data)


def bearer(registry: ScriptedRegistry) -> str:
    return f'Bearer realm="http://{registry.address}/token",service="s",scope="repository:other:pull"'


@pytest.mark.parametrize(
    ("code", "data", "message"),
    [
        (200, b"<html>", "without a token"),
        (200, b"{}", "without a usable token"),
        (200, b'{"token": "a\\r\\nX-Evil: 1"}', "without a usable token"),
        (200, b'{"token": 5}', "without a usable token"),
        (200, b"[" * 100_000, "without a token"),
        (200, b"x" * 300_000, "more than 262144 bytes"),
        (401, b"", "refuses the credentials"),
        (500, b"", "answers 500"),
        (404, b"", "answers 404"),
        (200, b'{"token": "refused-by-the-registry"}', "answered with 401"),
    ],
)
def test_a_token_server_that_lies_is_one_clear_error(
    code: int, data: bytes, message: str, registry: ScriptedRegistry, pauses: list[float]
) -> None:
    registry.faults.append(guarded(bearer(registry), "Bearer good"))
    tokens = Tokens(registry, [(code, data)])
    login = options(pauses, lookup=lambda registry, repository: Credential("user", SECRET))
    with RegistryClient(registry.address, options=login) as client, pytest.raises(RegistryError) as caught:
        RegistrySource(client, "r/x").find("latest")
    assert message in caught.value.message
    assert SECRET not in caught.value.message + str(caught.value.fields)
    assert len(tokens.asked) <= 4


def test_tokens_are_asked_for_by_scope_and_kept(
    registry: ScriptedRegistry, pauses: list[float], store: LayoutStore
) -> None:
    registry.faults.append(guarded(bearer(registry), "Bearer good"))
    tokens = Tokens(registry, [(200, b'{"token": "good", "expires_in": 600}')])
    with RegistryClient(registry.address, options=options(pauses)) as client:
        for _ in range(3):
            RegistrySource(client, "a/b").find("latest")
        upload(client, store)
        RegistrySource(client, "c/d").find("latest")
    assert [call.query["scope"] for call in tokens.asked] == [
        ["repository:a/b:pull"],
        ["repository:r/x:pull,push"],
        ["repository:c/d:pull"],
    ]
    assert all("Authorization" not in call.headers for call in tokens.asked), "anonymous"


def test_a_401_in_the_middle_of_an_upload_gets_a_new_token(
    registry: ScriptedRegistry, pauses: list[float], store: LayoutStore
) -> None:
    good = ["Bearer one"]

    def check(exchange: Exchange) -> bool:
        if exchange.call.path == "/token" or exchange.headers.get("Authorization") == good[0]:
            return False
        exchange.read_body()
        return exchange.answer(401, WWW_Authenticate=bearer(registry))

    def expire(exchange: Exchange) -> bool:
        good[0] = "Bearer two"
        return check(exchange)

    registry.faults += [times(1, lambda call: is_upload(call) and registry.count("PATCH") == 2, expire), check]
    Tokens(registry, [(200, b'{"token": "one"}'), (200, b'{"access_token": "two"}')])
    with RegistryClient(registry.address, options=options(pauses)) as client:
        upload(client, store, limits=Limits(1024 * 1024, 1024 * 1024))
    assert registry.blobs == {LAYER.digest: BLOB}


def test_an_identity_token_is_exchanged_by_post(registry: ScriptedRegistry, pauses: list[float]) -> None:
    registry.faults.append(guarded(bearer(registry), "Bearer good"))
    tokens = Tokens(registry, [(200, b'{"access_token": "good"}')])
    login = options(pauses, lookup=lambda registry, repository: Credential("", identity_token=SECRET))
    with RegistryClient(registry.address, options=login) as client:
        assert RegistrySource(client, "r/x").find("latest") is None
    assert [call.method for call in tokens.asked] == ["POST"]
    assert SECRET not in tokens.asked[0].path + str(tokens.asked[0].query)


def test_credentials_go_to_no_token_server_over_plain_http(registry: ScriptedRegistry, pauses: list[float]) -> None:
    challenge = 'Bearer realm="http://tokens.example/token"'
    registry.faults.append(times(9, lambda call: True, lambda ex: ex.answer(401, WWW_Authenticate=challenge)))
    login = options(pauses, plain_http=None, lookup=lambda registry, repository: Credential("user", SECRET))
    with (
        RegistryClient(registry.address, options=login) as client,
        pytest.raises(RegistryError, match="which must not receive credentials"),
    ):
        RegistrySource(client, "r/x").find("latest")


def test_parallel_requests_share_one_token(registry: ScriptedRegistry, pauses: list[float]) -> None:
    registry.faults.append(guarded(bearer(registry), "Bearer good"))
    tokens = Tokens(registry, [(200, b'{"token": "good", "expires_in": 600}')])
    with RegistryClient(registry.address, options=options(pauses)) as client:
        failures: list[AirferryError] = []

        def ask() -> None:
            try:
                RegistrySource(client, "a/b").find("latest")
            except AirferryError as error:
                failures.append(error)

        # more than the connections that are kept: none may be held while a token is fetched
        threads = [threading.Thread(target=ask) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(tokens.asked) == 1


def test_retry_after_is_read_in_both_forms() -> None:
    assert retry_after_s({"Retry-After": "12"}) == 12.0
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    for text in ("", "soon", "-1", "9" * 40):
        assert retry_after_s({"Retry-After": text}) is None


def test_a_copy_within_one_registry_does_not_run_out_of_connections(
    registry: ScriptedRegistry, pauses: list[float], tmp_path: Path
) -> None:
    store = LayoutStore.create(tmp_path / "images")
    index, _entry = make_image(store)
    with RegistryClient(registry.address, options=options(pauses, jobs=2)) as client:
        copy_image(store, RegistrySink(client, "r/x"), index, reference="v1", options=CopyOptions(jobs=2))
        registry.faults.append(times(99, lambda call: call.method == "HEAD", status(404)))
        source = RegistrySource(client, "r/x")
        copy_image(
            source, RegistrySink(client, "r/y"), source.resolve("v1"), reference="v2", options=CopyOptions(jobs=2)
        )
    assert sha256(registry.manifests["r/y@v2"][0]) == index.digest


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 202 Accep", b"HTTP/1.1 202 Accepted\r\n", b"HTTP/1.1 401 Unauthorized\r\nDate: x\r\n"]
)
@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT"])
def test_an_answer_that_is_cut_in_its_head_is_no_answer(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, head: bytes, method: str
) -> None:
    def cut(exchange: Exchange) -> bool:
        exchange.read_body()
        exchange.wfile.write(head)
        exchange.close_connection = True
        return True

    registry.faults.append(times(1, lambda call: call.method == method, cut))
    sink = RegistrySink(client, "r/x")
    assert sink.has_blob(LAYER) is False
    upload(client, store)
    assert registry.blobs == {LAYER.digest: BLOB} and registry.sessions == {}


def test_a_session_whose_address_came_is_used_although_the_rest_of_the_answer_was_lost(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    def begin(exchange: Exchange) -> bool:
        registry.sessions["s0"] = b""
        return exchange.answer(202, b"x", Location="/v2/r/x/blobs/uploads/s0", Content_Length="9", Connection="close")

    registry.faults.append(times(1, lambda call: call.method == "POST", begin))
    upload(client, store)
    assert registry.blobs == {LAYER.digest: BLOB} and registry.sessions == {} and registry.count("POST") == 1


@pytest.mark.parametrize("code", [200, 202, 204])
def test_an_upload_that_is_said_to_be_done_is_asked_for(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, code: int
) -> None:
    registry.faults.append(times(1, lambda call: call.method == "PUT", status(code)))
    with pytest.raises(RegistryError, match=f"answers {code}, but does not hold the blob"):
        upload(client, store)
    assert registry.sessions == {} and registry.count("DELETE") == 1


def test_a_session_is_ended_although_the_first_try_fails(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    registry.faults.append(times(1, lambda call: call.method == "PUT", status(403)))
    registry.faults.append(times(1, lambda call: call.method == "DELETE", lambda exchange: exchange.reset()))
    with pytest.raises(RegistryError):
        upload(client, store)
    assert registry.sessions == {}


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_session_that_a_full_disk_does_not_let_us_note_is_ended(
    registry: ScriptedRegistry,
    client: RegistryClient,
    store: LayoutStore,
    chunks: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, left = files.write_bytes, [chunks - 1]

    def full(path: Path, data: bytes, **more: Any) -> None:
        if not left[0]:
            raise HostError("the disk is full")
        left[0] -= 1
        write(path, data, **more)

    monkeypatch.setattr(files, "write_bytes", full)
    uploader = Uploader(client, limits=Limits(1, 1024 * 1024), journal=tmp_path / "uploads.json")
    sink = RegistrySink(client, "r/x", uploader=uploader)
    with pytest.raises(HostError):
        sink.put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    kept = (tmp_path / "uploads.json").is_file()
    assert kept == (chunks == 2) and (registry.sessions == {}) == (chunks == 1)
    left[0] = 99
    sink.put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert registry.sessions == {} and registry.blobs == {LAYER.digest: BLOB}


def test_a_session_that_nothing_notes_is_ended_when_the_upload_is_interrupted(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    @contextmanager
    def reading() -> Iterator[Any]:
        with store.open_blob(LAYER) as stream:
            yield SimpleNamespace(read=lambda size: read(stream, size))

    given = [0]

    def read(stream: Any, size: int) -> bytes:
        # once the first chunk was acknowledged
        if given[0] >= 1024 * 1024:
            raise KeyboardInterrupt
        block = bytes(stream.read(size))
        given[0] += len(block)
        return block

    sink = RegistrySink(client, "r/x", uploader=Uploader(client, limits=Limits(1, 1024 * 1024)))
    with pytest.raises(KeyboardInterrupt):
        sink.put_blob_from(LAYER, reading)
    assert registry.sessions == {} and registry.blobs == {}
