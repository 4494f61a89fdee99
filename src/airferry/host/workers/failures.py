"""Errors as data, on their way from one process to another: class, attributes and cause arrive as they were.

No pickles: what a process sends that read foreign bytes is data, and names nothing but a class of errors.
"""

from __future__ import annotations

import importlib
import os
import traceback
from pathlib import Path
from typing import Any

from airferry.errors import AirferryError, HostError, revived

_PLAIN = (str, int, float, bool, type(None))
MAX_CAUSES = 8


def failure_document(error: BaseException) -> dict[str, Any]:
    """Return what a unit of work raised as data; its traceback always goes along, for `--debug`."""
    return {"traceback": "".join(traceback.format_exception(error)), **_described(error, MAX_CAUSES)}


def failure_from(told: dict[str, Any]) -> Exception:
    """Return what `failure_document` was given, its cause included, with the traceback of the other process as a note.

    What is neither an error of airferry nor one of the system is a mistake, and a `RuntimeError` with the traceback.
    """
    raised = _revived(told)
    if raised is None:
        return RuntimeError(told["traceback"])
    raised.add_note(f"raised in a worker process:\n{told['traceback']}")
    return raised


def _described(error: BaseException, depth: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if isinstance(error, MemoryError):
        told["error"] = error_document(no_memory())
    elif isinstance(error, AirferryError):
        told["error"] = error_document(error)
    elif isinstance(error, OSError) and error.errno is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
        told["system"] = [error.errno, error.strerror, name]
    else:
        told["mistake"] = "".join(traceback.format_exception_only(error)).strip()
    if error.__cause__ is not None and depth > 0:
        told["cause"] = _described(error.__cause__, depth - 1)
    return told


def _revived(told: dict[str, Any]) -> Exception | None:
    raised: Exception
    if "error" in told:
        raised = error_from(told["error"])
    elif "system" in told:
        raised = OSError(*told["system"])
    else:
        return None
    if "cause" in told:
        raised.__cause__ = _revived(told["cause"]) or RuntimeError(told["cause"]["mistake"])
    return raised


def no_memory() -> HostError:
    """Return the error for an allocation that failed."""
    return HostError("the host has too little memory", hint="rerun with fewer `--jobs`, or on a larger host")


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
