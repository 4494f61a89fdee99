"""Functions that tests run in a process of their own."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import signal
from pathlib import Path
from typing import IO, Any

from airferry.errors import IntegrityError, RegistryError, revived
from airferry.registry.failures import NotFound


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


class OwnError(RegistryError):
    """A class of errors that is not defined with the others, and is made in a way of its own."""

    def __init__(self, host: str, *, tries: int) -> None:
        """Fail `tries` times at a host."""
        super().__init__(f"`{host}` failed {tries} times", status=503, retry_after_s=1.5)
        self.host = Path(host)
        self.tries = {"made": (tries, [tries])}


def refuse_in_own_words(stream: IO[bytes]) -> bytes:
    """Raise an error of a class of one's own, which combines another."""
    error = OwnError("r.example", tries=3)
    error.failures = (NotFound("gone", hint="look elsewhere", status=404, digest="sha256:0"),)
    raise error


def raise_as_told(stream: IO[bytes], *, kinds: list[str], attributes: dict[str, Any]) -> bytes:
    """Raise an error of the first class that is named, which combines one of each other class, all with attributes."""
    errors = []
    for kind in kinds:
        module, _, name = kind.partition(":")
        errors.append(revived(getattr(importlib.import_module(module), name), dict(attributes)))
    errors[0].failures = tuple(errors[1:])
    raise errors[0]


def fill_the_disk(stream: IO[bytes]) -> bytes:
    """Fail as a disk without room does."""
    raise OSError(errno.ENOSPC, "No space left on device", "/cache/layer")


def use_much_memory(stream: IO[bytes]) -> bytes:
    """Fail as an allocation does."""
    raise MemoryError
