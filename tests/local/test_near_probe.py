"""The probe says what real imports would say, whatever the modules do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.tags import sys_tags

from airferry.errors import BuildError
from airferry.host import process
from airferry.near.probe import script as probe_script
from airferry.near.probe.answers import (
    MARK,
    PROBE_ATTEMPTS,
    ProbeResult,
    ask_again,
    parse_probe,
    probe_argv,
    probe_input,
)
from airferry.near.wheels.pip import wheel_target


def write_modules(root: Path, sources: dict[str, str]) -> Path:
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
    return root


def run_probe(
    modules: list[str], root: Path, *, timeout_s: float = 20, prelude: str = "", cwd: Path | None = None
) -> ProbeResult:
    python, *options, script = probe_argv(sys.executable)
    request = probe_input(modules, path=[str(root)], module_timeout_s=timeout_s)
    done = process.run(
        [python, *options, prelude + script], streams=process.Streams(stdin=request), timeout_s=60, cwd=cwd
    )
    return parse_probe(done.stdout)


def test_present_missing_and_dotted_modules(tmp_path: Path) -> None:
    write_modules(
        tmp_path, {"parent/__init__.py": "", "parent/child.py": "", "plain.py": "", "space/inner/__init__.py": ""}
    )
    names = ["parent", "parent.child", "parent.absent", "parent.absent.below", "plain.below", "nowhere.at.all"]
    answers = run_probe([*names, "space", "space.inner", "space.other"], tmp_path).modules
    assert {name: (answer.status, answer.missing) for name, answer in answers.items()} == {
        "parent": ("present", ""),
        "parent.child": ("present", ""),
        "parent.absent": ("missing", "parent.absent"),
        "parent.absent.below": ("missing", "parent.absent"),
        "plain.below": ("missing", "plain.below"),
        "nowhere.at.all": ("missing", "nowhere"),
        "space": ("present", ""),
        "space.inner": ("present", ""),
        "space.other": ("missing", "space.other"),
    }


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("raise ImportError('libcuda.so.1: cannot open shared object file')", "ImportError: libcuda.so.1: cannot open"),
        ("raise OSError('libcudart.so: no such file')", "OSError: libcudart.so"),
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(0)", "the interpreter exited"),
        ("import os; os.abort()", "killed by signal 6"),
        ("raise ModuleNotFoundError('install the driver')", "ModuleNotFoundError: install the driver"),
    ],
)
def test_a_module_that_fails_for_another_reason_is_present_with_a_note(tmp_path: Path, source: str, note: str) -> None:
    write_modules(tmp_path, {"gpu/__init__.py": source, "gpu/kernels.py": "", "after.py": ""})
    answers = run_probe(["gpu", "gpu.kernels", "gpu.absent", "after"], tmp_path).modules
    assert answers["gpu"].status == "present"
    assert note in answers["gpu"].note
    assert answers["gpu.kernels"].status == "present", "a child behind a failing parent is judged by what is on disk"
    assert answers["gpu.absent"].status == "missing"
    assert answers["gpu.absent"].missing == "gpu.absent"
    assert (answers["after"].status, answers["after"].note) == ("present", "")


def test_a_hanging_module_is_present_and_ended_and_the_rest_is_still_answered(tmp_path: Path) -> None:
    seconds = f"9876.{os.getpid()}"
    hangs = f"import subprocess, time; subprocess.Popen(['sleep', '{seconds}']); time.sleep(600)"
    write_modules(tmp_path, {"slow/__init__.py": "", "slow/a.py": hangs, "slow/b.py": ""})
    started = time.monotonic()
    answers = run_probe(["slow", "slow.a", "slow.b"], tmp_path, timeout_s=1).modules
    assert time.monotonic() - started < 15
    assert answers["slow.a"].status == "present"
    assert "did not finish within 1 s" in answers["slow.a"].note
    assert answers["slow.b"].note == ""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep {seconds}" not in listing, "a child outlives the probe"


def test_a_module_that_needs_an_absent_one_is_incomplete(tmp_path: Path) -> None:
    write_modules(tmp_path, {"needy.py": "import not_here_at_all.sub", "lone/__init__.py": "import lone.gone"})
    answers = run_probe(["needy", "lone"], tmp_path).modules
    assert (answers["needy"].status, answers["needy"].missing) == ("incomplete", "not_here_at_all")
    assert (answers["lone"].status, answers["lone"].missing) == ("incomplete", "lone.gone")


def test_what_modules_print_does_not_disturb_the_answer(tmp_path: Path) -> None:
    source = f"""
        import os, sys
        print({MARK!r} + "{{}}")
        sys.stderr.write("x" * 200000)
        os.write(1, b"raw output" * 20000)
    """
    write_modules(tmp_path, {"loud.py": source})
    result = run_probe(["loud"], tmp_path, prelude="print('site says hello')\n")
    assert result.modules["loud"].status == "present"


def test_the_current_folder_is_not_on_the_path(tmp_path: Path) -> None:
    write_modules(tmp_path / "cwd", {"only_in_cwd.py": ""})
    result = run_probe(["only_in_cwd"], tmp_path / "elsewhere", cwd=tmp_path / "cwd")
    assert result.modules["only_in_cwd"].status == "missing"


def test_facts_of_this_interpreter(tmp_path: Path) -> None:
    info = tmp_path / "Crafted.Thing-1.2.dist-info"
    write_modules(info, {"METADATA": "Metadata-Version: 2.1\nName: Crafted.Thing\nVersion: 1.2\n"})
    with (info / "METADATA").open("a") as stream:
        stream.write("Requires-Dist: six>=1\n\nName: not-a-header\n")
    result = run_probe([], tmp_path)
    python = result.python
    assert python.version.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert python.abi == f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert python.markers["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert python.in_venv == (sys.prefix != sys.base_prefix)
    assert python.libc in ("glibc", "musl")
    assert python.libc_version
    assert python.paths["purelib"]
    crafted = next(item for item in result.distributions if item.name == "Crafted.Thing")
    assert (crafted.version, crafted.requires) == ("1.2", ("six>=1",))
    assert any(item.name == "pytest" for item in result.distributions)


def test_it_runs_without_json_as_in_a_minimal_standard_library(tmp_path: Path) -> None:
    write_modules(tmp_path, {"a.py": "", "b.py": "raise RuntimeError('quote \" back \\\\ ünïcode 🚢')"})
    result = run_probe(["a", "b", "c"], tmp_path, prelude="import sys; sys.modules['json'] = None\n")
    assert [result.modules[name].status for name in "abc"] == ["present", "present", "missing"]
    assert result.modules["b"].note == 'RuntimeError: quote " back \\ ünïcode 🚢'


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=8))
def test_the_encoder_by_hand_agrees_with_json(value: object) -> None:
    import json

    kept = sys.modules["json"]
    sys.modules["json"] = None  # type: ignore[assignment]
    try:
        text = probe_script.to_json(value)
    finally:
        sys.modules["json"] = kept
    assert json.loads(text) == value


def test_round_trip_through_the_journal(tmp_path: Path) -> None:
    result = run_probe(["nowhere"], tmp_path)
    assert ProbeResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [
        (b"", "returned no answer"),
        (b"Traceback\n", "returned no answer"),
        (MARK.encode() + b'{"schema_version": 99}', "`schema_version`: "),
        (MARK.encode(), "Invalid JSON"),
    ],
)
def test_no_answer_or_a_strange_one_is_refused(stdout: bytes, reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        parse_probe(stdout)


def test_a_probe_whose_output_was_lost_is_run_again(tmp_path: Path) -> None:
    python, *options, script = probe_argv(sys.executable)
    answer = process.run(
        [python, *options, script], streams=process.Streams(stdin=probe_input(["json"])), timeout_s=60
    ).stdout
    outputs = [b"", answer]
    assert ask_again(lambda: outputs.pop(0)).modules["json"].status == "present"
    assert outputs == []


def test_a_probe_that_never_answers_is_given_up() -> None:
    runs: list[int] = []
    with pytest.raises(BuildError, match="returned no answer"):
        ask_again(lambda: runs.append(1) or b"")  # type: ignore[func-returns-value]
    assert len(runs) == PROBE_ATTEMPTS


def test_this_hosts_tags_are_those_that_packaging_finds() -> None:
    python, *options, script = probe_argv(sys.executable)
    streams = process.Streams(stdin=probe_input([]))
    facts = parse_probe(process.run([python, *options, script], streams=streams, timeout_s=60).stdout).python
    assert wheel_target(facts).tags == frozenset(sys_tags())
