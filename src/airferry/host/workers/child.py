"""A worker process: it does one unit of work after the other, until the one that started it is gone.

It reads frames from standard input: requests, and the bytes of fed work. It answers with frames: events, then what the
work returned or raised. `processes.py` has the other end.
"""

from __future__ import annotations

import gc
import json
import os
import select
import struct
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO, Any

from airferry import events
from airferry.errors import HostError
from airferry.events import Event
from airferry.host.parsing import parse_json
from airferry.host.workers.failures import failure_document
from airferry.host.workers.work import Work, WorkContext, run_work

FRAME = struct.Struct("<cI")  # what it is, and how many bytes follow
ASKED, FED, FED_ALL = b"?", b"+", b"."
TOLD, RETURNED, RAISED = b"e", b"=", b"!"
READ_BYTES = 1 << 20
COLLECT_AFTER = 50_000
MAX_RESULT_BYTES = (1 << 32) - 1


def main() -> None:
    """Be the process."""
    # the facts of a layer are many small objects that all stay
    gc.set_threshold(COLLECT_AFTER)
    answers = os.dup(1)
    # whatever prints must not get between the frames
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(0, "rb", READ_BYTES) as requests, os.fdopen(answers, "wb") as told:
        channel = _Channel(requests, told)
        while (frame := channel.read()) is not None:
            # work that failed leaves what it was still to be fed, and its answer is not to be followed by another
            if frame[0] == ASKED:
                channel.answer(frame[1])


def _end_with_parent() -> None:
    """End this process, whatever it does, when the other end of its standard input is closed."""
    poll = select.poll()
    poll.register(0, 0)
    while not poll.poll():
        pass
    os._exit(1)


class _Channel:
    def __init__(self, requests: IO[bytes], told: IO[bytes]) -> None:
        self._requests = requests
        self._told = told
        self._lock = threading.Lock()

    def read(self) -> tuple[bytes, bytes] | None:
        """Return the next frame, None where there is none any more."""
        head = self._requests.read(FRAME.size)
        if len(head) < FRAME.size:
            return None
        kind, size = FRAME.unpack(head)
        return kind, self._requests.read(size)

    def answer(self, request: bytes) -> None:
        """Do a unit of work, and say what came of it."""
        document = parse_json(request, max_values=None)
        work = Work(document["function"], document["arguments"], document["what"], fed=document["fed"])
        try:
            returned = run_work(work, WorkContext(self._blocks() if work.fed else None, self._tell))
            answer = json.dumps(returned, separators=(",", ":")).encode()
            if len(answer) > MAX_RESULT_BYTES:
                raise HostError(
                    f"what came of {work.what} is too large for one answer",
                    hint="report this bug with the output of `--debug`",
                )
        except BaseException as error:
            self._write(RAISED, json.dumps(failure_document(error)).encode())
        else:
            self._write(RETURNED, answer)

    def _blocks(self) -> Iterator[bytes]:
        while (frame := self.read()) is not None and frame[0] == FED:
            yield frame[1]

    def _tell(self, event: Event) -> None:
        told = {"event": type(event).__name__, "fields": asdict(event)}
        self._write(TOLD, json.dumps(told).encode())

    def _write(self, kind: bytes, content: bytes) -> None:
        with self._lock:
            self._told.write(FRAME.pack(kind, len(content)))
            self._told.write(content)
            self._told.flush()


def event_from(document: dict[str, Any]) -> Event:
    """Return the event that a worker process told of."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in document["fields"].items()}
    event: Event = getattr(events, document["event"])(**fields)
    return event
