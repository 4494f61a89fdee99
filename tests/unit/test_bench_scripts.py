"""Programs that are run by hand: that what they import of airferry is there, as no other check runs them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import tomllib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROGRAMS = sorted(
    path
    for path in [*SCRIPTS.iterdir(), *(SCRIPTS / "bench").iterdir()]
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env python3")
)
PROGRAMS += sorted(
    path
    for name in ("fuzzing", "faulting")
    for path in (SCRIPTS / name).glob("*.py")
    if b"from airferry" in path.read_bytes()
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.relative_to(SCRIPTS).as_posix())
def test_what_it_imports_of_airferry_is_there(program: Path) -> None:
    imported = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(program.read_bytes()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "airferry"
        for alias in node.names
    ]
    assert imported
    for module, name in imported:
        found = hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}")
        assert found, f"`{module}` has no `{name}`"


def test_what_is_mutated_and_tested_for_it_is_there() -> None:
    groups = tomllib.loads((SCRIPTS / "mutation" / "groups.toml").read_text())
    root = SCRIPTS.parent
    named = [path for group in groups.values() for path in group["modules"]]
    named += [f"tests/{path}" for group in groups.values() for path in group["tests"]]
    assert named and [path for path in named if not (root / path).is_file()] == []
