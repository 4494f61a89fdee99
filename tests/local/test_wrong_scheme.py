"""TLS where plain HTTP is spoken, and plain HTTP where TLS is, are named as such, with what to type."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import urllib3

from airferry import api
from airferry.bundle.receipt import ReceiptConnection, write_receipt
from airferry.errors import RegistryError
from airferry.near.tls_said import tls_trouble
from airferry.registry import client as client_module
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import Request
from airferry.registry.failures import TransientRegistryError, WrongScheme, connection_error, leads_to_tls
from airferry.registry.retry import RetryPolicy
from airferry.registry.tls import BY_FILES, BY_RECEIPT, Remedies
from loaded_receipts import DIGEST, loaded_receipt
from scripted_registry import Exchange, run_scripted

ALERT = bytes.fromhex("15030100020246")
GO = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"Client sent an HTTP request to an HTTPS server.\n"
)
NGINX = (
    b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
    b"<center>The plain HTTP request was sent to HTTPS port</center>"
)
PLAIN = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def options(*, plain_http: bool | None) -> ClientOptions:
    retry = RetryPolicy(attempts=3, sleep=lambda _: None)
    return ClientOptions(plain_http=plain_http, lookup=lambda _registry, _repository: None, retry=retry)


@contextmanager
def answering(
    answer: bytes, *, reset: bool = False, greeting: bytes | None = None
) -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that answers whatever it is sent with the same bytes; yield its address, and what it was sent.

    With a `greeting`, TLS is answered with that.
    """
    sent: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    link, _ = server.accept()
                    with link, suppress(OSError):
                        sent.append(link.recv(65536))
                        if reset:
                            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        link.sendall(answer if greeting is None or sent[-1][:1] != b"\x16" else greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", sent
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def failure(address: str, *, plain_http: bool) -> RegistryError:
    with (
        RegistryClient(address, options=options(plain_http=plain_http)) as client,
        pytest.raises(RegistryError) as caught,
    ):
        client.request(Request("GET", "", "look"))
    return caught.value


@pytest.fixture(autouse=True)
def _no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    # reading the system's takes longer than all that is tried here
    def context(*_: object, **__: object) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        return made

    monkeypatch.setattr(client_module, "make_context", context)


@pytest.mark.parametrize("answer", [GO, NGINX, ALERT])
def test_plain_http_to_a_registry_with_tls_is_named(answer: bytes) -> None:
    with answering(answer) as (address, sent):
        error = failure(address, plain_http=True)
    assert type(error) is WrongScheme
    assert error.message == f"cannot look: `{address}` speaks TLS, not plain HTTP"
    assert (error.hint or "").startswith("leave out `--plain-http`")
    # not tried again, and nothing but a greeting is sent to find out
    assert len(sent) <= 2 and all(one.startswith((b"GET /v2/", b"\x16\x03")) for one in sent)


def test_an_answer_without_text_has_the_registry_greeted() -> None:
    bare = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 48\r\n\r\n"
    told = replace(options(plain_http=True), told=BY_RECEIPT)
    with (
        answering(bare, greeting=ALERT) as (address, _),
        RegistryClient(address, options=told) as client,
        pytest.raises(WrongScheme, match="speaks TLS, not plain HTTP") as caught,
    ):
        client.request(Request("HEAD", "r/x/manifests/1", "look"))
    assert "pass `--tls`" in (caught.value.hint or ""), "the receipt said plain HTTP, and not an option"


def test_a_rollback_at_a_registry_that_moved_to_tls_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    with answering(ALERT) as (address, _):
        made = loaded_receipt(reference=f"{address}/airgap/trainer:airgap", pinned=f"{address}/airgap/trainer@{DIGEST}")
        moved = made.model_copy(
            update={
                "registry": f"{address}/airgap",
                "connection": ReceiptConnection(tls=False),
                "artifact_tags": made.tags,
            }
        )
        write_receipt(moved, tmp_path / "receipt.yaml")
        with pytest.raises(WrongScheme) as caught:
            api.rollback(tmp_path / "receipt.yaml", options=options(plain_http=None))
    assert "not all tags" not in caught.value.message and caught.value.message.count("speaks TLS") == 1
    assert "pass `--tls`" in (caught.value.hint or "")


@pytest.mark.parametrize("reset", [True, False])
def test_a_connection_that_breaks_alone_says_nothing_of_tls(reset: bool) -> None:
    with answering(b"", reset=reset) as (address, _):
        error = failure(address, plain_http=True)
    assert type(error) is TransientRegistryError and "TLS" not in error.message


def test_port_80_that_leads_to_tls_is_named() -> None:
    def elsewhere(exchange: Exchange) -> bool:
        return exchange.answer(301, Location=f"https://127.0.0.1{exchange.path}")

    with (
        run_scripted([elsewhere]) as registry,
        RegistryClient(registry.address, options=options(plain_http=True)) as client,
        pytest.raises(WrongScheme, match="leads from plain HTTP to TLS at `https://127") as caught,
    ):
        client.request(Request("POST", "r/x/blobs/uploads/", "push", body=b""), expected=(202,))
    assert "leave out `--plain-http`" in (caught.value.hint or "")


def test_storage_over_tls_is_not_another_scheme() -> None:
    url = "http://r.example:5000/v2/x/blobs/sha256:0"
    assert leads_to_tls(url, "https://r.example/v2/x/blobs/sha256:0")
    assert not leads_to_tls(url, "https://r.example:9000/bucket/0")
    assert not leads_to_tls(url.replace("http:", "https:"), "https://r.example/v2/x/blobs/sha256:0")


def test_tls_to_a_registry_without_is_named() -> None:
    with answering(PLAIN) as (address, _):
        error = failure(address, plain_http=False)
    assert type(error) is WrongScheme
    assert error.message == f"cannot look: `{address}` speaks plain HTTP, not TLS"
    assert "pass `--plain-http`" in (error.hint or "")


def refused(reason: str, remedies: Remedies | None = None) -> RegistryError:
    cause = ssl.SSLError(1, "said")
    cause.reason = reason
    error = urllib3.exceptions.SSLError(cause)
    return connection_error("GET", "https://r.example:5000/v2/", what="look", error=error, remedies=remedies)


def test_commands_without_options_name_files() -> None:
    hint = refused("WRONG_VERSION_NUMBER", BY_FILES).hint or ""
    assert "--plain-http" not in hint and '`location = "r.example:5000"`' in hint


def test_with_a_ca_the_option_to_leave_out_is_named() -> None:
    remedies = ClientOptions(ca_file=Path("ca.pem")).remedies
    assert "instead of `--ca-file`" in (refused("RECORD_LAYER_FAILURE", remedies).hint or "")


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("TLSV1_ALERT_PROTOCOL_VERSION", "TLS 1.2"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "client.cert"),
        ("UNEXPECTED_EOF_WHILE_READING", "a server with TLS listens there"),
    ],
)
def test_a_handshake_that_fails_says_what_to_look_at(reason: str, hint: str) -> None:
    assert hint in (refused(reason).hint or "")


# as Git 2.39 with GnuTLS and with OpenSSL, pip 26 and APT 2.6 say it
SAID = [
    ("https://h/x", "gnutls_handshake() failed: An unexpected TLS packet was received.", "it speaks plain HTTP"),
    ("https://h/x", "error:0A00010B:SSL routines::wrong version number", "it speaks plain HTTP"),
    (
        "https://h/x",
        "problem confirming the ssl certificate: [SSL: WRONG_VERSION_NUMBER]",
        "it speaks plain HTTP",
    ),
    ("https://h/x", "Could not handshake: An unexpected TLS packet was received.", "it speaks plain HTTP"),
    ("http://h/x", "unable to access 'http://h/x/': The requested URL returned error: 400", "not answer plain HTTP"),
    ("http://h/x", "unable to access 'http://h/x/': Received HTTP/0.9 when not allowed", "not answer plain HTTP"),
    ("http://h/x", "unable to access 'http://h/x/': Empty reply from server", "not answer plain HTTP"),
    (
        "http://h/x",
        "connection error: the connection was closed without a reply from the server.",
        "not answer plain HTTP",
    ),
    ("http://h/x", "ChunkedEncodingError: Connection broken: ConnectionResetError(104)", "not answer plain HTTP"),
    ("http://", "E: Failed to fetch http://h/x  400  Bad Request [IP: 1.2.3.4 443]", "not answer plain HTTP"),
    ("https://h/x", "server certificate verification failed. CAfile: none CRLfile: none", "not trusted"),
    ("https://h/x", "SSL certificate problem: unable to get local issuer certificate", "not trusted"),
    ("https://h/x", "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "not trusted"),
]


@pytest.mark.parametrize(("url", "said", "trouble"), SAID)
def test_what_programs_say_of_tls_is_understood(url: str, said: str, trouble: str) -> None:
    found = tls_trouble(said, url=url, where="there", ca="trust FILE")
    assert found is not None and trouble in found[0]
    assert "trust FILE" in found[1] or "there" in found[1]


@pytest.mark.parametrize("said", ["The requested URL returned error: 403", "Connection refused", "Fetched 400 kB"])
def test_other_failures_are_none_of_tls(said: str) -> None:
    assert tls_trouble(said, url="http://h/x", where="there", ca="") is None
