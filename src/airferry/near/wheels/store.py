"""Wheels for a target, fetched, built on the host or compiled, and kept by the SHA-256 of their bytes.

Every wheel is checked each time it is handed out: its hash against the lock, its name and version against its own
metadata, its tags against the target. This module does not decide what is needed; `requirements` does.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from airferry.errors import BuildError, IntegrityError, raise_all
from airferry.events import Emit, Notice, silent
from airferry.host import clock, files
from airferry.host.canonical import inputs_digest
from airferry.host.locks import Thing, making, making_all, own_scratch
from airferry.host.parsing import url_path
from airferry.host.records import Records
from airferry.near.git import driver
from airferry.near.wheels.compile import BuildSource, Compiler
from airferry.near.wheels.from_git import GitProject, git_address
from airferry.near.wheels.isolated import SourceBuilder
from airferry.near.wheels.own_pip import own_pip, pack_own_pip
from airferry.near.wheels.pack import Wheel, check_target, normalise_wheel, read_wheel
from airferry.near.wheels.pip import DoesNotBuild, IndexUnreachable, NoDistribution, Pip, WheelTarget
from airferry.plan.locks.packages import GitSource
from airferry.wording import some_of

MAX_NAMED_WHEELS = 12
WHEELS_AT_ONCE = 64  # whose locks, each an open file, are held while they are downloaded
GIT_BUILD_VERSION = 1  # part of what a wheel from Git is known by: raise it when it is made in another way
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OTHER_VERSION = (
    "set a version that has a wheel for the platform under `requirements:` of the image, or remove the platform"
)


@dataclass(frozen=True, slots=True)
class Pin:
    """What is wanted of one distribution.

    `hashes`: SHA-256 in hex of files that the catalogue's lock names, any of which will do. `filename` and `sha256`:
    the very wheel that was locked, taken from the cache without network when it is there. `address`: where the file
    is, if not in the package index: a URL, or a path below `root`. `place`: `file:line` of the lock that wants it.
    """

    name: str
    specifier: str = ""
    hashes: frozenset[str] = frozenset()
    git: GitSource | None = None
    filename: str = ""
    sha256: str = ""
    address: str = ""
    root: Path = field(default=Path(), compare=False)
    place: str = ""

    @property
    def key(self) -> str:
        """The normalised name."""
        return canonicalize_name(self.name)

    @property
    def requirement(self) -> str:
        """The pin as people read it, and pip, where it comes from the index."""
        return f"{self.key}{self.specifier}"

    @property
    def asked(self) -> str:
        """The pin as pip reads it."""
        if not self.address:
            return self.requirement
        url = self.address if "://" in self.address else (self.root / self.address).absolute().as_uri()
        return f"{self.key} @ {url}"


@dataclass(frozen=True, slots=True)
class WheelStore:
    """The cache of wheels under `cache`, and pip to fill it."""

    cache: Path
    pip: Pip = field(default_factory=Pip)
    emit: Emit = silent
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    # one build at a time, which takes all cores; again by the same thread, for a pip that has to be built for it
    _building: Any = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Where wheels are kept: `wheels/<sha256>/<file name>` in the cache."""
        return self.cache / "wheels"

    def find(self, filename: str, sha256: str) -> Wheel | None:
        """Return a wheel that is in the cache, verified, or None. A damaged one counts as absent, and is replaced."""
        path = self._place(filename, sha256)
        if path is None or not path.is_file() or files.file_sha256(path) != sha256:
            return None
        return read_wheel(path, sha256=sha256)

    def size_bytes(self, filename: str, sha256: str) -> int:
        """Return the size of a wheel that is in the cache, 0 where it is not."""
        path = self._place(filename, sha256)
        return path.stat().st_size if path is not None and path.is_file() else 0

    def _place(self, filename: str, sha256: str) -> Path | None:
        """Return where a wheel is kept, or None for a name that leads elsewhere: a lock file may say anything."""
        one_name = filename not in ("", ".", "..") and "/" not in filename and "\0" not in filename
        return self.folder / sha256 / filename if one_name and _SHA256.fullmatch(sha256) else None

    def fetch(self, pins: Sequence[Pin], target: WheelTarget, *, compiler: Compiler | None = None) -> list[Wheel]:
        """Return a wheel for each pin, in the order of the pins. Needs no network for locked wheels in the cache.

        A distribution without a wheel is built here from its source, if the result is pure Python; what must be
        compiled is left to `compiler`, and refused where there is none.

        Raises:
            BuildError: one cannot be found, has no wheel for the target, does not compile, or is not what its name
                says.
            HostError: something must be compiled, and there is no engine for it.
            IntegrityError: a wheel has another hash than the lock says.
        """
        found = self._kept(pins, target)
        wanted = [pin for pin in pins if pin.key not in found]
        if wanted:
            found.update(self._fetch(wanted, target, compiler))
        return [replace(found[pin.key], origin=_origin(pin, found[pin.key])) for pin in pins]

    def _kept(self, pins: Sequence[Pin], target: WheelTarget) -> dict[str, Wheel]:
        """Return those of locked wheels that are in the cache."""
        found: dict[str, Wheel] = {}
        for pin in pins:
            if pin.sha256 and (wheel := self.find(pin.filename, pin.sha256)):
                check_target(wheel, target)
                found[pin.key] = wheel
        return found

    def _fetch(self, pins: Sequence[Pin], target: WheelTarget, compiler: Compiler | None) -> dict[str, Wheel]:
        # pip would run the build of a source that an address leads to
        from_source = [pin for pin in pins if pin.address and not url_path(pin.address).endswith(".whl")]
        from_index = [pin for pin in pins if pin.git is None and pin not in from_source]
        with own_scratch(self.folder) as scratch:
            work = [
                (pin, partial(self._build_git, pin, pin.git, target, scratch=scratch, compiler=compiler))
                for pin in pins
                if pin.git is not None
            ]
            found, missing = self._download(from_index, target, scratch=scratch)
            missing |= {pin.asked: NoDistribution(pin.requirement) for pin in from_source}
            lacking = {pin: missing[pin.asked] for pin in (*from_source, *from_index) if pin.asked in missing}
            sources = self._unpack(lacking, compiler=compiler, into=scratch / "sources")
            work += [
                (pin, partial(self._build, pin, target, scratch=scratch, why=why, source=source, compiler=compiler))
                for pin, why in lacking.items()
                for source in [sources.get(pin.asked)]
            ]
            if work:
                with self._building:
                    found |= _all_or_errors([partial(self._built, pin, build) for pin, build in work])
            return {pin.key: self._admit(pin, found.get(pin.key), target) for pin in pins}

    def _download(
        self, pins: Sequence[Pin], target: WheelTarget, *, scratch: Path
    ) -> tuple[dict[str, Wheel], dict[str, NoDistribution]]:
        """Return the wheels that the index has, each by its name, and why there is none of the others, as asked.

        Locked ones are kept at once, so that another process that waits for them need not download them again.
        """
        found: dict[str, Wheel] = {}
        missing: dict[str, NoDistribution] = {}
        locked = [pin for pin in pins if pin.sha256]
        parts = [locked[start : start + WHEELS_AT_ONCE] for start in range(0, len(locked), WHEELS_AT_ONCE)]
        for number, part in enumerate([*parts, [pin for pin in pins if not pin.sha256]]):
            doing = f"downloading {some_of([f'`{pin.requirement}`' for pin in part], 3)}"
            names = [pin.sha256 for pin in part if pin.sha256]
            with making_all(self.cache, Thing.WHEEL, names, doing=doing, emit=self.emit):
                found |= self._kept(part, target)
                wanted = [pin for pin in part if pin.key not in found]
                if not wanted:
                    continue
                into = files.ensure_directory(scratch / f"index-{number}")
                asked = {pin.asked: _accepted(pin) for pin in wanted}
                absent = {item.requirement: item for item in self.pip.download(asked, target, into=into)}
                for path in sorted(into.glob("*.whl")):
                    wheel = read_wheel(path, sha256=files.file_sha256(path))
                    found.setdefault(wheel.name, wheel)
                for pin in wanted:
                    if pin.sha256 and pin.asked not in absent:
                        found[pin.key] = self._admit(pin, found.get(pin.key), target)
                missing |= absent
        return found, missing

    def _built(self, pin: Pin, build: Callable[[], Wheel]) -> Wheel:
        """Build a wheel; one that is locked is built by one process at a time, and taken from the cache by the next."""
        if not pin.sha256:
            return build()
        doing = f"building `{pin.requirement}`"
        with making(self.cache, Thing.BUILT_WHEEL, pin.sha256, doing=doing, emit=self.emit):
            return self.find(pin.filename, pin.sha256) or build()

    def _unpack(
        self, lacking: Mapping[Pin, NoDistribution], *, compiler: Compiler | None, into: Path
    ) -> dict[str, Path | NoDistribution | BuildError]:
        """Unpack the sources of all that has no wheel and can be built or compiled."""
        asked = {
            pin.asked: sorted(pin.hashes)
            for pin, why in lacking.items()
            if compiler is not None or not _other_platforms(pin, why)
        }
        return self.pip.unpack_sources(asked, into=files.ensure_directory(into)) if asked else {}

    def _build(
        self,
        pin: Pin,
        target: WheelTarget,
        *,
        scratch: Path,
        why: NoDistribution,
        source: Path | NoDistribution | BuildError | None,
        compiler: Compiler | None,
    ) -> Wheel:
        """Build from a source distribution what has no wheel for the target.

        What has wheels for other platforms is compiled, so it is not tried on this host.
        """
        with files.scratch_directory(scratch) as out:
            platforms = _other_platforms(pin, why)
            reason = f"`{pin.requirement}` has no wheel for {target}"
            if platforms:
                named = ", ".join(f"`{platform}`" for platform in platforms[:MAX_NAMED_WHEELS])
                reason += f"; it has wheels for {named}"
                compiler = self._may_compile(compiler, reason, platforms=platforms)
            if isinstance(source, BuildError):
                raise source
            if not isinstance(source, Path):
                if not platforms:
                    raise _absent(pin, target, (source or why).versions or why.versions)
                raise BuildError(f"{reason}, and no source", hint=_OTHER_VERSION, platforms=platforms)
            identity = driver.tree_digest(source)
            if not platforms:
                if compiler is not None and (known := self._compiled(pin, identity, compiler)):
                    return known
                untouched = out / "untouched"
                shutil.copytree(source, untouched, symlinks=True)
                made = self._build_here(source, scratch=out, into=scratch)
                if isinstance(made, Wheel):
                    self._say_once(f"`{pin.requirement}` has no wheel; it was built from its source on this host")
                    return made
                source, reason = untouched, f"`{pin.requirement}` has no wheel for {target}, and {made}"
                compiler = self._may_compile(compiler, reason)
            assert compiler is not None
            return self._compile(pin, target, BuildSource(source), identity, scratch=out, compiler=compiler)

    def _build_git(
        self, pin: Pin, git: GitSource, target: WheelTarget, *, scratch: Path, compiler: Compiler | None
    ) -> Wheel:
        """Build from a Git commit. A wheel of pure Python is built once for a commit and the version wanted."""
        project = GitProject(pin.key, git, _exact_version(pin), pin.place, self.cache, self.emit)
        records = Records(self.cache / "git-wheels")
        key = {"version": GIT_BUILD_VERSION, "name": pin.key, "source": project.address, "wanted": project.wanted}
        key |= {"environment": dict(_build_env())}
        doing = f"building `{pin.requirement}` from Git"
        with (
            making(self.cache, Thing.GIT_WHEEL, inputs_digest(key), doing=doing, emit=self.emit),
            files.scratch_directory(scratch) as out,
        ):
            known = records.recall(key) or {}
            if kept := self.find(str(known.get("file")), str(known.get("sha256"))):
                return replace(kept, note=str(known.get("note", "")))
            project.fetch()
            built: Path | str
            try:
                built = project.build(self._builder(), scratch=out, environment=_build_env())
            except DoesNotBuild as error:
                built = f"its source does not build on this host: {error.message}"
            else:
                project.check(str(parse_wheel_filename(built.name)[1]))
            wheel = self._portable(built, into=scratch)
            if isinstance(wheel, str):
                compiler = self._may_compile(compiler, f"`{pin.requirement}` comes from Git, and {wheel}")
                shown = project.check_out(out / "fresh")
                wheel = self._compile(
                    pin,
                    target,
                    project.source(out / "fresh", shown),
                    project.address,
                    scratch=out,
                    compiler=compiler,
                )
            wheel = self._keep(replace(wheel, note=project.check(wheel.version)))
            if wheel.filename.endswith("-none-any.whl"):
                records.remember(key, {"file": wheel.filename, "sha256": wheel.sha256, "note": wheel.note})
            return wheel

    def _may_compile(self, compiler: Compiler | None, reason: str, **fields: Any) -> Compiler:
        if compiler is None:
            raise BuildError(
                reason,
                hint=f"{_OTHER_VERSION}; with `builder: auto` it is compiled in a container of the base",
                **fields,
            )
        self.emit(Notice(f"{reason}; it is compiled in a container of `{compiler.base.name}`"))
        return compiler

    def _say_once(self, text: str) -> None:
        """Say what concerns no single image once in the life of this store, however many images lead to it."""
        if text not in self._said:
            self._said.add(text)
            self.emit(Notice(text))

    def _compile(
        self,
        pin: Pin,
        target: WheelTarget,
        source: BuildSource,
        identity: str,
        *,
        scratch: Path,
        compiler: Compiler,
    ) -> Wheel:
        """Return the wheel that a source compiles to; what was compiled before on the same base is taken again."""
        key = compiler.key(pin.requirement, identity, _compile_env(pin))
        doing = f"compiling `{pin.requirement}`"
        with making(self.cache, Thing.COMPILED_WHEEL, inputs_digest(key), doing=doing, emit=self.emit):
            if known := self._compiled(pin, identity, compiler):
                return known
            made = compiler.compile(
                pin.requirement,
                source,
                target,
                pip=self.pip,
                own_pip=self.pip_wheel(target.python_version),
                # apart from what was tried on the host, whose wheels lie in `scratch`
                scratch=files.ensure_directory(scratch / "in-base"),
                environment=_compile_env(pin),
            )
            wheel = self._keep(self._take(made, into=scratch / "normal", origin="source"))
            Records(self.cache / "compiled").remember(key, {"file": wheel.filename, "sha256": wheel.sha256})
            return wheel

    def _compiled(self, pin: Pin, identity: str, compiler: Compiler) -> Wheel | None:
        """Return what a source was compiled to before, on the same base."""
        key = compiler.key(pin.requirement, identity, _compile_env(pin))
        known = Records(self.cache / "compiled").recall(key) or {}
        wheel = self.find(str(known.get("file")), str(known.get("sha256")))
        return replace(wheel, origin="source") if wheel else None

    def _builder(self) -> SourceBuilder:
        return SourceBuilder(self.pip, own_pip(), self.emit)

    def _build_here(self, source: Path, *, scratch: Path, into: Path) -> Wheel | str:
        """Build on this host, and return the wheel, or in words why it serves on no other."""
        built: Path | str
        try:
            built = self._builder().build(BuildSource(source), scratch=scratch, environment=_build_env())
        except DoesNotBuild as error:
            built = f"its source does not build on this host: {error.message}"
        return self._portable(built, into=into)

    def _portable(self, built: Path | str, *, into: Path) -> Wheel | str:
        if isinstance(built, str):
            return built
        if built.name.endswith("-none-any.whl"):
            return self._take(built, into=into, origin="source")
        return f"its source builds `{built.name}`, which only runs on this host"

    @staticmethod
    def _take(built: Path, *, into: Path, origin: str) -> Wheel:
        path = files.ensure_directory(into) / built.name
        normalise_wheel(built, path)
        return replace(read_wheel(path, sha256=files.file_sha256(path)), origin=origin)

    def _admit(self, pin: Pin, wheel: Wheel | None, target: WheelTarget) -> Wheel:
        """Check a wheel against its pin and move it into the cache."""
        # what comes from Git was held against its version when it was built
        specifier = SpecifierSet("" if pin.git is not None and not pin.sha256 else pin.specifier)
        if wheel is None or not specifier.contains(wheel.version, prereleases=True):
            got = "nothing" if wheel is None else f"`{wheel.filename}`"
            raise BuildError(
                f"`{pin.requirement}` was requested, but pip delivered {got}",
                hint="check the package index: it offers a file under a name that it does not have",
            )
        accepted = {pin.sha256} if pin.sha256 else pin.hashes if wheel.origin == "index" else frozenset[str]()
        if accepted and wheel.sha256 not in accepted:
            raise IntegrityError(
                f"`{wheel.filename}` has SHA-256 `{wheel.sha256}`, expected "
                + " or ".join(f"`{value}`" for value in sorted(accepted)[:3]),
                hint="if the change is intended, run `airferry lock --update`",
                expected=sorted(accepted),
                observed=wheel.sha256,
            )
        check_target(wheel, target)
        return self._keep(wheel)

    def _keep(self, wheel: Wheel) -> Wheel:
        """Move a wheel into the cache, in the place of a damaged one."""
        path = self.folder / wheel.sha256 / wheel.filename
        if wheel.path != path and self.find(wheel.filename, wheel.sha256) is None:
            files.ensure_directory(path.parent)
            with wheel.path.open("rb") as stream:
                os.fsync(stream.fileno())
            files.publish(wheel.path, path)
        return replace(wheel, path=path)

    def pip_wheel(self, python_version: tuple[int, int, int]) -> Path:
        """Return a pip that runs as `PYTHON FILE/pip install …` inside images that have none.

        It is the pip of this host, packed; only for Pythons too old for that one is an older pip fetched.
        """
        lowest = SpecifierSet(metadata.metadata("pip")["Requires-Python"] or "")
        if lowest.contains(".".join(str(part) for part in python_version), prereleases=True):
            return self._packed_pip()
        target = WheelTarget(python_version, f"cp{python_version[0]}{python_version[1]}", "glibc", (2, 17), "x86_64")
        return self._fetch([Pin("pip")], target, None)["pip"].path

    def _packed_pip(self) -> Path:
        with own_scratch(self.folder) as scratch:
            packed = pack_own_pip(scratch)
            return self._keep(read_wheel(packed, sha256=files.file_sha256(packed))).path


def _build_env() -> Mapping[str, str]:
    return {"SOURCE_DATE_EPOCH": str(clock.source_date_epoch_s()), "PYTHONHASHSEED": "0"}


def _compile_env(pin: Pin) -> Mapping[str, str]:
    environment = dict(_build_env())
    if version := _exact_version(pin):
        # a base may have no Git to tell setuptools-scm or hatch-vcs the version
        suffix = re.sub(r"\W", "_", pin.key).upper()
        environment[f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{suffix}"] = version
    return environment


def _exact_version(pin: Pin) -> str | None:
    """Return the one version that a pin is for, or None where it leaves a choice."""
    specifiers = list(SpecifierSet(pin.specifier))
    exact = len(specifiers) == 1 and specifiers[0].operator == "==" and not specifiers[0].version.endswith(".*")
    return specifiers[0].version if exact else None


def _all_or_errors(work: Sequence[Callable[[], Wheel]]) -> dict[str, Wheel]:
    """Do all work, and tell all that cannot be built in one error; return the wheels by their names."""
    found: dict[str, Wheel] = {}
    errors = []
    for build in work:
        try:
            wheel = build()
            found[wheel.name] = wheel
        except IndexUnreachable:
            raise
        except BuildError as error:
            errors.append(error)
    if errors:
        raise_all(errors)
    return found


def _absent(pin: Pin, target: WheelTarget, versions: Sequence[str]) -> BuildError:
    known = ", ".join(f"`{version}`" for version in versions[-MAX_NAMED_WHEELS:])
    return BuildError(
        f"`{pin.requirement}` was not found for {target}" + (f"; latest versions available: {known}" if known else ""),
        hint="check the name and version under `requirements:` of the image or in the "
        "lock file, and pip's configuration",
    )


def _accepted(pin: Pin) -> frozenset[str]:
    """Return the hashes that pip has to choose among; it takes none for what is not pinned to a version."""
    return (frozenset({pin.sha256}) if pin.sha256 else pin.hashes) if _exact_version(pin) else frozenset()


def _other_platforms(pin: Pin, why: NoDistribution) -> list[str]:
    """Return the platforms that the index has wheels of a pin for, none of which is the target's."""
    offered = () if pin.address else why.offered
    return sorted({name.removesuffix(".whl").rpartition("-")[2] for name in offered if _suits(name, pin)})


def _suits(filename: str, pin: Pin) -> bool:
    try:
        name, version, _, _ = parse_wheel_filename(filename)
    except ValueError:
        return False
    return name == pin.key and SpecifierSet(pin.specifier).contains(version, prereleases=True)


def _origin(pin: Pin, wheel: Wheel) -> str:
    return git_address(pin.git) if pin.git is not None else wheel.origin
