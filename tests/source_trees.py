"""The package's source as syntax trees, parsed once a run for all tests that look through it."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from contextlib import contextmanager
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
    with _nothing_but_growth():
        return {
            path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            for path in paths
        }


@cache
def _walked() -> dict[str, dict[type[ast.AST], list[ast.AST]]]:
    with _nothing_but_growth():
        return {place: _by_class(module) for place, module in modules().items()}


def _by_class(module: ast.Module) -> dict[type[ast.AST], list[ast.AST]]:
    kinds: dict[type[ast.AST], list[ast.AST]] = {}
    todo: list[ast.AST] = [module]
    # as `ast.walk` finds them, in two thirds of the time
    for node in todo:
        kinds.setdefault(type(node), []).append(node)
        for value in vars(node).values():
            if isinstance(value, list):
                todo.extend(part for part in value if isinstance(part, ast.AST))
            elif isinstance(value, ast.AST):
                todo.append(value)
    return kinds


@contextmanager
def _nothing_but_growth() -> Iterator[None]:
    """Keep the collector of garbage from going through a third of a million new nodes again and again, for naught."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def nodes(kind: type[Node]) -> Iterator[tuple[str, Node]]:
    """Yield each node of a class in the whole source, with the place of its module; no order within a module."""
    for place, kinds in _walked().items():
        for node in kinds.get(kind, ()):
            yield place, node  # type: ignore[misc]
