"""What runs as a child inside a user namespace: a start without network, and a copy out of a mounted image.

It is executed by path, with `python -I`, so it imports nothing of the project and nothing outside the standard
library. It talks to its parent by its exit code and stderr alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFREQ = "16sH14s"


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
        raise OSError(f"{inside} leads out of the image")
    if source.is_dir():
        shutil.copytree(source, destination, symlinks=True)
    else:
        shutil.copy2(source, destination, follow_symlinks=False)


def main(arguments: list[str]) -> int:
    """Run `offline PROGRAM ARGUMENT…`, or `copy INSIDE DESTINATION` with the mount point in `AIRFERRY_MOUNT`."""
    verb, *rest = arguments
    try:
        if verb == "offline":
            enter_empty_network()
            os.execvp(rest[0], rest)
        copy_out(Path(os.environ["AIRFERRY_MOUNT"]), rest[0], Path(rest[1]))
    except (OSError, shutil.Error) as error:
        sys.stderr.write(f"airferry: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
