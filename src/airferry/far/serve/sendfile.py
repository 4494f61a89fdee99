"""uvicorn with parts of files going from the page cache to the socket by sendfile(2).

ASGI's `http.response.pathsend` does not do, as it names a path: what is sent here is the open file that was checked,
or a part of it. Serves HTTP/1.1 only, and knows nothing of registries.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import IO, Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# an extension and its message: `stream` is an open file, of which `count` bytes are sent from `offset`
SENDFILE = "airferry.sendfile"


class BrokenOff(ConnectionError):
    """The connection cannot be used any more: the client went away, or what it was promised cannot be sent."""


class _Length:
    """Stands in for a file's bytes where h11 counts what was sent."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class FileProtocol(H11Protocol):
    """A connection that sends files, unless TLS has to see the bytes, and that an application can break off."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin as uvicorn does, with the application wrapped."""
        super().connection_made(transport)
        self._lost = asyncio.Event()
        self._sends_files = transport.get_extra_info("sslcontext") is None
        self.app = self._offering(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        """End as uvicorn does."""
        super().connection_lost(exc)
        self._lost.set()

    def _offering(self, app: ASGIApp) -> ASGIApp:
        async def offer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_on(message: Message) -> None:
                # uvicorn drops what is sent to a client that has left, so that files would be read for nothing
                if self.transport.is_closing():
                    raise BrokenOff("the client has left")
                if message["type"] == SENDFILE:
                    await self._send_file(message["stream"], message["offset"], message["count"])
                else:
                    await send(message)

            if self._sends_files:
                scope["extensions"] = {**scope.get("extensions", {}), SENDFILE: {}}
            try:
                await app(scope, receive, send_on)
            except BrokenOff:
                self.transport.abort()
                # uvicorn complains of an application that ends before its answer unless the connection has ended
                await self._lost.wait()

        return offer

    async def _send_file(self, stream: IO[bytes], offset: int, count: int) -> None:
        """Send a part of a file after the headers, which said how long it is; less if the file has ended.

        Raises:
            BrokenOff: the client has left.
        """
        self.conn.send_with_data_passthrough(h11.Data(data=_Length(count)))  # type: ignore[arg-type]
        try:
            await self.loop.sendfile(self.transport, stream, offset, count)
        except (ConnectionError, RuntimeError) as error:
            raise BrokenOff(str(error)) from error


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
