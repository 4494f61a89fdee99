"""Work in processes of this host: as many as cores and memory allow, started when there is work for them, and kept.

They have no memory in common, so nothing that one does in Python makes another wait for the interpreter's lock. One
that is killed or hangs costs the work that it was doing, and no other.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

from airferry.errors import HostError
from airferry.events import Emit, silent
from airferry.host import clock, memory, process
from airferry.host.parsing import parse_json
from airferry.host.threads import raise_if_cancelled, usable_cores
from airferry.host.workers.child import ASKED, FED, FED_ALL, FRAME, RAISED, RETURNED, TOLD, event_from
from airferry.host.workers.failures import failure_from
from airferry.host.workers.work import InPlace, Running, Work, Workers

# as long as a run has no more to read than this, starting processes would take longer than they save
START_FROM_BYTES = 64 << 20
# what a process takes at most while it reads a layer, besides compressing it; measured
PROCESS_BYTES = 180 << 20
DEFAULT_MEMORY_BYTES = 2 << 30
MOST_PACKING_THREADS = 8
# a disk that is slow, or a layer of zeros that inflates to a hundred times its size, still says something in this time
HANGS_AFTER_S = 600.0
LOOK_S = 0.2
# who looked last so long ago was stopped meanwhile, by Ctrl-Z say, and cannot tell how long others were silent
STOPPED_S = 5.0
# a process that waits for a disk that does not answer is not ended by any signal before the disk does
ENDS_WITHIN_S = 2.0
# isolated, with the parent's search path, so that no folder that happens to be the current one is looked in
_BOOT = """
import json, os, struct, sys
sys.path[:] = json.loads(sys.argv[1])
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
told = os.dup(1)
try:
    from airferry.host.workers.child import main
    main()
except BaseException as error:
    reason = json.dumps({"ended": f"{type(error).__name__}: {error}"}).encode()
    os.write(told, struct.pack("<cI", b"!", len(reason)) + reason)
    os._exit(1)
"""
_LIMITS_HINT = (
    "raise the limits of processes, files and memory (`ulimit -u`, `ulimit -n`, `ulimit -v`), or rerun with fewer "
    "`--jobs`"
)
# glibc gives each thread memory of its own to allocate from, and returns little of it
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}


@contextmanager
def open_workers(*, jobs: int | None = None, memory_bytes: int | None = None) -> Iterator[Workers]:
    """Give what runs the work of a run: at most `jobs` units of it at a time, in at most that much memory.

    On few cores work is done in place, as processes would only cost; what would hold the interpreter's lock for long
    runs in a process even there.
    """
    cores = usable_cores()
    budget = memory_bytes or min(DEFAULT_MEMORY_BYTES, memory.available_bytes() // 2)
    at_once = max(1, min(jobs or cores // 2, budget // PROCESS_BYTES))
    if at_once > 1 and cores > 2:
        with LocalProcesses(at_once, memory_bytes=budget) as processes:
            yield processes
    else:
        with LocalProcesses(max(2, cores), start_from_bytes=0) as processes:
            yield InPlace(nested=processes, limit=at_once)


class LocalProcesses:
    """Runs work in processes of this host, at most `limit` of them. Safe to use from threads. Leaving ends them all."""

    def __init__(
        self,
        limit: int,
        *,
        memory_bytes: int | None = None,
        start_from_bytes: int = START_FROM_BYTES,
        hangs_after_s: float = HANGS_AFTER_S,
    ) -> None:
        """No process is started before more than `start_from_bytes` were to be read.

        Work waits until it fits into `memory_bytes` next to the work that is under way; alone, it never waits.
        """
        self._limit = limit
        self._memory_bytes = memory_bytes
        self._taken_bytes: list[int] = []
        self._start_from_bytes = start_from_bytes
        self._hangs_after_s = hangs_after_s
        self._given_bytes = 0
        self._all: set[_Process] = set()
        self._starting = 0
        self._idle: list[_Process] = []
        self._changed = threading.Condition()
        self._here = InPlace(nested=self)

    def at_once(self, cores_each: int = 1) -> int:
        """Return one more than what keeps all cores busy, as work begins and ends with less; as processes allow."""
        return min(self._limit, usable_cores() // cores_each + 1)

    @property
    def are_apart(self) -> bool:
        """It goes on by itself."""
        return True

    @property
    def threads(self) -> int | None:
        """Twice a fair share of the cores, as threads of compression wait for their input half of the time."""
        return max(2, min(MOST_PACKING_THREADS, 2 * usable_cores() // self._limit))

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._all:
            one.child.kill()
        for one in list(self._all):
            one.end()

    @contextmanager
    def begin(self, work: Work, *, emit: Emit = silent) -> Iterator[Running]:
        """Begin work in a process; in this one as long as there is little.

        Raises:
            HostError: no process can be started; the message names what the work is on.
        """
        if self._is_little(work):
            with self._here.begin(work, emit=emit) as here:
                yield here
            return
        with self._room_for(work):
            yield from self._run(work, emit)

    def _run(self, work: Work, emit: Emit) -> Iterator[Running]:
        taken = self._take(work)
        running = _InProcess(taken, work, emit, self._hangs_after_s)
        try:
            running.ask()
            yield running
        finally:
            self._release(taken, reusable=running.is_over)

    @contextmanager
    def _room_for(self, work: Work) -> Iterator[None]:
        needed = PROCESS_BYTES + work.memory_bytes
        with self._changed:
            limit = self._memory_bytes
            while limit is not None and self._taken_bytes and sum(self._taken_bytes) + needed > limit:
                raise_if_cancelled()
                self._changed.wait(LOOK_S)
            self._taken_bytes.append(needed)
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes.remove(needed)
                self._changed.notify_all()

    def _is_little(self, work: Work) -> bool:
        with self._changed:
            if work.size_bytes is not None:
                self._given_bytes += work.size_bytes
                return self._given_bytes < self._start_from_bytes
            return False

    def _take(self, work: Work) -> _Process:
        with self._changed:
            while True:
                while self._idle:
                    if not (found := self._idle.pop()).ended:
                        return found
                    # killed while it had nothing to do, which costs nothing
                    found.end()
                    self._all.discard(found)
                if len(self._all) + self._starting < self._limit:
                    self._starting += 1
                    break
                raise_if_cancelled()
                self._changed.wait(LOOK_S)
        started = None
        try:
            started = _start(work)
            return started
        finally:
            with self._changed:
                self._starting -= 1
                if started is not None:
                    self._all.add(started)
                self._changed.notify_all()

    def _release(self, used: _Process, *, reusable: bool) -> None:
        if not reusable:
            used.end()
        with self._changed:
            if reusable:
                self._idle.append(used)
            else:
                self._all.discard(used)
            self._changed.notify_all()


def _start(work: Work) -> _Process:
    # not `multiprocessing`: `fork` copies locks that other threads hold, `spawn` imports the main program again, and
    # its queues need semaphores, which a host without /dev/shm lacks.
    # `-I` keeps PYTHON* variables and the current folder out; the child gets our `sys.path` as an argument instead
    argv = [sys.executable, "-I", *(["-B"] if sys.dont_write_bytecode else []), "-c", _BOOT, json.dumps(sys.path)]
    try:
        return _Process(process.start_exchange(argv, environment=_ENVIRONMENT))
    except (HostError, RuntimeError) as error:
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else str(error)
        raise HostError(
            f"cannot start a worker process for {work.what}: {reason}",
            hint=_LIMITS_HINT,
        ) from error


class _Process:
    """A worker process, and the thread that hears what it says."""

    def __init__(self, child: process.Child) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self.child = child
        self._input, self._output = child.stdin, child.stdout
        os.set_blocking(self._input.fileno(), False)
        self._writable = select.poll()
        self._writable.register(self._input, select.POLLOUT)
        self.changed = threading.Condition()
        self.answer: tuple[bytes, bytes] | None = None
        self.ended = False
        self.heard_s = clock.monotonic_s()
        self.emit: Emit = silent
        self.unheard: Exception | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        try:
            self._listener.start()
        except RuntimeError:
            process.end_exchange(child)
            raise

    def end(self) -> None:
        """Kill it. What it was doing has left nothing but temporary files. Idempotent."""
        self.child.kill()
        # its output is closed only when it is read no more
        self._listener.join(ENDS_WITHIN_S)
        if self._listener.is_alive():
            process.leave_exchange(self.child)
        else:
            process.end_exchange(self.child)

    def can_write(self) -> bool:
        """Wait a moment until it takes more."""
        return bool(self._writable.poll(LOOK_S * 1000))

    def write_some(self, data: memoryview) -> int:
        """Return how many bytes it took; 0 if it takes none now."""
        return self._input.write(data) or 0

    def _listen(self) -> None:
        try:
            while len(head := self._read(FRAME.size)) == FRAME.size:
                kind, size = FRAME.unpack(head)
                content = self._read(size)
                if len(content) < size:
                    break
                self.heard_s = clock.monotonic_s()
                if kind == TOLD:
                    self._hand_on(content)
                    continue
                with self.changed:
                    self.answer = (kind, content)
                    self.changed.notify_all()
        except Exception as error:
            # too little memory for what it says: it would wait for ever to be heard
            self.unheard = error
            self.child.kill()
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def _hand_on(self, content: bytes) -> None:
        try:
            self.emit(event_from(parse_json(content)))
        except Exception as error:
            # it ends the work, as it would if the work said it in this process
            self.unheard = error

    def _read(self, size: int) -> bytes:
        parts = []
        while size and (part := self._output.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _InProcess:
    """A unit of work in a process."""

    def __init__(self, taken: _Process, work: Work, emit: Emit, hangs_after_s: float) -> None:
        self._process = taken
        self._work = work
        self._hangs_after_s = hangs_after_s
        taken.answer, taken.emit, taken.heard_s = None, emit, clock.monotonic_s()
        self._looked_s = clock.monotonic_s()
        self.is_over = False

    def ask(self) -> None:
        """Send the request."""
        work = self._work
        asked = {"function": work.function, "arguments": dict(work.arguments), "what": work.what, "fed": work.fed}
        self._send(ASKED, json.dumps(asked).encode())

    def write(self, data: bytes) -> None:
        """Hand bytes over."""
        self._send(FED, data)

    def result(self) -> Any:
        """Return what came of it."""
        if self._work.fed:
            self._send(FED_ALL, b"")
        kind, content = self._await_answer()
        self._process.emit = silent
        # a process whose work failed may have bytes before it that it never read
        self.is_over = kind == RETURNED or not self._work.fed
        if kind == RAISED:
            self._raise(content)
        return parse_json(content, max_values=None)

    def _send(self, kind: bytes, content: bytes) -> None:
        self._looked_s = clock.monotonic_s()
        for part in (FRAME.pack(kind, len(content)), content):
            rest = memoryview(part)
            while rest:
                if self._process.answer is not None or self._process.ended:
                    # it has failed before it had all, and says why
                    self._fail_early()
                try:
                    written = self._process.write_some(rest)
                except OSError:
                    self._fail_early()
                rest = rest[written:]
                if written:
                    self._process.heard_s = clock.monotonic_s()
                elif not self._process.can_write():
                    self._look()

    def _fail_early(self) -> None:
        kind, content = self._await_answer()
        if kind == RAISED:
            self._raise(content)
        raise HostError(
            f"a worker process took only a part of {self._work.what}",
            hint="report this bug with the output of `--debug`",
        )

    def _raise(self, content: bytes) -> NoReturn:
        told = parse_json(content, max_values=None)
        if "ended" not in told:
            raise failure_from(told)
        self.is_over = False
        raise HostError(f"a worker process cannot go on with {self._work.what}: {told['ended']}", hint=_LIMITS_HINT)

    def _await_answer(self) -> tuple[bytes, bytes]:
        taken = self._process
        self._looked_s = clock.monotonic_s()
        while True:
            with taken.changed:
                if taken.answer is not None and taken.unheard is None:
                    return taken.answer
                if taken.ended:
                    break
                taken.changed.wait(LOOK_S)
            self._look()
        if taken.unheard is not None:
            raise taken.unheard
        code = taken.child.wait()
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"exited early with code {code}"
        raise HostError(
            f"a worker process {how} while it worked on {self._work.what}",
            hint="rerun: finished work is kept; if the host ran out of memory, use fewer `--jobs` or less `--memory`",
        )

    def _look(self) -> None:
        """Give up work that is not wanted any more, or that hangs."""
        raise_if_cancelled()
        if self._process.unheard is not None:
            raise self._process.unheard
        now = clock.monotonic_s()
        if now - self._looked_s > STOPPED_S:
            self._process.heard_s = now
        self._looked_s = now
        silent_s = now - self._process.heard_s
        if silent_s > self._hangs_after_s:
            raise HostError(
                f"a worker process hangs: for {silent_s:.0f} s it did nothing for {self._work.what}",
                hint="rerun: finished work is kept; check the disks of the cache, which may not answer",
            )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
