"""Output into a pipe whose reader has gone, as after `| head -1`: the work goes on, and the exit code says so."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# what a shell reports of a program that SIGPIPE has ended
CLOSED_PIPE = 141


class _Output(io.FileIO):
    """A file descriptor that takes what it is given, even after the reader of its pipe has gone."""

    lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, or drop what can no longer be read."""
        try:
            return super().write(data)
        except BrokenPipeError:
            self.lost = True
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Have standard output and standard error drop what is written after their reader has gone.

    The default raises in whatever writes next. That may be the line of progress of a thread that is uploading, and
    libraries that write for us turn it into exit code 1.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            setattr(sys, name, _outliving(stream))


def _outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False)),
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
