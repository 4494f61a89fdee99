"""containerd's daemon for tests, in a user namespace of its own, so that it needs no root."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airferry.host import process

STARTS_WITHIN_S = 60.0
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@contextmanager
def run_containerd(folder: Path) -> Iterator[list[str]]:
    """Run a containerd with its state in a folder until the block ends, and give the words that `ctr` begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    socket = folder / "c.sock"
    assert len(f"{socket}.ttrpc") < 108, "longer names of sockets are refused"
    server = process.start(
        [
            *(*NAMESPACE, "containerd", "--config", folder / "config.toml", "--address", socket),
            *("--root", folder / "root", "--state", folder / "state"),
        ],
        log=folder / "log",
    )
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not socket.exists():
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield ["ctr", "--address", str(socket)]
    finally:
        process.end_process_group(server)
