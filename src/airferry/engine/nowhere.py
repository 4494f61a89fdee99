"""A network that leads nowhere and remembers who tried: it runs as a child, in a user namespace, next to a command.

The command sees one interface with a default route. Whatever it sends out arrives here: names get an address that
stands for them, connections are refused, datagrams are bounced, and each attempt is written down with the process that
made it, which waits for an answer at that moment. Nothing is ever sent on. The file is executed by path, with
`python -I`, so it imports nothing of the project and nothing outside the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WATCH_MS = 500
END_GRACE_S = 4.0
LEFT_GRACE_S = 2.0
MAX_LOGGED_REQUESTS = 10_000
MAX_SHOWN_COMMAND = 300
MAX_ANCESTORS = 16
MAX_NAMES = 60_000
OWN_NAME = "container"  # the host name that the starter gives the command
NAME_SERVER = "192.0.2.53"  # any address will do
OUTSIDE, INSIDE = "out", "sink"
OWN_V4, OWN_V6 = "192.0.2.1", "2001:db8::1"
NAMES_V4 = int(ipaddress.IPv4Address("198.18.0.1"))
ETH_ALL, ETH_V4, ETH_V6 = 0x0003, 0x0800, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
DNS_PORT = 53
TYPE_A, TYPE_PTR = 1, 12
PACKET_OUTGOING = 4
IFF_UP, IFF_NOARP = 0x1, 0x80
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
NLM_REQUEST_ACK, NLM_CREATE = 0x5, 0x600
NLMSG_ERROR = 2


# --- the network -----------------------------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    """Return a netlink attribute, padded (rtnetlink(7))."""
    return struct.pack("HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def netlink_request(kind: int, body: bytes, *, flags: int = 0) -> None:
    """Send one rtnetlink request and raise what the kernel answers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.sendall(struct.pack("IHHII", 16 + len(body), kind, NLM_REQUEST_ACK | flags, 1, 0) + body)
        answer = link.recv(65536)
    number = -struct.unpack_from("i", answer, 16)[0]
    if struct.unpack_from("H", answer, 4)[0] == NLMSG_ERROR and number:
        raise OSError(number, os.strerror(number))


def interface(index: int, *, flags: int = 0) -> bytes:
    """Return the head of a request about an interface."""
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def raise_network() -> bool:
    """Enter a network namespace, make both ends of a cable, and let everything lead into it; tell whether IPv6 does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare(CLONE_NEWNET): {os.strerror(number)}")
    netlink_request(RTM_NEWLINK, interface(socket.if_nametoindex("lo"), flags=IFF_UP))
    peer = attribute(1, interface(0) + attribute(3, INSIDE.encode() + b"\0"))
    cable = attribute(18, attribute(1, b"veth\0") + attribute(2, peer))
    try:
        netlink_request(RTM_NEWLINK, interface(0) + attribute(3, OUTSIDE.encode() + b"\0") + cable, flags=NLM_CREATE)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot create a virtual network interface (kernel module veth): {error}"
        ) from error
    for name in (INSIDE, OUTSIDE):
        for setting, value in (("disable_ipv6", "1"), ("accept_dad", "0"), ("autoconf", "0"), ("accept_ra", "0")):
            if name == INSIDE or setting != "disable_ipv6":
                with contextlib.suppress(OSError):
                    Path(f"/proc/sys/net/ipv6/conf/{name}/{setting}").write_text(value, encoding="utf-8")
        netlink_request(RTM_NEWLINK, interface(socket.if_nametoindex(name), flags=IFF_UP | IFF_NOARP))
    route(socket.AF_INET, OWN_V4, 32)
    try:
        route(socket.AF_INET6, OWN_V6, 128)
    except OSError:
        return False
    return True


def route(family: int, own: str, bits: int) -> None:
    """Give the outer end an address and make it the way to everywhere."""
    index = socket.if_nametoindex(OUTSIDE)
    address = socket.inet_pton(family, own)
    no_detection = 0x02 if family == socket.AF_INET6 else 0
    head = struct.pack("BBBBI", family, bits, no_detection, 0, index)
    netlink_request(RTM_NEWADDR, head + attribute(2, address) + attribute(1, address), flags=NLM_CREATE)
    head = struct.pack("BBBBBBBBI", family, 0, 0, 0, 254, 4, 253 if family == socket.AF_INET else 0, 1, 0)
    netlink_request(RTM_NEWROUTE, head + attribute(4, struct.pack("I", index)), flags=NLM_CREATE)


# --- who -------------------------------------------------------------------------------------------------------------


def socket_inode(protocol: str, port: int) -> str | None:
    """Return the inode of the socket that has a local port in this network namespace."""
    wanted = f":{port:04X}"
    for table in (protocol, protocol + "6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(wanted) and fields[9] != "0" and (protocol == "udp" or fields[3] == "02"):
                    return fields[9]
    return None


def owner(inode: str | None) -> int | None:
    """Return the process that holds a socket: the youngest, as a child that was just started may share it."""
    holders = []
    for entry in os.scandir("/proc") if inode else ():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                handles = os.scandir(f"/proc/{entry.name}/fd")
                if any(_leads_to(handle.path) == f"socket:[{inode}]" for handle in handles):
                    holders.append(int(entry.name))
    return max(holders, default=None)


def _leads_to(handle: str) -> str:
    # a process opens and closes files while they are looked at: one that is gone says nothing of the others
    with contextlib.suppress(OSError):
        return Path(handle).readlink().name
    return ""


def process_facts(pid: int | None) -> dict[str, object]:
    """Return what can be said of a process: its number inside, its command line, and its ancestors' numbers."""
    if pid is None:
        return {"pid": None, "command": "", "ancestors": []}
    raw = b""
    with contextlib.suppress(OSError):
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    words = emulated([word.decode("utf-8", "replace") for word in raw.rstrip(b"\0").split(b"\0")])
    chain: list[int] = []
    current: int | None = pid
    while current and current > 1 and len(chain) < MAX_ANCESTORS:
        inner, current = relation(current)
        chain.append(inner)
        if inner == 1:
            break  # what is above the first process of a container has numbers that mean nothing in it
    return {"pid": chain[0] if chain else pid, "command": " ".join(words)[:MAX_SHOWN_COMMAND], "ancestors": chain[1:]}


def emulated(words: list[str]) -> list[str]:
    """Return a command line without the emulator that the kernel put before it, and the path that it put there too."""
    name = Path(words[0]).name
    if len(words) < 2 or not (name.startswith("qemu-") or "-binfmt-" in name):
        return words
    keeps_first = len(words) > 2 and Path(words[1]).name == Path(words[2]).name  # the handler's flag P
    return words[2:] if keeps_first else words[1:]


def relation(pid: int) -> tuple[int, int | None]:
    """Return a process's number in its own namespace, and its parent's number in ours."""
    inner, parent = pid, None
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("PPid:"):
                parent = int(line.split()[1])
            elif line.startswith("NSpid:"):
                inner = int(line.split()[-1])
    return inner, parent


# --- packets ---------------------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def wrap(version: int, source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
    """Return an IP packet (RFC 791, RFC 8200)."""
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source + target + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, source, target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def summed(version: int, source: bytes, target: bytes, protocol: int, segment: bytes, at: int) -> bytes:
    """Return a segment with its checksum over the pseudo-header in place."""
    layout = "!IxxxB" if version == 6 else "!xBH"
    tail = (len(segment), protocol) if version == 6 else (protocol, len(segment))
    value = checksum(source + target + struct.pack(layout, *tail) + segment) or 0xFFFF
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


class Packet:
    """What an IP packet says: version, addresses as bytes, protocol, and what is in it. Fragments have no payload."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.version = raw[0] >> 4
        if self.version == 4:
            length = (raw[0] & 15) * 4
            self.protocol, self.source, self.target = raw[9], raw[12:16], raw[16:20]
            first = struct.unpack_from("!H", raw, 6)[0] & 0x1FFF == 0
            self.payload = raw[length : struct.unpack_from("!H", raw, 2)[0]] if first else b""
        else:
            self.protocol, self.source, self.target = raw[6], raw[8:24], raw[24:40]
            self.payload = raw[40:]

    @property
    def address(self) -> str:
        """Where the packet was to go."""
        return str(ipaddress.ip_address(self.target))

    @property
    def group(self) -> bool:
        """Whether it was for the listener of this network."""
        return ipaddress.ip_address(self.target).is_multicast or self.target == b"\xff" * 4

    def reply(self, protocol: int, payload: bytes) -> bytes:
        """Return a packet from where this one was to go."""
        return wrap(self.version, self.target, self.source, protocol, payload)

    def refuse(self) -> bytes:
        """Return the reset of a TCP connection that this packet opens (RFC 9293, 3.5.2)."""
        source, target, sequence = struct.unpack_from("!HHI", self.payload)
        segment = struct.pack("!HHIIBBHHH", target, source, 0, (sequence + 1) & 0xFFFFFFFF, 0x50, 0x14, 0, 0, 0)
        return self.reply(TCP, summed(self.version, self.target, self.source, TCP, segment, 16))

    def bounce(self) -> bytes:
        """Return the ICMP error "port unreachable" (RFC 792, RFC 4443)."""
        if self.version == 6:
            body = struct.pack("!BBHI", 1, 4, 0, 0) + self.raw[:1000]
            return self.reply(ICMPV6, summed(6, self.target, self.source, ICMPV6, body, 2))
        body = struct.pack("!BBHI", 3, 3, 0, 0) + self.raw[: (self.raw[0] & 15) * 4 + 8]
        return self.reply(ICMP, body[:2] + struct.pack("!H", checksum(body)) + body[4:])

    def answer(self, data: bytes) -> bytes:
        """Return a datagram back to the sender's port."""
        source, target = struct.unpack_from("!HH", self.payload)
        segment = struct.pack("!HHHH", target, source, 8 + len(data), 0) + data
        return self.reply(UDP, summed(self.version, self.target, self.source, UDP, segment, 6))


def question(data: bytes) -> tuple[str, int, int] | None:
    """Return name, type and end of a DNS query's question (RFC 1035, 4.1), or None if it is none."""
    if len(data) < 17 or data[2] & 0x80 or struct.unpack_from("!H", data, 4)[0] != 1:
        return None
    labels: list[str] = []
    at = 12
    while at < len(data) and 0 < data[at] < 64:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii", "backslashreplace"))
        at += 1 + data[at]
    if at + 5 > len(data) or data[at] != 0 or len(labels) > 128:
        return None
    return ".".join(labels).lower(), struct.unpack_from("!H", data, at + 1)[0], at + 5


# --- the sink --------------------------------------------------------------------------------------------------------


class RequestLog:
    """What was asked for and by whom, written to a log, and what is answered. Knows no network."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("a", encoding="utf-8")
        self._seen: set[tuple[object, ...]] = set()
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def handle(self, frame: bytes) -> bytes | None:
        """Note what an Ethernet frame wants and return the frame that answers it, or None.

        Raises:
            struct.error, IndexError, ValueError: it is not a frame that a network stack sends.
        """
        if struct.unpack_from("!H", frame, 12)[0] not in (ETH_V4, ETH_V6):
            return None
        reply = self._reply(Packet(frame[14:]))
        return None if reply is None else frame[6:12] + frame[0:6] + frame[12:14] + reply

    def _reply(self, packet: Packet) -> bytes | None:
        if packet.group or not packet.payload:
            return None
        if packet.protocol == TCP and packet.payload[13] & 0x12 == 0x02:
            self._note("tcp", packet.address, *struct.unpack_from("!HH", packet.payload))
            return packet.refuse()
        if packet.protocol == UDP:
            source, target = struct.unpack_from("!HH", packet.payload)
            if target == DNS_PORT and (answer := self.resolve(packet.payload[8:], source)) is not None:
                return packet.answer(answer)
            self._note("udp", packet.address, source, target)
            return packet.bounce()
        if (packet.protocol, packet.payload[0]) in ((ICMP, 8), (ICMPV6, 128)):
            self._write("icmp", self._names.get(packet.address, packet.address), None, None)
        return None

    def resolve(self, data: bytes, port: int) -> bytes | None:
        """Note a name query that came from a port and return its answer, or None if it is not a query."""
        asked = question(data)
        if asked is None:
            return None
        name, kind, end = asked
        answers = b""
        local = name in ("localhost", OWN_NAME) or name.endswith(".localhost")
        if kind != TYPE_PTR and not local:
            self._write("dns", name, None, owner(socket_inode("udp", port)), answered=self._address(name))
        if kind == TYPE_A:
            address = socket.inet_aton("127.0.0.1" if local else self._address(name))
            answers = struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, 60, 4) + address
        head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, int(bool(answers)), 0, 0)
        return head + data[12:end] + answers

    def _address(self, name: str) -> str:
        """Return the address that stands for a name; the same each time, and one for all that are too many."""
        address = self._addresses.get(name)
        if address is None:
            address = str(ipaddress.IPv4Address(NAMES_V4 + len(self._addresses)))
            if len(self._addresses) < MAX_NAMES:
                self._addresses[name], self._names[address] = address, name
        return address

    def _note(self, protocol: str, address: str, source: int, target: int) -> None:
        self._write(protocol, self._names.get(address, address), target, owner(socket_inode(protocol, source)))

    def _write(self, protocol: str, host: str, port: int | None, pid: int | None, **more: object) -> None:
        key = (protocol, host, port, pid)
        if key in self._seen or len(self._seen) >= MAX_LOGGED_REQUESTS:
            return
        self._seen.add(key)
        record = {"protocol": protocol, "host": host, "port": port, **process_facts(pid), **more}
        self._log.write(json.dumps(record, sort_keys=True) + "\n")
        self._log.flush()


class BlackHole:
    """The inner end of the cable, and a name server for those who ask this host itself."""

    def __init__(self, records: RequestLog, *, with_v6: bool) -> None:
        self._records = records
        self._cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
        self._cable.bind((INSIDE, ETH_ALL))
        self._servers = [name_server(socket.AF_INET)] + ([name_server(socket.AF_INET6)] if with_v6 else [])
        self.sockets = [self._cable, *self._servers]

    def serve(self, ready: socket.socket) -> None:
        """Handle one packet or query that is there, whatever it holds."""
        with contextlib.suppress(OSError, struct.error, IndexError, ValueError):
            if ready is self._cable:
                frame, origin = self._cable.recvfrom(65536)
                reply = self._records.handle(frame) if origin[2] != PACKET_OUTGOING else None
                if reply is not None:
                    self._cable.send(reply)
                return
            data, control, _flags, sender = ready.recvmsg(65536, 512)
            answer = self._records.resolve(data, sender[1])
            if answer is not None:
                ready.sendmsg([answer], control, 0, sender)


def name_server(family: int) -> socket.socket:
    """Return a socket for name queries to any address of this namespace, which answers from that address."""
    server = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        server.bind(("::", DNS_PORT))
    else:
        server.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO, which the module has no name for before 3.14
        server.bind(("0.0.0.0", DNS_PORT))
    return server


def start_command(argv: list[str]) -> int:
    """Start the command as a child that is terminated when this process dies; return its number."""
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            os.execvp(argv[0], argv)
        except OSError as error:
            sys.stderr.write(f"airferry: {argv[0]}: {error}\n")
        finally:
            os._exit(127)
    return pid


def end_left() -> None:
    """End what the command left running: a process that lost its parent became a child of this process."""
    deadline = time.monotonic() + LEFT_GRACE_S
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = children(os.getpid())
        if not left:
            return
        for pid in left if time.monotonic() > deadline else ():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def children(parent: int) -> list[int]:
    """Return the processes that have a parent."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if int(Path(entry.path, "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found


class Command:
    """The command next to the sink. It is ended, and killed after a while, when this process is or loses its parent."""

    def __init__(self, argv: list[str]) -> None:
        self._parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.pid = start_command(argv)
        self.handle = os.pidfd_open(self.pid)
        self._deadline: float | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def _end(self, number: int = signal.SIGTERM, _frame: object = None) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + END_GRACE_S
            signal.pidfd_send_signal(self.handle, number)

    def watch(self) -> None:
        """Do what is due: nothing, as long as the command may run."""
        if os.getppid() != self._parent:
            self._end()
        if self._deadline is not None and time.monotonic() > self._deadline:
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def code(self) -> int:
        """Wait for the command, end what it left running, and return its exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) % 256
        end_left()
        return code


def main(arguments: list[str]) -> int:
    """Run `LOG PROGRAM ARGUMENT…` with the sink next to it, and exit as the program does."""
    log, *argv = arguments
    try:
        sink = BlackHole(RequestLog(Path(log)), with_v6=raise_network())
    except OSError as error:
        sys.stderr.write(f"airferry: {error}\n")
        return 1
    command = Command(argv)
    poller = select.poll()
    by_number = {item.fileno(): item for item in sink.sockets}
    for number in (*by_number, command.handle):
        poller.register(number, select.POLLIN)
    rest = MAX_LOGGED_REQUESTS  # what is still looked at when the command has ended
    while True:
        ready = [number for number, _event in poller.poll(WATCH_MS)]
        for number in ready:
            if number in by_number:
                sink.serve(by_number[number])
        command.watch()
        if command.handle in ready:
            rest -= len(ready)
            if len(ready) == 1 or rest < 0:
                return command.code()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
