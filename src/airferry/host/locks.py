"""Advisory locks on files: who works here. The kernel frees them when a process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from airferry.errors import HostError
from airferry.host import files


def take_lock(stream: IO[bytes], path: Path, *, wait: bool = False) -> None:
    """Take the lock on an open file; `path` is its name.

    Raises:
        BlockingIOError: another process holds it, and `wait` was not asked for.
        HostError: its file system has no locks, as NFS without its lock service.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise files.translate_os_error(error, doing="lock", path=path) from error


def _opened(path: Path) -> IO[bytes]:
    try:
        # a mode of its own: whoever may write to it may not be everybody, whatever the umask
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644), "a+b")
    except OSError as error:
        raise files.translate_os_error(error, doing="open lock", path=path) from error


@contextmanager
def exclusive_lock(path: Path, *, purpose: str, elsewhere: bool = True) -> Iterator[None]:
    """Hold an advisory lock on a file, which is created and stays, for the length of the block.

    The kernel frees it when the process dies, however it dies. `elsewhere` says that another folder would do as well.

    Raises:
        HostError: another process holds it, or its file system has no locks.
    """
    files.ensure_directory(path.parent)
    with _opened(path) as stream:
        try:
            take_lock(stream, path)
        except BlockingIOError as error:
            raise HostError(
                f"another airferry process is running here: `{path}` is locked",
                hint=f"wait until it finishes, {'or use another folder to' if elsewhere else 'then'} {purpose}",
                path=str(path),
            ) from error
        yield


@contextmanager
def waiting_lock(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an advisory lock on a file, waiting until it is free. `on_wait` is called once if it is not.

    Raises:
        HostError: it cannot be opened, or its file system has no locks.
    """
    files.ensure_directory(path.parent)
    with _opened(path) as stream:
        try:
            take_lock(stream, path)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            take_lock(stream, path, wait=True)
        yield
