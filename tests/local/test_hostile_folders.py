"""Folders of others, in which programs of the host are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airferry.host import process
from airferry.near.assemble.context import tracked_files
from airferry.near.wheels.pip import Pip

REAL_RUN = Pip._run  # which unit tests refuse, as it starts pip


def test_no_pip_can_start_an_interpreter_or_is_one_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip would run the code of a source that a requirement leads to, with this user's files and network."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text("import sys; print(sys.executable, sys.argv)\n")
    # catalogues are where airferry is started
    catalogue = tmp_path / "catalogue"
    (catalogue / "pip").mkdir(parents=True)
    for name in ("json.py", "runpy.py", "pip/__init__.py", "pip/__main__.py"):
        (catalogue / name).write_text("raise SystemExit(99)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    commands: list[list[str]] = []

    def run(argv: list[str], **_more: object) -> process.Completed:
        commands.append(argv)
        return process.Completed(0, b"", ())

    monkeypatch.setattr("airferry.near.wheels.pip.process.run", run)
    monkeypatch.setattr(Pip, "_run", REAL_RUN)
    Pip().download_closure(["hatchling"], None, into=tmp_path)
    Pip().ask_index(timeout_s=1)
    assert [command[0] for command in commands] == [sys.executable] * 2
    for command in commands:
        done = subprocess.run(
            command, cwd=catalogue, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.startswith("/bin/false ['pip', '--no-input', ")


def test_the_configuration_of_a_catalogues_repository_runs_nothing(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    module, catalogue = tmp_path / "module", tmp_path / "catalogue"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.test", "-c", "protocol.file.allow=always"]

    def call(folder: Path, *arguments: str) -> None:
        subprocess.run([*git, "-C", folder, *arguments], check=True, capture_output=True, timeout=60)

    for folder in (module, catalogue):
        folder.mkdir()
        (folder / "file").touch()
        call(folder, "init", "--quiet")
        call(folder, "add", "file")
        call(folder, "commit", "--quiet", "--message", "one")
    call(catalogue, "submodule", "--quiet", "add", str(module), "sub")
    for folder in (catalogue, catalogue / "sub"):
        call(folder, "config", "core.fsmonitor", f"touch {ran}; false")
    assert [str(name) for name in tracked_files(catalogue)] == [".gitmodules", "file", "sub/file"]
    assert not ran.exists()
