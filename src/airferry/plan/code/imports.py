"""What a step imports, read from its source without running it.

Imports of the step's own files count at any depth. Of the catalogue's modules that they load, those that always run
count, and those under a condition (in a function, below `if`, in a `try` that expects a failure) are only reported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airferry.errors import ConfigurationError, HostError
from airferry.host import files
from airferry.host.parsing import TOO_DEEP, Malformed
from airferry.plan.catalogue import Catalogue, StepFiles
from airferry.plan.code.modules import well_known_child
from airferry.plan.code.own_modules import OwnModules
from airferry.plan.code.sources import MAX_STEP_SOURCE_BYTES
from airferry.plan.models import Candidate, Origin

_CAUGHT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True, slots=True)
class _Import:
    """One import: `import a.b` has the module `a.b` and no names; `from . import c` has level 1 and the name `c`."""

    module: str
    names: tuple[str, ...]
    level: int
    line: int
    conditional: bool


@dataclass(frozen=True, slots=True)
class _Load:
    """A module that an import loads, with its files if it is the catalogue's own, None if not."""

    module: str
    files: tuple[Path, ...] | None
    line: int
    conditional: bool


class ImportScanner:
    """Finds the candidates of steps of one catalogue. Each file is parsed once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._imports: dict[Path, tuple[_Import, ...]] = {}
        self._shared: dict[Path, tuple[_Load, ...]] = {}
        self._own = OwnModules(catalogue)
        self._reached: dict[Path, tuple[Path, ...]] = {}

    def candidates(self, step: StepFiles) -> tuple[Candidate, ...]:
        """Return what the step's files import from outside of the catalogue and the standard library, by module.

        Raises:
            ConfigurationError: a file that the step loads is not Python.
        """
        found: dict[str, Candidate] = {}
        rank: dict[Origin, int] = {"step": 0, "catalogue": 1, "reported": 2}
        waiting = [step.step_py, *self._own.locate(step.module)[0]]
        seen: set[Path] = set()
        while waiting:
            path = waiting.pop(0)
            if path in seen:
                continue
            seen.add(path)
            owned = path.is_relative_to(step.folder)
            where = ""
            for load in self._loads(path, step, owned=owned):
                conditional = load.conditional and not owned
                if load.files is not None:
                    if not conditional:
                        waiting.extend(load.files)
                    continue
                origin: Origin = "reported" if conditional else "step" if owned else "catalogue"
                known = found.get(load.module)
                if known is None or rank[origin] < rank[known.origin]:
                    where = where or self._catalogue.relative(path)
                    found[load.module] = Candidate(load.module, origin, where, load.line)
        self._reached[step.step_py] = tuple(sorted(seen))
        return tuple(found[module] for module in sorted(found))

    def files(self, step: StepFiles) -> tuple[Path, ...]:
        """Return the files of the catalogue that a step runs: its own, and those that these load.

        Raises:
            ConfigurationError: see `candidates`.
        """
        if step.step_py not in self._reached:
            self.candidates(step)
        return self._reached[step.step_py]

    def _loads(self, path: Path, step: StepFiles, *, owned: bool) -> tuple[_Load, ...]:
        """Return what a file loads; for files that are not the step's own it is the same whichever step asks."""
        known = None if owned else self._shared.get(path)
        if known is None:
            known = tuple(
                _Load(module, files, item.line, item.conditional)
                for item in self._read(path)
                for module, files in self._resolve(item, path, step)
            )
            if not owned:
                self._shared[path] = known
        return known

    def _resolve(self, item: _Import, path: Path, step: StepFiles) -> Iterator[tuple[str, tuple[Path, ...] | None]]:
        """Return the modules that an import loads; files for those of the catalogue, None for all others."""
        base = self._own.absolute(item.module, item.level, path, step)
        top = base.partition(".")[0]
        sibling = () if item.level else self._own.sibling(base, item.names, path, step)
        if sibling:
            yield base, sibling
        elif item.level or self._own.is_own(top):
            yield base, self._own.locate(base)[0]
            for name in item.names:
                files, whole = self._own.locate(f"{base}.{name}")
                if whole:
                    yield f"{base}.{name}", files
        elif top not in sys.stdlib_module_names:
            children = [child for name in item.names if (child := well_known_child(base, name))]
            for module in children if children and len(children) == len(item.names) else [base, *children]:
                yield module, None

    def _read(self, path: Path) -> tuple[_Import, ...]:
        known = self._imports.get(path)
        if known is None:
            try:
                source = files.read_bounded(path, limit_bytes=MAX_STEP_SOURCE_BYTES)
                tree = self._catalogue.trees.parse(source)
                known = self._imports[path] = tuple(_walk(tree.body, conditional=False))
            except (Malformed, RecursionError) as error:
                line = getattr(error, "line", None) or 1
                raise ConfigurationError(
                    f"{path}:{line}: not valid Python: {error if isinstance(error, Malformed) else TOO_DEEP}",
                    hint="correct the file, or run airferry with the Python version of the steps",
                    path=str(path),
                    line=line,
                ) from error
            except HostError as error:
                raise ConfigurationError(error.message, hint=error.hint, path=str(path)) from error
        return known


def _walk(body: list[ast.stmt], *, conditional: bool) -> Iterator[_Import]:
    """Return the imports of a block of statements and of the blocks inside it."""
    for node in body:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield _Import(alias.name, (), 0, node.lineno, conditional)
            case ast.ImportFrom():
                names = tuple(alias.name for alias in node.names if alias.name != "*")
                yield _Import(node.module or "", names, node.level, node.lineno, conditional)
            case ast.If():
                if not _is_type_checking(node.test):
                    yield from _walk(node.body, conditional=True)
                yield from _walk(node.orelse, conditional=True)
            case ast.Try() | ast.TryStar():
                expected = conditional or any(_catches_import_error(handler) for handler in node.handlers)
                yield from _walk(node.body, conditional=expected)
                for handler in node.handlers:
                    yield from _walk(handler.body, conditional=True)
                yield from _walk(node.orelse, conditional=expected)
                yield from _walk(node.finalbody, conditional=conditional)
            case ast.ClassDef() | ast.With():
                yield from _walk(node.body, conditional=conditional)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.AsyncWith():
                yield from _walk(node.body, conditional=True)
            case ast.For() | ast.AsyncFor() | ast.While():
                yield from _walk([*node.body, *node.orelse], conditional=True)
            case ast.Match():
                for match_case in node.cases:
                    yield from _walk(match_case.body, conditional=True)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in _CAUGHT for kind in kinds)
