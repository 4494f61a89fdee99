"""The Python of a base as its files show it: which interpreter a container would start, its version, folders and ABI.

Follows what CPython's own start-up does (*getpath*, *sysconfig*; Debian's changes included) over a merged root. What
cannot be known without running it raises `StaticallyUnknown`, so that the caller can run it instead.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

from airferry.errors import BuildError
from airferry.oci.documents import DEFAULT_PATH, ImageConfig
from airferry.oci.platform import Platform
from airferry.oci.tar import SYMLINK
from airferry.rootfs.files import BinaryFacts
from airferry.rootfs.view import MAX_LINKS, RootView

NAMES = ("python", "python3")
OLDEST_MINOR = 8
# what Python itself holds, under names that no `PyInit_` mark in the binary gives away
CORE_BUILTINS = frozenset(
    {"sys", "builtins", "marshal", "_imp", "_warnings", "_frozen_importlib", "_frozen_importlib_external", "gc"}
)
_VERSIONED = re.compile(r"python3\.(\d+)(t?)(d?)")
_VERSION = re.compile(r"3\.(\d+)\.\d+(?:(?:a|b|rc)\d+)?")
_PATCHLEVEL = re.compile(r'^#define\s+PY_VERSION\s+"(3\.\d+\.\d+(?:(?:a|b|rc)\d+)?\+?)"', re.MULTILINE)
_EXTENSION = re.compile(r"\.cpython-3\d+t?d?-[A-Za-z0-9_-]+\.so$")
_GNU_SPELLING = {"i686": "i386", "ppc64le": "powerpc64le", "armv7l": "arm"}


class StaticallyUnknown(BuildError):
    """What a base's Python is or does cannot be told from its files; running it can tell."""

    def __init__(self, reason: str, *, hint: str = "probe with `--probe run`") -> None:
        super().__init__(f"{reason}, so its files do not show what can be imported", hint=hint)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ProcessEnvironment:
    """What an image's config gives to a process: variables, the folder it starts in, its home."""

    variables: Mapping[str, str]
    workdir: str
    home: str

    @classmethod
    def of(cls, view: RootView, config: ImageConfig, over: Mapping[str, str]) -> ProcessEnvironment:
        """Return the environment of a container's first process, as engines make it from the config and `over`."""
        settings = config.config or {}
        variables: dict[str, str] = {}
        for line in settings.get("Env") or ():
            key, _, value = str(line).partition("=")
            variables[key] = value
        variables.update(over)
        variables.setdefault("PATH", DEFAULT_PATH)
        home = variables.get("HOME") or _home_of(view, str(settings.get("User") or "root"))
        return cls(variables, str(settings.get("WorkingDir") or "/"), home)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter of an image. Paths are absolute and as the interpreter itself would print them."""

    executable: str
    base_executable: str
    version: str
    minor: int
    flags: str
    prefix: str
    base_prefix: str
    stdlib: str
    system_site: bool
    is_debian: bool
    binary: BinaryFacts
    extension_suffix: str
    builtins: frozenset[str]

    @property
    def in_venv(self) -> bool:
        """Whether it is one of a virtual environment."""
        return self.prefix != self.base_prefix

    @property
    def folder(self) -> str:
        """The name of its folders below `lib`."""
        return f"python3.{self.minor}{'t' if 't' in self.flags else ''}"

    @property
    def paths(self) -> dict[str, str]:
        """Where an installer puts things, as `sysconfig` says it."""
        # since 3.10, Debian's Python installs to `local` what dpkg does not own (scheme `posix_local`)
        if self.is_debian and not self.in_venv and self.minor >= 10:
            packages = f"{self.prefix}/local/lib/{self.folder}/dist-packages"
            scripts = f"{self.prefix}/local/bin"
        else:
            packages = _join(self.prefix, f"lib/{self.folder}/site-packages")
            scripts = _join(self.prefix, "bin")
        return {"purelib": packages, "platlib": packages, "scripts": scripts, "stdlib": self.stdlib}


def find_interpreter(
    view: RootView, environment: ProcessEnvironment, *, python: str | None, platform: Platform
) -> Interpreter:
    """Return the interpreter that `python` names, or else the first `python` or `python3` on the image's `PATH`.

    Raises:
        BuildError: there is none.
        StaticallyUnknown: there is one, and its files do not say enough of it.
    """
    executable = _locate(view, environment, python)
    # it moves the whole standard library, and a mistake here would answer for modules of another Python
    if environment.variables.get("PYTHONHOME"):
        raise StaticallyUnknown("the base sets `PYTHONHOME`")
    target = _follow(view, executable)
    # a `._pth` file next to the interpreter replaces its search path altogether
    for path in (executable, target):
        if view.lookup(posixpath.splitext(path)[0] + "._pth") or view.lookup(path + "._pth"):
            raise StaticallyUnknown(f"`{path}` sets its search path in a `._pth` file")
    entry = view.stat(target)
    binary = entry.facts.binary if entry is not None and entry.facts is not None else None
    if binary is None:
        raise StaticallyUnknown(f"`{target}` is not a Python binary")
    if binary.machine != platform.machine:
        raise StaticallyUnknown(f"`{target}` is for `{binary.machine or 'another machine'}`, not `{platform.machine}`")
    venv = _environment_of(view, executable)
    home = venv.home
    starts = [posixpath.dirname(_follow(view, _join(home, posixpath.basename(target)))), home] if home else []
    base_prefix, minor, flags = _base_of(view, [*starts, posixpath.dirname(target)], posixpath.basename(target), binary)
    stdlib = _join(base_prefix, f"lib/python3.{minor}{'t' if 't' in flags else ''}")
    library = _library(view, base_prefix, minor, flags, binary)
    marks = (*binary.python, *library.python), (*binary.tails, *library.tails)
    version = _version(target, minor, marks[0]) or _hidden_version(view, base_prefix, minor, marks[1], venv.version)
    if not version:
        raise StaticallyUnknown(f"`{target}` does not show its Python 3.{minor} release")
    builtins = frozenset({*binary.builtins, *library.builtins})
    if not builtins:
        raise StaticallyUnknown(f"`{target}` does not show which modules are built in")
    return Interpreter(
        executable=executable,
        base_executable=_base_executable(view, home, executable, target, minor) if home else executable,
        version=version,
        minor=minor,
        flags=flags,
        prefix=venv.prefix or base_prefix,
        base_prefix=base_prefix,
        stdlib=stdlib,
        system_site=venv.system_site,
        is_debian=b"dist-packages" in (view.read_bytes(f"{stdlib}/site.py") or b""),
        binary=binary,
        extension_suffix=_extension_suffix(view, stdlib, minor, flags, binary.machine),
        builtins=builtins | CORE_BUILTINS,
    )


def find_libc(view: RootView, binary: BinaryFacts) -> tuple[str, str]:
    """Return kind and version of the C library for an interpreter, as `glibc` or `musl` and a number.

    Raises:
        StaticallyUnknown: there is none that says what it is, as in a base whose library lies elsewhere.
    """
    gnu = f"{_GNU_SPELLING.get(binary.machine, binary.machine)}-linux-gnu"
    gnu += "eabihf" if binary.machine == "armv7l" else ""
    for folder in (f"/lib/{gnu}", f"/usr/lib/{gnu}", "/lib64", "/usr/lib64", "/lib", "/usr/lib"):
        entry = view.stat(f"{folder}/libc.so.6")
        facts = entry.facts.binary if entry is not None and entry.facts is not None else None
        if facts is not None and facts.machine == binary.machine and facts.glibc:
            return "glibc", facts.glibc
    for name in view.listdir("/lib"):
        if name.startswith("ld-musl-"):
            entry = view.stat(f"/lib/{name}")
            facts = entry.facts.binary if entry is not None and entry.facts is not None else None
            if facts is not None and facts.musl:
                return "musl", facts.musl
    raise StaticallyUnknown("cannot read the version of the C library in the base")


def _home_of(view: RootView, user: str) -> str:
    name = user.partition(":")[0]
    for line in (view.read_text("/etc/passwd") or "").splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and name in (fields[0], fields[2]):
            return fields[5] or "/"
    return "/root" if name in ("root", "0") else "/"


def _locate(view: RootView, environment: ProcessEnvironment, python: str | None) -> str:
    names = (python,) if python else NAMES
    dangling = ""
    for name in names:
        if "/" in name:
            candidates = [_join(environment.workdir, name)]
        else:
            folders = environment.variables["PATH"].split(":")
            candidates = [_join(_join(environment.workdir, folder), name) for folder in folders]
        for candidate in candidates:
            entry = view.stat(candidate)
            if entry is not None and view.is_file(candidate) and entry.mode & 0o111:
                return candidate
            if entry is None and not dangling and view.lookup(candidate) is not None:
                dangling = candidate
    if dangling:
        raise BuildError(
            f"`{dangling}` of the base links to `{_follow(view, dangling)}`, which the base does not have",
            hint="include in the base the interpreter that its environment was made "
            "from, or set `python:` of the image "
            "to another one",
        )
    raise BuildError(
        f"the base has no `{python}`" if python else "there is no `python` or `python3` on the base's `PATH`",
        hint="set `python:` of the image to the interpreter that its steps use",
    )


def _join(folder: str, name: str) -> str:
    return posixpath.normpath(posixpath.join("/", folder, name)).replace("//", "/")


def _follow(view: RootView, path: str) -> str:
    """Follow the links of a path's last part, and of the folders on the way, as an absolute path."""
    for _count in range(MAX_LINKS):
        entry = view.lookup(path)
        if entry is None or entry.type != SYMLINK:
            break
        path = _join(posixpath.dirname(path), entry.link_name)
    return "/" + view.resolve(path)


@dataclass(frozen=True, slots=True)
class _Venv:
    """What the `pyvenv.cfg` next to an executable says; without one all is as for the system's interpreter."""

    prefix: str = ""
    home: str = ""
    system_site: bool = True
    version: str = ""


def _environment_of(view: RootView, executable: str) -> _Venv:
    """Return the virtual environment that an executable belongs to."""
    folder = posixpath.dirname(executable)
    for place in (folder, posixpath.dirname(folder)):
        if not view.is_file(f"{place}/pyvenv.cfg"):
            continue
        text = view.read_text(f"{place}/pyvenv.cfg") or ""
        values = {}
        for line in text.splitlines():
            key, equals, value = line.partition("=")
            if equals:
                values[key.strip().lower()] = value.strip()
        home = values.get("home")
        if not home:
            raise StaticallyUnknown(f"`{place}/pyvenv.cfg` has no `home`")
        if not view.is_dir(home):
            raise StaticallyUnknown(
                f"`{place}/pyvenv.cfg` has `home = {home}`, which the base does not have",
                hint="include in the base the interpreter that its environment was made from, or set `python:` of the "
                "image to another one",
            )
        system_site = values.get("include-system-site-packages", "true").lower() == "true"
        version = values.get("version_info") or values.get("version") or ""
        return _Venv(posixpath.dirname(folder), home, system_site, version)
    return _Venv()


def _base_executable(view: RootView, home: str, executable: str, target: str, minor: int) -> str:
    """Return the interpreter that a virtual environment was made from, as CPython finds it (*getpath*, since 3.11).

    A link says it itself; for a copy, the one in `home` counts that has its name or a usual one.
    """
    if target != executable:
        return target
    name = posixpath.basename(executable)
    for candidate in (name, "python3", f"python3.{minor}"):
        if view.is_file(_join(home, candidate)):
            return f"{home}/{candidate}"
    return f"{home}/{name}"


def _base_of(view: RootView, starts: list[str], name: str, binary: BinaryFacts) -> tuple[str, int, str]:
    """Return the prefix whose standard library an interpreter uses, and its minor version and flags."""
    match = _VERSIONED.fullmatch(name)
    wanted = match[1] if match else None
    minors = {found[1] for mark in binary.python if (found := _VERSION.fullmatch(mark.rstrip("+")))}
    for start in starts:
        place = start
        while True:
            libraries = [
                (int(folder[1]), folder[2])
                for item in view.listdir(f"{place}/lib")
                if (folder := _VERSIONED.fullmatch(item))
                and (folder[1] == wanted if wanted else not minors or folder[1] in minors)
                and (not match or folder[2] == match[2])
                and view.is_file(f"{place}/lib/{item}/os.py")
            ]
            if len(libraries) > 1:
                raise StaticallyUnknown(f"`{place}/lib` contains libraries for several Python versions")
            if libraries:
                return place or "/", libraries[0][0], libraries[0][1] + (match[3] if match else "")
            if place in ("", "/"):
                break
            place = posixpath.dirname(place)
    raise StaticallyUnknown(f"the standard library of `{starts[-1]}/{name}` is not in its default place")


def _library(view: RootView, base_prefix: str, minor: int, flags: str, binary: BinaryFacts) -> BinaryFacts:
    """Return the facts of the interpreter's shared library, or of the interpreter itself where there is none."""
    name = f"libpython3.{minor}{flags}.so.1.0"
    gnu = f"{_GNU_SPELLING.get(binary.machine, binary.machine)}-linux-gnu"
    folders = (_join(base_prefix, "lib"), _join(base_prefix, "lib64"), f"/usr/lib/{gnu}", "/usr/lib64", "/usr/lib")
    for folder in (*folders, "/usr/local/lib"):
        entry = view.stat(f"{folder}/{name}")
        if entry is not None and entry.facts is not None and entry.facts.binary is not None:
            return entry.facts.binary
    return binary


def _version(target: str, minor: int, marks: tuple[str, ...]) -> str:
    """Return the version that marks of a binary show, or an empty string."""
    if minor < OLDEST_MINOR:
        raise StaticallyUnknown(f"`{target}` is older than Python 3.{OLDEST_MINOR}")
    found = {mark.rstrip("+") for mark in marks if mark.startswith(f"3.{minor}.")}
    if len(found) > 1:
        raise StaticallyUnknown(f"`{target}` shows several versions of Python 3.{minor}")
    return found.pop() if found else ""


def _hidden_version(view: RootView, base_prefix: str, minor: int, tails: tuple[str, ...], venv: str) -> str:
    """Return a version that the linker keeps only as the end of a longer string, or an empty string.

    The header that the interpreter was compiled with names it. Without it, the ends of strings decide if they agree,
    and what its virtual environment noted when it was made, if that is one of them or there are none.
    """
    header = view.read_text(f"{base_prefix}/include/python3.{minor}/patchlevel.h") or ""
    if match := _PATCHLEVEL.search(header):
        return match[1].rstrip("+")
    found = {mark.rstrip("+") for mark in tails if mark.startswith(f"3.{minor}.")}
    if len(found) == 1:
        return found.pop()
    noted = _VERSION.match(venv)
    return noted[0] if noted and noted[1] == str(minor) and (not found or noted[0] in found) else ""


def _extension_suffix(view: RootView, stdlib: str, minor: int, flags: str, machine: str) -> str:
    """Return what the names of compiled modules end in: as the standard library's own do, or else as by default."""
    tag = f".cpython-3{minor}{flags}-"
    for name in view.listdir(f"{stdlib}/lib-dynload"):
        if (match := _EXTENSION.search(name)) and match[0].startswith(tag):
            return match[0]
    libc = "musl" if any(name.startswith("ld-musl-") for name in view.listdir("/lib")) else "gnu"
    eabi = "eabihf" if machine == "armv7l" else ""
    return f"{tag}{_GNU_SPELLING.get(machine, machine)}-linux-{libc}{eabi}.so"
