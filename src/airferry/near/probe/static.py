"""The probe that runs nothing: what a base can import and what its Python is like, told from its merged root.

Gives the same answer as the probe that runs in a container, but for the notes on imports that fail for want of a
library or a device. Nothing of the base is executed, so that a foreign CPU costs nothing. Nothing is guessed: a module
that files do not tell of is unknown, and an interpreter that they do not tell of raises `StaticallyUnknown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from airferry.errors import IntegrityError
from airferry.near.probe.answers import (
    InstalledDistribution,
    ProbeResult,
    PythonFacts,
    cpython_markers,
    unusable_answer,
)
from airferry.oci.documents import ImageConfig
from airferry.oci.platform import Platform
from airferry.rootfs.modules import ModuleFinder
from airferry.rootfs.python import Interpreter, ProcessEnvironment, StaticallyUnknown, find_interpreter, find_libc
from airferry.rootfs.python_path import find_search_path
from airferry.rootfs.search_path import SearchPath
from airferry.rootfs.view import RootView

MAX_DISTRIBUTIONS = 5000


def static_probe(
    view: RootView,
    config: ImageConfig,
    *,
    modules: Iterable[str],
    python: str | None,
    platform: Platform,
    variables: Mapping[str, str] | None = None,
) -> ProbeResult:
    """Return what the interpreter of a base would answer, without running it.

    `python` names the interpreter; without it, the first `python` or `python3` on the image's `PATH` counts.
    `variables` are those of the process over the image's own.

    Raises:
        BuildError: the base has no such interpreter, or a path of it has control characters.
        StaticallyUnknown: the base's files do not tell what its interpreter is; run it instead.
    """
    environment = ProcessEnvironment.of(view, config, variables or {})
    try:
        interpreter = find_interpreter(view, environment, python=python, platform=platform)
        search_path = find_search_path(view, interpreter, environment)
        finder = ModuleFinder(view, search_path, interpreter)
        return ProbeResult(
            schema_version=1,
            modules={name: finder.answer(name) for name in sorted(set(modules))},
            python=_facts(view, interpreter, finder, platform),
            distributions=_distributions(view, search_path),
        )
    except IntegrityError as error:
        raise StaticallyUnknown(error.message) from error
    except ValidationError as error:
        raise unusable_answer(error) from error


def _facts(view: RootView, interpreter: Interpreter, finder: ModuleFinder, platform: Platform) -> PythonFacts:
    libc, libc_version = find_libc(view, interpreter.binary)
    version = interpreter.version
    externally_managed = view.stat(f"{interpreter.stdlib}/EXTERNALLY-MANAGED") is not None
    return PythonFacts(
        executable=interpreter.executable,
        base_executable=interpreter.base_executable,
        implementation="cpython",
        version=version,
        prefix=interpreter.prefix,
        base_prefix=interpreter.base_prefix,
        in_venv=interpreter.in_venv,
        externally_managed=externally_managed and not interpreter.in_venv,
        paths=interpreter.paths,
        libc=libc,
        libc_version=libc_version,
        machine=platform.machine,
        byte_order=interpreter.binary.byte_order,
        pointer_bits=interpreter.binary.pointer_bits,
        abi=f"cp3{interpreter.minor}{interpreter.flags}",
        extension_suffix=interpreter.extension_suffix,
        markers=cpython_markers(version, platform.machine),
    )


def _distributions(view: RootView, path: SearchPath) -> tuple[InstalledDistribution, ...]:
    """Return what is installed; the first on the path wins, as for imports."""
    found: dict[str, InstalledDistribution] = {}
    for folder in path.folders:
        for name in view.listdir(folder):
            base = f"{folder}/{name}"
            if name.endswith(".dist-info"):
                candidates = [f"{base}/METADATA"]
            elif name.endswith(".egg-info"):
                candidates = [f"{base}/PKG-INFO", base]
            elif name.endswith(".egg"):
                candidates = [f"{base}/EGG-INFO/PKG-INFO"]
            else:
                continue
            for candidate in candidates:
                distribution = _read_distribution(view, candidate, folder_name=name)
                if distribution is None:
                    continue
                key = distribution.name.lower().replace("_", "-").replace(".", "-")
                if len(found) < MAX_DISTRIBUTIONS:
                    found.setdefault(key, distribution)
                break
    return tuple(found[key] for key in sorted(found))


def _read_distribution(view: RootView, path: str, *, folder_name: str) -> InstalledDistribution | None:
    if not view.is_file(path):
        return None
    text = view.read_text(path)
    if text is None:
        # too large to be kept: its folder has name and version, too (core metadata, *Recording installed projects*)
        name, _, version = folder_name.rpartition(".")[0].partition("-")
        text = f"Name: {name}\nVersion: {version.partition('-')[0]}\n"
    values = {"name": "", "version": ""}
    requires = []
    for line in text.splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        key = key.lower()
        if key in values:
            values[key] = value.strip()
        elif key == "requires-dist":
            requires.append(value.strip())
    if not values["name"] or not values["version"]:
        return None
    return InstalledDistribution(name=values["name"], version=values["version"], requires=tuple(requires))
