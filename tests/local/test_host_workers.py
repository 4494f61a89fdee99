"""Units of work, here and in processes: what they return, say and raise, and that nothing of them is left."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from airferry.errors import BuildError, HostError, IntegrityError, RegistryError
from airferry.events import Event, Notice, Progress
from airferry.host import process
from airferry.host.threads import Cancelled, parallel_map
from airferry.host.workers import processes
from airferry.host.workers.processes import LocalProcesses, open_workers
from airferry.host.workers.work import InPlace, Work, Workers, run_all
from units_of_work import unit


def children() -> set[int]:
    """Return the processes that this one has started and that are still there."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        # a thread of an earlier test may end meanwhile
        with suppress(FileNotFoundError, ProcessLookupError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


@pytest.fixture(scope="module")
def apart() -> Iterator[LocalProcesses]:
    """Workers in at most two processes, from the first byte on."""
    before = children()
    with LocalProcesses(2, start_from_bytes=0) as workers:
        yield workers
    assert children() <= before


@pytest.fixture(params=["in place", "apart"])
def workers(request: pytest.FixtureRequest, apart: LocalProcesses) -> Workers:
    return InPlace() if request.param == "in place" else apart


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    while not condition():
        time.sleep(0.01)


# --- the same here and there -----------------------------------------------------------------------------------------


def test_plain_data_goes_in_and_comes_out(workers: Workers) -> None:
    given = {"text": "é\n", "none": None, "list": [1, 2.5, True], "deep": {"a": [{}]}}
    with workers.begin(unit("process_of", given=given)) as running:
        answer = running.result()
    assert answer["given"] == given
    assert (answer["pid"] == os.getpid()) is isinstance(workers, InPlace)


def test_what_work_says_is_heard(workers: Workers) -> None:
    said: list[Event] = []
    with workers.begin(unit("process_of"), emit=said.append) as running:
        running.result()
    assert said == [Progress("looking", 1, 2), Notice("said", details=("one", "two"))]


def test_an_event_that_cannot_be_shown_ends_the_work(workers: Workers) -> None:
    def refuse(event: Event) -> None:
        raise BuildError("nobody listens")

    # said before the answer, which may be there when this is seen
    with workers.begin(unit("process_of"), emit=refuse) as running, pytest.raises(BuildError, match="nobody"):
        running.result()


def test_work_is_fed(workers: Workers) -> None:
    data = os.urandom(3 << 20)
    for _time in range(2):
        with workers.begin(unit("digest_of", fed=True, salt="x")) as running:
            for part in (data[:100], data[100 : 1 << 20], data[1 << 20 :]):
                running.write(part)
            assert running.result() == hashlib.sha256(b"x" + data).hexdigest()


def test_what_fed_work_raises_is_raised_while_it_is_fed(workers: Workers) -> None:
    with workers.begin(unit("refuse", fed=True)) as running, pytest.raises(IntegrityError, match="not a tar") as caught:
        for _block in range(1000):
            running.write(bytes(1 << 20))
    assert caught.value.hint == "take another"


def test_what_fed_work_raises_is_raised_at_the_end(workers: Workers) -> None:
    with workers.begin(unit("refuse", fed=True)) as running:
        running.write(b"x")
        with pytest.raises(IntegrityError, match="not a tar"):
            running.result()


def test_an_error_comes_with_its_class_its_fields_and_its_causes(workers: Workers) -> None:
    with workers.begin(unit("fail_for_a_reason", reason="disk")) as running, pytest.raises(BuildError) as caught:
        running.result()
    error = caught.value
    assert (error.message, error.hint, error.tail) == ("not built", "look there", ("last", "words"))
    cause = error.__cause__
    assert isinstance(cause, RegistryError) and (cause.status, cause.retry_after_s) == (503, 2.5)
    assert isinstance(cause.__cause__, OSError) and cause.__cause__.errno == errno.ENOSPC


def test_a_disk_without_room_is_told_as_such(workers: Workers) -> None:
    with workers.begin(unit("fill_the_disk")) as running, pytest.raises(OSError, match="No space left") as caught:
        running.result()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/cache/layer")


def test_results_come_in_the_given_order_and_the_largest_begins_first(workers: Workers) -> None:
    begun: list[int] = []

    class Noting:
        are_apart, threads = workers.are_apart, workers.threads

        def at_once(self, cores_each: int = 1) -> int:
            return 1

        def begin(self, work, *, emit):  # type: ignore[no-untyped-def]
            begun.append(work.size_bytes)
            return workers.begin(work, emit=emit)

    works = [unit("process_of", size_bytes=size, number=size) for size in (5, 90, 7)]
    assert [answer["number"] for answer in run_all(Noting(), works)] == [5, 90, 7]
    assert begun == [90, 7, 5]


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_process_is_used_again_and_there_are_never_more_than_allowed(apart: LocalProcesses) -> None:
    works = [unit("process_of") for _number in range(8)]
    pids = {answer["pid"] for answer in parallel_map(lambda work: _run(apart, work), works, jobs=8)}
    assert os.getpid() not in pids and len(pids) <= 2


def _run(workers: Workers, work):  # type: ignore[no-untyped-def]
    with workers.begin(work) as running:
        return running.result()


def test_a_little_work_starts_no_process() -> None:
    before = children()
    with LocalProcesses(2, start_from_bytes=1000) as workers:
        for size in (400, 500):
            assert _run(workers, unit("process_of", size_bytes=size))["pid"] == os.getpid()
        assert children() == before
        assert _run(workers, unit("process_of", size_bytes=101))["pid"] != os.getpid()


def test_work_in_place_leaves_to_processes_what_it_wants_to_leave_to_others(apart: LocalProcesses) -> None:
    assert _run(InPlace(nested=apart), unit("ask_others"))["pid"] not in (os.getpid(), None)
    assert _run(InPlace(), unit("ask_others"))["pid"] == os.getpid()
    inside = _run(apart, unit("ask_others"))["pid"]
    assert inside in children(), "a process starts no others"


def test_a_mistake_shows_where_it_was_made(apart: LocalProcesses) -> None:
    with apart.begin(unit("fail")) as running, pytest.raises(RuntimeError, match="in fail\n"):
        running.result()


def test_the_cause_of_an_error_may_be_a_mistake(apart: LocalProcesses) -> None:
    with apart.begin(unit("fail_for_a_reason", reason="mistake")) as running, pytest.raises(BuildError) as caught:
        running.result()
    assert "list index" in str(caught.value.__cause__ and caught.value.__cause__.__cause__) or "cannot fit" in str(
        caught.value.__cause__ and caught.value.__cause__.__cause__
    )


def test_too_little_memory_is_an_error_of_the_host(apart: LocalProcesses) -> None:
    with apart.begin(unit("use_much_memory")) as running, pytest.raises(HostError, match="too little memory"):
        running.result()


def test_a_process_that_is_killed_names_its_work_and_others_go_on(apart: LocalProcesses) -> None:
    with apart.begin(unit("die")) as running, pytest.raises(HostError) as caught:
        running.result()
    assert caught.value.message == "a worker process was killed by SIGKILL while it worked on layer `sha256:11`"
    assert "--jobs" in str(caught.value.hint) and "--memory" in str(caught.value.hint)
    assert _run(apart, unit("process_of"))["pid"] != os.getpid()


def test_a_process_that_was_killed_while_it_had_nothing_to_do_costs_nothing(apart: LocalProcesses) -> None:
    for pid in {_run(apart, unit("process_of"))["pid"] for _time in range(2)}:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all(one.ended for one in apart._idle if one.child.pid == pid))  # noqa: B023
    assert _run(apart, unit("process_of"))["pid"] != os.getpid()


def test_a_process_that_hangs_is_ended_and_its_work_named(tmp_path: Path) -> None:
    before = children()
    with LocalProcesses(1, start_from_bytes=0, hangs_after_s=0.01) as workers:
        with workers.begin(unit("stop", folder=str(tmp_path))) as running, pytest.raises(HostError) as caught:
            running.result()
        assert "hangs" in caught.value.message and "layer `sha256:11`" in caught.value.message
        assert children() == before
    # one that takes no more of what it is fed hangs as well
    with LocalProcesses(1, start_from_bytes=0, hangs_after_s=0.01) as workers:
        fed = unit("stop", fed=True, folder=str(tmp_path))
        with workers.begin(fed) as running, pytest.raises(HostError, match="hangs"):
            for _block in range(1000):
                running.write(bytes(1 << 20))
    assert children() == before


def test_who_was_stopped_does_not_take_others_for_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = itertools.count(step=3600.0)
    stop = threading.Event()
    with LocalProcesses(1, start_from_bytes=0) as workers:
        monkeypatch.setattr(processes, "LOOK_S", 0.005)
        # Ctrl-Z between one look and the next, again and again
        monkeypatch.setattr(processes.clock, "monotonic_s", lambda: next(hours))
        work = unit("stop", folder=str(tmp_path))
        threading.Timer(0.1, stop.set).start()
        with pytest.raises(Cancelled):
            parallel_map(lambda work: _run(workers, work), [work], jobs=1, cancelled=stop)


def test_a_process_that_no_signal_ends_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits in the kernel for a disk that does not answer: that it hangs could not be said."""
    monkeypatch.setattr(processes, "ENDS_WITHIN_S", 0.01)
    kill = subprocess.Popen.kill
    with LocalProcesses(1, start_from_bytes=0, hangs_after_s=0.01) as workers:
        monkeypatch.setattr(subprocess.Popen, "kill", lambda _child: None)
        with pytest.raises(HostError, match="hangs"), workers.begin(unit("stop", folder=str(tmp_path))) as running:
            child = running._process.child  # type: ignore[attr-defined]
            running.result()
    assert child not in process._live
    kill(child)
    with child:
        pass


def test_a_process_that_cannot_be_heard_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    read = processes._Process._read

    def fail(self: processes._Process, size: int) -> bytes:
        if size != processes.FRAME.size:
            raise MemoryError
        return read(self, size)

    monkeypatch.setattr(processes._Process, "_read", fail)
    before = children()
    with LocalProcesses(1, start_from_bytes=0) as workers:
        with pytest.raises(MemoryError):
            _run(workers, unit("process_of"))
        assert children() == before


def test_work_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    before = children()
    with LocalProcesses(1, start_from_bytes=0) as workers:
        with workers.begin(unit("stop", folder=str(tmp_path))):
            wait_for(lambda: any(tmp_path.iterdir()))
        assert children() == before


def test_a_failure_beside_it_gives_work_up(tmp_path: Path) -> None:
    before = children()

    def work(number: int) -> None:
        if number:
            _run(workers, unit("stop", folder=str(tmp_path)))
        wait_for(lambda: any(tmp_path.iterdir()))
        raise BuildError("the other one")

    with LocalProcesses(2, start_from_bytes=0) as workers:
        with pytest.raises(BuildError, match="the other one"):
            parallel_map(work, [0, 1], jobs=2)
        assert children() == before


def test_who_waits_for_a_process_can_be_told_to_give_up(tmp_path: Path) -> None:
    with LocalProcesses(1, start_from_bytes=0) as workers, workers.begin(unit("stop", folder=str(tmp_path))):
        stop = threading.Event()
        threading.Timer(0.05, stop.set).start()
        with pytest.raises(Cancelled):
            parallel_map(lambda work: _run(workers, work), [unit("process_of")], jobs=1, cancelled=stop)


def test_work_waits_until_there_is_memory_for_it_and_alone_it_never_waits(tmp_path: Path) -> None:
    large = Work(unit("process_of").function, {}, "it", memory_bytes=1 << 50)
    with LocalProcesses(2, memory_bytes=1 << 30, start_from_bytes=0) as workers:
        assert _run(workers, large)["pid"] != os.getpid()
        stop = threading.Event()
        with workers.begin(unit("process_of")) as running:
            threading.Timer(0.05, stop.set).start()
            with pytest.raises(Cancelled):
                parallel_map(lambda work: _run(workers, work), [large], jobs=1, cancelled=stop)
            assert _run(workers, unit("process_of"))["pid"] != running.result()["pid"], "there is room for more"
        assert _run(workers, large)["pid"] != os.getpid()


def test_an_interrupted_program_ends_its_processes(tmp_path: Path) -> None:
    with LocalProcesses(2, start_from_bytes=0) as workers, workers.begin(unit("stop", folder=str(tmp_path))) as running:
        wait_for(lambda: any(tmp_path.iterdir()))
        process.end_all()
        with pytest.raises(HostError, match="was killed by SIGTERM"):
            running.result()


PARENT = """
import os, sys
sys.path[:0] = {path!r}
from airferry.host.workers.processes import LocalProcesses
from units_of_work import unit
with LocalProcesses(1, start_from_bytes=0) as workers, workers.begin(unit("stop", folder={folder!r})) as running:
    running.result()
"""


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    program = PARENT.format(path=[*sys.path], folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        wait_for(lambda: any(tmp_path.iterdir()))
        parent.kill()
    (pid,) = (path.name for path in tmp_path.iterdir())
    wait_for(lambda: not Path("/proc", pid).exists() or ") Z " in Path("/proc", pid, "stat").read_text())


def test_nothing_is_loaded_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colorsys.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with LocalProcesses(1, start_from_bytes=0) as workers:
        assert not _run(workers, unit("where")).startswith(str(tmp_path))


def test_a_process_that_cannot_start_names_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    with LocalProcesses(1, start_from_bytes=0) as workers:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(HostError) as caught, workers.begin(unit("process_of")):
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.message == "cannot start a worker process for layer `sha256:11`: Too many open files"
        assert "ulimit -n" in str(caught.value.hint)

        def refuse(*_: object, **__: object) -> None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(HostError, match="sha256:11`: Resource temporarily unavailable"):
            _run(workers, unit("process_of"))
        monkeypatch.undo()
        monkeypatch.setattr(threading.Thread, "start", _no_thread)
        with pytest.raises(HostError, match="sha256:11`: can't start new thread"):
            _run(workers, unit("process_of"))
        monkeypatch.undo()
        assert _run(workers, unit("process_of"))["pid"] != os.getpid(), "the next one may start"
    assert children() == before


@pytest.mark.parametrize("fed", [False, True])
def test_a_process_that_may_have_no_thread_says_so(fed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the limit of processes is reached between its start and that of its thread."""
    cannot = "import threading; threading.Thread.start = lambda self: 1 // 0\n"
    monkeypatch.setattr(processes, "_BOOT", cannot + processes._BOOT)
    before = children()
    with LocalProcesses(1, start_from_bytes=0) as workers:
        for _time in range(2):
            with pytest.raises(HostError) as caught, workers.begin(unit("process_of", fed=fed)) as running:
                running.result()
            assert "layer `sha256:11`: ZeroDivisionError: " in caught.value.message
            assert "ulimit -u" in str(caught.value.hint)
    assert children() == before


def _no_thread(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_threads_that_the_host_does_not_allow_are_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", _no_thread)
    with pytest.raises(HostError, match="does not allow as many threads"):
        parallel_map(str, [1, 2], jobs=2)


@pytest.mark.parametrize(
    ("cores", "jobs", "memory_gib", "expected"),
    [
        (1, None, 8, 1),
        (2, None, 8, 1),
        (4, None, 8, 2),
        (16, None, 8, 8),
        (16, 3, 8, 3),
        (16, 1, 8, 1),
        (2, 8, 8, 1),
        (64, None, 64, 11),
        (16, None, 1, 2),
        (16, None, 0.1, 1),
    ],
)
def test_how_many_processes_there_are(
    cores: int, jobs: int | None, memory_gib: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "usable_cores", lambda: cores)
    monkeypatch.setattr("airferry.host.workers.work.usable_cores", lambda: cores)
    monkeypatch.setattr(processes.memory, "available_bytes", lambda: int(memory_gib * (1 << 30)))
    with open_workers(jobs=jobs) as workers:
        assert workers.at_once() == expected
        assert workers.are_apart is (expected > 1)
    with open_workers(jobs=jobs, memory_bytes=64 << 30) as workers:
        assert workers.are_apart is (cores > 2 and jobs != 1)
