"""What the standard library raises for an archive that is damaged, or was made to fail, told as one error of ours."""

from __future__ import annotations

import configparser
import errno
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zstandard

from airferry.errors import AirferryError

# an unknown compression is a NotImplementedError, which is a RuntimeError as encryption and deep nesting are; a bad
# extra field is a struct.error, a member that RECORD does not have a KeyError, an `entry_points.txt` is read by
# configparser
_FAULTS: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    struct.error,
    configparser.Error,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    RuntimeError,
    OverflowError,
)


@contextmanager
def archive_faults(told: Callable[[str], AirferryError], *, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what reading an archive raises into an error that `told` makes of the reason.

    Faults of the host, such as a full disk, go on as they are.
    """
    try:
        yield
    except OSError as error:
        # gzip and bz2 raise some for data that are none of theirs; those have no number. A zip's directory that points
        # before the file's start makes zipfile seek there, which the kernel refuses
        if error.errno not in (None, errno.EINVAL):
            raise
        raise told(_reason(error)) from error
    except _FAULTS + also as error:
        raise told(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        text = ""
    else:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.partition("\n")[0] or "it is cut short or damaged"
