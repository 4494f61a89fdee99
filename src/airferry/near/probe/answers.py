"""What a base image holds: which modules can be imported there, and what its Python is like.

This module makes the request and reads the answer. It starts nothing: the caller that drives the container runs
`probe_argv` in it with `probe_input` on stdin, once for all modules, and hands stdout to `parse_probe` or `ask`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import resources
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from airferry.errors import BuildError
from airferry.rootfs.modules import ModuleAnswer
from airferry.wording import obeyed

MARK = "AIRFERRY-PROBE "
PROBE_SCHEMA_VERSION = 1
DEFAULT_MODULE_TIMEOUT_S = 120.0
PROBE_ATTEMPTS = 3


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _path_text(value: str) -> str:
    if found := obeyed(value):
        raise ValueError(f"a path of the base has the control character {found}, which no manifest or script can hold")
    return value


PathText = Annotated[str, AfterValidator(_path_text)]


def cpython_markers(version: str, machine: str) -> dict[str, str]:
    """Return what environment markers (PEP 508) see of CPython on Linux, as far as that tells it."""
    return {
        "implementation_name": "cpython",
        "implementation_version": version,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": version,
        "python_version": ".".join(version.split(".")[:2]),
        "sys_platform": "linux",
    }


class InstalledDistribution(_Frozen):
    """A distribution that the base holds, with its `Requires-Dist` lines."""

    name: str
    version: str
    requires: tuple[str, ...] = ()


class PythonFacts(_Frozen):
    """The interpreter of a base, as installers and environment markers (PEP 508) see it."""

    executable: PathText
    implementation: str
    version: str
    prefix: PathText
    base_prefix: PathText
    in_venv: bool
    externally_managed: bool
    paths: dict[str, str]
    libc: Literal["glibc", "musl", ""]
    libc_version: str
    machine: str
    byte_order: Literal["little", "big"]
    pointer_bits: int
    abi: str
    extension_suffix: str
    markers: dict[str, str]
    # what a virtual environment was made from, else the same as `executable`
    base_executable: PathText = ""


class ProbeResult(_Frozen):
    """Everything that one run of the probe found."""

    schema_version: int = Field(le=PROBE_SCHEMA_VERSION)
    modules: dict[str, ModuleAnswer]
    python: PythonFacts
    distributions: tuple[InstalledDistribution, ...]

    def to_json(self) -> str:
        """Return the result as one line of JSON with sorted keys, for the journal."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> ProbeResult:
        """Return the result that `to_json` wrote.

        Raises:
            BuildError: the text is not a probe result of this version.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise unusable_answer(error) from error


def unusable_answer(error: ValidationError) -> BuildError:
    """Return the error for what a base says of its Python, and cannot be used."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "document"
    return BuildError(
        f"cannot use what the base says of its Python: `{where}`: {first['msg']}",
        hint="the base's interpreter is not a usual CPython: set `python:` of the image, or use another base",
    )


def probe_argv(python: str) -> list[str]:
    """Return the command that runs the probe with an interpreter of the base. It reads `probe_input` on stdin."""
    script = resources.files(__package__).joinpath("script.py").read_text(encoding="utf-8")
    return [python, "-B", "-c", script]


def probe_input(
    modules: Iterable[str],
    *,
    path: Iterable[str] = (),
    module_timeout_s: float = DEFAULT_MODULE_TIMEOUT_S,
    jobs: int = 2,
) -> bytes:
    """Return the request for a run: the modules to import, and folders that the step's own code puts on the path."""
    request = {
        "modules": sorted(set(modules)),
        "path": list(path),
        "timeout_s": module_timeout_s,
        "jobs": jobs,
    }
    return json.dumps(request, sort_keys=True).encode()


class NoAnswer(BuildError):
    """A probe ended well and printed no answer."""


def ask_again(run: Callable[[], bytes]) -> ProbeResult:
    """Run a probe, again where its answer did not come, and return that.

    Buildah 1.28 loses what a container prints, all of it, about once in two hundred runs where several run at a time.

    Raises:
        BuildError: there is no answer, or it is not understood.
    """
    for _attempt in range(PROBE_ATTEMPTS - 1):
        with suppress(NoAnswer):
            return parse_probe(run())
    return parse_probe(run())


def parse_probe(stdout: str | bytes) -> ProbeResult:
    """Return the answer in the probe's standard output, whatever else was printed there.

    Raises:
        NoAnswer: there is none.
        BuildError: it is not understood.
    """
    text = stdout.decode("utf-8", "replace") if isinstance(stdout, bytes) else stdout
    for line in reversed(text.splitlines()):
        if line.startswith(MARK):
            return ProbeResult.from_json(line.removeprefix(MARK))
    raise NoAnswer(
        "the probe of the base returned no answer",
        hint="its interpreter must be Python 3.6 or newer; set `python:` of the image to another one",
    )
