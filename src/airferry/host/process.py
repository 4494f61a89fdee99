"""The one door for child processes, and the only importer of `subprocess`.

A list of arguments, never a shell; an environment from an allow-list; standard input closed unless given; a new
process group, terminated and then killed on time-out and on any exception; a bounded tail of stderr for the error.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shlex
import shutil
import signal
import stat
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from airferry.errors import BuildError, HostError
from airferry.events import CommandRun, Emit, silent
from airferry.host import files

TAIL_LINES = 40
MAX_LINE_CHARACTERS = 2000
MAX_STDOUT_BYTES = 64 * 1024 * 1024
TERMINATE_GRACE_S = 10.0
PIPE_BYTES = 1 << 20
# poll(2) takes a C int
LONGEST_POLL_MS = (1 << 31) - 1

# as programs say it, whose errors have no number
DISK_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)

Child = subprocess.Popen[bytes]
_live: set[Child] = set()

ALLOWED_ENVIRONMENT = (
    "HOME",
    "LOGNAME",
    "PATH",
    "TMPDIR",
    "USER",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    # how the host reaches networks
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    # where credentials and policies are kept
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "CONTAINERS_CONF",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "REGISTRIES_CONFIG_PATH",
    "BUILDAH_ISOLATION",
    "BUILDAH_RUNTIME",
    "NETRC",
    "GIT_ASKPASS",
    "GIT_SSH_COMMAND",
    "SSH_AUTH_SOCK",
)
# the user's Git configuration may lie elsewhere, or in the environment as a whole
ALLOWED_PREFIXES = ("PIP_", "GIT_CONFIG_")


class ProcessFailed(BuildError):
    """A child process ended with a code other than 0, or was ended after its time-out.

    `returncode` is None after a time-out; `tail` holds the last lines of its stderr.
    """

    def __init__(
        self,
        message: str,
        *,
        command: str,
        returncode: int | None,
        tail: Iterable[str],
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, tail=tuple(tail))
        self.command = command
        self.returncode = returncode


@dataclass(frozen=True, slots=True)
class Streams:
    """What goes into a child process, and who hears what comes out.

    `stdin` is closed unless bytes are given. `on_line` gets each line of stderr as it comes; with `merge_output` stdout
    joins stderr, in order. `secrets` are masked in both, and in the command line where it is shown.
    """

    stdin: bytes | None = None
    on_line: Callable[[str], None] | None = None
    merge_output: bool = False
    secrets: Sequence[str] = ()


QUIET = Streams()


@dataclass(frozen=True, slots=True)
class Completed:
    """What a child process that ended left: its code, all of stdout, the tail of stderr."""

    returncode: int
    stdout: bytes
    tail: tuple[str, ...]

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode("utf-8", "replace")


def temporary_full_hint() -> str:
    """Return what to do where a program that works in the folder for temporary files finds a disk full."""
    return (
        f"free up space on the file system of `{files.temporary_directory()}`, or choose another folder for temporary "
        "files with `TMPDIR`; if the cache is on a full disk, choose another with `AIRFERRY_CACHE`; then rerun"
    )


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment that children get: the allow-list, `LC_ALL=C.UTF-8`, and `extra` over both."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in ALLOWED_ENVIRONMENT or name.startswith(ALLOWED_PREFIXES)
    }
    # programs that take it as it is, as Buildah does, fail on one that is not there; we and Python go on without it
    if "TMPDIR" in environment and not os.access(environment["TMPDIR"], os.W_OK | os.X_OK):
        del environment["TMPDIR"]
    environment["LC_ALL"] = "C.UTF-8"
    environment.update(extra or {})
    return environment


def find_program(name: str) -> Path | None:
    """Return the path of a program, looked for on `PATH` and in the system folders that users often lack."""
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def mask(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with every secret in it replaced by stars."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


@contextlib.contextmanager
def _starting(command: Sequence[str]) -> Iterator[None]:
    """Say which program could not be started."""
    try:
        yield
    except OSError as error:
        raise HostError(
            f"cannot start `{command[0]}`: {error.strerror}",
            program=command[0],
            hint=f"check that `{command[0]}` is installed and may be executed",
        ) from error


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    streams: Streams = QUIET,
    check: bool = True,
    emit: Emit = silent,
) -> Completed:
    """Run a child process to its end and return what it left.

    Stdout is kept whole and may not exceed 64 MiB; merged with stderr, none is kept. On a time-out, and when this
    thread is interrupted, the whole process group is terminated and, 10 s later, killed.

    Raises:
        HostError: the program does not exist or cannot be started.
        ProcessFailed: with `check`, the code is not 0; always, the time ran out or stdout is too long.
    """
    command = [str(part) for part in argv]
    printable = mask(shlex.join(command), streams.secrets)
    emit(CommandRun(printable))
    with _starting(command):
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if streams.stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if streams.merge_output else subprocess.PIPE,
                env=child_environment(environment),
                cwd=cwd,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            missing = cwd if cwd is not None and not cwd.exists() else command[0]
            raise HostError(f"`{missing}` was not found", hint="run `airferry doctor`", program=command[0]) from error

    tail: deque[str] = deque(maxlen=TAIL_LINES)
    stdout = bytearray()
    overflow = threading.Event()
    spoken = child.stdout if streams.merge_output else child.stderr
    workers = [threading.Thread(target=_read_lines, args=(spoken, tail, streams.on_line, streams.secrets), daemon=True)]
    if not streams.merge_output:
        workers.append(threading.Thread(target=_read_all, args=(child.stdout, stdout, overflow, child), daemon=True))
    if streams.stdin is not None:
        workers.append(threading.Thread(target=_feed, args=(child.stdin, streams.stdin), daemon=True))
    for worker in workers:
        worker.start()
    _live.add(child)
    try:
        returncode = _wait_for(child, timeout_s)
    except subprocess.TimeoutExpired:
        end_process_group(child)
        raise ProcessFailed(
            f"`{command[0]}` did not finish within {timeout_s:g} s",
            hint="rerun; finished work is reused",
            command=printable,
            returncode=None,
            tail=tail,
        ) from None
    except BaseException:
        end_process_group(child)
        raise
    finally:
        _live.discard(child)
    for worker in workers:
        worker.join(timeout=TERMINATE_GRACE_S)
    if overflow.is_set():
        raise ProcessFailed(
            f"`{command[0]}` wrote more than {MAX_STDOUT_BYTES} bytes to stdout",
            command=printable,
            returncode=returncode,
            tail=tail,
            hint="check that this is the intended program: `airferry --debug` shows the command",
        )
    if check and returncode != 0:
        raise ProcessFailed(
            f"`{mask(shlex.join(command[:3]), streams.secrets)} …` failed with exit code {returncode}: "
            + _last_words(tail),
            command=printable,
            returncode=returncode,
            tail=tail,
            hint="run the command by hand for all that it says: `airferry --debug` shows it",
        )
    return Completed(returncode, bytes(stdout), tuple(tail))


def start(
    argv: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server as a child whose output goes to `log`. End it with `end_process_group`.

    Raises:
        HostError: the program does not exist or cannot be started.
    """
    command = [str(part) for part in argv]
    with _starting(command), log.open("ab") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=child_environment(environment),
            cwd=cwd,
            start_new_session=True,
        )


def start_exchange(
    argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child that is spoken with over its standard input and output. End it with `end_exchange`.

    Raises:
        HostError: the program does not exist or cannot be started.
    """
    command = [str(part) for part in argv]
    with _starting(command):
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=child_environment(environment),
            # Ctrl-C reaches the terminal's whole foreground group; children end when our handler says so, in order
            start_new_session=True,
        )
    assert child.stdin is not None
    # a pipe holds 64 KiB by default (pipe(7)), so each block of 1 MiB would wake the other side up 16 times
    with contextlib.suppress(OSError):
        fcntl.fcntl(child.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    _live.add(child)
    return child


def end_exchange(child: subprocess.Popen[bytes]) -> None:
    """Kill a child that is spoken with, if it still runs, and close its ends; it holds nothing worth an orderly one."""
    _live.discard(child)
    child.kill()
    with child:
        pass


def end_process_group(child: subprocess.Popen[bytes]) -> None:
    """Terminate a child's process group and kill it if it has not ended 10 s later. Idempotent."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        # SIGTERM goes to the group even if its leader has ended, as grandchildren may live on; SIGKILL does not, as the
        # group's number may belong to others by then
        if child.poll() is not None and signal_number == signal.SIGKILL:
            return
        try:
            os.killpg(child.pid, signal_number)
        except (ProcessLookupError, PermissionError):
            child.poll()
            return
        try:
            _wait_for(child, TERMINATE_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _wait_for(child: subprocess.Popen[bytes], timeout_s: float) -> int:
    """Return the exit code of a child as soon as it ends; raise `TimeoutExpired` if it has not ended in time.

    `Popen.wait` with a time-out looks again and again, in the end 20 times a second: 25 ms lost on most processes.
    """
    if child.returncode is not None:
        return child.returncode
    try:
        handle = os.pidfd_open(child.pid)
    except OSError:
        # Linux before 5.3, a sandbox that forbids the call, or no file descriptor left
        return child.wait(timeout=timeout_s)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        ended = poll.poll(min(timeout_s * 1000, LONGEST_POLL_MS))
    finally:
        os.close(handle)
    return child.wait(timeout=None if ended else 0)


def end_all() -> None:
    """Terminate the process groups of all children under way in any thread, which then fail in their own callers."""
    # called from a signal's handler: it takes no lock, as the interrupted code may hold it, and waits for nothing
    for child in list(_live):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGTERM)


def _last_words(tail: Iterable[str]) -> str:
    lines = [line for line in tail if line.strip()]
    return lines[-1] if lines else "no message"


def _read_lines(
    stream: IO[bytes] | None,
    tail: deque[str],
    on_line: Callable[[str], None] | None,
    secrets: Sequence[str],
) -> None:
    if stream is None:
        return
    with stream:
        while raw := stream.readline(MAX_LINE_CHARACTERS):
            line = mask(raw.decode("utf-8", "replace").rstrip("\r\n"), secrets)
            tail.append(line)
            if on_line is not None:
                on_line(line)


def _read_all(
    stream: IO[bytes] | None, into: bytearray, overflow: threading.Event, child: subprocess.Popen[bytes]
) -> None:
    if stream is None:
        return
    with stream:
        while block := stream.read(1 << 16):
            if len(into) + len(block) > MAX_STDOUT_BYTES:
                overflow.set()
                end_process_group(child)
                return
            into += block


def _feed(stream: IO[bytes] | None, data: bytes) -> None:
    if stream is None:
        return
    try:
        with stream:
            stream.write(data)
    except BrokenPipeError:
        return


def runtime_directory() -> Path | None:
    """Return `XDG_RUNTIME_DIR`, which may be missing, or None where it is not set, or others can plant files in it.

    In `/tmp`, another user could have made what is looked for under a name that everyone knows.
    """
    folder = Path(chosen) if (chosen := os.environ.get("XDG_RUNTIME_DIR")) else None
    if folder is not None:
        with contextlib.suppress(OSError):
            found = folder.stat()
            # root may read all; what an unknown user (the kernel's overflow ID) owns is of another namespace
            is_foreign = os.geteuid() != 0 and found.st_uid not in (os.geteuid(), 65534)
            return None if is_foreign or found.st_mode & stat.S_IWOTH else folder
    return folder
