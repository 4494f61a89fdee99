"""Output into a pipe that nobody reads any more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from rich.console import Console

from airferry.cli.pipes import code_of_pipes, outlive_readers

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


@pytest.mark.parametrize(("arguments", "expected"), [(["--version"], 141), (["plan", "--help"], 141), (["none"], 2)])
def test_a_command_whose_reader_has_gone_ends_with_the_documented_code(arguments: list[str], expected: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run([*PROGRAM, *arguments], stdout=writer, stderr=writer, check=False, timeout=60)
    finally:
        os.close(writer)
    assert ended.returncode == expected
