"""Output into a pipe that nobody reads any more."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from airferry.cli.pipes import code_of_pipes, outlive_readers
from command_lines import run_commands

PROGRAM = [sys.executable, "-c", "from airferry.cli import main; main()"]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_is_written_after_the_reader_has_gone_is_dropped(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, name, stream)
        outlive_readers()
        output = getattr(sys, name)
        print("read", file=output, flush=True)
        assert os.read(reader, 100) == b"read\n"
        assert [code_of_pipes(code) for code in (0, 8)] == [0, 8]
        os.close(reader)
        for _ in range(3):
            print("lost" * 10_000, file=output, flush=True)
        # Rich would end the thread that reports progress, and the upload with it
        Console(file=output).print("progress")
        # a failure says more than that its message was not read
        assert [code_of_pipes(code) for code in (0, 8)] == [141, 8]


def test_a_command_whose_reader_has_gone_ends_with_the_documented_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        codes, _ = run_commands([["--version"], ["plan", "--help"], ["none"]], stdout=writer, stderr=writer)
    finally:
        os.close(writer)
    assert codes == [141, 141, 2]


def test_what_a_full_disk_does_not_take_of_stderr_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        outlive_readers()
        print("progress" * 10_000, file=sys.stderr, flush=True)
        assert code_of_pipes(0) == 0


def test_a_terminal_that_is_gone_is_a_reader_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = os.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        outlive_readers()
        assert sys.stdout.isatty()
        os.close(controller)
        print("lost" * 10_000, file=sys.stdout, flush=True)
        assert code_of_pipes(0) == 141


def test_a_full_pipe_that_does_not_block_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    taken: list[bytes] = []

    def drain() -> None:
        with os.fdopen(reader, "rb") as stream:
            taken.append(stream.read())

    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        outlive_readers()
        draining = threading.Thread(target=drain)
        draining.start()
        print("x" * 1_000_000, file=sys.stdout, flush=True)
    draining.join()
    assert taken == [b"x" * 1_000_000 + b"\n"]


@pytest.mark.parametrize(("closed", "expected"), [([0], 0), ([1], 0), ([2], 0), ([0, 1, 2], 0)])
def test_streams_that_were_closed_lead_nowhere(closed: list[int], expected: int, tmp_path: Path) -> None:
    # what opens a file next would get the number of the closed stream, and what is printed would go into that file
    script = f"""
import os, sys
for number in {closed}:
    os.close(number)
os.execv(sys.executable, [sys.executable, "-c", "import os\\nfrom airferry.cli import _open_closed_streams as opened\\n"
    "opened()\\nassert os.open('made', os.O_CREAT | os.O_WRONLY) > 2\\nprint('said')\\n"
    "os.system('echo said; echo said >&2')"])
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert ended.returncode == expected, ended.stderr
    assert (tmp_path / "made").read_bytes() == b""
    assert (b"said" in ended.stdout) is (1 not in closed)


def test_the_program_runs_with_all_streams_closed() -> None:
    command = " ".join(shlex.quote(word) for word in [*PROGRAM, "--version"])
    ended = subprocess.run(["/bin/sh", "-c", f"{command} <&- >&- 2>&-"], check=False, timeout=60)
    assert ended.returncode == 0


@pytest.mark.parametrize(("prefix", "expected"), [([], "Interrupted"), (["nohup"], "ignored")])
def test_a_hang_up_ends_a_command_in_order_unless_it_was_to_go_on(prefix: list[str], expected: str) -> None:
    code = (
        "import os, signal, sys, airferry.cli.app as app\n"
        "def run(_arguments):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        "    except app.Interrupted:\n"
        "        print('Interrupted')\n"
        "        raise\n"
        "    print('ignored')\n"
        "    return 0\n"
        "app.run = run\n"
        "app.main()\n"
    )
    ended = subprocess.run(
        [*prefix, sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.stdout.strip(), ended.returncode) == (expected, 130 if expected == "Interrupted" else 0), ended.stderr
