"""The step catalogue: where it is, what steps it has, and whether a target's files are there and agree."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from airferry.config import Config, SourceSettings
from airferry.config.fields import STEP_ID
from airferry.defaults import DEFAULT_STEPS
from airferry.errors import AirferryError, ConfigurationError, Gathering, HostError, combined
from airferry.host import files
from airferry.host.parsing import Malformed, PythonTrees, parse_toml
from airferry.plan.models import Target
from airferry.wording import near_names, some_of

MAX_STEP_TOML_BYTES = 1024 * 1024
MAX_LOOKED_AT = 20_000
SHOWN_FOLDERS = 5
_OF_PACKAGES = frozenset({"node_modules", "site-packages"})
CONFIG_ENDINGS = (".yaml", ".yml")
_STEP_SECTION = re.compile(r"^[ \t]*(\[[ \t]*step[ \t]*\])", re.MULTILINE)
_ID = re.compile(r"^[ \t]*(id[ \t]*=)", re.MULTILINE)


@dataclass(frozen=True)
class StepFiles:
    """The files of a target that were found."""

    target: Target
    folder: Path
    step_py: Path
    step_toml: Path
    config_path: Path | None
    module: str


@dataclass(frozen=True)
class Catalogue:
    """A repository with a folder of steps, `package` being the Python package of that folder.

    `trees` are its sources as far as they were parsed, for all who look at them: parsing takes most of their time.
    """

    root: Path
    steps_folder: Path
    package: str
    trees: PythonTrees = field(default_factory=PythonTrees, compare=False, repr=False)

    @property
    def source_folder(self) -> Path:
        """The folder that is on Python's path when a step runs."""
        parts = self.package.split(".")
        if list(self.steps_folder.parts[-len(parts) :]) == parts:
            return self.steps_folder.parents[len(parts) - 1]
        source = self.root / "src"
        return source if source.is_dir() else self.root

    def step_ids(self) -> list[str]:
        """Return the ids of all steps, sorted."""
        found: list[str] = []
        for folder, names, file_names in os.walk(self.steps_folder):
            names[:] = [name for name in names if not name.startswith((".", "__"))]
            if "step.toml" in file_names or "step.py" in file_names:
                found.append(Path(folder).relative_to(self.steps_folder).as_posix())
        return sorted(found)

    def config_names(self, step_id: str) -> list[str]:
        """Return the names of a step's own configs, sorted."""
        folder = self.steps_folder / step_id / "config"
        found = (path for ending in CONFIG_ENDINGS for path in folder.rglob(f"*{ending}"))
        return sorted({path.relative_to(folder).with_suffix("").as_posix() for path in found})

    def name_of(self, path: Path) -> str | None:
        """Return a file's path from the root, or None if it lies outside."""
        for root, inside in ((self.root, path), (files.resolved(self.root), real_path(path))):
            if inside.is_relative_to(root) and ".." not in inside.parts:
                return inside.relative_to(root).as_posix()
        return None

    def relative(self, path: Path) -> str:
        """Return a path of the catalogue as documents and messages show it."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def open_catalogue(config: Config, *, source_dir: Path | None = None) -> Catalogue:
    """Find the catalogue: `source_dir`, else `source.root`, else the nearest folder that holds the steps.

    Looked at, in this order, are the config file's folder and those above it, then the current one and those above.

    Raises:
        ConfigurationError: it is nowhere.
    """
    steps = config.source.steps
    hint = "give the root of the catalogue with `--source DIR`, or set `source.root` in the configuration"
    if source_dir is not None:
        root = source_dir.absolute()
        if not (root / steps).is_dir():
            raise ConfigurationError(f"`{source_dir}` has no steps folder `{steps}`", hint=hint)
    elif config.source.root is not None:
        root = Path(os.path.normpath(config.folder / files.expand_home(config.source.root)))
        if not (root / steps).is_dir():
            raise config.error("source", "root", reason=f"`{root}` has no steps folder `{steps}`", hint=hint)
    else:
        here = Path.cwd()
        nearest = next(
            (
                folder
                for start in (config.folder, here)
                for folder in (start, *start.parents)
                if (folder / steps).is_dir()
            ),
            None,
        )
        if nearest is None:
            # one of both is said where the other lies above it
            starts = [here] if here.is_relative_to(config.folder) else [config.folder]
            if not config.folder.is_relative_to(here) and not here.is_relative_to(config.folder):
                starts.append(here)
            told = ", nor at or above ".join(f"`{folder}`" for folder in starts)
            raise ConfigurationError(f"no steps folder `{steps}` at or above {told}", hint=hint)
        root = nearest
    catalogue = Catalogue(root, root / PurePosixPath(steps), config.source.steps_package)
    _check_package(config, catalogue)
    return catalogue


def _check_package(config: Config, catalogue: Catalogue) -> None:
    """Refuse a `source.package` that is a typing error for the path of `steps`.

    A build backend may map folders to packages (setuptools' `package-dir`), so that their paths may differ; the
    package's last part is the folder's name even then.
    """
    package = config.source.package
    if package is None:
        return
    parts, steps = package.split("."), list(PurePosixPath(config.source.steps).parts)
    tail = steps[-len(parts) :]
    if parts[-len(tail) :] == tail or (catalogue.source_folder / Path(*parts)).is_dir():
        return
    near = ".".join(tail)
    alike = difflib.SequenceMatcher(None, package, near).ratio() >= 0.75
    if parts[-1] != steps[-1] or (len(tail) == len(parts) and alike):
        raise config.error(
            "source",
            "package",
            reason=f"`{package}` is not the package of `{config.source.steps}`, whose path does not end in "
            f"`{'/'.join(parts)}`",
            hint=f"did you mean `{near}`?" if alike else "set the package that Python imports the steps from",
        )


def catalogue_at(
    root: Path, *, steps: str | None = None, package: str | None = None, holding: Iterable[str] = ()
) -> Catalogue:
    """Return the catalogue at a folder, for a command that has no configuration.

    Without `steps`, their folder is looked for, see `find_steps`. Without a `package`, that of the folder of steps is
    its path below `src`.

    Raises:
        ConfigurationError: there is no folder of steps in it, or more than one may be meant.
    """
    absolute = root.absolute()
    if steps is None:
        steps = find_steps(root, holding=holding)
    if not PurePosixPath(steps).parts:
        raise ConfigurationError(
            f"`{root}` is the folder of the steps itself; the root of the catalogue is a folder above it",
            hint="give the root with `--source DIR`: what Git tracks, with the package that the steps are in",
        )
    if not (absolute / steps).is_dir():
        raise ConfigurationError(
            f"`{root}` has no steps folder `{steps}`",
            hint="give the root of the catalogue with `--source DIR`, and its folder of steps with `--steps`",
        )
    return Catalogue(
        absolute, absolute / PurePosixPath(steps), SourceSettings(steps=steps, package=package).steps_package
    )


def find_steps(root: Path, *, holding: Iterable[str] = ()) -> str:
    """Return the folder of the steps in a catalogue, as a path from its root: Nemotron's, or what its steps say.

    A `step.toml` names the step's id, which is the end of its folder's path; what stands before it is the folder of the
    steps. Among several, it is the one that holds all the steps of `holding`.

    Raises:
        ConfigurationError: there is none, or more than one may be meant.
    """
    absolute, wanted = root.absolute(), sorted(set(holding))
    if (absolute / DEFAULT_STEPS).is_dir():
        return DEFAULT_STEPS
    listed = list(step_tomls(absolute))
    found = {folder for path in listed if (folder := _steps_above(absolute, path)) is not None}
    if len(found) > 1 and wanted:
        fitting = {folder for folder in found if all((absolute / folder / step).is_dir() for step in wanted)}
        found = fitting or found
    if len(found) == 1:
        steps = found.pop()
        above, source, _ = f"/{steps}/".partition("/src/")
        if above and source:
            # `src` is at the root of a repository: what stands before it is a folder too much
            raise ConfigurationError(
                f"`{root}` is not the root of a catalogue, `{root / above[1:]}` is",
                hint=f"give that with `--source`, or, if it is the root all the same, `--steps {steps}`",
            )
        return steps
    if not found:
        seen = f"; looked at {some_of([f'`{path}`' for path in listed], SHOWN_FOLDERS)}" if listed else ""
        raise ConfigurationError(
            f"`{root}` is not the root of a catalogue: it has no `step.toml` whose `id` its folder's path ends in"
            + seen,
            hint="give the root of the catalogue with `--source DIR`, and its folder of steps with `--steps`",
        )
    shown = some_of([f"`{folder}`" for folder in sorted(found)], SHOWN_FOLDERS)
    raise ConfigurationError(
        f"`{root}` has several folders of steps: {shown}", hint="name the one that is meant with `--steps`"
    )


def step_tomls(root: Path) -> Iterator[Path]:
    """Yield the `step.toml` files below a folder, but for hidden folders, environments and what packages bring.

    No more folders are looked at than can be quickly.
    """
    for folder, names, file_names in islice(os.walk(root), MAX_LOOKED_AT):
        if "pyvenv.cfg" in file_names:
            names.clear()
            continue
        names[:] = sorted(name for name in names if not name.startswith((".", "__")) and name not in _OF_PACKAGES)
        if "step.toml" in file_names:
            yield Path(folder) / "step.toml"


def _steps_above(root: Path, step_toml: Path) -> str | None:
    """Return the folder of steps that a step is in, or None where its id is not the end of its path."""
    try:
        step = read_step_toml(step_toml).get("step")
    except ConfigurationError:
        return None
    identifier = str(step.get("id", "")) if isinstance(step, dict) else ""
    parts, own = step_toml.parent.relative_to(root).parts, tuple(identifier.split("/"))
    if not identifier or parts[-len(own) :] != own:
        return None
    return PurePosixPath(*parts[: -len(own)]).as_posix()


def parse_target(text: str) -> Target:
    """Return the target that `step_id[:config]` names, the config being one of the step's own.

    Raises:
        ConfigurationError: it has another form.
    """
    step_id, colon, name = (part.strip() for part in text.partition(":"))
    if not STEP_ID.fullmatch(step_id) or (colon and name and not STEP_ID.fullmatch(name)):
        raise ConfigurationError(
            f"`{text}` is not a target, expected `step/id:config` or `step/id`",
            hint="`airferry plan` lists the targets of the catalogue's steps",
        )
    return Target(step_id, name or None)


def choose_target(catalogue: Catalogue, text: str, *, folder: Path) -> Target:
    """Return the target that `step_id[:config]` names, where the config may be a path.

    As for Nemotron's `-c`, a config with a `/` or the ending `.yaml` or `.yml` is a path; it starts at `folder`. As for
    Nemotron's airgap runner, one with a `/` that names a file below the step's own `config` is that. A path to one of
    the step's own configs is the same target as its name.

    Raises:
        ConfigurationError: it has another form.
    """
    step_id, _, config = (part.strip() for part in text.partition(":"))
    if "/" not in config and not config.endswith(CONFIG_ENDINGS):
        return parse_target(text)
    if not STEP_ID.fullmatch(step_id) or "\n" in config or "\0" in config:
        raise ConfigurationError(
            f"`{text}` is not a target, expected `step/id:config` or `step/id:path/to/config.yaml`",
            hint="`airferry plan` lists the targets of the catalogue's steps",
        )
    own = catalogue.steps_folder / step_id / "config"
    if STEP_ID.fullmatch(config) and files.is_file(_named_config(own, config)):
        return Target(step_id, config)
    path = real_path(folder / files.expand_home(Path(config)))
    real_own = real_path(own / "config.yaml").parent
    name = path.relative_to(real_own).with_suffix("").as_posix() if path.is_relative_to(real_own) else ""
    if STEP_ID.fullmatch(name) and real_path(_named_config(own, name)) == path:
        return Target(step_id, name)
    return Target(step_id, config, path)


def real_path(path: Path) -> Path:
    """Return a file's absolute path, with links in the folders above it followed; one at its end stays.

    What a config inherits from starts at the folder that its own path names, wherever a link at the end leads.

    Raises:
        ConfigurationError: links lead in a circle.
    """
    try:
        return files.resolved(path.parent) / path.name
    except HostError as error:
        raise ConfigurationError(error.message, hint=error.hint, path=str(path)) from error


def _named_config(folder: Path, name: str) -> Path:
    """Return the file of a step's own config, looked for as Nemotron's loader does."""
    found = [folder / f"{name}{ending}" for ending in CONFIG_ENDINGS]
    return next((path for path in found if files.is_file(path)), found[0])


def find_step(catalogue: Catalogue, target: Target, *, travelled: bool = False) -> StepFiles:
    """Find a target's files and check that `step.toml` is about the folder that it is in.

    `travelled`: images were built of it, so that its catalogue may be one that lacks the user's own configs.

    Raises:
        ConfigurationError: files are missing or unreadable, all of them named; nearest names are shown.
    """
    folder = catalogue.steps_folder / target.step_id
    step_py, step_toml = folder / "step.py", folder / "step.toml"
    if not (files.is_file(step_py) or files.is_file(step_toml)):
        raise ConfigurationError(
            f"there is no step `{target.step_id}` in `{catalogue.steps_folder}`",
            hint=_nearest(target.step_id, catalogue.step_ids()),
        )
    problems = Gathering()
    for path in (step_py, step_toml):
        with problems.one():
            if not files.is_file(path):
                raise ConfigurationError(
                    f"step `{target.step_id}` has no `{path.name}`: `{path}` is missing",
                    hint="a step is a folder with `step.py`, `step.toml` and `config/<name>.yaml`",
                )
            if path is step_toml:
                _check_step_toml(step_toml, target)
    config_path = target.path
    with problems.one():
        if config_path is not None:
            _check_own_config(catalogue, target, config_path)
        elif target.config is not None:
            config_path = _named_config(folder / "config", target.config)
            if not files.is_file(config_path):
                raise ConfigurationError(
                    f"step `{target.step_id}` has no config `{target.config}`: `{config_path}` is missing",
                    hint=_nearest(target.config, catalogue.config_names(target.step_id))
                    + "; refer to your own config by its path, with a `/` or the extension `.yaml`"
                    + (", which must be in the catalogue of the bundle" if travelled else ""),
                )
    problems.raise_all()
    module = f"{catalogue.package}.{target.step_id.replace('/', '.')}.step"
    return StepFiles(target, folder, step_py, step_toml, config_path, module)


def _check_own_config(catalogue: Catalogue, target: Target, path: Path) -> None:
    if files.is_file(path):
        return
    written = files.expand_home(Path(target.config or ""))
    stem = written.name.removesuffix(written.suffix)
    if files.is_file(catalogue.root / written):
        hint = (
            f"paths are not relative to the root of the catalogue; write `{target.step_id}:{catalogue.root / written}`"
        )
    elif stem in catalogue.config_names(target.step_id):
        hint = f"the step's own config of that name is `{target.step_id}:{stem}`"
    else:
        hint = (
            "a path starts at the current folder, or at the folder of the configuration that it stands in; the step's "
            f"own configs are named without ending: {_nearest(stem, catalogue.config_names(target.step_id))}"
        )
    state = "is not a file" if files.exists(path) else "is missing"
    raise ConfigurationError(f"config `{target.config}` for step `{target.step_id}`: `{path}` {state}", hint=hint)


def _check_step_toml(path: Path, target: Target) -> None:
    section = read_step_toml(path).get("step")
    step_id = section.get("id") if isinstance(section, dict) else None
    if step_id == target.step_id:
        return
    line = _line_of(path, _ID if step_id is not None else _STEP_SECTION)
    expected = f"expected `{target.step_id}`, the folder that the file is in"
    if step_id is None:
        reason, hint = f"`step` has no `id`, {expected}", f'write `id = "{target.step_id}"` under `[step]`'
    else:
        reason, hint = f"`step.id` is `{step_id}`, {expected}", "correct `id` under `[step]`"
    raise ConfigurationError(f"{path}:{line}: {reason}", hint=hint, path=str(path), line=line)


def _line_of(path: Path, pattern: re.Pattern[str]) -> int:
    """Return the line of the first match in a file that was read before, 1 without one."""
    text = files.read_bounded(path, limit_bytes=MAX_STEP_TOML_BYTES).decode(errors="replace")
    found = pattern.search(text)
    return text.count("\n", 0, found.start(1)) + 1 if found else 1


def read_step_toml(path: Path) -> dict[str, Any]:
    """Return what a `step.toml` holds.

    Raises:
        ConfigurationError: it cannot be read, or is not valid TOML.
    """
    try:
        return parse_toml(files.read_bounded(path, limit_bytes=MAX_STEP_TOML_BYTES))
    except HostError as error:
        raise ConfigurationError(error.message, hint=error.hint, path=str(path)) from error
    except Malformed as error:
        raise ConfigurationError(
            f"{path}:{error.line}: not valid TOML: {error}",
            path=str(path),
            line=error.line,
            hint="correct that line; see https://toml.io for what may stand there",
        ) from error


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = near_names(name, names, most=3, cutoff=0.5) or names[:8]
    if not near:
        return "there are none"
    return "close matches: " + ", ".join(f"`{item}`" for item in near)


@dataclass(frozen=True, slots=True)
class WantedTarget:
    """A target, the key of the configuration that asked for it first, and all words that it was asked for with."""

    target: Target
    key: tuple[str | int, ...]
    written: tuple[str, ...]


def expand_targets(
    config: Config, catalogue: Catalogue, targets: tuple[str, ...], *, problems: Gathering
) -> list[WantedTarget]:
    """Return all targets, prerequisites before dependants, each once.

    `targets` replace the configuration's `workflow.stages`; their key is empty, and paths in them start at the current
    folder. Paths in the configuration start at its own folder.

    `problems` gets targets of a wrong form, and those that depend on themselves, with the path of the cycle.
    """
    own: tuple[str | int, ...] = ("dependencies",) if config.dependencies else ("workflow", "dependencies")
    dependencies = config.effective_dependencies
    result: dict[tuple[str, str | Path | None], WantedTarget] = {}
    stack: list[Target] = []

    def parse(text: str, key: tuple[str | int, ...]) -> Target:
        try:
            return choose_target(catalogue, text, folder=config.folder if key else Path.cwd())
        except AirferryError as error:
            raise located(config, key, error) from error

    def add(text: str, key: tuple[str | int, ...]) -> None:
        target = parse(text, key)
        place = target.step_id, target.path or target.config
        if any(place == (item.step_id, item.path or item.config) for item in stack):
            specs = [item.spec for item in stack]
            cycle = " → ".join(f"`{spec}`" for spec in [*specs[specs.index(target.spec) :], target.spec])
            raise located(
                config,
                key,
                ConfigurationError(
                    f"circular dependency between steps: {cycle}", hint="remove one of the dependencies"
                ),
            )
        if (known := result.get(place)) is not None:
            result[place] = replace(known, written=tuple(dict.fromkeys((*known.written, text))))
            return
        stack.append(target)
        for index, below in enumerate(dependencies.get(target.step_id, ())):
            with problems.one():
                add(below, (*own, target.step_id, index))
        stack.pop()
        result[place] = WantedTarget(target, key, (text,))

    if targets:
        for text in targets:
            with problems.one():
                add(text, ())
    else:
        for index, text in enumerate(config.workflow.stages):
            with problems.one():
                add(text, ("workflow", "stages", index))
    return list(result.values())


def located(config: Config, key: tuple[str | int, ...], error: AirferryError) -> AirferryError:
    """Return an error as one of the configuration's key that caused it, or of the configuration where no key did."""
    if not key:
        return error if isinstance(error, ConfigurationError) else ConfigurationError(error.message, hint=error.hint)
    if error.failures:
        return combined([located(config, key, failure) for failure in error.failures])
    return config.error(*key, reason=error.message, hint=error.hint)
