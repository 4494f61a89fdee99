"""A command loads what it needs: what registries, plans and servers need would be most of a short command's time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from airferry.host import process
from oci_images import make_bundle

ROOT = Path(__file__).parents[2]
LOADED = """
import json, sys
from airferry.cli.app import run
code = run(sys.argv[1:])
print()
print(json.dumps([code, sorted(sys.modules)]))
"""
REGISTRIES = {"jsonschema", "oras", "requests", "urllib3", "airferry.registry.client"}
PLANS = {"omegaconf", "airferry.config.models", "airferry.near", "airferry.plan"}
SERVER = {"anyio", "bcrypt", "starlette", "uvicorn"}
NOT_FOR_A_LINE = {"pydantic", "yaml", "zstandard", "rich.console"}


def loaded(*arguments: str, expected: int = 0, folder: Path | None = None) -> set[str]:
    environment = {"PYTHONPATH": str(ROOT / "src"), "AIRFERRY_CACHE": "/nonexistent"}
    done = process.run([sys.executable, "-c", LOADED, *arguments], timeout_s=120, cwd=folder, environment=environment)
    code, modules = json.loads(done.text.splitlines()[-1])
    assert code == expected
    return set(modules)


def test_the_version_loads_no_more_than_the_command_line() -> None:
    assert loaded("--version") & (REGISTRIES | PLANS | SERVER | NOT_FOR_A_LINE) == set()


def test_help_loads_no_more_than_it_shows() -> None:
    assert loaded("plan", "--help") & (REGISTRIES | PLANS | SERVER) == set()


def test_verification_loads_nothing_of_registries_plans_and_servers(tmp_path: Path) -> None:
    make_bundle(tmp_path / "out" / "bundle")
    # where no profile of the site lies, as the one in this repository's own plan
    assert loaded("verify", "out", folder=tmp_path) & (REGISTRIES | PLANS | SERVER) == set()


@pytest.mark.parametrize("arguments", [["load", "missing", "--to", "127.0.0.1:9/x"]])
def test_a_command_that_talks_to_registries_loads_oras_py_under_its_own_name(arguments: list[str]) -> None:
    modules = loaded(*arguments, expected=2)
    assert {"oras.provider", "jsonschema.validators"} <= modules
