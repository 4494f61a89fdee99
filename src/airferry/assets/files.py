"""The files of an asset on a disk: listed without following links, and hashed on all cores.

Recording and verifying share this. It writes nothing but the journal of hashes that it is given.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from airferry.assets.manifest import MAX_ASSET_FILES, AssetLink
from airferry.bundle.tree_paths import decode_path, encode_path
from airferry.errors import BuildError, IntegrityError
from airferry.events import Emit
from airferry.host import files
from airferry.host.parsing import parse_json
from airferry.host.progress import MIB, Meter
from airferry.host.threads import Cancelled, parallel_map

HASH_READ_BYTES = 2 * MIB
HASHED_EVERY_BYTES = 64 * MIB
HASH_BATCH_BYTES = 16 * MIB
BATCH_LINES = 512
MAX_JOURNAL_LINE = 64 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells a file's content from another without reading it: it stands for the content as long as it stays."""

    path: str
    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Listing:
    """What lies in an asset's folder: regular files, symbolic links, and paths of anything else."""

    root: Path
    files: tuple[FileState, ...] = ()
    links: tuple[AssetLink, ...] = ()
    others: tuple[str, ...] = ()

    def place(self, path: str) -> Path:
        """Return where on the disk a path of the asset is."""
        return asset_place(self.root, path)


@dataclass(slots=True)
class _Found:
    files: list[FileState] = field(default_factory=list)
    links: list[AssetLink] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def count(self) -> int:
        return len(self.files) + len(self.links) + len(self.others)


def asset_place(root: Path, path: str) -> Path:
    """Return where a path of an asset, as manifests write it, is below a folder. Names that are no text stay bytes."""
    return root / os.fsdecode(decode_path(path))


def list_asset(path: Path) -> Listing:
    """List an asset's folder, or the one file that it is. Links are listed, never followed.

    Raises:
        HostError: something cannot be read, or is not there.
        BuildError: there are more files than a manifest may hold.
    """
    try:
        top = path.stat()
    except OSError as error:
        raise files.translate_os_error(error, doing="read", path=path) from error
    if not stat.S_ISDIR(top.st_mode):
        return Listing(path.parent, files=(_state(os.fsencode(path.name), top),))
    found = _Found()
    try:
        for raw, entry in _walk(path):
            if found.count() >= MAX_ASSET_FILES:
                raise BuildError(
                    f"`{path}` holds more than {MAX_ASSET_FILES} files", hint="record its parts as separate assets"
                )
            if entry.is_symlink():
                found.links.append(AssetLink(encode_path(raw), encode_path(os.readlink(entry.path))))  # noqa: PTH115
            elif entry.is_file(follow_symlinks=False):
                found.files.append(_state(raw, entry.stat(follow_symlinks=False)))
            else:
                found.others.append(encode_path(raw))
    except OSError as error:
        failed = Path(os.fsdecode(error.filename or path))
        raise files.translate_os_error(error, doing="read", path=failed) from error
    return Listing(path, tuple(found.files), tuple(found.links), tuple(found.others))


def _walk(root: Path) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """Yield what lies below a folder with its relative path. Bytes throughout: there may be a million of them."""
    top = os.fsencode(root)
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(top + b"/" + folder) as entries:
            for entry in entries:
                relative = folder + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(relative + b"/")
                else:
                    yield relative, entry


def _state(raw: bytes, found: os.stat_result) -> FileState:
    return FileState(encode_path(raw), found.st_size, found.st_mtime_ns, found.st_ino)


def hash_files(
    listing: Listing,
    states: Sequence[FileState],
    judge: Callable[[FileState, str | OSError], T],
    *,
    task: str,
    jobs: int,
    emit: Emit,
) -> list[T]:
    """Read files on `jobs` threads, the largest first, and return what `judge` makes of each SHA-256, in their order.

    Memory does not grow with a file. `judge` gets the error instead where a file cannot be read; what it raises ends
    the work.

    Raises:
        IntegrityError: a file changed while it was read.
    """
    stop = threading.Event()
    meter = Meter(task, sum(state.size_bytes for state in states), emit, every_bytes=HASHED_EVERY_BYTES)

    def one(number: int) -> tuple[int, T]:
        state = states[number]
        outcome: str | OSError
        try:
            outcome = _sha256(listing.place(state.path), state, meter, stop)
        except OSError as error:
            outcome = error
        return number, judge(state, outcome)

    order = sorted(range(len(states)), key=lambda number: -states[number].size_bytes)
    done = dict(parallel_map(one, order, jobs=jobs, cancelled=stop))
    meter.finish()
    return [done[number] for number in range(len(states))]


def _sha256(place: Path, state: FileState, meter: Meter, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(max(1, min(HASH_READ_BYTES, state.size_bytes + 1))))
    handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _expect_same(os.fstat(handle), state)
        if state.size_bytes > len(buffer):
            with contextlib.suppress(OSError):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := os.readv(handle, [buffer]):
            if stop.is_set():
                raise Cancelled
            digest.update(buffer[:count])
            meter.advance(count)
            if count < len(buffer):
                break  # the end: what was appended since then shows in the size below
        _expect_same(os.fstat(handle), state)
    finally:
        os.close(handle)
    return digest.hexdigest()


def _expect_same(found: os.stat_result, state: FileState) -> None:
    if not stat.S_ISREG(found.st_mode) or (found.st_size, found.st_mtime_ns, found.st_ino) != (
        state.size_bytes,
        state.mtime_ns,
        state.inode,
    ):
        raise changed(state.path)


def changed(path: str) -> IntegrityError:
    """Return the error for a file that was written to while it was read."""
    return IntegrityError(
        f"asset file `{path}` changed while it was read",
        hint="stop the process that writes to the asset, then rerun; unchanged files are not read again",
        path=path,
    )


class HashJournal:
    """Hashes of files that were read already, so that an interrupted run goes on where it was. Safe from threads.

    An entry counts as long as path, size, time of change and inode are the same. Lines are appended as they come, those
    of small files in batches; a torn one, which a crash leaves, is passed over.
    """

    def __init__(self, path: Path) -> None:
        """Read the journal at a path, which need not exist."""
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[FileState, str] = {}
        self._handle: int | None = None
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        if not path.is_file():
            return
        try:
            with path.open("rb") as stream:
                while line := stream.readline(MAX_JOURNAL_LINE):
                    self._learn(line)
        except OSError as error:
            raise files.translate_os_error(error, doing="read", path=path) from error

    def _learn(self, line: bytes) -> None:
        with contextlib.suppress(ValueError, TypeError):
            path, size, mtime_ns, inode, sha256 = parse_json(line)
            if isinstance(sha256, str) and len(sha256) == 64:
                self._known[FileState(path, size, mtime_ns, inode)] = sha256

    def get(self, state: FileState) -> str | None:
        """Return the hash of a file that is as it was, or None."""
        return self._known.get(state)

    def add(self, state: FileState, sha256: str) -> None:
        """Note a hash: on the disk at once, or with the next ones if reading the file again would cost little."""
        line = json.dumps([state.path, state.size_bytes, state.mtime_ns, state.inode, sha256]) + "\n"
        with self._lock:
            self._known[state] = sha256
            self._waiting.append(line)
            self._waiting_bytes += state.size_bytes
            if self._waiting_bytes >= HASH_BATCH_BYTES or len(self._waiting) >= BATCH_LINES:
                self._write()

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        try:
            if self._handle is None:
                files.ensure_directory(self.path.parent)
                self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._end_torn_line(self._handle)
            os.write(self._handle, "".join(self._waiting).encode())
        except OSError as error:
            raise files.translate_os_error(error, doing="write", path=self.path) from error
        self._waiting, self._waiting_bytes = [], 0

    def _end_torn_line(self, handle: int) -> None:
        if os.fstat(handle).st_size:
            os.write(handle, b"\n")

    def keep(self, states: Sequence[FileState]) -> None:
        """Rewrite the journal with the entries of these files only, and close it."""
        with self._lock:
            self._waiting, self._waiting_bytes = [], 0
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
        lines = (
            json.dumps([state.path, state.size_bytes, state.mtime_ns, state.inode, self._known[state]]) + "\n"
            for state in states
            if state in self._known
        )
        files.write_text(self.path, "".join(lines))


def readable_reason(error: OSError) -> str:
    """Return why a file cannot be read, for a finding."""
    if error.errno == errno.ELOOP:
        return "is a symbolic link"
    return f"cannot be read: {error.strerror or error}"
