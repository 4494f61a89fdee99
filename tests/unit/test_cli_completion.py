"""What the shell offers at TAB for the values of options, and how the help shows flags."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from airferry.cli import completion
from airferry.cli.app import run
from catalogues import write_completed, write_step
from cli_reference import commands, is_group, is_option, program

Complete = Callable[..., list[str]]


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_completed(tmp_path)


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """Ask as bash does, by the words of its line (the last one is at the cursor); stderr must stay empty."""

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv(completion.VARIABLE, "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(["airferry", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        assert completion.answer(os.environ, lambda: run([])) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return shown.out.split()

    return ask


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("build", "--engine", ""), ["auto", "buildah", "podman"]),
        (("doctor", "--engine", "p"), ["podman"]),
        (("lock", "--probe", ""), ["auto", "static", "run"]),
        (("build", "--stage", "build-"), ["build-launcher-image", "build-execution-images"]),
        (("plan", "-s", "validate,sa"), ["validate,save-images"]),
        (("build", "--platform", "linux/"), ["linux/riscv64", "linux/amd64", "linux/arm64"]),
        (("copy", "a", "b", "--platform", "linux/am"), ["linux/amd64"]),
        (("build", "--target", "sft/"), ["sft/large:tiny", "sft/tiny:tiny"]),
        (("build", "--target", "sft/tiny:tiny,ev"), ["sft/tiny:tiny,eval/perplexity:tiny"]),
        (("check", "--target", "sft/l"), ["sft/large:tiny"]),
        (("init", "elsewhere", "--source", ".", "--target", "sft/l"), ["sft/large:tiny"]),
        (("site", "init", "--executor", "slurm"), ["slurm-pyxis"]),
        (("assets", "record", "x", "--kind", "d"), ["dataset"]),
    ],
)
def test_values_of_options_complete(
    catalogue: Path, complete: Complete, words: tuple[str, ...], found: list[str]
) -> None:
    assert complete(*words) == found


def test_a_target_completes_though_bash_splits_it_at_its_colon(catalogue: Path, complete: Complete) -> None:
    assert complete("build", "--target", "sft/tiny", ":") == ["tiny"]
    assert complete("build", "--target", "sft/tiny", ":", "ti") == ["tiny"]
    assert complete("build", "--target", "sft/tiny", ":", "x") == []
    assert complete("build", "--target", "sft/tiny", ":", "tiny", "--engine", "pod") == ["podman"]
    assert complete("load", "--to", "localhost", ":", "5000/x", "--roo") == ["--root"]
    assert complete("build", "--target", "=", "sft/l") == ["sft/large:tiny"]
    assert complete("build", "--engine", "=") == ["auto", "buildah", "podman"]


def test_the_plan_that_is_named_on_the_line_is_read(catalogue: Path, complete: Complete) -> None:
    (catalogue / "airgap.yaml").rename(catalogue / "other.yaml")
    assert complete("build", "--target", "sft/t") == []
    assert complete("build", "--config", "other.yaml", "--target", "sft/t") == ["sft/tiny:tiny"]
    (catalogue / "elsewhere").mkdir()
    write_step(catalogue / "elsewhere", "rl/grpo", configs={"tiny": "a: 1\n"})
    options = ("--config", "other.yaml", "--source", "elsewhere")
    assert complete("build", *options, "--target", "") == ["rl/grpo:tiny"]
    assert complete("check", "--source", "elsewhere", "--target", "") == ["rl/grpo:tiny"]


@pytest.mark.parametrize("text", ["", "a: [", "workflow: 7\n", "\0", "x: &a [*a]\n"])
def test_nothing_is_offered_and_nothing_printed_for_a_plan_that_is_wrong(
    catalogue: Path, complete: Complete, text: str
) -> None:
    (catalogue / "airgap.yaml").write_text(text)
    assert complete("build", "--target", "") == []
    assert complete("build", "--platform", "") == list(completion.COMMON_PLATFORMS)
    assert complete("build", "--stage", "val") == ["validate"]


def test_a_wrong_environment_does_not_disturb(
    catalogue: Path, complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFERRY_JOBS", "many")
    monkeypatch.setenv("AIRFERRY_CONFIG", "nowhere.yaml")
    assert complete("build", "--engine", "b") == ["buildah"]
    assert complete("build", "--target", "") == []


@pytest.mark.parametrize(
    ("shell", "found"),
    [
        ("bash", "sft/tiny:tiny"),
        ("zsh", "_arguments '*: :((\"sft/tiny:tiny\"))'"),
        ("fish", "sft/tiny:tiny"),
    ],
)
def test_each_shell_gets_targets(
    catalogue: Path, shell: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "airferry build --target sft/t"
    environment = {
        completion.VARIABLE: f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": "3",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert completion.answer(os.environ, lambda: run([])) == 0
    shown = capsys.readouterr()
    assert (shown.out.replace("\\\\", "").strip(), shown.err) == (found, "")


def test_every_command_completes_and_so_do_options(complete: Complete) -> None:
    assert set(complete("")) == set(program().commands)
    assert "--root" in complete("verify", "--")
    for path, command in commands(program()):
        if is_group(command):
            assert set(complete(*path, "")) == set(command.commands)


def test_every_value_has_a_name_in_the_help_and_no_flag_has_a_type() -> None:
    every = [("airferry", program()), *((" ".join(path), command) for path, command in commands(program()))]
    for name, command in every:
        context = command.make_context("airferry", [], resilient_parsing=True)
        for parameter in command.get_params(context):
            flag = is_option(parameter) and parameter.is_flag
            assert bool(parameter.metavar) != flag, f"{name}: {parameter.opts[0]}"


def test_every_command_has_help_that_shows_flags_as_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for path, _command in commands(program()):
        assert run([*path, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "Usage:" in shown and "<bool>" not in shown
