"""What shells make of what airferry writes for them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airferry.cli import completion
from airferry.cli.app import run
from airferry.config.submit import submit_command
from airferry.host import process
from airferry.host.installation import shipped
from airferry.near.assemble import launcher
from airferry.wording import shell_line
from catalogues import write_completed
from nasty_names import NASTY
from near_side import PROGRAM

SUBMITS = [None, "", "acme run {step} {overrides}", "ssh login 'acme run {step} -c {config}'"]


@pytest.mark.parametrize("template", SUBMITS)
def test_no_step_is_a_command_of_a_shell(tmp_path: Path, template: str | None) -> None:
    """The very attack: a step that another shell, or the line after a comment, would run."""
    fake = tmp_path / "bin"
    fake.mkdir()
    say = "printf '%s\\0' \"$@\" >>said\n"
    for name, text in {"ssh": 'shift\nexec sh -c "$*"\n', "acme": say, "nemotron": say}.items():
        (fake / name).write_text(f"#!/bin/sh\n{text}")
        (fake / name).chmod(0o755)
    lines = [
        submit_command(step, config="a b", profile="p", overrides={"image": step}, template=template) for step in NASTY
    ]
    search = {"PATH": f"{fake}:/usr/bin:/bin"}
    subprocess.run(["/bin/sh", "-c", "\n".join(lines)], cwd=tmp_path, env=search, check=False)
    assert not (tmp_path / "pwned").exists()
    if template != "":
        assert {*NASTY} <= {*(tmp_path / "said").read_bytes().decode().split("\0")}, "each came as one argument"


def test_bash_reads_each_word_of_a_line_to_paste_as_it_was() -> None:
    words = [*NASTY, "a\tb", "x\udcffy", "it's\\\n'"]
    line = f"printf '%s\\0' {shell_line(words)}"
    done = subprocess.run(["/bin/bash"], input=os.fsencode(line), capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in words]


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_completed(tmp_path)


def test_bash_itself_completes_past_a_colon(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script that `--show-completion` prints, with words as bash splits a line; bash starts the program."""
    with monkeypatch.context() as patch:
        patch.setenv(completion.VARIABLE, "source_bash")
        assert completion.answer(os.environ, lambda: run([])) == 0
    script = capsys.readouterr().out
    installed = catalogue / "bin" / "airferry"
    installed.parent.mkdir()
    installed.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    installed.chmod(0o755)
    asked = f"""{script}
        COMP_WORDS=(airferry build --target sft/tiny : ti); COMP_CWORD=5
        _airferry_completion airferry; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{installed.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", asked], cwd=catalogue, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("tiny\n", "")


ROOT = Path(__file__).parents[2]


def complete(*words: str) -> list[str]:
    """Ask the program as bash does what the last word can become."""
    argv = [sys.executable, "-c", "import sys; sys.argv[0] = 'airferry'; from airferry.cli import main; main()"]
    environment = {
        "_AIRFERRY_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["airferry", *words]),
        "COMP_CWORD": str(len(words)),
        "PYTHONPATH": str(ROOT / "src"),
    }
    return process.run(argv, timeout_s=60, environment=environment).text.split()


def test_commands_complete() -> None:
    assert complete("re") == ["rehearse", "report", "registry"]


def test_the_shell_gets_a_script_that_it_understands() -> None:
    argv = [sys.executable, "-c", "import sys; sys.argv[0] = 'airferry'; from airferry.cli import main; main()"]
    script = process.run(argv, timeout_s=60, environment={"_AIRFERRY_COMPLETE": "source_bash"}).text
    assert "complete" in script and "airferry" in script
    assert process.run(["bash", "-n"], timeout_s=10, streams=process.Streams(stdin=script.encode())).returncode == 0


@pytest.mark.parametrize("folder", ["/workspace/.venv", "/a b/.venv", "/$(touch pwned)/.venv", '/"; touch pwned; "/x'])
def test_a_shell_that_activates_the_launcher_runs_nothing_of_its_path(tmp_path: Path, folder: str) -> None:
    quoted = launcher.quoted_folder(folder)
    script = launcher._ACTIVATE.format(folder=quoted) + 'printf "%s" "$VIRTUAL_ENV"\n'
    done = subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == folder and not list(tmp_path.iterdir())
    assert folder != "/workspace/.venv" or quoted == '"/workspace/.venv"'


def test_the_install_script_is_plain_posix() -> None:
    script = shipped("containerfiles") / "install-airferry.sh"
    assert script.read_text().startswith("#!/bin/sh\n")
    assert not re.search(r"\[\[|\bfunction\b|\blocal\b|<<<|\$'", script.read_text())
    shell = shutil.which("dash") or "sh"
    assert process.run([shell, "-n", script], timeout_s=10).returncode == 0
