"""What the program prints, where, and how it ends."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from airferry import api
from airferry.bundle.verify import open_bundle
from airferry.cli import app as program
from airferry.cli.app import run
from airferry.cli.findings import show_findings, show_fixes
from airferry.cli.render import Reporter
from airferry.errors import AirferryError
from airferry.events import Notice, Progress, StageFinished
from airferry.plan.lockfile import LockedGroup, LockedPlatform, Lockfile
from airferry.wording import shortened
from catalogues import airgap, write_airgap, write_step
from oci_images import make_bundle

COMMANDS = ("doctor", "plan", "lock", "build", "schema", "quickstart", "verify", "load")


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_step(tmp_path, "sft/tiny")
    write_airgap(tmp_path, airgap({"py": "registry.example/base:1"}, {"sft/tiny": "py"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_lists_the_commands_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f" {command} " in shown
    assert "Exit codes" in shown


def test_verify_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_bundle(tmp_path / "bundle").root
    bundle = open_bundle(tmp_path / "bundle")
    assert run(["verify", str(tmp_path / "bundle"), "--root", root, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["root"] == root and document["findings"] == []
    # the two platforms share their layers
    bundle.store.blob_path(bundle.manifest.images[0].platforms["linux/amd64"].config_digest).unlink()
    assert run(["verify", str(tmp_path / "bundle"), "--json"]) == 6
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    finding, *others = document["findings"]
    assert finding.startswith("image `trainer`, platform `linux/amd64`") and finding.endswith("is missing")
    assert all("`linux/amd64`" in other for other in others)
    assert (document["ok"], document["root"], document["root_verified"]) == (False, root, False)
    assert finding in captured.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["plan", "--nonsense"], 2),
        (["verify", "/nowhere"], 2),
        (["load", "/nowhere", "--to", "host:1/x"], 2),
        (["plan", "--config", "/nowhere.yaml"], 3),
        (["build", "--engine", "docker"], 2),
        (["plan", "--stage", "nonsense"], 2),
        (["plan", "--platform", "nonsense"], 3),
        (["build", "--jobs", "0"], 2),
    ],
)
def test_exit_codes(catalogue: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err and "Traceback" not in captured.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "stream", "codes"),
    [
        ({"TERM": "xterm-256color"}, Terminal, {"1;31", "1", "0"}),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, Terminal, {"1", "0"}),
        ({"TERM": "dumb"}, Terminal, set()),
        ({"TERM": "xterm-256color"}, io.StringIO, set()),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    catalogue: Path,
    environment: dict[str, str],
    stream: type[io.StringIO],
    codes: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    assert run(["plan", "--config", "nowhere.yaml"]) == 3
    assert "hint:" in shown.getvalue()
    assert set(re.findall("\x1b\\[?([^m]*)m?", shown.getvalue())) == codes


def test_a_traceback_is_shown_for_debug_alone(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (catalogue / "airgap.yaml").unlink()
    assert run(["plan"]) == 3
    assert "Traceback" not in capsys.readouterr().err
    assert run(["--debug", "plan"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_called_one(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError("[/bold] something")

    monkeypatch.setattr(program, "app", break_down)
    assert run(["plan"]) == 1
    shown = capsys.readouterr().err
    assert "bug: ZeroDivisionError: [/bold] something" in shown and "Traceback" not in shown


def test_a_full_disk_that_nobody_translated_is_the_hosts_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill_up(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr(program, "app", fill_up)
    assert run(["plan"]) == 4
    shown = capsys.readouterr().err
    assert "`/some/file`" in shown and "free up space" in shown


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("airferry ")
    assert sys.version_info >= (3, 11)


def test_details_of_a_notice_are_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    notice = Notice("img on linux/amd64: 2 modules are not installed", details=("a.py:1: `x`", "b.py:2: `y`"))
    Reporter()(notice)
    assert capsys.readouterr().err == "img on linux/amd64: 2 modules are not installed; `--verbose` lists them\n"
    Reporter(verbose=True)(notice)
    assert capsys.readouterr().err.splitlines()[1:] == ["  a.py:1: `x`", "  b.py:2: `y`"]


def test_the_json_of_lock_holds_the_notes_of_its_entries(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = LockedPlatform(
        inputs="sha256:" + "a" * 64, python="python3", python_version="3.12", notes=("`x` 1 was taken",)
    )
    made = Lockfile(groups={"py": LockedGroup(platforms={"linux/amd64": entry})})
    outcome = api.LockOutcome(catalogue / "airgap.lock.yaml", ("+ one",), lockfile=made)
    monkeypatch.setattr(api, "lock", lambda *_arguments, **_options: outcome, raising=False)
    assert run(["lock", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(catalogue / "airgap.lock.yaml"),
        "changes": ["+ one"],
        "notes": [{"image": "py", "platform": "linux/amd64", "text": "`x` 1 was taken"}],
        "warnings": [],
    }


DIGEST = "sha256:" + "0123456789abcdef" * 4


LONG = f"registry.example:5000/nvidia/nemo/nemotron-customizer-execution-airgap@{DIGEST}"


def on_a_terminal(columns: int, *, verbose: bool = False) -> tuple[Reporter, io.StringIO]:
    """Return a reporter whose stderr is a terminal of some columns, and what it shows there."""
    shown = io.StringIO()
    reporter = Reporter(verbose=verbose)
    reporter.console = Console(
        file=shown, width=columns, force_terminal=True, no_color=True, highlight=False, soft_wrap=True
    )
    return reporter, shown


@pytest.mark.parametrize("columns", [80, 120])
def test_long_names_leave_room_for_times(columns: int) -> None:
    reporter, shown = on_a_terminal(columns)
    reporter(StageFinished(f"pull {LONG}", 75.0, detail="12 layers"))
    (line,) = Text.from_ansi(shown.getvalue()).plain.splitlines()
    assert len(line) <= columns
    assert line.startswith("✓ pull registry.example") and line.endswith(": 12 layers (1 min 15 s)")
    assert "abcdef:" in line, "the end of the digest"


def test_long_names_leave_room_for_amounts_in_live_rows() -> None:
    reporter, shown = on_a_terminal(80)
    with reporter.display():
        reporter(Progress(f"pull {LONG}", 3 << 30, 17 << 30))
        reporter(Progress(f"push https://{'mirror.' * 9}example/v2/nemo/blobs/{DIGEST}", 1 << 20, 5 << 30))
        assert reporter._live is not None
        reporter._live.refresh()
    lines = Text.from_ansi(shown.getvalue()).plain.splitlines()
    pulled = next(line for line in reversed(lines) if "pull" in line)
    pushed = next(line for line in reversed(lines) if "push" in line)
    assert "3.0 GiB of 17.0 GiB" in pulled and "0:00:0" in pulled and len(pulled.rstrip()) <= 80
    assert "1.0 MiB of 5.0 GiB" in pushed and "0:00:0" in pushed and len(pushed.rstrip()) <= 80


def test_names_are_whole_with_verbose_and_in_logs(capsys: pytest.CaptureFixture[str]) -> None:
    event = StageFinished(f"pull {LONG}", 75.0)
    reporter, shown = on_a_terminal(80, verbose=True)
    reporter(event)
    assert LONG in Text.from_ansi(shown.getvalue()).plain
    Reporter()(event)
    assert LONG in capsys.readouterr().err


def test_texts_are_shortened_where_they_say_least() -> None:
    assert shortened("push x", 80) == "push x"
    assert shortened(f"push {DIGEST}", 40) == "push sha256:012345…abcdef"
    assert shortened("one two three", 5) == "one two three", "words that people read stay whole"
    url = "https://registry.example:5000/v2/nvidia/nemo/manifests/a-tag-at-the-end"
    cut = shortened(f"pull {url}", 45)
    assert len(cut) == 45 and cut.startswith("pull https://reg") and cut.endswith("-at-the-end")


def report_of_findings() -> api.CheckReport:
    def finding(kind: Any, text: str, fix: str | None, **more: Any) -> api.Finding:
        return api.Finding("sft/one:tiny", kind, "block", "config/tiny.yaml", 7, "model.name", "[x]", text, fix, **more)

    long = "data.paths='[" + ", ".join(f"/lustre/data/part-{number}" for number in range(12)) + "]'"
    return api.CheckReport(
        ("sft/one:tiny", "sft/two:tiny"),
        (
            finding("image", "nothing pins the loaded image", "run.env.container_image=hub#a:sha256:1"),
            finding("input", "is a placeholder", long, also=("model.other",)),
            finding("platform", "is for arm64", "build it for amd64: `airferry build --platform linux/amd64`"),
        ),
        overlays_help=True,
    )


@pytest.mark.parametrize("width", [40, 80, 139])
def test_on_a_narrow_terminal_what_is_to_be_typed_stays_one_line(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    report = report_of_findings()
    show_findings(Reporter(), report, notes=False)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "sft/one:tiny" and lines.count("sft/one:tiny") == 1
    for finding in report.findings:
        assert finding.fix in lines
    assert "config/tiny.yaml:7: model.name = [x]" in lines and "also model.other" in lines


def test_on_a_wide_terminal_findings_are_a_table_if_what_is_to_be_typed_stays_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    report = report_of_findings()
    show_findings(Reporter(), report, notes=False)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "sft/one:tiny" and report.findings[1].fix in lines
    short = replace(report, findings=(report.findings[0], report.findings[2]))
    show_findings(Reporter(), short, notes=False)
    shown = capsys.readouterr().err
    assert shown.split()[:5] == ["job", "where", "what", "type", "sft/one:tiny"]
    assert str(short.findings[0].fix) in shown


def test_fixes_are_one_line_of_overrides_for_each_job(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of_findings()
    show_fixes(report, notes=False)
    title, sentence, overrides = capsys.readouterr().out.splitlines()
    assert title == "# sft/one:tiny" and sentence == f"# - {report.findings[2].fix}"
    assert overrides == f"{report.findings[0].fix} {report.findings[1].fix}"
    with pytest.raises(AirferryError) as caught:
        report.raise_if_blocked()
    assert "the configs that `airferry overlays` writes resolve 1 of them" in str(caught.value.hint)
