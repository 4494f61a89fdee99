"""Every method of the installed oras-py keeps airferry's rules at a registry: TLS, retries, logins, error texts."""

from __future__ import annotations

import base64
import inspect
import json
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from oras.container import Container
from oras.provider import Registry

from airferry.errors import IntegrityError, RegistryError, UsageError
from airferry.registry import oras_registry
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import Connections, Request
from airferry.registry.credentials import Credential
from airferry.registry.retry import RetryPolicy
from scripted_registry import Exchange, ScriptedRegistry, error_document, run_scripted, sha256, times

BLOB = b"a blob of some size" * 1000
LAYER = {"mediaType": "application/octet-stream", "size": len(BLOB), "digest": sha256(BLOB)}
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": LAYER,
    "layers": [{**LAYER, "annotations": {"org.opencontainers.image.title": "blob.bin"}}],
}
NEW = b"a blob that is not there yet" * 1000
NEW_LAYER = {"mediaType": "application/octet-stream", "size": len(NEW), "digest": sha256(NEW)}
SECRET = "hunter-2-secret"
USER = Credential("user", SECRET)
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with run_scripted() as running:
        data = json.dumps(MANIFEST).encode()
        running.blobs[sha256(BLOB)] = BLOB
        running.manifests["r/x@1"] = running.manifests[f"r/x@{sha256(data)}"] = (data, str(MANIFEST["mediaType"]))
        running.faults.append(list_tags)
        yield running


def list_tags(exchange: Exchange) -> bool:
    if not exchange.call.path.endswith("/tags/list"):
        return False
    second = "last" in exchange.call.query
    more = {} if second else {"Link": '</v2/r/x/tags/list?last=1>; rel="next"'}
    return exchange.answer(200, json.dumps({"tags": ["2"] if second else ["1"]}).encode(), **more)


@pytest.fixture(autouse=True)
def only_way(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Close every other way to a registry, and return what goes through the one that is open."""
    sent: list[str] = []
    ours = Connections.send

    def send(self: Connections, method: str, url: str, *rest: Any) -> Any:
        sent.append(f"{method} {url}")
        return ours(self, method, url, *rest)

    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"a connection to {address}"
        connect(self, address)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a request went another way")

    # reading the system's CAs for each client would be most of what these tests do
    monkeypatch.setattr("airferry.registry.client.make_context", lambda *_, **__: NO_AUTHORITIES)
    monkeypatch.setattr(Connections, "send", send)
    monkeypatch.setattr(requests.Session, "send", refuse)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", refuse)
    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    return sent


def options(pauses: list[float] | None = None, **changes: object) -> ClientOptions:
    retry = RetryPolicy(attempts=3, sleep=([] if pauses is None else pauses).append, jitter=lambda: 1.0)
    fields: dict[str, object] = {"retry": retry, "lookup": lambda *_: None, "read_timeout_s": 5.0, **changes}
    return ClientOptions(**fields)  # type: ignore[arg-type]


def name(at: str) -> str:
    return f"{at}/r/x:1"


def container(at: str) -> Any:
    return Container(name(at))


def file(folder: Path) -> str:
    path = folder / "new.bin"
    path.write_bytes(NEW)
    return str(path)


Ask = Callable[[RegistryClient, str, Path], object]
ASK: dict[str, Ask] = {
    "blob_exists": lambda client, at, _: client.blob_exists(LAYER, container(at)) or pytest.fail("it is there"),
    "chunked_upload": lambda client, at, folder: client.chunked_upload(file(folder), container(at), NEW_LAYER, 9000),
    "delete_tag": lambda client, at, _: client.delete_tag(name(at), "1"),
    "delete_tags": lambda client, at, _: client.delete_tags(name(at), ["1"]),
    "do_request": lambda client, at, _: client.do_request(f"{client.prefix}://{container(at).manifest_url()}"),
    "download_blob": lambda client, at, folder: client.download_blob(name(at), sha256(BLOB), str(folder / "b")),
    "get_blob": lambda client, at, _: client.get_blob(name(at), sha256(BLOB)),
    "get_manifest": lambda client, at, _: client.get_manifest(name(at)),
    "get_tags": lambda client, at, _: client.get_tags(name(at)),
    "pull": lambda client, at, folder: client.pull(name(at), outdir=str(folder)),
    "push": lambda client, at, folder: client.push(name(at), files=[file(folder)], disable_path_validation=True),
    "put_upload": lambda client, at, folder: client.put_upload(file(folder), container(at), NEW_LAYER),
    "upload_blob": lambda client, at, folder: client.upload_blob(file(folder), name(at), NEW_LAYER),
    "upload_manifest": lambda client, at, _: client.upload_manifest(MANIFEST, container(at)),
    "_chunked_upload": lambda client, at, folder: client._chunked_upload(file(folder), container(at), NEW_LAYER),
    "_do_paginated_request": lambda client, at, _: client._do_paginated_request(
        f"{client.prefix}://{container(at).tags_url()}", callable=lambda _: True
    ),
    "_download_blob": lambda client, at, folder: client._download_blob(name(at), sha256(BLOB), str(folder / "b")),
    "_put_upload": lambda client, at, folder: client._put_upload(file(folder), container(at), NEW_LAYER),
    "_upload_blob": lambda client, at, folder: client._upload_blob(file(folder), name(at), NEW_LAYER),
    "_upload_manifest": lambda client, at, _: client._upload_manifest(MANIFEST, container(at)),
}
REFUSED = {"login", "logout"}
SENDS_NOTHING = {
    *("__init__", "__repr__", "__str__", "get_container", "set_header", "version"),
    *("_check_200_response", "_get_location", "_parse_manifest_ref", "_parse_response_errors", "_validate_path"),
}
every = pytest.mark.parametrize("ask", ASK.values(), ids=ASK.keys())


def test_every_method_of_the_installed_oras_py_is_known() -> None:
    """A method that a new version brings has to be tried here before that version is taken."""
    stock = {name for name, _ in inspect.getmembers(Registry, inspect.isfunction)}
    assert stock == ASK.keys() | REFUSED | SENDS_NOTHING


@every
def test_it_works_where_the_registry_speaks_no_tls_on_loopback(
    ask: Ask, registry: ScriptedRegistry, only_way: list[str], tmp_path: Path
) -> None:
    with RegistryClient(registry.address, options=options()) as client:
        ask(client, client.registry, tmp_path)
    assert only_way and all(f" http://{registry.address}/v2/r/x/" in line for line in only_way)


@every
def test_no_other_host_is_spoken_to_without_tls(ask: Ask, only_way: list[str], tmp_path: Path) -> None:
    with (
        RegistryClient("registry.test", options=options()) as client,
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(RegistryError, match=r"registry\.test"),
    ):
        patch.setattr(Connections, "send", refuse_connection(only_way))
        ask(client, client.registry, tmp_path)
    assert only_way and all(" https://registry.test/v2/r/x/" in line for line in only_way)


def refuse_connection(sent: list[str]) -> Callable[..., object]:
    def send(_: Connections, method: str, url: str, *__: object) -> object:
        sent.append(f"{method} {url}")
        raise ConnectionRefusedError

    return send


@every
def test_it_is_tried_again_as_the_policy_says(ask: Ask, registry: ScriptedRegistry, tmp_path: Path) -> None:
    pauses: list[float] = []
    registry.faults.insert(0, times(2, lambda call: call.method != "PATCH", answer_503))
    with RegistryClient(registry.address, options=options(pauses)) as client:
        ask(client, client.registry, tmp_path)
    assert pauses[:2] == [7.0, 7.0], "as long as the registry asks for, not as oras-py has it"


def answer_503(exchange: Exchange) -> bool:
    exchange.read_body()
    return exchange.answer(503, Retry_After="7")


def test_a_chunk_is_sent_once(registry: ScriptedRegistry, tmp_path: Path) -> None:
    registry.faults.insert(0, times(1, lambda call: call.method == "PATCH", answer_503))
    with RegistryClient(registry.address, options=options()) as client, pytest.raises(RegistryError, match="503"):
        ASK["chunked_upload"](client, client.registry, tmp_path)
    assert registry.count("PATCH") == 1


@every
def test_the_login_is_the_one_kept_for_the_repository(ask: Ask, registry: ScriptedRegistry, tmp_path: Path) -> None:
    looked_up: set[tuple[str, str]] = set()

    def lookup(host: str, repository: str) -> Credential:
        looked_up.add((host, repository))
        return USER

    registry.faults.insert(0, require_login)
    with RegistryClient(registry.address, options=options(lookup=lookup)) as client:
        ask(client, client.registry, tmp_path)
    assert looked_up == {(registry.address, "r/x")}


def require_login(exchange: Exchange) -> bool:
    wanted = base64.b64encode(f"user:{SECRET}".encode()).decode()
    if exchange.headers.get("Authorization") == f"Basic {wanted}":
        return False
    exchange.read_body()
    return exchange.answer(401, WWW_Authenticate='Basic realm="x"')


@pytest.mark.parametrize(
    ("ask", "scopes"),
    [
        ("get_manifest", ["repository:r/x:pull"]),
        ("put_upload", ["repository:r/x:pull,push"]),
        ("delete_tag", ["repository:r/x:pull", "repository:r/x:delete,pull,push"]),
    ],
)
def test_a_token_is_asked_for_by_repository_and_action(
    ask: str, scopes: list[str], registry: ScriptedRegistry, tmp_path: Path
) -> None:
    asked: list[str] = []

    def token_server(exchange: Exchange) -> bool:
        if exchange.call.path == "/token":
            asked.extend(exchange.call.query["scope"])
            return exchange.answer(200, json.dumps({"token": f"for-{len(asked)}"}).encode())
        if exchange.headers.get("Authorization") == f"Bearer for-{len(asked)}":
            return False
        exchange.read_body()
        realm = f'Bearer realm="http://{registry.address}/token",service="s",scope="repository:other/y:pull"'
        return exchange.answer(401, WWW_Authenticate=realm)

    registry.faults.insert(0, token_server)
    with RegistryClient(registry.address, options=options()) as client:
        ASK[ask](client, client.registry, tmp_path)
    assert asked == scopes


@every
def test_a_refusal_is_a_registry_error_without_the_secret(
    ask: Ask, registry: ScriptedRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(403, error_document("DENIED"), Location=f"/x?signature={SECRET}")

    registry.faults.insert(0, refuse)
    with (
        RegistryClient(registry.address, options=options(lookup=lambda *_: USER)) as client,
        pytest.raises(RegistryError, match="403") as caught,
    ):
        ask(client, client.registry, tmp_path)
    shown = capsys.readouterr()
    assert SECRET not in f"{caught.value} {caught.value.fields} {shown.out} {shown.err}"


@pytest.mark.parametrize("ask", ["put_upload", "chunked_upload", "upload_blob", "push"])
def test_the_state_of_an_upload_shows_in_no_error(ask: str, registry: ScriptedRegistry, tmp_path: Path) -> None:
    def refuse(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(400, error_document("DIGEST_INVALID"))

    registry.faults.insert(0, times(1, lambda call: call.method in ("PUT", "PATCH"), refuse))
    with RegistryClient(registry.address, options=options()) as client, pytest.raises(RegistryError) as caught:
        ASK[ask](client, client.registry, tmp_path)
    assert "DIGEST_INVALID" in str(caught.value) and "secret-state" not in f"{caught.value} {caught.value.fields}"


def test_what_is_missing_is_an_answer(registry: ScriptedRegistry) -> None:
    with RegistryClient(registry.address, options=options()) as client:
        assert not client.blob_exists({"digest": sha256(b"?")}, container(client.registry))
        assert not client.delete_tag(name(client.registry), "missing")
        missing = client.do_request(client.url("a/b/manifests/x"), "GET")
        assert (missing.status_code, missing.json()["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")
        with pytest.raises(RegistryError, match="MANIFEST_UNKNOWN"):
            client.get_manifest(f"{registry.address}/r/x:missing")
        with pytest.raises(RegistryError, match="BLOB_UNKNOWN"):
            client.download_blob(name(client.registry), sha256(b"?"), "never")


def test_what_is_pushed_can_be_pulled(registry: ScriptedRegistry, tmp_path: Path) -> None:
    with RegistryClient(registry.address, options=options()) as client:
        pushed = client.push(f"{registry.address}/r/y:2", files=[file(tmp_path)], disable_path_validation=True)
        assert isinstance(pushed, requests.Response) and pushed.ok and pushed.request.method == "PUT"
        (pulled,) = client.pull(f"{registry.address}/r/y:2", outdir=str(tmp_path / "out"))
        assert client.get_tags(name(client.registry)) == ["1", "2"]
    assert Path(pulled).read_bytes() == NEW


@pytest.mark.parametrize("ask", ["download_blob", "get_blob", "pull"])
def test_other_bytes_than_were_asked_for_are_refused(ask: str, registry: ScriptedRegistry, tmp_path: Path) -> None:
    registry.blobs[sha256(BLOB)] = b"X" + BLOB[1:]
    with RegistryClient(registry.address, options=options()) as client, pytest.raises(IntegrityError):
        ASK[ask](client, client.registry, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"<html>", b"", b"\xff", b"[]", b"[" * 100_000, b"1"])
def test_an_answer_that_is_no_json_object_is_an_error_of_the_registry(registry: ScriptedRegistry, data: bytes) -> None:
    registry.faults.insert(0, lambda exchange: exchange.answer(200, data))
    with RegistryClient(registry.address, options=options()) as client:
        for ask in (
            lambda: client.get_tags(f"{registry.address}/r/x"),
            lambda: client.get_manifest(name(client.registry)),
        ):
            with pytest.raises(RegistryError, match="JSON"):
                ask()


def test_another_manifest_than_was_asked_for_is_refused(registry: ScriptedRegistry) -> None:
    digest = sha256(b"another")
    registry.manifests[f"r/x@{digest}"] = registry.manifests["r/x@1"]
    with RegistryClient(registry.address, options=options()) as client, pytest.raises(IntegrityError):
        client.get_manifest(f"{registry.address}/r/x@{digest}")


@every
def test_another_registry_is_not_asked(ask: Ask, only_way: list[str], tmp_path: Path) -> None:
    with (
        RegistryClient("registry.test", options=options()) as client,
        pytest.raises(UsageError, match=r"not to `other\.test`"),
    ):
        ask(client, "other.test", tmp_path)
    assert only_way == []


def test_docker_hub_is_asked_where_it_listens(only_way: list[str]) -> None:
    with RegistryClient("docker.io", options=options()) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connections, "send", refuse_connection(only_way))
        with pytest.raises(RegistryError):
            client.get_manifest("library/python:3.12")
    assert {line.partition("/v2/")[0] for line in only_way} == {"GET https://registry-1.docker.io"}


def test_a_header_of_a_caller_never_logs_in(registry: ScriptedRegistry) -> None:
    with RegistryClient(registry.address, options=options()) as client:
        client.set_header("Authorization", f"Bearer {SECRET}")
        client.set_header("Cookie", SECRET)
        client.set_header("X-Other", "kept")
        client.get_blob(name(client.registry), sha256(BLOB))
    (call,) = registry.calls[-1:]
    assert call.headers["X-Other"] == "kept" and SECRET not in str(call.headers)


@pytest.mark.parametrize("place", ["http://registry.test/v2/r/x/blobs/uploads/1", "http://other.test/u"])
def test_an_upload_goes_on_over_tls_only(place: str, only_way: list[str]) -> None:
    with RegistryClient("registry.test", options=options()) as client:
        for send in (
            lambda: client.do_request(place, "PUT", data=b"x"),
            lambda: client.request(Request("PUT", place, what="upload", body=b"x")),
        ):
            with pytest.raises(RegistryError, match="from TLS to plain HTTP"):
                send()
    assert only_way == []


def test_an_upload_elsewhere_goes_without_the_login(registry: ScriptedRegistry, tmp_path: Path) -> None:
    with run_scripted() as other:

        def begin(exchange: Exchange) -> bool:
            return exchange.call.method == "POST" and exchange.answer(
                202, Location=f"http://{other.address}/v2/r/x/blobs/uploads/s1"
            )

        other.sessions["s1"] = b""
        registry.faults[:0] = [require_login, begin]
        with RegistryClient(registry.address, options=options(lookup=lambda *_: USER)) as client:
            client.put_upload(file(tmp_path), container(client.registry), NEW_LAYER)
    assert other.blobs == {sha256(NEW): NEW}
    assert "Authorization" not in other.calls[0].headers


def test_what_a_later_version_sends_over_its_session_comes_through_the_door(
    registry: ScriptedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login other password {SECRET}-of-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    pauses: list[float] = []
    registry.faults[:0] = [times(1, lambda _: True, answer_503), require_login]
    with RegistryClient(registry.address, options=options(pauses, lookup=lambda *_: USER)) as client:
        url = f"http://{client.registry}/v2/r/x/manifests/1"
        answer = client.session.get(url, headers={"Authorization": "Basic other"}, verify=False, allow_redirects=True)
        assert client.session.post(f"http://{client.registry}/v2/r/x/blobs/uploads/", data="x").status_code == 202
        with pytest.raises(UsageError):
            client.session.get("https://token.test/token")
        with pytest.raises(UsageError, match="bytes"):
            client.session.post(url, data=iter([b"x"]))
    assert (answer.json(), pauses) == (MANIFEST, [7.0])


def test_what_a_later_version_asks_of_its_backend_is_not_there(registry: ScriptedRegistry) -> None:
    with RegistryClient(registry.address, options=options()) as client:
        with pytest.raises(AttributeError):
            client.auth.request_token(None)
        with pytest.raises(UsageError) as caught:
            client.pull(name(client.registry), config_path="other.json")
    assert "REGISTRY_AUTH_FILE" in str(caught.value.hint) and registry.calls == []


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_it_is_left_to_the_commands(
    method: str, registry: ScriptedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with RegistryClient(registry.address, options=options()) as client, pytest.raises(UsageError) as caught:
        getattr(client, method)(username="user", password=SECRET, hostname=registry.address)
    assert "airferry login" in str(caught.value.hint)
    assert (list(tmp_path.rglob("*")), registry.calls) == ([], [])


def test_nothing_of_oras_py_is_imported_under_another_name() -> None:
    source = Path(oras_registry.__file__).read_text(encoding="utf-8")
    assert "sys.modules" not in source
