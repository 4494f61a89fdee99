"""The only driver of pip, as a child process on the host.

It respects the host's own pip configuration and never repeats index addresses, which may hold credentials. It
decides nothing: what to fetch, whether it is what was locked, and where it is kept is for `wheels`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging import tags
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from airferry.errors import BuildError, HostError, IntegrityError
from airferry.events import Emit, silent
from airferry.host import files, process
from airferry.host.parsing import parse_json
from airferry.near.probe.answers import PythonFacts, cpython_markers
from airferry.near.tls_said import tls_trouble
from airferry.plan.locks.packages import read_requirement
from airferry.wording import printable

TIMEOUT_S = 3600.0
_BASE = ("--no-input", "--disable-pip-version-check", "--no-color")
# pip asks a source for its metadata as soon as something leads to one, such as a wheel's requirement with an address,
# and runs code of it here, with this user's files and network: no pip of ours can start an interpreter
_CALL = """\
import runpy, sys
sys.executable, sys.argv[0] = "/bin/false", "pip"
runpy.run_module("pip", run_name="__main__")
"""
# One process for many calls: an interpreter with pip in it takes longer to start than most calls take.
_CALLS = """\
import json, os, runpy, sys, tempfile
folder = sys.argv[1]
with open(os.path.join(folder, "calls")) as file:
    asked = json.load(file)
sys.executable = "/bin/false"
codes = []
for number, call in enumerate(asked["calls"]):
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        stream.flush()
        target = os.open(os.path.join(folder, "%d.%s" % (number, name)), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(target, stream.fileno())
        os.close(target)
    if asked["temporaries"]:
        os.environ["TMPDIR"], tempfile.tempdir = asked["temporaries"][number], None
    sys.argv = ["pip", *call]
    try:
        runpy.run_module("pip", run_name="__main__")
    except SystemExit as end:
        codes.append(end.code if isinstance(end.code, int) else 1)
with open(os.path.join(folder, "codes"), "w") as file:
    json.dump(codes, file)
"""
_NO_MATCH = re.compile(r"No matching distribution found for (\S.*)$")
_NOT_FETCHED = re.compile(r"^Could not fetch URL \S+: (.*?)(?: - skipping)?$", re.MULTILINE)
_VERSIONS = re.compile(r"satisfies the requirement .*\(from versions: (.*)\)")
_WHEEL = re.compile(r"(?<![A-Za-z0-9_.])([A-Za-z0-9_.]+-[A-Za-z0-9_.!+]+(?:-\d\w*)?-[\w.]+-[\w.]+-[\w.]+\.whl)")
_MISMATCH = re.compile(r"\s+(\S+) from \S")
_ADDRESS = re.compile(r"\b\w[\w+.-]*://\S+")
_UNREACHABLE = re.compile(
    r"[cC]onnection (?:broken|refused|aborted)|name resolution|timed out|HTTP error|SSLError|Client Error|"
    r"ssl certificate"
)
_ASKED = re.compile(r"(?:Could not fetch URL|Looking in indexes:|Getting page) (\S+)")
_MUSL_LOWEST, _GLIBC_LOWEST = 0, {"x86_64": 5, "i686": 5}
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
# what a lock says may not bring an option (`--index-url`), a line of its own, or `${NAME}`, which pip replaces by a
# variable of this host: all of that would have the lock's author say where pip looks, and with whose password
_REQUIREMENT_LINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?( @ [!-~]+|[!-~]*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_SHOWN_REQUIREMENT = 200
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
    """A requirement that pip found no file for. `versions` are those that it could have had.

    `offered` are the file names of all wheels that the index has for its name, whatever platform they are for.
    """

    requirement: str
    versions: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pip:
    """pip of the interpreter that runs airferry. `options` go to every call, for instance `--no-index`."""

    options: tuple[str, ...] = ()
    emit: Emit = silent

    def download(
        self, requirements: Mapping[str, Collection[str]], target: WheelTarget, *, into: Path
    ) -> list[NoDistribution]:
        """Download a wheel for each requirement, and return those without one. Starts two processes at most.

        The values are the SHA-256 in hex of files that will do, none for any. Where there are some, pip chooses among
        these, whatever else the index has got since; such a requirement must name one version.

        Raises:
            BuildError: the index cannot be reached, or pip fails for another reason.
            IntegrityError: the index has the version with other hashes.
        """
        # pip takes either hashes for all that it is asked for, or for nothing
        hashed = [item for item, hashes in requirements.items() if hashes]
        free = [item for item, hashes in requirements.items() if not hashes]
        groups = [group for group in (hashed, free) if group]
        argv = ["download", "--no-deps", "--only-binary=:all:", f"--dest={into}", *target.options]
        unsure: list[str] = []
        calls = [[*argv, *_asking(group, requirements, into / f"{number}.txt")] for number, group in enumerate(groups)]
        for group, done in zip(groups, self._run_all(calls, into=into), strict=True):
            if done.returncode != 0:
                _check_hashes(done)
                self._not_found(done, group)
                unsure += group
        # pip gives up at the first requirement that it finds nothing for, so each is asked for alone
        calls = [
            [*argv, "-vv", *_asking([item], requirements, into / f"alone-{number}.txt")]
            for number, item in enumerate(unsure)
        ]
        missing: list[NoDistribution] = []
        for item, done in zip(unsure, self._run_all(calls, into=into), strict=True):
            if done.returncode != 0:
                _check_hashes(done)
                offered = tuple(sorted(set(_WHEEL.findall(done.text))))
                missing.append(replace(self._not_found(done, [item]), offered=offered))
        return missing

    def download_closure(self, requirements: Sequence[str], target: WheelTarget | None, *, into: Path) -> None:
        """Download wheels for requirements, for all that these require, and so on; for this host without a target.

        Sources and their code say what a build requires, so a requirement that names where to get it is refused.

        Raises:
            BuildError: the index cannot be reached, or has no wheel of one for the target; one has an address.
        """
        for requirement in requirements:
            _refuse_address(requirement)
        argv = ["download", "--only-binary=:all:", f"--dest={into}", f"--find-links={into}"]
        argv += target.options if target is not None else []
        done = self._run([*argv, "--", *requirements])
        if done.returncode != 0:
            missing = self._not_found(done, [*requirements, *not_found_names(done.tail)])
            raise BuildError(
                f"`{missing.requirement}`, which a build requires, has no wheel for {target or 'this host'}",
                hint="set a version that has a wheel under `requirements:` of the image",
            )

    def unpack_sources(
        self, requirements: Mapping[str, Collection[str]], *, into: Path
    ) -> dict[str, Path | NoDistribution | BuildError]:
        """Unpack the source distribution of each requirement, and return its folder below `into`, or why there is none.

        Starts one process, and runs nothing of a source. The values are the SHA-256 in hex of files that will do, none
        for any; pip unpacks nothing that has another hash.

        Raises:
            BuildError: the index cannot be reached.
            IntegrityError: a source has none of the hashes.
        """
        calls, temporaries = [], []
        for number, (requirement, hashes) in enumerate(requirements.items()):
            folder = into / str(number)
            temporaries.append(files.ensure_directory(folder / "temporary"))
            listing = folder / "source-requirement.txt"
            listing.write_text(_hashed(requirement, hashes), encoding="utf-8")
            argv = ["download", "--no-clean", "--no-deps", "--no-cache-dir", "--ignore-requires-python", "--use-pep517"]
            argv += [f"--dest={folder / 'archive'}", f"--no-binary={Requirement(requirement).name}"]
            calls.append([*argv, f"--requirement={listing}"])
        # pip asks every source for its metadata, for which it can start no interpreter, and leaves what it unpacked
        found: dict[str, Path | NoDistribution | BuildError] = {}
        outcomes = self._run_all(calls, into=into, temporaries=temporaries)
        for requirement, temporary, done in zip(requirements, temporaries, outcomes, strict=True):
            _check_hashes(done)
            unpacked = sorted(path for path in temporary.glob("pip-download-*/*") if any(path.iterdir()))
            if len(unpacked) == 1:
                found[requirement] = unpacked[0]
                continue
            try:
                found[requirement] = self._not_found(done, [requirement])
            except IndexUnreachable:
                raise
            except BuildError as error:
                found[requirement] = error
        return found

    def ask_index(self, *, timeout_s: float) -> str:
        """Ask every index and folder that pip is configured for about a project, and say what was answered.

        Raises:
            BuildError: one does not answer in time, or refuses.
        """
        argv = ["index", "versions", "-vv", "--retries=0", f"--timeout={timeout_s / 3:.0f}", "--", "pip"]
        done = self._run(argv, timeout_s=timeout_s)
        hint = (
            "check the network, the proxy and pip's configuration (`pip config debug`); "
            "`pip index versions -vv pip` makes the same request"
        )
        # pip passes over an index that does not answer, and says so only here
        for reason in _NOT_FETCHED.findall(done.text):
            if not reason.startswith("404 "):
                raise _unreachable("a package index", reason, done, hint=hint)
        # where an answer breaks off, pip ends with a traceback
        if done.returncode != 0 and any(_UNREACHABLE.search(line) for line in done.tail):
            raise _unreachable("a package index", last_words(done.tail), done, hint=hint)
        return "answers" if done.returncode == 0 else "answers, but does not have `pip`"

    def _run(self, argv: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> process.Completed:
        return process.run(
            [sys.executable, "-P", "-c", _CALL, *self._arguments(argv)],
            timeout_s=timeout_s,
            check=False,
            emit=self.emit,
        )

    def _arguments(self, argv: Sequence[str]) -> list[str]:
        verb, *rest = argv
        return [*_BASE, verb, *self.options, *rest]

    def _run_all(
        self, calls: Sequence[Sequence[str]], *, into: Path, temporaries: Sequence[Path] = ()
    ) -> list[process.Completed]:
        """Make all calls in one process, one after the other, and return how each ended.

        With `temporaries`, each call has its own folder for temporary files.
        """
        if not calls:
            return []
        if len(calls) == 1 and not temporaries:
            return [self._run(calls[0])]
        with files.scratch_directory(into) as folder:
            asked = {
                "calls": [self._arguments(call) for call in calls],
                "temporaries": [str(path) for path in temporaries],
            }
            (folder / "calls").write_text(json.dumps(asked), encoding="utf-8")
            process.run([sys.executable, "-P", "-c", _CALLS, folder], timeout_s=TIMEOUT_S, emit=self.emit)
            codes = parse_json((folder / "codes").read_bytes())
            return [
                process.Completed(
                    code,
                    (folder / f"{number}.out").read_bytes(),
                    tuple(
                        (folder / f"{number}.err")
                        .read_text(encoding="utf-8", errors="replace")
                        .splitlines()[-process.TAIL_LINES :]
                    ),
                )
                for number, code in enumerate(codes)
            ]

    @staticmethod
    def _not_found(done: process.Completed, wanted: Sequence[str]) -> NoDistribution:
        # with `-vv`, what pip could not fetch is on stdout
        if any(_UNREACHABLE.search(line) for line in (*done.tail, *_NOT_FETCHED.findall(done.text))):
            hint = "check the network, the proxy and pip's configuration (`pip config debug`), then rerun"
            raise _unreachable("the package index", last_words(done.tail), done, hint=hint)
        if any(process.DISK_FULL.search(line) for line in done.tail):
            raise HostError(
                f"pip finds the disk full: {last_words(done.tail)}",
                hint=process.temporary_full_hint(),
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
            hint="the lines above are pip's; `airferry --debug` shows the command",
        )


def _unreachable(index: str, reason: str, done: process.Completed, *, hint: str) -> IndexUnreachable:
    """Return the error for an index that gave no answer: what pip says last is that the package does not exist."""
    said = "\n".join((*done.tail, done.text))
    asked = [url.rstrip(",") for url in _ASKED.findall(said)]
    trouble = tls_trouble(
        said,
        url=next((url for url in asked if url.startswith("http://")), ""),
        where="in pip's configuration (`pip config debug` shows its files) or `PIP_INDEX_URL`",
        ca="`pip config set global.cert FILE`",
    )
    if trouble is not None:
        reason, hint = trouble
    tail = tuple(_redact(line) for line in done.tail)
    return IndexUnreachable(f"{index} did not answer: {_redact(reason)}", hint=hint, tail=tail)


def not_found_names(tail: Sequence[str]) -> list[str]:
    """Return the requirements for which pip found no file, as it wrote them."""
    return [match[1].strip() for line in tail if (match := _NO_MATCH.search(line))]


def last_words(tail: Sequence[str]) -> str:
    """Return the last line of an error that pip wrote, without addresses."""
    errors = [line for line in tail if line.startswith("ERROR: ")] or [line for line in tail if line.strip()]
    return _redact(errors[-1].removeprefix("ERROR: ").strip()) if errors else "no message"


def _asking(group: Sequence[str], requirements: Mapping[str, Collection[str]], listing: Path) -> list[str]:
    """Return what asks pip for a group, all of it with hashes or nothing of it; hashes go by a file."""
    if not requirements[group[0]]:
        return ["--", *group]
    listing.write_text("".join(_hashed(item, requirements[item]) for item in group), encoding="utf-8")
    return [f"--requirement={listing}"]


def _hashed(requirement: str, hashes: Collection[str]) -> str:
    """Return a line of a requirements file.

    Raises:
        BuildError: pip would read more than a requirement and its hashes: options, other lines, variables of the host.
    """
    if not _REQUIREMENT_LINE.fullmatch(requirement) or "${" in requirement or not all(map(_SHA256.fullmatch, hashes)):
        raise BuildError(
            f"`{printable(requirement, most=MAX_SHOWN_REQUIREMENT)}` is not one distribution with its SHA-256",
            hint="the catalogue's lock names it, or `requirements:` of the image: correct it there",
        )
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


def _refuse_address(requirement: str) -> None:
    """Raise for a requirement with an address: it would have the author of a source say what this host fetches."""
    try:
        read = read_requirement(requirement)
    except ValueError as error:
        shown = printable(_redact(requirement), most=MAX_SHOWN_REQUIREMENT)
        raise BuildError(
            f"a build requires `{shown}`, which is not a requirement: {_redact(str(error))}",
            hint="set a version that has a wheel under `requirements:` of the image",
        ) from error
    if read.url:
        raise BuildError(
            f"a build requires `{read.name}` from an address; only what the package index has is fetched for builds",
            hint="set a version that has a wheel under `requirements:` of the image",
        )


def _redact(line: str) -> str:
    return _ADDRESS.sub("(address)", line)


def _name(requirement: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement.partition(" (")[0]).name)
    except InvalidRequirement:
        return requirement
