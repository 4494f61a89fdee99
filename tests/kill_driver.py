"""Runs airferry and kills it: `kill_driver.py N SIGNAL LOG ARGUMENT…` gets the signal at the N-th boundary, 0 for none.

A boundary is whatever `files.boundary` marks (each fsync, rename and moved tag) and each answer of a registry. Their
names go to LOG, a line each.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from airferry.cli import app
from airferry.host import files
from airferry.registry.client import RegistryClient
from airferry.registry.connections import Request

guard = threading.Lock()
seen = 0


def boundary(what: str) -> None:
    """Note a boundary and send the signal if it is the one."""
    global seen
    with guard:
        seen += 1
        os.write(log, what.encode() + b"\n")
        if seen == last:
            os.kill(os.getpid(), how)


def answered(self: RegistryClient, sent: Request, **options: Any) -> Any:
    """Send a request as the client would; its answer is a boundary."""
    answer = request(self, sent, **options)
    boundary(f"{sent.method} {sent.url.partition('?')[0]}")
    return answer


if __name__ == "__main__":
    last = int(sys.argv[1])
    how = signal.Signals(int(sys.argv[2]))
    log = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    request = RegistryClient.request
    RegistryClient.request = answered  # type: ignore[method-assign,assignment]
    files.boundary = boundary
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, app._interrupt)
    sys.exit(app.run(sys.argv[4:]))
