"""A proxy on loopback in front of a real registry: passes requests on as they are, unless a test puts faults in.

Faults are those of `scripted_registry`, and more that need the real answer: cut, damaged or stalled bodies.
"""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripted_registry import Call, Exchange, Fault, error_document

BLOCK = 64 * 1024
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class FaultProxy:
    """Counts and limits what goes through; faults see each request first.

    `allowed` uploads may be under way at once, what is above is answered with `refusal`; a request's body may have
    `body_limit` bytes; an upload takes `hold_s` at the least.
    """

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    address: str = ""
    allowed: int | None = None
    refusal: int = 429
    body_limit: int | None = None
    hold_s: float = 0.0
    active: int = 0
    refused: int = 0
    uploaded_bytes: int = 0
    on_upload: Callable[[], None] | None = None

    def uploads(self) -> list[Call]:
        """Return the calls that carried bytes of blobs."""
        return [call for call in self.calls if is_upload(call)]

    def serve(self, exchange: Exchange) -> None:
        """Pass a request on, within the limits."""
        call = exchange.call
        size = int(call.headers.get("Content-Length", "0"))
        if not is_upload(call):
            self.forward(exchange)
            return
        if self.body_limit is not None and size > self.body_limit:
            exchange.read_body()
            exchange.answer(413, b"<html>Request Entity Too Large</html>", Content_Type="text/html")
            return
        with self.lock:
            if self.on_upload is not None:
                self.on_upload()
            over = self.allowed is not None and self.active >= self.allowed
            self.refused += over
            self.active += not over
        if over:
            exchange.read_body()
            exchange.answer(self.refusal, error_document("TOOMANYREQUESTS"))
            return
        try:
            time.sleep(self.hold_s)
            self.forward(exchange)
        finally:
            with self.lock:
                self.active -= 1

    def forward(
        self,
        exchange: Exchange,
        *,
        request_share: float = 1.0,
        response_share: float = 1.0,
        damage: bool = False,
        stall_s: float = 0.0,
        instead: int | None = None,
    ) -> bool:
        """Pass a request on and its answer back, both as far as the shares say; what is cut ends in a reset.

        With `instead` the answer is dropped for one with that status.
        """
        size = int(exchange.call.headers.get("Content-Length", "0"))
        link = http.client.HTTPConnection(self.upstream, timeout=20)
        try:
            link.putrequest(exchange.command, exchange.path, skip_host=True, skip_accept_encoding=True)
            for name, value in exchange.call.headers.items():
                link.putheader(name, value)
            link.endheaders()
            left = int(size * request_share)
            while left:
                block = exchange.rfile.read(min(BLOCK, left))
                if not block:
                    return exchange.reset()
                left -= len(block)
                with self.lock:
                    self.uploaded_bytes += len(block)
                link.send(block)
            if request_share < 1.0:
                return exchange.reset()
            time.sleep(stall_s)
            answer = link.getresponse()
            if instead is not None:
                return exchange.answer(instead)
            return self._answer(exchange, answer, response_share, damage)
        finally:
            link.close()

    @staticmethod
    def _answer(exchange: Exchange, answer: http.client.HTTPResponse, share: float, damage: bool) -> bool:
        length = int(answer.headers.get("Content-Length", "0"))
        exchange.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                exchange.send_header(name, value)
        exchange.send_header("Content-Length", str(length))
        exchange.end_headers()
        left = 0 if exchange.command == "HEAD" else int(length * share)
        while left:
            block = answer.read(min(BLOCK, left))
            if not block:
                return exchange.reset()
            left -= len(block)
            exchange.wfile.write(bytes([block[0] ^ 1]) + block[1:] if damage else block)
            damage = False
        exchange.wfile.flush()
        return exchange.reset() if share < 1.0 else True


def is_upload(call: Call) -> bool:
    """Tell whether a call carries bytes of a blob."""
    return call.method in ("PUT", "PATCH") and "/uploads/" in call.path and call.headers.get("Content-Length") != "0"


def is_download(call: Call) -> bool:
    """Tell whether a call asks for a blob."""
    return call.method == "GET" and "/blobs/sha256:" in call.path


@contextmanager
def run_fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy in front of a registry's `HOST:PORT` until the block ends."""
    proxy = FaultProxy(upstream)
    handler = type("Bound", (Exchange,), {"registry": proxy})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
