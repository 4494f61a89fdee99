"""Output that is not read any more, as after `| head -1` or on a terminal that is gone: the work goes on, and the exit
code says so."""

from __future__ import annotations

import errno
import io
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# what a shell reports of a program that SIGPIPE has ended
CLOSED_PIPE = 141


class _Output(io.FileIO):
    """A file descriptor that takes what it is given, even after its reader has gone.

    With `optional` it takes it whatever happens: what is told meanwhile must not end what it tells of.
    """

    def __init__(self, number: int, *, optional: bool) -> None:
        """Write to a descriptor, which stays open."""
        super().__init__(number, "wb", closefd=False)
        self.lost = False
        self._optional = optional
        # asked later, one that is gone says that it is none
        self._is_terminal = self.isatty()

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, or drop what can no longer be read."""
        try:
            # a pipe that another program made non-blocking, as ssh and node do, is full for a while
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            # a terminal that is gone is an error of input and output
            gone = error.errno == errno.EPIPE or (error.errno == errno.EIO and self._is_terminal)
            if not gone and not self._optional:
                raise
            self.lost = self.lost or gone
            return memoryview(data).nbytes
        return written


def outlive_readers() -> None:
    """Have standard output and standard error drop what is written after their reader has gone.

    The default raises in whatever writes next. That may be the line of progress of a thread that is uploading, and
    libraries that write for us turn it into exit code 1. Standard error drops what a full disk does not take, too.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _outliving(stream, optional=name == "stderr"))


def _outliving(stream: io.TextIOWrapper, *, optional: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), optional=optional)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def code_of_pipes(code: int) -> int:
    """Return 141 for 0 if something that was written could not be read. Flush before."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    lost = any(getattr(getattr(stream.buffer, "raw", None), "lost", False) for stream in streams)
    return CLOSED_PIPE if lost and code == 0 else code
