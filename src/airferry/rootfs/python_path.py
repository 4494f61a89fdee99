"""The search path of a base's Python, as its `site` module would make it, and what `.pth` files add to imports.

What runs code is for `static_hooks`. A file that cannot be read, or code that is not understood, puts what is found
nowhere else in doubt, and nothing more.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from airferry.rootfs.files import MAX_PTH_BYTES
from airferry.rootfs.hooks import HookReader
from airferry.rootfs.python import Interpreter, ProcessEnvironment
from airferry.rootfs.search_path import SearchPath, absolute
from airferry.rootfs.view import RootView


def find_search_path(view: RootView, interpreter: Interpreter, environment: ProcessEnvironment) -> SearchPath:
    """Return the search path of an interpreter.

    Raises:
        StaticallyUnknown: it has too many entries.
    """
    variables = environment.variables
    path = SearchPath(view)
    sites = _Sites(path, interpreter, environment)
    if python_path := variables.get("PYTHONPATH"):
        for item in python_path.split(":"):
            path.add(absolute(environment.workdir, item))
    short = interpreter.folder.removeprefix("python").replace(".", "")
    path.add(absolute(interpreter.base_prefix, f"lib/python{short}.zip"))
    path.add(interpreter.stdlib)
    path.add(f"{interpreter.stdlib}/lib-dynload")
    if interpreter.in_venv:
        sites.add_packages([interpreter.prefix])
    if interpreter.system_site and not variables.get("PYTHONNOUSERSITE"):
        user_base = variables.get("PYTHONUSERBASE") or posixpath.join(environment.home, ".local")
        user_site = absolute(user_base, f"lib/{interpreter.folder}/site-packages")
        if view.is_dir(user_site):
            sites.add(user_site)
    prefixes = [interpreter.prefix] if interpreter.in_venv else []
    if interpreter.system_site:
        prefixes.append(interpreter.base_prefix)
    sites.add_packages(prefixes)
    sites.customise(user_site=interpreter.system_site)
    for folder in path.folders:
        if view.is_file(folder):
            path.doubt(
                f"`{folder}`, on the search path of the base's Python, is an archive, which airferry does not read"
            )
    return path


class _Sites:
    """Adds folders of packages to a search path, as `site` does."""

    def __init__(self, path: SearchPath, interpreter: Interpreter, environment: ProcessEnvironment) -> None:
        self._path = path
        self._view = path.view
        self._interpreter = interpreter
        self._hooks = HookReader(path, environment, self.add)
        self._done: set[str] = set()
        # since 3.11.8, 3.12.2 and 3.13, see python/cpython#113659
        site = path.view.read_bytes(f"{interpreter.stdlib}/site.py") or b""
        self._skips_hidden = b'.startswith(".")' in site or b"hidden" in site
        # since 3.12.4 and 3.13, see python/cpython#77102; before, a byte order mark was a part of the first line
        self._skips_mark = b"utf-8-sig" in site

    def add_packages(self, prefixes: Iterable[str]) -> None:
        """Add the folders of packages below prefixes, as far as they are there."""
        interpreter = self._interpreter
        for prefix in prefixes:
            folders = [absolute(prefix, f"lib/{interpreter.folder}/site-packages")]
            if interpreter.is_debian:
                folders = folders if interpreter.in_venv else []
                folders.append(absolute(prefix, f"local/lib/{interpreter.folder}/dist-packages"))
                folders.append(absolute(prefix, "lib/python3/dist-packages"))
                folders.append(absolute(prefix, f"lib/{interpreter.folder}/dist-packages"))
            for folder in folders:
                if self._view.is_dir(folder):
                    self.add(folder)

    def add(self, folder: str) -> None:
        """Add a folder of packages and what its `.pth` files say, as `site.addsitedir` does."""
        folder = absolute("/", folder)
        self._path.add(folder)
        if folder in self._done:
            return
        self._done.add(folder)
        for name in self._view.listdir(folder):
            hidden = name.startswith(".") and self._skips_hidden
            if name.endswith(".pth") and not hidden and self._view.stat(f"{folder}/{name}") is not None:
                self._read(folder, name)

    def customise(self, *, user_site: bool) -> None:
        """Do what the site's and the user's own modules do, of each the first on the path."""
        for module in ("sitecustomize", "usercustomize") if user_site else ("sitecustomize",):
            for folder in list(self._path.folders):
                if self._view.is_file(f"{folder}/{module}/__init__.py"):
                    self._hooks.take_customisation(f"{folder}/{module}")
                    break
                if self._view.is_file(f"{folder}/{module}.py"):
                    self._hooks.take_customisation(f"{folder}/{module}.py")
                    break

    def _read(self, folder: str, name: str) -> None:
        place = f"{folder}/{name}"
        if not self._view.is_file(place):
            return
        text = self._view.read_text(place)
        if text is None:
            self._path.doubt(f"`{place}` is larger than {MAX_PTH_BYTES >> 20} MiB and is not read")
            return
        for line in text.removeprefix("\ufeff" if self._skips_mark else "").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            if line.startswith(("import ", "import\t")):
                if not self._hooks.take_line(folder, name, line.strip()):
                    return
                continue
            item = absolute(folder, line.rstrip())
            if self._view.stat(item) is not None:
                self._path.add(item)
            else:
                self._path.dead[place] = item
