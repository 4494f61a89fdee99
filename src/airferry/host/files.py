"""Files that are never half written, where they go, folders and disk space.

Every durable write goes: temporary file in the destination folder, fsync, rename, fsync of the folder. After each
of these boundaries `boundary` is called, which tests replace to kill the process there.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from airferry.errors import HostError, UsageError

TEMPORARY_PREFIX = ".airferry-"
MAX_PATH_BYTES, MAX_NAME_BYTES = 4096, 255  # PATH_MAX of Linux, NAME_MAX of its file systems
_BAD_PATH = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
CHECK_PATH = "check the path; a relative one begins at the current folder"
_UNKNOWN_USER = 65534  # the owner of what no user of a namespace owns: the kernel's overflow ID
# what file systems without locks, links, modes or durable folders answer; FUSE's `ENOSYS` means that it is not there
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
# FAT and exFAT say EPERM; EACCES and EPERM are also the kernel's `protected_hardlinks`
LINKS_REFUSED = _UNSUPPORTED | {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.EINVAL}
_SPECIAL = {stat.S_ISFIFO: "a pipe", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket"}


def _no_boundary(what: str) -> None:
    """Do nothing: the default for `boundary`."""


boundary: Callable[[str], None] = _no_boundary


def translate_os_error(error: OSError, *, doing: str, path: Path) -> HostError:
    """Return the `HostError` for an `OSError`, with what can be done about it as far as that is known."""
    text = f"cannot {doing} `{path}`: {error.strerror or error}"
    return HostError(text, hint=os_error_hint(error, path), path=str(path))


def os_error_hint(error: OSError, path: Path | None = None) -> str:
    """Return what can be done about an `OSError`, of a path where that is known."""
    where = f"`{path}`" if path is not None else "what was being written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        way = "choose another output or cache folder"
        with suppress(HostError):
            if path is None or lies_within(path, temporary_directory()):
                way = "choose another folder for temporary files (`TMPDIR`), output or cache"
        return f"free up space on the file system of {where}, or {way}; then rerun"
    if error.errno == errno.EFBIG:
        return "raise the limit on the size of files (`ulimit -f`), or choose a file system without one; then rerun"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit on open files (`ulimit -n 1024`), or use a smaller `-j`; then rerun"
    if error.errno in (errno.EACCES, errno.EPERM):
        rights = "; root has no rights there, as on NFS with `root_squash`: run this as the owner"
        return f"check the owner and mode of {where}{rights if os.geteuid() == 0 else ''}"
    if error.errno == errno.EROFS:
        return f"{where} is on a read-only file system; choose another folder"
    if error.errno in _UNSUPPORTED:
        return f"the file system of {where} cannot do this: choose a folder elsewhere (`AIRFERRY_CACHE` for the cache)"
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
        return "the file system may not take this name, as FAT, exFAT and SMB: choose a folder on another one"
    return CHECK_PATH if error.errno in _BAD_PATH else "the system's log (`dmesg`) may say more"


def ensure_directory(path: Path, *, shared: bool = False) -> Path:
    """Create a folder and its parents if they are missing, and return it. Idempotent.

    Whatever the umask, others cannot write into what is made; `shared` folders they can read, as the files in them.

    Raises:
        HostError: it cannot be created, or something else is there.
    """
    try:
        make_folders(path, shared=shared)
    except OSError as error:
        raise translate_os_error(error, doing="create folder", path=path) from error
    return path


def make_folders(path: Path, *, shared: bool = False) -> None:
    """Do as `ensure_directory`, but raise what the system raises.

    Raises:
        OSError: the folder cannot be created, or something else is there.
    """
    missing: list[Path] = []
    folder = path
    while not os.path.lexists(folder) and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o775)
            if shared:
                set_mode(folder, stat.S_IMODE(folder.stat().st_mode) | 0o755)
    path.mkdir(exist_ok=True)


def set_mode(path: Path | int, mode: int) -> None:
    """Set the mode of a file or folder, where its file system has modes."""
    try:
        os.chmod(path, mode)  # noqa: PTH101
    except OSError as error:
        if error.errno not in _UNSUPPORTED | {errno.EPERM, errno.EINVAL}:
            raise


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


def home_directory() -> Path | None:
    """Return the user's home; None where the host does not say where it is, as in a container with any user ID."""
    home = expand_home(Path("~"))
    return None if home == Path("~") else home


def temporary_directory() -> Path:
    """Return the folder for temporary files.

    Raises:
        HostError: there is none that can be written to.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise HostError(
            "no folder for temporary files can be written to",
            hint="free up space in `/tmp`, or name another folder in the environment variable `TMPDIR`",
        ) from error


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


def output_file(path: Path) -> Path:
    """Return the place of a file that the user named for output: where links lead, checked to be writable.

    Leaves nothing behind, so that it is asked before the work begins.

    Raises:
        UsageError: a folder is there.
        HostError: a pipe, a device or another user's link is there, or the folder does not take it.
    """
    if is_folder(path):
        raise UsageError(f"`{path}` is a folder, expected a file", hint=f"name a file, as `{path / 'FILE'}`")
    _expect_no_special(path)
    place = path
    if os.path.islink(path):  # noqa: PTH114 (`Path.is_symlink` raises for a name that the file system does not take)
        # as the kernel's `protected_symlinks`: in `/tmp`, who made the link would choose what is overwritten
        folder = path.parent.stat()
        if folder.st_mode & 0o1002 == 0o1002 and path.lstat().st_uid not in (os.geteuid(), folder.st_uid):
            raise HostError(f"`{path}` is a link that another user made", hint="remove it, or name another file")
        place = resolved(path)
    expect_writable(place.parent)
    if is_folder(place.parent) and not os.path.lexists(place):
        try:
            place.touch(mode=0o600, exist_ok=False)
            place.unlink()
        except OSError as error:
            raise translate_os_error(error, doing="write", path=place) from error
    return place


def _expect_no_special(path: Path) -> None:
    """Refuse a pipe, a device or a socket: a file is renamed to its place, and would take theirs."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    for is_kind, kind in _SPECIAL.items():
        if is_kind(mode):
            what = f"`{path}` is {kind}, and a file is written whole before it takes its place"
            raise HostError(what, hint="name a file, and pass it on when it is there", path=str(path))


def fsync_directory(path: Path) -> None:
    """Make the entries of a folder durable, where its file system does that, and the folder may be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED | {errno.EINVAL, errno.EBADF}:
            raise
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `path` that takes its place, durably, when the block ends well.

    If the block raises, the temporary file is removed and `path` is as it was.

    Raises:
        HostError: the folder is not writable, the disk is full, or a pipe or device is there.
    """
    temporary: str | None = None
    _expect_no_special(path)
    try:
        ensure_directory(path.parent)
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            set_mode(stream.fileno(), mode)
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
        ensure_directory((folder / name).parent, shared=True)
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
    except ValueError as error:  # a null byte in its name
        raise HostError(f"cannot read `{path}`: {error}", path=str(path), hint=CHECK_PATH) from error
    if len(data) > limit_bytes:
        raise HostError(f"`{path}` is larger than the limit of {limit_bytes} bytes", path=str(path), hint=CHECK_PATH)
    return data


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


def cache_directory(*, make: bool = True) -> Path:
    """Return airferry's cache: `AIRFERRY_CACHE`, else `$XDG_CACHE_HOME/airferry`, else `~/.cache/airferry`.

    With `make` it is made if it is missing, for this user alone: it holds bases and checkouts that others may not be
    allowed to read, what is believed of them, and locks, which anyone who can open them could hold. Where there is no
    home, or nothing can be written there, it is `airferry-UID` in the folder for temporary files.

    Raises:
        HostError: it belongs to another user, who may have put there whatever is found in it.
    """
    home = home_directory()
    if chosen := os.environ.get("AIRFERRY_CACHE"):
        folder = Path(chosen)
    elif base := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(base) / "airferry"
    else:
        folder = (home or Path("/nowhere")) / ".cache" / "airferry"
        nearest = next(path for path in (folder, *folder.parents) if exists(path))
        if home is None or not is_folder(home) or not os.access(nearest, os.W_OK | os.X_OK):
            return _temporary_cache()
    with suppress(OSError):  # what writes to it says why that is not possible
        if make and not folder.exists():
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


def _temporary_cache() -> Path:
    folder = temporary_directory() / f"airferry-{os.getuid()}"
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise translate_os_error(error, doing="create folder", path=folder) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise HostError(
            f"`{folder}` is not a folder that only this user can write to, and there is no home for the cache",
            hint="set `AIRFERRY_CACHE` to a folder of yours",
        )
    return folder
