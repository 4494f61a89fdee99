"""What configs and profiles install when a job starts, where no index can be reached, and how to bake it in instead.

Compares names only; what an image holds is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airferry.config.document import KeyPath, format_key
from airferry.config.environment import SECRET_TEXT
from airferry.errors import ConfigurationError
from airferry.host.yaml import render_line
from airferry.plan.catalogue import Catalogue
from airferry.plan.code.commands import BOOTSTRAP, StartInstall, extras_of, installs_of
from airferry.plan.code.modules import WELL_KNOWN
from airferry.plan.env_profiles import EnvFile, read_env_file
from airferry.plan.models import GroupPlan, PlanWarning, StartKey, StepPlan
from airferry.plan.step_values import StepDocuments, StepValue

COMMANDS = "startup_commands"
PIP_EXTRAS = "pip_extras"
RUN = "run_command"
KEYS = frozenset({COMMANDS, PIP_EXTRAS, RUN})
ENV_FILE = "env.toml"
_OF_THE_JOB = ("run", "env")
_MANAGERS = {"pip": "pip", "apt": "the system's package manager", "conda": "conda", "npm": "npm"}


def config_installs(config: StepDocuments | None, catalogue: Catalogue) -> tuple[StartKey, ...]:
    """Return what a step's config installs, each key that does once."""
    if config is None or not config.mentions(KEYS):
        return ()
    by_key: dict[KeyPath, list[StepValue]] = {}
    for value in config.values.values:
        for index, part in enumerate(value.key):
            if part in KEYS:
                by_key.setdefault(value.key[: index + 1], []).append(value)
    found = []
    for key, values in by_key.items():
        items = [text for value in values if (text := value.text or (value.raw if isinstance(value.raw, str) else ""))]
        if installs := table_installs(str(key[-1]), items):
            place = f"{catalogue.relative(values[0].file)}:{values[0].line}"
            found.append(StartKey(format_key(key), place, installs, of_job=key[:2] == _OF_THE_JOB))
    return tuple(found)


def profile_installs(file: EnvFile) -> Iterator[StartKey]:
    """Yield what profiles of an `env.toml` install, each at the table that says so."""
    for name in file.profiles:
        for key, value in file.tables[name].items():
            items = [str(item) for item in (value if isinstance(value, list) else [value]) if item]
            installs = table_installs(key, items)
            if installs:
                yield StartKey(f"{name}.{key}", f"{file.path}:{file.line(name, key)}", installs)


def table_installs(key: str, items: Sequence[str]) -> tuple[StartInstall, ...]:
    """Return what a key of a profile or config installs, `items` being the texts below it."""
    if key == PIP_EXTRAS:
        return (extras_of(items),) if items else ()
    return tuple(found for item in items for found in installs_of(item)) if key in (COMMANDS, RUN) else ()


def editable_folders(keys: Iterable[StartKey]) -> tuple[str, ...]:
    """Return the folders that a job installs from without a network, which are on Python's path then."""
    return tuple(
        dict.fromkeys(
            path
            for key in keys
            if key.of_job
            for item in key.installs
            if "--no-build-isolation" in item.command
            for folder in item.folders
            if folder.startswith("/")
            for path in (folder, f"{folder}/src")
        )
    )


def install_warnings(
    catalogue: Catalogue, steps: Iterable[StepPlan], groups: Iterable[GroupPlan]
) -> tuple[PlanWarning, ...]:
    """Return a warning for each thing that a config of the plan, or a profile next to it, installs at start.

    One warning stands for all places that install the same in the same image.
    """
    group_of = {spec: group for group in groups for spec in group.targets}
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for step in steps:
        for key in step.start_installs:
            group = group_of.get(step.target.spec) if key.of_job else None
            for item in key.installs:
                text = (_message(key, item, group), _hint(key, item, group))
                places, targets = found.setdefault(text, ([], []))
                places.append(key.place)
                targets.append(step.target.spec)
    path = catalogue.root / ENV_FILE
    try:
        profiles = list(profile_installs(read_env_file(path))) if path.is_file() else []
    except ConfigurationError as error:
        found[f"its profiles cannot be read: {error.message}", error.hint or "correct the file"] = ([str(path)], [])
        profiles = []
    for key in profiles:
        for item in key.installs:
            text = (_message(key, item, None), _hint(key, item, None))
            found.setdefault(text, ([], []))[0].append(key.place)
    return tuple(
        PlanWarning(
            kind="install",
            place=places[0],
            message=message,
            hint=hint,
            targets=tuple(dict.fromkeys(targets)),
            also=tuple(place for place in dict.fromkeys(places) if place != places[0]),
        )
        for (message, hint), (places, targets) in found.items()
    )


def _message(key: StartKey, item: StartInstall, group: GroupPlan | None) -> str:
    parts = []
    if item.manager == "download":
        parts.append(f"`{item.names[0]}` downloads")
    elif named := [*item.names, *item.folders, *item.others]:
        parts.append(f"{_MANAGERS[item.manager]} installs " + ", ".join(f"`{name}`" for name in named))
    if item.unknown:
        parts.append(f"cannot tell what `{_short(item.command)}` installs: {item.unknown}")
    held = "; the image gets it by `required_imports`" if group is not None and is_asked_for(item, group) else ""
    return SECRET_TEXT.sub("***", f"`{key.key.rpartition('.')[2]}`: when the job starts, {'; '.join(parts)}{held}")


def _hint(key: StartKey, item: StartInstall, group: GroupPlan | None) -> str:
    image = "the image of the steps that use it"
    required: Sequence[str] = ()
    requirements: Mapping[str, str] = {}
    if group is not None:
        image = " and ".join(f"`execution_images.{name}`" for name in group.image_names)
        required, requirements = group.required_imports, group.requirements
    if group is not None and is_asked_for(item, group):
        return f"nothing to bake in; `{key.key}=[]` keeps pip from looking for an index"
    ways = []
    if item.manager == "pip" and item.names:
        ways.append(f"write below {image}: {bake_lines(item.names, required=required, requirements=requirements)}")
    if item.folders:
        ways.append(f"a folder of the image needs no install: write below {image}: `env: {{PYTHONPATH: FOLDER}}`")
    if item.others:
        ways.append(
            f"name it below {image}: `requirements: {{MODULE: NAME @ git+URL@COMMIT}}`, or a version of an index"
        )
    if item.manager in ("apt", "conda", "npm"):
        ways.append(f"install it in a `containerfile:` of {image}, or choose a `base_image` that has it")
    if item.manager == "download":
        ways.append(f"bake it in by `overlays:` of {image}, or stage it (`assets:`)")
    bootstrap, dashes, command = item.command.replace("'{config}'", "{config}").partition(" -- ")
    if BOOTSTRAP in bootstrap and dashes:
        ways.append(f"start the step without it, `{RUN}: {command}`, with what it installs in {image}")
    elif item.unknown:
        ways.append(f"check it: everything that it installs must be in {image}")
    return "; ".join(dict.fromkeys(ways))


def _short(command: str) -> str:
    return command if len(command) <= 60 else f"{command[:57]}…"


def is_asked_for(item: StartInstall, group: GroupPlan) -> bool:
    """Tell whether a group's image asks for all that a command installs."""
    if item.manager != "pip" or not item.names or item.folders or item.others or item.unknown:
        return False
    return all(_is_asked_for(Requirement(name), group) for name in item.names)


def _is_asked_for(wanted: Requirement, group: GroupPlan) -> bool:
    module = module_of(wanted.name)
    if module not in group.required_imports:
        return False
    named = group.requirements.get(module)
    return not wanted.specifier or (named is not None and Requirement(named).specifier == wanted.specifier)


def module_of(distribution: str) -> str:
    """Return the module that a distribution is imported by: of the shipped map, else its name with underscores."""
    name = canonicalize_name(distribution)
    plain = name.replace("-", "_")
    known = [module for module, provider in WELL_KNOWN.items() if canonicalize_name(provider) == name]
    return plain if plain in known or not known else min(known, key=lambda module: (len(module), module))


def bake_lines(
    names: Iterable[str], *, required: Iterable[str] = (), requirements: Mapping[str, str] | None = None
) -> str:
    """Return the lines that let an image hold distributions, with what it asks for already.

    A version, and a module that the shipped map does not know, need a line of `requirements:` as well.
    """
    modules = dict.fromkeys(required)
    named = dict(requirements or {})
    guessed = []
    for text in names:
        wanted = Requirement(text)
        module = module_of(wanted.name)
        modules[module] = None
        if module not in WELL_KNOWN:
            guessed.append(module)
        if wanted.specifier or wanted.extras or wanted.url or module not in WELL_KNOWN:
            named[module] = str(wanted)
    lines = f"`required_imports: {render_line(list(modules))}`"
    if named:
        lines += f" and `requirements: {render_line(named)}`"
    if guessed:
        lines += " (if " + ", ".join(f"`{module}`" for module in guessed) + " is the module's name)"
    return lines
