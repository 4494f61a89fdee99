"""Files that are never half written, folders, locks and disk space.

Every durable write goes: temporary file in the destination folder, fsync, rename, fsync of the folder. After each
of these boundaries `boundary` is called, which tests replace to kill the process there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from airferry.errors import BuildError, HostError

TEMPORARY_PREFIX = ".airferry-"
MAX_PATH_BYTES = 4096  # PATH_MAX of Linux
MAX_NAME_BYTES = 255  # NAME_MAX of its file systems
WRITEBACK_BYTES = 32 * 1024 * 1024
# the owner of what no user of a namespace owns: the kernel's overflow ID
_UNKNOWN_USER = 65534


def _no_boundary(what: str) -> None:
    """Do nothing: the default for `boundary`."""


boundary: Callable[[str], None] = _no_boundary


def translate_os_error(error: OSError, *, doing: str, path: Path) -> HostError:
    """Return the `HostError` for an `OSError`, with a hint for a full disk, permissions and read-only media."""
    hint = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        way = "choose another output or cache folder"
        if lies_within(path, Path(tempfile.gettempdir())):
            way = "choose another folder for temporary files (`TMPDIR`), output or cache"
        hint = f"free up space on the file system of `{path}`, or {way}; then rerun"
    elif error.errno == errno.EFBIG:
        hint = "raise the limit on the size of files (`ulimit -f`), or choose a file system without one; then rerun"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = f"check the owner and mode of `{path}`"
    elif error.errno == errno.EROFS:
        hint = f"`{path}` is on a read-only file system; choose another folder"
    return HostError(f"cannot {doing} `{path}`: {error.strerror or error}", hint=hint, path=str(path))


# as programs say it, whose errors have no number
DISK_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)


def temporary_full_hint() -> str:
    """Return what to do where a program that works in the folder for temporary files finds a disk full."""
    return (
        f"free up space on the file system of `{tempfile.gettempdir()}`, or choose another folder for temporary files "
        "with `TMPDIR`; if the cache is on a full disk, choose another with `AIRFERRY_CACHE`; then rerun"
    )


def ensure_directory(path: Path) -> Path:
    """Create a folder and its parents if they are missing, and return it. Idempotent.

    Raises:
        HostError: it cannot be created, or something else is there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise translate_os_error(error, doing="create folder", path=path) from error
    return path


def without_dots(path: Path) -> Path:
    """Return a path without `..`, absolute where it had any. Links are not followed: `link/..` is where `link` is."""
    return Path(os.path.normpath(path.absolute())) if ".." in path.parts else path


def exists(path: Path) -> bool:
    """Tell whether something is at a path that can be looked at; nothing is where no file can be."""
    # a name that is too long, or a folder that may not be entered, is an OSError of `Path.exists` and `Path.is_file`
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Tell whether a path is a file that can be looked at; none is where no file can be."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder that can be looked at; none is where no folder can be."""
    return os.path.isdir(path)  # noqa: PTH112


def resolved(path: Path) -> Path:
    """Return a path absolute and without links.

    Raises:
        HostError: links lead in a circle, or no file can have such a name.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        # a circle of links is a RuntimeError before Python 3.13, a null byte a ValueError
        reason = getattr(error, "strerror", None) or str(error) or "no such path can be"
        hint = "links lead in a circle: remove one of them" if isinstance(error, RuntimeError) else None
        raise HostError(f"cannot follow `{path}`: {reason}", hint=hint, path=str(path)) from error


def lies_within(path: Path, folder: Path) -> bool:
    """Tell whether a path, without links, is a folder or in it. What links lead in a circle from is nowhere."""
    try:
        return resolved(path).is_relative_to(resolved(folder))
    except HostError:
        return False


def expand_home(path: Path) -> Path:
    """Return a path with `~` and `~USER` in front replaced; as shells do, it stays where there is no such user."""
    # `Path.expanduser` raises a RuntimeError there
    return Path(os.path.expanduser(path))  # noqa: PTH111


def home_directory() -> Path:
    """Return the user's home.

    Raises:
        HostError: the host does not say where it is, as in a container with any user ID.
    """
    home = expand_home(Path("~"))
    if home == Path("~"):
        raise HostError(
            f"the user with ID {os.getuid()} has no home folder on this host",
            hint="set the environment variable `HOME`",
        )
    return home


def expect_writable(folder: Path) -> None:
    """Check that files can be written below a folder, which may not exist yet. Leaves nothing behind.

    Raises:
        HostError: they cannot, or the folder or one above it is something else.
    """
    absolute = folder.absolute()
    nearest = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise HostError(f"cannot write below `{folder}`: `{nearest}` is not a folder", hint="choose another folder")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise translate_os_error(error, doing="write below", path=nearest) from error


def begin_writeback(stream: IO[bytes], start: int, end: int) -> int:
    """Let the kernel begin to write a part of a file to disk, so that fsync has little left to wait for.

    Does nothing while the part is small. Returns where the next part begins.
    """
    if end - start < WRITEBACK_BYTES:
        return start
    stream.flush()
    os.posix_fadvise(stream.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)
    return end


def fsync_directory(path: Path) -> None:
    """Make the entries of a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `path` that takes its place, durably, when the block ends well.

    If the block raises, the temporary file is removed and `path` is as it was.

    Raises:
        HostError: the folder is not writable or the disk is full.
    """
    temporary: str | None = None
    try:
        ensure_directory(path.parent)
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            boundary(f"fsync {path.name}")
        publish(Path(temporary), path)
        temporary = None
    except OSError as error:
        raise translate_os_error(error, doing="write", path=path) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                Path(temporary).unlink()


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished, fsynced file or folder to its final path and make the rename durable."""
    temporary.replace(path)
    boundary(f"rename {path.name}")
    fsync_directory(path.parent)
    boundary(f"fsync folder of {path.name}")


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a whole file atomically and durably. An equal file is left alone."""
    with suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with atomic_file(path, mode=mode) as stream:
        stream.write(data)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a whole text file, UTF-8, atomically and durably. An equal file is left alone."""
    write_bytes(path, text.encode(), mode=mode)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files below a folder, by their relative paths, each as `write_text` does."""
    for name, text in texts.items():
        write_text(folder / name, text)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; its size does not matter to memory.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_bounded(path: Path, *, limit_bytes: int) -> bytes:
    """Return the content of a file that must not be larger than `limit_bytes`.

    Raises:
        HostError: it cannot be read or is larger.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise translate_os_error(error, doing="read", path=path) from error
    except ValueError as error:
        # a null byte in its name
        raise HostError(f"cannot read `{path}`: {error}", path=str(path)) from error
    if len(data) > limit_bytes:
        raise HostError(f"`{path}` is larger than the limit of {limit_bytes} bytes", path=str(path))
    return data


@contextmanager
def open_left(path: Path) -> Iterator[IO[bytes]]:
    """Open what code that is not trusted left, or may have put in place of what was there; it runs no longer.

    Whatever it is, nothing waits for it and no link is followed: only a regular file is opened.

    Raises:
        BuildError: it is something else, was removed, or may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        kind = "a symlink" if error.errno == errno.ELOOP else os.strerror(error.errno or 0)
        raise BuildError(f"cannot read `{path.name}` that was left behind: {kind}", path=str(path)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BuildError(f"`{path.name}` that was left behind is not a regular file", path=str(path))
    with open(handle, "rb") as stream:  # noqa: PTH123
        yield stream


def remove_tree(path: Path) -> None:
    """Remove a file or folder, however deep, read-only folders included. Idempotent; links are not followed."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        try:
            _remove_folder(path)
        except RecursionError:
            _flatten(path)
            _remove_folder(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENAMETOOLONG):
                raise
            _flatten(path)
            _remove_folder(path)
    except OSError as error:
        raise translate_os_error(error, doing="remove", path=path) from error


def _flatten(top: Path) -> None:
    """Move all folders below a folder right into it: paths, open files and the stack have limits, its depth none."""
    names = (f"{TEMPORARY_PREFIX}{number}" for number in itertools.count())
    pending = [top]
    while pending:
        folder = pending.pop()
        folder.chmod(0o700)
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for path in below:
            Path(path).chmod(0o700)  # a folder is moved by who may write to it
            moved = Path(path)
            if folder != top:
                moved = next(place for name in names if not os.path.lexists(place := top / name))
                Path(path).rename(moved)
            pending.append(moved)


def _remove_folder(path: Path) -> None:
    retried: set[str] = set()

    def unlock(function: Callable[..., Any], name: str, error: tuple[Any, BaseException, Any]) -> None:
        if name in retried:
            raise error[1]
        retried.add(name)
        with suppress(OSError):
            Path(name).parent.chmod(0o700)
            if not Path(name).is_symlink():  # the mode would be that of what it points to
                Path(name).chmod(0o700)
        if function in (os.unlink, os.rmdir):
            with suppress(FileNotFoundError):
                function(name)
        elif Path(name).is_dir() and not Path(name).is_symlink():
            shutil.rmtree(name, onerror=unlock)

    shutil.rmtree(path, onerror=unlock)


def remove_stale_temporaries(folder: Path) -> int:
    """Remove what killed writers left in a folder (not below it) and return how many there were.

    Call it only under the lock that all writers of the folder hold.
    """
    if not folder.is_dir():
        return 0
    stale = [entry for entry in folder.iterdir() if entry.name.startswith(TEMPORARY_PREFIX)]
    for entry in stale:
        remove_tree(entry)
    return len(stale)


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """Make a temporary folder in `parent` that is removed when the block ends.

    Raises:
        HostError: the folder is not writable or the disk is full.
    """
    ensure_directory(parent)
    try:
        path = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
    except OSError as error:
        raise translate_os_error(error, doing="make a temporary folder in", path=parent) from error
    try:
        yield path
    finally:
        remove_tree(path)


def _open_lock(path: Path) -> IO[bytes]:
    """Open a file to lock, which is made if it is missing: a user who can open one, if only to read, can hold it."""
    ensure_directory(path.parent)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
        # a group that may not write here shares no folder: it is that of all users
        if os.fstat(handle).st_mode & 0o060 == 0o040:
            with suppress(OSError):  # file systems without modes
                os.fchmod(handle, 0o600)
    except OSError as error:
        raise translate_os_error(error, doing="open lock", path=path) from error
    return open(handle, "r+b", buffering=0)  # noqa: PTH123


@contextmanager
def exclusive_lock(path: Path, *, purpose: str, elsewhere: bool = True) -> Iterator[None]:
    """Hold an advisory lock on a file, which is created and stays, for the length of the block.

    The kernel frees it when the process dies, however it dies. `elsewhere` says that another folder would do as well.

    Raises:
        HostError: another process holds it.
    """
    with _open_lock(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError(
                f"another airferry process is running here: `{path}` is locked",
                hint=f"wait until it finishes, {'or use another folder to' if elsewhere else 'then'} {purpose}",
                path=str(path),
            ) from error
        yield


@contextmanager
def waiting_lock(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an advisory lock on a file, waiting until it is free. `on_wait` is called once if it is not."""
    with _open_lock(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def change_mark(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to; the time of a change (ctime) cannot be set."""
    try:
        found = path.lstat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def free_bytes(path: Path) -> int:
    """Return the bytes that an ordinary user may still write at `path` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def cache_directory() -> Path:
    """Return airferry's cache: `AIRFERRY_CACHE`, else `$XDG_CACHE_HOME/airferry`, else `~/.cache/airferry`.

    It is made if it is missing, for this user alone: it holds bases and checkouts that others may not be allowed to
    read, what is believed of them, and locks, which anyone who can open them could hold.

    Raises:
        HostError: it belongs to another user, who may have put there whatever is found in it.
    """
    chosen = os.environ.get("AIRFERRY_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(chosen) if chosen else (Path(base) if base else home_directory() / ".cache") / "airferry"
    with suppress(OSError):  # what writes to it says why that is not possible
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
        # root may use the cache that a container's volume brings; what an unknown user owns is of another namespace
        if os.geteuid() != 0 and owner not in (os.geteuid(), 0, _UNKNOWN_USER):
            raise HostError(
                f"the cache `{folder}` belongs to another user, with ID {owner}",
                hint="name a folder of your own with `AIRFERRY_CACHE`",
                path=str(folder),
            )
    return folder


def runtime_directory() -> Path | None:
    """Return `XDG_RUNTIME_DIR`, which may be missing, or None where it is not set, or others can plant files in it.

    In `/tmp`, another user could have made what is looked for under a name that everyone knows.
    """
    folder = Path(chosen) if (chosen := os.environ.get("XDG_RUNTIME_DIR")) else None
    if folder is not None:
        with suppress(OSError):
            found = folder.stat()
            is_foreign = os.geteuid() != 0 and found.st_uid not in (os.geteuid(), _UNKNOWN_USER)
            return None if is_foreign or found.st_mode & stat.S_IWOTH else folder
    return folder
