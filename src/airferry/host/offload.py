"""A function over a stream that runs in a subprocess, for work that would hold the GIL.

The process serves one stream and ends with it, with its parent, or when it is given up. What the function raises is
raised here with its class and attributes, for every class of errors that can be imported here as well. No pickles: what
a process sends that read foreign bytes is data, and names nothing but a class of errors.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from airferry.errors import AirferryError, HostError, revived
from airferry.host import process

RETURNED, RAISED = b"=", b"!"
_PLAIN = (str, int, float, bool, type(None))
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


def error_document(error: AirferryError) -> dict[str, Any]:
    """Return an error as data for JSON. An attribute that is not a plain data, path or error is sent as its text."""
    kind = next(kind for kind in type(error).__mro__ if "<" not in kind.__qualname__)
    return {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "attributes": {name: _encoded(value) for name, value in vars(error).items()},
    }


def error_from(document: dict[str, Any]) -> AirferryError:
    """Return the error that `error_document` was given.

    Raises:
        TypeError: the document names something that is not a class of airferry's errors.
    """
    module, _, name = document["class"].partition(":")
    kind: Any = importlib.import_module(module)
    for part in name.split("."):
        kind = getattr(kind, part)
    if not (isinstance(kind, type) and issubclass(kind, AirferryError)):
        raise TypeError(f"`{document['class']}` is not a class of airferry's errors")
    return revived(kind, {name: _decoded(value) for name, value in document["attributes"].items()})


def _encoded(value: object) -> Any:
    # what JSON does not tell apart is a list of its kind and its content
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple | list):
        return ["tuple" if isinstance(value, tuple) else "list", [_encoded(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[_encoded(key), _encoded(item)] for key, item in value.items()]]
    if isinstance(value, Path):
        return ["path", str(value)]
    if isinstance(value, AirferryError):
        return ["error", error_document(value)]
    return str(value)


def _decoded(value: Any) -> object:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "path":
        return Path(content)
    if kind == "error":
        return error_from(content)
    if kind == "dict":
        return {_decoded(key): _decoded(item) for key, item in content}
    items = [_decoded(item) for item in content]
    return tuple(items) if kind == "tuple" else items
