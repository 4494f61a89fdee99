"""Work of several processes in one folder: a lock for each thing that is made, and leftovers of killed ones told apart.

Each lock is an advisory one on a file (flock(2)), which the kernel frees when its process dies, however it dies; none
is ever stale. A thread that holds several took them in the order of `Thing`, so that no two processes wait for each
other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import IO

from airferry.errors import HostError
from airferry.events import Emit, Notice, silent
from airferry.host import clock, files
from airferry.host.threads import NamedLocks, raise_if_cancelled

LOCKS = "locks"  # their folder in the cache
WAITING_SAID_AFTER_S = 1.0
WAIT_POLL_S = 0.05


class Thing(IntEnum):
    """What is made once for all processes. While a thread holds one, it takes only what comes later here."""

    INDEX = 1  # of a layout that all share
    BLOB = 2
    LAYER_FACTS = 3
    LAYER = 4  # as bundles carry it
    USERLAND = 5
    LOADER_WHEELS = 6
    BUILT_WHEEL = 7
    GIT_WHEEL = 8
    COMPILED_WHEEL = 9
    WHEEL = 10  # several at a time, sorted
    REPOSITORY = 11
    ENGINE_IMAGES = 12


_IN_PROCESS = NamedLocks()
_HELD = threading.local()


@contextmanager
def making(cache: Path, thing: Thing, name: str, *, doing: str, emit: Emit = silent) -> Iterator[None]:
    """Hold the lock of one thing, waiting while another thread or process makes it; after a moment that is said.

    The lock lies in `LOCKS` of `cache`, `name` is the thing's among its kind, `doing` completes `another process is …`.
    Once you have the lock, look first whether the thing is there by now.

    Raises:
        HostError: the folder is not writable.
        Cancelled: the work of this thread was given up while it waited.
    """
    key = (int(thing), name)
    held = _held()
    if held and held[-1] >= key:
        # two processes that take locks in different orders may wait for each other for ever
        raise AssertionError(f"lock {key} asked for while {held} are held")
    mark = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    path = cache / LOCKS / f"{thing.name.lower().replace('_', '-')}-{mark}"

    def said() -> None:
        emit(Notice(f"waiting for another airferry process that is {doing} (lock `{path}`)"))

    with _IN_PROCESS(str(path.absolute())), _locked_file(path, on_wait=said):
        held.append(key)
        try:
            yield
        finally:
            held.remove(key)


@contextmanager
def making_all(cache: Path, thing: Thing, names: Sequence[str], *, doing: str, emit: Emit = silent) -> Iterator[None]:
    """Hold the locks of several things of a kind, as `making` does."""
    with ExitStack() as stack:
        for name in sorted(set(names)):
            stack.enter_context(making(cache, thing, name, doing=doing, emit=emit))
        yield


@contextmanager
def sharing(path: Path, *, clear: Callable[[], object], emit: Emit = silent) -> Iterator[None]:
    """Use what many processes use at a time. One that is alone runs `clear`, before any other may come and at its end.

    `clear` removes what killed processes left, which looks like what others write just now.

    Raises:
        HostError: the folder of the lock is not writable.
    """

    def said() -> None:
        emit(Notice(f"waiting for another airferry process that does not share `{path.parent}`"))

    with _opened(path) as stream:
        if _try(stream, fcntl.LOCK_EX, path):
            clear()
        # not atomic: another process that is alone may clear first, and nothing of this one is there yet
        _take(stream, fcntl.LOCK_SH, path, on_wait=said)
        try:
            yield
        finally:
            if _try(stream, fcntl.LOCK_EX, path):
                clear()


@contextmanager
def own_scratch(parent: Path) -> Iterator[Path]:
    """Give an `own_folder` in `parent`, once what killed processes left of theirs is removed."""
    clear_abandoned(parent)
    with own_folder(parent) as folder:
        yield folder


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """Make a folder in `parent` that `clear_abandoned` spares while the block runs, and remove it when it ends.

    Raises:
        HostError: the folder is not writable or the disk is full.
    """
    files.ensure_directory(parent)
    with ExitStack() as stack:
        while True:
            name = f"{files.TEMPORARY_PREFIX}{os.urandom(6).hex()}"
            with suppress(FileExistsError):
                # the lock is there before the folder, so that there is no folder of a living process without it
                stack.enter_context(_locked_file(_lock_of(parent / name), on_wait=_say_nothing))
                (parent / name).mkdir(mode=0o700)
                break
        stack.callback(files.remove_tree, parent / name)
        yield parent / name


def clear_abandoned(parent: Path, *, remove: Callable[[Path], object] = files.remove_tree) -> int:
    """Remove the folders that killed processes left of those that `own_folder` made; return how many there were."""
    found = 0
    names = {path.name.removesuffix(_SUFFIX) for path in parent.glob(f"{files.TEMPORARY_PREFIX}*")}
    for folder in (parent / name for name in sorted(names)):
        with _opened(_lock_of(folder)) as stream:
            if _try(stream, fcntl.LOCK_EX, folder) and _is_named(stream, _lock_of(folder)):
                found += os.path.lexists(folder)
                remove(folder)
                _lock_of(folder).unlink(missing_ok=True)
    return found


def clear_unheld(folder: Path) -> None:
    """Remove the files of locks that killed processes left in a folder; they lock nothing."""
    for path in sorted(folder.glob("*")):
        with _opened(path) as stream:
            if _try(stream, fcntl.LOCK_EX, path) and _is_named(stream, path):
                path.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(path: Path, *, purpose: str, elsewhere: bool = True) -> Iterator[None]:
    """Hold the lock on a file, which is created and stays; do not wait for it.

    `elsewhere` says that another folder would do as well.

    Raises:
        HostError: another process holds it, or its file system has no locks.
    """
    with _opened(path) as stream:
        if not _try(stream, fcntl.LOCK_EX, path):
            raise HostError(
                f"another airferry process is running here: `{path}` is locked",
                hint=f"wait until it finishes, {'or use another folder to' if elsewhere else 'then'} {purpose}",
                path=str(path),
            )
        yield


@contextmanager
def waiting_lock(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock on a file, which is created and stays, waiting until it is free. `on_wait` is called if it is not.

    Raises:
        HostError: the file cannot be opened, or its file system has no locks.
    """
    with _opened(path) as stream:
        if not _try(stream, fcntl.LOCK_EX, path):
            if on_wait is not None:
                on_wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def lock_if_free(stream: IO[bytes], path: Path) -> bool:
    """Lock an open file, whose name is `path`, until it is closed; False if another process holds its lock.

    Raises:
        HostError: its file system has no locks.
    """
    return _try(stream, fcntl.LOCK_EX, path)


# --- inside ----------------------------------------------------------------------------------------------------------

_SUFFIX = ".lock"


def _held() -> list[tuple[int, str]]:
    if not hasattr(_HELD, "things"):
        _HELD.things = []
    found: list[tuple[int, str]] = _HELD.things
    return found


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _SUFFIX)


@contextmanager
def _locked_file(path: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on a file that exists only while it is held or waited for."""
    while True:
        with _opened(path) as stream:
            _take(stream, fcntl.LOCK_EX, path, on_wait=on_wait)
            # its last holder may have removed the file that is open here: others lock the next one under its name
            if not _is_named(stream, path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to lock, which is made if it is missing: a user who can open one, if only to read, can hold it."""
    files.ensure_directory(path.parent)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
        # a group that may not write here shares no folder: it is that of all users
        if os.fstat(handle).st_mode & 0o060 == 0o040:
            files.set_mode(handle, 0o600)
    except OSError as error:
        raise files.translate_os_error(error, doing="open lock", path=path) from error
    with open(handle, "r+b", buffering=0) as stream:  # noqa: PTH123
        yield stream


def _is_named(stream: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _try(stream: IO[bytes], kind: int, path: Path) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise files.translate_os_error(error, doing="lock", path=path) from error
    return True


def _take(stream: IO[bytes], kind: int, path: Path, *, on_wait: Callable[[], None]) -> None:
    """Take a lock, asking again and again: a thread that slept in the kernel could not be told to give up."""
    begun_s, told = clock.monotonic_s(), False
    while not _try(stream, kind, path):
        raise_if_cancelled()
        if not told and clock.monotonic_s() - begun_s >= WAITING_SAID_AFTER_S:
            told = True
            on_wait()
        time.sleep(WAIT_POLL_S)


def _say_nothing() -> None:
    """Wait silently: no other process holds the lock of a name that was just made up."""
