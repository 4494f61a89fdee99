"""A server whose clients are slow, many, or wrong: each ends in time, and none takes another's place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h11
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from airferry.events import Event, Warned
from airferry.far.serve.admission import (
    Admission,
    AdmittingSocket,
    ClientLimits,
    client_address,
    raised_descriptor_limit,
)
from airferry.far.serve.complaints import Complaints
from airferry.far.serve.protocol import REFUSED, SENDFILE, BoundedProtocol, BrokenOff
from airferry.far.serve.server import Listener, Service

QUICK = ClientLimits(request_s=0.1, stall_s=0.2)
ENDS_WITHIN_S = 5
FILE_BYTES = 64 << 20


class Answers:
    """An application that answers `/` at once, `/wait` when it is told to, and otherwise more than buffers hold."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.proceed = threading.Event()
        self.broken_off = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/refused":
            await send({"type": REFUSED})
        while scope["path"] in ("/wait", "/refused") and not self.proceed.is_set():
            await asyncio.sleep(0.005)
        size = 2 if scope["path"] in ("/", "/wait", "/refused") else FILE_BYTES
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        try:
            if scope["path"] == "/file":
                with self.file.open("rb", buffering=0) as stream:
                    await send({"type": SENDFILE, "stream": stream, "offset": 0, "count": size})
                await send({"type": "http.response.body"})
                return
            while size:
                count = min(size, 1 << 20)
                size -= count
                await send({"type": "http.response.body", "body": bytes(count), "more_body": size > 0})
        except BrokenOff:
            self.broken_off.set()
            raise


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(FILE_BYTES)
    return Answers(tmp_path / "sparse")


@contextmanager
def served(app: ASGIApp, limits: ClientLimits, events: list[Event] | None = None) -> Iterator[int]:
    """Serve an application on a free port while the block runs."""
    listener = Listener("127.0.0.1:0")
    complaints = Complaints((events if events is not None else []).append)
    service = Service(app, listener, limits=limits, complaints=complaints)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        yield int(listener.address.rpartition(":")[2])
    finally:
        service.stop()
        thread.join()


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.socket()
    connection.settimeout(ENDS_WITHIN_S)
    # less than what is sent, so that the server has to wait for a client that does not read
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection.bind((source, 0))
    connection.connect(("127.0.0.1", port))
    return connection


def request(path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def read_to_end(connection: socket.socket) -> bytes:
    """Return what arrives until the server ends the connection; a reset is an end as well."""
    data = b""
    try:
        while block := connection.recv(65536):
            data += block
    except ConnectionResetError:
        pass
    return data


def trickle(connection: socket.socket, data: bytes) -> float:
    """Send data byte by byte until the server ends the connection, and return how long that took."""
    started = time.monotonic()
    try:
        for byte in data * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.01)
            assert time.monotonic() - started < ENDS_WITHIN_S, "the connection was not ended"
    except (ConnectionResetError, BrokenPipeError):
        pass
    return time.monotonic() - started


def test_headers_that_are_not_finished_in_time_end_the_connection(answers: Answers) -> None:
    with served(answers, QUICK) as port:
        with closing(connect(port)) as silent_one, closing(connect(port)) as partial:
            partial.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            assert read_to_end(partial).startswith(b"HTTP/1.1 408 ")
            assert read_to_end(silent_one) == b""
        for before in (b"", request()):
            with closing(connect(port)) as slow:
                slow.sendall(before + b"GET / HTTP/1.1\r\nX: ")
                assert trickle(slow, b"a") >= QUICK.request_s / 2


def test_a_body_that_trickles_in_holds_no_connection(answers: Answers) -> None:
    with served(answers, QUICK) as port, closing(connect(port)) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        trickle(slow, b"a")


def test_a_request_after_another_in_time_is_answered(answers: Answers) -> None:
    with served(answers, QUICK) as port, closing(connect(port)) as connection:
        for _time in range(4):
            time.sleep(QUICK.request_s / 2)
            connection.sendall(request() + request())
            received = b""
            while received.count(b"HTTP/1.1 200") < 2 or not received.endswith(b"\0\0"):
                more = connection.recv(65536)
                assert more, "the connection was ended"
                received += more


def test_an_answer_that_takes_its_time_is_not_ended(answers: Answers) -> None:
    with served(answers, QUICK) as port, closing(connect(port)) as connection:
        connection.sendall(request("/wait"))
        time.sleep(QUICK.request_s * 2)
        answers.proceed.set()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_server_ends_whatever_state_its_connections_are_in(answers: Answers) -> None:
    """uvicorn's shutdown says goodbye in states that have none; TLS keeps a connection in one after a 408."""
    events: list[Event] = []
    started = time.monotonic()
    with contextlib.ExitStack() as clients, served(answers, QUICK, events) as port:
        partial, *unread = [clients.enter_context(closing(connect(port))) for _time in range(3)]
        partial.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for connection, path in zip(unread, ("/file", "/chunks"), strict=True):
            connection.sendall(request(path))
        assert read_some(partial).startswith(b"HTTP/1.1 408")
    assert events == [] and time.monotonic() - started < ENDS_WITHIN_S


@pytest.mark.parametrize("state", [h11.SEND_BODY, h11.ERROR, h11.CLOSED])
def test_a_connection_is_shut_down_in_any_state(answers: Answers, state: Any) -> None:
    aborted: list[bool] = []
    config = uvicorn.Config(answers, log_config=None)
    limits = ClientLimits()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        protocol = BoundedProtocol(config, ServerState(), limits, Admission(limits, lambda _text: None))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    protocol.transport = SimpleNamespace(abort=lambda: aborted.append(True), close=lambda: aborted.append(False))
    protocol.conn._cstate.states[h11.SERVER] = state
    protocol.shutdown()
    assert len(aborted) == 1


@pytest.mark.parametrize(("path", "makes_room"), [("/refused", True), ("/wait", False)])
def test_a_client_that_is_kept_waiting_for_its_refusal_makes_room(
    answers: Answers, path: str, makes_room: bool
) -> None:
    with served(answers, ClientLimits(connections=1, connections_per_address=1)) as port, closing(connect(port)) as one:
        one.sendall(request(path))
        time.sleep(0.05)
        with closing(connect(port)) as other:
            other.sendall(request())
            assert read_some(other).startswith(b"HTTP/1.1 200") is makes_room
        answers.proceed.set()
        assert read_some(one).startswith(b"HTTP/1.1 200") is not makes_room


def read_some(connection: socket.socket) -> bytes:
    """Return what arrives first, nothing if the connection is ended."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("path", ["/file", "/chunks"])
def test_a_client_that_does_not_read_is_cut_off(answers: Answers, path: str) -> None:
    events: list[Event] = []
    with served(answers, QUICK, events) as port, closing(connect(port)) as slow:
        slow.sendall(request(path))
        assert answers.broken_off.wait(ENDS_WITHIN_S)
        assert len(read_to_end(slow)) < FILE_BYTES
    assert events == []


@pytest.mark.parametrize("path", ["/file", "/chunks"])
def test_a_client_that_leaves_ends_its_answer(answers: Answers, path: str) -> None:
    with served(answers, ClientLimits()) as port:
        with closing(connect(port)) as gone:
            gone.sendall(request(path))
            gone.recv(100)
        assert answers.broken_off.wait(ENDS_WITHIN_S)


def test_floods_of_nonsense_make_one_line_a_second(answers: Answers) -> None:
    events: list[Event] = []
    started = time.monotonic()
    with served(answers, QUICK, events) as port:
        for _time in range(50):
            with closing(connect(port)) as connection:
                connection.sendall(b"\0\0\0\r\n\r\n")
                assert read_to_end(connection).startswith(b"HTTP/1.1 400")
    assert 1 <= len(events) <= 1 + time.monotonic() - started


def test_complaints_that_were_left_out_are_counted() -> None:
    events: list[Event] = []
    now = [0.0]
    complaints = Complaints(events.append, clock=lambda: now[0])
    with complaints.listening():
        for number in range(5):
            complaints.complain(f"text {number}")
        now[0] = 1.0
        logging.getLogger("asyncio").error("of the loop\nwith details", exc_info=OSError("why"))
    assert events == [Warned("text 0"), Warned("of the loop: why (4 more warnings not shown)")]


@pytest.fixture
def admit() -> Iterator[Callable[..., Any]]:
    """Give a function that connects from an address, and returns both ends, ours None if it was refused."""
    listening = AdmittingSocket(socket.create_server(("127.0.0.1", 0)))
    listening.setblocking(False)
    said: list[str] = []
    listening.admission = Admission(ClientLimits(connections=4, connections_per_address=3), said.append)
    ends: list[socket.socket] = [listening]

    def connecting(source: str) -> tuple[socket.socket, Any]:
        client = connect(listening.getsockname()[1], source)
        ends.append(client)
        try:
            accepted, _peer = listening.accept()
        except BlockingIOError:
            return client, None
        ends.append(accepted)
        return client, accepted

    connecting.admission = listening.admission  # type: ignore[attr-defined]
    connecting.said = said  # type: ignore[attr-defined]
    yield connecting
    for end in ends:
        end.close()


def test_an_address_beyond_its_share_loses_its_connection_that_waited_longest(admit: Any) -> None:
    pairs = [admit("127.0.0.2") for _time in range(3)]
    admit.admission.answer(pairs[0][1].peer)
    _client, fourth = admit("127.0.0.2")
    assert fourth is not None and pairs[1][0].recv(1) == b"", "the oldest that waits makes room"
    assert "more than 3 from one address" in admit.said[0] and "127.0.0.2" in admit.said[0]
    for connection in (pairs[2][1], fourth):
        admit.admission.answer(connection.peer)
    refused, nothing = admit("127.0.0.2")
    assert nothing is None and read_to_end(refused) == b"", "those that are answered are never touched"
    assert admit("127.0.0.3")[1] is not None, "another address has its own share"


def test_in_total_the_greediest_address_makes_room(admit: Any) -> None:
    for_one = admit("127.0.0.9")
    greedy = [admit("127.0.0.2") for _time in range(3)]
    late = admit("127.0.0.3")
    assert late[1] is not None and greedy[0][0].recv(1) == b"" and "more than 4 in total" in admit.said[-1]
    for accepted in (for_one[1], greedy[1][1], greedy[2][1], late[1]):
        admit.admission.answer(accepted.peer)
    assert admit("127.0.0.4")[1] is None, "nothing waits"
    admit.admission.wait(greedy[1][1].peer)
    assert admit("127.0.0.4")[1] is not None


def test_the_kernel_holds_little_for_a_client_that_does_not_read(admit: Any) -> None:
    _client, accepted = admit("127.0.0.2")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024


def test_what_is_closed_is_counted_no_more(admit: Any) -> None:
    for _time in range(10):
        pairs = [admit("127.0.0.2") for _each in range(3)]
        for _client, accepted in pairs:
            accepted.close()
            accepted.close()
    assert admit.said == []


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("x", "x"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(host: str, counted: str) -> None:
    assert client_address(host) == counted


def test_connections_stay_below_the_limit_of_descriptors() -> None:
    assert ClientLimits().within(10**6) == ClientLimits()
    few = ClientLimits().within(1024)
    assert (few.connections, few.connections_per_address) == (448, 112)
    assert ClientLimits().within(64).connections == 16 and ClientLimits().within(1).connections == 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with raised_descriptor_limit(200) as descriptors:
            assert descriptors == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(528, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
