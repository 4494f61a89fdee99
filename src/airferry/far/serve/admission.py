"""Which connections may be open: capped in total and by address, below the process's limit of descriptors.

They are counted where the kernel hands them over, before TLS and HTTP. At a cap, a connection that waits for a request
makes room for a new one; those that are being answered are never touched. Speaks no HTTP.
"""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

# descriptors for all but clients: standard streams, the bundle, the event loop, connections that are being closed
RESERVED_DESCRIPTORS = 128
MOST_CLOSING = 32
# a client that is answered has two descriptors here: its connection and the blob
DESCRIPTORS_PER_CLIENT = 2
# what the kernel holds for a client that has not taken what was sent before; its own limit is 4 MiB, so that 1000 slow
# readers took 1.8 GiB of its memory for TCP, from where on it slows down all connections
UNSENT_BYTES = 128 * 1024
# an IPv6 client may use all of its network's addresses
IPV6_PREFIX = 64

Peer = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What clients are granted.

    `request_s` is how long a connection may take until a request's headers are complete, `stall_s` how long a client
    may take for what is sent to it at a time, 4 MiB at most.
    """

    connections: int = 2048
    connections_per_address: int = 512
    request_s: float = 10
    stall_s: float = 120

    def within(self, descriptors: int) -> ClientLimits:
        """Return the same limits with as many connections as there are descriptors for; an address keeps its share."""
        reserved = min(RESERVED_DESCRIPTORS, descriptors // 2)
        possible = max(1, (descriptors - reserved) // DESCRIPTORS_PER_CLIENT)
        if possible >= self.connections:
            return self
        share = max(1, possible * self.connections_per_address // self.connections)
        return replace(self, connections=possible, connections_per_address=share)


@contextlib.contextmanager
def raised_descriptor_limit(connections: int) -> Iterator[int]:
    """Allow this process the descriptors that this many connections take, as far as it may, and give how many it has.

    The limit is as it was when the block ends.
    """
    wanted = RESERVED_DESCRIPTORS + DESCRIPTORS_PER_CLIENT * connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = soft
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        except (OSError, ValueError):
            raised = soft
    try:
        yield wanted if raised == resource.RLIM_INFINITY else raised
    finally:
        if raised != soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@lru_cache(maxsize=4096)
def client_address(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address.packed, IPV6_PREFIX), strict=False))


class Admission:
    """Counts open connections, and decides who is let in. Lives on the event loop's thread."""

    def __init__(self, limits: ClientLimits, complain: Callable[[str], None]) -> None:
        """Take the limits; `complain` is called for each connection that is closed because of them."""
        self._limits = limits
        self._complain = complain
        self._counted: Counter[str] = Counter()
        self._open: dict[Peer, AdmittedSocket] = {}
        # of each address, those without a request under way, the one that has waited longest first
        self._waiting: dict[str, dict[Peer, None]] = {}
        self._closing = 0

    def admit(self, connection: AdmittedSocket) -> bool:
        """Count a new connection, if need be in place of one that waits; False if it has to be closed."""
        address = connection.address
        if self._counted[address] >= self._limits.connections_per_address:
            self._complain(
                f"closed a connection from `{address}`: more than {self._limits.connections_per_address} from one "
                "address"
            )
            if not self._make_room(address):
                return False
        elif self._counted.total() >= self._limits.connections:
            greediest = max(self._waiting, key=self._counted.__getitem__, default=None)
            self._complain(
                f"closed a connection from `{greediest or address}`: more than {self._limits.connections} in total"
            )
            if greediest is None or not self._make_room(greediest):
                return False
        self._counted[address] += 1
        self._open[connection.peer] = connection
        self.wait(connection.peer)
        return True

    def wait(self, peer: Peer) -> None:
        """Note that a connection waits for its next request."""
        if (connection := self._open.get(peer)) is not None:
            self._waiting.setdefault(connection.address, {})[peer] = None

    def answer(self, peer: Peer) -> None:
        """Note that a connection's request is being answered."""
        if (connection := self._open.get(peer)) is not None:
            self._stop_waiting(connection)

    def closed(self, connection: AdmittedSocket) -> None:
        """Note that a connection's descriptor is free again."""
        if self._open.get(connection.peer) is connection:
            self._forget(connection)
        else:
            self._closing -= 1

    def _make_room(self, address: str) -> bool:
        """End the connection of an address that has waited longest for a request; False if none waits."""
        waiting = self._waiting.get(address)
        if not waiting or self._closing >= MOST_CLOSING:
            return False
        connection = self._open[next(iter(waiting))]
        self._forget(connection)
        self._closing += 1
        # the event loop reads the end of the stream next, and closes it then
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        return True

    def _forget(self, connection: AdmittedSocket) -> None:
        self._stop_waiting(connection)
        del self._open[connection.peer]
        self._counted[connection.address] -= 1
        if not self._counted[connection.address]:
            del self._counted[connection.address]

    def _stop_waiting(self, connection: AdmittedSocket) -> None:
        waiting = self._waiting.get(connection.address, {})
        waiting.pop(connection.peer, None)
        if not waiting:
            self._waiting.pop(connection.address, None)


class AdmittedSocket(socket.socket):
    """An accepted connection that is counted until it is closed."""

    def __init__(self, connection: socket.socket, peer: Peer, admission: Admission) -> None:
        """Take over a connection."""
        super().__init__(fileno=connection.detach())
        self.peer = peer
        self.address = client_address(str(peer[0]))
        self._admission: Admission | None = admission if admission.admit(self) else None
        self.admitted = self._admission is not None

    def close(self) -> None:
        """Close it. Idempotent."""
        super().close()
        if self._admission is not None:
            self._admission.closed(self)
            self._admission = None


class AdmittingSocket(socket.socket):
    """A listening socket that closes what is not admitted, before anything else hears of it."""

    def __init__(self, listening: socket.socket) -> None:
        """Take over a socket that listens."""
        super().__init__(fileno=listening.detach())
        # connections inherit it
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self.admission = Admission(ClientLimits(), lambda _text: None)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection that is admitted, as asyncio's event loop calls it."""
        while True:
            connection, peer = super().accept()
            admitted = AdmittedSocket(connection, peer, self.admission)
            if admitted.admitted:
                return admitted, peer
            admitted.close()
