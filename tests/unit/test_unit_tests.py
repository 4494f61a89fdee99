"""Unit tests reach nothing and start nothing, whichever way is taken."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from refusal import REFUSAL


def bind() -> None:
    socket.create_server(("127.0.0.1", 0))


def send() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as made:
        made.sendto(b"x", ("127.0.0.1", 9))


def connect(address: str | tuple[str, int], family: socket.AddressFamily) -> None:
    with socket.socket(family) as made:
        made.connect(address)


@pytest.mark.parametrize(
    "act",
    [
        bind,
        send,
        lambda: connect(("127.0.0.1", 9), socket.AF_INET),
        lambda: connect("/run/docker.sock", socket.AF_UNIX),
        lambda: urllib.request.urlopen("http://localhost:9"),
        lambda: subprocess.run([sys.executable, "--version"], check=False),
        lambda: os.system("true"),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.fork() or os._exit(0),
        lambda: os.execv("/bin/true", ["true"]),
    ],
)
def test_it_is_refused_and_remembered(act: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match="belong in tests/local"):
        act()
    assert "belong in tests/local" in str(REFUSAL.end())
    REFUSAL.begin()


def test_a_socket_may_lie_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("node")
    assert Path("node").is_socket()
