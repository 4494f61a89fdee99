"""Functions that tests run in a process of their own."""

from __future__ import annotations

import hashlib
import os
import signal
from typing import IO

from airferry.errors import IntegrityError


def digest_of(stream: IO[bytes], *, salt: str) -> bytes:
    """Return the digest of what comes."""
    return hashlib.sha256(salt.encode() + stream.read()).hexdigest().encode()


def refuse(stream: IO[bytes]) -> bytes:
    """Refuse what comes after its first byte."""
    stream.read(1)
    raise IntegrityError("the stream is not a tar", hint="take another")


def fail(stream: IO[bytes]) -> bytes:
    """Make a mistake."""
    return stream.read()[1 << 70].to_bytes()


def die(stream: IO[bytes]) -> bytes:
    """End as where the kernel runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return stream.read()


def where(stream: IO[bytes]) -> bytes:
    """Return where a module of the standard library was loaded from."""
    import colorsys

    return str(colorsys.__file__).encode()
