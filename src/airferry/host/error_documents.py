"""Errors of airferry as documents, so that one raised in another process is raised here as what it was.

Class and attributes stay, for every class that the other side can import as well. No pickles: what a process sends
that read foreign bytes is data, and names nothing but a class of errors.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from airferry.errors import AirferryError, revived

_PLAIN = (str, int, float, bool, type(None))


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
