"""A public top-level name is defined in one module, so that a search for it finds one thing."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from airferry import api
from source_trees import modules

# files that run by themselves, in an image or in a namespace, and so import nothing of the project
STANDALONE = {
    "engine/inside.py",
    "engine/nowhere.py",
    "host/confined.py",
    "near/probe/script.py",
    "near/rehearse/hook.py",
}
# names that stay shared, and why; besides, a command has the name of the call that it makes: `plan` is `api.plan`
SHARED = {
    "main": "where a program starts",
    "register": "each module of commands adds its own to the application by it",
    "run": "a command line in `cli`, a process in `host`: both are the usual word, and always qualified",
}


def definitions(module: ast.Module) -> Iterator[str]:
    """Yield the public names that a module defines; another name for something imported is not a definition."""
    for node in module.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
            ):
                is_variable = isinstance(value, ast.Call) and ast.unparse(value.func) == "TypeVar"
                if not is_variable and not isinstance(value, ast.Attribute):
                    yield name


def test_no_public_name_is_defined_twice() -> None:
    found: dict[str, set[str]] = {}
    for place, module in modules().items():
        if not place.startswith("example/") and place not in STANDALONE:
            for name in definitions(module):
                if not name.startswith("_") and not (place.startswith("cli/") and name in api.__all__):
                    found.setdefault(name, set()).add(place)
    twice = {name: sorted(places) for name, places in found.items() if len(places) > 1}
    assert {name: places for name, places in twice.items() if name not in SHARED} == {}
    assert set(SHARED) == twice.keys(), "the list is out of date"
