"""The only driver of pip, as a child process on the host.

It respects the host's own pip configuration and never repeats index addresses, which may hold credentials. It
decides nothing: what to fetch, whether it is what was locked, and where it is kept is for `wheels`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging import tags
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from airferry.errors import BuildError, IntegrityError
from airferry.events import Emit, silent
from airferry.host import files, process
from airferry.near.probe.answers import PythonFacts, cpython_markers

TIMEOUT_S = 3600.0
_BASE = ("--no-input", "--disable-pip-version-check", "--no-color")
_CHILDLESS = """\
import runpy, sys
sys.argv[0], sys.executable = "pip", "/bin/false"
runpy.run_module("pip", run_name="__main__")
"""
_NO_MATCH = re.compile(r"No matching distribution found for (\S.*)$")
_NOT_FETCHED = re.compile(r"^Could not fetch URL \S+: (.*?)(?: - skipping)?$", re.MULTILINE)
_VERSIONS = re.compile(r"satisfies the requirement .*\(from versions: (.*)\)")
_WHEEL = re.compile(r"([A-Za-z0-9_.]+-[A-Za-z0-9_.!+]+(?:-\d\w*)?-[\w.]+-[\w.]+-[\w.]+\.whl)")
_MISMATCH = re.compile(r"\s+(\S+) from \S")
_ADDRESS = re.compile(r"\b\w[\w+.-]*://\S+")
_UNREACHABLE = re.compile(
    r"connection broken|Connection refused|name resolution|timed out|HTTP error|SSLError|Client Error"
)
_MUSL_LOWEST, _GLIBC_LOWEST = 0, {"x86_64": 5, "i686": 5}
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_NARROW = {"x86_64": "i686", "aarch64": "armv7l"}


@dataclass(frozen=True, slots=True)
class WheelTarget:
    """The interpreter and the C library that wheels must suit."""

    python_version: tuple[int, int, int]
    abi: str
    libc: str
    libc_version: tuple[int, int]
    machine: str

    def __str__(self) -> str:
        version = ".".join(str(part) for part in self.python_version)
        libc = ".".join(str(part) for part in self.libc_version)
        return f"CPython {version} on {self.machine} with {self.libc} {libc}"

    @property
    def platforms(self) -> list[str]:
        """The platform tags that the target accepts, best first (PEP 600, PEP 656)."""
        major, minor = self.libc_version
        found = []
        if self.libc == "musl":
            found = [f"musllinux_{major}_{low}_{self.machine}" for low in range(minor, _MUSL_LOWEST - 1, -1)]
        else:
            for low in range(minor, _GLIBC_LOWEST.get(self.machine, 17) - 1, -1):
                found.append(f"manylinux_{major}_{low}_{self.machine}")
                if low in _LEGACY:
                    found.append(f"{_LEGACY[low]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

    @property
    def tags(self) -> frozenset[tags.Tag]:
        """Every wheel tag that the target accepts."""
        version, platforms = self.python_version[:2], self.platforms
        interpreter = f"cp{version[0]}{version[1]}"
        return frozenset(
            [
                *tags.cpython_tags(version, abis=[self.abi], platforms=platforms),
                *tags.compatible_tags(version, interpreter=interpreter, platforms=platforms),
            ]
        )

    @property
    def markers(self) -> dict[str, str]:
        """What environment markers (PEP 508) see there, as far as the target tells it."""
        return cpython_markers(".".join(str(part) for part in self.python_version), self.machine)

    @property
    def options(self) -> list[str]:
        """The target as pip's options."""
        version = ".".join(str(part) for part in self.python_version)
        return [
            *(f"--platform={platform}" for platform in self.platforms),
            f"--python-version={version}",
            "--implementation=cp",
            f"--abi={self.abi}",
        ]


def wheel_target(python: PythonFacts) -> WheelTarget:
    """Return what wheels must suit to run with the interpreter that a probe found.

    Raises:
        BuildError: it is not CPython on Linux with glibc or musl.
    """
    release = re.match(r"(\d+)\.(\d+)\.(\d+)", python.version)
    libc = re.match(r"(\d+)\.(\d+)", python.libc_version)
    if python.implementation != "cpython" or not release or not libc or python.libc not in ("glibc", "musl"):
        raise BuildError(
            f"cannot choose wheels for `{python.executable}` ({python.implementation} {python.version}, C library "
            f"`{python.libc} {python.libc_version}`): expected CPython with glibc or musl",
            hint="set `python:` of the image to a CPython interpreter",
        )
    major, minor, micro = (int(part) for part in release.groups())
    narrow = python.pointer_bits == 32
    return WheelTarget(
        python_version=(major, minor, micro),
        abi=python.abi,
        libc=python.libc,
        libc_version=(int(libc[1]), int(libc[2])),
        machine=_NARROW.get(python.machine, python.machine) if narrow else python.machine,
    )


class IndexUnreachable(BuildError):
    """The package index does not answer."""


class DoesNotBuild(BuildError):
    """A source does not build into a wheel on this host."""


@dataclass(frozen=True, slots=True)
class NoDistribution:
    """A requirement that pip found no file for. `versions` are those that it could have had."""

    requirement: str
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pip:
    """pip of the interpreter that runs airferry. `options` go to every call, for instance `--no-index`."""

    options: tuple[str, ...] = ()
    emit: Emit = silent

    def download(
        self, requirements: Mapping[str, Collection[str]], target: WheelTarget, *, into: Path
    ) -> list[NoDistribution]:
        """Download a wheel for each requirement, in as few calls as possible, and return those without one.

        The values are the SHA-256 in hex of files that will do, none for any. Where there are some, pip chooses among
        these, whatever else the index has got since; such a requirement must name one version.

        Raises:
            BuildError: the index cannot be reached, or pip fails for another reason.
            IntegrityError: the index has the version with other hashes.
        """
        failed: list[NoDistribution] = []
        for hashed in (True, False):
            wanted = [item for item, hashes in requirements.items() if bool(hashes) == hashed]
            while wanted:
                argv = ["download", "--no-deps", "--only-binary=:all:", f"--dest={into}", *target.options]
                if hashed:
                    listing = into / "requirements.txt"
                    listing.write_text("".join(_hashed(item, requirements[item]) for item in wanted), encoding="utf-8")
                    argv.append(f"--requirement={listing}")
                else:
                    argv += ["--", *wanted]
                done = self._run(argv)
                if done.returncode == 0:
                    break
                _check_hashes(done)
                missing = self._not_found(done, wanted)
                failed.append(missing)
                wanted.remove(missing.requirement)
        return failed

    def download_closure(self, requirements: Sequence[str], target: WheelTarget | None, *, into: Path) -> None:
        """Download wheels for requirements, for all that these require, and so on; for this host without a target.

        Raises:
            BuildError: the index cannot be reached, or has no wheel of one for the target.
        """
        argv = ["download", "--only-binary=:all:", f"--dest={into}", f"--find-links={into}"]
        argv += target.options if target is not None else []
        done = self._run([*argv, "--", *requirements])
        if done.returncode != 0:
            missing = self._not_found(done, [*requirements, *not_found_names(done.tail)])
            raise BuildError(
                f"`{missing.requirement}`, which a build requires, has no wheel for {target or 'this host'}",
                hint="set a version that has a wheel under `requirements:` of the image",
            )

    def unpack_source(self, requirement: str, *, into: Path, hashes: Sequence[str] = ()) -> Path | NoDistribution:
        """Download the source distribution of a requirement, and return its folder below `into`. Runs nothing of it.

        With `hashes` (SHA-256 in hex), pip unpacks nothing that has another hash.

        Raises:
            BuildError: the index cannot be reached, or has nothing that can be unpacked.
            IntegrityError: the source has none of the hashes.
        """
        temporary = files.ensure_directory(into / "temporary")
        listing = into / "source-requirement.txt"
        listing.write_text(_hashed(requirement, hashes), encoding="utf-8")
        name = Requirement(requirement).name
        argv = ["download", "--no-clean", "--no-deps", "--no-cache-dir", "--ignore-requires-python", "--use-pep517"]
        argv += [f"--dest={into / 'archive'}", f"--no-binary={name}", f"--requirement={listing}"]
        # pip asks every source for its metadata, which runs code of it: this pip can start no interpreter, and leaves
        # what it unpacked
        done = self._run(argv, environment={"TMPDIR": str(temporary)}, prefix=("-c", _CHILDLESS))
        _check_hashes(done)
        found = sorted(path for path in temporary.glob("pip-download-*/*") if any(path.iterdir()))
        if len(found) == 1:
            return found[0]
        return self._not_found(done, [requirement])

    def offered_wheels(self, requirement: str, target: WheelTarget, *, into: Path) -> list[str]:
        """Return the file names of all wheels that the index has for a requirement's versions, whatever platform."""
        done = self._run(
            [
                "download",
                "-vv",
                "--no-deps",
                "--only-binary=:all:",
                f"--dest={into}",
                *target.options,
                "--",
                requirement,
            ]
        )
        return sorted(set(_WHEEL.findall(done.text)))

    def ask_index(self, *, timeout_s: float) -> str:
        """Ask every index and folder that pip is configured for about a project, and say what was answered.

        Raises:
            BuildError: one does not answer in time, or refuses.
        """
        argv = ["index", "versions", "-vv", "--retries=0", f"--timeout={timeout_s / 3:.0f}", "--", "pip"]
        done = self._run(argv, timeout_s=timeout_s)
        # pip passes over an index that does not answer, and says so only here
        for reason in _NOT_FETCHED.findall(done.text):
            if not reason.startswith("404 "):
                raise IndexUnreachable(
                    f"a package index did not answer: {_redact(reason)}",
                    hint="check the network, the proxy and pip's configuration (`pip config debug`); "
                    "`pip index versions -vv pip` makes the same request",
                )
        return "answers" if done.returncode == 0 else "answers, but does not have `pip`"

    def _run(
        self,
        argv: list[str],
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = ("-m", "pip"),
        timeout_s: float = TIMEOUT_S,
    ) -> process.Completed:
        verb, *rest = argv
        return process.run(
            [sys.executable, *prefix, *_BASE, verb, *self.options, *rest],
            timeout_s=timeout_s,
            environment=environment,
            check=False,
            emit=self.emit,
        )

    @staticmethod
    def _not_found(done: process.Completed, wanted: Sequence[str]) -> NoDistribution:
        if any(_UNREACHABLE.search(line) for line in done.tail):
            raise IndexUnreachable(
                f"the package index did not answer: {last_words(done.tail)}",
                hint="check the network, the proxy and pip's configuration (`pip config debug`), then rerun",
                tail=tuple(_redact(line) for line in done.tail),
            )
        versions: tuple[str, ...] = ()
        for line in done.tail:
            if offered := _VERSIONS.search(line):
                versions = tuple(part.strip() for part in offered[1].split(",") if part.strip() != "none")
            if match := _NO_MATCH.search(line):
                name = _name(match[1])
                for requirement in wanted:
                    if _name(requirement) == name:
                        return NoDistribution(requirement, versions)
        raise BuildError(
            f"pip failed for `{'`, `'.join(wanted)}`: {last_words(done.tail)}",
            tail=tuple(_redact(line) for line in done.tail),
        )


def not_found_names(tail: Sequence[str]) -> list[str]:
    """Return the requirements for which pip found no file, as it wrote them."""
    return [match[1].strip() for line in tail if (match := _NO_MATCH.search(line))]


def last_words(tail: Sequence[str]) -> str:
    """Return the last line of an error that pip wrote, without addresses."""
    errors = [line for line in tail if line.startswith("ERROR: ")] or [line for line in tail if line.strip()]
    return _redact(errors[-1].removeprefix("ERROR: ").strip()) if errors else "no message"


def _hashed(requirement: str, hashes: Iterable[str]) -> str:
    return " ".join([requirement, *(f"--hash=sha256:{value}" for value in sorted(hashes))]) + "\n"


def _check_hashes(done: process.Completed) -> None:
    """Raise if pip found another hash than it was given."""
    if not any("DO NOT MATCH THE HASHES" in line for line in done.tail):
        return
    names = [match[1] for line in done.tail if (match := _MISMATCH.match(line))]
    got = [line.split()[-1] for line in done.tail if line.strip().startswith("Got ")]
    raise IntegrityError(
        f"`{'`, `'.join(names) or 'a distribution'}` has SHA-256 `{', '.join(got)}`, which is not a locked hash",
        hint="find out why before you continue; if the change is intended, run `airferry lock --update`",
        observed=got,
    )


def _redact(line: str) -> str:
    return _ADDRESS.sub("(address)", line)


def _name(requirement: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement.partition(" (")[0]).name)
    except InvalidRequirement:
        return requirement
