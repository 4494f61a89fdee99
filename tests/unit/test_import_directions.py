"""Imports run downwards only, and each foreign dependency has one owner."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from source_trees import nodes

OWNERS = {
    "subprocess": ("host/process.py",),
    "oras": ("registry/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "omegaconf": ("plan/",),
    "installer": ("near/",),
    "isal": ("oci/codecs.py",),
    # what people write is read with the line of each key, from nodes
    "yaml": ("host/yaml.py", "config/document.py"),
    **dict.fromkeys(("anyio", "bcrypt", "h11", "starlette", "uvicorn"), ("far/serve/",)),
}


@cache
def importers() -> dict[str, set[str]]:
    """Return the modules that import each package, by its name at the top."""
    found: dict[str, set[str]] = {}
    for place, node in nodes(ast.Import):
        for alias in node.names:
            found.setdefault(alias.name.partition(".")[0], set()).add(place)
    for place, node in nodes(ast.ImportFrom):
        if node.module and not node.level:
            found.setdefault(node.module.partition(".")[0], set()).add(place)
    return found


@pytest.mark.parametrize("dependency", sorted(OWNERS))
def test_only_the_owner_imports_a_foreign_dependency(dependency: str) -> None:
    places = {place for place in importers().get(dependency, ()) if not place.startswith("example/")}
    assert places, f"nobody imports {dependency}: the rule is out of date"
    strangers = {place for place in places if not place.startswith(OWNERS[dependency])}
    assert strangers == set()
