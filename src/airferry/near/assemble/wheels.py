"""Wheels in a new layer: unpacked by PyPA's `installer` into the scheme of the base's own Python, which never runs.

The installer decides what goes where (binary distribution format, *Installing a wheel*); this module is the source it
reads from and the destination it writes to. A wheel's RECORD is believed while the tree is made, and every file is
checked against it as its bytes pass into the layer, so that a wheel is read once.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import posixpath
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

from installer import install
from installer.destinations import WheelDestination
from installer.exceptions import InstallerError
from installer.records import Hash, InvalidRecordEntry, RecordEntry, parse_record_file
from installer.scripts import Script
from installer.sources import WheelFile
from installer.utils import Scheme, construct_record_file, fix_shebang
from packaging.utils import canonicalize_name, parse_wheel_filename

from airferry.errors import BuildError
from airferry.host.archives import archive_faults
from airferry.near.assemble.tree import BaseTree, Content, LayerTree
from airferry.near.git.addresses import redact
from airferry.near.probe.answers import PythonFacts
from airferry.near.wheels.pack import Wheel
from airferry.near.wheels.pip import WheelTarget
from airferry.oci.ports import blocks
from airferry.oci.tar import DIRECTORY
from airferry.plan.locks.packages import GitSource

INSTALLER = b"airferry\n"
MAX_SCRIPT_BYTES = 64 * 1024 * 1024
MAX_WHEEL_RECORD_BYTES = 64 * 1024 * 1024
_SIGNATURES = ("RECORD.p7s", "RECORD.jws")

Owned = Callable[[str], tuple[str, str] | None]


@dataclass(frozen=True, slots=True)
class InstallScheme:
    """Where a Python keeps what wheels bring, and the interpreter that scripts name."""

    purelib: str
    platlib: str
    scripts: str
    data: str
    include: str
    interpreter: str

    def folder(self, scheme: str, distribution: str) -> str:
        """Return the folder of one of the schemes of wheels for a distribution."""
        if scheme == "headers":
            return f"{self.include}/{distribution}"
        return str(getattr(self, scheme))


def install_scheme(python: PythonFacts) -> InstallScheme:
    """Return the scheme of the interpreter that a probe found, as pip would use it.

    Raises:
        BuildError: the probe does not know where that interpreter keeps its packages.
    """
    paths = {key: posixpath.normpath(value) for key, value in python.paths.items() if value.startswith("/")}
    if absent := [key for key in ("purelib", "platlib", "scripts") if key not in paths]:
        raise BuildError(
            f"`{python.executable}` does not report where its `{absent[0]}` is", hint="set `builder: buildah`"
        )
    data = posixpath.dirname(paths["scripts"])
    short = ".".join(python.version.split(".")[:2])
    include = f"{data}/include/site/python{short}" if python.in_venv else f"{python.base_prefix}/include/python{short}"
    return InstallScheme(
        purelib=paths["purelib"],
        platlib=paths["platlib"],
        scripts=paths["scripts"],
        data=data,
        include=include,
        interpreter=python.executable,
    )


class WheelInstaller:
    """Puts wheels into a tree. Their files stay open until the block ends, as their bytes are read with the layer."""

    def __init__(self, tree: LayerTree, scheme: InstallScheme, target: WheelTarget, *, owned: Owned) -> None:
        """`owned` tells, for a place in the base, which distribution owns the file there and its hash in RECORD."""
        self._tree = tree
        self._scheme = scheme
        self._target = target
        self._owned = owned
        self._stack = ExitStack()

    def __enter__(self) -> WheelInstaller:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the wheels."""
        self._stack.close()

    def add(self, wheel: Wheel, *, git: GitSource | None = None) -> None:
        """Put one wheel into the tree.

        Raises:
            BuildError: it is for another platform, is incomplete, points outside its folders, or contains a file that
                another distribution owns.
        """
        if parse_wheel_filename(wheel.filename)[3].isdisjoint(self._target.tags):
            raise BuildError(
                f"`{wheel.filename}` is not compatible with {self._target}", hint="run `airferry lock --update`"
            )
        metadata = {"INSTALLER": INSTALLER, "REQUESTED": b""}
        if git is not None:
            metadata["direct_url.json"] = direct_url(git)
        with _translated(wheel.filename), warnings.catch_warnings():
            # the installer warns of byte code in wheels, which it leaves out, as layers hold none
            warnings.simplefilter("ignore", RuntimeWarning)
            archive = self._stack.enter_context(zipfile.ZipFile(wheel.path))
            source = _CheckedWheel(archive)
            source.check()
            destination = _Destination(self._tree, self._scheme, wheel, self._owned)
            install(source, destination, metadata)


def installed_names(base: BaseTree, scheme: InstallScheme) -> set[str]:
    """Return the normalised names of the distributions in the folders that additions go to."""
    names = {name for folder in {scheme.purelib, scheme.platlib} for name in base.listdir(folder)}
    return {
        canonicalize_name(name.partition("-")[0].removesuffix(".egg-info"))
        for name in names
        if name.endswith((".dist-info", ".egg-info", ".egg"))
    }


class BaseFiles:
    """Which distribution of a base owns a file, as their RECORDs say. They are read when a file is first met."""

    def __init__(self, base: BaseTree, scheme: InstallScheme) -> None:
        """Take the base's tree and the folders whose distributions count."""
        self._base = base
        self._libraries = sorted({base.resolve(scheme.purelib), base.resolve(scheme.platlib)})
        self._owners: dict[str, tuple[str, str]] | None = None

    def owner(self, place: str) -> tuple[str, str] | None:
        """Return the distribution that owns the file at a place, and its hash in RECORD; None where there is none."""
        entry = self._base.lookup(place)
        if entry is None or entry.type == DIRECTORY:
            return None
        if self._owners is None:
            self._owners = {}
            for library in self._libraries:
                self._read(library, self._owners)
        return self._owners.get(place)

    def _read(self, library: str, owners: dict[str, tuple[str, str]]) -> None:
        for name in self._base.listdir(library):
            if name.endswith(".dist-info"):
                record = self._base.read_text(f"{library}/{name}/RECORD") or ""
                distribution = name.removesuffix(".dist-info").replace("-", " ", 1)
                for path, digest in recorded_files(record, library=f"/{library}").items():
                    owners[path.removeprefix("/")] = (distribution, digest)


def direct_url(git: GitSource) -> bytes:
    """Return `direct_url.json` for a distribution that was built from a Git commit (PEP 610)."""
    revision = {"vcs": "git", "commit_id": git.commit, "requested_revision": git.commit}
    document: dict[str, Any] = {"url": redact(git.url), "vcs_info": revision}
    if git.subdirectory:
        document["subdirectory"] = git.subdirectory
    return json.dumps(document, sort_keys=True).encode()


class _CheckedWheel(WheelFile):
    """A wheel whose members are handed out unread, each with what RECORD says of it."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__(archive)
        self._archive = archive

    def check(self) -> None:
        """Refuse names that lead elsewhere, a RECORD that is too large, and one that is silent on a member."""
        record_path = f"{self.dist_info_dir}/RECORD"
        listed = self._archive.getinfo(record_path)
        if listed.file_size > MAX_WHEEL_RECORD_BYTES:
            raise ValueError(f"its RECORD has {listed.file_size} bytes, more than {MAX_WHEEL_RECORD_BYTES}")
        said = {row[0]: row for row in parse_record_file(self.read_dist_info("RECORD").splitlines())}
        for item in self._archive.infolist():
            parts = item.filename.removesuffix("/").split("/")
            if any(part in ("", ".", "..") for part in parts) or "\\" in item.filename or "\0" in item.filename:
                raise ValueError(f"its member `{item.filename}` points outside its folder")
            if item.is_dir() or item.filename == record_path or parts[-1] in _SIGNATURES:
                continue
            row = said.pop(item.filename, None)
            if row is None:
                raise ValueError(f"its RECORD does not name `{item.filename}`, or the wheel holds that twice")
            entry = RecordEntry.from_elements(*row)
            if entry.hash_ is None or entry.hash_.name not in ("sha256", "sha384", "sha512"):
                raise ValueError(f"its RECORD has no valid hash for `{item.filename}`")
            if entry.size is not None and entry.size != item.file_size:
                raise ValueError(
                    f"its RECORD says {entry.size} bytes of `{item.filename}`, which has {item.file_size} bytes"
                )

    def get_contents(self) -> Iterator[tuple[tuple[str, str, str], BinaryIO, bool]]:
        """Yield the members; each stream is a `_Member`, opened when it is read."""
        said = {row[0]: row for row in parse_record_file(self.read_dist_info("RECORD").splitlines())}
        for item in self._archive.infolist():
            name = item.filename.rpartition("/")[2]
            if item.is_dir() or name.endswith(".pyc") or name in _SIGNATURES:
                continue
            row = said.get(item.filename, (item.filename, "", ""))
            member = _Member(self._archive, item, RecordEntry.from_elements(*row))
            yield row, cast(BinaryIO, member), member.is_executable


class _Member(io.RawIOBase):
    """A member of a wheel that is not opened before it is read."""

    def __init__(self, archive: zipfile.ZipFile, item: zipfile.ZipInfo, record: RecordEntry) -> None:
        super().__init__()
        self._archive = archive
        self._item = item
        self.record = record
        self.size = item.file_size
        self.is_executable = bool(item.external_attr >> 16 & 0o111)

    @property
    def digest(self) -> str:
        return str(self.record.hash_)

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes, and refuse them at the end if they are not what RECORD says."""
        assert self.record.hash_ is not None
        state = hashlib.new(self.record.hash_.name)
        with _translated(str(self._archive.filename).rpartition("/")[2]):
            with self._archive.open(self._item) as stream:
                for block in blocks(stream):
                    state.update(block)
                    yield block
            if _base64(state.digest()) != self.record.hash_.value:
                raise ValueError(f"`{self._item.filename}` does not match its RECORD")


class _Destination(WheelDestination):
    """What `installer` writes to."""

    def __init__(self, tree: LayerTree, scheme: InstallScheme, wheel: Wheel, owned: Owned) -> None:
        self._tree = tree
        self._scheme = scheme
        self._distribution = wheel.name
        self._owner = wheel.filename
        self._owned = owned

    def write_script(self, name: str, module: str, attr: str, section: Literal["console", "gui"]) -> RecordEntry:
        """Add the script of an entry point."""
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"its entry point `{name}` is not a valid script name")
        name, data = Script(name, module, attr, section).generate(self._scheme.interpreter, kind="posix")
        return self._add_bytes("scripts", name, data, executable=True)

    def write_file(self, scheme: Scheme, path: Any, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        """Add a file: small ones that are made or rewritten at once, members of the wheel unread."""
        member: object = stream
        if not isinstance(member, _Member):
            return self._add_bytes(scheme, str(path), stream.read(), executable=is_executable)
        if scheme == "scripts":
            if member.size > MAX_SCRIPT_BYTES:
                raise ValueError(f"its script `{path}` has {member.size} bytes, more than {MAX_SCRIPT_BYTES}")
            with fix_shebang(io.BytesIO(b"".join(member.blocks())), self._scheme.interpreter) as fixed:
                return self._add_bytes(scheme, str(path), fixed.read(), executable=is_executable)
        self._add(scheme, str(path), Content(member.size, member.digest, member.blocks), executable=is_executable)
        return RecordEntry(str(path), member.record.hash_, member.size)

    def finalize_installation(
        self, scheme: Scheme, record_file_path: str, records: Iterable[tuple[Scheme, RecordEntry]]
    ) -> None:
        """Add the RECORD of what was installed."""
        root = self._folder(scheme)

        def prefix(other: Scheme) -> str | None:
            relative = posixpath.relpath(self._folder(other), root)
            return None if relative == "." else relative + "/"

        with construct_record_file(records, prefix_for_scheme=prefix) as stream:
            self._add_bytes(scheme, record_file_path, stream.read(), executable=False)

    def _folder(self, scheme: str) -> str:
        return self._scheme.folder(scheme, self._distribution)

    def _add_bytes(self, scheme: str, path: str, data: bytes, *, executable: bool) -> RecordEntry:
        digest = Hash("sha256", _base64(hashlib.sha256(data).digest()))
        self._add(scheme, path, Content.of(data, digest=str(digest)), executable=executable)
        return RecordEntry(path, digest, len(data))

    def _add(self, scheme: str, path: str, content: Content, *, executable: bool) -> None:
        full = f"{self._folder(scheme)}/{path}"
        owner = self._owned(self._tree.place(full))
        if owner is not None and owner[1] != content.digest:
            raise BuildError(
                f"`{self._owner}` brings `{full}`, which belongs to `{owner[0]}` of the base and has different content",
                hint="remove the addition, or set a version under `requirements:` that agrees with the base",
                path=full,
            )
        self._tree.add_file(full, content, executable=executable, owner=self._owner)


def _base64(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _translated(filename: str) -> AbstractContextManager[None]:
    """Say of which wheel it is that the installer, or the archive, complains."""

    def told(reason: str) -> BuildError:
        return BuildError(
            f"`{filename}` cannot be installed: {reason}",
            hint="set another version under `requirements:` of the image, or ask the publisher of the wheel",
            wheel=filename,
        )

    return archive_faults(told, also=(InstallerError, InvalidRecordEntry, csv.Error))


def recorded_files(record: str, *, library: str) -> Mapping[str, str]:
    """Return the absolute paths that the RECORD of a base's distribution names, with their hashes, as far as it goes.

    `library` is the folder that its paths are relative to.
    """
    found = {}
    try:
        for path, digest, _size in parse_record_file(record.splitlines()):
            if path and digest:
                found[posixpath.normpath(posixpath.join(library, path))] = digest
    except (InvalidRecordEntry, csv.Error):
        return found
    return found
