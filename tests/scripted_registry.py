"""A registry on loopback that does what a test says: correct by default, with faults put in its way."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit


@dataclass(slots=True)
class Call:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    number: int = 0


Fault = Callable[["Exchange"], bool]


class Exchange(http.server.BaseHTTPRequestHandler):
    """One request. A fault that returns True has answered it, or cut it off."""

    protocol_version = "HTTP/1.1"
    # head and body are two segments, and a client that delays its ACK would hold the second one up for 40 ms
    disable_nagle_algorithm = True
    registry: ScriptedRegistry
    call: Call

    def answer(self, status: int, data: bytes = b"", **headers: str) -> bool:
        """Answer in full."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        return True

    def read_body(self) -> bytes:
        """Read the whole body."""
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def reset(self) -> bool:
        """Cut the connection hard."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        return True

    def handle_any(self) -> None:
        """Let the faults have the request, then serve it."""
        parts = urlsplit(self.path)
        registry = self.registry
        with registry.lock:
            self.call = Call(self.command, parts.path, parse_qs(parts.query), dict(self.headers), len(registry.calls))
            registry.calls.append(self.call)
            faults = list(registry.faults)
        for fault in faults:
            if fault(self):
                return
        registry.serve(self)

    def handle(self) -> None:
        with suppress(OSError, ValueError):
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class ScriptedRegistry:
    """Blobs and manifests in memory, and a list of faults that see each request first."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    sessions: dict[str, bytes] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    address: str = ""
    ranges: bool = True
    mounts: bool = False

    def count(self, method: str, pattern: str = "") -> int:
        """Return how many requests of a method there were whose path has a pattern in it."""
        return sum(call.method == method and re.search(pattern, call.path) is not None for call in self.calls)

    def serve(self, exchange: Exchange) -> None:
        """Serve a request as a registry without referrers API should."""
        call, body = exchange.call, b""
        if call.method in ("PUT", "PATCH", "POST"):
            body = exchange.read_body()
        found = re.fullmatch(r"/v2/(.+)/(blobs|manifests)/(.*)", call.path)
        with self.lock:
            if found is None:
                exchange.answer(200 if call.path == "/v2/" else 404)
            elif found.group(2) == "manifests":
                self._manifest(exchange, found.group(1), found.group(3), body)
            elif found.group(3).startswith("uploads/"):
                self._upload(exchange, found.group(1), found.group(3).removeprefix("uploads/"), body)
            else:
                self._blob(exchange, found.group(3))

    def _manifest(self, exchange: Exchange, name: str, reference: str, body: bytes) -> None:
        key = f"{name}@{reference}"
        if exchange.call.method == "PUT":
            digest = sha256(body)
            kind = exchange.call.headers.get("Content-Type", "")
            self.manifests[f"{name}@{digest}"] = self.manifests[key] = (body, kind)
            exchange.answer(201, Docker_Content_Digest=digest)
        elif exchange.call.method == "DELETE":
            exchange.answer(202 if self.manifests.pop(key, None) else 404)
        elif key in self.manifests:
            data, kind = self.manifests[key]
            length = {"Content_Length": str(len(data))} if exchange.call.method == "HEAD" else {}
            exchange.answer(200, data, Content_Type=kind, Docker_Content_Digest=sha256(data), **length)
        else:
            exchange.answer(404, error_document("MANIFEST_UNKNOWN"))

    def _blob(self, exchange: Exchange, digest: str) -> None:
        data = self.blobs.get(digest)
        if data is None:
            exchange.answer(404, error_document("BLOB_UNKNOWN"))
        elif exchange.call.method == "HEAD":
            exchange.answer(200, Content_Length=str(len(data)))
        elif (asked := exchange.call.headers.get("Range")) and self.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                exchange.answer(416)
            else:
                exchange.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            exchange.answer(200, data)

    def _upload(self, exchange: Exchange, name: str, session: str, body: bytes) -> None:
        method = exchange.call.method
        if method == "POST" and self.mounts and exchange.call.query.get("mount", [""])[0] in self.blobs:
            exchange.answer(201)
        elif method == "POST":
            session = f"s{exchange.call.number}"
            self.sessions[session] = b""
            exchange.answer(202, Location=f"/v2/{name}/blobs/uploads/{session}?_state=secret-state")
        elif session not in self.sessions:
            exchange.answer(404, error_document("BLOB_UPLOAD_UNKNOWN"))
        elif method == "DELETE":
            del self.sessions[session]
            exchange.answer(204)
        else:
            self.sessions[session] += body
            size = len(self.sessions[session])
            place = {"Location": f"/v2/{name}/blobs/uploads/{session}?_state={size}", "Range": f"0-{max(0, size - 1)}"}
            if method != "PUT":
                exchange.answer(202 if method == "PATCH" else 204, **place)
                return
            data = self.sessions.pop(session)
            digest = exchange.call.query["digest"][0]
            if sha256(data) != digest:
                exchange.answer(400, error_document("DIGEST_INVALID"))
                return
            self.blobs[digest] = data
            exchange.answer(201, Docker_Content_Digest=digest)


def sha256(data: bytes) -> str:
    """Return the digest of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def error_document(code: str, message: str = "as scripted") -> bytes:
    """Return an error as registries write it."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def times(count: int, matches: Callable[[Call], bool], then: Fault) -> Fault:
    """Return a fault that strikes the first `count` requests that match."""
    left = [count]
    lock = threading.Lock()

    def fault(exchange: Exchange) -> bool:
        with lock:
            if not left[0] or not matches(exchange.call):
                return False
            left[0] -= 1
        return then(exchange)

    return fault


@contextmanager
def run_scripted(faults: list[Fault] | None = None) -> Iterator[ScriptedRegistry]:
    """Run a scripted registry on loopback until the block ends."""
    registry = ScriptedRegistry(faults=faults or [])
    handler = type("Bound", (Exchange,), {"registry": registry})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    registry.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
