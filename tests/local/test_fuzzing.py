"""Fuzzer and fault injector, which are run by hand: that they start, run a few cases, and tell what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZING = Path(__file__).parents[2] / "scripts" / "fuzzing"
PLANTED = """
import sys
sys.path[:0] = sys.argv[1:]
from worker import Target, run_cases

def parse(data):
    if data != b"valid":
        {}["missing"]

print(run_cases("planted", lambda: Target(parse, [b"valid"]), count=9, number=1))
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_a_few_cases_of_a_parser_and_of_a_command(tmp_path: Path) -> None:
    ended = run(FUZZING / "run.py", "step.toml", "--cases", "20", "--commands", "6", "--seed", "7", "--keep", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "26 cases, seed 7" in ended.stdout and list(tmp_path.iterdir()) == []
    rows = [line.split("|")[1:3] for line in ended.stdout.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        [" step.toml ", " 20 "],
        [" `plan`, a step's config, code and step.toml ", " 6 "],
        [" **all** ", " 26 "],
    ]


def test_a_traceback_is_a_fault() -> None:
    ended = run("-c", PLANTED, str(FUZZING), str(FUZZING.parents[1] / "src"))
    assert "cases=9, refused=0" in ended.stdout and "KeyError: 'missing'" in ended.stdout, ended.stderr


def test_a_few_faults_of_the_network() -> None:
    ended = run(FUZZING.parent / "faulting" / "run.py", "HEAD tag", "--kinds", "2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| HEAD tag | 4 | 2 | 2 | 0 | 0 | 4 | 0 |" in ended.stdout and "4 cases" in ended.stdout
