"""What commands print about a catalogue in Git, and what they do when nobody takes it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airferry import api
from airferry.cli.app import run
from airferry.near.lock.follow import LockOutcome
from airferry.plan.lockfile import LOCK_FILE, Lockfile, write_lockfile
from catalogues import airgap, write_airgap, write_step
from near_side import PROGRAM
from next_steps import next_commands


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_step(tmp_path, "sft/tiny")
    write_airgap(tmp_path, airgap({"py": "registry.example/base:1"}, {"sft/tiny": "py"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_output_that_cannot_be_written_is_an_error_of_the_command(catalogue: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([*PROGRAM, "schema"], cwd=catalogue, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 4
    assert "cannot write to standard output: No space left on device" in ended.stderr


LOADING = """
import signal, sys, types
app = types.ModuleType("airferry.cli.app")
app.main = lambda: signal.raise_signal(signal.SIGINT)
sys.modules["airferry.cli.app"] = app
from airferry.cli import main
main()
"""


def test_who_interrupts_a_program_that_is_still_loaded_sees_no_traceback() -> None:
    ended = subprocess.run([sys.executable, "-X", "utf8", "-c", LOADING], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_json_is_all_that_stdout_gets(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["execution_groups"][0]["steps"] == ["sft/tiny"]
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"


def test_a_plan_is_data_and_what_to_do_next_is_not(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan"]) == 0
    captured = capsys.readouterr()
    assert "selected execution images:\n  sft/tiny  nemotron-execution-py-" in captured.out
    assert "airferry lock" in captured.err and "Next:" not in captured.out
    assert str(catalogue / "out" / "airgap-plan.yaml") in captured.err


def test_quiet_says_nothing_but_data_and_errors(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--quiet", "plan"]) == 0
    assert capsys.readouterr().err == ""
    (catalogue / "airgap.yaml").unlink()
    assert run(["--quiet", "plan"]) == 3
    assert "error:" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(catalogue: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" schema | head -c 10 >/dev/null', "bash", *PROGRAM],
        cwd=catalogue,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_imported_under_conditions_is_counted_and_listed_on_demand(
    catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (catalogue / "src/nemotron/helper.py").write_text("def work():\n    import orjson\n    import zstandard\n")
    (catalogue / "src/nemotron/steps/sft/tiny/step.py").write_text("import nemotron.helper\n")
    assert run(["plan"]) == 0
    shown = capsys.readouterr().out
    assert "2 modules imported conditionally, not installed" in shown and "orjson" not in shown
    for arguments in (["--verbose", "plan"], ["plan", "-v"], ["plan", "--verbose"]):
        assert run(arguments) == 0
        assert "orjson, zstandard (imported conditionally, not installed)" in capsys.readouterr().out


def test_global_switches_are_taken_after_the_command_too(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_next_command_goes_on_with_the_same_plan(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def following() -> list[str]:
        (command,) = next_commands(capsys.readouterr().err)
        return command

    assert run(["plan"]) == 0
    assert following() == ["lock"]
    (catalogue / "airgap.yaml").rename(catalogue / "my plan.yaml")
    options = ["--config", "my plan.yaml", "--source", ".", "--target", "sft/tiny:tiny", "--platform", "linux/arm64"]
    assert run(["plan", *options, "--stage", "save-images"]) == 0
    assert following() == ["lock", *options]
    lockfile = catalogue / "out" / LOCK_FILE
    write_lockfile(Lockfile(), lockfile)
    assert run(["plan", *options]) == 0
    assert following() == ["lock", *options], "it covers nothing"
    monkeypatch.setattr("airferry.near.planning.uncovered", lambda *_: [])
    assert run(["plan", *options, "--stage", "save-images"]) == 0
    assert following() == ["build", *options, "--stage", "save-images"]
    monkeypatch.setattr(api, "lock", lambda *_, **__: LockOutcome(lockfile, ()))
    assert run(["lock", *options, "--engine", "podman"]) == 0
    assert following() == ["build", *options, "--engine", "podman"]
