"""The code that a step runs: its own files, and of the catalogue's modules the definitions that these lead to.

Parses with `ast` and runs nothing. A definition (a function or class at a module's top) is reached when reached code
names it; the code of a module's top when it is imported. That over-counts a little, as all methods of a class count,
and follows no name that is made while the code runs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from airferry.errors import HostError
from airferry.host import files
from airferry.host.parsing import Malformed
from airferry.plan.catalogue import Catalogue, StepFiles
from airferry.plan.code.own_modules import OwnModules

MAX_STEP_SOURCE_BYTES = 4 * 1024 * 1024
MAX_FILES = 5000
MAX_HOPS = 8
_NOT_RUN = ("test", "tests")
_MARKS = frozenset({"ctx", "op", "ops", "type_comment", "kind", "type_ignores"})
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Found = TypeVar("_Found")
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True, slots=True)
class Binding:
    """What an import gives a name: a module, or a name of it."""

    module: str
    name: str | None = None

    @property
    def dotted(self) -> str:
        """The whole name."""
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True, slots=True)
class Assignment:
    """An expression that a name gets, or that is added to it, at a line."""

    line: int
    value: ast.expr
    adds: bool = False


@dataclass
class Scope:
    """What names hold in a function, a class or a module, by the line at which they get it."""

    parent: Scope | None = None
    names: dict[str, list[Assignment]] = field(default_factory=dict)


@dataclass
class CodeFile:
    """A parsed file: the definitions at its top, what its imports bind, and the names at its top."""

    path: Path
    tree: ast.Module
    lines: list[str] = field(default_factory=list)
    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, Binding] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    top: Scope = field(default_factory=Scope)


@dataclass(frozen=True, slots=True)
class Unit:
    """A definition of a file, or, without a name, the code at its top."""

    path: Path
    name: str | None = None


class StepCode:
    """Reads the code of a catalogue's steps. Each file is parsed once; one that is not Python is skipped."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._own = OwnModules(catalogue)
        self._trees = catalogue.trees
        self._files: dict[Path, CodeFile | None] = {}
        self._leads: dict[Unit, tuple[Unit, ...]] = {}

    def reached(self, step: StepFiles) -> list[Unit]:
        """Return what runs when a step does: all files of the step, and what these lead to, in that order."""
        waiting = [unit for path in _own_files(step) for unit in self._whole(path, step)]
        waiting += [Unit(path) for path in self._own.locate(step.module)[0]]
        seen = dict.fromkeys(waiting)
        while waiting and len(self._files) < MAX_FILES:
            for unit in self._follow(waiting.pop(0), step):
                if unit not in seen:
                    seen[unit] = None
                    waiting.append(unit)
        return list(seen)

    def file(self, path: Path, step: StepFiles) -> CodeFile | None:
        """Return a file parsed, or None where it cannot be."""
        if path not in self._files:
            self._files[path] = self._parse(path, step)
        return self._files[path]

    def _parse(self, path: Path, step: StepFiles) -> CodeFile | None:
        try:
            source = files.read_bounded(path, limit_bytes=MAX_STEP_SOURCE_BYTES)
            tree = self._trees.parse(source)
        except (HostError, Malformed):
            return None
        found = CodeFile(path, tree, source.decode("utf-8", "replace").split("\n"), top=scope_of(tree, None))
        for node in walk(tree.body):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    found.imports.setdefault(bound, Binding(alias.name if alias.asname else bound))
            elif isinstance(node, ast.ImportFrom):
                module = self._own.absolute(node.module or "", node.level, path, step)
                for alias in node.names:
                    if alias.name == "*":
                        found.stars.append(module)
                    else:
                        found.imports.setdefault(alias.asname or alias.name, Binding(module, alias.name))
        for statement in statements_below(tree.body):
            if isinstance(statement, Definition):
                found.definitions[statement.name] = statement
        return found

    def _whole(self, path: Path, step: StepFiles) -> list[Unit]:
        code = self.file(path, step)
        return [] if code is None else [Unit(path), *(Unit(path, name) for name in code.definitions)]

    def nodes(self, unit: Unit, step: StepFiles) -> list[ast.stmt]:
        """Return the statements of a unit: a definition, or what is at a file's top between the definitions."""
        code = self.file(unit.path, step)
        if code is None:
            return []
        if unit.name is not None:
            return [code.definitions[unit.name]]
        own = unit.path.is_relative_to(step.folder)
        return [item for item in code.tree.body if not isinstance(item, Definition) and (own or not _is_main(item))]

    def _follow(self, unit: Unit, step: StepFiles) -> tuple[Unit, ...]:
        known = self._leads.get(unit)
        if known is None:
            known = self._leads[unit] = tuple(dict.fromkeys(self._look(unit, step)))
        return known

    def _look(self, unit: Unit, step: StepFiles) -> Iterator[Unit]:
        code = self.file(unit.path, step)
        if code is None:
            return
        for node in walk(self.nodes(unit, step)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._loaded(alias.name, (), unit.path, step)
            elif isinstance(node, ast.ImportFrom):
                module = self._own.absolute(node.module or "", node.level, unit.path, step)
                names = () if node.level else tuple(alias.name for alias in node.names)
                yield from self._loaded(module, names, unit.path, step)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                yield from self._named(code, [node.id], step)
            elif isinstance(node, ast.Attribute) and (parts := parts_of(node)):
                yield from self._named(code, parts, step)

    def _loaded(self, module: str, names: tuple[str, ...], path: Path, step: StepFiles) -> Iterator[Unit]:
        for file in self._own.sibling(module, names, path, step) or self._files_of(module):
            yield Unit(file)

    def _files_of(self, module: str) -> tuple[Path, ...]:
        return self._own.locate(module)[0] if self._own.is_own(module) else ()

    def _named(self, code: CodeFile, parts: list[str], step: StepFiles) -> Iterator[Unit]:
        found = self.find(code, parts, step)
        if found is not None:
            yield Unit(found[0].path, found[1])

    def find(self, code: CodeFile, parts: list[str], step: StepFiles) -> tuple[CodeFile, str] | None:
        """Return the file and name of the definition that a name stands for, through imports that pass it on."""

        def defined(file: CodeFile, names: list[str]) -> str | None:
            return names[0] if names[0] in file.definitions else None

        return self._passed_on(code, parts, step, defined)

    def constant(self, code: CodeFile, parts: list[str], step: StepFiles) -> tuple[CodeFile, list[Assignment]] | None:
        """Return the file and the assignments of a name at a module's top, through imports that pass it on."""

        def assigned(file: CodeFile, names: list[str]) -> list[Assignment] | None:
            return file.top.names.get(names[0]) if len(names) == 1 else None

        return self._passed_on(code, parts, step, assigned)

    def _passed_on(
        self,
        code: CodeFile,
        parts: list[str],
        step: StepFiles,
        look: Callable[[CodeFile, list[str]], _Found | None],
        *,
        hops: int = 0,
    ) -> tuple[CodeFile, _Found] | None:
        """Return the first file, through imports that pass a name on, in which `look` finds it, and what it found."""
        if (known := look(code, parts)) is not None:
            return code, known
        module, name = self._binding(code, parts)
        if not name or hops > MAX_HOPS:
            return None
        for other in self._modules_of(code, module, step):
            if (found := self._passed_on(other, [name], step, look, hops=hops + 1)) is not None:
                return found
        return None

    def _binding(self, code: CodeFile, parts: list[str]) -> tuple[str, str]:
        """Return the module and the name in it that dotted parts stand for in a file; no name where there is none."""
        bound = code.imports.get(parts[0])
        if bound is None:
            return "", parts[0] if code.stars and len(parts) == 1 else ""
        whole = [*bound.dotted.split("."), *parts[1:]]
        for end in range(len(whole) - 1, 0, -1):
            module = ".".join(whole[:end])
            found, complete = self._own.locate(module) if self._own.is_own(module) else ((), False)
            if found and complete:
                return module, whole[end]
        return bound.module, bound.name or ""

    def _modules_of(self, code: CodeFile, module: str, step: StepFiles) -> Iterator[CodeFile]:
        """Return the file of a module, or those of all that a file imports with a star where no module is named."""
        for name in [module] if module else code.stars:
            found = self._own.sibling(name, (), code.path, step) or self._files_of(name)
            other = self.file(found[-1], step) if found else None
            if other is not None and other is not code:
                yield other

    def dotted(self, code: CodeFile, node: ast.expr) -> str:
        """Return the whole name of what an expression calls, as imports have it; nothing where it is none of these."""
        parts = parts_of(node)
        bound = code.imports.get(parts[0]) if parts else None
        return "" if bound is None else ".".join([bound.dotted, *parts[1:]])


def parts_of(node: ast.expr) -> list[str]:
    """Return the parts of a dotted name, or none where it begins with something else than a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def children_of(node: ast.AST) -> list[ast.AST]:
    """Return the nodes below one, without operators, and without those that only a type checker reads.

    Does what `ast.iter_child_nodes` does in half the time, which is most of what looking at code takes.
    """
    if isinstance(node, ast.If) and parts_of(node.test)[-1:] == ["TYPE_CHECKING"]:
        return list(node.orelse)
    found: list[ast.AST] = []
    for name in node._fields:
        if name not in _MARKS:
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                found.append(value)
            elif isinstance(value, list):
                found += [item for item in value if isinstance(item, ast.AST)]
    return found


def walk(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
    """Return all nodes below statements, without those that only a type checker reads."""
    waiting: list[ast.AST] = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(children_of(node)))


def statements_below(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Return the statements of a block and of the blocks in it, but not of the definitions in it."""
    waiting = list(reversed(body))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Definition):
            blocks = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.ExceptHandler | ast.match_case):
                    blocks.extend(child.body)
            waiting.extend(reversed(blocks))


def scope_of(node: ast.Module | ast.ClassDef | Function, parent: Scope | None) -> Scope:
    """Return what a module's, class's or function's own statements assign to names."""
    scope = Scope(parent)
    if isinstance(node, Function):
        _add_defaults(node.args, scope)
    waiting: list[ast.AST] = list(reversed(node.body)) if isinstance(node.body, list) else [node.body]
    while waiting:
        item = waiting.pop()
        _add_assignments(item, scope)
        if not isinstance(item, Definition | ast.Lambda):
            waiting.extend(reversed(children_of(item)))
    return scope


def _add_defaults(arguments: ast.arguments, scope: Scope) -> None:
    positional = [*arguments.posonlyargs, *arguments.args]
    first = len(positional) - len(arguments.defaults)
    pairs = [*zip(positional[first:], arguments.defaults, strict=True)]
    pairs += [(name, value) for name, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value]
    for argument in [*positional, *arguments.kwonlyargs]:
        scope.names.setdefault(argument.arg, [])  # hides what is outside, known or not
    for argument, value in pairs:
        scope.names[argument.arg].append(Assignment(0, value))


def _add_assignments(node: ast.AST, scope: Scope) -> None:
    targets: list[ast.expr] = []
    value: ast.expr | None = None
    adds = False
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign):
        targets, value, adds = [node.target], node.value, isinstance(node, ast.AugAssign)
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        targets, value = [node.optional_vars], node.context_expr
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        call, function = node.value, node.value.func
        if function.attr in ("append", "extend") and len(call.args) == 1:
            item = call.args[0]
            value = (
                item if function.attr == "extend" else ast.copy_location(ast.List(elts=[item], ctx=ast.Load()), item)
            )
            targets, adds = [function.value], True
    for target in targets if value is not None else ():
        if name := ".".join(parts_of(target)):
            assert value is not None
            scope.names.setdefault(name, []).append(Assignment(target.lineno, value, adds))


def _own_files(step: StepFiles) -> list[Path]:
    """Return the Python files of a step's folder, without those of steps below it and tests."""
    found = [step.step_py]
    for path in sorted(step.folder.rglob("*.py")):
        below = path.relative_to(step.folder)
        inner = any((step.folder / parent / "step.toml").is_file() for parent in below.parents if parent.parts)
        if not inner and path != step.step_py and not (set(below.parts) & set(_NOT_RUN)):
            found.append(path)
    return [path for path in found if not path.name.startswith("test_")]


def _is_main(node: ast.stmt) -> bool:
    """Tell whether a statement is the block that runs in a program only: `if __name__ == "__main__"`."""
    return isinstance(node, ast.If) and any(
        isinstance(item, ast.Name) and item.id == "__name__" for item in ast.walk(node.test)
    )
