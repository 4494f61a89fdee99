"""uvicorn with what it has no settings for: files sent by sendfile(2), time-outs, and caps of connections.

ASGI's `http.response.pathsend` does not do, as it names a path: what is sent here is the open file that was checked,
or a part of it. Serves HTTP/1.1 only, and knows nothing of registries.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from airferry.far.serve.admission import Admission, AdmittingSocket, ClientLimits

BACKLOG = 1024
ACCEPTED_AT_A_TIME = 64
# a client that does not take the rest of an answer, or the end of TLS, is cut off
CLOSE_S = 5
# what is held for a client that reads slowly; asyncio's own limit is 512 KiB with TLS
WRITE_BUFFER_BYTES = 64 * 1024
# an extension and its message: `stream` is an open file, of which `count` bytes are sent from `offset`
SENDFILE = "airferry.sendfile"
# an extension and its message: the request is refused, later; until then its connection may make room for others
REFUSED = "airferry.refused"


class BrokenOff(ConnectionError):
    """The connection cannot be used any more: the client went away, or what it was promised cannot be sent."""


class _Length:
    """Stands in for a file's bytes where h11 counts what was sent."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class BoundedProtocol(H11Protocol):
    """A connection that sends files, unless TLS has to see the bytes, and on which nothing takes forever.

    At any time, either a request is being answered, and the client takes what is sent to it within `stall_s`; or a
    timer runs, and the connection ends unless the headers of a request are complete within `request_s`. uvicorn has a
    timer only between requests, which a single byte stops.
    """

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, limits: ClientLimits, admission: Admission
    ) -> None:
        """Prepare for a connection of a server."""
        super().__init__(config, server_state, {})
        self._limits = limits
        self._admission = admission
        self._timer: asyncio.TimerHandle | None = None
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin as uvicorn does, with the application wrapped."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._peer = transport.get_extra_info("peername")
        self._sends_files = transport.get_extra_info("sslcontext") is None
        self.app = self._bounding(self.app)
        self._set_timer(self._limits.request_s, self._end_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        """End as uvicorn does."""
        self._stop_timer()
        super().connection_lost(exc)
        self._lost.set()

    def handle_events(self) -> None:
        """Handle what was read; stop the timer if it completed a request's headers."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_timer()
            self._admission.answer(self._peer)

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have been read already."""
        self._set_timer(self._limits.request_s, self._end_overdue)
        self._admission.wait(self._peer)
        super().on_response_complete()

    def shutdown(self) -> None:
        """End an idle connection now, and any other one after its answer."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            # uvicorn says goodbye in any state; this one was about to end anyway
            self._abort()

    def _abort(self) -> None:
        # a TLS transport that was closed twice forgets its protocol, which `abort` of Python 3.11 then misses; it ends
        # by the time-out for the end of TLS
        with contextlib.suppress(AttributeError):
            self.transport.abort()

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_overdue(self) -> None:
        """End a connection that sent no request in time, or a body that is not awaited, or does not take its answer."""
        if self.transport.is_closing() or self.conn.our_state is not h11.IDLE:
            self._abort()
            return
        if self.conn.trailing_data[0]:
            headers = [(b"connection", b"close"), (b"content-length", b"0")]
            response = h11.Response(status_code=408, headers=headers, reason=b"Request Timeout")
            self.transport.write(self.conn.send(response) or b"")
            self.conn.send(h11.EndOfMessage())
        self.transport.close()
        self._set_timer(CLOSE_S, self._abort)

    def _bounding(self, app: ASGIApp) -> ASGIApp:
        async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_on(message: Message) -> None:
                # uvicorn drops what is sent to a client that has left, so that files would be read for nothing
                if self.transport.is_closing():
                    raise BrokenOff("the client has left")
                if message["type"] == REFUSED:
                    self._admission.wait(self._peer)
                    return
                try:
                    async with asyncio.timeout(self._limits.stall_s):
                        if message["type"] == SENDFILE:
                            await self._send_file(message["stream"], message["offset"], message["count"])
                        else:
                            await send(message)
                except TimeoutError as error:
                    raise BrokenOff("the client does not take what is sent") from error

            offered: dict[str, dict[str, Any]] = {SENDFILE: {}, REFUSED: {}} if self._sends_files else {REFUSED: {}}
            scope["extensions"] = {**scope.get("extensions", {}), **offered}
            try:
                await app(scope, receive, send_on)
            except BrokenOff:
                self._abort()
                # uvicorn complains of an application that ends before its answer unless the connection has ended
                await self._lost.wait()

        return bounded

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
    """uvicorn with limits, which ends on SIGINT and SIGTERM without raising them once more."""

    def __init__(self, config: uvicorn.Config, limits: ClientLimits, complain: Callable[[str], None]) -> None:
        """Take what is granted to clients, and where to complain of those that want more."""
        super().__init__(config)
        self.limits = limits
        self._complain = complain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on sockets that admit connections, with time-outs for TLS too: uvicorn has no settings for these."""
        loop = asyncio.get_running_loop()
        admission = Admission(self.limits, self._complain)
        seconds = self.limits.request_s if self.config.ssl else None
        self.servers = []
        for listening in sockets or []:
            assert isinstance(listening, AdmittingSocket)
            listening.admission = admission
            server = await loop.create_server(
                lambda: BoundedProtocol(self.config, self.server_state, self.limits, admission),
                sock=listening,
                ssl=self.config.ssl,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=CLOSE_S if self.config.ssl else None,
                backlog=ACCEPTED_AT_A_TIME,
            )
            # for asyncio this is also how many it accepts before it does anything else
            listening.listen(BACKLOG)
            self.servers.append(server)
        self.started = True

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
