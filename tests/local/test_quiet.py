"""`--quiet` leaves a command's result and its errors, before the command or after it, for every command there is."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airferry import api
from airferry.bundle.receipt import write_receipt
from airferry.cli.app import run
from airferry.cli.render import Reporter
from airferry.engine.preflight import Check
from airferry.events import CommandRun, Emit, Notice, Progress, StageFinished, StageStarted, Warned
from catalogues import write_airgap, write_step
from cli_reference import PRINTED, commands, is_group, program
from loaded_receipts import loaded_receipt
from oci_images import make_bundle
from source_trees import modules
from travelling_catalogue import outcome_of

DIGEST = "sha256:" + "c" * 64
PLAN = {
    "workflow": {"stages": ["sft/one:default"]},
    "step_execution_images": {"sft/one": "trainer"},
    "execution_images": {"trainer": {"base_image": "hub/base:1"}},
}
# each command with what it prints to stdout when all goes well, quiet or not: a pattern for all of it
PRINTS: dict[str, tuple[list[str], str]] = {
    "doctor": ([], ""),
    "init": (["new"], r"(new/.*\n)+"),
    "plan": ([], r"(?s).*sft/one.*"),
    "lock": ([], "\\+ one\n"),
    "rehearse": ([], "sft/one  linux/amd64  .*\n"),
    "build": ([], rf"hub/app:1  {DIGEST}  linux/amd64  1\.0 KiB\nbundle out/bundle  2\.0 KiB\nroot   {DIGEST}\n"),
    "schema": ([], r"(?s)\{.*\}\n"),
    "quickstart": ([], "all of it\n"),
    "verify": (["bundle"], ""),
    "report": (["bundle"], r"(?s).*sha256:.*"),
    "load": (["bundle", "--to", "hub:5000/x"], "nemotron steps run .*\n"),
    "history": ([], rf"(?s).*hub\.site:5000/airgap  {DIGEST}\n.*"),
    "serve": (["bundle"], f"127.0.0.1:5000/app:1  {DIGEST}\n"),
    "catalogue extract": (["bundle", "there"], "there\n"),
    "assets record": (["asset"], r"airgap-asset-asset\.jsonl  sha256:.*\n"),
    "assets verify": (["airgap-asset-given.jsonl", "asset"], ""),
    "assets unpack": (["bundle", "there"], "there\n"),
    "login": (["hub:5000", "-u", "me", "--password-stdin"], ""),
    "logout": (["hub:5000"], ""),
    "copy": (["oci:bundle", "oci:copied"], r"oci:copied:.*  sha256:.*\n"),
    "registry probe": (["hub:5000"], "mounts  yes  .*\n"),
    "site init": (["--executor", "kubernetes", "--force", "--out", "other.yaml"], ""),
    "overlays": (["airgap-receipt.yaml", "--source", "code"], "nemotron steps run .*\n"),
    "mirrors": (["airgap-receipt.yaml"], f"nvcr.io/nvidia/nemo:26.04  .*  {DIGEST}\n"),
    "check": (["airgap-receipt.yaml", "--source", "code", "--no-registry"], r"(warn  .*\n)*"),
}


def leaves() -> set[str]:
    return {" ".join(path) for path, command in commands(program()) if not is_group(command)}


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsettled: None) -> None:
    """Put what the commands read into the current folder, and answers in the place of engines and registries."""
    make_bundle(tmp_path / "bundle")
    write_airgap(tmp_path, PLAN)
    write_step(tmp_path / "code", "sft/one", configs={"default": "a: 1\n"})
    write_step(tmp_path, "sft/one", configs={"default": "a: 1\n"})
    (tmp_path / "site.yaml").write_text("executors: [kubernetes]\n")
    (tmp_path / "asset").mkdir()
    (tmp_path / "asset" / "file").write_text("x")
    assert run(["-q", "assets", "record", "asset", "--out", "airgap-asset-given.jsonl"]) == 0
    receipt = loaded_receipt("sft/one:default")
    base = receipt.images[0].model_copy(
        update={
            "name": "nvcr.io/nvidia/nemo:26.04",
            "role": "base",
            "image": "nvcr.io/nvidia/nemo:26.04",
            "reference": "hub.site:5000/airgap/nvidia/nemo:26.04",
            "pinned": f"hub.site:5000/airgap/nvidia/nemo@{DIGEST}",
        }
    )
    write_receipt(receipt.model_copy(update={"images": (*receipt.images, base)}), tmp_path / "airgap-receipt.yaml")
    for name, answer in ANSWERS.items():
        monkeypatch.setattr(api, name, answer, raising=False)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, read=lambda _most=0: "secret\n"))


def events(emit: Emit) -> None:
    """Emit one of each event that there is."""
    emit(StageStarted("work", "on it"))
    emit(CommandRun("buildah bud"))
    emit(Progress("work", 1, 2, "bytes"))
    emit(Notice("something", details=("more",)))
    emit(Warned("beware", hint="do it"))
    emit(StageFinished("work", 1.0))


def saying(result: Any) -> Callable[..., Any]:
    """Return a use case that emits events, and returns a result."""

    def use_case(*_: object, emit: Emit | None = None, **__: object) -> Any:
        if emit is not None:
            events(emit)
        return result

    return use_case


@contextmanager
def serving(*_: object, emit: Emit, **__: object) -> Iterator[Any]:
    events(emit)
    yield SimpleNamespace(
        images=[("127.0.0.1:5000/app:1", DIGEST)], url="http://x", root=DIGEST, root_verified=False, run=lambda: None
    )


ENTRY = SimpleNamespace(
    target="sft/one", platform="linux/amd64", reached="start", stopped_by="end", text="it ended", attempts=()
)
FACT = SimpleNamespace(name="mounts", value="yes", meaning="layers are not sent twice")
ANSWERS: dict[str, Any] = {
    "doctor": saying(SimpleNamespace(checks=(Check("engine", "ok", "buildah"),), planned=True)),
    "lock": saying(SimpleNamespace(changes=("+ one",), path=Path("airgap.lock.yaml"), runs_here=True)),
    "build": saying(
        SimpleNamespace(
            root=DIGEST,
            images=[SimpleNamespace(reference="hub/app:1", digest=DIGEST, platforms=("linux/amd64",), size_bytes=1024)],
            recompressed=SimpleNamespace(text="layers were recompressed"),
            bundle=Path("out/bundle"),
            bundle_bytes=2048,
            output=Path("out"),
        )
    ),
    "rehearse": saying(
        SimpleNamespace(
            report=SimpleNamespace(
                results=[SimpleNamespace(entry=ENTRY, reused=True, elapsed_s=1.0)], raise_if_wrong=lambda: None
            ),
            path=Path("rehearsal.json"),
        )
    ),
    "quickstart": saying(["all of it"]),
    "serve": serving,
    "check": saying(api.CheckReport(("sft/one",), ())),
    "load": saying(outcome_of(loaded_receipt("sft/one:tiny"), baked=False)),
    "login": saying(Path("auth.json")),
    "logout": saying([]),
    "probe_registry": saying(
        SimpleNamespace(
            explained=lambda: [FACT],
            of_bundle={},
            foreseen=(Warned("a name is too deep"),),
            advice_for_enroot="beware",
            verdict="it suits",
            path=Path("profile"),
        )
    ),
    "extract_catalogue": saying(SimpleNamespace(path=Path("there"), files=1, reused=False, digest=DIGEST)),
    "unpack_asset": saying(SimpleNamespace(path=Path("there"), files=1, links=0, size_bytes=1)),
}


def test_every_command_is_here_and_in_the_reference() -> None:
    assert set(PRINTS) == leaves() == set(PRINTED), "say what it prints to stdout, here and in tests/cli_reference.py"


@pytest.mark.parametrize("command", sorted(PRINTS))
def test_quiet_leaves_the_result_alone(
    command: str, ready: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, pattern = PRINTS[command]
    words = command.split()
    for line in (["--quiet", *words, *arguments], [*words, "-q", *arguments], [*words, *arguments, "--quiet"]):
        again(command, tmp_path)
        code = run(line)
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, ""), line
        assert re.fullmatch(pattern, printed.out), printed.out
    again(command, tmp_path)
    assert run([*words, *arguments]) == 0
    loud = capsys.readouterr()
    assert loud.out == printed.out, "with or without it, a script reads the same"
    assert loud.err or command in ("schema", "report", "history", "copy")
    again(command, tmp_path)
    with terminal_of_40_columns():
        assert run([*words, *arguments]) == 0
    narrow = capsys.readouterr()
    assert (narrow.out, said(narrow.err)) == (loud.out, said(loud.err)), "nothing is cut on a narrow terminal"


@contextmanager
def terminal_of_40_columns() -> Iterator[None]:
    """Have rich take stderr for a narrow terminal."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "40")):
            patched.setenv(name, value)
        # rows that come and go are shortened, and tested in test_cli_output
        patched.setattr(Reporter, "display", lambda _self: nullcontext())
        yield


def test_a_usage_error_is_whole_on_a_terminal_of_40_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_of_40_columns():
        assert run(["verify", "--no-such-option-of-any-command-that-there-is"]) == 2
    assert "--no-such-option-of-any-command-that-there-is" in said(capsys.readouterr().err)


def said(shown: str) -> str:
    """Return what stands on a terminal but its spaces, line breaks, frames, and the marks of comments."""
    return re.sub(r"[\s#─│╭╮╰╯]", "", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))


def again(command: str, folder: Path) -> None:
    """Remove what a command writes only once."""
    if command == "init":
        shutil.rmtree(folder / "new", ignore_errors=True)


@pytest.mark.parametrize("command", sorted(leaves()))
def test_a_failure_is_told_quiet_or_not_and_its_traceback_wherever_debug_stands(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFERRY_DEBUG", raising=False)
    words = [*command.split(), "--no-such-option"]
    assert run([*words, "-q"]) == 2
    assert "No such option" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--debug verify gone", "verify --debug gone", "verify gone --debug"])
def test_debug_counts_wherever_it_stands(line: str, unsettled: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert "Traceback" in capsys.readouterr().err


def test_short_switches_may_share_a_word(ready: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "-vq", "bundle"]) == 0
    assert capsys.readouterr().err == ""


def test_behind_two_dashes_they_are_arguments(unsettled: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "`--debug` contains no bundle" in printed and "Traceback" not in printed


@pytest.mark.parametrize(("value", "shown"), [("0", False), ("", False), ("1", True), ("true", True)])
def test_the_variable_for_debug_means_what_it_says(
    value: str, shown: bool, unsettled: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFERRY_DEBUG", value)
    assert run(["verify", "gone"]) == 2
    assert ("Traceback" in capsys.readouterr().err) is shown


def test_the_checks_that_fail_are_told_in_quiet(
    ready: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = (Check("engine", "fail", "not found", "install it"), Check("disk", "ok", "1 TiB free"))
    monkeypatch.setattr(api, "doctor", saying(SimpleNamespace(checks=checks, planned=True)), raising=False)
    assert run(["doctor", "-q"]) == 4
    told = capsys.readouterr().err
    assert "engine  not found" in told and "→ install it" in told and "1 TiB free" not in told


def test_findings_are_shown_on_a_terminal_in_quiet(
    ready: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = api.Finding("sft/one", "image", "warn", "a.yaml", 1, "a", "1", "it is large", None)
    monkeypatch.setattr(api, "check", saying(api.CheckReport(("sft/one",), (finding,))), raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(["check", "-q", "--no-registry"]) == 0
    printed = capsys.readouterr()
    assert "it is large" in printed.out and printed.err == ""


def test_quiet_never_prompts(
    ready: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for line, code in (["login", "hub:5000"], 2), (["site", "init"], 2), (["init", "asked"], 0):
        assert run([*line, "--quiet"]) == code
    assert "`--quiet` never prompts" in capsys.readouterr().err


# they run in processes apart from the program, whose streams are read
PROGRAMS = ("engine/inside.py", "engine/nowhere.py", "host/confined.py", "cli/render.py")


def test_only_the_reporter_writes_to_stderr() -> None:
    """What else wrote there would not know of `--quiet`."""
    found = []
    for place, module in modules().items():
        if place.startswith(("example/", "near/probe/script", "near/rehearse/hook", *PROGRAMS)):
            continue
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                writes = name in ("print", "typer.echo", "typer.secho") or name.startswith("sys.stderr.write")
                # the findings of a check are its result
                shows = name.endswith("console.print") and place != "cli/findings.py"
                found += [f"{place}:{node.lineno}: {name}"] if writes or shows else []
    assert found == []


def test_json_is_all_that_stdout_has(ready: None, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["verify", "bundle"], ["plan"], ["history"], ["assets", "record", "asset"]):
        assert run(["--quiet", *line, "--json"]) == 0
        printed = capsys.readouterr()
        json.loads(printed.out)
        assert printed.err == ""


def test_a_quiet_reporter_shows_nothing_but_errors(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True, verbose=True, debug=True)
    events(reporter)
    reporter.say("something")
    reporter.next(("go on", "airferry verify"))
    assert capsys.readouterr().err == ""
