"""The package's source as syntax trees, parsed once a run for all tests that look through it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import airferry

SOURCE = Path(airferry.__file__).parent
Node = TypeVar("Node", bound=ast.AST)


@cache
def modules() -> dict[str, ast.Module]:
    """Return the tree of each module, by its place in the package as `oci/layout.py`."""
    paths = sorted(SOURCE.rglob("*.py"))
    return {
        path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for path in paths
    }


@cache
def _walked() -> dict[str, dict[type[ast.AST], list[ast.AST]]]:
    found: dict[str, dict[type[ast.AST], list[ast.AST]]] = {}
    for place, module in modules().items():
        kinds = found.setdefault(place, {})
        for node in ast.walk(module):
            kinds.setdefault(type(node), []).append(node)
    return found


def nodes(kind: type[Node]) -> Iterator[tuple[str, Node]]:
    """Yield each node of a class in the whole source, with the place of its module; no order within a module."""
    for place, kinds in _walked().items():
        for node in kinds.get(kind, ()):
            yield place, node  # type: ignore[misc]
