"""What puts folders on Python's path in a step's job, besides its image: its config, and its own code.

The code is read and never run. What it works out from more than constants and its config is unknown, and said so.
"""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from airferry.errors import HostError
from airferry.host import files
from airferry.host.parsing import Malformed, PythonTrees
from airferry.plan.catalogue import Catalogue
from airferry.plan.code.sources import MAX_STEP_SOURCE_BYTES
from airferry.plan.models import JobPath
from airferry.plan.step_values import StepDocuments, StepValues

PYTHONPATH = "PYTHONPATH"
PYTHONPATH_KEY = ("run", "env", "env_vars", PYTHONPATH)
_MARKS = (b"sys.path", b"addsitedir", PYTHONPATH.encode())
_SAME_PATH = frozenset(
    {"Path", "PurePath", "PosixPath", "PurePosixPath", "str", "fspath", "abspath", "realpath", "normpath", "expanduser"}
)
_METHODS_OF_SAME_PATH = frozenset({"resolve", "absolute", "as_posix", "expanduser", "rstrip", "strip"})
_MAX_DEPTH = 40


class _Unknown:
    """A value that only running the code would tell."""


class _Own:
    """A path that is in no checkout: derived from where the code lies itself, or made for the time of the job."""


@dataclass(frozen=True, slots=True)
class _FromConfig:
    """The value of a key of the step's config, by the key's last part, and what stands in for it."""

    key: str
    default: str | None = None


_Value = str | _Unknown | _Own | _FromConfig
_UNKNOWN, _OWN = _Unknown(), _Own()


@dataclass(frozen=True, slots=True)
class _Addition:
    value: _Value
    line: int


class PathScanner:
    """Finds what steps of one catalogue put on Python's path. Each file is parsed once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._additions: dict[Path, tuple[_Addition, ...]] = {}

    def job_path(self, files: Iterable[Path], config: StepDocuments | None) -> JobPath:
        """Return what the files that a step runs, and its config, put on the path of its job."""
        folders: dict[str, None] = {}
        unknown: dict[str, None] = {}
        for path in files:
            for addition in self._of(path):
                value = addition.value
                if isinstance(value, _FromConfig):
                    value = _from_config(value, config.values if config is not None else None)
                if isinstance(value, str):
                    folders |= dict.fromkeys(part for part in value.split(":") if part.startswith("/"))
                elif isinstance(value, _Unknown):
                    unknown[f"{self._catalogue.relative(path)}:{addition.line}"] = None
        written = config.values.get(*PYTHONPATH_KEY) if config is not None and config.mentions({PYTHONPATH}) else None
        if written is None or written.value is None:
            return JobPath(folders=tuple(folders), unknown=tuple(unknown))
        place = f"{self._catalogue.relative(written.file)}:{written.line}"
        return JobPath(str(written.value), place, tuple(folders), tuple(unknown))

    def _of(self, path: Path) -> tuple[_Addition, ...]:
        known = self._additions.get(path)
        if known is None:
            known = self._additions[path] = tuple(
                sorted(_read(path, self._catalogue.trees), key=lambda item: item.line)
            )
        return known


def _read(path: Path, trees: PythonTrees) -> Iterable[_Addition]:
    """Return what a file puts on the path. One that is not Python is told of where imports are read."""
    try:
        source = files.read_bounded(path, limit_bytes=MAX_STEP_SOURCE_BYTES)
        # most files say nothing of paths, and parsing is slow
        return list(_additions(trees.parse(source))) if any(mark in source for mark in _MARKS) else ()
    except (HostError, Malformed, RecursionError):
        return ()


def _from_config(wanted: _FromConfig, values: StepValues | None) -> _Value:
    found = [value for value in values.values if value.last == wanted.key] if values is not None else []
    texts = {value.text for value in found if value.text}
    if len(texts) == 1:
        return texts.pop()
    return wanted.default if wanted.default is not None and not found else _UNKNOWN


def _additions(tree: ast.Module) -> Iterator[_Addition]:
    names = _constants(tree)
    for node in ast.walk(tree):
        for value in _added(node, names):
            yield _Addition(value, getattr(node, "lineno", 1))


def _added(node: ast.AST, names: Mapping[str, ast.expr]) -> Iterator[_Value]:
    """Yield what one statement or expression puts on the path."""
    match node:
        case ast.Call():
            yield from _added_by_call(node, names)
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                yield from _added_by_value(target, value, names)
        case ast.AugAssign(target=target, value=value):
            yield from _added_by_value(target, value, names)
        case ast.Dict(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                if isinstance(key, ast.Constant) and key.value == PYTHONPATH:
                    yield from _parts(value, names)


def _added_by_call(node: ast.Call, names: Mapping[str, ast.expr]) -> Iterator[_Value]:
    for keyword in node.keywords:
        if keyword.arg == PYTHONPATH:
            yield from _parts(keyword.value, names)
    name, arguments = _name(node.func), node.args
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    match arguments:
        case [argument] if name == "extend" and owner is not None and _is_path(owner):
            yield from _elements(argument, names)
        case [argument] | [_, argument] if name in ("append", "insert") and owner is not None and _is_path(owner):
            yield _evaluate(argument, names)
        case [argument, *_] if name == "addsitedir":
            yield _evaluate(argument, names)
        case [ast.Constant(value="PYTHONPATH"), value] if name in ("setdefault", "putenv"):
            yield from _parts(value, names)


def _added_by_value(target: ast.expr, value: ast.expr, names: Mapping[str, ast.expr]) -> Iterator[_Value]:
    if _is_path(target) or _is_slice_of_path(target):
        yield from _elements(value, names)
    elif _names_variable(target):
        yield from _parts(value, names)


def _is_path(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "path" and _name(node.value) == "sys"


def _is_slice_of_path(node: ast.expr) -> bool:
    return isinstance(node, ast.Subscript) and _is_path(node.value)


def _names_variable(node: ast.expr) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value == PYTHONPATH


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the names of a file that are given one value only, and that; arguments of functions have none."""
    found: dict[str, list[ast.expr | None]] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    if isinstance(target, ast.Name):
                        found.setdefault(target.id, []).append(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found.setdefault(name, []).append(value)
            case ast.arg(arg=name) | ast.AugAssign(target=ast.Name(id=name)) | ast.NamedExpr(target=ast.Name(id=name)):
                found.setdefault(name, []).append(None)
            case ast.For(target=target) | ast.comprehension(target=target) | ast.AsyncFor(target=target):
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        found.setdefault(part.id, []).append(None)
    return {name: values[0] for name, values in found.items() if len(values) == 1 and values[0] is not None}


def _elements(node: ast.expr, names: Mapping[str, ast.expr]) -> Iterator[_Value]:
    """Yield the entries of a list that goes to `sys.path`; what was there before adds nothing."""
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            for item in items:
                yield from _elements(item.value, names) if isinstance(item, ast.Starred) else [_evaluate(item, names)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from _elements(left, names)
            yield from _elements(right, names)
        case ast.Call(func=ast.Name(id="list"), args=[argument]) if _is_path(argument):
            return
        case ast.ListComp(generators=[ast.comprehension(iter=source)]) if _is_path(source):
            return
        case ast.Name(id=name) if name in names:
            yield from _elements(names[name], {key: value for key, value in names.items() if key != name})
        case _ if _is_path(node) or _is_slice_of_path(node):
            return
        case _:
            yield _UNKNOWN


def _parts(node: ast.expr, names: Mapping[str, ast.expr]) -> Iterator[_Value]:
    """Yield the entries of a text that goes to `PYTHONPATH`; what was there before adds nothing."""
    entries: list[list[_Value]] = [[]]
    for piece in _pieces(node, names):
        if isinstance(piece, str):
            first, *rest = piece.split(":")
            entries[-1].append(first)
            entries += [[text] for text in rest]
        else:
            entries[-1].append(piece)
    for entry in entries:
        values = [value for value in entry if value != ""]
        if values:
            yield values[0] if len(values) == 1 else _joined("", values)


def _pieces(node: ast.expr, names: Mapping[str, ast.expr]) -> Iterator[_Value]:
    match node:
        case ast.JoinedStr(values=values):
            for value in values:
                yield from _pieces(value.value if isinstance(value, ast.FormattedValue) else value, names)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from _pieces(left, names)
            yield from _pieces(right, names)
        case ast.Call(func=ast.Attribute(attr="join"), args=[ast.List(elts=items) | ast.Tuple(elts=items)]):
            for index, item in enumerate(items):
                yield ":" if index else ""
                yield from _pieces(item, names)
        case ast.Call(func=ast.Attribute(attr="get" | "getenv" | "pop"), args=[ast.Constant(value="PYTHONPATH"), *_]):
            return
        case ast.Subscript() if _names_variable(node):
            return
        case ast.Attribute(attr="pathsep"):
            yield ":"
        case _:
            yield _evaluate(node, names)


def _evaluate(node: ast.expr, names: Mapping[str, ast.expr], depth: int = 0) -> _Value:
    """Return what an expression is, as far as constants and the step's config tell."""
    if depth > _MAX_DEPTH:
        return _UNKNOWN

    def inner(part: ast.expr) -> _Value:
        return _evaluate(part, names, depth + 1)

    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id="__file__"):
            return _OWN
        case ast.Name(id=name) if name in names:
            return inner(names[name])
        case ast.JoinedStr(values=values):
            return _joined("", [inner(part.value if isinstance(part, ast.FormattedValue) else part) for part in values])
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _joined("/", [inner(left), inner(right)])
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _joined("", [inner(left), inner(right)])
        case ast.Attribute(value=value, attr="parent"):
            return _above(inner(value), 1)
        case ast.Subscript(value=ast.Attribute(value=value, attr="parents"), slice=ast.Constant(value=int(count))):
            return _above(inner(value), count + 1)
        case ast.Subscript(slice=ast.Constant(value=str(key)), value=value) if not _is_environment(value):
            return _FromConfig(key)
        case ast.Call(func=function, args=arguments):
            return _called(function, arguments, inner)
    return _UNKNOWN


def _called(function: ast.expr, arguments: list[ast.expr], inner: Any) -> _Value:
    name = _name(function)
    owner = function.value if isinstance(function, ast.Attribute) else None
    match arguments:
        case [ast.Constant(value=str(key)), *rest] if (
            name == "get" and owner is not None and not _is_environment(owner)
        ):
            default = inner(rest[0]) if rest else None
            return _FromConfig(key, default if isinstance(default, str) else None)
        case [ast.Constant(value=str()), default] if name in ("get", "getenv"):
            return inner(default)  # type: ignore[no-any-return]
        case [first, *rest] if name == "join" and owner is not None and _name(owner) in ("path", "posixpath"):
            return _joined("/", [inner(first), *map(inner, rest)])
        case [argument] if name == "dirname":
            return _above(inner(argument), 1)
        case [argument] if name in _SAME_PATH:
            return inner(argument)  # type: ignore[no-any-return]
        case [*parts] if owner is not None and name == "joinpath":
            return _joined("/", [inner(owner), *map(inner, parts)])
        case _ if owner is not None and name in _METHODS_OF_SAME_PATH:
            return inner(owner)  # type: ignore[no-any-return]
        case _ if name in ("getcwd", "cwd", "mkdtemp", "gettempdir"):
            return _OWN
    return _UNKNOWN


def _is_environment(node: ast.expr) -> bool:
    return _name(node) in ("environ", "env")


def _joined(separator: str, values: list[_Value]) -> _Value:
    if values and isinstance(values[0], _Own):
        return _OWN
    if not all(isinstance(value, str) for value in values):
        return _UNKNOWN
    texts = [str(value) for value in values]
    return posixpath.join(*texts) if separator == "/" else "".join(texts)


def _above(value: _Value, count: int) -> _Value:
    if not isinstance(value, str):
        return value if isinstance(value, _Own) else _UNKNOWN
    parents = PurePosixPath(value).parents
    return str(parents[count - 1]) if count <= len(parents) else _UNKNOWN
