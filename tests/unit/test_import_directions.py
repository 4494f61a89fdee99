"""Imports run downwards only, and each foreign dependency has one owner."""

from __future__ import annotations

import ast
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest

from airferry.host import process

SOURCE = Path(__file__).parents[2] / "src" / "airferry"
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
def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("dependency", sorted(OWNERS))
def test_only_the_owner_imports_a_foreign_dependency(dependency: str) -> None:
    importers = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if "example" not in path.relative_to(SOURCE).parts and dependency in imports(path)
    }
    assert importers, f"nobody imports {dependency}: the rule is out of date"
    strangers = {name for name in importers if not name.startswith(OWNERS[dependency])}
    assert strangers == set()


def test_imports_run_downwards() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None
    result = process.run([program, "--no-cache"], timeout_s=120, cwd=SOURCE.parents[1], check=False)
    assert result.returncode == 0, result.text
