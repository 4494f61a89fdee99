"""Units of work that tests give to workers."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from airferry.errors import BuildError, IntegrityError, RegistryError, revived
from airferry.events import Notice, Progress
from airferry.host.workers.work import Work, WorkContext
from airferry.registry.failures import NotFound


def unit(name: str, *, fed: bool = False, size_bytes: int | None = None, **arguments: Any) -> Work:
    """Return one of the functions here as a unit of work."""
    return Work(f"{__name__}:{name}", arguments, "layer `sha256:11`", size_bytes, fed)


def process_of(context: WorkContext, **told: Any) -> dict[str, Any]:
    """Return where this runs, and what was given."""
    context.emit(Progress("looking", 1, 2))
    context.emit(Notice("said", details=("one", "two")))
    return {"pid": os.getpid(), **told}


def digest_of(context: WorkContext, *, salt: str) -> str:
    """Return the digest of what comes."""
    hashed = hashlib.sha256(salt.encode())
    assert context.blocks is not None
    for block in context.blocks:
        hashed.update(block)
    return hashed.hexdigest()


def refuse(context: WorkContext) -> None:
    """Refuse what comes after its first block."""
    assert context.blocks is not None
    next(context.blocks)
    raise IntegrityError("the stream is not a tar", hint="take another")


def fail(context: WorkContext) -> None:
    """Make a mistake."""
    [][1 << 70]


def fail_for_a_reason(context: WorkContext, *, reason: str) -> None:
    """Fail as something else did, which failed as something else did."""
    try:
        try:
            fail(context) if reason == "mistake" else fill_the_disk(context)
        except (OSError, IndexError) as error:
            raise RegistryError("not sent", status=503, retry_after_s=2.5) from error
    except RegistryError as error:
        raise BuildError("not built", hint="look there", tail=("last", "words")) from error


def die(context: WorkContext) -> None:
    """End as where the kernel runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop(context: WorkContext, *, folder: str) -> None:
    """Tell where this runs, and then neither do nor say anything."""
    (Path(folder) / str(os.getpid())).touch()
    while True:
        time.sleep(60)


def where(context: WorkContext) -> str:
    """Return where a module of the standard library was loaded from."""
    import colorsys

    print("what prints does not get between the answers", flush=True)
    return str(colorsys.__file__)


def ask_others(context: WorkContext) -> Any:
    """Leave the work to others."""
    with context.workers.begin(unit("process_of", size_bytes=1 << 40)) as running:
        return running.result()


class OwnError(RegistryError):
    """A class of errors that is not defined with the others, and is made in a way of its own."""

    def __init__(self, host: str, *, tries: int) -> None:
        """Fail `tries` times at a host."""
        super().__init__(f"`{host}` failed {tries} times", status=503, retry_after_s=1.5)
        self.host = Path(host)
        self.tries = {"made": (tries, [tries])}


def refuse_in_own_words(context: WorkContext) -> None:
    """Raise an error of a class of one's own, which combines another."""
    error = OwnError("r.example", tries=3)
    error.failures = (NotFound("gone", hint="look elsewhere", status=404, digest="sha256:0"),)
    raise error


def raise_as_told(context: WorkContext, *, kinds: list[str], attributes: dict[str, Any]) -> None:
    """Raise an error of the first class that is named, which combines one of each other class, all with attributes."""
    errors = []
    for kind in kinds:
        module, _, name = kind.partition(":")
        errors.append(revived(getattr(importlib.import_module(module), name), dict(attributes)))
    errors[0].failures = tuple(errors[1:])
    raise errors[0]


def fill_the_disk(context: WorkContext) -> None:
    """Fail as a disk without room does."""
    raise OSError(errno.ENOSPC, "No space left on device", "/cache/layer")


def use_much_memory(context: WorkContext) -> None:
    """Fail as an allocation does."""
    raise MemoryError
