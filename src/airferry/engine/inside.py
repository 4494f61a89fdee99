"""What runs as a child, some of it inside a user namespace: starts that are noted, apart or offline, and a copy.

It is executed by path, with `python -I`, so it imports nothing of the project and nothing outside the standard
library. It talks to its parent by its exit code and stderr alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
PR_SET_PDEATHSIG = 1
KEYCTL = {"aarch64": 219, "x86_64": 250}  # the number of keyctl(2), which libc does not wrap
KEYCTL_JOIN_SESSION_KEYRING = 1
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
NOT_APART = "airferry: processes cannot be separated: "
NOT_APART_CODE = 125
WATCH_S, END_GRACE_S = 0.5, 4.0
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFREQ = "16sH14s"


def process_mark(pid: int) -> tuple[int, str, str]:
    """Return a process's session, a mark that no other process ever has under the same number, and its state."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return int(fields[3]), f"{boot} {fields[19]}", fields[0]


def note_session(folder: Path) -> None:
    """Leave this process's session and mark in a folder, and be terminated when the parent dies."""
    parent = os.getppid()
    session, mark, _ = process_mark(os.getpid())
    (folder / str(session)).write_text(mark, encoding="utf-8")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise OSError("the parent has died")


def check_call(what: str, result: int) -> None:
    """Raise for the result of a call of libc that failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter_empty_network() -> None:
    """Move this process into a network namespace that has a loopback interface and nothing else."""
    check_call("unshare(CLONE_NEWNET)", ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack(IFREQ, b"lo", 0, b"")
        flags = struct.unpack(IFREQ, fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack(IFREQ, b"lo", flags | IFF_UP, b""))


def run_apart(arguments: list[str]) -> int:
    """Run a program so that it finds no process, no IPC object and no terminal of the host; return its exit code.

    The arguments are a number N, N paths, and the program with its own. Of the first path, a folder, the program
    finds nothing but the others.

    It is the child of the first process of a PID namespace: whatever it starts ends with it, or with this process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        check_call("unshare", libc.unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS))
    except OSError as error:
        sys.stderr.write(f"{NOT_APART}{error}\n")
        return NOT_APART_CODE
    parent = os.getppid()
    argv = arguments[1 + int(arguments[0]) :]
    paths = arguments[1 : 1 + int(arguments[0])]
    # a signal that comes before its handler is there would be lost on the first process of a namespace
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    alive, held = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(held)
        os._exit(be_first(argv, paths, alive))
    pass_signals_on(first)
    end_with_parent(first, parent)
    status = os.waitpid(first, 0)[1]
    # Python gives signals their defaults back while it exits, and that of an alarm is to end the process
    signal.setitimer(signal.ITIMER_REAL, 0)
    return exit_code(status)


def be_first(argv: list[str], paths: list[str], alive: int) -> int:
    """Run a program as the child of this process, which is the first of its namespace, and collect orphans."""
    libc = ctypes.CDLL(None, use_errno=True)
    # nothing inside can end the first process of a PID namespace, so it must not outlive a parent that is killed
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:
        return 1  # the parent died before that
    if number := KEYCTL.get(os.uname().machine):
        # the session's keyring, which a child inherits, may hold tickets and keys of the user
        libc.syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None)
    try:
        mount_own(libc)
        if paths:
            show_only(libc, paths[0], paths[1:])
    except OSError as error:
        os.write(2, f"{NOT_APART}{error}\n".encode())
        return NOT_APART_CODE
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, f"airferry: {argv[0]}: {error}\n".encode())
        os._exit(127)
    pass_signals_on(child)
    # the first process inherits all orphans, and the namespace, with whatever still runs in it, ends with it
    while True:
        ended, status = os.wait()
        if ended == child:
            return exit_code(status)


def mount_own(libc: ctypes.CDLL) -> None:
    """Mount what shows processes, shared memory, message queues and terminals of these namespaces over the host's.

    Buildah's chroot isolation hands its own `/proc` and `/dev` to containers as they are.
    """
    # shared mounts would show up in the namespace that this one was copied from
    check_call("mount /", libc.mount(b"", b"/", b"", ctypes.c_ulong(MS_REC | MS_SLAVE), b""))
    for kind, folder, flags, data in (
        ("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
        ("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"),
        ("mqueue", "/dev/mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
        ("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"),
    ):
        if Path(folder).is_dir():
            encoded = [text.encode() for text in (kind, folder, kind, data)]
            result = libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
            check_call(f"mount {folder}", result)


def show_only(libc: ctypes.CDLL, folder: str, kept: list[str]) -> None:
    """Mount an empty folder over a folder, and some of what it held where it was."""
    held = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in kept]
    flags = MS_NOSUID | MS_NODEV
    check_call(
        f"mount {folder}", libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), b"mode=0700")
    )
    for path, handle in held:
        source = f"/proc/self/fd/{handle}"
        if Path(source).is_dir():
            Path(path).mkdir(parents=True, exist_ok=True)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        flags = MS_BIND | MS_REC
        check_call(f"mount {path}", libc.mount(source.encode(), os.fsencode(path), b"", ctypes.c_ulong(flags), b""))
        os.close(handle)


def pass_signals_on(child: int) -> None:
    """Hand signals that ask this process to end to a child, from now on; they were blocked until here."""

    def forward(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def end_with_parent(child: int, parent: int) -> None:
    """From now on, ask a child to end when this process has lost its parent, and kill it some seconds later.

    `buildah unshare` does not hand on the signal that ends it; PR_SET_PDEATHSIG fires when a thread of it ends.
    """
    since: list[float] = []

    def look(_number: int, _frame: object) -> None:
        if os.getppid() != parent:
            since.append(time.monotonic())
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM if since[-1] - since[0] < END_GRACE_S else signal.SIGKILL)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, WATCH_S, WATCH_S)


def exit_code(status: int) -> int:
    """Return the exit code that a shell gives a status: that of a signal is 128 and its number."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


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
    """Run `guarded FOLDER PROGRAM ARGUMENT…`, `offline PROGRAM ARGUMENT…`, `apart NUMBER PATH… PROGRAM ARGUMENT…`,
    `offline-apart` with the same, or `copy INSIDE DESTINATION`.

    The first notes its session in the folder. The last finds the mount point of the image in `AIRFERRY_MOUNT`.
    """
    verb, *rest = arguments
    try:
        if verb == "guarded":
            note_session(Path(rest[0]))
            os.execvp(rest[1], rest[1:])
        if verb in ("offline", "offline-apart"):
            enter_empty_network()
        if verb in ("apart", "offline-apart"):
            return run_apart(rest)
        if verb == "offline":
            os.execvp(rest[0], rest)
        copy_out(Path(os.environ["AIRFERRY_MOUNT"]), rest[0], Path(rest[1]))
    except (OSError, RuntimeError, ValueError) as error:
        # a circle of links in the image is a RuntimeError before Python 3.13; shutil.Error is an OSError
        sys.stderr.write(f"airferry: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
