"""A cache that several processes use at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from airferry.events import Event, Notice
from airferry.host import files, locks
from airferry.host.locks import Thing, clear_abandoned, clear_unheld, making, own_folder
from airferry.host.threads import parallel_map
from held_locks import taken, until

BEGIN = "import sys, time; from pathlib import Path; from airferry.host.locks import *; cache = Path(sys.argv[1])\n"
HOLD = "with making(cache, Thing.LAYER, 'one', doing='x'), own_folder(cache / 'scratch'):\n"
ALL_MAKE = """
for _ in range(30):
    with making(cache, Thing.LAYER, 'one', doing='x'):
        number = int((cache / 'count').read_text())
        time.sleep(0.001)
        (cache / 'count').write_text(str(number + 1))
"""


@contextmanager
def process(cache: Path, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """Give another process, once it has done what comes before its first `print`, which begins with `ready`."""
    argv = [sys.executable, "-c", BEGIN + code, str(cache)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        try:
            yield child
        finally:
            child.kill()


def test_one_makes_a_thing_while_another_waits_for_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAITING_SAID_AFTER_S", 0)
    events: list[Event] = []
    order: list[str] = []
    with process(tmp_path, HOLD + "    print('ready', flush=True); sys.stdin.read()") as other:

        def wait() -> None:
            with making(tmp_path, Thing.LAYER, "one", doing="reading layer `one`", emit=events.append):
                order.append("made")

        waiting = threading.Thread(target=wait)
        waiting.start()
        with making(tmp_path, Thing.LAYER, "two", doing="x", emit=events.append):
            until(lambda: len(events) > 0)
        with making(tmp_path, Thing.WHEEL, "one", doing="x", emit=events.append):
            order.append("others")
        # the kernel frees what a killed process held
        other.kill()
        waiting.join(timeout=120)
    assert order == ["others", "made"]
    (said,) = events
    assert isinstance(said, Notice)
    assert said.text.startswith(f"waiting for another airferry process that is reading layer `one` (lock `{tmp_path}")
    assert taken(tmp_path) == []


def test_no_two_processes_make_a_thing_at_once(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    with ExitStack() as stack:
        for _ in range(3):
            child = stack.enter_context(process(tmp_path, "print('ready', flush=True)\n" + ALL_MAKE))
            stack.callback(child.wait, 300)
    assert (tmp_path / "count").read_text() == "90"
    assert taken(tmp_path) == []


def test_a_wait_ends_when_the_work_is_given_up(tmp_path: Path) -> None:
    waits = threading.Event()

    def work(item: str) -> None:
        if item == "fails":
            waits.wait(120)
            raise KeyError(item)
        # what a thread starts is given up with it
        parallel_map(wait, [1], jobs=1)

    def wait(_: int) -> None:
        waits.set()
        with making(tmp_path, Thing.LAYER, "one", doing="x"):
            raise AssertionError

    with process(tmp_path, HOLD + "    print('ready', flush=True); sys.stdin.read()"), pytest.raises(KeyError):
        parallel_map(work, ["waits", "fails"], jobs=2)


def test_files_of_locks_that_killed_processes_left_go_and_those_in_use_stay(tmp_path: Path) -> None:
    with process(tmp_path, HOLD + "    print('ready', flush=True); sys.stdin.read()") as other:
        clear_unheld(tmp_path / locks.LOCKS)
        assert len(taken(tmp_path)) == 1
        other.kill()
        other.wait()
        clear_unheld(tmp_path / locks.LOCKS)
    assert taken(tmp_path) == []


def test_only_folders_of_killed_processes_are_cleared(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / f"{files.TEMPORARY_PREFIX}older" / "deep").mkdir(parents=True)
    (scratch / f"{files.TEMPORARY_PREFIX}lone.lock").touch()
    (scratch / "mine").mkdir()
    with process(tmp_path, HOLD + "    print('ready', flush=True); sys.stdin.read()") as other:
        with own_folder(scratch) as own:
            (own / "file").touch()
            assert clear_abandoned(scratch) == 1
            assert (own / "file").exists()
            assert len(list(scratch.iterdir())) == 5, "two folders with their locks, and what is not ours"
        other.send_signal(signal.SIGKILL)
        other.wait()
        removed: list[Path] = []
        assert clear_abandoned(scratch, remove=lambda path: (removed.append(path), files.remove_tree(path))) == 1
    assert [path.parent for path in removed] == [scratch]
    assert [path.name for path in scratch.iterdir()] == ["mine"]
