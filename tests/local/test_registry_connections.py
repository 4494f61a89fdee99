"""How requests travel: through a proxy or not, bytes or slices of files, and what of a certificate is looked at."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from airferry.errors import IntegrityError
from airferry.oci.documents import LAYER_TAR, Descriptor
from airferry.oci.layout import LayoutStore
from airferry.oci.streams import FileSlice
from airferry.registry import connections
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import speaks_tls
from airferry.registry.governor import Limits
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.uploads import UNCHECKED_FROM_BYTES, Uploader
from scripted_registry import Exchange, ScriptedRegistry

SIZE = UNCHECKED_FROM_BYTES + 12345
CHUNKED = Limits(chunked_above_bytes=1 << 20, chunk_bytes=(1 << 20) + 77)


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "layout")


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> list[FileSlice]:
    """Every slice of a file that the kernel is asked to send."""
    seen: list[FileSlice] = []
    plain = connections._PlainConnection.send

    def send(self: connections._PlainConnection, data: object) -> None:
        if isinstance(data, FileSlice):
            seen.append(data)
        plain(self, data)

    monkeypatch.setattr(connections._PlainConnection, "send", send)
    return seen


def options(**changes: object) -> ClientOptions:
    return ClientOptions(plain_http=True, lookup=lambda *_: None, **changes)  # type: ignore[arg-type]


def push(address: str, store: LayoutStore, layer: Descriptor, limits: Limits | None = None, **changes: object) -> None:
    with RegistryClient(address, options=options(**changes)) as client:
        sink = RegistrySink(client, "r/x", uploader=Uploader(client, limits=limits))
        sink.put_blob_from(
            layer, lambda: store.open_blob(layer), open_unchecked=lambda: store.open_blob_unchecked(layer)
        )


@pytest.mark.parametrize("limits", [None, CHUNKED], ids=["whole", "chunks"])
def test_the_kernel_sends_a_large_blob_where_nothing_is_encrypted(
    limits: Limits | None, registry: ScriptedRegistry, store: LayoutStore, slices: list[FileSlice]
) -> None:
    data = os.urandom(SIZE)
    layer = store.put_bytes(data, LAYER_TAR)
    push(registry.address, store, layer, limits)
    assert registry.blobs == {layer.digest: data}
    assert sum(piece.length for piece in slices) == SIZE


def test_a_rate_holds_for_what_the_kernel_sends(
    registry: ScriptedRegistry, store: LayoutStore, slices: list[FileSlice]
) -> None:
    layer = store.put_bytes(os.urandom(SIZE), LAYER_TAR)
    taken: list[int] = []
    with RegistryClient(registry.address, options=options()) as client:
        client.rate.take = taken.append  # type: ignore[method-assign]
        sink = RegistrySink(client, "r/x")
        sink.put_blob_from(
            layer, lambda: store.open_blob(layer), open_unchecked=lambda: store.open_blob_unchecked(layer)
        )
    assert slices and sum(taken) == SIZE and max(taken) <= 1 << 20


def test_a_file_that_ends_while_the_kernel_sends_it_is_an_integrity_error(
    registry: ScriptedRegistry, store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = store.put_bytes(os.urandom(SIZE), LAYER_TAR)
    path = store.blob_path(layer.digest)
    plain = socket.socket.sendfile

    def cut(self: socket.socket, file: object, offset: int = 0, count: int | None = None) -> int:
        os.truncate(path, offset + 100)
        return plain(self, file, offset, count)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "sendfile", cut)
    with pytest.raises(IntegrityError, match="ends at 100 bytes"):
        push(registry.address, store, layer)
    assert (registry.blobs, registry.sessions) == ({}, {})


def test_a_proxy_is_asked_for_every_other_host(
    registry: ScriptedRegistry, store: LayoutStore, slices: list[FileSlice], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://{registry.address}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "direct.invalid")
    data = os.urandom(SIZE)
    layer = store.put_bytes(data, LAYER_TAR)
    hosts: set[str] = set()

    def note(exchange: Exchange) -> bool:
        hosts.add(exchange.headers["Host"])
        return False

    registry.faults.append(note)
    push("registry.invalid:5000", store, layer)
    assert (registry.blobs, hosts, slices) == ({layer.digest: data}, {"registry.invalid:5000"}, [])
    with RegistryClient("registry.invalid:5000", options=options()) as client:
        with RegistrySource(client, "r/x").open_blob(layer) as stream:
            assert stream.read() == data
        pools = client._connections._pools
        assert list(pools.values()) == [None]
    with RegistryClient(registry.address, options=options()) as client:
        assert RegistrySink(client, "r/x").has_blob(layer), "loopback is never behind a proxy"
        assert None not in client._connections._pools.values()


def test_pages_of_referrers_are_followed(registry: ScriptedRegistry) -> None:
    subject = "sha256:" + "1" * 64
    entries = [f"sha256:{number:064x}" for number in range(3)]

    def page(exchange: Exchange) -> bool:
        if "/referrers/" not in exchange.call.path:
            return False
        number = int(exchange.call.query.get("page", ["0"])[0])
        data = (
            '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":'
            f'"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"{entries[number]}"}}]}}'
        )
        more = {"Link": f'</v2/r/x/referrers/{subject}?page={number + 1}>; rel="next"'} if number < 2 else {}
        return exchange.answer(200, data.encode(), **more)

    registry.faults.append(page)
    with RegistryClient(registry.address, options=options()) as client:
        assert [entry.digest for entry in RegistrySource(client, "r/x").referrers(subject)] == entries


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
def test_a_greeting_tells_tls_from_what_is_none(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            link, _ = server.accept()
            with link, suppress(ConnectionResetError):
                link.recv(4096)
                link.sendall(greeting)
                link.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        # an alert of TLS, such as one that a client certificate is missing, is TLS
        assert speaks_tls(f"127.0.0.1:{server.getsockname()[1]}", timeout_s=5) is (greeting[:1] == b"\x15")
        thread.join()
