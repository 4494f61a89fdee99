"""What a registry answers over TLS never leads to plain HTTP, and no upload session stays open for that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oras.container import Container

from airferry.errors import RegistryError
from airferry.host.parsing import split_url
from airferry.oci.documents import IMAGE_INDEX, LAYER_TAR, descriptor_of
from airferry.oci.layout import LayoutStore
from airferry.registry import client as client_module
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import Connections
from airferry.registry.credentials import Credential
from airferry.registry.failures import LeavesTls
from airferry.registry.governor import Limits
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.trial import try_registry
from airferry.registry.uploads import Uploader, UploadSession, checks_digests
from scripted_registry import Call, Exchange, Fault, ScriptedRegistry, run_scripted

HOST = "registry.test"
BLOB = bytes(range(256)) * 4096
LAYER = descriptor_of(BLOB, LAYER_TAR)
SCOPES = ("repository:r/x:pull,push",)
OPTIONS = ClientOptions(
    retry=RetryPolicy(attempts=4, sleep=lambda _: None),
    lookup=lambda registry, repository: Credential("user", "hunter-2-secret"),
)
# what distribution writes behind a proxy that does not say X-Forwarded-Proto, and one that forwards no name either
PLACES = [f"http://{HOST}", "http://registry:5000", "http://127.0.0.1:5000"]
in_every_place = pytest.mark.parametrize("place", PLACES)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is sent, each as `METHOD URL`."""
    return []


@pytest.fixture
def registry(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRegistry]:
    """Run a registry that the client reaches as `https://registry.test`, as if behind a proxy with TLS."""
    ours = Connections.send

    def send(self: Connections, method: str, url: str, *rest: Any) -> Any:
        sent.append(f"{method} {url.partition('?')[0]}")
        parts = split_url(url)
        if parts.scheme == "https" and parts.netloc == "unreachable.test":
            raise ConnectionRefusedError(111, "refused")
        assert (parts.scheme, parts.netloc) == ("https", HOST), f"{method} {url} leaves TLS, or the host"
        answer = ours(self, method, parts._replace(scheme="http", netloc=running.address).geturl(), *rest)
        answer.url = url
        return answer

    with run_scripted() as running:
        monkeypatch.setattr(Connections, "send", send)
        # reading the system's CAs for each client would be most of what these tests do
        monkeypatch.setattr(client_module, "make_context", lambda *_, **__: None)
        yield running


@pytest.fixture
def client(registry: ScriptedRegistry) -> Iterator[RegistryClient]:
    with RegistryClient(HOST, options=OPTIONS) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    made = LayoutStore.create(tmp_path / "layout")
    made.put_bytes(BLOB, LAYER_TAR)
    return made


def naming(place: str, methods: str = "POST PATCH GET") -> Fault:
    """Let the answers to these methods lead to another place, as they are otherwise."""

    def fault(exchange: Exchange) -> bool:
        def renamed(name: str, value: str) -> None:
            led = name == "Location" and exchange.call.method in methods.split()
            type(exchange).send_header(exchange, name, place + value if led else value)

        exchange.send_header = renamed  # type: ignore[method-assign]
        return False

    return fault


def is_closed(registry: ScriptedRegistry) -> bool:
    return registry.sessions == {} and registry.blobs == {} and registry.count("POST") == registry.count("DELETE")


@in_every_place
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_that_would_go_on_over_plain_http_is_ended_and_not_begun_again(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, place: str, chunked: bool
) -> None:
    registry.faults.append(naming(place))
    uploader = Uploader(client, limits=Limits(1, 256 * 1024) if chunked else None)
    with pytest.raises(LeavesTls, match="from TLS to plain HTTP") as caught:
        RegistrySink(client, "r/x", uploader=uploader).put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert "`X-Forwarded-Proto: https`" in (caught.value.hint or "") and "secret-state" not in caught.value.message
    assert registry.count("POST") == 1 and is_closed(registry)


@in_every_place
def test_a_session_that_leaves_tls_after_a_chunk_is_ended(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, place: str, tmp_path: Path
) -> None:
    registry.faults.append(naming(place, "PATCH"))
    journal = tmp_path / "uploads.json"
    uploader = Uploader(client, limits=Limits(1, 256 * 1024), journal=journal)
    with pytest.raises(LeavesTls):
        RegistrySink(client, "r/x", uploader=uploader).put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert registry.sessions == {} and registry.count("POST") == 1 and not journal.exists()


@in_every_place
def test_a_session_of_an_earlier_run_that_leaves_tls_is_ended(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, place: str, tmp_path: Path
) -> None:
    uploader = Uploader(client, journal=tmp_path / "uploads.json")
    registry.sessions["s0"] = BLOB[:1000]
    uploader.journal.record(
        f"{HOST}/r/x", LAYER, UploadSession(f"https://{HOST}/v2/r/x/blobs/uploads/s0?_state=1", 1000)
    )
    registry.faults.append(naming(place, "GET"))
    RegistrySink(client, "r/x", uploader=uploader).put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert registry.sessions == {} and set(registry.blobs) == {LAYER.digest}
    assert not (tmp_path / "uploads.json").exists()


@in_every_place
def test_a_session_that_a_journal_puts_on_plain_http_is_ended_on_the_host(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, place: str, tmp_path: Path
) -> None:
    uploader = Uploader(client, journal=tmp_path / "uploads.json")
    registry.sessions["s0"] = BLOB[:1000]
    uploader.journal.record(f"{HOST}/r/x", LAYER, UploadSession(f"{place}/v2/r/x/blobs/uploads/s0", 1000))
    RegistrySink(client, "r/x", uploader=uploader).put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert registry.sessions == {} and set(registry.blobs) == {LAYER.digest}


@in_every_place
def test_a_mount_that_becomes_an_upload_over_plain_http_is_ended(
    registry: ScriptedRegistry, client: RegistryClient, place: str
) -> None:
    registry.faults.append(naming(place))
    with pytest.raises(LeavesTls):
        RegistrySink(client, "r/x").mount_blob(LAYER, "r/y")
    assert registry.count("POST") == 1 and is_closed(registry)


@in_every_place
def test_a_probe_leaves_no_session(registry: ScriptedRegistry, client: RegistryClient, place: str) -> None:
    for methods in ("POST", "PATCH"):
        registry.faults[:] = [naming(place, methods)]
        assert checks_digests(client, "r/x", SCOPES) is False
        with pytest.raises(RegistryError):
            try_registry(client)
        assert registry.sessions == {}


@in_every_place
def test_a_stock_method_leaves_no_session(
    registry: ScriptedRegistry, client: RegistryClient, place: str, tmp_path: Path
) -> None:
    registry.faults.append(naming(place))
    (tmp_path / "blob").write_bytes(BLOB)
    layer = {"mediaType": LAYER_TAR, "size": len(BLOB), "digest": LAYER.digest}
    with pytest.raises(LeavesTls):
        client.put_upload(str(tmp_path / "blob"), Container(f"{HOST}/r/x"), layer)
    assert is_closed(registry)


def test_a_relative_location_stays_on_the_host(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, sent: list[str]
) -> None:
    RegistrySink(client, "r/x").put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert set(registry.blobs) == {LAYER.digest} and len(sent) == len(registry.calls)


def test_a_finished_upload_does_not_fail_for_a_location_that_nobody_follows(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    registry.mounts = True
    registry.faults.append(naming(f"http://{HOST}", "PUT"))
    sink = RegistrySink(client, "r/x")
    sink.put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    registry.faults[:] = [lambda exchange: mounted(exchange)]
    assert sink.mount_blob(LAYER, "r/y")


def mounted(exchange: Exchange) -> bool:
    return exchange.call.method == "POST" and exchange.answer(
        201, Location=f"http://{HOST}/v2/r/x/blobs/{LAYER.digest}"
    )


def test_sessions_on_a_host_that_does_not_answer_are_ended_where_they_began(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore
) -> None:
    registry.faults.append(naming("https://unreachable.test"))
    with pytest.raises(RegistryError, match=r"`unreachable\.test` refuses connections"):
        RegistrySink(client, "r/x").put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert is_closed(registry)


@pytest.mark.parametrize("path", [f"/v2/r/x/blobs/{LAYER.digest}", "/v2/r/x/manifests/latest", "/other"])
def test_nothing_but_a_session_is_ended(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, path: str
) -> None:
    registry.faults.append(
        lambda exchange: exchange.call.method == "POST" and exchange.answer(202, Location=f"http://{HOST}{path}")
    )
    with pytest.raises(LeavesTls):
        RegistrySink(client, "r/x").put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert registry.count("DELETE") == 0


Ask = Callable[[RegistryClient], object]


def leading(matches: Callable[[Call], bool], status: int, data: bytes = b"", **headers: str) -> Fault:
    return lambda exchange: matches(exchange.call) and exchange.answer(status, data, **headers)


@in_every_place
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_plain_http_is_refused(
    registry: ScriptedRegistry, client: RegistryClient, place: str, status: int
) -> None:
    registry.faults.append(leading(lambda call: True, status, Location=f"{place}/storage?signature=secret"))
    source = RegistrySource(client, "r/x")
    asks: list[Ask] = [
        lambda _: source.find("1"),
        lambda _: source.resolve("1"),
        lambda _: source.request_blob(LAYER, 0),
    ]
    for ask in asks:
        with pytest.raises(LeavesTls, match="from TLS to plain HTTP") as caught:
            ask(client)
        assert "X-Forwarded-Proto" in (caught.value.hint or "") and "secret" not in caught.value.message
    assert len(registry.calls) == len(asks)


@in_every_place
def test_a_next_page_on_plain_http_is_refused(registry: ScriptedRegistry, client: RegistryClient, place: str) -> None:
    page = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}).encode()
    link = f'<{place}/v2/r/x/referrers/{LAYER.digest}?page=2>; rel="next"'
    registry.faults.append(leading(lambda call: True, 200, page, Content_Type=IMAGE_INDEX, Link=link))
    with pytest.raises(LeavesTls, match="from TLS to plain HTTP"):
        RegistrySource(client, "r/x").referrers(LAYER.digest)
    assert len(registry.calls) == 1


@in_every_place
def test_a_token_server_on_plain_http_gets_no_credentials(
    registry: ScriptedRegistry, client: RegistryClient, place: str
) -> None:
    registry.faults.append(
        leading(lambda call: True, 401, WWW_Authenticate=f'Bearer realm="{place}/token",service="s"')
    )
    with pytest.raises(RegistryError, match="must not receive credentials") as caught:
        RegistrySource(client, "r/x").find("1")
    assert "X-Forwarded-Proto" in (caught.value.hint or "")
    assert len(registry.calls) == 1


@pytest.mark.parametrize("location", ["ftp://registry.test/v2/r/x/blobs/uploads/s0", "http:///x", "file:///etc/passwd"])
def test_what_is_not_http_is_refused(
    registry: ScriptedRegistry, client: RegistryClient, store: LayoutStore, location: str
) -> None:
    registry.faults.append(leading(lambda call: call.method == "POST", 202, Location=location))
    with pytest.raises(RegistryError, match="which is not HTTP"):
        RegistrySink(client, "r/x").put_blob_from(LAYER, lambda: store.open_blob(LAYER))
    assert registry.count("POST") == 1


def test_plain_http_that_was_asked_for_goes_on(store: LayoutStore) -> None:
    with (
        run_scripted() as registry,
        RegistryClient(registry.address, options=replace(OPTIONS, plain_http=True)) as client,
    ):
        registry.faults.append(naming(f"http://{registry.address}"))
        RegistrySink(client, "r/x").put_blob_from(LAYER, lambda: store.open_blob(LAYER))
        assert set(registry.blobs) == {LAYER.digest}
