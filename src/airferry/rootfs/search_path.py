"""Where a base's Python looks for modules, as data: folders, what editable installs map, and what is in doubt."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field

from airferry.rootfs.python import StaticallyUnknown
from airferry.rootfs.view import RootView

MAX_SEARCH_PATH_ENTRIES = 2000
MAX_DOUBTS = 20


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a hook finds a module: `source` is its file, None for a namespace; `locations` those of a package."""

    source: str | None
    locations: tuple[str, ...] | None = None


@dataclass(slots=True)
class SearchPath:
    """Where a Python looks for modules: folders in order, and what hooks change about it.

    `redirects` are modules that a hook finds before anything else does, by their full names. `mappings` lead from a
    package or module to its folder, or to its file without suffix, once nothing else has found it. `namespaces` are
    namespace packages that `.pth` files make, with their folders, and `editable_namespaces` those that editable
    installs add to. `aliases` are modules that a hook puts elsewhere, and `inner_packages` those that it takes from a
    folder of another package. `dead` are lines of `.pth` files, by the file's path, that lead nowhere. `doubts` say of
    each hook that is not understood why.
    """

    view: RootView
    folders: list[str] = field(default_factory=list)
    redirects: dict[str, Redirect] = field(default_factory=dict)
    mappings: dict[str, str] = field(default_factory=dict)
    namespaces: dict[str, list[str]] = field(default_factory=dict)
    editable_namespaces: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    inner_packages: dict[str, tuple[str, str]] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    _marked: int = 0
    _moved: int = 0

    def add(self, folder: str) -> None:
        """Add a folder, if it is not there yet.

        Raises:
            StaticallyUnknown: there are too many.
        """
        if folder in self.folders:
            return
        if len(self.folders) >= MAX_SEARCH_PATH_ENTRIES:
            raise StaticallyUnknown(
                f"the search path of the base's Python has more than {MAX_SEARCH_PATH_ENTRIES} entries"
            )
        self.folders.append(folder)

    def put_first(self, folders: Iterable[str]) -> None:
        """Put folders before all others."""
        self.folders[:0] = folders

    def doubt(self, why: str) -> None:
        """Record what may change imports and is not understood."""
        if why not in self.doubts and len(self.doubts) < MAX_DOUBTS:
            self.doubts.append(why)

    def mark(self) -> None:
        """Remember how long the path is, for `move_to_front`."""
        self._marked = len(self.folders)

    def move_to_front(self) -> None:
        """Put what was added since `mark` before the rest, behind what was moved so before."""
        added = self.folders[self._marked :]
        del self.folders[self._marked :]
        self.folders[self._moved : self._moved] = added
        self._moved += len(added)

    def find_file(self, name: str) -> str | None:
        """Return the source of a top-level module that lies on the path, a package's `__init__.py` included."""
        for folder in self.folders:
            for place in (f"{folder}/{name}/__init__.py", f"{folder}/{name}.py"):
                if self.view.is_file(place):
                    return place
        return None


def absolute(folder: str, name: str) -> str:
    """Return a path as the interpreter would make it absolute from a folder."""
    return posixpath.normpath(posixpath.join("/", folder, name)).replace("//", "/")
