"""Files that code which is not trusted left behind, opened so that none of them is a trap."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from airferry.errors import BuildError


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
        raise BuildError(
            f"cannot read `{path.name}` that was left behind: {kind}",
            path=str(path),
            hint="the build script left something else under this name: correct it there",
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BuildError(
            f"`{path.name}` that was left behind is not a regular file",
            path=str(path),
            hint="the build script left something else under this name: correct it there",
        )
    with open(handle, "rb") as stream:  # noqa: PTH123
        yield stream
