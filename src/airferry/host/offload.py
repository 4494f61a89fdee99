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
from typing import Any

from airferry.errors import AirferryError, HostError
from airferry.host import process
from airferry.host.error_documents import error_document, error_from

RETURNED, RAISED = b"=", b"!"
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
        # not `multiprocessing`: `fork` copies locks that other threads hold, `spawn` imports the main program again.
        # `-I` keeps PYTHON* variables and the current folder out; the child gets our `sys.path` as an argument instead
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
            AirferryError: what the function raised, with its class and attributes.
            OSError: likewise.
            HostError: the process was killed, or had too little memory.
            RuntimeError: the function failed by a mistake in it; the text is its traceback.
        """
        self._input.close()
        answer = self._output.read()
        mark, content = answer[:1], answer[1:]
        if mark == RETURNED:
            return content
        if mark == RAISED:
            raise _raised(json.loads(content))
        raise HostError(
            f"a worker process of airferry exited early with code {self._child.wait()}",
            hint="rerun; if the host ran out of memory, lower `--jobs`",
        )


def serve(function: str, arguments: str) -> None:
    """Be the process: run the function over standard input, and answer with what it returns or raises."""
    module, _, name = function.partition(":")
    with os.fdopen(0, "rb", READ_BYTES) as stream, os.fdopen(1, "wb") as answer:
        try:
            returned = getattr(importlib.import_module(module), name)(stream, **json.loads(arguments))
        except MemoryError:
            answer.write(RAISED + json.dumps({"error": error_document(_no_memory())}).encode())
        except Exception as error:
            answer.write(RAISED + json.dumps(_told(error)).encode())
        else:
            answer.write(RETURNED + returned)


def _told(error: Exception) -> dict[str, Any]:
    """Return what a function raised as data; its traceback always goes along, for `--debug`."""
    told: dict[str, Any] = {"traceback": "".join(traceback.format_exception(error))}
    if isinstance(error, AirferryError):
        told["error"] = error_document(error)
    elif isinstance(error, OSError) and error.errno is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
        told["system"] = [error.errno, error.strerror, name]
    return told


def _raised(told: dict[str, Any]) -> Exception:
    """Return what `_told` was given, with the traceback of the other process as a note."""
    raised: Exception
    if "error" in told:
        raised = error_from(told["error"])
    elif "system" in told:
        raised = OSError(*told["system"])
    else:
        return RuntimeError(told["traceback"])
    if "traceback" in told:
        raised.add_note(f"raised in a subprocess:\n{told['traceback']}")
    return raised


def _no_memory() -> HostError:
    return HostError("the host has too little memory", hint="start again with fewer `--jobs`, or on a larger host")
