"""The floor plan of `src`, as ARCHITECTURE.md draws it, stays true: sizes of folders, modules and signatures."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from source_trees import SOURCE, nodes

MODULES = sorted(path for path in SOURCE.rglob("*.py") if "example" not in path.relative_to(SOURCE).parts)
MOST_LINES = 500
MOST_MODULES = 18
MOST_PARAMETERS = 7


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    taken = node.args
    named = [item.arg for item in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
    more = [item for item in (taken.vararg, taken.kwarg) if item is not None]
    return len([name for name in named if name not in ("self", "cls")]) + len(more)


def test_the_whole_package_is_looked_through() -> None:
    """Searches that find nothing wrong prove something where they see everything."""
    assert {"api.py", "oci/layout.py", "near/bases/fetch.py"} <= {
        path.relative_to(SOURCE).as_posix() for path in MODULES
    }
    seen = {place for place, _node in nodes(ast.Import)} | {place for place, _node in nodes(ast.ImportFrom)}
    assert len(seen) > 0.9 * len([path for path in MODULES if path.name != "__init__.py"])


def test_no_function_takes_more_than_seven_parameters() -> None:
    # commands of Typer declare an option a parameter; constructors of dataclasses are not written out
    many = {
        f"{place}:{node.name}"
        for place, node in [*nodes(ast.FunctionDef), *nodes(ast.AsyncFunctionDef)]
        if not place.startswith(("cli/", "example/")) and parameters(node) > MOST_PARAMETERS
    }
    assert many == set(), "take a selection, the session or an options object"


def test_no_module_is_longer_than_a_reader_holds() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path.relative_to(SOURCE).as_posix(): lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_folder_holds_more_modules_than_a_reader_overlooks() -> None:
    folders: dict[Path, list[str]] = {}
    for path in MODULES:
        if path.name != "__init__.py":
            folders.setdefault(path.parent, []).append(path.name)
    assert {str(folder): len(names) for folder, names in folders.items() if len(names) > MOST_MODULES} == {}


def test_no_folder_has_a_name_that_tools_take_for_output() -> None:
    folders = {folder for module in SOURCE.rglob("*.py") for folder in module.relative_to(SOURCE).parent.parts}
    assert folders & {"build", "dist", "out", "target"} == set()


@pytest.mark.parametrize("folder", sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()))
def test_the_architecture_names_each_folder(folder: str) -> None:
    assert f"`{folder}/`" in (SOURCE.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
