"""Runs cases in a child process with bounds: seconds a case, memory, and what a parser may raise.

A case is over after 5 s of processor time, or 20 s by the clock, as the machine may be busy: from within, by a signal,
or, where no Python code runs any more, by the parent, which ends the child. The case that was being run lies in memory
that both share, so that it is known in any event.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from mutation import MAX_CASE_BYTES, Mutator, generated

import airferry
from airferry.errors import AirferryError
from airferry.host import files
from airferry.host.parsing import Malformed
from airferry.host.process import ProcessFailed

CASE_CPU_S = 5.0
CASE_CLOCK_S = 20.0
PARENT_WAITS_S = 60.0
WAIT_S = 0.05
# beyond what a child has when it begins; the largest thing that is read whole is a document of 16 MiB
MEMORY_BYTES = 1 << 30
MAX_MESSAGE_CHARACTERS = 64 * 1024
TRACED = 16
GENERATED = 25
SHARED_BYTES = MAX_CASE_BYTES + 16
# by its own folder: a user, and so a checkout's path, may be called airferry as well
PACKAGE = f"{Path(airferry.__file__).parent}{os.sep}"


@dataclass(frozen=True)
class Target:
    """What reads bytes of others, and valid documents for it. `repair` makes of changed bytes what gets further in.

    `also` are errors of its contract besides AirferryError and Malformed. The first `prefix` bytes of a case say what
    the document behind them is, and are left out of what is done to documents.
    """

    parse: Callable[[bytes], object]
    seeds: Sequence[bytes]
    repair: Callable[[bytes], bytes] | None = None
    also: tuple[type[Exception], ...] = ()
    prefix: int = 0


@dataclass
class Row:
    """What became of the cases of one parser. Faults are by their place, with a case for each."""

    name: str
    cases: int = 0
    refused: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    grown_mib: float = 0.0
    seconds: float = 0.0
    faults: dict[str, list[Any]] = field(default_factory=dict)

    def fault(self, what: str, data: bytes) -> None:
        """Note a fault, the smallest case of its kind."""
        count, known = self.faults.get(what, [0, None])
        smaller = known is None or len(data) < len(bytes.fromhex(known))
        self.faults[what] = [count + 1, data.hex() if smaller else known]


class OutOfTime(BaseException):
    """A case took too long."""


class Running:
    """The cases of one parser, which are run in a child from now on."""

    def __init__(self, name: str, make: Callable[[], Target], *, count: int, number: int) -> None:
        """Start the child."""
        self._name = name
        self._shared = mmap.mmap(-1, SHARED_BYTES)
        self._folder = tempfile.TemporaryDirectory(prefix="airferry-fuzz-", dir=_memory_disk())
        self._result = Path(self._folder.name, "row.json")
        self._seen, self._since = -1, time.monotonic()
        self._child = os.fork()
        if self._child == 0:
            code = 1
            try:
                os.setsid()
                Path(self._folder.name, "work").mkdir()
                os.chdir(Path(self._folder.name, "work"))
                row = _child(name, make, self._shared, count, number)
                self._result.write_text(json.dumps(asdict(row)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    def row(self) -> Row | None:
        """Return what became of the cases, whatever happened to the child; None while it runs."""
        ended = self._ended()
        if ended is None:
            return None
        try:
            if ended == 0:
                return Row(**json.loads(self._result.read_text()))
        finally:
            self._folder.cleanup()
        row = Row(self._name)
        row.cases = int.from_bytes(self._shared[:8], "little")
        size = int.from_bytes(self._shared[8:16], "little")
        row.fault(f"child ended with {ended}", self._shared[16 : 16 + size])
        return row

    def _ended(self) -> str | int | None:
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        current = int.from_bytes(self._shared[:8], "little")
        if current != self._seen:
            self._seen, self._since = current, time.monotonic()
        elif time.monotonic() - self._since > PARENT_WAITS_S:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            return f"a hang of more than {PARENT_WAITS_S:.0f} s"
        return None


def run_cases(name: str, make: Callable[[], Target], *, count: int, number: int) -> Row:
    """Run the cases of one parser in a child, and return what became of them, whatever happens to the child."""
    running = Running(name, make, count=count, number=number)
    while (row := running.row()) is None:
        time.sleep(WAIT_S)
    return row


def _memory_disk() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _child(name: str, make: Callable[[], Target], shared: mmap.mmap, count: int, number: int) -> Row:
    home = files.ensure_directory(Path.cwd() / "home")
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "AIRFERRY_CACHE", "TMPDIR"):
        os.environ[variable] = str(home)
    target = make()
    row = Row(name)
    began = time.perf_counter()
    judge = _Judge(row, target, shared)
    for data in target.seeds:
        judge.take(data)
    if row.faults or not row.accepted:
        # seeds that are refused would leave most of the code untouched
        row.fault(f"no seed is accepted: {judge.last}", target.seeds[0])
        return row
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    allowed = _address_space_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    mutator = Mutator(target.seeds, source=random.Random(f"{number} {name}"), prefix=target.prefix)
    made_up = count // GENERATED
    generated(target.seeds, min(made_up, count - row.cases), number=number, take=judge.take, prefix=target.prefix)
    covered = _Covered()
    while row.cases < count:
        data = mutator.next()
        if target.repair is not None and row.cases % 4:
            data = target.repair(data)[:MAX_CASE_BYTES]
        if row.cases % TRACED:
            judge.take(data)
        elif covered.grows(lambda data=data: judge.take(data)):
            mutator.keep(data)
    row.seconds = time.perf_counter() - began
    row.grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    return row


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class _Judge:
    """Runs one case at a time and notes what became of it."""

    def __init__(self, row: Row, target: Target, shared: mmap.mmap) -> None:
        self._row = row
        self._target = target
        self._shared = shared
        self.last = ""
        self._allowed = (AirferryError, Malformed, *target.also)
        signal.signal(signal.SIGPROF, _out_of_time)
        signal.signal(signal.SIGALRM, _out_of_time)

    def take(self, data: bytes) -> None:
        """Run a case."""
        row = self._row
        row.cases += 1
        self._shared[:16] = row.cases.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        self._shared[16 : 16 + len(data)] = data
        began = time.perf_counter()
        try:
            try:
                signal.setitimer(signal.ITIMER_PROF, CASE_CPU_S)
                signal.setitimer(signal.ITIMER_REAL, CASE_CLOCK_S)
                self._target.parse(data)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
        except self._allowed as error:
            row.refused += 1
            self.last = str(error)[:300]
            if (wrong := _wrong_with(error, size=len(data))) is not None:
                row.fault(f"{wrong}: {_place(error)}", data)
        except OutOfTime as error:
            row.fault(f"more than {CASE_CPU_S:.0f} s: {_place(error)}", data)
        except BaseException as error:
            row.fault(f"{type(error).__name__}: {_place(error)}", data)
        else:
            row.accepted += 1
        row.slowest_s = max(row.slowest_s, time.perf_counter() - began)


def _wrong_with(error: Exception, *, size: int) -> str | None:
    """Tell what is wrong with a refusal, if anything is."""
    if isinstance(error, AirferryError) and not isinstance(error, ProcessFailed) and error.exit_code in (0, 1):
        return f"exit code {error.exit_code}"
    if len(str(error)) > MAX_MESSAGE_CHARACTERS + 8 * size:
        return "a message far longer than the document"
    return None


def _place(error: BaseException) -> str:
    """Return where an error came from: the innermost line of airferry."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
    if not frames:
        return str(error)[:100]
    frame = frames[-1]
    return f"{frame.filename.removeprefix(PACKAGE)}:{frame.lineno}"


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise OutOfTime


class _Covered:
    """The lines of airferry that were reached. Looked at for a part of the cases, as that takes long."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()

    def grows(self, work: Callable[[], None]) -> bool:
        """Do work and tell whether it reached a line that none reached before."""
        before = len(self._seen)
        sys.settrace(self._enter)
        try:
            work()
        finally:
            sys.settrace(None)
        return len(self._seen) > before

    def _enter(self, frame: FrameType, _event: str, _value: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, _value: Any) -> Any:
        if event == "line":
            self._seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line
