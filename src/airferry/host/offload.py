"""A function over a stream that runs in a subprocess, for work that would hold the GIL.

The process serves one stream and ends with it, with its parent, or when it is given up.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType

from airferry import errors
from airferry.host import process

RETURNED, RAISED = b"=", b"!"
MISTAKE = "mistake"
READ_BYTES = 1 << 20
# isolated, with the parent's search path, so that no folder that happens to be the current one is looked in
_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from airferry.host.offload import serve
serve(*sys.argv[2:])
"""


class Offloaded:
    """A function from a binary stream to bytes, in a subprocess. Feed it from one thread.

    Feeding waits while the function is behind, and raises the `AirferryError` that it raised. Leaving the block gives
    up what is unfinished; the process has ended then.
    """

    def __init__(self, function: str, arguments: Mapping[str, object]) -> None:
        """Start it. `function` is `module:name` of one that takes a stream, and `arguments`, plain data, by name.

        Raises:
            HostError: no process can be started.
        """
        argv = [sys.executable, "-I", *(["-B"] if sys.dont_write_bytecode else []), "-c", _BOOT]
        self._child = process.start_exchange([*argv, json.dumps(sys.path), function, json.dumps(arguments)])
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._input, self._output = self._child.stdin, self._child.stdout

    def __enter__(self) -> Offloaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process.end_exchange(self._child)

    def write(self, data: bytes) -> None:
        """Hand over bytes, all of them."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._input.write(rest) :]
        except BrokenPipeError:
            # it has ended, and what it left says why
            self.result()

    def result(self) -> bytes:
        """Say that all was handed over, and return what the function returned.

        Raises:
            AirferryError: what the function raised.
            HostError: the process was killed.
            RuntimeError: the function failed by a mistake in it; the text is its traceback.
        """
        self._input.close()
        answer = self._output.read()
        mark, content = answer[:1], answer[1:]
        if mark == RETURNED:
            return content
        if mark == RAISED:
            raised = json.loads(content)
            if raised["kind"] == MISTAKE:
                raise RuntimeError(raised["message"])
            raise getattr(errors, raised["kind"])(raised["message"], hint=raised["hint"])
        raise errors.HostError(
            f"a worker process of airferry exited early with code {self._child.wait()}",
            hint="rerun; if the host ran out of memory, lower `--jobs`",
        )


def serve(function: str, arguments: str) -> None:
    """Be the process: run the function over standard input, and answer with what it returns or raises."""
    module, _, name = function.partition(":")
    with os.fdopen(0, "rb", READ_BYTES) as stream, os.fdopen(1, "wb") as answer:
        try:
            returned = getattr(importlib.import_module(module), name)(stream, **json.loads(arguments))
        except errors.AirferryError as error:
            raised = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            answer.write(RAISED + json.dumps(raised).encode())
        except Exception:
            raised = {"kind": MISTAKE, "message": traceback.format_exc()}
            answer.write(RAISED + json.dumps(raised).encode())
        else:
            answer.write(RETURNED + returned)
