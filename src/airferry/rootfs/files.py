"""What is remembered of single files of a base's layers: small texts, imports of Python sources, marks of binaries.

Contents pass by once, in blocks, and most are not looked at. What is kept is bounded. This module knows what matters
of a file; where files lie in the merged root is not its business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

MAX_TEXT_BYTES = 8 << 20
MAX_PTH_BYTES = 1 << 20
MAX_HOOK_BYTES = 64 << 10
MAX_SOURCE_BYTES = 4 << 20
MAX_INIT_BYTES = 4096
MAX_IMPORT_BYTES = 64 << 10
MAX_MARKS = 2000
MAX_KEPT_BYTES = 256 << 20
OVERLAP_BYTES = 256
SEPARATOR = b"\0"

_TEXTS = frozenset(
    {"pyvenv.cfg", "EXTERNALLY-MANAGED", "sitecustomize.py", "usercustomize.py", "site.py", "patchlevel.h"}
    | {"intro-install_plan.json"}
)
_TEXT_SUFFIXES = ("._pth", ".egg-link", ".egg-info")
_METADATA = frozenset(
    {
        "METADATA",
        "RECORD",
        "PKG-INFO",
        "INSTALLER",
        "direct_url.json",
        "entry_points.txt",
        "top_level.txt",
        "namespace_packages.txt",
    }
)
_METADATA_FOLDERS = (".dist-info", ".egg-info", "/EGG-INFO")
_SYSTEM_TEXTS = frozenset({"etc/os-release", "usr/lib/os-release", "etc/passwd", "etc/group"})
_BINARY = re.compile(
    r"python3?(?:\.\d+)?[td]?m?|libpython3.*\.so.*|libc\.so\.6|libc-2\.\d+\.so|ld-musl-.*\.so\.1|pypy3?.*"
)
_FINDER = re.compile(r"_.*editable.*\.py")
# where a `.pth` file finds the module that it imports: folders of packages, and what uv links them to
_PACKAGES = re.compile(r"(?:.*/)?(?:(?:site|dist)-packages|archive-v\d+/[^/]+)")
# what stands before a mark, and the mark: looking for the first is many times faster than matching everywhere
_GLIBC = re.compile(rb"(?:stable|development) release version (2\.\d{1,3})")
_MARKS = (
    ("builtin", b"PyInit_", re.compile(rb"PyInit_([A-Za-z_][A-Za-z0-9_]{0,80})\0")),
    # conda writes who packaged it behind the version
    ("python", b"\x003.", re.compile(rb"\0(3\.\d{1,2}\.\d{1,2}(?:(?:a|b|rc)\d{1,2})?\+?)(?:\0| \| packaged by )")),
    # a linker keeps one string for those that end alike: `/opt/python/3.11.7` hides `3.11.7`
    ("tail", b"/3.", re.compile(rb"/(3\.\d{1,2}\.\d{1,2}(?:(?:a|b|rc)\d{1,2})?\+?)\0")),
    ("tail", b"-3.", re.compile(rb"-(3\.\d{1,2}\.\d{1,2}(?:(?:a|b|rc)\d{1,2})?\+?)\0")),
    ("glibc", b"stable release version 2.", _GLIBC),
    ("glibc", b"development release version 2.", _GLIBC),
    ("musl", b"\x001.", re.compile(rb"\0(1\.[0-9]\.\d{1,2})\0")),
)
# `sys.modules[x] = …` but for `sys.modules[__name__] = …`, its methods that set, and its use under another name
_MAKES_MODULES = re.compile(
    rb"sys\.modules(?:\[(?![ \t]*__name__[ \t]*\])[^\]\n]*\][ \t]*=(?!=)"
    rb"|\.(?:setdefault|update|__setitem__)\b|[ \t]*[,)\n])"
)
_EXTENDS_PATH = re.compile(rb"__path__[ \t]*(?:\+?=(?!=)|\.(?:append|extend|insert)\b|[,)])")
_ELF_MACHINES = {3: "i686", 21: "ppc64le", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_IMPORT = re.compile(
    rb"(?:import[ \t]+(?P<names>[\w.]+(?:[ \t]+as[ \t]+\w+)?(?:[ \t]*,[ \t]*[\w.]+(?:[ \t]+as[ \t]+\w+)?)*)"
    rb"|from[ \t]+(?P<source>\.*[\w.]*)[ \t]+import[ \t]*(?P<parts>\([^()]*\)|[^\n;]*))"
)


@dataclass(frozen=True, slots=True)
class BinaryFacts:
    """Facts about an ELF file: its machine, and versions and built-in modules whose marks it holds.

    `tails` are what ends in a version of Python and may hide one.
    """

    machine: str
    pointer_bits: int
    byte_order: Literal["little", "big"]
    python: tuple[str, ...] = ()
    tails: tuple[str, ...] = ()
    builtins: tuple[str, ...] = ()
    glibc: str = ""
    musl: str = ""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is remembered of a file.

    `imports` are the unconditional ones of a Python source, as `import_statements` gives them; `is_dynamic` says that
    the source touches what decides over imports, so that more may be importable than lies on disk.
    """

    content: bytes | None = None
    imports: bytes = b""
    is_dynamic: bool = False
    binary: BinaryFacts | None = None

    def to_row(self) -> list[Any]:
        """Return the facts as plain data that JSON can carry."""
        return [
            None if self.content is None else self.content.decode("latin-1"),
            self.imports.decode("latin-1"),
            self.is_dynamic,
            None if self.binary is None else asdict(self.binary),
        ]

    @classmethod
    def from_row(cls, row: list[Any]) -> FileFacts:
        """Return the facts that `to_row` wrote."""
        content, imports, is_dynamic, binary = row
        if binary is not None:
            lists = {key: tuple(binary[key]) for key in ("python", "tails", "builtins")}
            binary = BinaryFacts(**{**binary, **lists})
        text = None if content is None else content.encode("latin-1")
        return cls(text, imports.encode("latin-1"), is_dynamic, binary)


Reader = Callable[[Iterator[bytes]], FileFacts | None]


def reader_for(folder: str, name: str, size: int) -> Reader | None:
    """Return what reads the facts of a file at a place, or None where its content does not matter."""
    if name.endswith(".py"):
        if name in _TEXTS or (name.startswith("_") and _FINDER.fullmatch(name)):
            return _read_whole_source if size <= MAX_TEXT_BYTES else None
        if size <= MAX_HOOK_BYTES and _PACKAGES.fullmatch(folder):
            return _read_whole_source
        return read_source if size <= MAX_SOURCE_BYTES else None
    if name in _METADATA:
        return _read_text if size <= MAX_TEXT_BYTES and folder.endswith(_METADATA_FOLDERS) else None
    if name.endswith(".pth"):
        return _read_text if size <= MAX_PTH_BYTES else None
    if name in _TEXTS or name.endswith(_TEXT_SUFFIXES) or f"{folder}/{name}" in _SYSTEM_TEXTS:
        return _read_text if size <= MAX_TEXT_BYTES else None
    if name.startswith(("python", "libpython3", "libc", "ld-musl-", "pypy")) and _BINARY.fullmatch(name):
        return _read_binary
    return None


def _read_text(blocks: Iterator[bytes]) -> FileFacts:
    return FileFacts(content=b"".join(blocks))


def _read_whole_source(blocks: Iterator[bytes]) -> FileFacts:
    source = b"".join(blocks)
    return FileFacts(source, import_statements(source), _is_dynamic(source))


def source_facts(source: bytes) -> FileFacts | None:
    """Do what `read_source` does, for one that is in memory."""
    content = source if len(source) <= MAX_INIT_BYTES and _declares_namespace(source) else None
    facts = FileFacts(content, import_statements(source), _is_dynamic(source))
    return facts if facts.imports or facts.is_dynamic or content is not None else None


def read_source(blocks: Iterator[bytes]) -> FileFacts | None:
    """Return what is remembered of a Python source, or None where that is nothing."""
    return source_facts(b"".join(blocks))


def _is_dynamic(source: bytes) -> bool:
    """Tell whether a module may make others when it runs; that it takes its own place, or asks for one, does not."""
    if b"meta_path" in source:
        return True
    if b"sys.modules" in source and _MAKES_MODULES.search(source) is not None:
        return True
    return b"__path__" in source and _EXTENDS_PATH.search(source) is not None


def _declares_namespace(source: bytes) -> bool:
    return b"extend_path" in source or b"declare_namespace" in source


def import_statements(source: bytes) -> bytes:
    """Return what imports in a Python source at its first column, outside of triple-quoted strings.

    The statements are as they were written, with a zero byte between them, and cut off at 64 KiB; `imported_names`
    reads them. This is a look, no parse: it costs little enough to be given to every source of a base.
    """
    if b"import" not in source:
        return b""
    found: list[bytes] = []
    left = MAX_IMPORT_BYTES
    counted = double = single = 0
    for match in _statements(source):
        start, end = match.span()
        double += source.count(b'"""', counted, start)
        single += source.count(b"'''", counted, start)
        counted = start
        if (double | single) & 1:
            continue
        left -= end - start + 1
        if left < 0:
            break
        found.append(source[start:end])
    return SEPARATOR.join(found)


def imported_names(statements: bytes) -> tuple[str, ...]:
    """Return what statements import, in their order.

    `from a import b` gives `a` and `a:b`, one for each name, as `b` may be a module or not; relative ones begin with
    dots.
    """
    found: dict[str, None] = {}
    for statement in statements.split(SEPARATOR):
        match = _IMPORT.match(statement)
        if match is None:
            continue
        names, base, parts = match.group("names", "source", "parts")
        if names is not None:
            for name in names.split(b","):
                found[name.split(None, 1)[0].decode()] = None
            continue
        origin = base.decode()
        found[origin] = None
        if b"(" in parts or b"#" in parts or b"\\" in parts:
            lines = parts.strip(b"()\r").replace(b"\\", b"").split(b"\n")
            parts = b"".join([line.partition(b"#")[0] for line in lines])
        for part in parts.split(b","):
            words = part.split(None, 1)
            if words and words[0] != b"*" and words[0].isascii():
                found[f"{origin}:{words[0].decode()}"] = None
    return tuple(found)


def _statements(source: bytes) -> Iterator[re.Match[bytes]]:
    """Yield what looks like an import at the begin of a line; searching for the words is faster than line by line."""
    at = 0
    plain, from_ = source.find(b"\nimport"), source.find(b"\nfrom")
    while True:
        if (match := _IMPORT.match(source, at)) is not None:
            yield match
            at = match.end() - 1
        if 0 <= plain < at:
            plain = source.find(b"\nimport", at)
        if 0 <= from_ < at:
            from_ = source.find(b"\nfrom", at)
        if plain < 0 and from_ < 0:
            return
        at = 1 + (plain if from_ < 0 or 0 <= plain < from_ else from_)


def _read_binary(blocks: Iterator[bytes]) -> FileFacts | None:
    first = next(blocks, b"")
    if len(first) < 20 or first[:4] != b"\x7fELF":
        for _block in blocks:
            pass
        return None
    order: Literal["little", "big"] = "little" if first[5] == 1 else "big"
    machine = _ELF_MACHINES.get(int.from_bytes(first[18:20], order), "")
    marks: dict[str, dict[str, None]] = {"python": {}, "tail": {}, "builtin": {}, "glibc": {}, "musl": {}}
    window = first
    while True:
        for kind, anchor, mark in _MARKS:
            at = window.find(anchor)
            while at >= 0:
                match = mark.match(window, at)
                if match is not None and len(marks[kind]) < MAX_MARKS:
                    marks[kind][match[1].decode()] = None
                at = window.find(anchor, at + 1)
        block = next(blocks, b"")
        if not block:
            break
        window = window[-OVERLAP_BYTES:] + block
    return FileFacts(
        binary=BinaryFacts(
            machine=machine,
            pointer_bits=64 if first[4] == 2 else 32,
            byte_order=order,
            python=tuple(marks["python"]),
            tails=tuple(marks["tail"]),
            builtins=tuple(sorted(marks["builtin"])),
            glibc=next(iter(marks["glibc"]), ""),
            musl=next(iter(marks["musl"]), ""),
        )
    )
