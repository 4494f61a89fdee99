"""Modules that a catalogue brings itself: which files run when one is imported. Looks for files, reads none."""

from __future__ import annotations

from pathlib import Path

from airferry.host.files import is_file, is_folder
from airferry.plan.catalogue import Catalogue, StepFiles


class OwnModules:
    """Finds the files of a catalogue's own modules. What was looked for once is remembered."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._modules: dict[str, tuple[tuple[Path, ...], bool]] = {}
        self._names = _own_names(catalogue)

    def is_own(self, module: str) -> bool:
        """Tell whether the catalogue itself provides a module, by the first part of its name."""
        return module.partition(".")[0] in self._names

    def absolute(self, module: str, level: int, path: Path, step: StepFiles) -> str:
        """Return the whole name of a module that a file imports, `level` being the dots in front of it."""
        if not level:
            return module
        package = self._package_of(path, step)
        parts = package.split(".") if package else []
        parts = parts[: len(parts) - (level - 1)] if level > 1 else parts
        return ".".join([*parts, *([module] if module else [])])

    def locate(self, module: str) -> tuple[tuple[Path, ...], bool]:
        """Return the files of the catalogue that run when a module is imported, parents first, and if all is there."""
        known = self._modules.get(module)
        if known is None:
            package = self._catalogue.package
            parts = module.split(".")
            known = _files_below(self._catalogue.source_folder, parts)
            if module == package or module.startswith(package + "."):
                rest = parts[len(package.split(".")) :]
                below = _files_below(self._catalogue.steps_folder, rest)
                known = (tuple(dict.fromkeys((*known[0], *below[0]))), known[1] or below[1])
            self._modules[module] = known
        return known

    def sibling(self, base: str, names: tuple[str, ...], path: Path, step: StepFiles) -> tuple[Path, ...]:
        """Return the files of a module next to the step's own: a script's folder is on Python's path."""
        if not path.is_relative_to(step.folder):
            return ()
        files, _ = _files_below(step.folder, base.split("."))
        for name in names if files else ():
            files = (*files, *_files_below(step.folder, [*base.split("."), name])[0])
        return files

    def _package_of(self, path: Path, step: StepFiles) -> str:
        """Return the package that a file's relative imports start from."""
        folder = path.parent
        if folder.is_relative_to(self._catalogue.steps_folder):
            parts = folder.relative_to(self._catalogue.steps_folder).parts
            return ".".join([self._catalogue.package, *parts])
        if folder.is_relative_to(self._catalogue.source_folder):
            return ".".join(folder.relative_to(self._catalogue.source_folder).parts)
        return step.module.rpartition(".")[0]


def _files_below(folder: Path, parts: list[str]) -> tuple[tuple[Path, ...], bool]:
    """Return the files that run when a module below a folder is imported, and whether the whole name is there."""
    files: list[Path] = []
    for index, part in enumerate(parts):
        initial = folder / part / "__init__.py"
        plain = folder / f"{part}.py"
        # a name in code may be longer than one of a file
        if is_file(initial):
            files.append(initial)
        elif is_file(plain):
            files.append(plain)
            return tuple(files), index == len(parts) - 1
        elif not is_folder(folder / part):
            return tuple(files), False
        folder = folder / part
    return tuple(files), bool(files) or bool(parts)


def _own_names(catalogue: Catalogue) -> frozenset[str]:
    """Return the top-level names that the catalogue itself provides."""
    found = {catalogue.package.partition(".")[0]}
    for path in catalogue.source_folder.iterdir():
        if path.suffix == ".py" and path.is_file():
            found.add(path.stem)
        elif path.is_dir() and path.name.isidentifier() and _holds_python(path):
            found.add(path.name)
    return frozenset(found)


def _holds_python(folder: Path) -> bool:
    return (folder / "__init__.py").is_file() or any(folder.glob("*.py")) or any(folder.glob("*/__init__.py"))
