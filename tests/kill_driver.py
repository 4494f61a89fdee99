"""Runs airferry and kills it, as often as asked: a line of JSON on stdin is a run, a line on stdout how it ended.

A run gets `signal` at the `number`-th boundary, 0 for none. A boundary is whatever `files.boundary` marks (each fsync,
rename and moved tag) and each answer of a registry. With `AIRFERRY_FAILING_DISK` in the run's environment the disk is
full from that boundary on instead. Their names go to `log`, a line each. A run is a separate process, forked from one
that has done nothing but import: importing takes longer than a run, and pip as well, whose place a folder takes.
Nothing is killed while pip is at work.
"""

from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from airferry.cli import app
from airferry.host import files
from airferry.near import session
from airferry.registry.client import RegistryClient
from airferry.registry.connections import Request
from folder_pip import FolderPip

PRELOADED = ("airferry.near.build", "airferry.near.lock.follow", "airferry.far.load", "airferry.api")

guard = threading.Lock()
seen = 0


def boundary(what: str) -> None:
    """Note a boundary and send the signal if it is the one."""
    global seen
    with guard:
        seen += 1
        os.write(log, what.encode() + b"\n")
        if os.environ.get("AIRFERRY_FAILING_DISK"):
            # from the boundary on, each write to the disk fails
            if 0 < last <= seen and what.startswith(("fsync", "rename")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif seen == last:
            os.kill(os.getpid(), how)


def answered(self: RegistryClient, sent: Request, **options: Any) -> Any:
    """Send a request as the client would; its answer is a boundary."""
    answer = request(self, sent, **options)
    boundary(f"{sent.method} {sent.url.partition('?')[0]}")
    return answer


def open_as(number: int, path: str, flags: int) -> None:
    """Let a descriptor stand for a file."""
    opened = os.open(path, flags, 0o644)
    os.dup2(opened, number)
    os.close(opened)


def run(asked: dict[str, Any]) -> int:
    """Run airferry in this process and return its exit code."""
    global last, how, log
    last, how = asked["number"], signal.Signals(asked["signal"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    anew = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    open_as(0, os.devnull, os.O_RDONLY)
    open_as(1, asked["stdout"], anew)
    open_as(2, asked["stderr"], anew)
    log = os.open(asked["log"], anew, 0o644)
    index = Path(os.environ.get("PIP_FIND_LINKS", os.devnull))
    session.Pip = functools.partial(FolderPip, folder=index)  # type: ignore[misc,assignment]
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, app._interrupt)
    code = app.run(asked["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    last, how, log = 0, signal.SIGKILL, -1
    request = RegistryClient.request
    RegistryClient.request = answered  # type: ignore[method-assign,assignment]
    files.boundary = boundary
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = run(json.loads(line))
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()
