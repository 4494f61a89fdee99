"""What a rehearsal's logs mean: who tried to reach what, how far a step came, and what stopped it.

Pure: bytes of logs in, frozen values out. The logs were written by or next to other code, so everything in them is
bounded and nothing is trusted to have the right shape.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

from airferry.bundle.manifest import host_and_port
from airferry.host.parsing import parse_json, parse_literal
from airferry.near.rehearse.causes import ENOUGH, Stop, classify, classify_output, is_of_child
from airferry.wording import printable

REHEARSAL_LEVELS = ("nothing", "image", "imported", "config", "started")
# reading a literal that is made to be slow takes two seconds of CPU a MiB
MAX_LOG_LINES = 20_000
MAX_LINE = 200_000
MAX_SHOWN = 300
MAX_VALUE_DEPTH = 4
EXEC = "os.exec"
_PROTOCOLS = {
    "socket.getaddrinfo": "dns",
    "socket.gethostbyname": "dns",
    "socket.gethostbyaddr": "dns",
    "socket.sendto": "udp",
    "socket.sendmsg": "udp",
}

# What differs from run to run, and who may log in where, belongs in no bundle.
_VOLATILE = (
    (re.compile(r"://[^/@\s]*@"), "://***@"),
    (re.compile(r"0x[0-9a-f]{6,}"), "0x…"),
    (re.compile(r"\b\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?([.,]\d+)?)?"), "…"),
    (re.compile(r"\b\d\d:\d\d:\d\d([.,]\d+)?\b"), "…"),
    (re.compile(r"\b\d+(\.\d+)? ?(ns|us|µs|ms|s|secs?|seconds?|minutes?)\b"), r"… \2"),
    (re.compile(r"(/(?:var/)?tmp/)[\w.-]+"), r"\1…"),
    (re.compile(r"\b(pid|process|thread)([ =:]+)\d+", re.I), r"\1\2…"),
)


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """An attempt to reach outside. `place` is the step's line, or the nearest there is; `seen` is who saw it."""

    host: str
    port: int | None
    protocol: str
    process: str
    place: str
    library: str
    seen: Literal["python", "network"]
    allowed: bool = False

    def __str__(self) -> str:
        by = f" by `{self.process}`" if self.process else ""
        at = f" from {self.place}" if self.place else ""
        via = f" (through {self.library})" if self.library else ""
        return f"{host_and_port(self.host, self.port)} ({self.protocol}){by}{at}{via}"


@dataclass(frozen=True, slots=True)
class Ending:
    """How far a step came and what stopped it: the kind, the words, and the step's line."""

    reached: str
    stopped_by: Stop
    text: str
    place: str


def read_hook_log(data: bytes) -> list[dict[str, Any]]:
    """Return the records that the hook wrote, the last ones if there are too many; what is none is left out."""
    return [item for item in _records(data, parse_literal) if isinstance(item.get("event"), str)]


def read_sink_log(data: bytes) -> list[dict[str, Any]]:
    """Return the records that the sink wrote, the last ones if there are too many; what is none is left out."""
    return [item for item in _records(data, parse_json) if isinstance(item.get("host"), str)]


def _records(data: bytes, parse: Callable[[str], Any]) -> list[dict[str, Any]]:
    records = []
    for line in deque(io.BytesIO(data), maxlen=MAX_LOG_LINES):
        try:
            value = parse(line[:MAX_LINE].decode("utf-8"))
        except ValueError:
            continue
        if isinstance(value, dict) and _is_plain(value):
            records.append(value if isinstance(value.get("pid"), int) else {**value, "pid": None})
    return records


def _is_plain(value: Any, *, depth: int = MAX_VALUE_DEPTH) -> bool:
    """Tell whether a value is what a hook or sink writes: text, small numbers, and few levels of lists of them."""
    if isinstance(value, dict):
        return depth > 0 and all(
            isinstance(key, str) and _is_plain(item, depth=depth - 1) for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_plain(item, depth=depth - 1) for item in value)
    if isinstance(value, int):
        return abs(value) < 1 << 63
    return value is None or isinstance(value, (str, float))


# --- attempts --------------------------------------------------------------------------------------------------------


def find_attempts(
    hook: Sequence[dict[str, Any]], sink: Sequence[dict[str, Any]], *, root: str, own: str
) -> tuple[Attempt, ...]:
    """Return every attempt once: those of Python with their line, those of other processes with who started them.

    `root` is the catalogue's folder in the container, which places are shown relative to; `own` is the container's
    name.
    """
    names = {str(item["answered"]): str(item["host"]) for item in sink if "answered" in item}
    commands = {item.get("pid"): str(item.get("command", "")) for item in hook if item["event"] == "python"}
    found: dict[tuple[str, str, str, str], dict[int | None, str]] = {}
    libraries: dict[tuple[str, str, str, str], str] = {}
    by_python: set[tuple[Any, str]] = set()
    peers = {(str(item["host"]), _port(item.get("port"))) for item in sink if item.get("pid") is not None}
    for item in hook:
        if item["event"] == "attempt":
            host, port = str(item.get("host")), _port(item.get("port"))
            host = names.get(host, host)
            by_python.add((item.get("pid"), host))
            peers.add((host, port))
            place, library = _place(item, root)
            key = (host, commands.get(item.get("pid"), "python"), place, "" if place else library)
            protocol = _PROTOCOLS.get(str(item.get("how")), "tcp")
            ports = found.setdefault(key, {})
            if protocol != "dns" or port not in ports:
                ports[port], libraries[key] = protocol, library
    result = [
        Attempt(key[0], port, protocol, _shown(key[1]), key[2], libraries[key], "python")
        for key, ports in found.items()
        for port, protocol in _known(ports)
    ]
    starts = [item for item in hook if item["event"] == "start"]
    hosts = {host for host, _port_number in peers}
    others: dict[tuple[Any, str, str], dict[int | None, str]] = {}
    for item in sink:
        pid, host, port = item.get("pid"), item["host"], _port(item.get("port"))
        # a datagram's or a query's sender may be gone when it is looked for: it adds nothing to the facts about others
        lost = pid is None and ((host, port) in peers or (port is None and host in hosts))
        if (pid, host) in by_python or lost:
            continue
        others.setdefault((pid, host, str(item.get("command", ""))), {})[port] = str(item.get("protocol"))
    for (pid, host, command), ports in others.items():
        place, library = _origin(pid, command, sink, starts, root)
        for port, protocol in _known(ports):
            result.append(Attempt(host, port, protocol, _shown(command), place, library, "network"))
    return in_order(
        {replace(item, host=printable(item.host, most=MAX_SHOWN)) for item in result if item.host.lower() != own}
    )


def in_order(attempts: Iterable[Attempt]) -> tuple[Attempt, ...]:
    """Return attempts in the order in which they are shown."""
    return tuple(sorted(attempts, key=lambda item: (item.host, item.port or 0, *astuple(item)[2:])))


def _known(ports: Mapping[int | None, str]) -> list[tuple[int | None, str]]:
    """Leave out what is only a look-up of a name that was then connected to."""
    return [(port, ports[port]) for port in sorted(filter(None, ports))] or [(None, ports[None])]


def _port(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 65536 else None


def _origin(
    pid: Any, command: str, sink: Iterable[Mapping[str, Any]], starts: Sequence[dict[str, Any]], root: str
) -> tuple[str, str]:
    """Return the line of Python that started a process, or one of its ancestors: of its starts the most alike."""
    ancestors = next((item.get("ancestors") for item in sink if item.get("pid") == pid), None)
    words = set(command.split())
    for ancestor in (pid, *(ancestors if isinstance(ancestors, list) else ())):
        # a process does not start itself, but becomes another program
        mine = [item for item in starts if item.get("pid") == ancestor and (ancestor != pid or item.get("how") == EXEC)]
        if mine:
            return _place(max(reversed(mine), key=lambda item: len(words & _words(item.get("argv")))), root)
    return "", ""


def _words(argv: Any) -> set[str]:
    return set(" ".join(map(str, argv)).split()) if isinstance(argv, (list, tuple)) else set()


def _place(item: Mapping[str, Any], root: str) -> tuple[str, str]:
    place = item.get("place")
    if not isinstance(place, dict):
        return "", ""
    step, library = _spot(place.get("step"), root), _spot(place.get("library"), root)
    return step, "" if library == step else library


def _spot(spot: Any, root: str) -> str:
    if not isinstance(spot, (list, tuple)) or len(spot) < 2:
        return ""
    return _shown(f"{str(spot[0]).removeprefix(root.rstrip('/') + '/')}:{spot[1]}")


def _shown(text: str) -> str:
    """Return text of others as one bounded, printable line."""
    line = " ".join(text[: 4 * MAX_SHOWN].split())
    for pattern, instead in _VOLATILE:
        line = pattern.sub(instead, line)
    return printable(line, most=MAX_SHOWN)


# --- how far a step came ---------------------------------------------------------------------------------------------


def judge_ending(hook: Sequence[dict[str, Any]], *, root: str, has_config: bool) -> Ending:
    """Return how far a step came. `started` means: its own code ran, config read, until it finished, had run for its
    time, or first needed a GPU, data or weights.
    """
    end = next((item for item in reversed(hook) if item["event"] == "end"), None)
    if end is None:
        return Ending("nothing", "error", "the image's Python did not start", "")
    config_read = not has_config or any(item["event"] == "config" for item in hook)
    pid = end.get("step_pid")
    failure = _failure(hook, pid)
    output = str(end.get("output", ""))
    if end.get("limited"):
        return Ending("started" if config_read else "imported", "time limit", "still running when its time was up", "")
    if end.get("code") == 0:
        if config_read:
            return Ending("started", "finished", "", "")
        return Ending("imported", "finished", "it ended without reading its config", "")
    if failure is not None:
        starts = [item for item in hook if item["event"] == "start" and item.get("pid") == failure.get("pid")]
        stop, text = classify(failure, starts, root=root, output=output)
        place = _failing_line(failure.get("frames", []), root)
    else:
        stop, text = classify_output(output, end.get("code"), end.get("signal"))
        place = ""
    ran = any(item["event"] == "python" for item in hook)
    if not config_read and (stop in ("module", "usage") or (stop == "program" and not ran)):
        reached = "image"
    elif stop == "config" or not config_read:
        reached = "imported"
    else:
        reached = "started" if stop in ENOUGH else "config"
    return Ending(reached, stop, _shown(text), place)


def _failure(hook: Sequence[dict[str, Any]], pid: Any) -> dict[str, Any] | None:
    """Return the exception that ended the step: its own, or, where that only says that a child failed, the child's."""
    failures = [item for item in hook if item["event"] == "exception"]
    others = [item for item in failures if item.get("pid") != pid and not is_of_child(item)]
    own = [item for item in failures if item.get("pid") == pid]
    if own and not (is_of_child(own[-1]) and others):
        return own[-1]
    # of several children that failed, the first one is why: the others lost it
    return next(iter(others or failures), None)


def _failing_line(frames: Any, root: str) -> str:
    """Return the innermost line of the catalogue's own code in a traceback, else the innermost at all."""
    listed = frames if isinstance(frames, (list, tuple)) else ()
    spots = [frame for frame in listed if isinstance(frame, (list, tuple)) and len(frame) >= 2]
    own = [frame for frame in spots if str(frame[0]).startswith(root)]
    chosen = own or spots
    return _spot(chosen[-1], root) if chosen else ""
