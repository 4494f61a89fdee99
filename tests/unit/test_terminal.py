"""Text of others on a terminal: none of it is obeyed or is markup, and no line of it passes for one of ours."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from airferry.cli import render
from airferry.cli.app import run
from airferry.cli.render import Reporter, data, data_line
from airferry.errors import AirferryError, RegistryError
from airferry.events import CommandRun, Event, Notice, Progress, StageFinished, StageStarted, Warned
from airferry.far.serve.complaints import Complaints
from airferry.wording import comment_line, obeyed, on_one_line, visible
from catalogues import airgap, write_airgap, write_step
from source_trees import nodes

# clears the screen, sets the title, writes the clipboard, erases a line, hides, turns text around, C1, a lost half
OBEYED = "\x1b[2J\x1b]0;x\x07\x1b]52;c;eA==\x1b\\\r\x1b[2K\x08\x7f\x9b31m\x85\u2028\u202e\u2066\u200b\ufeff\U000e0041"
HOSTILE = f"[link=https://evil.example]a[/link] [/] :x: {OBEYED}\nhint:  run this\nerror: \udcff"
# these are run where airferry is not, with their streams in a pipe of it, or as the boot of a process
ALONE = {"near/probe/script.py", "host/confined.py", "engine/inside.py", "engine/nowhere.py", "near/wheels/pip.py"}


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reporter]:
    """A reporter on a terminal that takes no colours: what escapes remain are not of rich's own styles."""
    made = Reporter(verbose=True, debug=True)
    vars(made)["console"] = Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system=None,
        highlight=False,
        soft_wrap=True,
        emoji=False,
        width=400,
    )
    monkeypatch.setattr(render, "PLAIN_INTERVAL_S", 0.0)
    yield made


def shown(reporter: Reporter) -> str:
    file = reporter.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


EVENTS: list[Event] = [
    StageStarted(HOSTILE, detail=HOSTILE),
    StageFinished(HOSTILE, 1.0, detail=HOSTILE),
    Progress(HOSTILE, 1, 2),
    Progress("task", 1, 2, unit=HOSTILE),
    CommandRun(HOSTILE),
    Notice(HOSTILE, (HOSTILE,)),
    Warned(HOSTILE, HOSTILE),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_no_event_commands_the_terminal(reporter: Reporter, event: Event) -> None:
    reporter(event)
    text = shown(reporter)
    assert obeyed(text, lines=True) is None
    assert not isinstance(event, Notice) or "[link=https://evil.example]a[/link] [/] :x: " in text


def test_no_live_row_commands_the_terminal(reporter: Reporter) -> None:
    with reporter.display():
        for event in EVENTS:
            reporter(event)
        assert reporter._live is not None
        rows = [(task.description, task.fields["amount"]) for task in reporter._live.tasks]
        columns = [column for column in reporter._live.columns if hasattr(column, "markup")]
    assert rows and all(obeyed(text) is None for row in rows for text in row)
    assert columns and not any(column.markup for column in columns)


def test_no_error_commands_the_terminal_and_none_forges_a_hint(reporter: Reporter) -> None:
    reporter.error(RegistryError(HOSTILE, hint=HOSTILE))
    reporter.error(AirferryError("a registry answered", tail=(HOSTILE,)))
    reporter.bug(ValueError(HOSTILE))
    reporter.say("[bold]{}[/] {}", HOSTILE, Path(HOSTILE.replace("\udcff", "")))
    text = shown(reporter)
    assert obeyed(text, lines=True) is None
    first, *rest = text.splitlines()[:4]
    assert first.startswith("error: [link=https://evil.example]a[/link] [/] :x: \\u001b[2J")
    assert rest[:2] == ["  hint:  run this", "  error: \\udcff"] and rest[2].startswith("hint:  [link=")


def test_no_message_floods_the_terminal(reporter: Reporter) -> None:
    reporter.error(AirferryError("x" * 5_000_000))
    assert len(shown(reporter)) < 60_000 and "(4950000 more characters)" in shown(reporter)


def test_a_traceback_commands_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(debug=True)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        reporter.trace()
    text = capsys.readouterr().err
    assert "Traceback" in text and obeyed(text, lines=True) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_python_writes_by_itself_commands_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((threading, "excepthook"), (sys, "unraisablehook"), (warnings, "showwarning")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    render.escape_what_python_writes()

    def fail() -> None:
        raise ValueError(HOSTILE)

    class Broken:
        def __del__(self) -> None:
            fail()

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    Broken()
    warnings.showwarning(UserWarning(HOSTILE), UserWarning, "x.py", 1)
    text = capsys.readouterr().err
    assert text.count("ValueError: ") == 2 and "warning: " in text and obeyed(text, lines=True) is None


@pytest.mark.parametrize("escaped", [True, False])
def test_json_on_stdout_keeps_its_meaning(capsys: pytest.CaptureFixture[str], escaped: bool) -> None:
    data(json.dumps({"text": HOSTILE, HOSTILE: 1}, ensure_ascii=escaped, indent=2))
    text = capsys.readouterr().out
    assert obeyed(text, lines=True) is None
    assert json.loads(text) == {"text": HOSTILE, HOSTILE: 1}


def test_a_line_of_data_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    data_line(f"a  {HOSTILE}")
    text = capsys.readouterr().out
    assert text.count("\n") == 1 and obeyed(text, lines=True) is None


@given(st.text())
def test_what_is_escaped_is_harmless_and_can_be_read_back(text: str) -> None:
    assert obeyed(visible(text), lines=True) is None
    assert obeyed(on_one_line(text)) is None
    assert len(comment_line(text).splitlines()) == 1
    assert json.loads(visible(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize("text", ["größe", "日本語　表", "персонаж", "شبكه‌ای", "a b", "👩‍💻", "na\u00efve – “quoted”"])
def test_letters_of_any_language_stay(text: str) -> None:
    assert obeyed(text) is None and visible(text) == on_one_line(text) == text


def test_only_the_renderer_writes_to_the_terminal() -> None:
    """What has its streams in a pipe writes there, and the renderer shows it."""
    found = []
    for place, node in nodes(ast.Call):
        if place in {*ALONE, "cli/render.py", "cli/completion.py"} or place.startswith("example/"):
            continue
        last = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if last not in ("print", "echo", "secho", "print_exc", "write", "out", "log"):
            continue
        called = ast.unparse(node.func)
        if called in ("print", "typer.echo", "typer.secho", "traceback.print_exc") or called.endswith(
            ("stdout.write", "stderr.write", "console.print", "console.out", "console.log")
        ):
            found.append(f"{place}:{node.lineno}: {called}")
    # a table's cells go through `escape`
    assert [line for line in found if not line.startswith(("cli/jobs.py", "cli/findings.py"))] == []


def test_what_is_said_is_a_literal_and_its_values_are_apart() -> None:
    """A value in the markup would be markup: `say` takes it as an argument, and escapes it."""
    found = []
    for place, node in nodes(ast.Call):
        if place.startswith("cli/") and isinstance(node.func, ast.Attribute) and node.func.attr == "say":
            markup = node.args[0]
            made = any(isinstance(part, ast.FormattedValue | ast.Call) for part in ast.walk(markup))
            texts = [part.value for part in ast.walk(markup) if isinstance(part, ast.Constant)]
            places = sum(str(text).count("{}") for text in texts)
            braces = sum(str(text).count("{") for text in texts)
            if made or isinstance(markup, ast.Name | ast.Attribute) or not places == braces == len(node.args) - 1:
                found.append(f"{place}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("name", ["$(touch x)", "a;b", "a\x1b[2J", "`x`", "a b", "a\nb"])
def test_what_no_command_takes_is_not_offered_to_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from airferry.cli import completion

    class Context:
        params: ClassVar[dict[str, Any]] = {"config": "airgap.yaml"}

    write_step(tmp_path, "sft/tiny")
    write_airgap(tmp_path, airgap({"py": "registry.example/base:1"}, {"sft/tiny": "py"}))
    steps = next(tmp_path.rglob("sft"))
    (steps / name).mkdir()
    (steps / name / "step.toml").write_text("")
    (steps / "tiny" / "config").mkdir(exist_ok=True)
    (steps / "tiny" / "config" / f"{name}.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    offered = completion.targets(Context(), "")  # type: ignore[arg-type]
    assert offered and all(text.startswith("sft/tiny") and text.isascii() for text in offered)
    assert not any(name in text for text in offered)


def test_a_name_from_the_command_line_commands_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", f"/nowhere/{OBEYED}"]) == 2
    assert obeyed(capsys.readouterr().err, lines=True) is None


def test_what_libraries_log_while_serving_goes_through_the_renderer(capsys: pytest.CaptureFixture[str]) -> None:
    """Python writes what nothing handles to stderr as it is."""
    events: list[Event] = []
    seconds = iter(range(2))
    with Complaints(events.append, clock=lambda: float(next(seconds))).listening():
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).error(OBEYED)
    assert len(events) == 2 and all(isinstance(event, Warned) for event in events)
    assert capsys.readouterr().err == ""
