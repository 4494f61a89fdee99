"""Every class of errors in the source, and fields that an error may have."""

from __future__ import annotations

import importlib
import pkgutil

import airferry
from airferry.errors import AirferryError

ATTRIBUTES = {
    "message": "cannot push",
    "hint": "log in",
    "tail": ("first \udcff", "last"),
    "failures": (),
    "status": 413,
    "path": "/etc/é",
    "missing": ["a", "b"],
    "left": {"x": None, "y": 1.5},
}


def leaves() -> list[type[AirferryError]]:
    """Return every class of errors in the source."""
    for module in pkgutil.walk_packages(airferry.__path__, "airferry."):
        if not module.name.startswith(
            ("airferry.example", "airferry.near.rehearse.hook", "airferry.near.probe.script")
        ):
            importlib.import_module(module.name)
    found: list[type[AirferryError]] = []
    todo: list[type[AirferryError]] = [AirferryError]
    while todo:
        kind = todo.pop()
        found += [kind] if kind.__module__.startswith("airferry.") else []
        todo += kind.__subclasses__()
    return sorted(set(found), key=lambda kind: kind.__qualname__)
