"""Wheels built from source on this host, by build scripts that reach neither its network nor its files.

What a build asks for (PEP 518, PEP 517) is fetched before, as wheels. Which source, and whether the wheel is the one
that was wanted, is for `wheels`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment

from airferry.events import Emit
from airferry.host import files
from airferry.host.confinement import HostView, host_python, run_confined
from airferry.near.wheels.compile import MAX_REQUIREMENT_ROUNDS, BuildSource, build_requirements
from airferry.near.wheels.pack import built_wheel
from airferry.near.wheels.pip import DoesNotBuild, Pip, last_words, not_found_names

WHEEL_BUILD_TIMEOUT_S = 3600.0
_SOURCE, _HOUSE, _OUT, _PIP = "/build/source", "/build/house", "/build/out", "/build/own/pip"
_GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
_FAILURE = re.compile(r"^\s*((?:[A-Za-z_][\w.]*(?:Error|Exception)\b|error): \S.*)$")


@dataclass(frozen=True, slots=True)
class SourceBuilder:
    """pip on the host, with what it needs to build there. `own_pip` is the folder of an unpacked pip."""

    pip: Pip
    own_pip: Path
    emit: Emit

    def build(self, source: BuildSource, *, scratch: Path, environment: Mapping[str, str]) -> Path:
        """Build the project of a source tree, and return the wheel, which lies in `scratch`.

        The tree is the script's to change.

        Raises:
            DoesNotBuild: it does not build; the message is the build's.
            BuildError: the index cannot be reached, or has no wheel of what the build asks for.
            HostError: the host does not allow to confine it.
        """
        house, out = files.ensure_directory(scratch / "house"), files.ensure_directory(scratch / "out")
        markers = {key: str(value) for key, value in default_environment().items()}
        wanted = build_requirements(source.project, markers)
        fetched: set[str] = set()
        for _round in range(MAX_REQUIREMENT_ROUNDS):
            if wanted:
                self.pip.download_closure(wanted, None, into=house)
                fetched |= set(wanted)
            done = run_confined(
                [
                    *(host_python(), _PIP, "--no-input", "--disable-pip-version-check"),
                    *("--no-color", "wheel", "--no-index", "--find-links", _HOUSE, "--no-deps", "--no-cache-dir"),
                    *("--ignore-requires-python", "--wheel-dir", _OUT, f"{_SOURCE}/{source.folder}".rstrip("/")),
                ],
                scratch=scratch / "confined",
                view=HostView(
                    # out of a wheel, pip would be compiled again each time that it starts
                    read={house: _HOUSE, self.own_pip: _PIP, **source.shown},
                    write={source.path: _SOURCE, out: _OUT},
                ),
                cwd="/tmp",
                environment={**_GIT, **environment, "PIP_CONFIG_FILE": "/dev/null"},
                timeout_s=WHEEL_BUILD_TIMEOUT_S,
                emit=self.emit,
            )
            if done.returncode == 0:
                break
            # back ends may ask for more once they are there (PEP 517)
            wanted = [name for name in not_found_names(done.tail) if name not in fetched]
            if not wanted:
                said = [match[1] for line in done.tail if (match := _FAILURE.search(line))]
                raise DoesNotBuild(said[-1] if said else last_words(done.tail), tail=done.tail)
        return built_wheel(out, what=f"building `{source.path.name}`")
