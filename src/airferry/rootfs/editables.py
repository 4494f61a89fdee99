"""Editable installs of a base: what the finders that build back ends write map modules to.

Each back end copies a finder into a separate module and hands it tables: setuptools, scikit-build-core, meson-python,
and `editables` for hatchling and others. The tables are read, the code is not run.
"""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterator
from typing import Any

from airferry.host.parsing import Malformed, parse_json, parse_literal, parse_python
from airferry.rootfs.search_path import Redirect, SearchPath
from airferry.rootfs.view import RootView

MAX_TABLE = 200_000
MAX_FOLDER_DEPTH = 40
SUFFIXES = (".py", ".pyc", ".so")


def read_editable(place: str, source: str, path: SearchPath) -> bool | None:
    """Add what the finder of an editable install does to a search path, and say whether that was understood.

    `place` is where its source lies. Returns None for what is not such a finder.
    """
    name = posixpath.basename(place)
    if name.startswith("__editable__") and name.endswith("_finder.py"):
        return _read_setuptools(source, path)
    if "ScikitBuildRedirectingFinder" in source:
        return _read_scikit_build(posixpath.dirname(place), source, path)
    if "class MesonpyMetaFinder" in source:
        return _read_meson(source, path)
    if "from editables.redirector import RedirectingFinder" in source:
        return _read_editables(source, path)
    return None


def _read_setuptools(source: str, path: SearchPath) -> bool:
    """Read a finder of setuptools (64 and newer): `MAPPING` and `NAMESPACES`."""
    tables: dict[str, Any] = {}
    for statement in _body(source):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if isinstance(target, ast.Name) and target.id in ("MAPPING", "NAMESPACES"):
                tables[target.id] = _value(statement.value)
    mapping = tables.get("MAPPING")
    if not isinstance(mapping, dict):
        return False
    for package, folder in mapping.items():
        path.mappings.setdefault(str(package), str(folder))
    namespaces = tables.get("NAMESPACES")
    for package, folders in namespaces.items() if isinstance(namespaces, dict) else ():
        if isinstance(folders, list):
            path.editable_namespaces.setdefault(str(package), []).extend(str(folder) for folder in folders)
    return True


def _read_scikit_build(folder: str, source: str, path: SearchPath) -> bool:
    """Read what scikit-build-core's redirector is called with; one that builds in place changes no imports."""
    for function, values in _calls(source, ("install", "install_inplace")):
        if function == "install_inplace":
            return True
        sources, built, directories = (*values, None, None, None)[:3]
        if not isinstance(sources, dict) or not isinstance(built, dict):
            return False
        found = {str(name): str(file) for name, file in sources.items()}
        found |= {str(name): posixpath.join(folder, str(file)) for name, file in built.items()}
        if isinstance(directories, dict):
            places = {
                str(name): [posixpath.join(folder, str(item)) for item in items if isinstance(item, str)]
                for name, items in directories.items()
                if isinstance(items, list)
            }
        else:
            # versions before 1.0 find the folders of packages by their files
            places = {}
            for name, file in found.items():
                package = name if _is_init(file) else name.rpartition(".")[0]
                parent = posixpath.dirname(file)
                if package and parent not in places.setdefault(package, []):
                    places[package].append(parent)
        for name, file in found.items():
            locations = tuple(places.get(name, ())) if _is_init(file) else None
            path.redirects.setdefault(name, Redirect(file, locations))
        for name, items in places.items():
            path.redirects.setdefault(name, Redirect(None, tuple(items)))
        return True
    return False


def _read_meson(source: str, path: SearchPath) -> bool:
    """Read the install plan in the build folder that a finder of meson-python is called with."""
    for _function, values in _calls(source, ("MesonpyMetaFinder", "install")):
        folder = values[2] if len(values) > 2 else None
        if not isinstance(folder, str):
            continue
        text = path.view.read_text(f"{folder}/meson-info/intro-install_plan.json")
        try:
            plan = parse_json(text or "")
        except Malformed:
            return False
        for parts, file in _planned(plan, path.view):
            _add_file(parts, file, path)
        return True
    return False


def _read_editables(source: str, path: SearchPath) -> bool:
    """Read the calls of `map_module`: name and file of top-level modules, which are found once nothing else is."""
    for function, values in _calls(source, ("map_module", "install")):
        if function == "map_module" and len(values) == 2 and all(isinstance(value, str) for value in values):
            name, file = values
            path.mappings.setdefault(name, posixpath.dirname(file) if _is_init(file) else posixpath.splitext(file)[0])
    return True


def _planned(plan: Any, view: RootView) -> Iterator[tuple[list[str], str]]:
    """Yield path below the folder of packages, in parts, and file of each module in an install plan of Meson."""
    for kind, entries in plan.items() if isinstance(plan, dict) else ():
        for file, target in entries.items() if isinstance(entries, dict) else ():
            destination = target.get("destination") if isinstance(target, dict) else None
            parts = destination.split("/") if isinstance(destination, str) else [""]
            if parts[0] not in ("{py_platlib}", "{py_purelib}"):
                continue
            if kind == "install_subdirs":
                for inner in _files(view, file):
                    yield [*parts[1:], *inner], "/".join((file, *inner))
            else:
                yield parts[1:], file


def _files(view: RootView, folder: str) -> Iterator[tuple[str, ...]]:
    waiting: list[tuple[str, ...]] = [()]
    seen = 0
    while waiting:
        parts = waiting.pop()
        for name in view.listdir("/".join((folder, *parts))):
            seen += 1
            if seen > MAX_TABLE:
                return
            if view.is_dir("/".join((folder, *parts, name))):
                if len(parts) < MAX_FOLDER_DEPTH:
                    waiting.append((*parts, name))
            else:
                yield (*parts, name)


def _add_file(parts: list[str], file: str, path: SearchPath) -> None:
    name, _, suffix = parts[-1].partition(".")
    if "." + suffix.rpartition(".")[2] not in SUFFIXES or not all(part.isidentifier() for part in (*parts[:-1], name)):
        return
    packages = parts[:-1]
    if name == "__init__" and packages:
        path.redirects[".".join(packages)] = Redirect(file, ())
    else:
        path.redirects.setdefault(".".join([*packages, name]), Redirect(file))
    for count in range(1, len(packages) + 1):
        path.redirects.setdefault(".".join(packages[:count]), Redirect(None, ()))


def _is_init(file: str) -> bool:
    return posixpath.basename(file) in ("__init__.py", "__init__.pyc")


def _body(source: str) -> list[ast.stmt]:
    try:
        return parse_python(source).body
    except Malformed:
        return []


def _calls(source: str, functions: tuple[str, ...]) -> Iterator[tuple[str, list[Any]]]:
    """Yield name and literal arguments of calls, wherever they stand; `F.install()` counts as `install`."""
    for call in ast.walk(ast.Module(_body(source), [])):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in functions:
            yield name, [_value(argument) for argument in call.args]


def _value(node: ast.expr | None) -> Any:
    try:
        return parse_literal(node) if node is not None else None
    except Malformed:
        return None
