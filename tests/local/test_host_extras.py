"""What is installed by choice: a far side does without the near side's libraries; a command names what it lacks."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from airferry.errors import HostError
from airferry.host import installation, process

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEAR = {"build", "describe_plan", "describe_prediction", "doctor", "lock", "plan", "quickstart", "rehearse", "schema"}
NEAR_VALUES = {
    *("BuildOptions", "BuildOutcome", "DoctorReport", "ImageSummary", "LockOutcome", "PlanOutcome"),
    *("RehearsalOutcome", "Selection"),
}
SERVE = {"ServeOptions", "Serving", "serve"}
COMMANDS = {
    "build": "near",
    "doctor": "near",
    "lock": "near",
    "plan": "near",
    "quickstart": "near",
    "rehearse": "near",
    "serve out": "serve",
}
WITHOUT_EXTRAS = """
import contextlib, io, json, sys

hidden, commands = map(json.loads, sys.argv[1:])

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import importlib.util
plain = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in hidden else plain(name, package)

import airferry.api as api
from airferry.cli.app import run
from airferry.errors import HostError
import functools
import typer.main

# a program makes its commands once; here one process runs several command lines
typer.main.get_command = functools.cache(typer.main.get_command)
names, said = {}, {}
for name in api.__all__:
    try:
        getattr(api, name)
        names[name] = ""
    except HostError as error:
        names[name] = error.hint
for command in commands:
    with contextlib.redirect_stderr(io.StringIO()) as output:
        code = run(command.split())
    said[command] = [code, " ".join(output.getvalue().split())]
print(json.dumps([names, said]))
"""


@pytest.fixture(scope="module")
def without_extras() -> tuple[dict[str, str], dict[str, tuple[int, str]]]:
    """Return the hint for each name of the API, and each command's code and stderr, where no extra is installed."""
    hidden = [name for names in installation.EXTRAS.values() for name in names]
    arguments = [json.dumps(hidden), json.dumps(list(COMMANDS))]
    environment = {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "400"}
    done = process.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *arguments], timeout_s=120, environment=environment, cwd=Path("/")
    )
    names, said = json.loads(done.text)
    return names, said


def test_the_extras_are_those_of_the_project() -> None:
    declared = {
        extra: tuple(Requirement(line).name for line in lines)
        for extra, lines in PROJECT["optional-dependencies"].items()
    }
    assert declared == installation.EXTRAS


def test_all_that_a_far_side_does_needs_no_extra_but_serve(
    without_extras: tuple[dict[str, str], dict[str, tuple[int, str]]],
) -> None:
    lacking = {name: hint for name, hint in without_extras[0].items() if hint}
    near = dict.fromkeys(NEAR | NEAR_VALUES, "`pip install 'airferry[near]'`")
    assert lacking == {**near, **dict.fromkeys(SERVE, "`pip install 'airferry[serve]'`")}
    assert {"verify", "load", "copy", "report", "overlays", "check", "load_for_jobs", "unpack_asset"} <= (
        without_extras[0].keys() - lacking.keys()
    )


def test_a_command_says_which_extra_to_install(
    without_extras: tuple[dict[str, str], dict[str, tuple[int, str]]],
) -> None:
    for command, extra in COMMANDS.items():
        code, said = without_extras[1][command]
        assert code == HostError.exit_code, (command, said)
        assert f"pip install 'airferry[{extra}]'" in said
        assert all(f"`{module}`" in said for module in installation.EXTRAS[extra])


def test_a_part_that_is_missing_is_named() -> None:
    installation.require_extra("near", what="`build`")
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(HostError, match=r"`build` needs `isal`, `pip`") as caught,
    ):
        patch.setattr(installation, "find_spec", lambda name: None if name in ("isal", "pip") else object())
        installation.require_extra("near", what="`build`")
    assert caught.value.hint == "`pip install 'airferry[near]'`"
