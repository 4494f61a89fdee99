"""uvicorn with ASGI's `http.response.pathsend`: whole files go from the page cache to the socket by sendfile(2).

uvicorn has no such extension (0.54); with one that has, this module can go. Serves HTTP/1.1 only, and
knows nothing of registries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

PATHSEND = "http.response.pathsend"


class _Length:
    """Stands in for a file's bytes where h11 counts what was sent."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class FileProtocol(H11Protocol):
    """A connection that offers `http.response.pathsend` to applications, unless TLS has to see the bytes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin as uvicorn does, with the application wrapped."""
        super().connection_made(transport)
        if transport.get_extra_info("sslcontext") is None:
            self.app = self._offering(self.app)

    def _offering(self, app: ASGIApp) -> ASGIApp:
        async def offer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_paths(message: Message) -> None:
                if message["type"] != PATHSEND:
                    await send(message)
                    return
                await self._send_file(Path(message["path"]))
                await send({"type": "http.response.body", "body": b"", "more_body": False})

            if scope["type"] == "http":
                scope["extensions"] = {**scope.get("extensions", {}), PATHSEND: {}}
            await app(scope, receive, send_paths)

        return offer

    async def _send_file(self, path: Path) -> None:
        """Send a file after the headers, which said how long it is. A client that went away is not an error."""
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            self.conn.send_with_data_passthrough(h11.Data(data=_Length(size)))  # type: ignore[arg-type]
            if size == 0:
                return
            try:
                sent = await self.loop.sendfile(self.transport, stream, 0, size)
            except (ConnectionError, RuntimeError):
                sent = -1
            if sent != size:
                self.transport.abort()


class QuietServer(uvicorn.Server):
    """A server that ends on SIGINT and SIGTERM without raising them once more: to end it is what they are for."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the two signals while the block runs; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
