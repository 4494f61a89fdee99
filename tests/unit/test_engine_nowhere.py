"""The network that leads nowhere: what it answers, what it writes down, and that no packet can upset it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.engine import nowhere as sink
from airferry.engine.nowhere import OWN_NAME, Packet, RequestLog, checksum, question, summed, wrap

V4_SOURCE, V4_TARGET = bytes([192, 0, 2, 1]), bytes([203, 0, 113, 9])


V6_SOURCE, V6_TARGET = (socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::1", "2001:db8:1::7"))


ENDS = {4: (V4_SOURCE, V4_TARGET), 6: (V6_SOURCE, V6_TARGET)}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sink, "owner", lambda _inode: None)
    return tmp_path / "sink.log"


def written(log: Path) -> list[tuple[Any, ...]]:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [(record["protocol"], record["host"], record["port"]) for record in records]


def query(name: str, kind: int = 1, *, flags: int = 0x0100, count: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack("!HHHHHH", 77, flags, count, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def frame(version: int, protocol: int, payload: bytes, *, target: bytes | None = None) -> bytes:
    source, usual = ENDS[version]
    kind = {4: 0x0800, 6: 0x86DD}[version]
    packet = wrap(version, source, target or usual, protocol, payload)
    return b"\x02" * 6 + b"\x04" * 6 + struct.pack("!H", kind) + packet


def datagram(source: int, target: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(data), 0) + data


SYN = struct.pack("!HHIIBBHHH", 40000, 443, 0xFFFFFFFF, 0, 0x50, 0x02, 64240, 0, 0)


def pseudo(version: int, packet: Packet) -> bytes:
    head = packet.source + packet.target
    size = len(packet.payload)
    tail = struct.pack("!IxxxB", size, packet.protocol) if version == 6 else struct.pack("!xBH", packet.protocol, size)
    return head + tail


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_is_noted_and_reset_as_a_stack_expects(version: int, log: Path) -> None:
    asked = frame(version, socket.IPPROTO_TCP, SYN)
    reply = RequestLog(log).handle(asked)
    assert reply is not None
    assert (reply[:6], reply[6:12], reply[12:14]) == (asked[6:12], asked[:6], asked[12:14])
    back = Packet(reply[14:])
    assert (back.source, back.target) == ENDS[version][::-1]
    source, target, sequence, acknowledged, _offset, flags = struct.unpack_from("!HHIIBB", back.payload)
    assert (source, target, sequence, acknowledged, flags) == (443, 40000, 0, 0, 0x14)
    assert checksum(pseudo(version, back) + back.payload) == 0
    assert written(log) == [("tcp", {4: "203.0.113.9", 6: "2001:db8:1::7"}[version], 443)]


def test_only_what_opens_a_connection_counts(log: Path) -> None:
    records = RequestLog(log)
    for flags in (0x10, 0x12, 0x04, 0x11):
        assert records.handle(frame(4, socket.IPPROTO_TCP, SYN[:13] + bytes([flags]) + SYN[14:])) is None
    assert written(log) == []


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_is_noted_and_bounced(version: int, log: Path) -> None:
    reply = RequestLog(log).handle(frame(version, socket.IPPROTO_UDP, datagram(5000, 8125, b"tick")))
    assert reply is not None
    back = Packet(reply[14:])
    kind, code = {4: (3, 3), 6: (1, 4)}[version]
    assert (back.payload[0], back.payload[1]) == (kind, code)
    assert checksum((pseudo(6, back) if version == 6 else b"") + back.payload) == 0
    assert written(log) == [("udp", {4: "203.0.113.9", 6: "2001:db8:1::7"}[version], 8125)]


def test_what_is_for_the_own_network_and_other_protocols_is_let_be(log: Path) -> None:
    records = RequestLog(log)
    assert records.handle(frame(4, socket.IPPROTO_UDP, datagram(1, 5353, b"x"), target=bytes([224, 0, 0, 251]))) is None
    assert records.handle(frame(4, socket.IPPROTO_UDP, datagram(1, 67, b"x"), target=b"\xff" * 4)) is None
    assert records.handle(b"\0" * 12 + b"\x08\x06" + b"\0" * 28) is None, "ARP"
    assert written(log) == []
    echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    assert records.handle(frame(4, socket.IPPROTO_ICMP, echo)) is None
    assert written(log) == [("icmp", "203.0.113.9", None)]


def test_a_name_gets_one_address_that_leads_back_to_it(log: Path) -> None:
    records = RequestLog(log)
    answer = records.resolve(query("Models.Example.ORG"), 1234)
    assert answer is not None
    asked = query("Models.Example.ORG")
    assert answer[:2] == asked[:2] and answer[12 : len(asked)] == asked[12:]
    assert struct.unpack_from("!HHHHH", answer, 2) == (0x8180, 1, 1, 0, 0)
    address = answer[-4:]
    assert records.resolve(query("models.example.org"), 1) is not None
    other = records.resolve(query("names.example.org"), 1)
    assert other is not None and other[-4:] != address
    records.handle(frame(4, socket.IPPROTO_TCP, SYN, target=address))
    assert written(log) == [
        ("dns", "models.example.org", None),
        ("dns", "names.example.org", None),
        ("tcp", "models.example.org", 443),
    ]
    assert json.loads(log.read_text().splitlines()[0])["answered"] == socket.inet_ntoa(address)


def test_a_query_to_a_server_elsewhere_is_answered_from_there(log: Path) -> None:
    reply = RequestLog(log).handle(frame(4, socket.IPPROTO_UDP, datagram(5000, 53, query("a.example.org"))))
    assert reply is not None
    back = Packet(reply[14:])
    assert back.source == V4_TARGET and struct.unpack_from("!HH", back.payload) == (53, 5000)
    assert checksum(pseudo(4, back) + back.payload) == 0
    assert written(log) == [("dns", "a.example.org", None)]


@pytest.mark.parametrize("name", ["localhost", "db.localhost", OWN_NAME])
def test_own_names_are_this_host_and_no_attempt(name: str, log: Path) -> None:
    answer = RequestLog(log).resolve(query(name), 1)
    assert answer is not None and answer[-4:] == bytes([127, 0, 0, 1])
    assert written(log) == []


def test_other_types_are_answered_with_nothing_and_noted_but_for_reverse_look_ups(log: Path) -> None:
    records = RequestLog(log)
    for kind, name in ((28, "six.example.org"), (16, "text.example.org"), (12, "9.113.0.203.in-addr.arpa")):
        answer = records.resolve(query(name, kind), 1)
        assert answer is not None and struct.unpack_from("!H", answer, 6)[0] == 0
    assert written(log) == [("dns", "six.example.org", None), ("dns", "text.example.org", None)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        query("a.example.org")[:14],
        query("a.example.org", flags=0x8180),
        query("a.example.org", count=2),
        query("a.example.org")[:12] + b"\xc0\x0c" + b"\0" * 8,
        query(".".join(["a"] * 200)),
    ],
    ids=["empty", "cut", "an answer", "two questions", "a pointer", "too many labels"],
)
def test_what_is_no_query_is_none(data: bytes) -> None:
    assert question(data) is None


def test_records_and_names_are_bounded(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "MAX_LOGGED_REQUESTS", 5)
    monkeypatch.setattr(sink, "MAX_NAMES", 3)
    records = RequestLog(log)
    answers = [records.resolve(query(f"n{number}.example.org"), 1) for number in range(20)]
    assert len({answer[-4:] for answer in answers if answer}) == 4, "all that are too many share one"
    assert records.resolve(query("n0.example.org"), 1) == answers[0]
    assert len(written(log)) == 5
    assert sum(len(value) for value in vars(records).values() if isinstance(value, (dict, set))) <= 5 + 3 + 3


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd"]))
def test_no_frame_raises_what_the_sink_does_not_expect(data: bytes, kind: bytes) -> None:
    with contextlib.suppress(struct.error, IndexError, ValueError):
        RequestLog(Path("/dev/null")).handle(b"\0" * 12 + kind + data)


@given(st.binary(max_size=600))
def test_no_query_raises(data: bytes) -> None:
    asked = question(query("a.example.org")[:12] + data)
    assert asked is None or len(asked[0]) < 4 * 256 * 64


@given(st.binary(max_size=64), st.sampled_from([4, 6]))
def test_a_checksum_adds_up(data: bytes, version: int) -> None:
    source, target = ENDS[version]
    segment = summed(version, source, target, 17, struct.pack("!HHHH", 1, 2, 8 + len(data), 0) + data, 6)
    packet = Packet(wrap(version, source, target, 17, segment))
    assert checksum(pseudo(version, packet) + packet.payload) == 0


@pytest.mark.parametrize(
    "line",
    [
        "/usr/bin/python3 -c x",
        "/usr/bin/qemu-aarch64-static /usr/bin/python3 -c x",
        "/usr/libexec/qemu-binfmt/aarch64-binfmt-P /usr/bin/python3 /usr/bin/python3 -c x",
        "qemu-aarch64 /usr/bin/python3 /usr/bin/python3 -c x",
    ],
)
def test_an_emulator_is_not_named(line: str) -> None:
    assert sink.emulated(line.split()) == ["/usr/bin/python3", "-c", "x"]
