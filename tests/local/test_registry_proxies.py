"""Proxies on the way to a registry, and clocks that are wrong: what is in the way is named, with the way out."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airferry.errors import RegistryError
from airferry.host import clock
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.failures import connection_error, proxy_for
from airferry.registry.retry import RetryPolicy
from airferry.registry.source import RegistrySource

HOST = "registry.example.com"
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def proxy_that_answers(status: str) -> Iterator[str]:
    """Run a proxy that gives every request one answer; give its `HOST:PORT`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            # closing alone does not wake the thread
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def failure(pauses: list[float], *, plain_http: bool | None = None) -> RegistryError:
    """Ask a registry by way of what the environment says, and return the error."""
    options = ClientOptions(plain_http=plain_http, retry=RetryPolicy(attempts=3, sleep=pauses.append))
    with RegistryClient(HOST, options=options) as client, pytest.raises(RegistryError) as caught:
        RegistrySource(client, "a/b").find("c")
    return caught.value


@pytest.mark.parametrize(
    ("status", "login", "said", "tries"),
    [
        ("407 Proxy Authentication Required", "", "wants a login (407)", 1),
        ("407 Proxy Authentication Required", "me:geheim@", "refuses the login that it was given (407)", 1),
        ("403 Forbidden", "", f"refuses to connect to `{HOST}` (403)", 1),
        ("502 Bad Gateway", "", f"cannot connect to `{HOST}` (502)", 3),
    ],
)
def test_what_a_proxy_refuses_is_named(
    status: str, login: str, said: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    with proxy_that_answers(status) as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{login}{address}")
        error = failure(pauses)
    assert f"the proxy `http://{address}` {said}" in error.message
    assert f"name `{HOST}` in `NO_PROXY`" in (error.hint or "") and len(pauses) == tries - 1
    assert "geheim" not in f"{error.message} {error.hint}"


def test_a_proxy_for_plain_http_that_wants_a_login_is_told_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy_that_answers("407 Proxy Authentication Required") as address:
        monkeypatch.setenv("HTTP_PROXY", f"http://{address}")
        error = failure([], plain_http=True)
    assert "407" in error.message and "the proxy's login" in (error.hint or "")


@pytest.mark.parametrize(
    ("value", "said", "way_out"),
    [
        ("socks5://127.0.0.1:1080", "`socks5://127.0.0.1:1080` is a SOCKS proxy", "PySocks"),
        ("socks5h://me:geheim@127.0.0.1:1080", "`socks5h://127.0.0.1:1080` is a SOCKS proxy", "`HTTPS_PROXY`"),
        ("http://proxy.invalid:3128", "the name of the proxy `http://proxy.invalid:3128`", "`HTTPS_PROXY`"),
        ("http://", "is not a URL", "`http://HOST:PORT`"),
        ("http://a:b:c", "is not a URL", "`http://HOST:PORT`"),
    ],
)
def test_a_proxy_that_cannot_be_used_fails_at_once(
    value: str, said: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests.adapters
    import urllib3

    def missing(*_: object, **__: object) -> None:
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    # as without PySocks, whether this host has it or not
    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", missing)

    def unresolved(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(urllib3.util.connection, "create_connection", unresolved)
    monkeypatch.setenv("ALL_PROXY", value)
    pauses: list[float] = []
    error = failure(pauses)
    assert said in error.message and way_out in (error.hint or "")
    assert pauses == []
    assert "geheim" not in f"{error.message} {error.hint}"


def test_hosts_that_need_no_proxy_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    assert proxy_for(f"https://{HOST}/v2/") == "http://proxy.example.com:3128"
    assert proxy_for("https://localhost:5000/v2/") is None
    for value in (HOST, ".example.com", "*", f"{HOST}:5000,{HOST}", f"other, {HOST}"):
        monkeypatch.setenv("NO_PROXY", value)
        assert proxy_for(f"https://{HOST}/v2/") is None, value
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    assert proxy_for("https://10.1.2.3:5000/v2/") is None
    assert proxy_for(f"https://{HOST}/v2/") is not None


@pytest.mark.parametrize(
    ("code", "text", "said", "way_out"),
    [
        (
            9,
            "certificate is not yet valid",
            "is not valid at 1970-01-01T00:00:09Z, the time of",
            "set this host",
        ),
        (
            10,
            "certificate has expired",
            "is not valid at 1970-01-01T00:00:09Z, the time of",
            "a new certificate",
        ),
        (20, "unable to get local issuer certificate", "is not trusted", "`--ca-file FILE`"),
    ],
)
def test_a_certificate_that_the_clock_makes_invalid_is_told_so(
    code: int, text: str, said: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "now_s", lambda: 9.0)
    cause = ssl.SSLCertVerificationError("certificate verify failed")
    cause.verify_code, cause.verify_message = code, text
    error = connection_error("GET", f"https://{HOST}/v2/", what="ask", error=cause)
    assert said in error.message and text in error.message and way_out in (error.hint or "")
