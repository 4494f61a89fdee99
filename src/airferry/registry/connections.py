"""Connections to registries: pooled, over TLS as configured, files handed to the kernel where nothing is encrypted.

Sends a request and gives back its answer. Knows no retries, redirects or logins. What `requests` does beyond that costs
more than twice the time for each request, so it is asked only where a proxy is on the way.
"""

from __future__ import annotations

import errno
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Protocol, runtime_checkable
from urllib.parse import SplitResult

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import parse_header_links, requote_uri
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from airferry.errors import HostError
from airferry.host.parsing import split_url
from airferry.oci.ports import BLOCK_BYTES
from airferry.oci.streams import FileSlice
from airferry.registry.failures import proxy_for, speaks_no_tls

USER_AGENT = "airferry"
# hosts that connections are kept to: a registry, its storage, its token server
MAX_IDLE_CONNECTIONS = 16
_HEADERS = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
_PLAIN_TARGET = re.compile(r"/[\x21\x23-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e]*")


class ReplayableBody(Protocol):
    """A body of known length whose every iteration yields it from its start."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


@runtime_checkable
class SlicedBody(Protocol):
    """A body that can also come as slices of a file."""

    def slices(self) -> Iterable[bytes | FileSlice]:
        """Yield the body from its start."""
        ...


Body = bytes | ReplayableBody


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. `url` is a path under `/v2/` or a whole URL; `what` completes "cannot …" in errors.

    `scopes` are what a token must allow. A body is sent again with each attempt, of which there are at most `attempts`,
    or as many as the retry policy says. An `anonymous` request carries no login, and a 401 is an answer like others.
    """

    method: str
    url: str
    what: str
    scopes: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    attempts: int | None = None
    read_timeout_s: float | None = None
    anonymous: bool = False


class Answer:
    """What a registry answered: status and headers, and the content once it was read."""

    __slots__ = ("content", "headers", "method", "raw", "status_code", "url")

    def __init__(self, method: str, url: str, raw: urllib3.BaseHTTPResponse) -> None:
        """Hold an answer whose content was not read yet."""
        self.method = method
        self.url = url
        self.raw = raw
        self.status_code: int = raw.status
        self.headers = raw.headers
        self.content = b""

    @property
    def next_page(self) -> str:
        """The URL that the header `Link` calls the next one, empty where there is none."""
        links = parse_header_links(self.headers.get("Link", ""))
        return next((link["url"] for link in links if link.get("rel") == "next"), "")

    def close(self) -> None:
        """Give up what was not read. Idempotent."""
        self.raw.close()
        self.raw.release_conn()


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Stand in the place of a login, so that requests does not take one from `~/.netrc`."""
    return request


class Connections:
    """The connections of one client. Safe to use from threads."""

    def __init__(
        self,
        *,
        context: Callable[[], ssl.SSLContext] | None,
        most: int,
        verify: bool = True,
    ) -> None:
        """Keep up to `most` connections to a host; `context` makes the TLS context when it is first needed.

        Without `verify` every certificate is accepted.
        """
        self._session = requests.Session()
        self._session.auth = _keep_headers
        # some registries take a client that returns their cookie for a browser, and ask for more of it (Harbor's CSRF)
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._verify = verify
        self._context = context
        self._most = most
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str], HTTPConnectionPool | None] = {}
        self._session.mount("http://", _Adapter(None, most))

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._session.close()

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None, timeout: tuple[float, float]
    ) -> Answer:
        """Send once, and return the answer as far as its headers.

        Raises:
            requests.RequestException, urllib3.exceptions.HTTPError, OSError: there is no answer.
            ConfigurationError: a certificate that is configured for the registry cannot be read.
        """
        parts = split_url(url)
        pool = self._pool(parts, url)
        sent = {**_HEADERS, **headers}
        content: Any = body
        if body is not None:
            sent["Content-Length"] = str(len(body))
            if parts.scheme == "http" and pool is not None and isinstance(body, SlicedBody):
                content = body.slices()
        # a proxy is left to requests, which knows CONNECT and the proxy's login
        if pool is None:
            return self._send_by_proxy(method, url, sent, body, timeout)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        raw = pool.urlopen(
            method,
            target if _PLAIN_TARGET.fullmatch(target) else requote_uri(target),
            body=content,
            headers=sent,
            timeout=urllib3.Timeout(connect=timeout[0], read=timeout[1]),
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
        )
        return Answer(method, url, raw)

    def _pool(self, parts: SplitResult, url: str) -> HTTPConnectionPool | None:
        """Return the connections to a host, or None where a proxy is on the way."""
        key = (parts.scheme, parts.netloc)
        with self._lock:
            if key not in self._pools:
                if parts.scheme == "https":
                    self._mount_tls()
                if len(self._pools) >= MAX_IDLE_CONNECTIONS:
                    self._pools.clear()
                self._pools[key] = None if proxy_for(url) else self._open_pool(url)
            return self._pools[key]

    def _open_pool(self, url: str) -> HTTPConnectionPool:
        adapter = self._session.get_adapter(url)
        assert isinstance(adapter, _Adapter)
        pool = adapter.get_connection_with_tls_context(
            requests.Request("GET", url).prepare(), verify=self._verify, proxies={}
        )
        assert isinstance(pool, HTTPConnectionPool)
        adapter.cert_verify(pool, url, self._verify, None)
        return pool

    def _mount_tls(self) -> None:
        adapter = self._session.adapters.get("https://")
        if not isinstance(adapter, _Adapter):
            context = self._context() if self._context is not None else None
            self._session.mount("https://", _Adapter(context, self._most))

    def _send_by_proxy(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None, timeout: tuple[float, float]
    ) -> Answer:
        response = self._session.request(
            method,
            url,
            data=body,
            headers=dict(headers),
            timeout=timeout,
            allow_redirects=False,
            stream=True,
            verify=self._verify,
        )
        return Answer(method, url, response.raw)


class _Head:
    """A stream whose lines are the head of an answer; `ended` says that it ended within them."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.ended = False

    def readline(self, *limit: int) -> bytes:
        """Return the next line."""
        line: bytes = self._stream.readline(*limit)
        self.ended = self.ended or not line
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _WholeHeadResponse(http.client.HTTPResponse):
    """An answer whose head is whole: the stock class takes the end of the connection for the end of the headers, and a
    cut answer for one without `Location`, digest or challenge."""

    def begin(self) -> None:
        """Read the head."""
        stream: Any = self.fp
        head: Any = _Head(stream)
        self.fp = head
        try:
            super().begin()
        finally:
            if self.fp is head:
                self.fp = stream
        if head.ended:
            raise http.client.IncompleteRead(b"")


class _TlsConnection(HTTPSConnection):
    """A connection over TLS."""

    response_class = _WholeHeadResponse


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _PlainConnection(HTTPConnection):
    """A connection without TLS, for which the kernel sends slices of files."""

    response_class = _WholeHeadResponse

    def send(self, data: Any) -> None:
        """Send bytes or a slice of a file."""
        if not isinstance(data, FileSlice):
            super().send(data)
            return
        assert self.sock is not None
        # from the page cache into the socket: the bytes never enter this process
        try:
            sent = self.sock.sendfile(data.stream, data.offset, data.length)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise HostError(f"cannot read {data.what}: {error.strerror}", hint="the disk may be damaged") from error
        data.check(sent)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _Adapter(HTTPAdapter):
    """Connections with a TLS context of our own, which already holds every authority."""

    def __init__(self, context: ssl.SSLContext | None, most: int) -> None:
        self._extra: dict[str, Any] = {"ssl_context": context, "blocksize": BLOCK_BYTES}
        # blocking, as a pool that does not opens a connection for every thread and throws it away after one request
        super().__init__(pool_connections=MAX_IDLE_CONNECTIONS, pool_maxsize=most, pool_block=True, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **{**kwargs, **self._extra})
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return super().proxy_manager_for(*args, **{**kwargs, **self._extra})

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        # the stock method loads certifi's authorities into the pool, next to the context that holds what is configured
        conn.cert_reqs = "CERT_REQUIRED" if verify else "CERT_NONE"


def speaks_tls(host: str, *, timeout_s: float) -> bool:
    """Tell whether `HOST[:PORT]` answers a TLS greeting. Nothing is trusted, and nothing else is sent.

    Raises:
        OSError: the server does not answer.
    """
    try:
        _greet(host, port=443, timeout_s=timeout_s)
    except ssl.SSLError as error:
        return not speaks_no_tls(error)
    return True


def answers_tls(host: str, *, timeout_s: float) -> bool:
    """Tell whether `HOST[:PORT]` certainly speaks TLS: it completes a greeting, or refuses it with an alert of TLS.

    For a diagnosis, after plain HTTP failed: a server that is silent, or ends the connection, does not count.
    """
    try:
        _greet(host, port=80, timeout_s=timeout_s)
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)
    except OSError:
        return False
    return True


def _greet(host: str, *, port: int, timeout_s: float) -> None:
    """Exchange the greeting of TLS with `HOST[:PORT]`, and hang up. `port` is for a host that names none."""
    parts = split_url(f"//{host}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    name = parts.hostname or host
    with socket.create_connection((name, parts.port or port), timeout=timeout_s) as raw:
        context.wrap_socket(raw, server_hostname=name).close()
