"""Wheels that must be compiled, made from their source in a container of the base that they are for.

The base brings the compiler, the interpreter and the libraries, so what comes out suits it exactly. What the build asks
for next to them (PEP 518) is fetched on the host, as wheels for the base: the container has no network.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airferry.engine.driver import ContainerOptions, Engine, Volume, base_tag
from airferry.errors import BuildError
from airferry.events import Emit, StageFinished, StageStarted
from airferry.host import clock, files
from airferry.host.archives import archive_faults
from airferry.host.parsing import parse_toml
from airferry.near.bases.fetch import BaseImage
from airferry.near.git.versions import MAX_PYPROJECT_BYTES
from airferry.near.wheels.pack import OTHER_VERSION, built_wheel
from airferry.near.wheels.pip import Pip, WheelTarget, last_words, not_found_names
from airferry.plan.locks.packages import marker_holds, read_requirement
from airferry.plan.models import Plan

COMPILE_S = 4 * 3600.0
COMPILATION_VERSION = 2  # part of what a compiled wheel is known by: raise it when it is made in another way
MAX_REQUIREMENT_ROUNDS = 8
# what setuptools asks for where a project says nothing (PEP 517), and what older back ends add by themselves
USUAL_REQUIREMENTS = ("setuptools>=40.8.0", "wheel")
_SOURCE, _HOUSE, _OUT = "/airferry/source", "/airferry/house", "/airferry/out"
# without debug information a library does not name the folder that it was compiled in, which changes each time
_FLAGS = {"CFLAGS": "-g0", "CXXFLAGS": "-g0"}
_SCRIPT = """\
import os, shutil, subprocess, sys
source, house, out, folder = sys.argv[1:5]
work = "/tmp/airferry-compile"
shutil.rmtree(work, ignore_errors=True)
if os.path.isdir(source):
    shutil.copytree(source, work, symlinks=True)
else:
    shutil.unpack_archive(source, work)
    (name,) = os.listdir(work)
    work = os.path.join(work, name)
# pip starts itself once more for what a build asks for, and out of a wheel it would be compiled again
pip = "/tmp/airferry-pip"
wheel = next(name for name in os.listdir(house) if name.startswith("pip-"))
shutil.unpack_archive(os.path.join(house, wheel), pip, "zip")
sys.exit(subprocess.call([
    sys.executable, os.path.join(pip, "pip"), "--no-input", "--disable-pip-version-check", "--no-color", "wheel",
    "--no-index", "--find-links", house, "--no-deps", "--no-cache-dir", "--wheel-dir", out, os.path.join(work, folder),
]))
"""
_FAILURE = re.compile(r"\berror: (?!subprocess-exited-with-error)(\S.*)$")


@dataclass(frozen=True, slots=True)
class BuildSource:
    """A source distribution, or a tree: where it lies on the host, and in which folder of it the project is.

    `shown` are folders of the host that the build may read, and where it finds them.
    """

    path: Path
    folder: str = ""
    shown: Mapping[Path, str] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        """The project's folder on the host, or the archive."""
        return self.path / self.folder


@dataclass(frozen=True, slots=True)
class Compiler:
    """An interpreter of a base, in whose containers wheels are compiled. `engine` opens the engine when it is needed.

    `layout` is the folder of the layout that holds the base.
    """

    engine: Callable[[], Engine]
    layout: Path
    base: BaseImage
    python: str
    emit: Emit

    def compile(
        self,
        requirement: str,
        source: BuildSource,
        target: WheelTarget,
        *,
        pip: Pip,
        own_pip: Path,
        scratch: Path,
        environment: Mapping[str, str],
    ) -> Path:
        """Compile a source, and return the wheel, which lies in `scratch`.

        `own_pip` is a wheel of pip that runs in the base.

        Raises:
            BuildError: it does not compile, or asks for what has no wheel for the target.
            HostError: there is no engine, or the host cannot run the platform.
        """
        what = f"compile {requirement} for {self.base.platform}"
        started = clock.monotonic_s()
        self.emit(StageStarted(what))
        engine = self.engine()
        engine.import_base(self.layout, self.base.manifest.digest, platform=self.base.platform)
        place = f"{_SOURCE}/{source.path.name}"
        house, out = files.ensure_directory(scratch / "house"), files.ensure_directory(scratch / "out")
        (house / own_pip.name).hardlink_to(own_pip)
        wanted = [*build_requirements(source.project, target.markers), *USUAL_REQUIREMENTS]
        options = ContainerOptions(
            volumes=[
                *(Volume(source.path, place), Volume(house, _HOUSE), Volume(out, _OUT, writable=True)),
                *(Volume(path, inside) for path, inside in source.shown.items()),
            ],
            env={**_FLAGS, **environment, "HOME": "/tmp"},
            user="0",
        )
        fetched: set[str] = set()
        for _round in range(MAX_REQUIREMENT_ROUNDS):
            pip.download_closure(wanted, target, into=house)
            fetched |= set(wanted)
            done = engine.run(
                base_tag(self.base.manifest.digest),
                [self.python, "-c", _SCRIPT, place, _HOUSE, _OUT, source.folder],
                platform=self.base.platform,
                options=options,
                timeout_s=COMPILE_S,
                check=False,
            )
            if done.returncode == 0:
                break
            # back ends may ask for more once they are there (PEP 517), ninja for instance
            wanted = [name for name in not_found_names(done.tail) if name not in fetched]
            if not wanted:
                raise self._failure(requirement, done.tail)
        else:
            raise self._failure(requirement, done.tail)
        made = built_wheel(out, what=f"compiling `{requirement}`")
        self.emit(StageFinished(what, clock.monotonic_s() - started, detail=made.name))
        return made

    def key(self, requirement: str, source: str, environment: Mapping[str, str]) -> dict[str, Any]:
        """Return what a compiled wheel depends on; `source` is its source's digest or commit."""
        return {
            "version": COMPILATION_VERSION,
            "requirement": requirement,
            "source": source,
            "environment": dict(environment),
            "base": self.base.manifest.digest,
            "python": self.python,
        }

    def _failure(self, requirement: str, tail: Sequence[str]) -> BuildError:
        said = [match[1] for line in tail if (match := _FAILURE.search(line))]
        return BuildError(
            f"`{requirement}` does not compile in `{self.base.name}` for {self.base.platform}: "
            + (said[-1].strip() if said else last_words(tail)),
            hint="compiling requires a base with a compiler and Python headers, often called `devel`; "
            "or set a version that has a wheel under `requirements:` of the image",
            tail=tuple(tail),
        )


def may_compile(
    plan: Plan, engine: Callable[[], Engine], layout: Path, base: BaseImage, python: str, *, emit: Emit
) -> Compiler | None:
    """Return the compiler for a base, or None where the plan wants no engine."""
    return None if plan.config.builder == "direct" else Compiler(engine, layout, base, python, emit)


def build_requirements(source: Path, markers: Mapping[str, str]) -> list[str]:
    """Return what a source's `pyproject.toml` asks for before it can be built (PEP 518), where markers are these.

    Raises:
        BuildError: the source is not an archive, or its `pyproject.toml` is invalid.
    """
    text = _pyproject(source)
    try:
        asked = parse_toml(text).get("build-system", {}).get("requires", USUAL_REQUIREMENTS)
        requirements = [read_requirement(item) for item in asked]
        chosen = [item for item in requirements if item.marker is None or marker_holds(item.marker, markers)]
    except (ValueError, AttributeError, TypeError) as error:
        raise BuildError(
            f"the `pyproject.toml` of `{source.name}` cannot be read: {error}", hint=OTHER_VERSION
        ) from error
    for requirement in chosen:
        requirement.marker = None
    return [str(requirement) for requirement in chosen]


def _pyproject(source: Path) -> str:
    """Return the text of a source's `pyproject.toml`, empty where there is none."""
    with archive_faults(
        lambda reason: BuildError(
            f"`{source.name}` cannot be read as a source distribution: {reason}", hint=OTHER_VERSION
        )
    ):
        if source.is_dir():
            path = source / "pyproject.toml"
            data = files.read_bounded(path, limit_bytes=MAX_PYPROJECT_BYTES) if path.is_file() else b""
        elif source.suffix == ".zip":
            with zipfile.ZipFile(source) as packed:
                names = [name for name in packed.namelist() if _is_pyproject(name)]
                if not names or packed.getinfo(names[0]).file_size > MAX_PYPROJECT_BYTES:
                    return ""
                data = packed.read(names[0])
        else:
            with tarfile.open(source, encoding="utf-8") as archive:
                member = next((item for item in archive if item.isfile() and _is_pyproject(item.name)), None)
                stream = archive.extractfile(member) if member is not None else None
                data = stream.read(MAX_PYPROJECT_BYTES) if stream is not None else b""
        return data.decode()


def _is_pyproject(name: str) -> bool:
    return name.removeprefix("./").count("/") == 1 and name.endswith("/pyproject.toml")
