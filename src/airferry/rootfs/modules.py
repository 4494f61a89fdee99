"""Which modules a base's Python can import, told from its files as the import system's own finders would (PEP 420).

A module is also followed through the imports at the first column of its source and of what those import, so that one
that needs an absent module is known as incomplete. What a module does beyond that when it runs is not known here: an
import under `if`, in `try` or in a function is taken to succeed, and a compiled module to load. A module that is found
nowhere is unknown, not missing, where sources show that a package generates modules, or where a hook that is not
understood might bring it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airferry.rootfs.files import imported_names
from airferry.rootfs.python import Interpreter, StaticallyUnknown
from airferry.rootfs.search_path import SearchPath
from airferry.rootfs.view import RootView

MAX_MODULES = 200_000
ALWAYS_THERE = frozenset({"os.path", "__main__"})
# modules that packages make when they run, and that are there whenever the package is
MADE_BY = {"six.moves": "six"}


class ModuleAnswer(BaseModel):
    """What a real import says of one module.

    `missing`: it, or a parent of it, is not there; `missing` names which. `incomplete`: it is there but imports a
    module that is not, which `missing` names. `present`: it is there; `note` says why the import failed all the same,
    for instance for want of a GPU library. `unknown`: it is found nowhere, and `doubt` says what may bring it all the
    same; only files that were looked at, and not run, give this answer. An incomplete one with a doubt may be whole.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: Literal["present", "missing", "incomplete", "unknown"]
    missing: str = ""
    note: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class FoundModule:
    """A module that is there. `locations` are where its submodules are looked for, None for one that has none."""

    locations: tuple[str, ...] | None = None
    source: str | None = None
    is_dynamic: bool = False
    is_namespace: bool = False


_BUILT_IN = FoundModule()


class ModuleFinder:
    """Finds modules in a merged root. Use it from one thread; answers are remembered."""

    def __init__(self, view: RootView, path: SearchPath, interpreter: Interpreter) -> None:
        self._view = view
        self._path = path
        self._builtins = interpreter.builtins
        self._extensions = (interpreter.extension_suffix, ".abi3.so", ".so")
        self._suffixes = (*self._extensions, ".py", ".pyc")
        self._found: dict[str, FoundModule | None] = {}
        self._listings: dict[str, frozenset[str]] = {}
        self._verdicts: dict[str, str] = {}

    def find(self, name: str) -> FoundModule | None:
        """Return a module, found without running its parents, or None."""
        if name not in self._found:
            if len(self._found) >= MAX_MODULES:
                raise StaticallyUnknown("the base's modules import too many others")
            self._found[name] = self._look(name)
        return self._found[name]

    def answer(self, name: str) -> ModuleAnswer:
        """Say of a module what a real import would, or that its files do not tell."""
        absent = self._first_absent(name)
        hooks = "; ".join(self._path.doubts)
        if absent is not None:
            if maker := self._dynamic_parent(absent):
                return ModuleAnswer(status="unknown", missing=absent, doubt=f"`{maker}` may make it when it runs")
            if hooks:
                return ModuleAnswer(status="unknown", missing=absent, doubt=hooks)
            return ModuleAnswer(status="missing", missing=absent, note=self._lost(absent))
        if missing := self._first_unmet(name):
            return ModuleAnswer(status="incomplete", missing=missing, doubt=hooks)
        return ModuleAnswer(status="present")

    def _lost(self, absent: str) -> str:
        """Return which editable install should lead to an absent module, and where it leads, or an empty string."""
        if (redirect := self._path.redirects.get(absent)) is not None and redirect.source is not None:
            return f"an editable install points to `{redirect.source}`, which the base does not have"
        if (place := self._path.mappings.get(absent)) is not None:
            return f"an editable install points to `{place}`, which the base does not have"
        for pth, place in self._path.dead.items():
            if absent.lower() in pth.rpartition("/")[2].lower().replace("-", "_"):
                return f"`{pth}` points to `{place}`, which the base does not have"
        return ""

    # --- on disk -----------------------------------------------------------------------------------------------------

    def _first_absent(self, name: str) -> str | None:
        if name in ALWAYS_THERE:
            return None
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            prefix = ".".join(parts[:count])
            if MADE_BY.get(prefix) is not None and self.find(MADE_BY[prefix]) is not None:
                return None
            if prefix not in ALWAYS_THERE and self.find(prefix) is None:
                return prefix
        return None

    def _dynamic_parent(self, absent: str) -> str:
        parent = absent.rpartition(".")[0]
        while parent:
            module = self.find(parent)
            if module is not None and module.is_dynamic:
                return parent
            parent = parent.rpartition(".")[0]
        return ""

    def _look(self, name: str) -> FoundModule | None:
        parent, _, last = name.rpartition(".")
        if not parent:
            if name in self._builtins:
                return _BUILT_IN
            if (found := self._redirected(name)) is not None:
                return found
            made = [place for place in self._path.namespaces.get(name, ()) if not self._has_init(place)]
            folders: tuple[str, ...] | None = tuple(self._path.folders)
        else:
            above = self.find(parent)
            if above is not None and (found := self._redirected(name)) is not None:
                return found
            folders = above.locations if above is not None else None
            made = [place for place in self._path.namespaces.get(name, ()) if not self._has_init(place)]
        if made:
            return FoundModule(locations=tuple(dict.fromkeys(made)))
        if folders is None:
            return None
        return self._look_in(folders, last, name) or self._look_in_mappings(name)

    def _redirected(self, name: str) -> FoundModule | None:
        """Return a module that a hook finds before the folders are looked through, or None."""
        if name in self._path.aliases:
            return self._package(self._path.aliases[name], name, ())
        if name in self._path.inner_packages:
            package, folder = self._path.inner_packages[name]
            holder = self.find(package)
            places = holder.locations if holder is not None else None
            place = f"{places[0]}/{folder}" if places is not None and len(places) == 1 else ""
            return self._package(place, name, ()) if place and self._has_init(place) else None
        redirect = self._path.redirects.get(name)
        if redirect is None:
            return None
        if redirect.source is None:
            parent, _, last = name.rpartition(".")
            above = self.find(parent) if parent else None
            folders = (above.locations or ()) if above is not None else tuple(self._path.folders)
            native = self._look_in(folders, last, name)
            shared = native.locations or () if native is not None and native.is_namespace else ()
            return FoundModule(
                locations=tuple(dict.fromkeys((*(redirect.locations or ()), *shared))), is_namespace=True
            )
        return self._module(redirect.source, redirect.locations) if self._view.is_file(redirect.source) else None

    def _look_in(self, folders: tuple[str, ...], last: str, name: str) -> FoundModule | None:
        portions = []
        for folder in folders:
            names = self._listing(folder)
            place = f"{folder}/{last}"
            is_folder = last in names and self._view.is_dir(place)
            if is_folder and self._has_init(place):
                return self._package(place, last, folders)
            if (module := self._file(place, names)) is not None:
                return module
            if is_folder:
                portions.append(place)
        portions += [place for place in self._path.editable_namespaces.get(name, ()) if place not in portions]
        return FoundModule(locations=tuple(portions), is_namespace=True) if portions else None

    def _look_in_mappings(self, name: str) -> FoundModule | None:
        for package, place in reversed(self._path.mappings.items()):
            if name != package and not name.startswith(package + "."):
                continue
            rest = name.removeprefix(package).strip(".")
            full = "/".join([place, *rest.split(".")]) if rest else place
            if self._has_init(full):
                return self._package(full, name, ())
            folder, _, _last = full.rpartition("/")
            return self._file(full, self._listing(folder))
        return None

    def _file(self, place: str, names: frozenset[str]) -> FoundModule | None:
        last = place.rpartition("/")[2]
        for suffix in self._suffixes:
            if last + suffix in names and self._view.is_file(place + suffix):
                return self._module(place + suffix, None)
        return None

    def _package(self, place: str, last: str, folders: tuple[str, ...]) -> FoundModule:
        """Return a package; one that declares itself a namespace has the folders of its name on the whole path."""
        names = self._listing(place)
        suffix = next(suffix for suffix in self._suffixes if "__init__" + suffix in names)
        source = f"{place}/__init__{suffix}"
        content = self._view.read_bytes(source) if suffix == ".py" else None
        if content and (b"extend_path" in content or b"declare_namespace" in content):
            others = [f"{folder}/{last}" for folder in folders if f"{folder}/{last}" != place]
            shared = (place, *(other for other in others if self._view.is_dir(other)))
            return FoundModule(locations=shared, source=source)
        return self._module(source, (place,))

    def _module(self, source: str, locations: tuple[str, ...] | None) -> FoundModule:
        entry = self._view.stat(source) if source.endswith(".py") else None
        is_dynamic = entry is not None and entry.facts is not None and entry.facts.is_dynamic
        return FoundModule(locations, source if entry is not None else None, is_dynamic)

    def _has_init(self, place: str) -> bool:
        names = self._listing(place)
        return any(
            "__init__" + suffix in names and self._view.is_file(f"{place}/__init__{suffix}")
            for suffix in self._suffixes
        )

    def _listing(self, folder: str) -> frozenset[str]:
        listing = self._listings.get(folder)
        if listing is None:
            listing = self._listings[folder] = frozenset(self._view.listdir(folder))
        return listing

    # --- through imports ---------------------------------------------------------------------------------------------

    def _first_unmet(self, name: str) -> str:
        """Return the first absent module that importing one would come upon, or an empty string."""
        if name in self._verdicts:
            return self._verdicts[name]
        stack: list[tuple[str, Iterator[str]]] = []
        entered: set[str] = set()
        unmet = ""
        waiting = iter(_with_parents(name))
        while True:
            needed = next(waiting, None)
            if needed is None:
                if not stack:
                    self._verdicts.update(dict.fromkeys(entered, ""))
                    return ""
                waiting = stack.pop()[1]
                continue
            verdict = self._verdicts.get(needed)
            if verdict is None and needed not in ALWAYS_THERE and needed not in entered:
                module = self.find(needed)
                if module is not None:
                    entered.add(needed)
                    stack.append((needed, waiting))
                    waiting = self._needs(needed, module)
                    continue
                verdict = "" if self._dynamic_parent(needed) else needed
            if verdict:
                unmet = verdict
                break
        # what was entered and left stays open: in a circle it may need one that is incomplete
        self._verdicts.update(dict.fromkeys((name, *(entry[0] for entry in stack)), unmet))
        return unmet

    def _needs(self, name: str, module: FoundModule) -> Iterator[str]:
        """Yield what the source of a module imports, parents first, in its order."""
        entry = self._view.stat(module.source) if module.source is not None else None
        if entry is None or entry.facts is None:
            return
        package = name if module.locations is not None else name.rpartition(".")[0]
        for text in imported_names(entry.facts.imports):
            base, colon, part = text.partition(":")
            target = _absolute(base, package)
            if not target:
                continue
            if colon:
                if self.find(f"{target}.{part}") is not None:
                    yield f"{target}.{part}"
            else:
                yield from _with_parents(target)


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _absolute(name: str, package: str) -> str:
    """Return the absolute name of what a module of a package imports, empty where it points outside all packages."""
    rest = name.lstrip(".")
    level = len(name) - len(rest)
    if not level:
        return rest
    parts = package.split(".") if package else []
    if level > len(parts):
        return ""
    return ".".join([*parts[: len(parts) - level + 1], *([rest] if rest else [])])
