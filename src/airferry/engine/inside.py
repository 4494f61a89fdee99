"""What runs as a child, some of it inside a user namespace: starts that are noted or without network, and a copy.

It is executed by path, with `python -I`, so it imports nothing of the project and nothing outside the standard
library. It talks to its parent by its exit code and stderr alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFREQ = "16sH14s"


def process_mark(pid: int) -> tuple[int, str, str]:
    """Return a process's session, a mark that no other process ever has under the same number, and its state."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return int(fields[3]), f"{boot} {fields[19]}", fields[0]


def note_session(folder: Path) -> None:
    """Leave this process's session and mark in a folder, and be terminated when the parent dies."""
    parent = os.getppid()
    session, mark, _ = process_mark(os.getpid())
    (folder / str(session)).write_text(mark)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise OSError("the parent has died")


def enter_empty_network() -> None:
    """Move this process into a network namespace that has a loopback interface and nothing else."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare(CLONE_NEWNET): {os.strerror(number)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack(IFREQ, b"lo", 0, b"")
        flags = struct.unpack(IFREQ, fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack(IFREQ, b"lo", flags | IFF_UP, b""))


def copy_out(root: Path, inside: str, destination: Path) -> None:
    """Copy a file or tree from a mounted image to a path that must not exist; links stay links.

    A path that leaves the image, through `..` or links, is refused.
    """
    base = root.resolve()
    source = (base / inside.lstrip("/")).resolve()
    if source != base and base not in source.parents:
        raise OSError(f"{inside} points outside the image")
    if source.is_dir():
        shutil.copytree(source, destination, symlinks=True)
    else:
        shutil.copy2(source, destination, follow_symlinks=False)


def main(arguments: list[str]) -> int:
    """Run `guarded FOLDER PROGRAM ARGUMENT…`, `offline PROGRAM ARGUMENT…`, or `copy INSIDE DESTINATION`.

    The first notes its session in the folder. The last finds the mount point of the image in `AIRFERRY_MOUNT`.
    """
    verb, *rest = arguments
    try:
        if verb == "guarded":
            note_session(Path(rest[0]))
            os.execvp(rest[1], rest[1:])
        if verb == "offline":
            enter_empty_network()
            os.execvp(rest[0], rest)
        copy_out(Path(os.environ["AIRFERRY_MOUNT"]), rest[0], Path(rest[1]))
    except (OSError, RuntimeError, ValueError) as error:
        # a circle of links in the image is a RuntimeError before Python 3.13; shutil.Error is an OSError
        sys.stderr.write(f"airferry: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
