"""What code that runs when a base's Python starts does to imports: `.pth` lines, and a site's customisation.

Nothing is run. Hooks of common tools are known by what they hold; for any other, its syntax tree tells whether it can
touch imports at all. What is not understood is recorded on the search path with its place and the reason, and leaves
open only modules that are found nowhere else.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Callable, Sequence

from airferry.host.parsing import Malformed, parse_python
from airferry.rootfs.editables import read_editable
from airferry.rootfs.python import ProcessEnvironment
from airferry.rootfs.search_path import SearchPath, absolute

MAX_HOOK_MODULES = 50
_DISTUTILS = re.compile(r"os\.environ\.get\((?:var|'SETUPTOOLS_USE_DISTUTILS'), '(\w+)'\) == 'local'")
_NAMESPACE = re.compile(r"\bos\.path\.join\(sys\._getframe\(1\)\.f_locals\['sitedir'\], \*\(([^()]*)\)\)")
# what `easy_install` put around its lines, so that they come first
_EASY_INSTALL_BEGIN = "import sys; sys.__plen = len(sys.path)"
_EASY_INSTALL_END = "import sys; new=sys.path[sys.__plen:]; del sys.path[sys.__plen:]"
_INSTALL_CALL = re.compile(r"import (\w+_finder); ?\1\.install\(\)")
# modules that others' hooks start: they watch or report, and what can be imported stays the same
_HARMLESS = frozenset({"coverage", "apport_python_hook", "faulthandler"})
# attributes and names through which code can change what is imported
_DANGEROUS_ATTRIBUTES = frozenset(
    {"meta_path", "path_hooks", "path_importer_cache", "addsitedir", "__path__", "import_module", "exec_module"}
    | {"run_path", "run_module", "load_module", "load_source", "insert_on", "setattr", "_setup", "__dict__"}
)
_DANGEROUS_NAMES = frozenset({"exec", "eval", "compile", "__import__", "globals", "vars", "setattr", "getattr"})
_DANGEROUS_OF_SYS = frozenset({"path", "modules"})


class HookReader:
    """Reads hooks for one search path, which it changes as they would. Use it while the path is being made."""

    def __init__(self, path: SearchPath, environment: ProcessEnvironment, add_site: Callable[[str], None]) -> None:
        """`add_site` adds a folder with what its own `.pth` files say."""
        self._view = path.view
        self._variables = environment.variables
        self._path = path
        self._add_site = add_site
        self._looked_at = 0
        self._judged: dict[str, str] = {}

    def take_line(self, folder: str, name: str, line: str) -> bool:
        """Do what a line of a `.pth` file does; return False where it fails, which ends the file."""
        place = f"{folder}/{name}"
        if "_distutils_hack" in line and (match := _DISTUTILS.search(line)):
            chosen = self._variables.get("SETUPTOOLS_USE_DISTUTILS", match[1])
            if chosen == "local" and self._view.is_dir(f"{folder}/setuptools/_distutils"):
                self._path.aliases.setdefault("distutils", f"{folder}/setuptools/_distutils")
        elif match := _NAMESPACE.search(line):
            parts = re.findall(r"'([^']+)'", match[1])
            if parts:
                self._path.namespaces.setdefault(".".join(parts), []).append(posixpath.join(folder, *parts))
        elif line == _EASY_INSTALL_BEGIN:
            self._path.mark()
        elif line.startswith(_EASY_INSTALL_END):
            self._path.move_to_front()
        elif match := _INSTALL_CALL.fullmatch(line):
            return self._take_module(match[1], place)
        else:
            return self._take_code(line, place)
        return True

    def take_customisation(self, place: str) -> None:
        """Do what a `sitecustomize` or `usercustomize` does."""
        if self._view.is_dir(place):
            self._doubt(place, "is a package that runs when Python starts")
            return
        source = self._view.read_text(place)
        if source is None:
            self._doubt(place, "is too large to be read")
        else:
            self._take_code(source, place)

    def _doubt(self, place: str, reason: str) -> None:
        self._path.doubt(f"`{place}` {reason}")

    # --- code --------------------------------------------------------------------------------------------------------

    def _take_code(self, source: str, place: str) -> bool:
        tree = _parsed(source)
        if tree is None:
            self._doubt(place, "is not code that can be read")
            return True
        return self._take_statements(tree.body, place)

    def _take_statements(self, statements: Sequence[ast.stmt], place: str) -> bool:
        for statement in statements:
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    if not self._take_module(alias.name, place):
                        return False
            elif isinstance(statement, ast.If):
                # a test on files or variables has one answer in this image; where it has none, both branches must be
                # harmless for the answer not to matter
                holds = self._value(statement.test)
                taken = [*statement.body, *statement.orelse] if holds is None else None
                if taken is None:
                    taken = statement.body if holds else statement.orelse
                elif not self._is_inert(statement, place):
                    self._doubt(place, "runs code that depends on more than files and variables")
                    continue
                if not self._take_statements(taken, place):
                    return False
            elif isinstance(statement, ast.Try):
                # what fails in it is caught; what comes in its handlers and branches is judged as a whole
                if not self._take_statements(statement.body, place):
                    continue
                rest = [*(item for handler in statement.handlers for item in handler.body), *statement.orelse]
                self._take_statements([*rest, *statement.finalbody], place)
            elif not self._take_expression(statement, place) and not self._is_inert(statement, place):
                self._doubt(place, "runs code that may change what can be imported")
        return True

    def _take_expression(self, statement: ast.stmt, place: str) -> bool:
        """Do what a statement does that is one call, or tell that it is none that is understood."""
        if not isinstance(statement, ast.Expr):
            return False
        value = statement.value
        if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.And) and self._value(value.values[0]) is False:
            return True
        if not isinstance(value, ast.Call):
            return False
        called = ast.unparse(value.func)
        text = _literal(value.args[-1]) if value.args else None
        if called == "exec" and text is not None and len(value.args) == 1:
            return self._take_code(text, place)
        if called in ("sys.path.append", "sys.path.insert", "site.addsitedir") and text is not None:
            if called == "site.addsitedir":
                self._add_site(text)
            elif called == "sys.path.append":
                self._path.add(absolute("/", text))
            else:
                self._path.put_first([absolute("/", text)])
            return True
        return False

    def _value(self, test: ast.expr) -> bool | None:
        """Return whether a condition on the environment's variables holds, or None where it asks for more."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            held = self._value(test.operand)
            return None if held is None else not held
        if isinstance(test, ast.BoolOp):
            held_by = [self._value(value) for value in test.values]
            decides = isinstance(test.op, ast.Or)
            if decides in held_by:
                return decides
            return None if None in held_by else not decides
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.In | ast.NotIn):
            name = _literal(test.left)
            if name is not None and ast.unparse(test.comparators[0]) == "os.environ":
                return (name in self._variables) == isinstance(test.ops[0], ast.In)
        if isinstance(test, ast.Call) and ast.unparse(test.func) in ("os.getenv", "os.environ.get") and test.args:
            name = _literal(test.args[0])
            if name is not None and (len(test.args) == 1 or name in self._variables):
                return bool(self._variables.get(name))
        if isinstance(test, ast.Constant):
            return bool(test.value)
        return None

    # --- modules -----------------------------------------------------------------------------------------------------

    def _take_module(self, name: str, place: str) -> bool:
        """Do what importing a module does at the start of Python; return False where it is not there."""
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in _HARMLESS:
            return True
        if self._looked_at >= MAX_HOOK_MODULES:
            self._doubt(place, "imports too many modules")
            return True
        self._looked_at += 1
        path = self._path.find_file(top)
        if path is None:
            return False
        source = self._view.read_text(path) if name == top else None
        if source is None:
            self._doubt(place, f"imports `{name}` when Python starts, which may change what can be imported")
            return True
        is_read = read_editable(path, source, self._path)
        if is_read is not None:
            if not is_read:
                self._doubt(
                    place, f"runs `{path}`, an editable install that differs from what its build backend writes"
                )
            return True
        if "class _Finder" in source and "_DISTUTILS_PATCH" in source:
            return True  # virtualenv's: it patches modules that others find
        if "class NumbaCudaFinder" in source and '"numba.cuda" in name' in source:
            self._path.inner_packages["numba.cuda"] = ("numba_cuda", "numba/cuda")
            return True
        tree = _parsed(source)
        if tree is None or not self._is_inert(tree, place):
            self._doubt(place, f"runs `{path}` when Python starts, which may change what can be imported")
        return True

    def _is_inert(self, tree: ast.AST, place: str) -> bool:
        """Tell whether code cannot change what is imported, whatever of it is run."""
        return all(self._is_inert_node(node, place) for node in ast.walk(tree))

    def _is_inert_node(self, node: ast.AST, place: str) -> bool:
        if isinstance(node, ast.Import):
            return all(self._is_inert_module(alias.name, place) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.level or names & (_DANGEROUS_ATTRIBUTES | {"*"}):
                return False
            return not (node.module == "sys" and names & _DANGEROUS_OF_SYS) and self._is_inert_module(
                node.module or "", place
            )
        if isinstance(node, ast.Name):
            return node.id not in _DANGEROUS_NAMES
        if isinstance(node, ast.Attribute):
            of_sys = isinstance(node.value, ast.Name) and node.value.id == "sys" and node.attr in _DANGEROUS_OF_SYS
            return not of_sys and node.attr not in _DANGEROUS_ATTRIBUTES
        return True

    def _is_inert_module(self, name: str, place: str) -> bool:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in _HARMLESS:
            return top not in ("site", "pkgutil", "runpy", "zipimport", "imp")
        path = self._path.find_file(top)
        if path is None:
            return True
        if path not in self._judged:
            self._judged[path] = ""
            source = self._view.read_text(path) if name == top else None
            tree = _parsed(source) if source is not None and len(self._judged) < MAX_HOOK_MODULES else None
            if tree is None or not self._is_inert(tree, path):
                self._judged[path] = "may change what can be imported"
        return not self._judged[path]


def _parsed(source: str) -> ast.Module | None:
    try:
        return parse_python(source)
    except Malformed:
        return None


def _literal(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
