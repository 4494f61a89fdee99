"""A Debian userland composed straight from .deb files, the same bytes for the same files, on any host and for any CPU.

No maintainer script is run, so what such scripts would have written for a usable base is written here. Reads and
writes streams; needs no privilege, no network and no program.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import zstandard

from airferry.errors import BuildError
from airferry.host.archives import archive_faults
from airferry.oci.tar import DIRECTORY, END_OF_ARCHIVE, SYMLINK, TarEntry, entry_blocks

_BAD_PACKAGE = (
    "the file from the package mirror is damaged or not a Debian package: check `mirror:` of the base, then rerun"
)
MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
MAX_CONTROL_BYTES = 16 * 1024 * 1024
MAX_READ_BACK_BYTES = 1024 * 1024
_BLOCK = 1024 * 1024

FOLDERS = (
    ("boot", 0o755),
    ("dev", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr/local/bin", 0o755),
    ("usr/local/etc", 0o755),
    ("usr/local/include", 0o755),
    ("usr/local/lib", 0o755),
    ("usr/local/sbin", 0o755),
    ("usr/local/share", 0o755),
    ("usr/local/src", 0o755),
    ("var/lib/dpkg/alternatives", 0o755),
    ("var/lib/dpkg/info", 0o755),
    ("var/lib/dpkg/updates", 0o755),
    ("var/local", 0o755),
    ("var/mail", 0o755),
    ("var/opt", 0o755),
    ("var/tmp", 0o1777),
)
# What a maintainer script would have linked: the first target that is there wins.
LINKS = (
    ("usr/bin/sh", ("dash", "bash")),
    ("usr/bin/awk", ("gawk", "mawk")),
    ("usr/bin/which", ("which.debianutils",)),
    ("usr/bin/python", ("python3",)),
)
# What a maintainer script would have copied from a template.
COPIES = (
    ("usr/share/base-passwd/passwd.master", "etc/passwd"),
    ("usr/share/base-passwd/group.master", "etc/group"),
    ("usr/share/base-files/nsswitch.conf", "etc/nsswitch.conf"),
    ("usr/share/base-files/profile", "etc/profile"),
)
_CERTIFICATES = "usr/share/ca-certificates/"
_DROPPED = re.compile(r"usr/share/(doc/(?!.*/copyright$)[^/]+/.+|man/.+|info/.+|locale/.+|lintian/.*|linda/.*)")


@dataclass(frozen=True, slots=True)
class Package:
    """A .deb file's control data."""

    path: Path
    name: str
    version: str
    architecture: str
    control: str
    members: dict[str, bytes] = field(default_factory=dict)


def read_package(path: Path) -> Package:
    """Return the control data of a .deb file.

    Raises:
        BuildError: it is no .deb file.
    """
    members: dict[str, bytes] = {}
    with (
        _reading(path),
        _member(path, "control.tar") as stream,
        tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as archive,
    ):
        for item in archive:
            content = archive.extractfile(item) if item.isreg() else None
            if content is not None:
                members[item.name.removeprefix("./")] = content.read(MAX_CONTROL_BYTES)
    control = members.get("control", b"").decode("utf-8", "replace").strip() + "\n"
    fields = dict(re.findall(r"^([A-Za-z-]+): *(.*)$", control, re.M))
    if not fields.get("Package") or not fields.get("Version"):
        raise BuildError(
            f"`{path.name}` is not a Debian package: its control file has no package name and version",
            hint=_BAD_PACKAGE,
        )
    return Package(path, fields["Package"], fields["Version"], fields.get("Architecture", ""), control, members)


def compose(paths: Iterable[Path], *, epoch_s: int) -> Generator[bytes, None, None]:
    """Yield the tar of a userland that holds the packages in the given .deb files, in blocks.

    Packages are taken by name, whatever order they come in; `/bin`, `/lib` and `/sbin` are links into `/usr`; times
    later than `epoch_s` become `epoch_s`; documentation other than copyright files is left out, as are translations.

    Raises:
        BuildError: a file is no .deb file.
    """
    packages = sorted((read_package(path) for path in paths), key=lambda package: package.name)
    writer = _Composer(epoch_s)
    for package in packages:
        yield from writer.unpack(package)
    yield from writer.complete(packages)


class _Composer:
    """The state of one `compose`: which paths are written, and what was kept of a few files."""

    def __init__(self, epoch_s: int) -> None:
        self._epoch_s = epoch_s
        self._written: set[str] = set()
        self._kept: dict[str, bytes] = {}
        self._merged: set[str] = set()
        self._templates = {source for source, _ in COPIES}

    def unpack(self, package: Package) -> Generator[bytes, None, None]:
        with (
            _reading(package.path),
            _member(package.path, "data.tar") as stream,
            tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as archive,
        ):
            for item in archive:
                path = self._place(item.name)
                if not path or path in MERGED or path in self._written or _DROPPED.fullmatch(path):
                    continue
                content = archive.extractfile(item) if item.isreg() else None
                yield from self._parents(path)
                yield from self._entry(path, item, content)

    def _place(self, name: str) -> str:
        path = name.removeprefix("./").strip("/")
        if path == ".":
            return ""
        head, slash, _ = path.partition("/")
        if head in MERGED:
            self._merged.add(head)
            return f"usr/{path}" if slash else path
        return path

    def _entry(self, path: str, item: tarfile.TarInfo, content: IO[bytes] | None) -> Iterator[bytes]:
        link = self._place(item.linkname) if item.islnk() else item.linkname
        entry = TarEntry(
            name=f"{path}/" if item.isdir() else path,
            type=item.type if item.type in (b"1", b"2", b"3", b"4", b"5", b"6") else b"0",
            size=item.size if content is not None else 0,
            mode=item.mode & 0o7777,
            uid=item.uid,
            gid=item.gid,
            mtime_s=min(int(item.mtime), self._epoch_s),
            link_name=link,
            device=(item.devmajor, item.devminor),
        )
        self._written.add(path)
        keep = path in self._templates or (path.startswith(_CERTIFICATES) and path.endswith(".crt"))
        kept = bytearray()

        def blocks() -> Iterator[bytes]:
            while block := content.read(_BLOCK) if content is not None else b"":
                if keep and len(kept) < MAX_READ_BACK_BYTES:
                    kept.extend(block)
                yield block

        yield from entry_blocks(entry, blocks())
        if keep and content is not None:
            self._kept[path] = bytes(kept)

    def _parents(self, path: str) -> Iterator[bytes]:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            yield from self._folder("/".join(parts[:depth]), 0o755)

    def _folder(self, path: str, mode: int) -> Iterator[bytes]:
        if path not in self._written:
            self._written.add(path)
            yield from entry_blocks(TarEntry(name=f"{path}/", type=DIRECTORY, mode=mode, mtime_s=self._epoch_s))

    def _file(self, path: str, data: bytes) -> Iterator[bytes]:
        if path in self._written:
            return
        yield from self._parents(path)
        self._written.add(path)
        yield from entry_blocks(TarEntry(name=path, size=len(data), mtime_s=self._epoch_s), [data])

    def _link(self, path: str, target: str) -> Iterator[bytes]:
        if path not in self._written:
            yield from self._parents(path)
            self._written.add(path)
            entry = TarEntry(name=path, type=SYMLINK, mode=0o777, link_name=target, mtime_s=self._epoch_s)
            yield from entry_blocks(entry)

    def complete(self, packages: Sequence[Package]) -> Generator[bytes, None, None]:
        for name in sorted(self._merged | {"bin", "lib", "sbin"}):
            yield from self._folder(f"usr/{name}", 0o755)
            yield from self._link(name, f"usr/{name}")
        for path, mode in FOLDERS:
            yield from self._parents(path)
            yield from self._folder(path, mode)
        for path, targets in LINKS:
            folder = path.rpartition("/")[0]
            target = next((name for name in targets if f"{folder}/{name}" in self._written), None)
            if target is not None:
                yield from self._link(path, target)
        for source, path in COPIES:
            if source in self._kept:
                yield from self._file(path, self._kept[source])
        certificates = sorted(path for path in self._kept if path.startswith(_CERTIFICATES))
        if certificates:
            bundle = b"".join(self._kept[path].rstrip(b"\n") + b"\n" for path in certificates)
            yield from self._file("etc/ssl/certs/ca-certificates.crt", bundle)
            listed = "".join(f"{path.removeprefix(_CERTIFICATES)}\n" for path in certificates)
            yield from self._file("etc/ca-certificates.conf", listed.encode())
        yield from self._database(packages)
        yield END_OF_ARCHIVE

    def _database(self, packages: Sequence[Package]) -> Iterator[bytes]:
        stanzas = []
        for package in packages:
            head, _, rest = package.control.partition("\n")
            stanzas.append(f"{head}\nStatus: install ok installed\n{rest}")
            multi = re.search(r"^Multi-Arch: *same$", package.control, re.M)
            stem = f"var/lib/dpkg/info/{package.name}" + (f":{package.architecture}" if multi else "")
            sums = package.members.get("md5sums", b"")
            yield from self._file(f"{stem}.list", _file_list(sums))
            for kind in ("conffiles", "md5sums", "shlibs", "symbols", "triggers"):
                if kind in package.members:
                    yield from self._file(f"{stem}.{kind}", package.members[kind])
        yield from self._file("var/lib/dpkg/info/format", b"1\n")
        yield from self._file("var/lib/dpkg/status", "\n".join(stanzas).encode())
        for name in ("available", "diversions", "statoverride"):
            yield from self._file(f"var/lib/dpkg/{name}", b"")


def _file_list(md5sums: bytes) -> bytes:
    paths = {"/."}
    for line in md5sums.decode("utf-8", "replace").splitlines():
        path = "/" + line.partition("  ")[2].strip()
        while path not in paths and path != "/":
            paths.add(path)
            path = path.rpartition("/")[0] or "/"
    return "".join(f"{path}\n" for path in sorted(paths)).encode()


def _reading(path: Path) -> AbstractContextManager[None]:
    return archive_faults(
        lambda reason: BuildError(f"`{path.name}` is not a Debian package: {reason}", hint=_BAD_PACKAGE)
    )


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a member of a .deb file (an `ar` archive), decompressed."""
    with path.open("rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise BuildError(f"`{path.name}` is not a Debian package: it is not an `ar` archive", hint=_BAD_PACKAGE)
        while len(header := stream.read(60)) == 60:
            member = header[:16].decode("ascii", "replace").strip().rstrip("/")
            size = int(header[48:58])
            if member.startswith(name):
                part = _Part(stream, size)
                kind = member.removeprefix(name)
                with _decompressed(io.BufferedReader(part, _BLOCK), kind, what=path.name) as content:
                    yield content
                return
            stream.seek(size + size % 2, io.SEEK_CUR)
    raise BuildError(f"`{path.name}` is not a Debian package: it has no `{name}`", hint=_BAD_PACKAGE)


def _decompressed(stream: io.BufferedReader, kind: str, *, what: str) -> AbstractContextManager[IO[bytes]]:
    if kind == ".xz":
        return lzma.open(stream)
    if kind == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(stream)
    if kind == ".gz":
        return cast(IO[bytes], gzip.open(stream))
    if kind == "":
        return stream
    raise BuildError(f"`{what}` has an unknown compression: `{kind}`", hint=_BAD_PACKAGE)


class _Part(io.RawIOBase):
    """A part of an open file, from its position on, as a stream."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._stream.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)
