"""The search path of a base's Python, as its `site` module would make it, and what `.pth` files add to imports.

Lines of `.pth` files that run code are understood where common tools write them; any other one raises
`StaticallyUnknown`, as does a `sitecustomize` that touches imports.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from airferry.build.static_python import Environment, Interpreter, StaticallyUnknown
from airferry.build.view import RootView

MAX_ENTRIES = 2000
_EDITABLE = re.compile(r"import (__editable___\w+_finder); ?(__editable___\w+_finder)\.install\(\)")
_DISTUTILS = re.compile(r"os\.environ\.get\((?:var|'SETUPTOOLS_USE_DISTUTILS'), '(\w+)'\) == 'local'")
_NAMESPACE = re.compile(r"\bos\.path\.join\(sys\._getframe\(1\)\.f_locals\['sitedir'\], \*\(([^()]*)\)\)")
_HARMLESS = re.compile(r"import (?:_virtualenv|coverage; ?coverage\.process_startup\(\)|sys)\s*;?\s*$")
_TOUCHES_IMPORTS = re.compile(rb"sys\.path|meta_path|path_hooks|addsitedir|__path__|sys\.modules")


@dataclass(slots=True)
class SearchPath:
    """Where a Python looks for modules: folders in order, and what editable installs map a package to.

    `mappings` lead from a package or module to its folder, or to its file without suffix; `namespaces` are namespace
    packages that `.pth` files make, with their folders, and `editable_namespaces` those that editable installs add to;
    `aliases` are modules that a hook puts elsewhere.
    """

    folders: list[str] = field(default_factory=list)
    mappings: dict[str, str] = field(default_factory=dict)
    namespaces: dict[str, list[str]] = field(default_factory=dict)
    editable_namespaces: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def add(self, folder: str) -> bool:
        """Add a folder that is not there yet, and say so."""
        if folder in self.folders:
            return False
        if len(self.folders) >= MAX_ENTRIES:
            raise StaticallyUnknown(f"the search path of the base's Python has more than {MAX_ENTRIES} entries")
        self.folders.append(folder)
        return True


def find_search_path(view: RootView, interpreter: Interpreter, environment: Environment) -> SearchPath:
    """Return the search path of an interpreter.

    Raises:
        StaticallyUnknown: the base runs code at start-up that may change it.
    """
    variables = environment.variables
    path = SearchPath()
    if python_path := variables.get("PYTHONPATH"):
        for item in python_path.split(":"):
            path.add(_absolute(environment.workdir, item))
    short = interpreter.folder.removeprefix("python").replace(".", "")
    path.add(_absolute(interpreter.base_prefix, f"lib/python{short}.zip"))
    path.add(interpreter.stdlib)
    path.add(f"{interpreter.stdlib}/lib-dynload")
    done: set[str] = set()
    if interpreter.in_venv:
        _add_packages(view, path, interpreter, [interpreter.prefix], environment, done)
    if interpreter.system_site and not variables.get("PYTHONNOUSERSITE"):
        user_base = variables.get("PYTHONUSERBASE") or posixpath.join(environment.home, ".local")
        user_site = _absolute(user_base, f"lib/{interpreter.folder}/site-packages")
        if view.is_dir(user_site):
            _add_site(view, path, user_site, environment, done)
    prefixes = [interpreter.prefix] if interpreter.in_venv else []
    if interpreter.system_site:
        prefixes.append(interpreter.base_prefix)
    _add_packages(view, path, interpreter, prefixes, environment, done)
    _refuse_customisation(view, path, user_site=interpreter.system_site)
    _refuse_archives(view, path)
    return path


def _absolute(folder: str, name: str) -> str:
    return posixpath.normpath(posixpath.join("/", folder, name)).replace("//", "/")


def _add_packages(
    view: RootView,
    path: SearchPath,
    interpreter: Interpreter,
    prefixes: Iterable[str],
    environment: Environment,
    done: set[str],
) -> None:
    for prefix in prefixes:
        site = _absolute(prefix, f"lib/{interpreter.folder}/site-packages")
        folders = [site]
        if interpreter.is_debian:
            folders = [site] if interpreter.in_venv else []
            folders.append(_absolute(prefix, f"local/lib/{interpreter.folder}/dist-packages"))
            folders.append(_absolute(prefix, "lib/python3/dist-packages"))
            folders.append(_absolute(prefix, f"lib/{interpreter.folder}/dist-packages"))
        for folder in folders:
            if view.is_dir(folder):
                _add_site(view, path, folder, environment, done)


def _add_site(view: RootView, path: SearchPath, folder: str, environment: Environment, done: set[str]) -> None:
    """Add a folder of packages and what its `.pth` files say, as `site.addsitedir` does."""
    path.add(folder)
    if folder in done:
        return
    done.add(folder)
    for name in view.listdir(folder):
        if not name.endswith(".pth") or not view.is_file(f"{folder}/{name}"):
            continue
        text = view.read_text(f"{folder}/{name}")
        if text is None:
            raise StaticallyUnknown(f"`{folder}/{name}` is too large")
        for line in text.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            if line.startswith(("import ", "import\t")):
                _take_code(view, path, folder, line.strip(), name=name, environment=environment)
                continue
            item = _absolute(folder, line.rstrip())
            if view.stat(item) is not None:
                path.add(item)


def _take_code(
    view: RootView, path: SearchPath, folder: str, line: str, *, name: str, environment: Environment
) -> None:
    if match := _EDITABLE.fullmatch(line):
        _take_finder(view, path, f"{folder}/{match[1]}.py")
    elif "_distutils_hack" in line and (match := _DISTUTILS.search(line)):
        chosen = environment.variables.get("SETUPTOOLS_USE_DISTUTILS", match[1])
        if chosen == "local" and view.is_dir(f"{folder}/setuptools/_distutils"):
            path.aliases.setdefault("distutils", f"{folder}/setuptools/_distutils")
    elif match := _NAMESPACE.search(line):
        parts = re.findall(r"'([^']+)'", match[1])
        if parts:
            path.namespaces.setdefault(".".join(parts), []).append(posixpath.join(folder, *parts))
    elif not _HARMLESS.match(line):
        raise StaticallyUnknown(f"`{folder}/{name}` runs code of its own when Python starts")


def _take_finder(view: RootView, path: SearchPath, finder: str) -> None:
    """Read the tables of a finder that setuptools writes for an editable install."""
    text = view.read_text(finder)
    if text is None:
        raise StaticallyUnknown(f"`{finder}` is missing or too large")
    tables: dict[str, dict[str, object]] = {}
    for match in re.finditer(r"^(MAPPING|NAMESPACES)\b[^=\n]*=\s*(\{.*\})\s*$", text, re.MULTILINE):
        try:
            value = ast.literal_eval(match[2])
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise StaticallyUnknown(f"`{finder}` is not as setuptools writes it") from error
        tables[match[1]] = value if isinstance(value, dict) else {}
    if "MAPPING" not in tables:
        raise StaticallyUnknown(f"`{finder}` is not as setuptools writes it")
    for package, place in tables["MAPPING"].items():
        path.mappings.setdefault(str(package), str(place))
    for package, places in tables.get("NAMESPACES", {}).items():
        if isinstance(places, list):
            path.editable_namespaces.setdefault(str(package), []).extend(str(place) for place in places)


def _refuse_customisation(view: RootView, path: SearchPath, *, user_site: bool) -> None:
    for module in ("sitecustomize", "usercustomize") if user_site else ("sitecustomize",):
        for folder in path.folders:
            if not view.is_dir(folder):
                continue
            if view.is_dir(f"{folder}/{module}"):
                raise StaticallyUnknown(f"`{folder}/{module}` is a package that runs when Python starts")
            if view.is_file(f"{folder}/{module}.py"):
                source = view.read_bytes(f"{folder}/{module}.py")
                if source is None or _TOUCHES_IMPORTS.search(source):
                    raise StaticallyUnknown(f"`{folder}/{module}.py` may change what can be imported")
                break


def _refuse_archives(view: RootView, path: SearchPath) -> None:
    for folder in path.folders:
        if view.is_file(folder):
            raise StaticallyUnknown(f"`{folder}`, on the search path of the base's Python, is an archive")
